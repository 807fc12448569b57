"""Test whether a difference between two AUCs is the same in every group, with the right level in groups of a few dozen images.

Two differences are tested: between generated and real images that one judge scores, and between two classifiers that score the same
images. In large groups an AUC is normal; in small ones neither its law nor its variance estimate is, and a chi-square test over groups of
1000, 60 and 60 images rejects a true null in 15 % of samples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from evenhand.audit.frame import SubgroupFrame
from evenhand.audit.intervals import drawing_order
from evenhand.audit.semantics import aligned_scores, group_auc, one_class_reason
from evenhand.audit.utility import both_aligned
from evenhand.core.randomness import generator

LARGE = 250  # of each class on each side: beyond, the law of an AUC is taken as normal
SCREENING, DRAWS = 1000, 20_000  # permutations; the many only where the p-value is below ``_DOUBTFUL``
_DOUBTFUL = 0.2
_PRIOR = 3.0  # images that Hanley and McNeil's variance counts for beside DeLong's
_AT_MOST = 1000  # images of a class and side that are permuted
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class AucGapTest:
    """Differences of AUC by group, and a test that they are equal; NaN, with the reason, where there is none.

    Attributes:
        frame: the difference of each group with its 95 % interval; higher is better. ``frame.gap`` is the largest less the smallest.
        p_value: of equal differences in all groups that have one.
    """

    frame: SubgroupFrame
    p_value: float

    @property
    def worst(self) -> Hashable | None:
        """The group with the lowest difference."""
        return self.frame.worst


@dataclass(frozen=True)
class _Draws:
    """A group's difference and its variance: as found (first) and under the null (the others), each (1 + B,)."""

    differences: np.ndarray
    variances: np.ndarray


def fidelity_gap(
    scores: Any,
    labels: Any,
    groups: Any,
    real_scores: Any,
    real_labels: Any,
    real_groups: Any,
    *,
    subjects: Any = None,
    real_subjects: Any = None,
    ids: Any = None,
    real_ids: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
    min_n: int = 2,
) -> AucGapTest:
    """Test that a judge's AUC on generated images falls short of its AUC on real images by the same amount in every group.

    A judge may read one group better than another on real images already: that is no fault of the generator, so AUCs of generated
    images alone are not compared. The statistic is Cochran's Q of the differences, each over its own variance (DeLong et al. 1988;
    over subjects, Obuchowski 1997). Its null distribution in small groups is that of permutations: within a group and class, which
    image is generated is drawn anew (Venkatraman 2000; studentised, so that the level also holds asymptotically where all differences
    are equal but not 0, Pauly et al. 2016). Groups with 250 images of each class on each side use the normal distribution.

    Args:
        scores, labels, groups: of generated images, each (n,), as in ``group_auc``.
        real_scores, real_labels, real_groups: of real images, each (m,), by the same judge.
        subjects, real_subjects: one id per image; None = every image its own subject.
        ids, real_ids: what identifies each image; draws are keyed on it. None = its row.
        n_boot: bootstrap samples behind the interval of each AUC; those of the differences join both (MOVER; Zou and Donner 2008).

    Raises:
        FeatureError: scores that are NaN or not one per image, or more than two label values.

    >>> labels, groups = [0, 1] * 40, ["a"] * 40 + ["b"] * 40
    >>> scores = [(7 * i) % 11 + 3 * label for i, label in enumerate(labels)]
    >>> found = fidelity_gap(scores, labels, groups, scores, labels, groups, n_boot=50)
    >>> found.frame.gap, found.p_value
    (0.0, 1.0)
    """
    how: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "min_n": min_n}
    made = group_auc(scores, labels, groups, subjects=subjects, ids=ids, **how)
    real = group_auc(real_scores, real_labels, real_groups, subjects=real_subjects, ids=real_ids, **how)
    frame = _differences(made, real)
    sides = [
        _Side.of(*aligned_scores(*given))
        for given in ((scores, labels, groups, subjects, ids), (real_scores, real_labels, real_groups, real_subjects, real_ids))
    ]
    key = (seed, "fidelity_gap")
    draws = lambda number: [_of_two_sides(sides[0].group(name), sides[1].group(name), number, key) for name in frame.defined.index]  # noqa: E731
    return AucGapTest(frame, _p_value(draws, len(frame.defined)))


