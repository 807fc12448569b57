"""What a method is: it sees groups and per-sample losses, and answers with weights or sampling odds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from evenhand.core.config import Settings
from evenhand.core.errors import did_you_mean
from evenhand.training.weighting.joint import GroupCodes, JointGroups


@dataclass(frozen=True)
class Arm:
    """A piece of training that was tried, and what it did to held-out images."""

    name: str
    odds: dict[str, float]
    losses: dict[str, np.ndarray]  # joint group -> (P,) losses; place i is the same image, timestep and noise in every arm
    images: dict[str, np.ndarray] = field(default_factory=dict)  # joint group -> (P,) which image; all differ where nothing is said


class Fork(Protocol):
    """Trains from where the run stands, and comes back there."""

    def __call__(self, odds: Mapping[str, float], steps: int, replica: int = 0) -> Arm:
        """``steps`` steps with these sampling odds; arms of one replica see the same noise and timesteps."""


@dataclass(frozen=True)
class ForkPlan:
    """What the forks of a method are measured by."""

    probe: int  # held-out images of each joint group
    averaged: int  # last steps of an arm over which its weights are averaged


class NoOptions(Settings):
    """For methods that have none."""


class WeightingMethod(ABC):
    """Base of every method.

    Args:
        groups: attribute -> its groups; codes index into them.
        counts: joint group (``"black x female"``) -> training images; absent ones may be left out.
        odds: sampling odds of joint groups that the run uses anyway, None for natural sampling.
        seed: every draw of the method's own is keyed on it.
        options: the fields of ``Options``.
    """

    Options: ClassVar[type[Settings]] = NoOptions
    needs_groups: ClassVar[bool] = True
    paced: ClassVar[bool] = False  # what it does depends on how many steps the run has
    fork_plan: ForkPlan | None = None  # set by methods that try settings

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        *,
        counts: Mapping[str, int] | None = None,
        odds: Mapping[str, float] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.groups = {attribute: list(names) for attribute, names in groups.items()}
        self.joint = JointGroups(self.groups)
        self.counts, self.sampled, self.seed = dict(counts or {}), odds, seed
        self.options = self.check_options(options)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> Settings:
        """Options of this method by name, with defaults.

        Raises:
            ValueError: one that the method does not have, or a value out of range.
        """
        for name in options:
            if name not in cls.Options.model_fields:
                raise ValueError(f"it has no option {name!r}; {did_you_mean(name, cls.Options.model_fields)}")
        return cls.Options(**options)

    @abstractmethod
    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """Weight of each sample, float32: (B,), or (1,) where all are alike; 1 is plain fine-tuning."""

    def odds(self, step: int) -> dict[str, float] | None:
        """Sampling odds of joint groups at this step, or None to leave sampling as set."""
        return None

    def observe(self, losses: torch.Tensor, timesteps: torch.Tensor, groups: GroupCodes) -> None:  # noqa: B027
        """Take in what was gathered over all ranks at one step: losses and timesteps (B,), groups."""

    def adapt(self, step: int, total: int, fork: Fork) -> Arm | None:
        """Try settings before ``step``; the arm that is returned goes on as the run. ``total``: steps that the run may compute."""
        return None

    def schedule(self, total: int) -> list[int]:
        """Steps before which ``adapt`` will try settings in a run of ``total`` steps; none for most methods."""
        return []

    def report(self) -> dict[str, Any]:
        """What the log should tell of the steps since it was last asked; JSON values."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that resume needs, equal on every rank; JSON values only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what ``state_dict`` gave."""
