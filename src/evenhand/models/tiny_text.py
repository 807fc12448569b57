"""Tokenizer and CLIP of the small offline models, fitted on one cohort: a BPE of its prompts, a contrastive fit, then frozen."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from evenhand.cohorts.cohort import Cohort
from evenhand.core.progress import track
from evenhand.core.randomness import derive_seed, generator
from evenhand.models.tensors import to_tensor

START, END = "<|startoftext|>", "<|endoftext|>"
_MOST_SPREAD = 10.0


def fit_text(train: Cohort, *, steps: int, batch_size: int, seed: int) -> tuple[CLIPTokenizer, CLIPModel]:
    """Fit both on the prompts and images of a training split; every weight is frozen.

    Args:
        steps: of the contrastive fit, ``batch_size`` images each.
    """
    prompts = sorted(set(train.table["prompt"]))
    tokenizer = _fit_tokenizer(prompts)
    clip = _fit_clip(train, tokenizer, steps=steps, batch_size=batch_size, seed=seed)
    _spread_text_states(clip, tokenizer, prompts)
    return tokenizer, clip


class seeded:
    """Draw module initialisations from a named seed, and leave the global state as it was."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._seed, self._fork = derive_seed(seed, purpose), torch.random.fork_rng()

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)  # of every device: dropout draws where it computes

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
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _fit_clip(train: Cohort, tokenizer: CLIPTokenizer, *, steps: int, batch_size: int, seed: int) -> CLIPModel:
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
    with seeded(seed, "clip"):
        clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, weight_decay=0.01)
    unique, codes = np.unique(train.table["prompt"], return_inverse=True)
    tokens = tokenizer(list(unique), padding="max_length", truncation=True, return_tensors="pt").input_ids
    with track("clip", steps) as bar:
        for step in range(steps):
            rows = generator(seed, "clip", step).integers(len(train), size=batch_size)
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
