"""The frozen CLIP text encoder: prompts to token states."""

from __future__ import annotations

import torch
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedModel

from evenhand.core.errors import UserError


def tokenized(tokenizer: CLIPTokenizer, prompts: list[str]) -> BatchEncoding:
    """Token ids and mask (n, tokens) of prompts, padded or cut to the tokenizer's limit."""
    return tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")


@torch.no_grad()
def token_states(tokenizer: CLIPTokenizer, encoder: PreTrainedModel, prompts: list[str]) -> torch.Tensor:
    """Last hidden states (n, tokens, width) of prompts, padded or cut to the tokenizer's limit, on the encoder's device.

    Raises:
        UserError: one is not finite; whatever is trained on or drawn from it would not be either.
    """
    batch = tokenized(tokenizer, prompts)
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):  # as StableDiffusionPipeline.encode_prompt does
        mask = batch.attention_mask.to(encoder.device)
    states = encoder(batch.input_ids.to(encoder.device), attention_mask=mask)[0]
    finite = torch.isfinite(states).flatten(1).all(1)
    if not bool(finite.all()):
        where, first = getattr(encoder.config, "_name_or_path", "") or "the text encoder", prompts[int((~finite).nonzero()[0])]
        raise UserError(f"{where}: token states are not finite (NaN or infinity) for the prompt {first[:80]!r}; give another text encoder")
    return states