def utility_gap_p(
    labels: Any,
    real_trained_scores: Any,
    synthetic_trained_scores: Any,
    groups: Any,
    *,
    subjects: Any = None,
    ids: Any = None,
    seed: int = 0,
    min_n: int = 2,
) -> float:
    """p-value of one and the same difference of AUC in every group, between two classifiers of the same images.

    As ``fidelity_gap``, but paired: a permutation swaps both classifiers' ranks of a subject's images (Venkatraman and Begg 1996).
    Arguments as in ``utility_difference``. NaN where fewer than two groups have an AUC.
    """
    first, second, positive, codes, names, units, ranks = both_aligned(
        labels, real_trained_scores, synthetic_trained_scores, groups, subjects, ids
    )
    parts = []
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        if one_class_reason(positive[rows], units[rows], min_n):
            continue
        order, own = drawing_order(ranks[rows], units[rows])
        rows = rows[order]
        parts.append((str(name), positive[rows], rankdata(first[rows]), rankdata(second[rows]), own))
    return _p_value(lambda number: [_of_pairs(*part, number, (seed, "utility_gap")) for part in parts], len(parts))


def _differences(made: SubgroupFrame, real: SubgroupFrame) -> SubgroupFrame:
    """AUC of generated less AUC of real images by group."""
    names = list(made.by_group.index.union(real.by_group.index, sort=False))
    sides = [frame.by_group.reindex(names) for frame in (made, real)]
    rows = {}
    for name in names:
        own, other = sides[0].loc[name], sides[1].loc[name]
        value = float(own["value"] - other["value"])
        low = value - math.hypot(own["value"] - own["low"], other["high"] - other["value"])
        high = value + math.hypot(own["high"] - own["value"], other["value"] - other["low"])
        reason = _reason(own, "generated") or _reason(other, "real")
        rows[name] = (_n(own), value, max(low, -1.0), min(high, 1.0), reason)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "value", "low", "high", "reason"])
    table = table.astype({"n": int, "value": float, "low": float, "high": float}).rename_axis("group")
    return SubgroupFrame(made.overall, table, True)


def _reason(row: pd.Series, side: str) -> str:
    if not isinstance(row["reason"], str):
        return f"no {side} images"
    return f"{side} images: {row['reason']}" if row["reason"] else ""


def _n(row: pd.Series) -> int:
    return 0 if pd.isna(row["n"]) else int(row["n"])


@dataclass(frozen=True)
class _Side:
    """Labelled images of one side: scores, whether positive, group codes (n,) and names, subject codes, ranks by id."""

    score: np.ndarray
    positive: np.ndarray
    codes: np.ndarray
    names: list[Any]
    units: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, *parts: Any) -> _Side:
        return cls(*parts)

    def group(self, name: Any) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Name, scores, whether positive, and subject codes of one group's images, in drawing order."""
        rows = np.flatnonzero(self.codes == self.names.index(name))
        order, units = drawing_order(self.ranks[rows], self.units[rows])
        return str(name), self.score[rows[order]], self.positive[rows[order]], units


def _p_value(draws: Any, groups: int) -> float:
    """Probability under the null of a Q as large as the one found; more draws where it may matter."""
    if groups < 2:
        return math.nan
    found = math.nan
    for number in (SCREENING, DRAWS):
        parts = draws(number)
        differences, variances = (np.stack([getattr(part, name) for part in parts]) for name in ("differences", "variances"))
        weights = 1 / variances
        mean = (weights * differences).sum(axis=0) / weights.sum(axis=0)
        statistic = (weights * (differences - mean) ** 2).sum(axis=0)
        found = float((statistic >= statistic[0] * (1 - 1e-9)).mean())  # the one found is among them
        if found > _DOUBTFUL:
            break
    return found


