"""Imagen-style cascade (Saharia et al. 2022, arXiv 2205.11487): pixels, two stages, one frozen CLIP text encoder.

The base stage draws a small image from text; the super-resolution stage draws the large one, given text and the small image, to which
noise of a known level is added. Both work on images folded into patches (pixel-unshuffle), so that a UNet sees a small grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from evenhand.cohorts.cohort import to_image
from evenhand.models.denoise import Condition, require_finite
from evenhand.models.stages import Stage, draw, unit_noise
from evenhand.models.tensors import to_array
from evenhand.models.text import token_states

OUTPUTS = ("pil", "np", "pt")


class ImagenPipeline(DiffusionPipeline):
    """Text to image in two stages.

    Dynamic thresholding (section 2.3 of the paper) is a setting of the two schedulers: ``thresholding``, percentile
    ``dynamic_thresholding_ratio``, and a ``sample_max_value`` that does not bind.

    Args:
        unet: base stage; draws images of ``sample_size * patch_size`` px, folded into patches.
        super_resolution_unet: sees, beside its own channels, those of the small image, and is told its noise level as
            ``class_labels`` (``class_embed_type="timestep"``).
        patch_size, super_resolution_patch_size: side in pixels of what one place of each grid holds; 1 folds nothing.
        max_noise_level: in training the small image gets noise of timesteps below this one of the super-resolution schedule.
        noise_level: in sampling it gets that of this timestep.

    Raises:
        ValueError: channels or grids that do not fit together.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        super_resolution_unet: UNet2DConditionModel,
        super_resolution_scheduler: SchedulerMixin,
        patch_size: int = 1,
        super_resolution_patch_size: int = 1,
        max_noise_level: int = 350,
        noise_level: int = 50,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
            super_resolution_unet=super_resolution_unet,
            super_resolution_scheduler=super_resolution_scheduler,
        )
        self.register_to_config(
            patch_size=patch_size,
            super_resolution_patch_size=super_resolution_patch_size,
            max_noise_level=max_noise_level,
            noise_level=noise_level,
        )
        _check_parts(self)

    def check_inputs(self, prompt: str | list[str], generator: object, output_type: str, num_images_per_prompt: int) -> None:
        """Refuse what cannot be drawn.

        Raises:
            ValueError: no prompt, another number of generators than of images, or an unknown output.
        """
        if not prompt or not isinstance(prompt, str | list):
            raise ValueError(f"prompt is {prompt!r}; give a text, or a list of texts")
        images = num_images_per_prompt * (1 if isinstance(prompt, str) else len(prompt))
        if isinstance(generator, list | tuple) and len(generator) != images:
            raise ValueError(f"{len(generator)} generators for {images} images; give one, or one per image")
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type is {output_type!r}; give one of {', '.join(OUTPUTS)}")

    def encode_prompt(self, prompt: str | list[str], num_images_per_prompt: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states of the prompts and of the empty prompt, both (images, tokens, width)."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        text = token_states(self.tokenizer, self.text_encoder, prompts).repeat_interleave(num_images_per_prompt, dim=0)
        silent = token_states(self.tokenizer, self.text_encoder, [""]).expand_as(text)
        return text, silent

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Images of prompts, in their order.

        Args:
            num_inference_steps: solver steps of each stage.
            guidance_scale: of both stages; 1 is none.
            generator: one per image, or one for all, drawn from in turn; None takes a seed from torch's global state.
            output_type: ``pil``, ``np`` (n, H, W) or (n, H, W, 3), or ``pt`` (n, channels, H, W); numbers are in [0, 1].
        """
        self.check_inputs(prompt, generator, output_type, num_images_per_prompt)
        text, silent = self.encode_prompt(prompt, num_images_per_prompt)
        if generator is None:
            generator = torch.Generator("cpu").manual_seed(int(torch.randint(2**62, ())))
        draws = list(generator) if isinstance(generator, list | tuple) else [generator] * len(text)
        images = draw(
            [BaseStage(self), SuperResolutionStage(self)], text, silent,
            steps=num_inference_steps, guidance_scale=guidance_scale, generators=draws, name="model",
        )  # fmt: skip
        found = _as(images, output_type)
        return ImagePipelineOutput(images=found) if return_dict else (found,)


def _as(images: torch.Tensor, output_type: str) -> object:
    if output_type == "pt":
        return images
    arrays = to_array(images)
    return arrays if output_type == "np" else [to_image(array) for array in arrays]


def _check_parts(pipeline: ImagenPipeline) -> None:
    base, large = BaseStage(pipeline), SuperResolutionStage(pipeline)
    for name in ("patch_size", "super_resolution_patch_size"):
        if not isinstance(pipeline.config[name], int) or pipeline.config[name] < 1:
            raise ValueError(f"{name} is {pipeline.config[name]!r}; give a whole number above 0")
    for stage in (base, large):
        config = stage.unet.config
        if not isinstance(config.sample_size, int):
            raise ValueError(f"{stage.unet_name} has sample_size {config.sample_size!r}; give one number")
        if config.out_channels not in (stage.patch**2, 3 * stage.patch**2):
            raise ValueError(f"{stage.unet_name} has {config.out_channels} channels; gray or colour in patches of {stage.patch} are others")
    if base.channels != large.channels:
        raise ValueError(f"unet draws {base.channels} channels, super_resolution_unet {large.channels}")
    if base.unet.config.in_channels != base.shape[0]:
        raise ValueError(
            f"unet has {base.unet.config.in_channels} input channels and {base.shape[0]} output channels; they must be as many"
        )
    if large.side % base.side:
        raise ValueError(f"super_resolution_unet draws {large.side} px, no multiple of the base stage's {base.side}")
    _check_condition(base, large)


def _check_condition(base: BaseStage, large: SuperResolutionStage) -> None:
    seen = large.shape[0] + large.on_grid(torch.zeros(1, base.channels, base.side, base.side)).shape[1]
    if large.unet.config.in_channels != seen:
        raise ValueError(
            f"super_resolution_unet has {large.unet.config.in_channels} input channels; its image and the small one are {seen}"
        )
    if large.unet.config.class_embed_type != "timestep":
        raise ValueError("super_resolution_unet has no class_embed_type 'timestep', so it cannot be told the noise level")
    highest, steps = large.pipeline.config.max_noise_level, large.scheduler.config.num_train_timesteps
    if not isinstance(highest, int) or not 1 <= highest <= steps:
        raise ValueError(f"max_noise_level is {highest!r}; give 1 to {steps}, the timesteps of the schedule")
    level = large.pipeline.config.noise_level
    if not isinstance(level, int) or not 0 <= level < highest:
        raise ValueError(f"noise_level is {level!r}; give one that is trained, 0 to {highest - 1}")


class _PixelStage(Stage):
    """Pixels in [-1, 1], folded into patches; nothing is learnt or lost on the way."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side in pixels of what one place of the grid holds."""

    @property
    def side(self) -> int:
        return int(self.unet.config.sample_size) * self.patch

    @property
    def channels(self) -> int:
        return int(self.unet.config.out_channels) // self.patch**2

    @property
    def encoding(self) -> str:
        return f"pixels {self.side} {self.patch}"

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = F.avg_pool2d(pixels, pixels.shape[-1] // self.side)
        return F.pixel_unshuffle(small * 2 - 1, self.patch), pixels.new_zeros(len(pixels), 1, 1, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        require_finite(latents, "pixels", self.pipeline.name_or_path or "the model")
        return (F.pixel_shuffle(latents, self.patch) / 2 + 0.5).clamp(0, 1)


class BaseStage(_PixelStage):
    """Text to a small image."""

    @property
    def patch(self) -> int:
        return int(self.pipeline.config.patch_size)


class SuperResolutionStage(_PixelStage):
    """Text and a small image to a large one."""

    unet_name = "super_resolution_unet"
    scheduler_name = "super_resolution_scheduler"

    @property
    def patch(self) -> int:
        return int(self.pipeline.config.super_resolution_patch_size)

    def training_condition(self, latents: torch.Tensor, draws: Sequence[torch.Generator]) -> Condition:
        """The true image made small, with noise of a level below ``max_noise_level``, each as likely as the others."""
        highest = int(self.pipeline.config.max_noise_level)
        levels = torch.stack([torch.randint(highest, (), generator=generator) for generator in draws])
        base = BaseStage(self.pipeline)
        small = F.avg_pool2d(F.pixel_shuffle(latents, self.patch), self.side // base.side)
        return self._augmented(small, levels, draws)

    def sampling_condition(self, pixels: torch.Tensor, draws: Sequence[torch.Generator]) -> Condition:
        """What the base stage has drawn, with noise of the pipeline's ``noise_level``."""
        levels = torch.full((len(pixels),), int(self.pipeline.config.noise_level), device=pixels.device)
        return self._augmented(pixels * 2 - 1, levels, draws)

    def on_grid(self, small: torch.Tensor) -> torch.Tensor:
        """Small images (B, channels, side, side) on the grid of this stage: folded into patches, or enlarged where the grid is finer."""
        grid = self.shape[-1]
        if small.shape[-1] >= grid:
            return F.pixel_unshuffle(small, small.shape[-1] // grid)
        return F.interpolate(small, (grid, grid), mode="bilinear", align_corners=False)

    @cached_property
    def _noising(self) -> DDPMScheduler:
        return DDPMScheduler.from_config(self.scheduler.config)

    def _augmented(self, small: torch.Tensor, levels: torch.Tensor, draws: Sequence[torch.Generator]) -> Condition:
        """Noise-conditioning augmentation (section 2.4; Ho et al. 2022, arXiv 2106.15282): noise of a level that the denoiser is told."""
        noise = unit_noise(small.shape[1:], draws, small.device)
        noisy = self._noising.add_noise(small, noise, levels)
        return Condition(self.on_grid(noisy), levels)
