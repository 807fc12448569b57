"""The cascade: what is saved is what draws, plain diffusers reads its parts, and its arithmetic by hand."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel

from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.errors import UserError
from evenhand.core.randomness import torch_generator
from evenhand.models.denoise import Condition, guided_prediction, predict, sampler, trajectory
from evenhand.models.imagen import BaseStage, ImagenPipeline, SuperResolutionStage
from evenhand.models.pipelines import encode_prompts, image_geometry, load_pipeline, save_pipeline, stage_of, stages_of
from evenhand.models.tiny import TinyImagenSettings, init_tiny_imagen

PROMPTS = ["Brain MR slice of a male patient with tumour", "Brain MR slice of a patient"]


@pytest.fixture(scope="module")
def pipeline(imagen: Path) -> ImagenPipeline:
    return load_pipeline(imagen)


def _draws(*seeds: int) -> list[torch.Generator]:
    return [torch_generator(seed, "image") for seed in seeds]


def test_saved_and_loaded_it_draws_the_same_images(pipeline: ImagenPipeline, tmp_path: Path) -> None:
    save_pipeline(pipeline, tmp_path / "again")
    again = ImagenPipeline.from_pretrained(tmp_path / "again", use_safetensors=True, local_files_only=True)
    a, b = (found(PROMPTS, num_inference_steps=2, generator=_draws(0, 1), output_type="pt").images for found in (pipeline, again))
    assert a.shape == (2, 1, 32, 32) and torch.equal(a, b)
    assert {file.suffix for file in (tmp_path / "again").rglob("*") if file.is_file()} <= {".json", ".safetensors"}


def test_plain_diffusers_loads_each_unet(imagen: Path, pipeline: ImagenPipeline) -> None:
    for folder, ours in (("unet", pipeline.unet), ("super_resolution_unet", pipeline.super_resolution_unet)):
        unet = UNet2DConditionModel.from_pretrained(imagen, subfolder=folder, use_safetensors=True, local_files_only=True)
        theirs = unet.state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in ours.state_dict().items())
    assert (pipeline.unet.config.in_channels, pipeline.unet.config.out_channels) == (1, 1)  # 16 px, nothing folded
    assert (unet.config.in_channels, unet.config.out_channels) == (4 + 1, 4)  # 32 px in patches of 2, and the small image


def test_two_stages_in_colour_at_64_px(tmp_path: Path) -> None:
    write_phantoms("dermoscopy", tmp_path / "skin", n=16, size=64, seed=0)
    settings = TinyImagenSettings(cohort=tmp_path / "skin", out=tmp_path / "model", clip_steps=0, width=16, batch_size=2)
    pipeline = load_pipeline(init_tiny_imagen(settings))
    assert image_geometry(pipeline) == (64, "RGB")
    assert [(name, stage.side, stage.shape) for name, stage in stages_of(pipeline).items()] == [
        ("base", 32, (12, 16, 16)),
        ("super-resolution", 64, (48, 16, 16)),
    ]
    images = pipeline("skin", num_inference_steps=1, generator=_draws(0), output_type="np").images
    assert images.shape == (1, 64, 64, 3) and 0 <= images.min() <= images.max() <= 1


def test_outputs_are_those_of_diffusers(pipeline: ImagenPipeline) -> None:
    def drawn(output_type: str, **changes: object):  # type: ignore[no-untyped-def]
        return pipeline(PROMPTS[0], num_inference_steps=1, generator=_draws(3), output_type=output_type, **changes)

    tensor, array, (image,) = drawn("pt").images, drawn("np").images, drawn("pil").images
    np.testing.assert_array_equal(array, tensor[:, 0].numpy())
    assert image.size == (32, 32) and image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), np.round(array[0] * 255).astype(np.uint8))
    assert torch.equal(drawn("pt", return_dict=False)[0], tensor)


def test_an_image_depends_on_its_own_generator_and_prompt(pipeline: ImagenPipeline) -> None:
    def drawn(prompts: list[str], *seeds: int) -> torch.Tensor:
        return pipeline(prompts, num_inference_steps=2, generator=_draws(*seeds), output_type="pt").images

    both = drawn(PROMPTS, 0, 1)
    assert torch.equal(both, drawn(PROMPTS, 0, 1))
    torch.testing.assert_close(drawn(PROMPTS[1:], 1), both[1:], rtol=0, atol=1e-4)  # sums in another order
    assert not torch.allclose(drawn(PROMPTS, 0, 2)[1], both[1], atol=1e-2)
    per_prompt = pipeline(PROMPTS, num_inference_steps=1, num_images_per_prompt=2, generator=_draws(0, 1, 2, 3), output_type="pt").images
    again = pipeline([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, num_inference_steps=1, generator=_draws(0, 1, 2, 3), output_type="pt").images
    assert torch.equal(per_prompt, again)


def test_without_a_generator_the_global_seed_counts(pipeline: ImagenPipeline) -> None:
    found = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            found.append(pipeline(PROMPTS[0], num_inference_steps=1, output_type="pt").images)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "prompt is ''; give a text, or a list of texts"),
        ({"prompt": PROMPTS, "generator": _draws(0)}, "1 generators for 2 images; give one, or one per image"),
        ({"prompt": PROMPTS, "output_type": "jpg"}, "output_type is 'jpg'; give one of pil, np, pt"),
    ],
)
def test_inputs_are_checked(pipeline: ImagenPipeline, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match="give") as error:
        pipeline(**given)
    assert str(error.value) == message


def test_dynamic_thresholding_by_hand(pipeline: ImagenPipeline) -> None:
    for stage in stages_of(pipeline).values():
        chosen = sampler(stage.scheduler)
        chosen.register_to_config(prediction_type="sample")
        clean = torch.tensor([[0.0, -0.5, 1.0, -1.5, 2.0], [0.0, -0.25, 0.5, -0.75, 0.9]])[:, None, None]
        found = chosen.convert_model_output(clean, sample=clean)[:, 0, 0]
        s = 1.5 + 0.98 * 0.5  # the 99.5th percentile of 0, .5, 1, 1.5, 2 lies .98 of the way between the last two
        torch.testing.assert_close(found[0], torch.tensor([0.0, -0.5 / s, 1 / s, -1.5 / s, 1.0]))
        assert torch.equal(found[1], clean[1, 0, 0])  # nothing beyond [-1, 1]: left as it is


def test_every_step_of_a_sampler_thresholds(pipeline: ImagenPipeline) -> None:
    """With a guidance scale of 50 the last prediction, which is the image, still has a 99.5th percentile of at most 1."""
    text, silent = pipeline.encode_prompt(PROMPTS)
    noise = torch.randn((2, 1, 16, 16), generator=torch_generator(0, "noise"))
    plain = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, thresholding=False)
    with torch.no_grad():
        wild, tamed = (
            trajectory(pipeline.unet, sampler(scheduler), 4 * noise, 9 * text, silent, steps=2, guidance_scale=50.0)
            for scheduler in (plain, pipeline.scheduler)
        )
    assert wild.abs().flatten(1).quantile(0.995, dim=1).min() > 1
    assert tamed.abs().flatten(1).quantile(0.995, dim=1).max() <= 1 + 1e-4


def test_pixels_are_folded_and_unfolded_without_loss(pipeline: ImagenPipeline) -> None:
    pixels = torch.rand((2, 1, 32, 32), generator=torch_generator(0, "pixels"))
    base, large = BaseStage(pipeline), SuperResolutionStage(pipeline)
    latents, spread = large.encode(pixels)
    assert latents.shape == (2, 4, 16, 16) and spread.shape == (2, 1, 1, 1) and not spread.any()
    assert latents[0, :, 3, 5].tolist() == pytest.approx((pixels[0, 0, 6:8, 10:12].flatten() * 2 - 1).tolist())
    torch.testing.assert_close(large.decode(latents), pixels)
    small, _ = base.encode(pixels)
    assert small[1, 0, 2, 7].item() == pytest.approx(2 * pixels[1, 0, 4:6, 14:16].mean().item() - 1, abs=1e-6)


def _abar(t: int) -> float:
    """Cosine schedule (Nichol and Dhariwal 2021, eq. 17)."""
    return (math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2


def test_noise_augmentation_by_hand(pipeline: ImagenPipeline) -> None:
    large = SuperResolutionStage(pipeline)
    pixels = torch.full((2, 1, 16, 16), 0.75)  # 0.5 in [-1, 1]
    condition = large.sampling_condition(pixels, _draws(0, 1))
    assert condition.level.tolist() == [50, 50]
    noise = torch.stack([torch.randn((1, 16, 16), generator=draw) for draw in _draws(0, 1)])
    expected = math.sqrt(_abar(50)) * 0.5 + math.sqrt(1 - _abar(50)) * noise
    torch.testing.assert_close(condition.channels, expected, rtol=1e-4, atol=1e-4)


def test_training_levels_are_uniform_and_told(pipeline: ImagenPipeline) -> None:
    large = SuperResolutionStage(pipeline)
    assert BaseStage(pipeline).training_condition(torch.zeros(1, 1, 16, 16), _draws(0)) is None
    latents = torch.full((400, 4, 16, 16), -0.5)
    condition = large.training_condition(latents, _draws(*range(400)))
    levels = condition.level.float()
    assert levels.mean().item() == pytest.approx(174.5, abs=4 * 101 / 20) and levels.min() < 10 and 340 < levels.max() < 350
    for level, channels in zip(condition.level.tolist(), condition.channels, strict=True):
        signal, spread = math.sqrt(_abar(level)) * -0.5, math.sqrt(1 - _abar(level))
        assert channels.mean().item() == pytest.approx(signal, abs=5 * spread / 16 + 0.01)
        assert channels.std().item() == pytest.approx(spread, rel=0.2)


def test_guidance_with_a_condition_by_hand(pipeline: ImagenPipeline) -> None:
    text, silent = pipeline.encode_prompt(PROMPTS)
    latents = torch.randn((2, 4, 16, 16), generator=torch_generator(0, "noise"))
    condition = Condition(torch.randn((2, 1, 16, 16), generator=torch_generator(1, "noise")), torch.tensor([10, 700]))
    unet, t = pipeline.super_resolution_unet, torch.tensor(300)
    with torch.no_grad():
        asked, without = (
            unet(torch.cat([latents, condition.channels], 1), t, encoder_hidden_states=states, class_labels=condition.level).sample
            for states in (text, silent)
        )
        found = {scale: guided_prediction(unet, latents, t, text, silent, scale, condition) for scale in (1.0, 3.0)}
        other = predict(unet, latents, t, text, Condition(condition.channels, torch.tensor([700, 700])))
    torch.testing.assert_close(found[1.0], asked)
    torch.testing.assert_close(found[3.0], without + 3 * (asked - without), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(other[0], asked[0])  # the level is heard


def test_gradients_flow_through_the_base_stage(pipeline: ImagenPipeline) -> None:
    stage = stage_of(pipeline)
    text = encode_prompts(pipeline, PROMPTS).clone().requires_grad_(True)
    noise = torch.randn((2, *stage.shape), generator=torch_generator(0, "noise"))
    latents = trajectory(stage.unet, sampler(stage.scheduler), noise, text, text, steps=2, guidance_scale=1.0)
    stage.decode(latents).sum().backward()
    assert text.grad is not None and text.grad.abs().sum() > 0


def test_unfolded_images_are_enlarged_to_a_finer_grid(imagen: Path) -> None:
    """The shape of the paper: full resolution in both stages."""
    pipeline = load_pipeline(imagen)
    config = {**pipeline.super_resolution_unet.config, "sample_size": 32, "in_channels": 2, "out_channels": 1}
    parts = {**pipeline.components, "super_resolution_unet": UNet2DConditionModel.from_config(config).eval()}
    whole = ImagenPipeline(**parts)
    assert image_geometry(whole) == (32, "L")
    assert SuperResolutionStage(whole).sampling_condition(torch.rand(1, 1, 16, 16), _draws(0)).channels.shape == (1, 1, 32, 32)
    assert whole("brain", num_inference_steps=1, generator=_draws(0), output_type="pt").images.shape == (1, 1, 32, 32)


@pytest.fixture
def copy(imagen: Path, tmp_path: Path) -> Path:
    shutil.copytree(imagen, tmp_path / "model", ignore=shutil.ignore_patterns("clip"))
    return tmp_path / "model"


def _message(model: Path) -> str:
    with pytest.raises(UserError) as error:
        load_pipeline(model)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("model_index.json", {"patch_size": 2}, "unet has 1 channels; gray or colour in patches of 2 are others"),
        ("model_index.json", {"patch_size": 0}, "patch_size is 0; give a whole number above 0"),
        ("model_index.json", {"noise_level": 350}, "noise_level is 350; give one that is trained, 0 to 349"),
        ("super_resolution_unet/config.json", {"sample_size": [16, 16]}, "super_resolution_unet has sample_size [16, 16]; give one number"),
    ],
)
def test_parts_that_do_not_fit_are_named(copy: Path, part: str, change: dict, reason: str) -> None:
    values = json.loads((copy / part).read_text())
    (copy / part).write_text(json.dumps({**values, **change}))
    assert _message(copy) == f"{copy}: cannot load the model ({reason}); it must be a diffusers folder with safetensors weights"


def test_a_stage_that_is_not_told_the_level_is_refused(imagen: Path) -> None:
    pipeline = load_pipeline(imagen)
    config = {**pipeline.super_resolution_unet.config, "class_embed_type": None}
    with pytest.raises(ValueError, match="no class_embed_type 'timestep', so it cannot be told the noise level"):
        ImagenPipeline(
            **{**pipeline.components, "super_resolution_unet": UNet2DConditionModel.from_config(config)}, super_resolution_patch_size=2
        )
    config = {**pipeline.super_resolution_unet.config, "in_channels": 4}
    with pytest.raises(ValueError, match="super_resolution_unet has 4 input channels; its image and the small one are 5"):
        ImagenPipeline(
            **{**pipeline.components, "super_resolution_unet": UNet2DConditionModel.from_config(config)}, super_resolution_patch_size=2
        )


def test_no_pickle_is_opened(copy: Path, tmp_path: Path) -> None:
    folder = copy / "super_resolution_unet"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(str(tmp_path / "canary"))))
    assert _message(copy).startswith(f"{folder}: the weights are pickles (diffusion_pytorch_model.bin), which may run code")
    assert not (tmp_path / "canary").exists()


class _Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.mkdir, (Path(self.path),))


def test_a_stage_that_is_not_there_is_named(pipeline: ImagenPipeline, tiny: Path) -> None:
    for model, name, there in ((pipeline, "superresolution", "base, super-resolution"), (load_pipeline(tiny), "super-resolution", "base")):
        with pytest.raises(UserError) as error:
            stage_of(model, name)
        assert str(error.value).startswith(f"--stage {name}: {type(model).__name__} has no such stage; ")
        assert str(error.value).endswith(f"There is: {there}")
