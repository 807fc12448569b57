"""A Stable Diffusion folder as plain diffusers writes it: none of our code, RGB, epsilon."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

SCHEDULERS = {"pndm": PNDMScheduler, "ddim": DDIMScheduler}


def plain_pipeline(scheduler: str) -> StableDiffusionPipeline:
    """32 px in colour, two levels of autoencoder, the noise schedule of Stable Diffusion 1."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocab),
                hidden_size=16,
                intermediate_size=16,
                projection_dim=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=24,
                bos_token_id=len(vocab) - 2,
                eos_token_id=len(vocab) - 1,
                pad_token_id=len(vocab) - 1,
            )
        )
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            sample_size=32,
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    schedule = SCHEDULERS[scheduler](
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **_UNCLIPPED[scheduler]
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


_UNCLIPPED: dict[str, dict] = {
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False},
    "ddim": {"clip_sample": False, "set_alpha_to_one": False},
}


def write_plain(folder: Path, scheduler: str = "pndm") -> Path:
    """Save it as diffusers saves it."""
    plain_pipeline(scheduler).save_pretrained(folder, safe_serialization=True)
    return folder
