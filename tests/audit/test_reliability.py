"""ECE and Brier score against scikit-learn and by hand; ECE's bias, floor and interval by simulation."""

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from evenhand.audit.intervals import FeatureError
from evenhand.audit.reliability import brier_score, expected_calibration_error


def world(n: int, shift: float = 0.0, copies: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities off by ``shift`` from the truth, labels, subjects of ``copies`` images with one label."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.2, 0.7, n // copies)
    labels = (rng.random(len(truth)) < truth).astype(int)
    said = np.repeat(truth + shift, copies) + (rng.uniform(-1e-3, 1e-3, n) if copies > 1 else 0)
    return said, np.repeat(labels, copies), np.repeat(np.arange(n // copies), copies)


def test_binary_ece_by_hand() -> None:
    said, labels = [0.1, 0.2, 0.3, 0.6, 0.7, 0.9], [0, 0, 1, 1, 0, 1]
    # three bins of two: 0.1 0.2 with 0 of 2 (sum off by 0.3); 0.3 0.6 with 2 (1.1); 0.7 0.9 with 1 (0.6)
    mass = expected_calibration_error(said, labels, bins=3, n_boot=50)
    assert mass.overall.value == pytest.approx(2.0 / 6, abs=1e-15)
    # two halves: 0.1 0.2 0.3 with 1 of 3 (0.4); 0.6 0.7 0.9 with 2 (0.2)
    width = expected_calibration_error(said, labels, bins=2, binning="width", n_boot=50)
    assert width.overall.value == pytest.approx(0.6 / 6, abs=1e-15)
    assert not width.higher_is_better and width.overall.n == 6


def test_multiclass_ece_is_of_the_top_label_by_hand() -> None:
    probs = [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]
    labels = ["x", "z", "z", "y"]
    # one bin: confidences 0.6 0.7 0.8 0.5, right: yes no yes no -> |2 - 2.6| / 4
    found = expected_calibration_error(probs, labels, classes=["x", "y", "z"], bins=1, n_boot=50)
    assert found.overall.value == pytest.approx(0.15, abs=1e-15)
    # two bins: 0.5 0.6 (1 right, 1.1 said) and 0.7 0.8 (1 right, 1.5 said)
    found = expected_calibration_error(probs, [0, 2, 2, 1], bins=2, n_boot=50)
    assert found.overall.value == pytest.approx((0.1 + 0.5) / 4, abs=1e-15)


@pytest.mark.parametrize(("binning", "strategy"), [("mass", "quantile"), ("width", "uniform")])
def test_ece_is_that_of_scikit_learns_calibration_curve(binning: str, strategy: str) -> None:
    said, labels, _ = world(200)
    found = expected_calibration_error(said, labels, bins=5, binning=binning, n_boot=50).overall.value
    right, mean = calibration_curve(labels, said, n_bins=5, strategy=strategy)
    edges = np.quantile(said, np.linspace(0, 1, 6)) if strategy == "quantile" else np.linspace(0, 1, 6)
    sizes = np.histogram(said, edges)[0]
    assert found == pytest.approx((np.abs(right - mean) * sizes[sizes > 0]).sum() / 200, abs=1e-12)


def test_brier_is_scikit_learns_and_briers() -> None:
    said, labels, _ = world(200)
    groups = np.array(["a", "b"])[np.arange(200) % 2]
    frame = brier_score(said, labels, groups, n_boot=100)
    for group in ("a", "b"):
        expected = brier_score_loss(labels[groups == group], said[groups == group])
        assert frame.by_group.loc[group, "value"] == pytest.approx(expected, abs=1e-14)
    assert frame.overall.value == pytest.approx(brier_score_loss(labels, said), abs=1e-14)
    two_columns = brier_score(np.column_stack([1 - said, said]), labels, groups, n_boot=100)
    assert two_columns.overall == frame.overall
    rng = np.random.default_rng(0)
    probs, classes = rng.dirichlet(np.ones(3), 50), rng.integers(0, 3, 50)
    assert brier_score(probs, classes, n_boot=50).overall.value == pytest.approx(brier_score_loss(classes, probs), abs=1e-14)
    # 1950: (0.5 - 1)^2 + 0.3^2 + 0.2^2 = 0.38, and 0.1^2 + 0.2^2 + 0.1^2 = 0.06
    found = brier_score([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], ["x", "y"], classes=["x", "y", "z"], n_boot=50)
    assert found.overall.value == pytest.approx(0.22, abs=1e-15)


def test_floor_is_what_perfect_calibration_scores() -> None:
    """Without bias correction small groups look worse: .11 at n = 60, .05 at 300, though both are perfect. The floor says so."""
    for n, copies in ((60, 1), (300, 1), (600, 10)):
        found = []
        for seed in range(40):
            said, labels, subjects = world(n, copies=copies, seed=seed)
            frame = expected_calibration_error(said, labels, ["a"] * n, n_boot=20, subjects=subjects, seed=seed)
            found.append(frame.by_group.loc["a", ["value", "floor"]].astype(float))
        value, floor = np.mean(found, axis=0)
        assert floor == pytest.approx(value, rel=0.1) and value > 0.03


@pytest.mark.parametrize(("shift", "copies"), [(0.0, 1), (0.1, 1), (0.0, 8), (0.2, 8)])
def test_ece_interval_covers_the_true_error(shift: float, copies: int) -> None:
    n, repeats = 150 if copies == 1 else 480, 30
    found = []
    for seed in range(repeats):
        said, labels, subjects = world(n, shift, copies, seed)
        frame = expected_calibration_error(said, labels, ["a"] * n, n_boot=150, subjects=subjects, seed=seed)
        row = frame.by_group.loc["a"]
        assert row["low"] <= row["value"] <= row["high"]
        found.append((row["low"] - 1e-9 <= shift <= row["high"] + 1e-9, row["value"], row["corrected"]))
    covered, value, corrected = np.mean(found, axis=0)
    assert covered >= 26 / 30
    assert abs(corrected - shift) < abs(value - shift) or abs(corrected - shift) < 0.02


def test_brier_interval_is_by_subject() -> None:
    said, labels, _ = world(100)
    once = brier_score(said, labels, n_boot=400).overall
    copied = brier_score(np.repeat(said, 8), np.repeat(labels, 8), subjects=np.repeat(np.arange(100), 8), n_boot=400).overall
    alone = brier_score(np.repeat(said, 8), np.repeat(labels, 8), n_boot=400).overall
    assert copied.value == pytest.approx(once.value)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.15)
    assert alone.high - alone.low < 0.5 * (once.high - once.low)
    loss = (said - labels) ** 2
    assert once.high - once.low == pytest.approx(2 * 1.984 * loss.std(ddof=1) / 10, rel=0.12)  # t, 99 degrees of freedom


def test_no_error_in_few_images_is_not_certainty() -> None:
    bound = 1 - 0.025 ** (1 / 4)
    for measure in (brier_score, expected_calibration_error):
        found = measure([0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1], n_boot=50).overall
        assert (found.value, found.low) == (0, 0) and found.high == pytest.approx(bound)
        alone = measure([0.3, 0.4], [0, 1], subjects=["s", "s"], n_boot=50).overall
        assert np.isfinite(alone.value) and np.isnan(alone.low) and np.isnan(alone.high)
    balanced = expected_calibration_error([0.5] * 40, [0, 1] * 20, n_boot=200).overall
    assert (balanced.value, balanced.low) == (0, 0) and 0.1 < balanced.high < 0.25  # 1.96 * 0.5 / sqrt(40) = 0.155


def test_absent_and_small_groups_are_undefined_with_a_reason() -> None:
    labels = [0, 1, 0, 1, 1, -1, np.nan, 0]
    groups = pd.Categorical(["a"] * 4 + ["b", "b", "c", None], categories=["c", "b", "a", "nobody"])
    for measure in (brier_score, expected_calibration_error):
        frame = measure([0.5, 0.6] * 4, labels, groups, n_boot=50)
        assert frame.by_group.index.tolist() == ["c", "b", "a", "nobody"] and frame.by_group["n"].tolist() == [0, 1, 4, 0]
        insufficient = "insufficient: 1 images, at least 2 wanted"
        assert frame.by_group["reason"].tolist() == ["no labelled images", insufficient, "", "no labelled images"]
        assert frame.by_group["value"].isna().tolist() == [True, True, False, True]
        assert frame.overall.n == 6 and np.isnan(frame.gap) and frame.worst == "a"
        assert measure([0.5], [-1], ["a"]).overall.n == 0 and np.isnan(measure([0.5], [-1], ["a"]).overall.value)


def test_one_label_value_alone_is_by_its_truth() -> None:
    assert brier_score([0.9, 0.9], [1, 1], n_boot=50).overall.value == pytest.approx(0.01)
    assert brier_score([0.9, 0.9], [0, 0], n_boot=50).overall.value == pytest.approx(0.81)
    assert brier_score([0.9, 0.9], ["no", "no"], classes=["no", "yes"], n_boot=50).overall.value == pytest.approx(0.81)


def test_row_order_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    probs, labels = np.round(rng.dirichlet(np.ones(3), 120), 2), rng.integers(0, 3, 120)  # rounded: with ties
    probs[:, 2] = 1 - probs[:, 0] - probs[:, 1]
    groups, subjects, order = rng.choice(["a", "b"], 120), np.arange(120) // 2, rng.permutation(120)
    for measure in (brier_score, expected_calibration_error):
        first = measure(probs, labels, groups, subjects=subjects, ids=np.arange(120), n_boot=100)
        again = measure(probs[order], labels[order], groups[order], subjects=subjects[order], ids=order, n_boot=100)
        np.testing.assert_allclose(first.by_group.drop(columns="reason"), again.by_group.drop(columns="reason"), atol=1e-10)
        assert first.overall.high == pytest.approx(again.overall.high, abs=1e-10)


@pytest.mark.parametrize(
    ("probs", "labels", "more", "says"),
    [
        ([0.1, np.nan], [0, 1], {}, "row 1 holds nan"),
        ([0.1, 1.2], [0, 1], {}, r"row 1 holds 1\.2"),
        ([[0.2, 0.3], [0.5, 0.5]], [0, 1], {}, r"row 0 sums to 0\.5"),
        ([0.1, 0.2, 0.3], [0, 1, 2], {}, "3 values"),
        ([[0.5, 0.5]], ["cat"], {"classes": ["dog", "cats"]}, "did you mean 'cats'"),
        ([[0.5, 0.5]], [0], {"classes": ["dog"]}, "1 classes for 2 columns"),
        ([0.1], [0, 1], {}, "do not fit"),
        ([[0.1], [0.2]], [0, 1], {}, "do not fit"),
        ("ab", [0, 1], {}, "not numbers"),
        ([0.1, 0.2], [0, 1], {"groups": ["a"]}, "do not fit"),
    ],
)
def test_bad_probabilities_are_one_line_errors(probs: list, labels: list, more: dict, says: str) -> None:
    for measure in (brier_score, expected_calibration_error):
        with pytest.raises(FeatureError, match=says):
            measure(probs, labels, **more)


def test_bad_bins_are_one_line_errors() -> None:
    with pytest.raises(FeatureError, match="did you mean 'mass'"):
        expected_calibration_error([0.1, 0.2], [0, 1], binning="masss")
    with pytest.raises(FeatureError, match="0 bins"):
        expected_calibration_error([0.1, 0.2], [0, 1], bins=0)
