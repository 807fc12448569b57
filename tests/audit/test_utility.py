"""Train on generated, test on real, by group: AUCs against scikit-learn, the paired difference against DeLong's."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evenhand.audit.intervals import FeatureError
from evenhand.audit.semantics import group_auc
from evenhand.audit.utility import utility_difference


def world(n: int = 400, loss: float = 0.8, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Labels, scores of two classifiers that agree much, groups: in group b the second one sees less by ``loss``."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(0, 2, n), rng.choice(["a", "b"], n)
    shared = rng.normal(size=n)
    real = 1.5 * labels + shared + 0.5 * rng.normal(size=n)
    synthetic = (1.5 - loss * (groups == "b")) * labels + shared + 0.5 * rng.normal(size=n)
    return labels, real, synthetic, groups


def delong(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Difference of two AUCs on the same images and its standard error (DeLong 1988)."""
    parts = []
    for scores in (before, after):
        up, down = scores[labels == 1], scores[labels == 0]
        wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
        parts.append((wins.mean(1), wins.mean(0)))
    up, down = (parts[1][side] - parts[0][side] for side in (0, 1))
    return float(up.mean()), float(np.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down)))


def test_difference_by_group_is_that_of_aucs_with_delongs_width() -> None:
    labels, real, synthetic, groups = world()
    frame = utility_difference(labels, real, synthetic, groups, n_boot=800)
    for group, row in frame.by_group.iterrows():
        rows = groups == group
        assert row["real_trained"] == pytest.approx(roc_auc_score(labels[rows], real[rows]), abs=1e-12)
        assert row["synthetic_trained"] == pytest.approx(roc_auc_score(labels[rows], synthetic[rows]), abs=1e-12)
        assert row["value"] == pytest.approx(row["synthetic_trained"] - row["real_trained"], abs=1e-12)
        difference, error = delong(labels[rows], real[rows], synthetic[rows])
        assert row["value"] == pytest.approx(difference, abs=1e-12)
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.12)
    assert frame.overall.value == pytest.approx(delong(labels, real, synthetic)[0], abs=1e-12) and frame.overall.n == 400
    assert frame.worst == "b" and frame.gap > 0.05
    assert frame.by_group.loc["b", "p_value"] < 0.01 and frame.by_group.loc["b", "high"] < 0 < frame.by_group.loc["a", "high"]


def test_both_aucs_stand_beside_the_difference_whose_interval_is_narrower_than_that_of_two_samples() -> None:
    labels, real, synthetic, groups = world(loss=0)
    found = utility_difference(labels, real, synthetic, groups, n_boot=400)
    alone = [group_auc(scores, labels, groups, n_boot=400) for scores in (real, synthetic)]
    for name, side in zip(("real_trained", "synthetic_trained"), alone, strict=True):
        np.testing.assert_allclose(side.by_group["value"], found.by_group[name], atol=1e-12)
    widths = [side.overall.high - side.overall.low for side in (*alone, found)]
    assert widths[2] < 0.75 * np.hypot(*widths[:2])


def test_interval_is_by_subject() -> None:
    labels, real, synthetic, groups = world(100)
    once = utility_difference(labels, real, synthetic, groups, n_boot=400).overall
    copies = [np.repeat(part, 8) for part in (labels, real, synthetic, groups)]
    by_subject = utility_difference(*copies, subjects=np.repeat(np.arange(100), 8), n_boot=400).overall
    by_image = utility_difference(*copies, n_boot=400).overall
    assert by_subject.high - by_subject.low == pytest.approx(once.high - once.low, rel=0.15)
    assert by_image.high - by_image.low < 0.5 * (once.high - once.low)


def test_absent_and_one_class_groups_are_undefined_with_a_reason() -> None:
    labels = [0, 1, 0, 1, 1, 1, -1, 0, 1, 0]
    groups = ["a"] * 4 + ["all"] * 2 + ["none", None, "unknown", -1]
    frame = utility_difference(labels, range(10), range(10), groups, n_boot=50)
    assert frame.by_group.index.tolist() == ["a", "all", "none"]
    assert frame.by_group["reason"].tolist() == ["", "one class only (all 2 positive)", "no labelled images"]
    undefined = frame.by_group.loc[["all", "none"], ["value", "low", "high", "real_trained", "synthetic_trained", "p_value"]]
    assert undefined.isna().to_numpy().all() and frame.by_group["n"].tolist() == [4, 2, 0] and frame.overall.n == 9
    assert np.isnan(frame.gap) and frame.worst == "a"
    few = utility_difference(labels, range(10), range(10), groups, n_boot=50, min_n=5)
    assert few.by_group.loc["a", "reason"].startswith("insufficient: 4 images")
    silent = utility_difference([0, 1], [1, 2], [1, 2], [None, None], n_boot=50)
    assert silent.by_group.empty and silent.overall.value == 0


def test_two_perfect_classifiers_of_few_images_are_not_known_to_be_equal() -> None:
    labels = np.repeat([0, 1], 5)
    apart = utility_difference(labels, np.arange(10), [1, 0, 2, 3, 4, 5, 6, 7, 8, 9], ["a"] * 10, n_boot=100).by_group.loc["a"]
    bound = 1 - 0.025 ** (1 / 5)
    assert apart["value"] == 0 and apart["p_value"] == 1 and [apart["low"], apart["high"]] == pytest.approx([-bound, bound])
    same = utility_difference(labels, np.arange(10), np.arange(10) * 2.0, ["a"] * 10, n_boot=100).overall
    assert (same.low, same.high) == (0, 0)  # one ranking of these images: the same classifier, as far as an AUC can see


def test_row_order_changes_nothing() -> None:
    parts = world(150)
    subjects = np.arange(150) // 3
    order = np.random.default_rng(5).permutation(150)
    first = utility_difference(*parts, subjects=subjects, ids=np.arange(150), n_boot=100)
    again = utility_difference(*(part[order] for part in parts), subjects=subjects[order], ids=order, n_boot=100)
    np.testing.assert_allclose(first.by_group.drop(columns="reason"), again.by_group.drop(columns="reason"), atol=1e-10)
    assert first.overall.low == pytest.approx(again.overall.low, abs=1e-10)


def test_bad_scores_name_the_classifier() -> None:
    with pytest.raises(FeatureError, match="synthetic-trained classifier: scores hold NaN"):
        utility_difference([0, 1], [0.1, 0.2], [0.1, np.nan], ["a", "a"])
    with pytest.raises(FeatureError, match=r"real-trained classifier: scores \(1,\)"):
        utility_difference([0, 1], [0.1], [0.1, 0.2], ["a", "a"])
