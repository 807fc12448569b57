"""Gaussian perturbation of sample weights by group, the part that both of FairDiffusion's methods share (arXiv 2412.20374)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evenhand.core.config import Settings
from evenhand.core.randomness import generator
from evenhand.training.weighting.joint import GroupCodes
from evenhand.training.weighting.method import WeightingMethod


class PerturbationOptions(Settings):
    """Options of ``random_perturbation``."""

    exploitation: float = Field(0.95, ge=0, le=1, description="rho: what is kept of sigma from step to step")


class Perturbation(WeightingMethod):
    """w_i = 1 + sum_a sigma[a, g_a(i)] z_ia, z standard normal; sigma starts at 1 and wanders: sigma <- rho sigma + (1 - rho) U(0, 1).

    Weights may be negative, as in the published code. An unknown group adds nothing.
    """

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.names = [f"{attribute}: {name}" for attribute, names in self.groups.items() for name in names]
        self.sigma = np.ones(len(self.names))
        self.observed = 0
        self._drawn = self._negative = self._absent = self._since = 0

    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """Perturbed weights, (B,)."""
        sigma, place = torch.tensor(self.sigma, dtype=torch.float32), 0
        total = torch.ones(len(next(iter(groups.values()))))
        for attribute, names in self.groups.items():
            codes = groups[attribute].cpu()
            noise = torch.randn(len(codes), generator=generator)
            total = total + torch.where(codes >= 0, sigma[place + codes.clamp_min(0)] * noise, 0.0)
            place += len(names)
        self._drawn, self._negative = self._drawn + len(total), self._negative + int((total < 0).sum())
        return total

    def wander(self) -> None:
        """One step of sigma's random walk."""
        rho = self.options.exploitation  # type: ignore[attr-defined]
        draw = generator(self.seed, "sigma", self.observed).random(len(self.sigma))
        self.sigma = rho * self.sigma + (1 - rho) * draw
        self.observed += 1

    def gap(self, losses: torch.Tensor, groups: GroupCodes) -> float:
        """y = -sum_a (max_g - min_g of the mean loss); an attribute with an absent group adds 0, as in the published code."""
        raw, total, absent = losses.double().cpu().numpy(), 0.0, False
        for attribute, names in self.groups.items():
            codes = groups[attribute].cpu().numpy()
            means = [raw[codes == code].mean() if (codes == code).any() else np.nan for code in range(len(names))]
            if np.isnan(means).any():
                absent = True
            else:
                total -= max(means) - min(means)
        self._absent, self._since = self._absent + absent, self._since + 1
        return total

    def report(self) -> dict[str, Any]:
        """sigma by group; how many weights were negative on this rank, and how many batches lacked a group."""
        found = {
            "sigma": dict(zip(self.names, self.sigma.tolist(), strict=True)),
            "negative_weights": self._negative / self._drawn if self._drawn else None,
            "batches_without_a_group": self._absent / self._since if self._since else None,
        }
        self._drawn = self._negative = self._absent = self._since = 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """sigma, and how many draws it has had."""
        return {"sigma": self.sigma.tolist(), "observed": self.observed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both back."""
        self.sigma, self.observed = np.array(state["sigma"]), state["observed"]


class RandomPerturbation(Perturbation):
    """Sigma wanders and nothing steers it: FairDiffusion's ablation.

    The published script leaves sigma out of the weights altogether (1 + N(0, sqrt(attributes))); here it stands where the paper has it.
    """

    Options = PerturbationOptions

    def observe(self, losses: torch.Tensor, timesteps: torch.Tensor, groups: GroupCodes) -> None:
        """Only the gap's bookkeeping, and a step of the walk."""
        self.gap(losses, groups)
        self.wander()
