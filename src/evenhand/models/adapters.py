"""LoRA (Hu et al. 2021, arXiv 2106.09685) on the denoiser, in the format that diffusers' ``load_lora_weights`` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: torch.nn.Module, rank: int, seed: int) -> None:
    """Freeze ``unet`` and add LoRA, which is trained, to its attention layers."""
    unet.requires_grad_(False)
    with torch.random.fork_rng():  # peft draws its start from the global state
        torch.default_generator.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)))


def save_lora(unet: torch.nn.Module, folder: Path) -> None:
    """Write ``pytorch_lora_weights.safetensors`` of the active adapter."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def merge_lora(unet: torch.nn.Module) -> None:
    """Fold the adapter into the weights, so that the folder needs no peft to load."""
    unet.fuse_lora()
    unet.unload_lora()
