"""Bayesian optimisation of sampling odds by fork contrasts: the robust form of Fair Bayesian Perturbation.

sigma in [0, 1]^G are exponents of sampling odds, one a joint group: odds (n_max / n_g)^sigma_g. 1 is balanced sampling, where a run
starts, 0 natural sampling. From one checkpoint two arms train under two settings on the same noise; what they did to the groups'
losses on a fixed held-out probe is one contrast. A Gaussian process over contrasts proposes what to try next. Their noise is
measured: the first forks hold sigma against itself with other draws.

The objective is the mean of the groups' log-losses: every group counts alike, and by ratios, since a group's loss in itself tells how
much there is to predict in its images before it tells how well the group is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy.stats import t as student

from evenhand.core.config import Settings
from evenhand.core.randomness import derive_seed
from evenhand.engine.batching import group_odds
from evenhand.training.weighting.gaussian_process import propose_by_contrasts
from evenhand.training.weighting.joint import GroupCodes
from evenhand.training.weighting.method import Arm, Fork, ForkPlan, WeightingMethod

FAR = 1e6  # error of a contrast that tells nothing; JSON knows no infinity


class ForkContrastOptions(Settings):
    """Options of ``form="robust"``."""

    looks: int = Field(6, ge=2, description="forks at most, those that measure the noise included")
    nulls: int = Field(3, ge=1, description="forks that hold a setting against itself")
    arm_steps: int = Field(90, ge=1, description="steps of an arm; shorter ones do not tell settings apart")
    overhead: float = Field(0.4, gt=0, le=0.5, description="share of all computed steps that losing arms may take")
    probe: int = Field(64, ge=8, description="held-out images of each joint group")
    averaged: int = Field(10, ge=1, description="last steps of an arm over which its weights are averaged")
    damping: float = Field(0.5, gt=0, le=1, description="part of the way that sigma moves to a setting that won")
    alpha: float = Field(0.05, gt=0, lt=1, description="chance that sigma ever moves where no setting is better")


@dataclass(frozen=True)
class Look:
    """One fork: what was tried against what. ``gain`` and its ``error`` are in mean log-loss of the groups, larger is better."""

    step: int
    tried: list[float]
    against: list[float]
    gain: float | None  # None where an arm had losses that are not finite
    error: float | None  # None of a fork that measured the noise
    bound: float | None  # in errors
    moved: bool
    by_group: dict[str, float] | None  # the gain in each group's log-loss


class ForkContrast(WeightingMethod):
    """Sampling odds by group that are moved away from balanced ones only on evidence."""

    Options = ForkContrastOptions
    paced = True

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        options: Any = self.options
        self.fork_plan = ForkPlan(options.probe, options.averaged)
        self.present = [name for name in self.joint.names if self.counts.get(name, 0) > 0]
        if not self.present:
            raise ValueError("form=robust needs counts: joint group -> training images")
        if self.sampled is not None:
            raise ValueError("form=robust chooses sampling odds itself; leave --sampling out")
        self.sigma = np.ones(len(self.present))
        self.looks: list[Look] = []
        self._told = 0

    def weights(self, groups: GroupCodes, step: int, generator: torch.Generator) -> torch.Tensor:
        """One for all, (1,): this form samples, it does not weigh."""
        return torch.ones(1)

    def odds(self, step: int) -> dict[str, float]:
        """Odds of joint groups at sigma; samples of unknown group keep those of the largest group."""
        return self.odds_at(self.sigma)

    def odds_at(self, sigma: np.ndarray) -> dict[str, float]:
        """(n_max / n_g)^sigma_g, at most ``CAP``."""
        counts = np.array([self.counts[name] for name in self.present], dtype=float)
        odds = group_odds(counts, sigma)
        unknown = {name: 1.0 for name in self.counts if name not in self.present}
        return {**unknown, **dict(zip(self.present, odds.tolist(), strict=True))}

    def adapt(self, step: int, total: int, fork: Fork) -> Arm | None:
        """Where a look is due: two arms, a contrast, perhaps a move. The better-founded arm goes on as the run."""
        if step not in self.schedule(total)[len(self.looks) :]:
            return None
        if len(self.looks) < self.options.nulls:  # type: ignore[attr-defined]
            return self._measure_noise(step, fork)
        steps: int = self.options.arm_steps  # type: ignore[attr-defined]
        here = fork(self.odds(step), steps)
        # of a group that the probe lacks nobody could say whether it is served: its odds stay
        tried = np.where([name in here.losses for name in self.present], self._proposal(), self.sigma)
        there = fork(self.odds_at(tried), steps)
        gains = _gains(there, here)
        if gains is None:
            self.looks.append(Look(step, tried.tolist(), self.sigma.tolist(), None, None, None, False, None))
            return here
        gain, (error, freedom) = _mean(gains), self._noise(there, here)
        deciding = len(self.schedule(total)) - self.options.nulls  # type: ignore[attr-defined]
        bound = float(student.isf(self.options.alpha / deciding, freedom))  # type: ignore[attr-defined]
        moved = gain > bound * error
        self.looks.append(Look(step, tried.tolist(), self.sigma.tolist(), gain, error, bound, moved, gains))
        if moved:
            self.sigma = self.sigma + self.options.damping * (tried - self.sigma)  # type: ignore[attr-defined]
        return there if moved else here

    def _measure_noise(self, step: int, fork: Fork) -> Arm:
        """Hold the present setting against itself with other draws."""
        steps: int = self.options.arm_steps  # type: ignore[attr-defined]
        here, again = (fork(self.odds(step), steps, replica) for replica in (0, len(self.looks) + 1))
        gains = _gains(again, here)
        gain = None if gains is None else _mean(gains)
        self.looks.append(Look(step, self.sigma.tolist(), self.sigma.tolist(), gain, None, None, False, gains))
        return here

    def schedule(self, total: int) -> list[int]:
        """Steps of the run at which looks are due, evenly over it; none where it is too short for one that decides."""
        options: Any = self.options
        looks = min(options.looks, int(options.overhead * total / options.arm_steps))
        if looks <= options.nulls:
            return []
        free = total - 2 * looks * options.arm_steps
        return [round((look + 1) * free / (looks + 1)) + look * options.arm_steps for look in range(looks)]

    def _proposal(self) -> np.ndarray:
        """Natural sampling first, the largest contrast there is; then what the process makes of all contrasts."""
        judged = [look for look in self.looks if look.error is not None and look.gain is not None]
        if not judged:
            return np.zeros_like(self.sigma)
        tried, against = (np.array([getattr(look, name) for look in judged]) for name in ("tried", "against"))
        gains = np.array([(look.gain or 0.0) / max(look.error or 0.0, 1e-12) for look in judged])
        seed = derive_seed(self.seed, "proposal", len(self.looks))
        proposed = propose_by_contrasts(tried, against, gains, self.sigma, seed=seed)
        return self.sigma / 2 if proposed is None else proposed

    def _noise(self, there: Arm, here: Arm) -> tuple[float, float]:
        """Standard error of a contrast, and its degrees of freedom.

        Training noise comes from the forks that held a setting against itself, the probe's own noise from paired losses.
        """
        null = [look.gain for look in self.looks if look.gain is not None and look.error is None]
        if not null:
            return FAR, 1.0
        return float(np.sqrt(np.mean(np.square(null)) + _probe_variance(there, here))), float(len(null))

    def report(self) -> dict[str, Any]:
        """sigma by group, and the looks since the last report."""
        new, self._told = self.looks[self._told :], len(self.looks)
        return {"sigma": dict(zip(self.present, self.sigma.tolist(), strict=True)), "looks": [asdict(look) for look in new]}

    def state_dict(self) -> dict[str, Any]:
        """sigma, and all looks."""
        return {"sigma": self.sigma.tolist(), "looks": [asdict(look) for look in self.looks], "told": self._told}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all back."""
        self.sigma, self.looks, self._told = np.array(state["sigma"]), [Look(**look) for look in state["looks"]], state["told"]


def _gains(there: Arm, here: Arm) -> dict[str, float] | None:
    """How much lower each group's log-loss is; None where it cannot be told."""
    if not all(np.isfinite(losses).all() for arm in (there, here) for losses in arm.losses.values()):
        return None
    return {name: float(np.log(here.losses[name].mean()) - np.log(there.losses[name].mean())) for name in sorted(here.losses)}


def _mean(gains: Mapping[str, float]) -> float:
    return float(np.mean(list(gains.values())))


def _probe_variance(there: Arm, here: Arm) -> float:
    """Of the mean difference in log-loss, by paired losses (first order)."""
    return (
        sum(_paired_variance(here.losses[name], there.losses[name], here.images.get(name)) for name in here.losses) / len(here.losses) ** 2
    )


def _paired_variance(before: np.ndarray, after: np.ndarray, images: np.ndarray | None) -> float:
    """Of one group's difference; one image's losses count once."""
    apart = after / after.mean() - before / before.mean()
    sums = np.bincount(
        np.unique(np.arange(len(before)) if images is None else images, return_inverse=True)[1], weights=apart - apart.mean()
    )
    n = len(sums)
    return float((sums**2).sum() / len(before) ** 2 * n / max(n - 1, 1)) if n > 1 else FAR**2