def _of_two_sides(
    made: tuple[str, np.ndarray, np.ndarray, np.ndarray], real: tuple[str, np.ndarray, np.ndarray, np.ndarray], number: int, key: tuple
) -> _Draws:
    """Of one group: AUC of generated less AUC of real images, and the same with images exchanged between the sides."""
    name, *own = made
    _, *other = real
    sides = [_placed(*own), _placed(*other)]
    value = sides[0].auc - sides[1].auc
    variance = sides[0].variance + sides[1].variance
    rng = generator(*key, name)
    if min(side.fewest for side in sides) >= LARGE:
        return _normal(value, variance, number, rng)
    single = [_few_and_independent(*side) for side in (own, other)]
    score, positive = (np.concatenate(parts) for parts in zip(*single, strict=True))
    sizes = [int(single[0][1].sum()), int((~single[0][1]).sum())]
    by_score = np.argsort(score, kind="stable")
    steps = np.unique(score[by_score], return_inverse=True)[1]
    block = max(1, _CELLS_AT_ONCE // len(score))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, number, block):
        chosen = np.zeros((min(block, number - start), len(score)), dtype=bool)
        for rows, size in zip((np.flatnonzero(positive), np.flatnonzero(~positive)), sizes, strict=True):
            taken = rng.random((len(chosen), len(rows))).argpartition(size - 1, axis=1)[:, :size]
            np.put_along_axis(chosen, rows[taken], True, axis=1)
        chosen = chosen[:, by_score]
        parts = [_aucs(side, positive[by_score], steps) for side in (chosen, ~chosen)]
        found.append((parts[0][0] - parts[1][0], parts[0][1] + parts[1][1]))
    differences, variances = (np.concatenate(column) for column in zip(*found, strict=True))
    return _Draws(np.r_[value, differences], np.r_[variance, variances])


def _of_pairs(
    name: str, positive: np.ndarray, first: np.ndarray, second: np.ndarray, units: np.ndarray, number: int, key: tuple
) -> _Draws:
    """Of one group: AUC by the second less AUC by the first classifier, and the same with ranks swapped by subject."""
    value, variance = (float(part[0]) for part in _paired(first[None], second[None], positive, units))
    rng = generator(*key, name)
    if min(int(positive.sum()), int((~positive).sum())) >= LARGE:
        return _normal(value, variance, number, rng)
    block = max(1, _CELLS_AT_ONCE // len(positive))
    found = []
    for start in range(0, number, block):
        swapped = (rng.random((min(block, number - start), int(units.max()) + 1)) < 0.5)[:, units]
        found.append(_paired(np.where(swapped, second, first), np.where(swapped, first, second), positive, units))
    differences, variances = (np.concatenate(column) for column in zip(*found, strict=True))
    return _Draws(np.r_[value, differences], np.r_[variance, variances])


def _normal(value: float, variance: float, number: int, rng: np.random.Generator) -> _Draws:
    return _Draws(np.r_[value, rng.normal(size=number) * math.sqrt(variance)], np.full(number + 1, variance))


@dataclass(frozen=True)
class _Placed:
    """An AUC, its variance over subjects, and the number of images of the rarer class."""

    auc: float
    variance: float
    fewest: int


def _placed(score: np.ndarray, positive: np.ndarray, units: np.ndarray) -> _Placed:
    placements = _row_placements(score[None], positive)[0]
    counts = [int(part.sum()) for part in (positive, ~positive)]
    auc = float(placements[positive].mean())
    squares = [((placements[part] - auc) ** 2).sum(keepdims=True) for part in (positive, ~positive)]
    variance = float(_variance(np.array([auc]), squares, [np.array([count]) for count in counts])[0])
    influence = (placements - auc) / np.where(positive, *counts)
    alone, together = float((influence**2).sum()), float((np.bincount(units, weights=influence) ** 2).sum())
    return _Placed(auc, variance * (max(1.0, together / alone) if alone > 0 else 1.0), min(counts))


def _few_and_independent(score: np.ndarray, positive: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first image of each subject and class, at most ``_AT_MOST`` of a class: beyond, the side has no part in how the law departs
    from a normal one.
    """
    first = np.unique(2 * units + positive, return_index=True)[1]
    kept = np.concatenate([first[positive[first] == side][:_AT_MOST] for side in (False, True)])
    return score[kept], positive[kept]


def _placements(chosen: np.ndarray, positive: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Share (b, n) of the other class's chosen images that each image is on the right side of; ties count half. Rows sorted by score."""
    starts = np.flatnonzero(np.diff(steps, prepend=-1))
    up, down = (np.add.reduceat((chosen & part).astype(np.int32), starts, axis=1) for part in (positive, ~positive))
    below = (np.cumsum(down, axis=1) - down / 2)[:, steps] / down.sum(axis=1, keepdims=True).clip(1)
    above = 1 - (np.cumsum(up, axis=1) - up / 2)[:, steps] / up.sum(axis=1, keepdims=True).clip(1)
    return np.where(positive, below, above)


def _aucs(chosen: np.ndarray, positive: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC (b,) of the chosen images (b, n), and its variance (b,)."""
    placements = _placements(chosen, positive, steps)
    classes = chosen & positive, chosen & ~positive
    counts = [part.sum(axis=1) for part in classes]
    auc = (placements * classes[0]).sum(axis=1) / counts[0]
    squares = [((placements - auc[:, None]) ** 2 * part).sum(axis=1) for part in classes]
    return auc, _variance(auc, squares, counts)


def _variance(auc: np.ndarray, squares: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
    """DeLong's variance, its parts drawn towards those that Hanley and McNeil (1982) derive from the AUC.

    Five positives that all lie above every negative one have no spread, yet their AUC is not known to be 1: there the AUC enters with
    one more image at chance.
    """
    fewest = np.minimum(*counts)
    smoothed = (auc * fewest + 0.5) / (fewest + 1)
    larger = np.maximum(smoothed, 1 - smoothed)
    parts = larger / (2 - larger) - larger**2, 2 * larger**2 / (1 + larger) - larger**2
    usual = np.where(smoothed >= 0.5, parts[0], parts[1]), np.where(smoothed >= 0.5, parts[1], parts[0])
    found = [
        (_PRIOR * prior + own) / (_PRIOR + count - 1) / count for prior, own, count in zip(usual, squares, counts, strict=True)
    ]
    return np.asarray(found[0] + found[1])


def _paired(first: np.ndarray, second: np.ndarray, positive: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference (b,) of the AUCs of two scores (b, n), and its variance over subjects (b,)."""
    influences, aucs = [], []
    for scores in (first, second):
        placements = _row_placements(scores, positive)
        auc = placements[:, positive].mean(axis=1)
        influences.append((placements - auc[:, None]) / np.where(positive, positive.sum(), (~positive).sum()))
        aucs.append(auc)
    each = influences[1] - influences[0]
    together = np.zeros((len(each), int(units.max()) + 1))
    np.add.at(together.T, units, each.T)
    rarer = min(int(positive.sum()), int((~positive).sum()))
    # of classifiers that rank alike nothing moves: one pair of images in a hundred might
    least = 0.01 / (int(positive.sum()) * int((~positive).sum()))
    return aucs[1] - aucs[0], np.maximum((together**2).sum(axis=1) * rarer / max(rarer - 1, 1), least)


def _row_placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """As ``_placements``, of all images, with scores (b, n) that differ from row to row."""
    ranks, found = rankdata(scores, axis=1), np.empty(scores.shape)
    for own in (positive, ~positive):
        found[:, own] = (ranks[:, own] - rankdata(scores[:, own], axis=1)) / (~own).sum()
    return np.where(positive, found, 1 - found)
