"""The offline defaults: complete pipelines of real classes at small size, fitted on one cohort, their denoisers untrained.

``tiny-latent`` is a Stable Diffusion pipeline with an autoencoder of its own, ``tiny-imagen`` a cascade in pixels. They need no
download, and train on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field, model_validator
from transformers import CLIPImageProcessorPil, CLIPModel

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import new_folder, provenance, require_free, write_json
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.core.progress import track
from evenhand.core.randomness import generator, torch_generator
from evenhand.models.imagen import ImagenPipeline
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import CLIP_FOLDER
from evenhand.models.tensors import to_tensor
from evenhand.models.tiny_text import fit_text, seeded

_GRID = 16  # side of what the denoisers see
_AUTOENCODER_BATCH = 16  # small batches: many cheap steps fit better than few dear ones
_KL_WEIGHT = 1e-7  # of a sum over the latent: enough to bound its range, too little to blur


class FittedSettings(Settings):
    """What every small model is fitted with."""

    cohort: Path
    out: Path
    seed: int = 0
    clip_steps: int = Field(150, ge=0)
    batch_size: int = Field(32, ge=2)
    width: int = Field(32, ge=16, multiple_of=16, description="channels of a denoiser's first level; the others have twice as many")


class TinySettings(FittedSettings):
    """Settings of ``evenhand model init tiny-latent``."""

    autoencoder_steps: int = Field(300, ge=0)
    latent_channels: int | None = Field(None, ge=1, description="default: 4 up to 32 px, 8 gray and 12 colour above")


class TinyImagenSettings(FittedSettings):
    """Settings of ``evenhand model init tiny-imagen``."""

    max_noise_level: int = Field(350, ge=1, le=1000, description="noise on small images in training is of timesteps below this")
    noise_level: int = Field(50, ge=0, description="timestep of the noise that a small image gets before it is enlarged")

    @model_validator(mode="after")
    def _trained_level(self) -> Self:
        if self.noise_level >= self.max_noise_level:
            raise ValueError(
                f"noise_level {self.noise_level} is not below max_noise_level {self.max_noise_level}; only lower ones are trained"
            )
        return self


def init_tiny_latent(settings: TinySettings) -> Path:
    """Fit tokenizer, CLIP and autoencoder on the cohort's training split; write a StableDiffusionPipeline folder.

    Raises:
        UserError: the image side is not 32, 64, 128 or 256 px, or the training split is smaller than a batch.
    """
    train = _training_split(settings, "tiny-latent", (32, 64, 128, 256))
    tokenizer, clip = fit_text(train, steps=settings.clip_steps, batch_size=settings.batch_size, seed=settings.seed)
    vae = _fit_autoencoder(train, settings)
    channels = vae.config.latent_channels
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=clip.text_model.eval(),
        tokenizer=tokenizer,
        unet=_denoiser("unet", settings, clip, in_channels=channels, out_channels=channels),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=_extractor(train.schema.image_size),
        requires_safety_checker=False,
    )
    return _write(pipeline, clip, train, settings)


def init_tiny_imagen(settings: TinyImagenSettings) -> Path:
    """Fit tokenizer and CLIP on the cohort's training split; write an ImagenPipeline folder that draws half the side, then the whole.

    Images are folded into patches, so that both denoisers see a grid of 16 x 16 and a step of either costs what one of tiny-latent does.

    Raises:
        UserError: the image side is not 32 or 64 px, or the training split is smaller than a batch.
    """
    train = _training_split(settings, "tiny-imagen", (32, 64))
    tokenizer, clip = fit_text(train, steps=settings.clip_steps, batch_size=settings.batch_size, seed=settings.seed)
    colours = 1 if train.schema.image_mode == "L" else 3
    patch = train.schema.image_size // _GRID
    small, large = colours * (patch // 2) ** 2, colours * patch**2
    pipeline = ImagenPipeline(
        tokenizer=tokenizer,
        text_encoder=clip.text_model.eval(),
        unet=_denoiser("unet", settings, clip, in_channels=small, out_channels=small),
        scheduler=_scheduler(**_THRESHOLDING),
        super_resolution_unet=_denoiser(
            "super-resolution-unet", settings, clip, in_channels=large + small, out_channels=large, class_embed_type="timestep"
        ),
        # The large image has more channels a place than the denoiser can carry noise of; what it shows is far less than they hold.
        super_resolution_scheduler=_scheduler(prediction_type="sample", **_THRESHOLDING),
        patch_size=patch // 2,
        super_resolution_patch_size=patch,
        max_noise_level=settings.max_noise_level,
        noise_level=settings.noise_level,
    )
    return _write(pipeline, clip, train, settings)


# Dynamic thresholding, Saharia et al. 2022, arXiv 2205.11487, section 2.3; diffusers' default of the last one, 1, would clip instead.
_THRESHOLDING: dict[str, Any] = {"thresholding": True, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 100.0}


def _training_split(settings: FittedSettings, family: str, sides: tuple[int, ...]) -> Cohort:
    require_free(settings.out)
    train = Cohort.load(settings.cohort).split("train")
    side = train.schema.image_size
    if side not in sides:
        wanted = ", ".join(map(str, sides[:-1])) + f" or {sides[-1]}"
        raise UserError(f"{settings.cohort}: images of {side} px; {family} wants {wanted} (import again with --size)")
    if len(train) < settings.batch_size:
        raise UserError(f"{settings.cohort}: {len(train)} training images, fewer than one batch of {settings.batch_size}")
    return train


def _denoiser(purpose: str, settings: FittedSettings, clip: CLIPModel, **channels: Any) -> UNet2DConditionModel:
    width = settings.width
    with seeded(settings.seed, purpose):
        return UNet2DConditionModel(
            sample_size=_GRID,
            block_out_channels=(width, width * 2, width * 2),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=clip.config.text_config.hidden_size,
            attention_head_dim=4,  # diffusers reads it as the number of heads
            norm_num_groups=8,
            **channels,
        )


def _scheduler(prediction_type: str = "v_prediction", **options: Any) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction_type,
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing",
        steps_offset=1,
        **options,
    )


def _extractor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _write(pipeline: DiffusionPipeline, clip: CLIPModel, train: Cohort, settings: FittedSettings) -> Path:
    with new_folder(settings.out) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
        clip.save_pretrained(folder / CLIP_FOLDER, safe_serialization=True)
        _extractor(train.schema.image_size).save_pretrained(folder / CLIP_FOLDER)
        facts = {"small": True, "settings": settings.model_dump(mode="json"), "modality": train.schema.modality}
        write_json(folder / "evenhand.json", provenance(**facts))
    return settings.out


def _fit_autoencoder(train: Cohort, settings: TinySettings) -> AutoencoderKL:
    """An autoencoder down to 16 x 16, by mean squared error and a light KL; scaled so that latents have unit variance."""
    side, mode = train.schema.image_size, train.schema.image_mode
    channels = 1 if mode == "L" else 3
    levels = int(math.log2(side // _GRID)) + 1
    latent = settings.latent_channels or (4 if side <= 32 else 8 if channels == 1 else 12)
    with seeded(settings.seed, "autoencoder"):
        vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            latent_channels=latent,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(min(64, 16 * 2**level) for level in range(levels)),
            norm_num_groups=8,
            sample_size=side,
            mid_block_add_attention=False,
        ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=max(settings.autoencoder_steps, 1))
    with track("autoencoder", settings.autoencoder_steps) as bar:
        for step in range(settings.autoencoder_steps):
            rows = generator(settings.seed, "autoencoder", step).integers(len(train), size=_AUTOENCODER_BATCH)
            pixels = (to_tensor(train.pixels(rows), channels) * 2 - 1).contiguous(memory_format=torch.channels_last)
            posterior = vae.encode(pixels).latent_dist
            latents = posterior.sample(torch_generator(settings.seed, "autoencoder-posterior", step))
            error = F.mse_loss(vae.decode(latents).sample, pixels)
            loss = error + _KL_WEIGHT * posterior.kl().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(note=f"rmse {error.item() ** 0.5 / 2:.4f}")
    vae.register_to_config(scaling_factor=_latent_scale(vae, train, channels))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def _latent_scale(vae: AutoencoderKL, train: Cohort, channels: int) -> float:
    means = vae.encode(to_tensor(train.pixels(np.arange(min(len(train), 128))), channels) * 2 - 1).latent_dist.mean
    return float(1 / means.std().clamp_min(1e-6))


class TinyFamily(NamedTuple):
    """A family of ``evenhand model init``."""

    settings: type[FittedSettings]
    init: Callable[[Any], Path]


TINY_FAMILIES = {"tiny-latent": TinyFamily(TinySettings, init_tiny_latent), "tiny-imagen": TinyFamily(TinyImagenSettings, init_tiny_imagen)}
