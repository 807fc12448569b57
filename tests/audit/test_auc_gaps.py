"""Differences of AUC by group, and tests that they are equal: levels in small groups, who is blamed, and what is undefined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from evenhand.audit import auc_gaps
from evenhand.audit.auc_gaps import fidelity_gap, utility_gap_p

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def scored(rng: np.random.Generator, sizes: list[int], aucs: list[float], positives: float = 0.5) -> Arrays:
    """Scores, labels and groups: normal scores of these AUCs, exactly so many positives."""
    scores, labels, groups = [], [], []
    for place, (n, auc) in enumerate(zip(sizes, aucs, strict=True)):
        label = (np.arange(n) < round(n * positives)).astype(int)
        scores.append(rng.normal(size=n) + math.sqrt(2) * norm.ppf(auc) * label)
        labels.append(label)
        groups.append(np.repeat(f"g{place}", n))
    return np.concatenate(scores), np.concatenate(labels), np.concatenate(groups)


@pytest.mark.parametrize(
    ("sizes", "positives", "aucs"),
    [([300, 60, 60], 0.5, [0.83, 0.95, 0.9]), ([300, 100, 50], 0.1, [0.8, 0.8, 0.8]), ([60, 60], 0.5, [0.98, 0.7])],
)
def test_a_perfect_generator_is_rarely_blamed_however_the_judge_reads_its_groups(
    sizes: list[int], positives: float, aucs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auc_gaps, "DRAWS", 400)
    monkeypatch.setattr(auc_gaps, "SCREENING", 200)
    flagged, repeats = 0, 60
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        real = [max(20, n // 2) for n in sizes]
        found = fidelity_gap(*scored(rng, sizes, aucs, positives), *scored(rng, real, aucs, positives), n_boot=2, seed=seed)
        flagged += found.p_value < 0.05
    assert flagged <= 9  # of 60 at 5 %: more in two simulations of a thousand


def test_a_group_whose_images_do_not_show_it_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    made, real = scored(rng, [400, 120], [0.9, 0.62]), scored(rng, [200, 100], [0.92, 0.9])
    found = fidelity_gap(*made, *real, n_boot=200)
    assert found.p_value < 0.01 and found.worst == "g1"
    row = found.frame.by_group.loc["g1"]
    sides = [[s[(g == "g1") & (y == label)] for label in (1, 0)] for s, y, g in (made, real)]
    aucs = [mannwhitneyu(up, down).statistic / (len(up) * len(down)) for up, down in sides]
    assert row["value"] == pytest.approx(aucs[0] - aucs[1]) and row["low"] < row["value"] < row["high"] < 0
    assert found.frame.gap == pytest.approx(found.frame.by_group["value"].max() - row["value"])


def test_groups_that_one_side_lacks_are_undefined_with_the_side_and_the_reason() -> None:
    rng = np.random.default_rng(1)
    (scores, labels, groups), (s, y, g) = scored(rng, [60, 60, 60], [0.8] * 3), scored(rng, [60, 60, 60], [0.8] * 3)
    found = fidelity_gap(scores[groups != "g0"], labels[groups != "g0"], groups[groups != "g0"], s, np.where(g == "g1", 1, y), g, n_boot=20)
    reasons = found.frame.by_group["reason"]
    assert reasons["g0"] == "no generated images" and reasons["g1"] == "real images: one class only (all 60 positive)" and not reasons["g2"]
    assert math.isnan(found.p_value) and math.isnan(found.frame.gap)


def test_draws_know_images_by_their_ids_and_neither_by_their_rows_nor_by_the_last_bit_of_a_score() -> None:
    rng = np.random.default_rng(2)
    made, real = scored(rng, [80, 40], [0.9, 0.7]), scored(rng, [60, 40], [0.9, 0.85])
    ids = [rng.permutation(len(side[0])) for side in (made, real)]
    found = fidelity_gap(*made, *real, ids=ids[0], real_ids=ids[1], n_boot=50)
    orders = [rng.permutation(len(side[0])) for side in (made, real)]
    again = fidelity_gap(
        *(part[orders[0]] * (1 + 1e-15) if part.dtype.kind == "f" else part[orders[0]] for part in made),
        *(part[orders[1]] for part in real),
        ids=ids[0][orders[0]], real_ids=ids[1][orders[1]], n_boot=50,
    )  # fmt: skip
    assert again.p_value == found.p_value and again.frame.by_group.loc["g1", "low"] == pytest.approx(found.frame.by_group.loc["g1", "low"])


def test_images_of_one_subject_are_no_independent_evidence() -> None:
    """Every image ten times over, under one subject id: no more is known than of the ten times fewer."""
    rng = np.random.default_rng(3)
    made, real = scored(rng, [40, 40], [0.95, 0.7]), scored(rng, [40, 40], [0.9, 0.9])
    once = fidelity_gap(*made, *real, n_boot=20)
    tenfold = [np.repeat(part, 10) for part in (*made, *real)]
    subjects = np.repeat(np.arange(80), 10)
    many = fidelity_gap(*tenfold, subjects=subjects, real_subjects=subjects, n_boot=20)
    naive = fidelity_gap(*tenfold, n_boot=20)
    assert many.p_value == pytest.approx(once.p_value, abs=0.03) and naive.p_value < once.p_value / 5


def test_delongs_variance_by_hand_and_where_all_positives_lie_above() -> None:
    """Placements of 3 positives among 2 negatives: 1, 1, .5; of the negatives: 1, 2/3."""
    positive = np.array([False, True, False, True, True])
    counts, auc = [np.array([3]), np.array([2])], np.array([5 / 6])
    squares = [np.array([2 * (1 / 6) ** 2 + (1 / 3) ** 2]), np.array([2 * (1 / 6) ** 2])]
    monkey = auc_gaps._PRIOR
    try:
        auc_gaps._PRIOR = 0.0
        placed = auc_gaps._placed(np.arange(5.0), positive, np.arange(5))
        assert placed.auc == pytest.approx(5 / 6)
        assert placed.variance == pytest.approx(squares[0][0] / 2 / 3 + squares[1][0] / 1 / 2)
        assert auc_gaps._variance(auc, squares, counts)[0] == pytest.approx(placed.variance)
    finally:
        auc_gaps._PRIOR = monkey
    assert auc_gaps._placed(np.arange(6.0), np.arange(6) > 2, np.arange(6)).variance > 0.01  # an AUC of 1 of 3 and 3 images


def test_chosen_images_have_the_auc_and_variance_that_they_have_alone() -> None:
    rng = np.random.default_rng(4)
    score, positive = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.5
    order = np.argsort(score, kind="stable")
    chosen = rng.random((3, 30)) < 0.6
    auc, variance = auc_gaps._aucs(chosen, positive[order], np.unique(score[order], return_inverse=True)[1])
    for row in range(3):
        kept = order[chosen[row]]
        alone = auc_gaps._placed(score[kept], positive[kept], np.arange(len(kept)))
        assert (auc[row], variance[row]) == pytest.approx((alone.auc, alone.variance))


def paired(rng: np.random.Generator, sizes: list[int], drop: list[float]) -> tuple[Any, ...]:
    """Labels, two classifiers' correlated scores, groups; the second's signal is weaker by ``drop``."""
    labels, first, second, groups = [], [], [], []
    for place, (n, less) in enumerate(zip(sizes, drop, strict=True)):
        label = (np.arange(n) % 2).astype(int)
        shared = rng.normal(size=n)
        for scores, signal in ((first, 1.6), (second, 1.6 - less)):
            scores.append(0.8 * shared + 0.6 * rng.normal(size=n) + signal * label)
        labels.append(label)
        groups.append(np.repeat(place, n))
    return tuple(map(np.concatenate, (labels, first, second, groups)))


def test_utility_lost_alike_is_rarely_called_uneven_and_one_group_alone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auc_gaps, "DRAWS", 400)
    monkeypatch.setattr(auc_gaps, "SCREENING", 200)
    for drop, limit in (([0.0] * 3, 8), ([0.5] * 3, 8)):
        flagged = sum(utility_gap_p(*paired(np.random.default_rng(seed), [300, 50, 50], drop), seed=seed) < 0.05 for seed in range(50))
        assert flagged <= limit
    assert utility_gap_p(*paired(np.random.default_rng(0), [300, 150, 150], [0.0, 0.0, 1.4])) < 0.01
    labels, first, _, groups = paired(np.random.default_rng(1), [60, 60], [0.0, 0.0])
    assert utility_gap_p(labels, first, first, groups) == 1.0  # one classifier twice
    assert math.isnan(utility_gap_p(labels, first, first, np.zeros(120)))
