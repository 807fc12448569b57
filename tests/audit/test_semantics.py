"""AUC, parity and odds against scikit-learn, fairlearn and hand-worked literals."""

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from sklearn.metrics import roc_auc_score

from evenhand.audit.intervals import FeatureError
from evenhand.audit.semantics import group_auc, odds_difference, parity_difference


def world(n: int = 240) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    return np.round(labels + rng.normal(size=n), 1), labels, rng.choice(["a", "b"], n)  # rounded: with ties


def test_auc_is_scikit_learns_overall_and_by_group() -> None:
    scores, labels, groups = world()
    frame = group_auc(scores, labels, groups, n_boot=200)
    assert frame.overall.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    for group in ("a", "b"):
        rows = groups == group
        row = frame.by_group.loc[group]
        assert row["value"] == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)
        assert row["low"] < row["value"] < row["high"] and row["n"] == rows.sum()
    values = frame.by_group["value"]
    assert frame.gap == pytest.approx(abs(values["a"] - values["b"])) and frame.worst == values.idxmin()


def test_auc_interval_is_the_bootstrap_of_subjects() -> None:
    """Ten copies of every image tell no more than one, where the subject says so."""
    scores, labels, groups = world(80)
    once = group_auc(scores, labels, groups, n_boot=400).overall
    copies = [np.repeat(part, 10) for part in (scores, labels, groups)]
    by_subject = group_auc(*copies, n_boot=400, subjects=np.repeat(np.arange(80), 10)).overall
    by_image = group_auc(*copies, n_boot=400).overall
    assert by_subject.value == pytest.approx(once.value)
    assert (by_subject.high - by_subject.low) == pytest.approx(once.high - once.low, rel=0.15)
    assert (by_image.high - by_image.low) < 0.5 * (once.high - once.low)


def test_auc_interval_is_delongs_width_on_a_plain_sample() -> None:
    scores, labels, groups = world(240)
    found = group_auc(scores, labels, groups).overall
    up, down = scores[labels == 1], scores[labels == 0]
    wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
    error = np.sqrt(wins.mean(1).var(ddof=1) / len(up) + wins.mean(0).var(ddof=1) / len(down))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_one_class_absent_and_small_groups_are_undefined_with_a_reason() -> None:
    scores = np.linspace(0, 1, 14)
    labels = [1, 1, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, -1, np.nan]
    groups = ["one"] * 3 + ["two"] * 4 + ["none"] * 3 + [None, "unknown", "gone", -1]
    frame = group_auc(scores, labels, groups, n_boot=50)
    assert frame.by_group.index.tolist() == ["gone", "none", "one", "two"]
    assert frame.by_group.loc["one", "reason"] == "one class only (all 3 positive)"
    assert frame.by_group.loc["none", "reason"] == "one class only (all 3 negative)"
    assert frame.by_group.loc["gone", "reason"] == "no labelled images" and frame.by_group.loc["gone", "n"] == 0
    assert frame.by_group["value"].isna().tolist() == [True, True, True, False]
    assert frame.overall.n == 12 and np.isnan(frame.gap) and frame.worst == "two"
    assert group_auc(scores, labels, groups, n_boot=50, min_n=5).by_group.loc["two", "reason"].startswith("insufficient: 4 images")
    assert np.isnan(group_auc(scores, [0] * 14, groups, n_boot=50).overall.value)


def test_perfect_auc_of_few_images_is_not_certain() -> None:
    found = group_auc([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1], ["a"] * 6).overall
    assert found.value == 1 and found.high == 1 and found.low == pytest.approx(0.025 ** (1 / 3))
    assert group_auc([0.9, 0.1], [0, 1], ["a"] * 2).overall.low == 0


def test_auc_ignores_row_order() -> None:
    scores, labels, groups = world()
    subjects = np.arange(len(scores)) // 3
    order = np.random.default_rng(5).permutation(len(scores))
    for units in (np.arange(len(scores)), subjects):
        first = group_auc(scores, labels, groups, n_boot=100, subjects=units, ids=np.arange(len(scores)))
        again = group_auc(scores[order], labels[order], groups[order], n_boot=100, subjects=units[order], ids=order)
        columns = ["value", "low", "high"]
        np.testing.assert_allclose(first.by_group[columns], again.by_group[columns], atol=1e-10)
        assert first.overall.low == pytest.approx(again.overall.low, abs=1e-10)


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1, 0.2, 0.3], [0, 1, 2], "3 values"),
        ([0.1], [0, 1], "differ in shape"),
        (["x", "y"], [0, 1], "numbers"),
    ],
)
def test_bad_scores_are_one_line_errors(scores: list, labels: list, says: str) -> None:
    with pytest.raises(FeatureError, match=says):
        group_auc(scores, labels, ["a"] * len(labels))


def test_binary_parity_and_odds_are_fairlearns() -> None:
    scores, labels, groups = world()
    guesses = (scores > 0.4).astype(int)
    assert parity_difference(labels, guesses, groups) == pytest.approx(
        demographic_parity_difference(labels, guesses, sensitive_features=groups)
    )
    assert odds_difference(labels, guesses, groups) == pytest.approx(equalized_odds_difference(labels, guesses, sensitive_features=groups))


def test_multiclass_parity_and_odds_by_hand() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    guesses = [0, 1, 1, 0, 0, 2]
    groups = ["a"] * 3 + ["b"] * 3
    # predicted 0 / 1 / 2: a 1/3, 2/3, 0; b 2/3, 0, 1/3. The largest difference is that of class 1
    assert parity_difference(labels, guesses, groups) == pytest.approx(2 / 3)
    # true positive rate of class 1: a 1, b 0
    assert odds_difference(labels, guesses, groups) == pytest.approx(1.0)


def test_shuffling_predictions_changes_the_multiclass_parity_difference() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b"], 150)
    labels = np.where(groups == "a", rng.choice(3, 300, p=[0.7, 0.2, 0.1]), rng.choice(3, 300, p=[0.1, 0.2, 0.7]))
    told = parity_difference(labels, labels, groups)
    shuffled = parity_difference(labels, rng.permutation(labels), groups)
    assert told > 0.5 and shuffled < 0.2


def test_undefined_rates_are_nan_never_0() -> None:
    assert np.isnan(parity_difference([0, 1], [0, 1], ["a", "a"])) and np.isnan(odds_difference([0, 1], [0, 1], ["a", "a"]))
    assert np.isnan(odds_difference([0, 1, 0, 0], [0, 1, 0, 1], ["a", "a", "b", "b"]))  # b has no positives
    assert np.isnan(odds_difference([1, 1, 1, 1], [0, 1, 0, 1], ["a", "a", "b", "b"]))  # nobody is negative
    assert np.isnan(parity_difference([0, 1, 0], [0, 1, np.nan], ["a", "a", "b"]))  # b has no prediction
    guesses, groups = [0, 1, 1, 1, 0], ["a", "a", "b", "b", -1]
    assert parity_difference([0, 1, 0, 1, 0], guesses, groups) == pytest.approx(0.5)  # -1 is no third group
