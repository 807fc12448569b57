"""Group distributionally robust optimisation, online (Sagawa et al. 2020, arXiv 1911.08731, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evenhand.core.config import Settings
from evenhand.training.weighting.joint import GroupCodes, capped_share
from evenhand.training.weighting.method import WeightingMethod

BINS = 16  # of the timesteps; the loss of a bin is what a group's loss is measured against
LENGTH = 1000  # of the schedule, where timesteps run from 0
MEMORY = 0.99  # of a bin's mean loss, from step to step


class GroupDroOptions(Settings):
    """Options of ``group_dro``."""

    eta: float = Field(0.01, gt=0, le=1, description="step size of the exponentiated gradient")


class GroupDro(WeightingMethod):
    """Minimises the worst group's loss: q_g <- q_g exp(eta L_g), normalised; a sample weighs q_g over its group's share of draws.

    L_g is the group's mean of loss over the running mean loss at that timestep: raw losses differ by timestep far more than by
    group, and groups see different timesteps. 1 is taken off, which normalisation takes back, so that a group absent from a batch is
    treated as one of average loss.
    """

    Options = GroupDroOptions

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        counts = self.joint.array(self.counts, 0.0 if self.counts else 1.0)
        if self.sampled is not None:
            counts = counts * self.joint.array(self.sampled)
        share = np.where(counts > 0, capped_share(counts), 0.0)
        self._share = share / share.sum()
        self.q = self._share.copy()  # as plain training; the algorithm starts at 1 / G, which reweights before it has seen a loss
        self._bins = np.full(BINS, np.nan)

    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """q of the group over its share, (B,); unknown: 1."""
        table = np.divide(self.q, self._share, out=np.ones_like(self.q), where=self._share > 0)
        return torch.tensor([*table, 1.0], dtype=torch.float32)[self.joint.codes(groups)]

    def observe(self, losses: torch.Tensor, timesteps: torch.Tensor, groups: GroupCodes) -> None:
        """Raise q of the groups whose losses are high for their timesteps."""
        raw, codes = losses.double().cpu().numpy(), self.joint.codes(groups).numpy()
        bins = np.minimum(timesteps.cpu().numpy() * BINS // LENGTH, BINS - 1)
        self._learn(raw, bins)
        relative = raw / self._bins[bins]
        for code in np.unique(codes[codes >= 0]):
            self.q[code] *= np.exp(self.options.eta * (relative[codes == code].mean() - 1))  # type: ignore[attr-defined]
        self.q /= self.q.sum()

    def _learn(self, losses: np.ndarray, bins: np.ndarray) -> None:
        for place in np.unique(bins):
            mean, before = losses[bins == place].mean(), self._bins[place]
            self._bins[place] = mean if np.isnan(before) else MEMORY * before + (1 - MEMORY) * mean

    def report(self) -> dict[str, Any]:
        """q by joint group."""
        return {"q": dict(zip(self.joint.names, self.q.tolist(), strict=True))}

    def state_dict(self) -> dict[str, Any]:
        """q, and the mean loss by timestep."""
        return {"q": self.q.tolist(), "bins": [None if np.isnan(value) else value for value in self._bins.tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both back."""
        self.q = np.array(state["q"])
        self._bins = np.array([np.nan if value is None else value for value in state["bins"]])
