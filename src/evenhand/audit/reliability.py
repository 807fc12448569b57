"""Calibration of a judge by subgroup: do its probabilities mean what they say (ECE), and how far are they from the truth (Brier)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from evenhand.audit.decisions import expanded_interval
from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import FeatureError, bootstrap_weights, drawing_order, image_ranks, subject_codes
from evenhand.core.errors import did_you_mean
from evenhand.core.randomness import generator

BINNINGS = ("mass", "width")
_NULL_DRAWS = 400
_CELLS = 4_000_000  # of a block of draws: 32 MB


def expected_calibration_error(
    probabilities: Any,
    labels: Any,
    groups: Any = None,
    *,
    classes: Sequence[Any] | None = None,
    bins: int = 10,
    binning: Literal["mass", "width"] = "mass",
    n_boot: int = 1000,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = 2,
) -> SubgroupFrame:
    """Expected calibration error overall and by group (ECE; Naeini et al. 2015): sum_b |sum of (hit - confidence) in bin b| / n.

    Of two classes the confidence is the positive's probability and a hit is a positive (Naeini). Of more it is that of the likeliest
    class, and a hit is that this class is right (top label; Guo et al. 2017, eq. 3).

    **It is biased upwards**, the more the fewer images a bin has: perfectly calibrated probabilities do not score 0, and small groups
    look worse than large ones. So each value has two figures beside it: its ``floor``, the mean ECE of labels drawn from the
    probabilities themselves (Bröcker and Smith 2007), times the root of the design effect where a subject's images go wrong
    together; and ``corrected``, the true error of which samples lie above the value as often as below. Compare groups by that. The
    interval is for the true error too, that of endless images in these bins; it starts at 0 where calibrated probabilities could
    have given the value.

    Args:
        probabilities: (n,) or (n, 2) of the positive class, or (n, K) with one column a class; rows sum to 1.
        labels: (n,); of (n,) probabilities two values, the larger positive, else a class, as in ``classes``. NaN and -1 are unknown
            and left out.
        groups: (n,); NaN, -1, unknown and unspecified are no group, yet count in ``overall``. None = no groups.
        classes: the columns' classes; None = 0 to K - 1.
        bins: how many; ``mass`` gives each the same number of images (ties stay together), ``width`` the same range.
        subjects: one id per image; None = every image its own subject.
        ids: what identifies each image, such as the hash of its file; draws are keyed on it. None = its row.
        min_n: a group with fewer labelled images is ``insufficient``.

    Returns:
        A frame, lower is better, with the further columns floor and corrected. A group without labelled images is NaN with the reason.

    Raises:
        FeatureError: probabilities that are NaN, outside 0 to 1 or not summing to 1, shapes that differ, a label without a column.

    >>> frame = expected_calibration_error([0.2, 0.2, 0.6, 0.6], [0, 1, 1, 1], bins=2, n_boot=100)
    >>> round(frame.overall.value, 12)
    0.35
    """
    if binning not in BINNINGS:
        raise FeatureError(f"unknown binning {binning!r}; {did_you_mean(binning, BINNINGS)}")
    if bins < 1:
        raise FeatureError(f"{bins} bins; give at least 1")
    judged = _judged(probabilities, labels, groups, classes, subjects, ids)
    confidence, hit = _top_label(judged)

    def cell(rows: np.ndarray, name: str) -> tuple[Estimate, list[float]]:
        order, codes = drawing_order(judged.ranks[rows], judged.subjects[rows])
        sure, right = confidence[rows][order], hit[rows][order].astype(np.float64)
        place = _bin(sure, bins, binning)
        value = float(np.abs(_in_bins(right - sure, place).sum(axis=0)).sum()) / len(sure)
        low, corrected, high = _ece_solved(value, right - sure, place, codes, n_boot, generator(seed, "ece", name))
        null = _null_draws(sure, right - sure, place, codes, generator(seed, "ece-null", name))
        low = low if math.isnan(low) or value > np.quantile(null, 0.975) else 0.0
        return Estimate(value, low, high, len(sure)), [float(null.mean()), corrected]

    return _frame(judged, cell, min_n, ["floor", "corrected"])


def brier_score(
    probabilities: Any,
    labels: Any,
    groups: Any = None,
    *,
    classes: Sequence[Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = 2,
) -> SubgroupFrame:
    """Brier score overall and by group: mean squared distance between probabilities and what came true (Brier 1950).

    Of three classes or more it is the sum over classes, 0 to 2; of two the positive's alone, half of that, 0 to 1, as is the custom
    and as scikit-learn has it. It mixes calibration with how hard a group is: two groups may differ though both are calibrated.

    Arguments, labels and errors as in ``expected_calibration_error``. Expanded percentile intervals from resampled subjects.

    >>> round(brier_score([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], [0, 1], n_boot=100).overall.value, 12)
    0.22
    """
    judged = _judged(probabilities, labels, groups, classes, subjects, ids)
    truth = np.eye(judged.probs.shape[1])[judged.label]
    loss = ((judged.probs - truth) ** 2).sum(axis=1) / (2 if judged.binary else 1)
    top = 1.0 if judged.binary else 2.0

    def cell(rows: np.ndarray, name: str) -> tuple[Estimate, list[float]]:
        order, codes = drawing_order(judged.ranks[rows], judged.subjects[rows])
        sorted_loss = loss[rows][order]
        value = float(sorted_loss.mean())
        rng = generator(seed, "brier", name)
        draws = [weights @ sorted_loss / weights.sum(axis=1) for weights in bootstrap_weights(codes, n_boot, rng)]
        low, high = expanded_interval(np.concatenate([np.empty(0), *draws]), int(codes.max()) + 1)
        if np.ptp(sorted_loss) < 1e-12 and codes.max() > 0:
            low, high = _few_subjects(value, top, int(codes.max()) + 1)
        return Estimate(value, low, high, len(sorted_loss)), []

    return _frame(judged, cell, min_n, [])


@dataclass(frozen=True)
class _Judged:
    """The rows with a known label: probabilities (n, K), label codes, group codes and names, subject codes, ranks by id."""

    probs: np.ndarray
    label: np.ndarray
    group: np.ndarray
    names: list[Any]
    subjects: np.ndarray
    ranks: np.ndarray

    @property
    def binary(self) -> bool:
        return self.probs.shape[1] == 2


def _judged(probabilities: Any, labels: Any, groups: Any, classes: Sequence[Any] | None, subjects: Any, ids: Any) -> _Judged:
    try:
        probs = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError("probabilities are not numbers; give an array (n,) or (n, classes)") from None
    label, values = as_labels(labels)
    n = len(label)
    group, names = as_labels(groups) if groups is not None else (np.full(n, -1), [])
    if probs.ndim not in (1, 2) or (probs.ndim == 2 and probs.shape[1] < 2) or not len(probs) == n == len(group):
        shapes = f"probabilities {probs.shape}, labels ({n},) and groups ({len(group)},)"
        raise FeatureError(f"{shapes} do not fit; give one row per image, and (n,) or (n, 2 or more)")
    wrong = ~np.isfinite(probs) | (probs < -1e-6) | (probs > 1 + 1e-6)  # a softmax in float32 may pass 1
    if wrong.any():
        row = int(np.flatnonzero(wrong.reshape(n, -1).any(axis=1))[0])
        raise FeatureError(f"probabilities: row {row} holds {probs.reshape(n, -1)[row][wrong.reshape(n, -1)[row]][0]:g}; give 0 to 1")
    if probs.ndim == 1:
        probs = np.column_stack([1 - probs, probs])
        if classes is None:
            classes = _two_values(values)
    off = np.abs(probs.sum(axis=1) - 1) > 1e-3
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise FeatureError(f"probabilities: row {row} sums to {probs[row].sum():g}, not 1; give a softmax, one column a class")
    columns = list(range(probs.shape[1])) if classes is None else [(as_labels([name])[1] or [name])[0] for name in classes]
    if len(columns) != probs.shape[1]:
        raise FeatureError(f"{len(columns)} classes for {probs.shape[1]} columns of probabilities; name each column")
    strange = [value for value in values if value not in columns]
    if strange:
        raise FeatureError(f"label {strange[0]!r} has no column; {did_you_mean(strange[0], map(str, columns))}; pass classes=")
    place = np.array([columns.index(value) for value in values] + [-1])
    known = label >= 0
    units, ranks = subject_codes(subjects, n)[known], image_ranks(ids, n)[known]
    return _Judged(np.clip(probs[known], 0, 1), place[label[known]], group[known], names, units, ranks)


def _two_values(values: list[Any]) -> list[Any]:
    """The negative and the positive class of labels without names: the larger is positive, one alone is by its truth."""
    if len(values) > 2:
        raise FeatureError(f"labels have {len(values)} values ({', '.join(map(str, values[:5]))}); give one column a class")
    if len(values) == 2:
        return values
    alone = values[0] if values else 0
    other = f"not {alone}"
    return [other, alone] if alone and alone != "0" else [alone, other]


def _top_label(judged: _Judged) -> tuple[np.ndarray, np.ndarray]:
    """The confidence (n,) and whether it came true (n,)."""
    if judged.binary:
        return judged.probs[:, 1], judged.label == 1
    guess = judged.probs.argmax(axis=1)
    return judged.probs.max(axis=1), guess == judged.label


def _frame(judged: _Judged, cell: Callable[[np.ndarray, str], tuple[Estimate, list[float]]], min_n: int, more: list[str]) -> SubgroupFrame:
    """Cells by group and overall; a group with too few labelled images is NaN with the reason."""

    def checked(rows: np.ndarray, name: str) -> tuple[Estimate, str, list[float]]:
        n = int(rows.sum())
        if n < max(min_n, 1):
            reason = f"insufficient: {n} images, at least {min_n} wanted" if n else "no labelled images"
            return Estimate(math.nan, math.nan, math.nan, n), reason, [math.nan] * len(more)
        estimate, beside = cell(rows, name)
        return estimate, "", beside

    cells = {name: checked(judged.group == code, str(name)) for code, name in enumerate(judged.names)}
    overall = checked(np.ones(len(judged.label), dtype=bool), "overall")[0]
    columns = {name: [beside[place] for _, _, beside in cells.values()] for place, name in enumerate(more)}
    return SubgroupFrame.of({name: found[:2] for name, found in cells.items()}, overall, False, **columns)


def _bin(confidence: np.ndarray, bins: int, binning: str) -> np.ndarray:
    """Bin (n,) of each confidence; equal ones share a bin, whatever the rows' order."""
    if binning == "mass":
        return np.searchsorted(np.sort(confidence), confidence, side="left") * bins // len(confidence)
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")


