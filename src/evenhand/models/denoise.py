"""One denoising step and one trajectory: the only sampler code. Gradients flow where the caller has them switched on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin

from evenhand.core.errors import UserError
from evenhand.models.libraries import quiet_libraries
from evenhand.models.schedules import spacing_of


@dataclass(frozen=True)
class Condition:
    """What a denoiser is given besides noisy latents and text: channels (B, C', h, w) and their noise level (B,), a timestep."""

    channels: torch.Tensor
    level: torch.Tensor

    def to(self, device: torch.device) -> Condition:
        """The same on another device."""
        return Condition(self.channels.to(device), self.level.to(device))

    def twice(self) -> Condition:
        """For a batch that is computed with and without text."""
        return Condition(torch.cat([self.channels, self.channels]), torch.cat([self.level, self.level]))


def sampler(scheduler: SchedulerMixin, name: str = "dpm++", spacing: str | None = None) -> SchedulerMixin:
    """A fresh sampler on the model's own noise schedule.

    Args:
        scheduler: the one saved with the model.
        name: ``dpm++`` (DPM-Solver++ 2M, Lu et al. 2022, arXiv 2211.01095) or ``model`` (the saved one as it is).
        spacing: where its steps lie in time: ``leading``, ``linspace`` or ``trailing``; by default as ``spacing_of`` the saved one
            says, and for ``model`` as diffusers takes it.

    Raises:
        UserError: a spacing for a saved scheduler that knows none.
    """
    if name == "model":
        if spacing is None:
            return copy.deepcopy(scheduler)
        if "timestep_spacing" not in inspect.signature(type(scheduler).__init__).parameters:
            raise UserError(f"--timestep-spacing {spacing}: {type(scheduler).__name__} has none; leave it out, or --sampler model")
        return type(scheduler).from_config(scheduler.config, timestep_spacing=spacing)
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing=spacing or spacing_of(scheduler.config)
    )


def predict(
    unet: torch.nn.Module, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, condition: Condition | None = None
) -> torch.Tensor:
    """What ``unet`` says of noisy ``latents`` (B, C, H, W), given text (B, tokens, width) and what else its stage is conditioned on."""
    if condition is None:
        return unet(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]
    seen = torch.cat([latents, condition.channels], dim=1)  # (B, C + C', H, W)
    return unet(seen, timestep, encoder_hidden_states=text, class_labels=condition.level, return_dict=False)[0]


def guided_prediction(
    unet: torch.nn.Module,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    silent: torch.Tensor,
    guidance_scale: float,
    condition: Condition | None = None,
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6 in diffusers' scale).

    Args:
        latents: (B, C, H, W), scaled for this step.
        text, silent: (B, tokens, width) states of the prompt and of the empty prompt.
        guidance_scale: 1 is no guidance, and costs one evaluation instead of two.
    """
    if guidance_scale == 1:
        return predict(unet, latents, timestep, text, condition)
    twice = None if condition is None else condition.twice()
    both = predict(unet, torch.cat([latents, latents]), timestep, torch.cat([silent, text]), twice)
    without, conditioned = both.chunk(2)
    return without + guidance_scale * (conditioned - without)


def trajectory(
    unet: torch.nn.Module,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    text: torch.Tensor,
    silent: torch.Tensor,
    *,
    steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator] | None = None,
    condition: Condition | None = None,
) -> torch.Tensor:
    """From unit noise (B, C, H, W) to clean latents in ``steps`` solver steps.

    ``generators``, one a sample, feed samplers that draw noise on the way, so that an image depends on its own seed alone.
    """

    def answer(place: int, scaled: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return guided_prediction(unet, scaled, timestep, text, silent, guidance_scale, condition)

    return solve(scheduler, noise, steps, answer, generators)


def solve(
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    steps: int,
    answer: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    generators: Sequence[torch.Generator] | None = None,
) -> torch.Tensor:
    """The same for any denoiser: ``answer`` is given a step's number from 0, its scaled latents, and its timestep."""
    with quiet_libraries():  # diffusers hands tensors to numpy in a way that numpy warns of
        scheduler.set_timesteps(steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    extra = _accepted_generators(scheduler, generators)
    for place, timestep in enumerate(scheduler.timesteps):
        prediction = answer(place, scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **extra)[0]
    return latents


def _accepted_generators(scheduler: SchedulerMixin, generators: Sequence[torch.Generator] | None) -> dict[str, list[torch.Generator]]:
    accepts = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": list(generators)} if accepts and generators is not None else {}


def decode(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, h, w) to pixels (B, channels, H, W) in [0, 1].

    Raises:
        UserError: latents or pixels are not finite; clamped and rounded they would be a black image.
    """
    read_from = getattr(vae.config, "_name_or_path", "")
    model = Path(read_from).parent if read_from else "the model"
    require_finite(latents, "latents", model)
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
    require_finite(pixels, "pixels", model)
    return (pixels / 2 + 0.5).clamp(0, 1)


def require_finite(drawn: torch.Tensor, what: str, model: Path | str) -> None:
    """Raise where something drawn (B, ...) holds NaN or infinity.

    Raises:
        UserError: with the number of images, and the remedy.
    """
    finite = torch.isfinite(drawn.detach()).flatten(1).all(1)
    if not bool(finite.all()):
        raise UserError(
            f"{model}: {what} of {int((~finite).sum())} of {len(drawn)} drawn images are not finite (NaN or infinity); "
            "draw with --precision no if it was bf16 or fp16, or load an earlier checkpoint of the model"
        )


def encode(vae: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B, channels, H, W) in [0, 1] to mean and standard deviation of the scaled latent posterior."""
    posterior = vae.encode(pixels * 2 - 1).latent_dist
    return posterior.mean * vae.config.scaling_factor, posterior.std * vae.config.scaling_factor
