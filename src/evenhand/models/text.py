"""The frozen CLIP text encoder: prompts to token states."""

from __future__ import annotations

import torch
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedModel


def tokenized(tokenizer: CLIPTokenizer, prompts: list[str]) -> BatchEncoding:
    """Token ids and mask (n, tokens) of prompts, padded or cut to the tokenizer's limit."""
    return tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")


@torch.no_grad()
def token_states(tokenizer: CLIPTokenizer, encoder: PreTrainedModel, prompts: list[str]) -> torch.Tensor:
    """Last hidden states (n, tokens, width) of prompts, padded or cut to the tokenizer's limit, on the encoder's device."""
    batch = tokenized(tokenizer, prompts)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):  # as StableDiffusionPipeline.encode_prompt does
        mask = batch.attention_mask.to(encoder.device)
    return encoder(batch.input_ids.to(encoder.device), attention_mask=mask)[0]
