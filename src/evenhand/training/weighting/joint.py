"""Joint groups of several attributes: their names, as the cohort's tables have them, and their codes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evenhand.core.names import joint_label
from evenhand.engine.batching import CAP

GroupCodes = Mapping[str, torch.Tensor]  # attribute -> (B,) int64 code of the group, -1 where it is unknown


class JointGroups:
    """Every joint group of ``groups`` in the order of its code; the last attribute runs fastest.

    >>> JointGroups({"sex": ["f", "m"], "age": ["old"]}).names
    ['f x old', 'm x old']
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self._sizes = {attribute: len(names) for attribute, names in groups.items()}
        self.names = [joint_label(parts) for parts in itertools.product(*groups.values())] if groups else []

    def codes(self, groups: GroupCodes) -> torch.Tensor:
        """Joint code of each sample, (B,) int64; -1 where any attribute is unknown."""
        parts = [groups[attribute].long().cpu() for attribute in self._sizes]
        joint = torch.zeros_like(parts[0])
        for part, size in zip(parts, self._sizes.values(), strict=True):
            joint = joint * size + part
        return torch.where(torch.stack(parts).min(dim=0).values >= 0, joint, -1)

    def array(self, values: Mapping[str, float], absent: float = 0.0) -> np.ndarray:
        """Values by joint group as (G,) float64; groups that are not named get ``absent``."""
        return np.array([values.get(name, absent) for name in self.names], dtype=float)


def capped_share(counts: np.ndarray) -> np.ndarray:
    """Shares (G,) of the largest group's count, at least ``1 / CAP``; 1 for groups without a sample."""
    largest = max(counts.max(initial=0.0), 1e-12)
    return np.where(counts > 0, np.maximum(counts / largest, 1 / CAP), 1.0)
