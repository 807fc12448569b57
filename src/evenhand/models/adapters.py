"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the denoiser, in the format that diffusers' ``load_lora_weights`` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: torch.nn.Module, rank: int, seed: int) -> None:
    """Freeze ``unet`` and add LoRA, which is trained, to its attention layers."""
    unet.requires_grad_(False)
    with torch.random.fork_rng():  # peft draws its start from the global state
        torch.default_generator.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)))


def train_only(pipeline: DiffusionPipeline, unet: torch.nn.Module, lora: int | None, seed: int) -> None:
    """Freeze a pipeline but for one denoiser: all of it, or a LoRA of rank ``lora`` on it."""
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    if lora is not None:
        add_lora(unet, lora, seed)
    else:
        unet.requires_grad_(True)


def save_lora(unet: torch.nn.Module, folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` of the active adapter."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def has_lora(unet: torch.nn.Module) -> bool:
    """Whether ``add_lora`` was there."""
    return bool(getattr(unet, "peft_config", None))


def merge_lora(unet: torch.nn.Module) -> None:
    """Fold the adapter into the weights, so that the folder needs no peft to load."""
    unet.fuse_lora()
    unet.unload_lora()
