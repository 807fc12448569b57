"""What one denoiser of a pipeline is trained on and conditioned on, and what its output shows.

A family of models is the stages that its pipeline draws with, in order. Everything in which families differ stands in a stage;
training, alignment and generation know no family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from evenhand.models.chunks import by_chunks, images_at_once
from evenhand.models.denoise import Condition, decode, encode, sampler, trajectory
from evenhand.models.weights import fingerprint


class Stage(ABC):
    """One denoiser of ``pipeline``. "Latents" are what it denoises, (B, C, h, w), whatever they are made of."""

    unet_name: ClassVar[str] = "unet"  # component of the pipeline, and its folder
    scheduler_name: ClassVar[str] = "scheduler"

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        return getattr(self.pipeline, self.unet_name)

    @property
    def scheduler(self) -> SchedulerMixin:
        """The sampler saved with it, whose noise schedule it is trained on."""
        return getattr(self.pipeline, self.scheduler_name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image's latents."""
        config = self.unet.config
        return config.out_channels, config.sample_size, config.sample_size

    @property
    @abstractmethod
    def side(self) -> int:
        """Side in pixels of the images that ``decode`` gives."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of its images: 1 gray, 3 colour."""

    @property
    @abstractmethod
    def encoding(self) -> str:
        """What the latents of an image depend on, beside the image: equal where ``encode`` gives the same."""

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, channels, H, W) in [0, 1], of the side that the pipeline draws, to mean and standard deviation of the latents.

        The deviation is (B, C, h, w), or (B, 1, 1, 1) where one number an image says it all.
        """

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to pixels (B, channels, side, side) in [0, 1]; differentiable."""

    def training_condition(self, latents: torch.Tensor, draws: Sequence[torch.Generator]) -> Condition | None:
        """What it is given in training beside noisy ``latents``; random parts are drawn from each sample's own generator."""
        return None

    def sampling_condition(self, pixels: torch.Tensor, draws: Sequence[torch.Generator]) -> Condition | None:
        """What it is given in sampling: made of the pixels in [0, 1] that the stage before it has drawn."""
        return None


class LatentStage(Stage):
    """Stable Diffusion's only denoiser, in the latent space of an autoencoder."""

    @property
    def side(self) -> int:
        return int(self.unet.config.sample_size) * 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        return 1 if self.pipeline.vae.config.out_channels == 1 else 3

    @property
    def encoding(self) -> str:
        return fingerprint(self.pipeline.vae)

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vae = self.pipeline.vae.to(pixels.device)
        parts = [encode(vae, part) for part in pixels.split(self._at_once(pixels))]
        return torch.cat([mean for mean, _ in parts]), torch.cat([std for _, std in parts])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae.to(latents.device)
        return by_chunks(lambda part: decode(vae, part), latents, self._at_once(latents))

    def _at_once(self, batch: torch.Tensor) -> int:
        return images_at_once(self.side, batch.device, most=max(1, len(batch)))


def unit_noise(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> torch.Tensor:
    """(B, *shape), each sample from its own generator."""
    return torch.cat([randn_tensor((1, *shape), generator=generator, device=device) for generator in generators])


def draw(
    stages: Sequence[Stage],
    text: torch.Tensor,
    silent: torch.Tensor,
    *,
    steps: int,
    guidance_scale: float,
    generators: Sequence[torch.Generator],
    name: str = "dpm++",
    spacing: str | None = None,
) -> torch.Tensor:
    """Pixels (B, channels, side, side) in [0, 1] of the last stage, each stage given what the one before it has drawn.

    Every random number of an image comes from its own generator, one of ``generators``, so it depends on its seed and text alone.

    Args:
        text, silent: (B, tokens, width) states of the prompts and of the empty prompt, on the device to compute on.
        name, spacing: see ``sampler``.
    """
    pixels = torch.empty(0)  # nothing is before the first stage
    for stage in stages:
        condition = stage.sampling_condition(pixels, generators)
        noise = unit_noise(stage.shape, generators, text.device)
        latents = trajectory(
            stage.unet, sampler(stage.scheduler, name, spacing), noise, text, silent,
            steps=steps, guidance_scale=guidance_scale, generators=generators, condition=condition,
        )  # fmt: skip
        with torch.autocast(latents.device.type, enabled=False):  # decoders overflow in half precision
            pixels = stage.decode(latents.float())
    return pixels
