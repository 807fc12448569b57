"""What model folders hold in the wild: what is read of them, what is refused in one line, and what their hash covers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)
from models.plain import plain_pipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from evenhand.core.errors import UserError
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import load_pipeline, model_hash, save_pipeline
from evenhand.models.weights import load_weights

UNET, VAE, TEXT = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """A Stable Diffusion folder to change."""
    return shutil.copytree(plain, tmp_path / "model")


def _message(load: Callable, path: Path) -> str:
    with pytest.raises(UserError) as error:
        load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def _write(file: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})


def _change(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = load_file(file)  # a map of the file, which is about to be written
    _write(file, change({name: value.clone() for name, value in weights.items()}))


def _configure(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _sharded(folder: Path, component: str, size: str = "20KB") -> Path:
    """Write one component anew in shards; its index."""
    part = getattr(plain_pipeline("pndm"), component)
    shutil.rmtree(folder / component)
    with quiet_libraries():
        part.save_pretrained(folder / component, max_shard_size=size)
    (index,) = (folder / component).glob("*.index.json")
    return index


def _tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder")}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


# What is read


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_whatever_was_stored_is_computed_and_written_in_float32(folder: Path, tmp_path: Path, stored: torch.dtype) -> None:
    for name in (UNET, VAE, TEXT):
        _change(folder / name, lambda weights: {key: value.to(stored) for key, value in weights.items()})
    _configure(folder / "text_encoder/config.json", dtype=str(stored).removeprefix("torch."))
    pipeline = load_pipeline(folder)
    assert {value.dtype for value in _tensors(pipeline).values()} == {torch.float32}
    save_pipeline(pipeline, tmp_path / "written")
    written = [value for file in (tmp_path / "written").rglob("*.safetensors") for value in load_file(file).values()]
    assert {value.dtype for value in written} == {torch.float32}


@pytest.mark.parametrize("components", [("unet", "vae", "text_encoder"), ("text_encoder",), ("unet", "vae")])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_variant_is_read_where_there_are_no_plain_weights(folder: Path, components: tuple[str, ...], variant: str) -> None:
    expected = _tensors(load_pipeline(folder))
    for component in components:
        (file,) = (folder / component).glob("*.safetensors")
        file.rename(file.with_suffix(f".{variant}.safetensors"))
    found = _tensors(load_pipeline(folder))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_shards_of_a_variant_are_read_and_hashed(folder: Path) -> None:
    pipeline = plain_pipeline("pndm").to(torch.float16)
    for component in ("unet", "text_encoder"):
        shutil.rmtree(folder / component)
        with quiet_libraries():
            getattr(pipeline, component).save_pretrained(folder / component, max_shard_size="20KB", variant="fp16")
    shards = sorted((folder / "text_encoder").glob("model.fp16-*.safetensors"))
    assert len(shards) > 1 and len(list((folder / "unet").glob("*.fp16-*.safetensors"))) > 1
    assert load_pipeline(folder).unet.dtype == torch.float32
    before = model_hash(folder)
    _change(shards[-1], lambda weights: {key: value + 1 for key, value in weights.items()})
    assert model_hash(folder) != before


def test_plain_weights_come_before_a_variant_and_it_is_not_hashed(folder: Path) -> None:
    before = model_hash(folder)
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    (folder / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not read")
    load_pipeline(folder)
    assert model_hash(folder) == before


def test_other_networks_of_one_folder_are_not_taken_for_each_other(folder: Path) -> None:
    for variant in ("ema", "non_ema"):
        shutil.copy(folder / UNET, folder / f"unet/diffusion_pytorch_model.{variant}.safetensors")
    (folder / UNET).unlink()
    assert "weights in the variants ema, non_ema, and none without; rename" in _message(load_pipeline, folder)


def _position_ids(folder: Path) -> None:
    """As SD 1.x was written by transformers 4.2x: a buffer among the weights, and names under text_model."""

    def old(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        named = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}
        return {**named, "text_model.embeddings.position_ids": torch.arange(24)[None]}

    _change(folder / TEXT, old)


def _old_attention_names(folder: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old(key: str) -> str:
        for new, name in names.items():
            key = key.replace(f".{new}.", f".{name}.") if "mid_block.attentions" in key else key
        return key

    _change(folder / VAE, lambda weights: {old(key): value for key, value in weights.items()})
    assert any("proj_attn" in name for name in load_file(folder / VAE))


def _no_extractor(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    kept = {key: value for key, value in index.items() if key not in ("feature_extractor", "safety_checker", "image_encoder")}
    (folder / "model_index.json").write_text(json.dumps(kept))


def _safety_checker(folder: Path) -> None:
    """Named in the index, its weights pickles, which are not looked at; the feature extractor's class is gone from transformers."""
    _configure(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
        requires_safety_checker=True,
    )
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/pytorch_model.bin").write_bytes(b"pickle")
    (folder / "safety_checker/config.json").write_text("{}")


