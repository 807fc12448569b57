"""Fair Bayesian Perturbation (Luo et al. 2024, arXiv 2412.20374), as published and in a form whose objective can be measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from evenhand.core.config import Settings
from evenhand.core.errors import did_you_mean
from evenhand.core.randomness import derive_seed
from evenhand.training.weighting.fork_contrast import ForkContrast
from evenhand.training.weighting.gaussian_process import propose_ucb
from evenhand.training.weighting.joint import GroupCodes
from evenhand.training.weighting.method import WeightingMethod
from evenhand.training.weighting.perturbation import Perturbation, PerturbationOptions


class ReferenceOptions(PerturbationOptions):
    """Options of the published form."""

    window: int = Field(30, ge=2, description="steps from one proposal of the Gaussian process to the next")
    beta: float = Field(0.1, gt=0, description="of the upper confidence bound")


class ReferencePerturbation(Perturbation):
    """The published form: every step adds (sigma, y) to a window; every ``window`` steps a Gaussian process proposes the next sigma.

    As the published code has it: y is of the batch whose gradient sigma is about to weigh, the first window has one step more, and
    sigma wanders right after each proposal. y is mostly noise (docs/methods/fair-bayesian-perturbation.md).
    """

    Options = ReferenceOptions

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.tried: list[list[float]] = []
        self.gave: list[float] = []
        self._failed = 0

    def observe(self, losses: torch.Tensor, timesteps: torch.Tensor, groups: GroupCodes) -> None:
        """Record (sigma, y); at the window's end maximise the bound; then wander."""
        self.tried.append(self.sigma.tolist())
        self.gave.append(self.gap(losses, groups))
        options: Any = self.options
        if self.observed and self.observed % options.window == 0:
            seed = derive_seed(self.seed, "proposal", self.observed)
            proposed = propose_ucb(np.array(self.tried), np.array(self.gave), beta=options.beta, seed=seed)
            self._failed += proposed is None
            self.sigma = self.sigma if proposed is None else proposed
            self.tried, self.gave = [], []
        self.wander()

    def report(self) -> dict[str, Any]:
        """As above; and how often no process could be fitted, so that sigma stayed."""
        return {**super().report(), "failed_proposals": self._failed}

    def state_dict(self) -> dict[str, Any]:
        """sigma, its count of draws, and the window."""
        return {**super().state_dict(), "tried": self.tried, "gave": self.gave, "failed": self._failed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all back."""
        super().load_state_dict(state)
        self.tried, self.gave = [list(sigma) for sigma in state["tried"]], list(state["gave"])
        self._failed = state["failed"]


class BayesianPerturbation(ForkContrast):
    """The robust form, ``ForkContrast``; with ``form="reference"`` a ``ReferencePerturbation`` is made in its place."""

    def __new__(cls, *args: Any, form: str = "robust", **given: Any) -> Any:
        """An object of the form asked for."""
        return cls._form(form)(*args, **given)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> Settings:
        """The options of the form asked for."""
        rest = dict(options)
        return cls._form(rest.pop("form", "robust")).check_options(rest)

    @staticmethod
    def _form(form: str) -> type[WeightingMethod]:
        if form not in FORMS:
            raise ValueError(f"it has no form {form!r}; {did_you_mean(form, FORMS)}")
        return FORMS[form]


FORMS: dict[str, type[WeightingMethod]] = {"robust": ForkContrast, "reference": ReferencePerturbation}
