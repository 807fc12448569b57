"""CLIP-consistency distillation: an image stays near what the untuned model drew from the same noise and prompt."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

CHANGED = 0.2  # weight of an image that has to change its group, which it cannot without moving (Shen et al. 2024, arXiv 2311.07604)


def consistency_loss(features: torch.Tensor, frozen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of 1 - cos, as T2MedI distils (Han et al. 2024, arXiv 2406.14847).

    Args:
        features, frozen: (B, d) image embeddings of the tuned model's images, with gradient, and of the untuned model's.
        weights: (B,).
    """
    return (weights * (1 - F.cosine_similarity(features, frozen))).mean()


def consistency_weights(wanted: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """1 where an image should show the group that the untuned model drew, ``CHANGED`` where it should not; (B,) codes -> (B,)."""
    return np.where(wanted == frozen, 1.0, CHANGED)
