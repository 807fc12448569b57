"""Two classifiers on the same test images, one trained on real and one on generated images: every measure of both, and what changes.

Arrays in, estimates out. Both classifiers get the same draws of subjects, so their difference is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evenhand.audit.decisions import expanded_interval
from evenhand.audit.equity import equity_scaled
from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import Z95, FeatureError, bootstrap_weights, drawing_order, image_ranks, subject_codes, t_multiplier
from evenhand.audit.semantics import group_auc, odds_difference, parity_difference, weighted_auc
from evenhand.audit.utility import both_aligned, utility_difference
from evenhand.core.randomness import generator

Statistic = Callable[[np.ndarray], np.ndarray]  # of image weights (b, n)


@dataclass(frozen=True)
class Paired:
    """One measure of both classifiers, and synthetic-trained minus real-trained; ``reason`` says why there is none."""

    real_trained: Estimate
    synthetic_trained: Estimate
    difference: Estimate
    reason: str = ""

    @classmethod
    def of(cls, three: Sequence[Estimate], reason: str) -> Paired:
        """From a list in the order of the fields."""
        return cls(three[0], three[1], three[2], reason)

    @classmethod
    def undefined(cls, n: int, reason: str) -> Paired:
        """No value on either side."""
        return cls.of([Estimate(math.nan, math.nan, math.nan, n)] * 3, reason)


@dataclass(frozen=True)
class PairedAuc:
    """AUCs overall and by group, the gap over the groups that have one, and the equity-scaled AUC in its reference form.

    ``worst`` names the group of the lowest AUC for the real-trained and for the synthetic-trained classifier.
    """

    overall: Paired
    by_group: dict[Hashable, Paired]
    gap: Paired
    equity_scaled: Paired
    worst: tuple[Hashable | None, Hashable | None]


@dataclass(frozen=True)
class PairedRates:
    """How far groups differ in what is predicted: demographic parity and equalised odds difference."""

    parity: Paired
    odds: Paired


def paired_auc(
    labels: Any,
    real_trained_scores: Any,
    synthetic_trained_scores: Any,
    groups: Any,
    *,
    subjects: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
    min_n: int = 2,
    ids: Any = None,
) -> PairedAuc:
    """AUC of two classifiers overall and by group, with gap and ES-AUC, as FairDiffusion reports them (arXiv 2412.20374).

    Args:
        labels: (n,), two values, of which the larger is positive; NaN and -1 are unknown and left out.
        real_trained_scores, synthetic_trained_scores: (n,), higher = more likely positive; row i of both is test image i.
        groups: (n,); NaN, -1, unknown and unspecified are no group, yet count in ``overall``.
        subjects: one id per image; None = every image its own subject.
        min_n: a group with fewer labelled images is ``insufficient``.
        ids: as in ``group_auc``.

    Returns:
        Each measure as a ``Paired``. ES-AUC is undefined where any group is, the gap where fewer than two groups are defined.

    Raises:
        FeatureError: scores that are NaN or not one per image, or more than two label values.

    >>> labels, groups = [0, 1, 0, 1, 0, 1, 0, 1], ["a"] * 4 + ["b"] * 4
    >>> found = paired_auc(labels, [1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 4, 1, 3, 2], groups, n_boot=50)
    >>> found.by_group["b"].difference.value, found.gap.synthetic_trained.value
    (-0.75, 0.75)
    """
    how: dict[str, Any] = {"subjects": subjects, "ids": ids, "n_boot": n_boot, "seed": seed, "min_n": min_n}
    sides = [group_auc(scores, labels, groups, **how) for scores in (real_trained_scores, synthetic_trained_scores)]
    differences = utility_difference(labels, real_trained_scores, synthetic_trained_scores, groups, **how)
    reasons = differences.by_group["reason"].astype(str)
    frames = [*sides, differences]
    fault = "" if differences.overall.defined else "one class only or no labelled images"
    overall = Paired.of([frame.overall for frame in frames], fault)
    by_frame = [_cells(frame) for frame in frames]
    cells = {name: Paired.of([found[name] for found in by_frame], reasons[name]) for name in reasons.index}
    gap = scaled = Paired.undefined(overall.real_trained.n, f"a comparison needs two groups with an AUC{_named(reasons)}")
    if (reasons == "").sum() > 1:
        both = both_aligned(labels, real_trained_scores, synthetic_trained_scores, groups, subjects, ids)
        real, synthetic, positive, codes, _, subject, ranks = both
        places = np.flatnonzero(reasons == "")
        order, drawn_by = drawing_order(ranks, subject)
        aucs = [group_aucs(side[order], positive[order], codes[order], places) for side in (real, synthetic)]
        units = min(len(np.unique(subject[(codes == place) & (positive == side)])) for place in places for side in (True, False))
        drawn = _Drawn.of(aucs, drawn_by, units, n_boot, generator(seed, "paired_auc"))
        gap = drawn.ranges((sides[0].gap, sides[1].gap), slice(1, None))
        if len(places) == len(reasons):
            scaled = drawn.scaled([equity_scaled(frame.overall, frame, higher_is_better=True) for frame in sides])
        else:
            scaled = Paired.undefined(overall.real_trained.n, f"not every group has an AUC{_named(reasons)}")
    return PairedAuc(overall, cells, gap, scaled, (sides[0].worst, sides[1].worst))


def _cells(frame: SubgroupFrame) -> dict[Hashable, Estimate]:
    rows = frame.by_group.iterrows()
    return {name: Estimate(float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"])) for name, row in rows}


def _named(reasons: pd.Series) -> str:
    told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)
    return f" ({told})" if told else ""


def group_aucs(score: np.ndarray, positive: np.ndarray, codes: np.ndarray, places: np.ndarray) -> Statistic:
    """AUC of all images and of each of the groups ``places``, as image weights (b, n) -> (b, 1 + G, 1)."""

    def auc_of(rows: np.ndarray) -> Statistic:
        by_score = rows[np.argsort(score[rows], kind="stable")]
        starts = np.flatnonzero(np.diff(score[by_score], prepend=-np.inf) > 0)
        return lambda weights: weighted_auc(weights[:, by_score], positive[by_score], starts)

    parts = [auc_of(np.arange(len(score))), *(auc_of(np.flatnonzero(codes == place)) for place in places)]
    return lambda weights: np.column_stack([part(weights) for part in parts])[..., None]


def paired_rates(
    labels: Any,
    real_trained_predictions: Any,
    synthetic_trained_predictions: Any,
    groups: Any,
    *,
    subjects: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
    min_n: int = 2,
    ids: Any = None,
) -> PairedRates:
    """``parity_difference`` and ``odds_difference`` of two classifiers' predictions on the same images, over all classes.

    Args:
        labels: (n,) true classes; images without one are left out.
        real_trained_predictions, synthetic_trained_predictions: (n,) predicted classes, named as in ``labels``.
        groups: (n,); NaN, -1, unknown and unspecified are no group and left out.
        subjects: one id per image; None = every image its own subject.
        min_n: a group with fewer labelled images leaves both undefined: a rate of two images would make any difference.
        ids: as in ``group_auc``.

    Returns:
        Both are undefined where there is one group only or one with too few images, odds also where a group lacks a class.

    Raises:
        FeatureError: not one label, prediction and group an image, or a prediction is missing.

    >>> labels, groups = ["ill", "well"] * 4, ["a"] * 4 + ["b"] * 4
    >>> found = paired_rates(labels, labels, ["ill"] * 4 + labels[4:], groups, n_boot=50)
    >>> found.parity.synthetic_trained.value, found.odds.difference.value
    (0.5, 1.0)
    """
    columns = [
        pd.Series(column).reset_index(drop=True) for column in (labels, groups, real_trained_predictions, synthetic_trained_predictions)
    ]
    if len({len(column) for column in columns}) > 1:
        raise FeatureError(f"labels, groups and predictions have lengths {[len(column) for column in columns]}; give one per image")
    kept = np.flatnonzero((as_labels(columns[0])[0] >= 0) & (as_labels(columns[1])[0] >= 0))
    truth, place, *guesses = (column.iloc[kept] for column in columns)
    if any((as_labels(guess)[0] < 0).any() for guess in guesses):
        raise FeatureError("a prediction is missing; give each image a class")
    fault, odds_fault = _rate_faults(truth, place, min_n)
    if fault:
        return PairedRates(Paired.undefined(len(kept), fault), Paired.undefined(len(kept), fault))
    values = [[parity_difference(truth, guess, place), odds_difference(truth, guess, place)] for guess in guesses]
    subject, codes = subject_codes(subjects, len(columns[0]))[kept], as_labels(place)[0]
    classes = sorted({*truth, *guesses[0], *guesses[1]}, key=str)
    numbers = [np.array([classes.index(name) for name in column]) for column in (truth, *guesses)]
    order, drawn_by = drawing_order(image_ranks(ids, len(columns[0]))[kept], subject)
    rates = [group_rates(numbers[0][order], guess[order], codes[order], len(classes)) for guess in numbers[1:]]
    units = min(len(np.unique(subject[codes == code])) for code in range(codes.max() + 1))
    drawn = _Drawn.of(rates, drawn_by, units, n_boot, generator(seed, "paired_rates"))
    parity = drawn.ranges((values[0][0], values[1][0]), slice(None), slice(0, len(classes)))
    odds = drawn.ranges((values[0][1], values[1][1]), slice(None), slice(len(classes), None)) if not odds_fault else None
    return PairedRates(parity, odds or Paired.undefined(len(kept), odds_fault))


def _rate_faults(truth: pd.Series, groups: pd.Series, min_n: int) -> tuple[str, str]:
    """Why neither difference is defined, and why odds are not; empty where they are."""
    codes, names = as_labels(groups)
    if len(names) < 2:
        return "there are fewer than two groups", ""
    for code, name in enumerate(names):
        if (n := int((codes == code).sum())) < max(min_n, 1):
            return f"{name}: " + (f"insufficient: {n} images, at least {min_n} wanted" if n else "no labelled images"), ""
    classes, labels = sorted(set(truth), key=str), truth.to_numpy()
    if len(classes) < 2:
        return "", f"one class only ({classes[0]})"
    lacking = [f"{name} has no image of {c}" for code, name in enumerate(names) for c in classes if c not in set(labels[codes == code])]
    return "", "; ".join(lacking)


def group_rates(truth: np.ndarray, guess: np.ndarray, codes: np.ndarray, classes: int) -> Statistic:
    """Rates by group as image weights (b, n) -> (b, G, K + 2 L): shown as each of K classes; true and false positives of L labelled."""
    groups = int(codes.max()) + 1
    cell = np.eye(groups * classes * classes)[(codes * classes + truth) * classes + guess]  # (n, G * T * P)
    labelled = np.unique(truth)

    def rates(weights: np.ndarray) -> np.ndarray:
        counts = (weights @ cell).reshape(-1, groups, classes, classes)  # (b, G, T, P)
        shown, size = counts.sum(axis=2), counts.sum(axis=(2, 3))[..., None]
        hits, true = np.diagonal(counts, axis1=2, axis2=3)[..., labelled], counts.sum(axis=3)[..., labelled]
        return np.concatenate([_share(shown, size), _share(hits, true), _share(shown[..., labelled] - hits, size - true)], axis=2)

    return rates


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


@dataclass(frozen=True)
class _Drawn:
    """What common draws of subjects make of both classifiers' levels: in the sample (1, G, m) and in the draws (B, G, m)."""

    sample: list[np.ndarray]
    draws: list[np.ndarray]
    units: int
    n: int

    @classmethod
    def of(cls, sides: list[Statistic], codes: np.ndarray, units: int, n_boot: int, rng: np.random.Generator) -> _Drawn:
        blocks = [[side(weights) for side in sides] for weights in bootstrap_weights(codes, n_boot, rng)]
        return cls(
            [side(np.ones((1, len(codes)))) for side in sides],
            [np.concatenate(part) for part in zip(*blocks, strict=True)],
            units,
            len(codes),
        )

    def ranges(self, values: tuple[float, float], groups: slice, columns: slice = slice(None)) -> Paired:
        """Largest minus smallest level over ``groups``, at most over ``columns``.

        In a draw a range is larger than in the sample, as there than in the population, and no quantile of draws reaches 0. But
        a range is never further from the true one than the range of the levels' errors, so a side's interval is the value give
        or take the 95th percentile of that: it covers at least as often as it says. The difference's is the percentile one.
        """
        sample, draws = ([side[:, groups, columns] for side in part] for part in (self.sample, self.draws))
        errors = [np.ptp(drawn - side, axis=1).max(axis=1) for drawn, side in zip(draws, sample, strict=True)]
        spread = [np.ptp(drawn, axis=1).max(axis=1) for drawn in draws]
        sides = [self._about(value, error) for value, error in zip(values, errors, strict=True)]
        return Paired(sides[0], sides[1], self._difference(values[1] - values[0], spread[1] - spread[0]))

    def scaled(self, values: list[float]) -> Paired:
        """ES-AUC, M / (1 + sum of distances to M), by the same reasoning.

        The sum is never further from the true one than the sum of the distances' errors, so the value is never further from the true
        one than with both errors, of M and of the sum, taken the worst way. The difference's interval holds the percentile one and
        its reflection about the value: the biases of both sides cancel only where both serve groups alike.
        """
        sides, drawn = [], []
        for value, sample, draws in zip(values, self.sample, self.draws, strict=True):
            (level, apart), (levels, aparts) = ((part[:, 0, 0], part[:, :1, 0] - part[:, 1:, 0]) for part in (sample, draws))
            off, spread = np.abs(levels - level), np.abs(apart).sum()
            spread_off = np.abs(aparts - apart).sum(axis=1)
            up = (level + off) / (1 + np.maximum(spread - spread_off, 0)) - value
            down = value - (level - off) / (1 + spread + spread_off)
            sides.append(self._about(value, np.maximum(up, down)))
            drawn.append(levels / (1 + np.abs(aparts).sum(axis=1)))
        value, (low, high) = values[1] - values[0], expanded_interval(drawn[1] - drawn[0], self.units)
        wider = self._estimate(value, min(low, 2 * value - high), max(high, 2 * value - low))
        return Paired(sides[0], sides[1], wider)

    def _about(self, value: float, errors: np.ndarray) -> Estimate:
        """Value give or take the 95th percentile of ``errors``, cut to [0, 1]."""
        defined = errors[np.isfinite(errors)]
        few = self.units < 2 or len(defined) < len(errors) / 2
        radius = math.nan if few else float(np.quantile(defined, 0.95)) * t_multiplier(self.units) / Z95
        found = self._estimate(value, value - radius, value + radius)
        return Estimate(value, max(found.low, 0.0), min(found.high, 1.0), self.n) if math.isfinite(found.low) else found

    def _difference(self, value: float, draws: np.ndarray) -> Estimate:
        return self._estimate(value, *expanded_interval(draws, self.units))

    def _estimate(self, value: float, low: float, high: float) -> Estimate:
        """No interval where no draw moves the value: that shows how few images there are, not how sure it is."""
        known = low < high
        return Estimate(value, min(value, low) if known else math.nan, max(value, high) if known else math.nan, self.n)