def _old_settings(folder: Path) -> None:
    for component in ("unet", "vae"):
        _configure(folder / component / "config.json", _diffusers_version="0.6.0", an_old_setting=True)
    config = json.loads((folder / "vae/config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in ("scaling_factor", "shift_factor", "force_upcast", "latents_mean")}
    (folder / "vae/config.json").write_text(json.dumps(kept))
    _configure(folder / "scheduler/scheduler_config.json", _diffusers_version="0.6.0", clip_sample=False)


def _old_tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt, as transformers 4 wrote them."""
    tokenizer = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    (folder / "tokenizer/tokenizer.json").unlink()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer/special_tokens_map.json").write_text(json.dumps({"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}))


@pytest.mark.parametrize("age", [_position_ids, _old_attention_names, _no_extractor, _safety_checker, _old_tokenizer])
def test_genuine_folders_of_older_libraries_load(folder: Path, age: Callable[[Path], None]) -> None:
    expected = _tensors(load_pipeline(folder))
    age(folder)
    found = _tensors(load_pipeline(folder))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert len(model_hash(folder)) == 64


def test_settings_of_older_libraries_are_read_as_diffusers_reads_them(folder: Path) -> None:
    _old_settings(folder)
    pipeline = load_pipeline(folder)
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert pipeline.unet.config.sample_size == 64  # diffusers: before 0.9 the number stood for something else


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (T5EncoderModel, T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)),
        (
            Gemma2Model,
            Gemma2Config(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8, **HEADS),
        ),
    ],
)
def test_tied_weights_are_not_missing(kind: Any, config: Any, tmp_path: Path) -> None:
    model = kind(config)
    with quiet_libraries():
        model.save_pretrained(tmp_path)
    loaded = load_weights(kind, tmp_path)
    loaded.require_whole(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.model.state_dict().items())


# Missing weights


def _half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for place, (name, value) in enumerate(sorted(weights.items())) if place % 2}


def _without_last(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(weights.items())[:-1])


def _wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in weights.items()}


def _with_more(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "lora.up": torch.zeros(2)}


def _cut(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value[:-1] if value.ndim else value for name, value in weights.items()}


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_half, "weights are missing ("),
        (_without_last, "1 weight is missing ("),
        (_wrapped, "weights are unexpected (module."),
        (_with_more, "1 weight is unexpected (lora.up)"),
        (_cut, "weights have another shape than config.json says ("),
    ],
)
def test_weights_that_do_not_fill_a_network_are_named(folder: Path, file: str, change: Callable, reason: str) -> None:
    _change(folder / file, change)
    message = _message(load_pipeline, folder)
    assert message.startswith(f"{(folder / file).parent}: ") and reason in message


@pytest.mark.parametrize("load", [Classifier.load, Encoder.load])
@pytest.mark.parametrize("change", [_half, _wrapped, _with_more, _cut])
def test_so_are_those_of_classifiers_and_encoders(classifier_folder: Path, tmp_path: Path, load: Callable, change: Callable) -> None:
    copy = shutil.copytree(classifier_folder, tmp_path / "classifier")
    _change(copy / "model.safetensors", change)
    assert _message(load, copy).startswith(f"{copy}: ")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_classifiers_and_encoders_compute_in_float32(classifier_folder: Path, tmp_path: Path, stored: torch.dtype) -> None:
    copy = shutil.copytree(classifier_folder, tmp_path / "classifier")
    _change(copy / "model.safetensors", lambda weights: {k: v.to(stored) if v.is_floating_point() else v for k, v in weights.items()})
    _configure(copy / "config.json", dtype=str(stored).removeprefix("torch."))
    (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
    for model in (Classifier.load(copy).model, Encoder.load(copy).model):
        assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_the_clip_of_a_tiny_model_is_whole_or_refused(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "model")
    Encoder.load(copy / "clip")
    _change(copy / "clip/model.safetensors", _half)
    assert "weights are missing" in _message(Encoder.load, copy / "clip")


# Shards


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
def test_shards_are_part_of_the_hash(folder: Path, component: str) -> None:
    index = _sharded(folder, component)
    load_pipeline(folder)
    found = [model_hash(folder)]
    for shard in sorted(index.parent.glob("*-of-*.safetensors")):
        _change(shard, lambda weights: {name: value + 1 for name, value in weights.items()})
        found.append(model_hash(folder))
    index.write_text(index.read_text() + "\n")
    found.append(model_hash(folder))
    assert len(set(found)) == len(found) > 3


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_indexes_that_do_not_match_their_shards_are_refused(folder: Path, component: str) -> None:
    index = _sharded(folder, component)
    whole = json.loads(index.read_text())
    first, shard = next(iter(whole["weight_map"].items()))

    def refused(weight_map: object) -> str:
        index.write_text(json.dumps({**whole, "weight_map": weight_map}))
        for load in (load_pipeline, model_hash):
            message = _message(load, folder)
        return message.removeprefix(f"{index}: ")

    assert refused({**whole["weight_map"], first: "x.bin"}).startswith("names 'x.bin'; shards must be safetensors files")
    assert refused({**whole["weight_map"], first: "../x.safetensors"}).startswith("names '../x.safetensors'; shards must be")
    assert refused({**whole["weight_map"], first: "gone.safetensors"}).startswith("names gone.safetensors, which is not there")
    assert refused({**whole["weight_map"], "more": shard}).startswith("1 weight is in no shard (more)")
    assert refused({key: value for key, value in whole["weight_map"].items() if key != first}).startswith("1 weight is not in the index (")
    assert refused([]).startswith("no index of shards")
    (index.parent / shard).unlink()
    index.write_text(json.dumps(whole))
    assert f"names {shard}, which is not there" in _message(load_pipeline, folder)


def test_a_pointer_of_git_lfs_is_called_so(folder: Path) -> None:
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert _message(load_pipeline, folder).startswith(f"{folder / UNET}: a pointer of Git LFS, not the weights")


# Links


def test_a_linked_component_is_hashed_by_what_it_holds(folder: Path, tmp_path: Path) -> None:
    before = model_hash(folder)
    for place in ("far/away/vae", "near"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree((folder / "vae"), tmp_path / place)
    shutil.rmtree(folder / "vae")
    (folder / "vae").symlink_to(tmp_path / "far/away/vae")
    assert model_hash(folder) == before
    (folder / "vae").unlink()
    (folder / "vae").symlink_to("../near")
    assert model_hash(folder) == before
    _change(tmp_path / "near/diffusion_pytorch_model.safetensors", lambda weights: {key: value + 1 for key, value in weights.items()})
    assert model_hash(folder) != before
    load_pipeline(folder)


def test_files_may_be_links_as_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    before = model_hash(folder)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    assert model_hash(folder) == before
    load_pipeline(folder)


@pytest.mark.parametrize("name", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
@pytest.mark.parametrize("target", ["nowhere", ".", None])
def test_a_component_that_contributes_no_file_is_refused(folder: Path, name: str, target: str | None) -> None:
    shutil.rmtree(folder / name)
    if target is not None:
        (folder / name).symlink_to(name if target == "." else target)  # a link to itself, or to nothing
    for use in (load_pipeline, model_hash):
        assert _message(use, folder).startswith(f"{folder / name}")


def test_a_link_around_the_model_does_no_harm(folder: Path) -> None:
    before = model_hash(folder)
    (folder / "unet/around").symlink_to("..")
    load_pipeline(folder)
    assert model_hash(folder) == before


def test_the_hash_knows_every_file_that_a_tokenizer_reads(folder: Path) -> None:
    before = {model_hash(folder)}
    for name in ("added_tokens.json", "special_tokens_map.json", "spiece.model"):
        (folder / "tokenizer" / name).write_text("{}")
        assert model_hash(folder) not in before, name
        before.add(model_hash(folder))


def test_a_tokenizer_without_its_words_is_refused(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()
    assert len(CLIPTokenizer.from_pretrained(folder / "tokenizer")) == 2  # what transformers makes of it
    assert _message(load_pipeline, folder).startswith(f"{folder / 'tokenizer'}: no vocabulary")


# Shapes


def _plain(config: Any, **changes: Any) -> dict[str, Any]:
    """Without diffusers' own notes, one of which says what of it to take for a default."""
    return {**{key: value for key, value in config.items() if not key.startswith("_")}, **changes}


def _unet(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = _plain(plain_pipeline("pndm").unet.config, **changes)
        shutil.rmtree(folder / "unet")
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")

    return write


def _vae(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        config = _plain(plain_pipeline("pndm").vae.config, **changes)
        shutil.rmtree(folder / "vae")
        AutoencoderKL.from_config(config).save_pretrained(folder / "vae")

    return write


def _schedule(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: _configure(folder / "scheduler/scheduler_config.json", **changes)


def _component(name: str, part: Any, library: str = "diffusers") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        shutil.rmtree(folder / name)
        with quiet_libraries():
            part.save_pretrained(folder / name)
        _configure(folder / "model_index.json", **{name: [library, type(part).__name__]})

    return write


def _projected(folder: Path) -> None:
    config = plain_pipeline("pndm").text_encoder.config
    _component("text_encoder", CLIPTextModelWithProjection(config), "transformers")(folder)


def _longer_tokenizer(folder: Path) -> None:
    tokenizer = plain_pipeline("pndm").tokenizer
    tokenizer.add_tokens(["<lesion>"])
    tokenizer.save_pretrained(folder / "tokenizer")


def _unlimited_tokenizer(folder: Path) -> None:
    config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))


def _settings_of_another(folder: Path) -> None:
    _configure(folder / "vae/config.json", _class_name="AsymmetricAutoencoderKL")


def _scheduler_file_of(name: str) -> Callable[[Path], None]:
    return lambda folder: _configure(folder / "scheduler/scheduler_config.json", _class_name=name)


TWO_BLOCKS = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
TINY = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **TWO_BLOCKS)
SETTINGS = ("config.json", "scheduler_config.json", "tokenizer.json")
EMBEDDED = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 8}


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (_unet(in_channels=9), "unet/config.json: in_channels is 9 (an inpainting network), latents have 4"),
        (_unet(in_channels=8), "unet/config.json: in_channels is 8 (an instruct-pix2pix network), latents have 4"),
        (_unet(out_channels=8), "unet/config.json: out_channels is 8, latents have 4; it predicts variances too"),
        (_unet(num_class_embeds=3), "unet/config.json: num_class_embeds is 3: the network wants class labels"),
        (_unet(**EMBEDDED), "unet/config.json: class_embed_type is 'projection': the network wants class labels"),
        (_unet(time_cond_proj_dim=8), "unet/config.json: time_cond_proj_dim is 8: the network wants the guidance scale"),
        (_unet(encoder_hid_dim=8, encoder_hid_dim_type="text_proj"), "unet/config.json: encoder_hid_dim is 8: the network wants projected"),
        (_unet(addition_embed_type="text", addition_embed_type_num_heads=2), "unet/config.json: addition_embed_type is 'text': the"),
        (_unet(attention_type="gated"), "unet/config.json: attention_type is 'gated'"),
        (_unet(cross_attention_dim=32), "unet/config.json: cross_attention_dim is 32, the text encoder's states are 16 wide"),
        (_vae(latent_channels=8), "unet/config.json: in_channels is 4, latents have 8"),
        (_vae(shift_factor=0.1), "vae/config.json: shift_factor is 0.1, which StableDiffusionPipeline does not apply"),
        (_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4), "vae/config.json: latents_mean is given, which StableDiffusionPipeline"),
        (_vae(scaling_factor=0.0), "vae/config.json: scaling_factor is 0.0; it must be a number above 0"),
        (_vae(in_channels=2, out_channels=2), "vae/config.json: 2 channels in and 2 out; images have 1 (gray) or 3"),
        (_component("vae", TINY), "model_index.json: 'vae' is AutoencoderTiny, which is not supported; it must be AutoencoderKL"),
        (_settings_of_another, "vae/config.json: of AsymmetricAutoencoderKL, but model_index.json says AutoencoderKL"),
        (_component("scheduler", FlowMatchEulerDiscreteScheduler()), "scheduler/scheduler_config.json: FlowMatchEulerDiscreteSch"),
        (_component("scheduler", EDMDPMSolverMultistepScheduler()), "scheduler/scheduler_config.json: EDMDPMSolverMultistepSch"),
        (_scheduler_file_of("FlowMatchHeunDiscreteScheduler"), "scheduler/scheduler_config.json: of FlowMatchHeunDiscreteScheduler, which"),
        (_scheduler_file_of("EDMEulerScheduler"), "scheduler/scheduler_config.json: of EDMEulerScheduler, which has no betas"),
        (_schedule(prediction_type="flow_prediction"), "scheduler/scheduler_config.json: prediction_type is 'flow_prediction'; it must be"),
        (_schedule(use_flow_sigmas=True), "scheduler/scheduler_config.json: PNDMScheduler has a flow's noise schedule"),
        (_schedule(beta_schedule="bent"), "scheduler: cannot load the model (PNDMScheduler: bent is not implemented"),
        (_schedule(beta_end=12.0), "scheduler/scheduler_config.json: betas are "),
        (_schedule(predict_epsilon=False), "scheduler/scheduler_config.json: predict_epsilon is false"),
        (_schedule(rescale_betas_zero_snr=True), "scheduler/scheduler_config.json: zero terminal SNR (rescale_betas_zero_snr) with"),
        (_projected, "text_encoder/config.json: CLIPTextModelWithProjection gives one vector for each prompt"),
        (_longer_tokenizer, "tokenizer: 515 tokens, the text encoder knows 514"),
        (_unlimited_tokenizer, "tokenizer/tokenizer_config.json: model_max_length is not given, the text encoder has 24 positions"),
    ],
)
def test_folders_of_another_shape_are_refused(folder: Path, shape: Callable[[Path], None], reason: str) -> None:
    shape(folder)
    assert _message(load_pipeline, folder).startswith(f"{folder}/{reason}")


