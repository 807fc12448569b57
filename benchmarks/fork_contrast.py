"""Does the robust form move sigma where it should, and only there? Simulated fork contrasts whose law is known.

    python benchmarks/fork_contrast.py

A real effect is five standard deviations of a contrast from balanced to natural sampling, all of it in the rare group's log-loss.
Noise of the groups is independent, or shares half or nine tenths of its variance (what one draw of batches does to all groups
alike), or is twice as large in the rare group.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from common import write_result

from evenhand.training.weighting import METHODS
from evenhand.training.weighting.fork_contrast import ForkContrast
from evenhand.training.weighting.method import Arm

COUNTS = {"common": 770, "rare": 80, "some": 150}
LEVEL = {"common": 0.1, "rare": 0.2, "some": 0.12}  # the rare group is the harder one
SD = 0.01  # of what training noise makes of a group's log-loss difference of two arms
EFFECT = 5  # in standard deviations of the groups' mean difference
STEPS = 1500


class SimulatedFork:
    """Arms of a run in which ``effect(odds)`` standard deviations of a contrast are added to the groups' mean log-loss.

    ``shared`` is the noise's part common to groups, ``rare_sd`` the rare group's noise in those of the others.
    """

    def __init__(self, seed: int, effect: Callable[[Mapping[str, float]], float], shared: float = 0.0, rare_sd: float = 1.0) -> None:
        self._rng, self._effect, self._shared, self._rare = np.random.default_rng(seed), effect, shared, rare_sd
        self.sd = SD * float(np.sqrt(shared * (2 + rare_sd) ** 2 + (1 - shared) * (2 + rare_sd**2))) / len(LEVEL)
        self.arms = 0

    def __call__(self, odds: Mapping[str, float], steps: int, replica: int = 0) -> Arm:
        """Losses of one arm: the same probe noise in every arm, training noise of its own."""
        self.arms += 1
        common = self._rng.normal() * np.sqrt(self._shared)
        noise = {name: SD / np.sqrt(2) * (common + self._rng.normal() * np.sqrt(1 - self._shared)) for name in LEVEL}
        noise["rare"] = self._rare * noise["rare"] + len(LEVEL) * self.sd * self._effect(odds)
        places = np.linspace(0.5, 1.5, 64)
        return Arm(f"arm-{self.arms}", dict(odds), {name: level * np.exp(noise[name]) * places for name, level in LEVEL.items()})


def nothing(odds: Mapping[str, float]) -> float:
    """No setting is better."""
    return 0.0


def towards_natural(odds: Mapping[str, float]) -> float:
    """Natural sampling is better for the rare group, by the logarithm of its odds."""
    return EFFECT * (np.log(odds["rare"]) / np.log(COUNTS["common"] / COUNTS["rare"]) - 1)


def towards_balanced(odds: Mapping[str, float]) -> float:
    """Natural sampling is worse."""
    return -towards_natural(odds)


def simulated_run(fork: SimulatedFork, seed: int) -> ForkContrast:
    """The method after all its looks."""
    method = METHODS["bayesian_perturbation"]({"race": list(COUNTS)}, counts=COUNTS, seed=seed)
    assert isinstance(method, ForkContrast)
    for step in method.schedule(STEPS):
        assert method.adapt(step, STEPS, fork) is not None
    return method


WORLDS: dict[str, Callable[[Mapping[str, float]], float]] = {
    "no effect": nothing,
    "natural sampling is better": towards_natural,
    "natural sampling is worse": towards_balanced,
}


NOISE: dict[str, dict[str, float]] = {
    "independent noise": {},
    "half of the noise shared": {"shared": 0.5},
    "nine tenths of the noise shared": {"shared": 0.9},
    "twice the noise in the rare group": {"rare_sd": 2.0},
}


def _one(world: str, noise: str, seed: int) -> dict[str, Any]:
    method = simulated_run(SimulatedFork(seed, WORLDS[world], **NOISE[noise]), seed)
    return {"moved": any(look.moved for look in method.looks), "sigma": float(method.sigma[method.present.index("rare")])}


def _rates(world: str, noise: str, runs: int) -> dict[str, Any]:
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_one, *zip(*((world, noise, seed) for seed in range(runs)), strict=True)))
    sigma = np.array([one["sigma"] for one in found])
    return {
        "runs": runs, "moved": float(np.mean([one["moved"] for one in found])), "rare_group_below_balanced": float((sigma < 1).mean()),
        "mean_sigma_of_the_rare_group": float(sigma.mean()),
    }  # fmt: skip


def main() -> None:
    """Run every world and write how often sigma moved, and where to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null-runs", type=int, default=400)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    start = time.monotonic()
    found = {
        f"{world}, {noise}": _rates(world, noise, options.null_runs if world == "no effect" else options.runs)
        for world, noise in itertools.product(WORLDS, NOISE)
    }
    payload = {"effect_in_sd": EFFECT, "steps": STEPS, "found": found, "seconds": round(time.monotonic() - start, 1)}
    print(write_result("fork_contrast", payload, seeds=list(range(options.null_runs))).read_text())


if __name__ == "__main__":
    main()
