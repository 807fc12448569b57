"""What a method is: it sees groups and per-sample losses, and answers with weights or sampling odds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

GroupCodes = Mapping[str, torch.Tensor]  # attribute -> (B,) int64 code of the group, -1 where it is unknown


class WeightingMethod(ABC):
    """Base of every method. ``groups`` names the groups of each attribute; codes index into them."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self.groups = {attribute: list(names) for attribute, names in groups.items()}

    @abstractmethod
    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """Weight of each sample, float32: (B,), or (1,) where all are alike; 1 is plain fine-tuning."""

    def odds(self, step: int) -> dict[str, float] | None:
        """Sampling odds of joint groups at this step, or None to leave sampling as set."""
        return None

    def observe(self, losses: torch.Tensor, timesteps: torch.Tensor, groups: GroupCodes) -> None:  # noqa: B027
        """Take in what was gathered over all ranks at one step: losses and timesteps (B,), groups."""

    def state_dict(self) -> dict[str, Any]:
        """State that resume needs; JSON values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what ``state_dict`` gave."""