@pytest.mark.parametrize("name", ["DDIMScheduler", "SchedulerOfLater"])
def test_a_scheduler_file_of_another_class_with_betas_is_read_as_diffusers_reads_it(folder: Path, name: str) -> None:
    _scheduler_file_of(name)(folder)
    assert type(load_pipeline(folder).scheduler).__name__ == "PNDMScheduler"


@pytest.mark.parametrize(
    ("component", "name", "value"),
    [
        ("unet", "freq_shift", "0"),
        ("unet", "freq_shift", [0]),
        ("unet", "flip_sin_to_cos", None),
        ("vae", "norm_num_groups", True),
        ("text_encoder", "eos_token_id", None),
        ("text_encoder", "eos_token_id", [2, 3]),
    ],
)
def test_a_setting_of_another_kind_is_refused_or_does_no_harm(folder: Path, component: str, name: str, value: object) -> None:
    _configure(folder / component / "config.json", **{name: value})
    try:
        load_pipeline(folder)
    except UserError as error:
        said = str(error)
        assert "\n" not in said and (f"{component}/config.json: the network cannot be run (" in said or f"{folder}/{component}" in said)
    else:
        assert name == "flip_sin_to_cos"  # as if it were false


@pytest.mark.parametrize(
    ("component", "name", "value"),
    [("unet", "transformer_layers_per_block", 2**70), ("unet", "layers_per_block", [1, 5000]), ("text_encoder", "hidden_size", 2**40)],
)
def test_sizes_that_would_be_built_without_end_are_refused(folder: Path, component: str, name: str, value: object) -> None:
    _configure(folder / component / "config.json", **{name: value})
    said = _message(load_pipeline, folder)
    assert said.startswith(f"{folder}/{component}/config.json: {name} is ") and said.endswith("that the network was saved with")


