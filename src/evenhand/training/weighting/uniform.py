"""Plain fine-tuning: every sample counts the same. The baseline of every comparison."""

from __future__ import annotations

import torch

from evenhand.training.weighting.joint import GroupCodes
from evenhand.training.weighting.method import WeightingMethod


class Uniform(WeightingMethod):
    """Weights of one."""

    needs_groups = False

    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """One for all, (1,)."""
        return torch.ones(1)
