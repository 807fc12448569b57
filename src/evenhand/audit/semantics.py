"""Semantic correlation: does an image show the condition that was asked for, equally so in every subgroup.

Labels come from the table, never from words in a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import FeatureError, bootstrap_weights, drawing_order, image_ranks, percentile_interval, subject_codes
from evenhand.core.randomness import generator


def group_auc(
    scores: Any,
    labels: Any,
    groups: Any,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = 2,
) -> SubgroupFrame:
    """Area under the ROC curve overall and by group, with percentile intervals from resampled subjects.

    Args:
        scores: (n,), higher = more likely positive.
        labels: (n,), two values, of which the larger is positive (0/1, False/True). NaN and -1 are unknown and left out.
        groups: (n,); NaN, -1, unknown and unspecified are no group, yet count in ``overall``.
        n_boot: bootstrap samples of subjects, drawn within each group.
        subjects: one id per image; None = every image its own subject.
        ids: what identifies each image, such as the hash of its file; draws are keyed on it. None = its row.
        min_n: a group with fewer labelled images is ``insufficient``.

    Returns:
        A frame in which a group without images, or with one class only, is NaN with the reason.

    Raises:
        FeatureError: scores that are NaN or not one per image, or more than two label values.

    >>> group_auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], ["a"] * 4).overall.value
    0.75
    """
    score, positive, codes, names, units, ranks = aligned_scores(scores, labels, groups, subjects, ids)

    def cell(rows: np.ndarray, name: str) -> tuple[Estimate, str]:
        fault = one_class_reason(positive[rows], units[rows], min_n)
        if fault:
            return Estimate(math.nan, math.nan, math.nan, int(rows.sum())), fault
        return _auc_estimate(score[rows], positive[rows], units[rows], ranks[rows], n_boot, (seed, name)), ""

    cells = {name: cell(codes == code, str(name)) for code, name in enumerate(names)}
    overall, _ = cell(np.ones(len(score), dtype=bool), "overall")
    return SubgroupFrame.of(cells, overall, True)


def aligned_scores(
    scores: Any, labels: Any, groups: Any, subjects: Any, ids: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any], np.ndarray, np.ndarray]:
    """The rows with a known label: scores, whether positive, group codes, group names, subject codes, ranks by id."""
    try:
        score = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError("scores are not numbers; give one per image") from None
    label, values = as_labels(labels)
    codes, names = as_labels(groups)
    if score.ndim != 1 or not len(score) == len(label) == len(codes):
        raise FeatureError(f"scores {score.shape}, labels ({len(label)},) and groups ({len(codes)},) differ in shape; give one per image")
    if not np.isfinite(score).all():
        raise FeatureError(f"scores hold NaN or Inf (first in row {int(np.flatnonzero(~np.isfinite(score))[0])})")
    if len(values) > 2:
        raise FeatureError(f"labels have {len(values)} values ({', '.join(map(str, values[:5]))}); compare one class with the rest")
    known = label >= 0
    positive = (label == 1) if len(values) == 2 else (label == 0) & np.array([bool(v) and v != "0" for v in values] or [False])[0]
    units, ranks = subject_codes(subjects, len(score)), image_ranks(ids, len(score))
    return score[known], positive[known], codes[known], names, units[known], ranks[known]


def one_class_reason(positive: np.ndarray, ids: np.ndarray, min_n: int) -> str:
    """Why an AUC is not defined; empty where it is."""
    if len(positive) == 0:
        return "no labelled images"
    if positive.all() or not positive.any():
        return f"one class only (all {len(positive)} {'positive' if positive.all() else 'negative'})"
    if len(positive) < min_n:
        return f"insufficient: {len(positive)} images, at least {min_n} wanted"
    return "insufficient: all images are of one subject" if len(np.unique(ids)) < 2 else ""


def _auc_estimate(
    score: np.ndarray, positive: np.ndarray, units: np.ndarray, ranks: np.ndarray, n_boot: int, key: tuple[int, str]
) -> Estimate:
    order, codes = drawing_order(ranks, units)
    by_score = np.argsort(score[order], kind="stable")
    score, positive, codes = score[order][by_score], positive[order][by_score], codes[by_score]
    starts = np.flatnonzero(np.r_[True, np.diff(score) > 0])  # where a new score begins: ties share a step
    value = float(weighted_auc(np.ones((1, len(score))), positive, starts)[0])
    rng = generator(key[0], "group_auc", key[1])
    replicates = [weighted_auc(weights, positive, starts) for weights in bootstrap_weights(codes, n_boot, rng)]
    low, high = percentile_interval(np.concatenate(replicates)) if replicates else (math.nan, math.nan)
    if value in (0.0, 1.0):  # every replicate repeats it; as many subjects as the rarer class has bound what one more could show
        rarer = min(len(np.unique(codes[positive])), len(np.unique(codes[~positive])))
        bound = 0.025 ** (1 / rarer)
        low, high = (bound, 1.0) if value == 1.0 else (0.0, 1 - bound)
    return Estimate(value, low, high, len(score))


def weighted_auc(weights: np.ndarray, positive: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """AUC (b,) under image weights (b, n) sorted by score; ties count half. NaN where a class has no weight."""
    up = np.add.reduceat(weights * positive, starts, axis=1)
    down = np.add.reduceat(weights * ~positive, starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    pairs = up.sum(axis=1) * down.sum(axis=1)
    return np.where(pairs > 0, (up * below).sum(axis=1) / np.where(pairs > 0, pairs, 1), np.nan)


def parity_difference(labels: Any, predictions: Any, groups: Any) -> float:
    """Demographic parity difference: how far groups differ in the share predicted as a class, at most over classes.

    For two classes it is fairlearn's. NaN where there is one group only, or a group without a prediction. ``labels`` say which
    classes there are; they enter no rate.
    """
    from fairlearn.metrics import demographic_parity_difference

    _, guess, codes, names, classes, _ = _classified(labels, predictions, groups)
    keep = (guess >= 0) & (codes >= 0)
    if len(names) < 2 or len(np.unique(codes[keep])) < len(names):
        return math.nan
    return _largest(demographic_parity_difference, guess[keep], guess[keep], codes[keep], range(len(classes)))


def odds_difference(labels: Any, predictions: Any, groups: Any) -> float:
    """Equalised odds difference: how far groups differ in true or false positive rate, at most over classes, one against the rest.

    For two classes it is fairlearn's. NaN where there is one group only, or where some group lacks a class that occurs in
    ``labels`` (its true positive rate is not defined) or has that class only (its false positive rate is not).
    """
    from fairlearn.metrics import equalized_odds_difference

    truth, guess, codes, names, classes, labelled = _classified(labels, predictions, groups)
    keep = (truth >= 0) & (guess >= 0) & (codes >= 0)
    truth, guess, codes = truth[keep], guess[keep], codes[keep]
    counts = np.zeros((len(names), len(classes)), dtype=int)
    np.add.at(counts, (codes, truth), 1)
    seen = counts[:, labelled]
    if len(names) < 2 or len(labelled) < 2 or (seen == 0).any():
        return math.nan
    return _largest(equalized_odds_difference, truth, guess, codes, labelled)


def _classified(labels: Any, predictions: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any], list[Any], list[int]]:
    """Codes of labels and predictions on common classes, of groups, and which classes occur among the labels of a group's rows."""
    codes, names = as_labels(groups)
    truth, truth_names = as_labels(labels)
    guess, guess_names = as_labels(predictions)
    if not len(codes) == len(truth) == len(guess):
        raise FeatureError(f"{len(truth)} labels, {len(guess)} predictions and {len(codes)} groups differ in length; give one per image")
    if truth_names and guess_names and not set(truth_names) & set(guess_names) and len(truth_names) > 1:
        shown = [", ".join(map(repr, names[:3])) for names in (truth_names, guess_names)]
        raise FeatureError(f"labels ({shown[0]}) and predictions ({shown[1]}) have no class in common; name classes alike in both")
    classes = [*truth_names, *(name for name in guess_names if name not in truth_names)]
    place = np.array([classes.index(name) for name in guess_names] + [-1])
    counted = np.unique(truth[(truth >= 0) & (codes >= 0) & (guess >= 0)])
    return truth, place[guess], codes, names, classes, counted.tolist()


def _largest(difference: Callable[..., float], truth: np.ndarray, guess: np.ndarray, codes: np.ndarray, classes: Any) -> float:
    """The largest of a fairlearn difference over classes, one against the rest."""
    groups = pd.Series(codes)
    return max(float(difference(truth == code, guess == code, sensitive_features=groups)) for code in classes)
