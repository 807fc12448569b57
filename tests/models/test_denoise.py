"""Our sampler beside ``StableDiffusionPipeline.__call__``: the same noise gives the same image."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, EulerAncestralDiscreteScheduler
from models.plain import plain_pipeline

from evenhand.core.errors import UserError
from evenhand.core.randomness import torch_generator
from evenhand.models.denoise import decode, encode, guided_prediction, sampler, trajectory
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import encode_prompts, load_pipeline


@pytest.fixture(scope="module", params=["tiny", "pndm", "ddim"])
def pipeline(request: pytest.FixtureRequest, tiny: Path):  # type: ignore[no-untyped-def]
    found = load_pipeline(tiny) if request.param == "tiny" else plain_pipeline(request.param)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("name", ["model", "dpm++"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@torch.no_grad()
def test_a_trajectory_is_that_of_the_pipeline(pipeline, name: str, scale: float) -> None:  # type: ignore[no-untyped-def]
    prompts = ["Brain MR slice of a male patient with tumour", "Brain MR slice of a patient"]
    noise = torch.randn((2, 4, 16, 16), generator=torch_generator(0, "noise"))
    text, silent = encode_prompts(pipeline, prompts), encode_prompts(pipeline, [""]).expand(2, -1, -1)
    chosen = sampler(pipeline.scheduler, name)
    ours = trajectory(pipeline.unet, chosen, noise, text, silent, steps=4, guidance_scale=scale)
    before, pipeline.scheduler = pipeline.scheduler, sampler(pipeline.scheduler, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="diffusers")
        theirs = pipeline(prompts, latents=noise, num_inference_steps=4, guidance_scale=scale, output_type="latent").images
        images = pipeline(prompts, latents=noise, num_inference_steps=4, guidance_scale=scale, output_type="pt").images
    pipeline.scheduler = before
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(decode(pipeline.vae, ours), images, rtol=1e-3, atol=1e-3)


def test_guidance_by_hand() -> None:
    class Echo(torch.nn.Module):
        """Predicts the mean of the text."""

        def forward(self, latents, timestep, encoder_hidden_states, return_dict):  # type: ignore[no-untyped-def]
            return (encoder_hidden_states.mean((1, 2))[:, None, None, None].expand_as(latents),)

    latents, text, silent = torch.zeros(1, 1, 2, 2), torch.full((1, 3, 5), 2.0), torch.full((1, 3, 5), 1.0)
    for scale, expected in ((1.0, 2.0), (3.0, 1 + 3 * (2 - 1))):
        assert guided_prediction(Echo(), latents, torch.tensor(5), text, silent, scale).unique().tolist() == [expected]


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DDPMScheduler])
@torch.no_grad()
def test_noise_on_the_way_depends_on_the_samples_own_seed(kind: type, tiny: Path) -> None:
    pipeline = load_pipeline(tiny)
    with quiet_libraries():  # the constructor hands a tensor to numpy in a way that numpy warns of
        # not the cosine schedule: its first noise level is so high that the ancestral step loses its digits
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        scheduler = kind.from_config({**pipeline.scheduler.config, **betas, "prediction_type": "epsilon"})
    noise = torch.randn((2, 4, 16, 16), generator=torch_generator(0, "noise"))
    text = encode_prompts(pipeline, ["a", "b"])

    def drawn(rows: list[int]) -> torch.Tensor:
        draws = [torch_generator(row, "image") for row in rows]
        return trajectory(
            pipeline.unet, sampler(scheduler, "model"), noise[rows], text[rows], text[rows], steps=3, guidance_scale=1.0, generators=draws
        )

    torch.testing.assert_close(drawn([0, 1])[1:], drawn([1]), rtol=1e-3, atol=1e-4)


def test_gradients_flow_through_a_trajectory(tiny: Path) -> None:
    pipeline = load_pipeline(tiny)
    text = encode_prompts(pipeline, ["a"]).clone().requires_grad_(True)
    noise = torch.randn((1, 4, 16, 16), generator=torch_generator(0, "noise"))
    trajectory(pipeline.unet, sampler(pipeline.scheduler), noise, text, text, steps=2, guidance_scale=1.0).sum().backward()
    assert text.grad is not None and text.grad.abs().sum() > 0


@torch.no_grad()
def test_encode_gives_the_scaled_posterior(tiny: Path) -> None:
    vae = load_pipeline(tiny).vae
    pixels = torch.rand((2, 1, 32, 32), generator=torch_generator(1, "pixels"))
    mean, std = encode(vae, pixels)
    posterior = vae.encode(pixels * 2 - 1).latent_dist
    torch.testing.assert_close(mean / vae.config.scaling_factor, posterior.mean)
    torch.testing.assert_close(std, posterior.std * vae.config.scaling_factor)
    far = decode(vae, mean * 100)
    assert far.shape == pixels.shape and far.min() >= 0 and far.max() <= 1


@pytest.mark.parametrize("place", ["latents", "pixels"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_drawn_black(plain: Path, place: str, value: float) -> None:
    vae = load_pipeline(plain).vae
    latents = torch.zeros(3, 4, 16, 16)
    if place == "latents":
        latents[1, 0, 0, 0] = value
    else:
        vae.decoder.conv_out.bias.data[0] = value
    wrong = "1 of 3" if place == "latents" else "3 of 3"
    with pytest.raises(UserError, match=f"{place} of {wrong} drawn images are not finite .*draw with --precision no") as error:
        decode(vae, latents)
    assert str(error.value).startswith(f"{plain}: ")


def test_the_check_lets_gradients_through(plain: Path) -> None:
    latents = torch.zeros(1, 4, 16, 16, requires_grad=True)
    decode(load_pipeline(plain).vae, latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