@pytest.mark.parametrize("size", [[16, 24], [16, 16], "16", 0, None, True])
def test_a_side_that_is_not_one_number_is_refused(folder: Path, size: object) -> None:
    _configure(folder / "unet/config.json", sample_size=size)
    assert _message(load_pipeline, folder) == f"{folder}/unet/config.json: sample_size is {size!r}; write the latent's side, one number"


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "StableDiffusionXLPipeline", "StableDiffusionInpaintPipeline", "LatentConsistencyModelPipeline", "Imagen"]
)
def test_another_pipeline_gets_the_list_of_families_and_no_near_name(folder: Path, name: str) -> None:
    _configure(folder / "model_index.json", _class_name=name)
    message = _message(load_pipeline, folder)
    assert f"pipeline class '{name}' is not supported; supported are StableDiffusionPipeline (" in message and "did you mean" not in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vae": [None, None]}, "lists no 'vae'"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "'unet' is UNet3DConditionModel, which is not supported"),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, "which diffusers and transformers do not have here"),
        ({"scheduler": ["os", "system"]}, "which diffusers and transformers do not have here"),
        ({"scheduler": "PNDMScheduler"}, "lists no 'scheduler'"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "lists 'text_encoder_2', which a StableDiffusionPipeline does not have"),
    ],
)
def test_an_index_of_other_components_is_refused(folder: Path, changes: dict[str, Any], reason: str) -> None:
    _configure(folder / "model_index.json", **changes)
    assert reason in _message(load_pipeline, folder)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "scheduler", "tokenizer"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"hidden_size": "wide", "block_out_channels": 7, "beta_end": "much"}'])
