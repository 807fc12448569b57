"""The offline default: a complete Stable Diffusion pipeline of real classes at small size, fitted on one cohort.

Tokenizer (BPE of the cohort's prompts), CLIP (text and vision, contrastive, then frozen), AutoencoderKL, and an untrained
UNet2DConditionModel. It needs no download, and trains on a CPU.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import new_folder, provenance, require_free, write_json
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.core.progress import track
from evenhand.core.randomness import derive_seed, generator, torch_generator
from evenhand.models.pipelines import quiet_libraries
from evenhand.models.tensors import to_tensor

START, END = "<|startoftext|>", "<|endoftext|>"
_LATENT_SIDE = 16
_AUTOENCODER_BATCH = 16  # small batches: many cheap steps fit better than few dear ones
_MOST_SPREAD = 10.0
_KL_WEIGHT = 1e-7  # of a sum over the latent: enough to bound its range, too little to blur


class TinySettings(Settings):
    """Settings of ``evenhand model init tiny-latent``."""

    cohort: Path
    out: Path
    seed: int = 0
    clip_steps: int = Field(150, ge=0)
    autoencoder_steps: int = Field(300, ge=0)
    batch_size: int = Field(32, ge=2)
    width: int = Field(32, ge=16, multiple_of=16, description="channels of the denoiser's first level; the others have twice as many")
    latent_channels: int | None = Field(None, ge=1, description="default: 4 up to 32 px, 8 gray and 12 colour above")


def init_tiny_latent(settings: TinySettings) -> Path:
    """Fit tokenizer, CLIP and autoencoder on the cohort's training split; write a StableDiffusionPipeline folder.

    Raises:
        UserError: the image side is not 16 times a power of two, or the training split is empty.
    """
    require_free(settings.out)
    cohort = Cohort.load(settings.cohort)
    train = cohort.split("train")
    side = cohort.schema.image_size
    if side < 2 * _LATENT_SIDE or side & (side - 1):
        raise UserError(f"{settings.cohort}: images of {side} px; tiny-latent wants 32, 64, 128 or 256 (import again with --size)")
    if len(train) < settings.batch_size:
        raise UserError(f"{settings.cohort}: {len(train)} training images, fewer than one batch of {settings.batch_size}")
    tokenizer = _fit_tokenizer(sorted(set(train.table["prompt"])))
    clip = _fit_clip(train, tokenizer, settings)
    _spread_text_states(clip, tokenizer, sorted(set(train.table["prompt"])))
    vae = _fit_autoencoder(train, settings)
    pipeline = _assemble(tokenizer, clip, vae, side, settings)
    with new_folder(settings.out) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
        clip.save_pretrained(folder / "clip", safe_serialization=True)
        pipeline.feature_extractor.save_pretrained(folder / "clip")
        write_json(folder / "evenhand.json", provenance(settings=settings.model_dump(mode="json"), modality=cohort.schema.modality))
    return settings.out


def _assemble(tokenizer: CLIPTokenizer, clip: CLIPModel, vae: AutoencoderKL, side: int, settings: TinySettings) -> StableDiffusionPipeline:
    width, channels = settings.width, vae.config.latent_channels
    with seeded(settings.seed, "unet"):
        unet = UNet2DConditionModel(
            sample_size=_LATENT_SIDE,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(width, width * 2, width * 2),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=clip.config.text_config.hidden_size,
            attention_head_dim=4,  # diffusers reads it as the number of heads
            norm_num_groups=8,
        )
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        timestep_spacing="trailing",
        steps_offset=1,
    )
    extractor = CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=clip.text_model.eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=extractor,
        requires_safety_checker=False,
    )


class seeded:
    """Draw module initialisations from a named seed, and leave the global state as it was."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._fork = derive_seed(seed, purpose), torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(None, None, None)


def _fit_tokenizer(prompts: list[str]) -> CLIPTokenizer:
    """A byte-level BPE tokenizer whose limit is the longest prompt, rounded up to a multiple of eight, at most CLIP's 77."""
    empty = CLIPTokenizer()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # named first: the trainer numbers what it finds itself in any order
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[START, END, *letters, *(f"{letter}</w>" for letter in letters)],  # a word may end in any byte
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(prompts, trainer)
    vocab = bpe.get_vocab()
    merges = [tuple(merge) for merge in _merges(bpe)]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    longest = max(len(ids) for ids in tokenizer(prompts).input_ids)
    limit = min(77, 8 * math.ceil(longest / 8))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max(limit, 16))


def _merges(bpe: Tokenizer) -> list[list[str]]:
    import json

    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _fit_clip(train: Cohort, tokenizer: CLIPTokenizer, settings: TinySettings) -> CLIPModel:
    """CLIP (Radford et al. 2021, arXiv 2103.00020). Cohorts repeat prompts, so every image of a prompt is a positive of it."""
    side = train.schema.image_size
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=side // 8,
    )
    with seeded(settings.seed, "clip"):
        clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.01)
    unique, codes = np.unique(train.table["prompt"], return_inverse=True)
    tokens = tokenizer(list(unique), padding="max_length", truncation=True, return_tensors="pt").input_ids
    with track("clip", settings.clip_steps) as bar:
        for step in range(settings.clip_steps):
            rows = generator(settings.seed, "clip", step).integers(len(train), size=settings.batch_size)
            images = (to_tensor(train.pixels(rows), 3) - 0.5) / 0.5
            prompts = torch.from_numpy(codes[rows])
            output = clip(input_ids=tokens[prompts], pixel_values=images)
            target = (prompts[:, None] == prompts[None]).float()
            target = target / target.sum(1, keepdim=True)
            loss = (F.cross_entropy(output.logits_per_image, target) + F.cross_entropy(output.logits_per_text, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.advance(note=f"loss {loss.item():.3f}")
    return clip.eval().requires_grad_(False)


@torch.no_grad()
def _spread_text_states(clip: CLIPModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> None:
    """Centre the token states and scale them until prompts differ by about one unit a dimension.

    Prompts of one cohort share most of their words, and so most of their states: with a spread of 0.08 around a common value the
    denoiser needs several times as many steps to notice what the prompt says. Cosines of the contrastive loss are nearly untouched.
    """
    if len(prompts) < 2:
        return
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = clip.text_model(input_ids=tokens).last_hidden_state  # (prompts, tokens, width)
    scale = float((1 / states.std(0, unbiased=False).square().mean().sqrt().clamp_min(1e-6)).clamp(1, _MOST_SPREAD))
    norm = clip.text_model.final_layer_norm
    norm.bias.copy_((norm.bias - states.mean((0, 1))) * scale)
    norm.weight.mul_(scale)


def _fit_autoencoder(train: Cohort, settings: TinySettings) -> AutoencoderKL:
    """An autoencoder down to 16 x 16, by mean squared error and a light KL; scaled so that latents have unit variance."""
    side, mode = train.schema.image_size, train.schema.image_mode
    channels = 1 if mode == "L" else 3
    levels = int(math.log2(side // _LATENT_SIDE)) + 1
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


TINY_FAMILIES = {"tiny-latent": init_tiny_latent}