def _in_bins(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Values (n,) as a matrix (n, bins), each in its bin's column: image weights (b, n) times it are the bins' sums."""
    used, column = np.unique(place, return_inverse=True)
    matrix = np.zeros((len(values), len(used)))
    matrix[np.arange(len(values)), column] = values
    return matrix


def _ece_solved(
    value: float, residuals: np.ndarray, place: np.ndarray, codes: np.ndarray, n_boot: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The true errors under which samples with the noise of resampled subjects reach ``value`` in 2.5, 50 and 97.5 %: tests inverted.

    A percentile interval would not do: a replicate has the sample's noise and its own, and lies above the value as that lies above
    the truth. How a true error spreads over bins matters: bins without any add their noise in full. So three spreads, with the
    signs found: the middle takes the one found, the low end one concentrated where it stands out of the noise, the high end an even
    one.
    """
    subjects = int(codes.max()) + 1
    if subjects < 2 or n_boot < 2:
        return math.nan, math.nan, math.nan
    matrix = _in_bins(residuals, place)
    found = matrix.mean(axis=0)
    draws = [weights @ matrix / weights.sum(axis=1, keepdims=True) for weights in bootstrap_weights(codes, n_boot, rng)]
    noise = (np.concatenate(draws) - found) * math.sqrt(subjects / (subjects - 1))
    if not noise.any():
        low, high = _few_subjects(value, 1.0, subjects)
        return low, value, high
    even = np.where(found >= 0, 1, -1) * _in_bins(np.ones(len(place)), place).mean(axis=0)
    clear = found**5 / (found**4 + (4 * noise.var(axis=0)) ** 2 + 1e-60)  # halved at two standard errors
    found, clear = (part / np.abs(part).sum() if part.any() else even for part in (found, clear))

    def solve(direction: np.ndarray, level: float) -> float:
        """The largest true error at which this quantile of what samples show is not above the value; 0 where none is."""
        low, high = 0.0, 1.0
        for _ in range(30):
            error = (low + high) / 2
            above = float(np.quantile(np.abs(error * direction + noise).sum(axis=1), level)) > value
            low, high = (low, error) if above else (error, high)
        return low

    least, most = np.quantile(np.abs(noise).sum(axis=1), [0.025, 0.975])
    high = float(most) if value <= least else solve(even, 0.025)  # too good for any true error: what noise alone can hide
    return min(solve(clear, 0.975), value), solve(found, 0.5), max(high, value)


def _few_subjects(value: float, top: float, subjects: int) -> tuple[float, float]:
    """Bounds where every draw repeats the value: what one more subject could show, were it the one that so many miss."""
    rest = 0.025 ** (1 / subjects)
    return value * rest, value * rest + top * (1 - rest)


def _null_draws(
    confidence: np.ndarray, residuals: np.ndarray, place: np.ndarray, codes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """ECE of labels drawn from the confidences, times the root of the design effect of subjects within bins."""
    n, draws = len(confidence), np.empty(0)
    share, expected = _in_bins(np.full(n, 1 / n), place), _in_bins(confidence, place).mean(axis=0)
    while len(draws) < _NULL_DRAWS:
        labels = rng.random((min(max(1, _CELLS // n), _NULL_DRAWS - len(draws)), n)) < confidence
        draws = np.r_[draws, np.abs(labels.astype(np.float64) @ share - expected).sum(axis=1)]
    means = np.bincount(place, residuals) / np.maximum(np.bincount(place), 1)
    centred = residuals - means[place]
    _, pair = np.unique(place * (int(codes.max()) + 1) + codes, return_inverse=True)
    alone, together = float((centred**2).sum()), float((np.bincount(pair, centred) ** 2).sum())
    return draws * math.sqrt(max(together / alone, 1.0) if alone > 0 else 1.0)
