"""Diffusion losses, one value a sample: the caller weights and reduces."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from evenhand.core.errors import UserError, did_you_mean

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def target_of(scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the model should predict, (B, C, H, W): noise, velocity (Salimans and Ho 2022, arXiv 2202.00512) or the clean sample."""
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            return latents
        case other:
            raise UserError(f"scheduler: prediction type {other!r} is not supported; {did_you_mean(str(other), PREDICTIONS)}")


def signal_to_noise(scheduler: DDPMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """abar_t / (1 - abar_t), (B,), float32."""
    abar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].float()
    return abar / (1 - abar).clamp_min(1e-12)


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """min-SNR-gamma weights (B,) for the scheduler's prediction type (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""
    snr = signal_to_noise(scheduler, timesteps)
    clipped = snr.clamp(max=gamma)
    match scheduler.config.prediction_type:
        case "epsilon":
            return clipped / snr.clamp_min(1e-12)
        case "v_prediction":
            return clipped / (snr + 1)
        case _:
            return clipped


def per_sample_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over C, H, W: (B, C, H, W) -> (B,), in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)