def test_settings_that_cannot_be_read_are_one_line(folder: Path, component: str, text: str) -> None:
    (file,) = [path for path in (folder / component).glob("*.json") if path.name in SETTINGS]
    file.write_text(text)
    assert _message(load_pipeline, folder).startswith(f"{folder / component}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}), ("transformers_weights", "other.safetensors")],
)
def test_weights_in_other_files_or_forms_are_refused(folder: Path, name: str, value: object) -> None:
    _configure(folder / "text_encoder/config.json", **{name: value})
    assert _message(load_pipeline, folder).startswith(f"{folder / 'text_encoder'}")


def test_an_adapter_is_not_loaded_unseen(folder: Path) -> None:
    (folder / "text_encoder/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    assert "holds an adapter (adapter_config.json)" in _message(load_pipeline, folder)


def test_v_prediction_with_zero_terminal_snr_loads(folder: Path) -> None:
    _component("scheduler", DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"))(folder)
    assert load_pipeline(folder).scheduler.config.rescale_betas_zero_snr


@pytest.mark.parametrize("limit", [0, -1, 1, "77", None, 2.5, 25])
def test_a_tokenizer_whose_limit_does_not_fit_is_refused(folder: Path, limit: object) -> None:
    _configure(folder / "tokenizer/tokenizer_config.json", model_max_length=limit)
    assert _message(load_pipeline, folder).startswith(f"{folder}/tokenizer")


def test_names_of_foreign_files_are_cut_short(folder: Path) -> None:
    _change(folder / UNET, lambda weights: {**weights, "x" * 3000: torch.zeros(1)})
    assert len(_message(load_pipeline, folder)) < 500


# Numbers


@pytest.mark.parametrize(
    ("file", "value", "what"), [(UNET, float("nan"), "NaN"), (VAE, float("inf"), "infinity"), (TEXT, float("-inf"), "infinity")]
)
def test_weights_that_are_no_numbers_are_named(folder: Path, file: str, value: float, what: str) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = sorted(weights)[3]
        return {**weights, name: weights[name].flatten().index_fill(0, torch.tensor([0]), value).view_as(weights[name])}

    _change(folder / file, spoil)
    component = file.split("/", maxsplit=1)[0]
    assert _message(load_pipeline, folder).startswith(f"{folder / component}: the weights hold {what} in {component}.")


def test_large_weights_are_numbers(folder: Path) -> None:
    _change(folder / UNET, lambda weights: {key: torch.full_like(value, 3e38) for key, value in weights.items()})
    load_pipeline(folder)


def test_a_classifier_of_no_numbers_is_refused(classifier_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(classifier_folder, tmp_path / "classifier")
    _change(copy / "model.safetensors", lambda weights: {k: v * float("nan") if v.is_floating_point() else v for k, v in weights.items()})
    for load in (Classifier.load, Encoder.load):
        assert "the weights hold NaN in classifier." in _message(load, copy)
