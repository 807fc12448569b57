"""Downstream utility: does a classifier trained on generated images serve every subgroup of real test images as one trained on real ones.

Scores in, estimates out; the training of the two classifiers is wired elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evenhand.audit.decisions import paired_bootstrap
from evenhand.audit.frame import Estimate, SubgroupFrame
from evenhand.audit.intervals import FeatureError
from evenhand.audit.semantics import aligned_scores, one_class_reason
from evenhand.core.randomness import derive_seed


def utility_difference(
    labels: Any,
    real_trained_scores: Any,
    synthetic_trained_scores: Any,
    groups: Any,
    *,
    subjects: Any = None,
    ids: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
    min_n: int = 2,
) -> SubgroupFrame:
    """AUC trained on generated images minus AUC trained on real ones, overall and by group, on the same real test images.

    Train on synthetic, test on real (TSTR; Esteban et al. 2017), against train on real.

    Args:
        labels: (n,) true labels, two values, of which the larger is positive; NaN and -1 are unknown and left out.
        real_trained_scores, synthetic_trained_scores: (n,), higher = more likely positive; row i of both is test image i.
        groups: (n,); NaN, -1, unknown and unspecified are no group, yet count in ``overall``.
        subjects: one id per image; None = every image its own subject. Both classifiers get the same draw of subjects.
        ids: as in ``group_auc``.
        min_n: a group with fewer labelled images is ``insufficient``.

    Returns:
        A frame with the further columns real_trained and synthetic_trained (the AUCs) and p_value (of no difference, not adjusted
        for the number of groups). ``gap`` is how unevenly utility is lost, ``worst`` the group that loses most.

    Raises:
        FeatureError: scores that are NaN or not one per image, or more than two label values.

    >>> frame = utility_difference([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.2, 0.4], ["a"] * 4, n_boot=100)
    >>> frame.overall.value, float(frame.by_group.loc["a", "synthetic_trained"])
    (-0.25, 0.75)
    """
    both = both_aligned(labels, real_trained_scores, synthetic_trained_scores, groups, subjects, ids)
    real, synthetic, positive, codes, names, units, ranks = both

    def cell(rows: np.ndarray, name: str) -> tuple[Estimate, str, float, float, float]:
        fault = one_class_reason(positive[rows], units[rows], min_n)
        if fault:
            return Estimate(math.nan, math.nan, math.nan, int(rows.sum())), fault, math.nan, math.nan, math.nan
        tables = [{"score": side[rows], "label": positive[rows].astype(int)} for side in (real, synthetic)]
        key = derive_seed(seed, "utility", name)
        found = paired_bootstrap("auc", *tables, subjects=units[rows], ids=ranks[rows], n_boot=n_boot, seed=key)
        estimate = found.estimate
        if found.before == found.after and found.before in (0.0, 1.0) and _ranked_apart(*(table["score"] for table in tables)):
            rarer = min(len(np.unique(units[rows & side])) for side in (positive, ~positive))
            half = 1 - 0.025 ** (1 / rarer)  # both perfect: no draw moves, yet so few subjects do not show that they are equal
            estimate = Estimate(estimate.value, -half, half, estimate.n)
        return estimate, "", found.before, found.after, found.p_value

    cells = {name: cell(codes == code, str(name)) for code, name in enumerate(names)}
    overall = cell(np.ones(len(positive), dtype=bool), "overall")[0]
    columns = zip(*(found[2:] for found in cells.values()), strict=True) if cells else ((), (), ())
    more = dict(zip(("real_trained", "synthetic_trained", "p_value"), map(list, columns), strict=True))
    return SubgroupFrame.of({name: found[:2] for name, found in cells.items()}, overall, True, **more)


def both_aligned(labels: Any, real: Any, synthetic: Any, groups: Any, subjects: Any, ids: Any) -> tuple:
    """Scores of both classifiers on the rows with a known label, then whether positive, group codes and names, subject codes, ranks."""
    sides = []
    for name, scores in (("real-trained", real), ("synthetic-trained", synthetic)):
        try:
            sides.append(aligned_scores(scores, labels, groups, subjects, ids))
        except FeatureError as error:
            raise FeatureError(f"{name} classifier: {error}") from None
    return sides[0][0], *sides[1]


def _ranked_apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two scores order the images differently."""
    ranks = [np.unique(scores, return_inverse=True)[1] for scores in (first, second)]
    return not np.array_equal(ranks[0], ranks[1])
