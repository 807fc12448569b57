"""Which samples a step sees: a pure function of (seed, step), so resume and any number of processes draw the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evenhand.core.errors import UserError
from evenhand.core.groups import NOT_GROUPS
from evenhand.core.progress import warn
from evenhand.core.randomness import generator


@dataclass
class Batches:
    """Global batches of sample indices.

    Without odds every sample comes once an epoch, in a new order each epoch. With ``odds`` (one sampling odd a joint group)
    samples are drawn with replacement, in proportion to the odds of their group.
    """

    n: int
    batch_size: int
    seed: int
    groups: np.ndarray | None = None  # joint group of every sample, for odds
    _epoch: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)
    _codes: tuple[np.ndarray, np.ndarray] | None = field(default=None, init=False, repr=False)  # names of the groups, code of each sample

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError("no images to train on; the cohort's training split is empty")

    def at(self, step: int, odds: Mapping[str, float] | None = None) -> np.ndarray:
        """Sample indices (batch_size,) of one optimizer step."""
        if odds is not None:
            return self._drawn(step, odds)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return np.array([self._order(place // self.n)[place % self.n] for place in places])

    def _order(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, generator(self.seed, "epoch", epoch).permutation(self.n))
        return self._epoch[1]

    def _drawn(self, step: int, odds: Mapping[str, float]) -> np.ndarray:
        if self.groups is None:
            raise ValueError("odds need the groups of the samples")
        if self._codes is None:
            self._codes = np.unique(self.groups.astype(str), return_inverse=True)
        names, codes = self._codes
        weights = np.array([odds.get(str(name), 0.0) for name in names])[codes]
        if not weights.sum() > 0:
            raise ValueError(f"no sample has positive odds: {dict(odds)}")
        return generator(self.seed, "batch", step).choice(self.n, size=self.batch_size, p=weights / weights.sum())


CAP = 20.0  # a group of one must not fill batches, nor steer the gradient alone


def group_odds(counts: np.ndarray, tau: np.ndarray | float) -> np.ndarray:
    """Sampling odds (1/pi_g)^tau_g of groups with these counts, (G,); those of the largest are 1, none are above ``CAP``."""
    return np.minimum((counts.max() / counts) ** tau, CAP)


def tempered_odds(groups: np.ndarray, tau: float) -> dict[str, float]:
    """``group_odds`` by the name of every joint group: tau = 0 is natural sampling, tau = 1 gives every group the same share.

    Samples of unknown group keep the odds of the largest group: there is no group to make up for.
    """
    names, counts = np.unique(groups.astype(str), return_counts=True)
    real = ~np.isin(names, NOT_GROUPS)
    odds = np.ones(len(names))
    if real.any():
        odds[real] = group_odds(counts[real], tau)
    return dict(zip(names.tolist(), odds.tolist(), strict=True))


MANY_EPOCHS = 100.0  # of one image; a model that learnt 44 images 220 times drew .07 near-duplicates, one that did so thrice as often .38


def warn_of_epochs(draws: int, weights: np.ndarray, remedy: str) -> None:
    """Say so where some images, by their sampling weights (n,), are learnt again and again in so many ``draws``."""
    most = draws * float(weights.max() / weights.sum())
    if most > MANY_EPOCHS:
        warn(
            f"some images are learnt {most:.0f} times (epochs), and the model may come to draw near-duplicates of them: "
            f"look at the copies that an audit finds; {remedy}"
        )


def rank_batches(n: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """Fixed batches of range(n), whole batches dealt to ranks in turn.

    What is computed together does not depend on the number of processes, so results are the same to the bit.
    """
    starts = range(rank * batch_size, n, world * batch_size)
    return [np.arange(start, min(start + batch_size, n)) for start in starts]
