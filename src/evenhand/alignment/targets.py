"""How far a batch of predictions is from a target mix: a divergence, or an assignment of classes to images. Pure functions.

K is the number of joint groups: every combination of the attributes that are aligned, the last attribute running fastest. Where prompts are
of C classes with a target each, a class is one more part of the group, running slowest, and C K stands in the place of K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import logsumexp
from scipy.stats import binom

_RIDGE = 1e-7  # keeps the tilt finite where the target is out of reach
_TINY = np.finfo(np.float64).tiny
_LEAST = 1e-6  # share of a group that the target leaves out: its divergence stays finite


@dataclass(frozen=True)
class Assignment:
    """Which group each image should show, (B,) int64, and how sure that is, (B,) in [1/K, 1]."""

    groups: np.ndarray
    confidence: np.ndarray

    def part(self, places: np.ndarray) -> Assignment:
        """Of some images."""
        return Assignment(self.groups[places], self.confidence[places])

    def among(self, k: int) -> Assignment:
        """Groups among the ``k`` of an image's own class of prompts."""
        return Assignment(self.groups % k, self.confidence)


def joint_probabilities(by_attribute: Sequence[torch.Tensor]) -> torch.Tensor:
    """Probabilities (B, K) of joint groups, from those of each attribute (B, G_a), read independently of each other."""
    joint = by_attribute[0]
    for probabilities in by_attribute[1:]:
        joint = (joint[:, :, None] * probabilities[:, None, :]).flatten(1)
    return joint


def mix_divergence(
    probabilities: torch.Tensor, target: torch.Tensor, past: torch.Tensor | None = None, weight: float = 1.0
) -> torch.Tensor:
    """KL divergence of the batch's mean prediction from the target: T2MedI's alignment loss (Han et al. 2024, arXiv 2406.14847).

    Args:
        probabilities: (B, K), with gradient.
        target: (K,), sums to 1.
        past: (K,) mean of earlier batches; a mean over few images is mostly noise.
        weight: of this batch in the mean with ``past``.

    Returns:
        KL(mean || target), >= 0; 0 where the mean is the target.
    """
    mean = probabilities.mean(0)
    if past is not None:
        mean = weight * mean + (1 - weight) * past
    return torch.special.xlogy(mean, mean).sum() - (mean * target.clamp_min(_LEAST).log()).sum()


def tilted_weights(probabilities: np.ndarray, target: np.ndarray, cap: float = math.inf) -> np.ndarray:
    """Weights (n,) of images, least unlike each other in relative entropy, whose mean prediction is the target; they sum to 1.

    They are proportional to exp(lambda . p_i) (Csiszar 1975, I-projection onto a linear family), but none is above ``cap``; where
    predictions are certain, to target share / share shown. A target that no such weights reach, for want of images that show a group, is
    approached.

    Args:
        probabilities: (n, K).
        target: (K,), sums to 1.
        cap: largest weight in parts of the uniform one, 1 / n; at least 1.
    """
    most = min(cap / len(probabilities), 1.0)
    moved = probabilities - reachable(probabilities, target, cap)

    def dual(tilt: np.ndarray) -> tuple[float, np.ndarray]:
        scores = moved @ tilt
        logs = _log_weights(scores, most)
        weights = np.exp(logs)
        return float(weights @ (scores - logs) + _RIDGE * tilt @ tilt), weights @ moved + 2 * _RIDGE * tilt

    found = minimize(dual, np.zeros(len(target)), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-10, "ftol": 1e-14})
    return np.asarray(np.exp(_log_weights(moved @ found.x, most)))


def reachable(probabilities: np.ndarray, target: np.ndarray, cap: float) -> np.ndarray:
    """The target (K,), or the mix nearest to it in which no group needs weights above ``cap`` times the uniform one.

    What a rare group falls short of goes to the others in proportion to their shares of the target; to groups that it leaves out only
    where all that it names are at their limits.
    """
    n = len(probabilities)
    most = min(cap / n, 1.0)
    heaviest = (1 - np.arange(n) * most).clip(0, most)  # the weights that favour the first images most
    limits = heaviest @ -np.sort(-probabilities, axis=0)  # (K,) of each group alone
    if (target <= limits).all():
        return target
    shares, named = np.minimum(target, limits), target > 0
    for _ in range(len(target)):  # each round brings one group at least to its limit
        free = named & (shares < limits)
        if not free.any():
            break
        shares[free] = np.minimum(target[free] * (1 - shares[~free].sum()) / target[free].sum(), limits[free])
    if (rest := 1 - shares.sum()) > 0 and not named.all():
        present = probabilities.mean(0) * ~named
        shares = shares + rest * present / max(present.sum(), _TINY)
    return shares / shares.sum()


