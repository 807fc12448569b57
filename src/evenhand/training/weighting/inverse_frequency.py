"""Inverse-frequency weights: the samples of every joint group weigh the same in sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from evenhand.training.weighting.joint import GroupCodes, capped_share
from evenhand.training.weighting.method import WeightingMethod


class InverseFrequency(WeightingMethod):
    """w_g ~ 1 / (the group's share of draws), of mean 1 over draws of known group; at most ``CAP`` times the largest's. Unknown: 1.

    Under balanced sampling groups are drawn alike, and the weights are 1.

    Raises:
        ValueError: no counts of groups.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        counts = self.joint.array(self.counts) * (1 if self.sampled is None else self.joint.array(self.sampled))
        if not counts.sum() > 0:
            raise ValueError("inverse_frequency needs counts: joint group -> training images")
        inverse = 1 / capped_share(counts)
        by_group = np.where(counts > 0, inverse * counts.sum() / (inverse * counts).sum(), 1.0)
        self._table = torch.tensor([*by_group, 1.0], dtype=torch.float32)  # the last one is read by code -1

    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """The group's weight, (B,)."""
        return self._table[self.joint.codes(groups)]