def _log_weights(scores: np.ndarray, most: float) -> np.ndarray:
    """Logarithms (n,) of weights in proportion to exp(scores), none above ``most``, which sum to 1."""
    logs = scores - logsumexp(scores)
    order = np.argsort(-logs, kind="stable")
    ranked = logs[order]
    tails = np.logaddexp.accumulate(ranked[::-1])[::-1]  # of what is left after the heaviest k
    left = 1 - most * np.arange(len(ranked))  # for these
    with np.errstate(divide="ignore", invalid="ignore"):
        fits = (left > 0) & (ranked + np.log(left) - tails <= math.log(most) + 1e-12)
    k = int(np.argmax(fits)) if fits.any() else len(ranked)
    found = np.full(len(ranked), math.log(most))
    if k < len(ranked):
        found[k:] = ranked[k:] + math.log(left[k]) - tails[k]
    logs[order] = found
    return logs


def total_variation(shown: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Half the sum of what shares (..., K) differ by, (...): the part of the images that would have to change group."""
    return np.asarray(np.abs(shown - target).sum(-1) / 2)


def assign(probabilities: np.ndarray, target: np.ndarray, *, draws: int = 200, seed: int = 0) -> Assignment:
    """Groups for the images so that a batch matches the target at the least change (Shen et al. 2024, arXiv 2311.07604, eq. 4-6).

    How many of B images should show each group is itself a draw from the target. For every draw the assignment of greatest total
    probability is the optimal transport between predictions and drawn groups; an image's group is the one that most draws give it.
    Two groups need no draws: images rank by probability, and counts are binomial.

    Args:
        probabilities: (B, K).
        target: (K,), any mix that sums to 1.
        draws: of the target, where K > 2.
    """
    n, k = probabilities.shape
    shares = _by_rank(probabilities, target[1]) if k == 2 else _by_draws(probabilities, target, draws, seed)
    assert shares.shape == (n, k)
    return Assignment(shares.argmax(1), shares.max(1))


def assign_within(probabilities: np.ndarray, target: np.ndarray, classes: int, *, seed: int = 0) -> Assignment:
    """The same within each of C classes that images are known to be of: (B, C K) and (C K,), zero but in an image's own class."""
    if classes == 1:
        return assign(probabilities, target, seed=seed)
    by_class, wanted = probabilities.reshape(len(probabilities), classes, -1), target.reshape(classes, -1)
    own, k = by_class.sum(2).argmax(1), wanted.shape[1]
    groups, confidence = np.zeros(len(own), dtype=int), np.zeros(len(own))
    for code in np.unique(own):
        found = assign(by_class[own == code, code], wanted[code] / wanted[code].sum(), seed=seed)
        groups[own == code], confidence[own == code] = code * k + found.groups, found.confidence
    return Assignment(groups, confidence)


def _by_rank(probabilities: np.ndarray, share: float) -> np.ndarray:
    """Chance (B, 2) of either group: the r-th image by probability shows the second one where at least r of B do.

    By the odds, which differ where a probability is rounded to 1.
    """
    first, second = np.log(probabilities.clip(_TINY)).T
    n = len(second)
    rank = np.empty(n, dtype=int)
    rank[np.argsort(first - second, kind="stable")] = np.arange(1, n + 1)
    chance = binom.sf(rank - 1, n, share)
    return np.stack([1 - chance, chance], axis=1)


def _by_draws(probabilities: np.ndarray, target: np.ndarray, draws: int, seed: int) -> np.ndarray:
    n, k = probabilities.shape
    if not np.isfinite(probabilities).all():
        return np.full((n, k), 1 / k)  # unsure of every image; the loss is not finite either, and who takes its step sees that
    shares = np.zeros((n, k))
    for counts in np.random.default_rng(seed).multinomial(n, target, size=draws):
        places = np.repeat(np.arange(k), counts)
        rows, columns = linear_sum_assignment(-probabilities[:, places])
        shares[rows, places[columns]] += 1 / draws
    return shares


def assignment_loss(logits: torch.Tensor, assignment: Assignment, least_confidence: float = 0.8) -> torch.Tensor:
    """Mean over the batch of the cross-entropy to the assigned groups; images whose assignment is unsure count nothing.

    Args:
        logits: (B, K) log-probabilities or logits, with gradient.
        assignment: of the same images.
        least_confidence: Shen et al. drop an image whose uncertainty is above 0.2.
    """
    wanted = torch.from_numpy(assignment.groups).to(logits.device)
    sure = torch.from_numpy(assignment.confidence >= least_confidence).to(logits)
    return (F.cross_entropy(logits, wanted, reduction="none") * sure).mean()
