"""Two classifiers on the same images: numbers worked by hand, fairlearn as oracle, and intervals that move with what is in them."""

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from evenhand.audit.frame import Estimate
from evenhand.audit.intervals import FeatureError
from evenhand.audit.paired import group_aucs, group_rates, paired_auc, paired_rates
from evenhand.audit.semantics import odds_difference, parity_difference

# Six images a group. Real-trained: a ranks all 9 pairs right, b 6 of 9. Synthetic-trained: a 7 of 9, b 3 of 9.
LABELS = [0, 0, 0, 1, 1, 1] * 2
GROUPS = ["a"] * 6 + ["b"] * 6
REAL = [1, 2, 3, 7, 8, 9, 1, 4, 6, 3, 5, 7]
SYNTHETIC = [1, 2, 6, 4, 5, 9, 3, 5, 7, 1, 4, 6]


def world(n: int = 300, seed: int = 0) -> tuple[np.ndarray, ...]:
    """True classes, good and poor guesses, and groups; every combination occurs."""
    rng = np.random.default_rng(seed)
    truth, groups = rng.integers(0, 3, n), rng.integers(0, 3, n)
    good, poor = (np.where(rng.random(n) < right, truth, rng.integers(0, 3, n)) for right in (0.7, 0.3))
    names = np.array(["x", "y", "z"])
    return names[truth], names[good], names[poor], np.array(["a", "b", "c"])[groups]


def values(found: object) -> tuple[float, float, float]:
    return tuple(getattr(found, side).value for side in ("real_trained", "synthetic_trained", "difference"))  # type: ignore[return-value]


def test_auc_gap_and_equity_scaled_auc_by_hand() -> None:
    found = paired_auc(LABELS, REAL, SYNTHETIC, GROUPS, n_boot=100)
    assert values(found.by_group["a"]) == pytest.approx((1, 7 / 9, -2 / 9))
    assert values(found.by_group["b"]) == pytest.approx((6 / 9, 3 / 9, -3 / 9))
    assert values(found.gap) == pytest.approx((3 / 9, 4 / 9, 1 / 9))
    assert found.worst == ("b", "b")
    # Overall, pairs across groups count too. Real: a 1, 2, 3 and b 1, 4, 6 against 7, 8, 9 and 3, 5, 7. Positives 7, 8, 9, 7 beat all
    # 6 negatives; 3 beats 1, 2, 1 and ties 3; 5 beats 1, 2, 3, 1, 4: (24 + 3.5 + 5) / 36.
    real = (24 + 3.5 + 5) / 36
    # Synthetic: negatives 1, 2, 6, 3, 5, 7; positives 9 beats 6; 4 beats 3; 5 beats 3.5; 1 ties one; 4 beats 3; 6 beats 4.5.
    synthetic = (3 + 3.5 + 6 + 0.5 + 3 + 4.5) / 36
    assert values(found.overall) == pytest.approx((real, synthetic, synthetic - real))
    scaled = [real / (1 + abs(real - 1) + abs(real - 6 / 9)), synthetic / (1 + abs(synthetic - 7 / 9) + abs(synthetic - 3 / 9))]
    assert values(found.equity_scaled) == pytest.approx((scaled[0], scaled[1], scaled[1] - scaled[0]))


def test_parity_and_odds_by_hand() -> None:
    # Group a: 4 ill, 4 well; b: 2 ill, 2 well. Real-trained is right throughout: parity .5 - .5, odds 0.
    labels = ["ill"] * 4 + ["well"] * 4 + ["ill"] * 2 + ["well"] * 2
    groups = ["a"] * 8 + ["b"] * 4
    # Synthetic-trained: of a finds 3 of 4 ill and calls 1 of 4 well ill (4 of 8 called ill); of b finds 1 of 2 and calls none ill (1 of 4).
    guesses = ["ill"] * 3 + ["well"] + ["ill"] + ["well"] * 3 + ["ill", "well", "well", "well"]
    found = paired_rates(labels, labels, guesses, groups, n_boot=100)
    assert values(found.parity) == (0, 0.25, 0.25) and values(found.odds) == (0, 0.25, 0.25)


def test_rates_agree_with_fairlearn_one_class_against_the_rest() -> None:
    labels, good, poor, groups = world()
    found = paired_rates(labels, good, poor, groups, n_boot=100)
    for side, guess in (("real_trained", good), ("synthetic_trained", poor)):
        oracle = [
            max(difference(labels == name, guess == name, sensitive_features=groups) for name in "xyz")
            for difference in (demographic_parity_difference, equalized_odds_difference)
        ]
        assert [getattr(measure, side).value for measure in (found.parity, found.odds)] == pytest.approx(oracle, abs=1e-12)


def test_what_is_drawn_is_what_is_reported() -> None:
    labels, good, _, groups = world()
    codes = [np.unique(column, return_inverse=True)[1] for column in (labels, good, groups)]
    rates = group_rates(*codes, 3)(np.ones((1, 300)))[0]  # (G, 3 shown + 3 true + 3 false positives)
    assert np.ptp(rates[:, :3], axis=0).max() == pytest.approx(parity_difference(labels, good, groups), abs=1e-12)
    assert np.ptp(rates[:, 3:], axis=0).max() == pytest.approx(odds_difference(labels, good, groups), abs=1e-12)
    twice = np.r_[np.full(150, 2.0), np.zeros(150)]  # as many times as the image is drawn
    half = np.repeat(np.arange(150), 2)
    np.testing.assert_allclose(group_rates(*codes, 3)(twice[None])[0], group_rates(*(c[half] for c in codes), 3)(np.ones((1, 300)))[0])
    aucs = group_aucs(np.array(REAL), np.array(LABELS) == 1, np.repeat([0, 1], 6), np.arange(2))(np.ones((1, 12)))
    assert aucs[0, 1:, 0] == pytest.approx([1, 6 / 9])


def test_shuffled_predictions_change_parity_and_odds() -> None:
    labels, good, _, groups = world()
    skewed = np.where(groups == "a", "x", good)  # group a is called x throughout
    shuffled = np.random.default_rng(1).permutation(skewed)
    found = paired_rates(labels, skewed, shuffled, groups, n_boot=200)
    assert found.parity.real_trained.value > 0.5 and found.parity.synthetic_trained.value < 0.25
    assert found.odds.real_trained.value > 0.9 and found.odds.synthetic_trained.value < 0.5
    assert found.parity.difference.high < 0 and found.odds.difference.high < 0


def test_an_absent_group_leaves_what_sums_over_groups_undefined_and_the_others_measured() -> None:
    groups = pd.Series(pd.Categorical(GROUPS, categories=["a", "b", "c"]))
    found = paired_auc(LABELS, REAL, SYNTHETIC, groups, n_boot=100)
    assert found.by_group["c"].reason == "no labelled images" and np.isnan(values(found.by_group["c"])).all()
    assert values(found.gap) == pytest.approx((3 / 9, 4 / 9, 1 / 9))  # over the groups that have one
    assert np.isnan(values(found.equity_scaled)).all()
    assert found.equity_scaled.reason == "not every group has an AUC (c: no labelled images)"
    rates = paired_rates(LABELS, LABELS, LABELS, groups, n_boot=100)
    assert rates.parity.reason == rates.odds.reason == "c: no labelled images"
    assert np.isnan(values(rates.parity)).all() and np.isnan(values(rates.odds)).all()


def test_a_group_without_positives_has_parity_but_no_odds() -> None:
    labels = [0, 0, 0, 0, 0, 0, *LABELS[6:]]
    found = paired_auc(labels, REAL, SYNTHETIC, GROUPS, n_boot=100)
    assert found.by_group["a"].reason == "one class only (all 6 negative)" and found.worst == ("b", "b")
    assert "needs two groups" in found.gap.reason and "needs two groups" in found.equity_scaled.reason
    rates = paired_rates(labels, [0, 1] * 6, [1, 1, 0] * 4, GROUPS, n_boot=100)
    assert values(rates.parity) == (0, 0, 0) and rates.parity.reason == ""
    assert np.isnan(values(rates.odds)).all() and rates.odds.reason == "a has no image of 1"


def test_few_images_one_group_and_one_class_are_reasons() -> None:
    assert paired_rates(LABELS, LABELS, LABELS, GROUPS, n_boot=50, min_n=7).parity.reason == "a: insufficient: 6 images, at least 7 wanted"
    assert paired_rates(LABELS, LABELS, LABELS, ["a"] * 12, n_boot=50).odds.reason == "there are fewer than two groups"
    alike = paired_rates([1] * 12, LABELS, LABELS, GROUPS, n_boot=50)
    assert alike.odds.reason == "one class only (1)" and alike.parity.real_trained.value == 0
    assert paired_auc([1] * 12, REAL, SYNTHETIC, GROUPS, n_boot=50).overall.reason == "one class only or no labelled images"


def test_intervals_hold_the_value_and_are_by_subject() -> None:
    labels, good, poor, groups = world(120)
    positive, rng = (labels == "x").astype(int), np.random.default_rng(3)
    scores = [positive * weight + rng.normal(size=120) for weight in (2.0, 1.0)]

    def intervals(times: int, subjects: np.ndarray | None) -> list[Estimate]:
        column = [np.repeat(part, times) for part in (labels, good, poor, groups, positive, *scores)]
        rates = paired_rates(*column[:4], subjects=subjects, n_boot=300)
        aucs = paired_auc(column[4], column[5], column[6], column[3], subjects=subjects, n_boot=300)
        measures = (rates.parity, rates.odds, aucs.gap, aucs.equity_scaled)
        return [getattr(measure, side) for measure in measures for side in ("real_trained", "difference")]

    once, by_subject, by_image = intervals(1, None), intervals(6, np.repeat(np.arange(120), 6)), intervals(6, None)
    for first, same, narrow in zip(once, by_subject, by_image, strict=True):
        assert first.low < first.value < first.high or first.low == 0 or first.high == 1
        assert same.high - same.low == pytest.approx(first.high - first.low, rel=0.2)
        assert narrow.high - narrow.low < 0.75 * (first.high - first.low)


def test_groups_that_are_alike_may_have_no_gap() -> None:
    rng = np.random.default_rng(5)
    held = []
    for seed in range(10):
        labels, groups = rng.integers(0, 2, 120), np.repeat(["a", "b", "c"], 40)
        guess = (1.2 * labels + rng.normal(size=120) > 0.6).astype(int)
        found = paired_rates(labels, guess, guess, groups, n_boot=100, seed=seed)
        held.append((found.parity.real_trained.low == 0, found.odds.real_trained.low == 0))
    assert np.sum(held, axis=0).min() >= 7  # 9.5 expected; percentile intervals never hold 0


def test_row_order_and_the_names_of_subjects_change_nothing() -> None:
    labels, good, poor, groups = world(90)
    subjects, order = np.arange(90) // 3, np.random.default_rng(2).permutation(90)
    first = paired_rates(labels, good, poor, groups, subjects=subjects, ids=np.arange(90), n_boot=60)
    again = paired_rates(*(part[order] for part in (labels, good, poor, groups)), subjects=500 - subjects[order], ids=order, n_boot=60)
    for measure in ("parity", "odds"):
        for side in ("real_trained", "synthetic_trained", "difference"):
            a, b = (getattr(getattr(found, measure), side) for found in (first, again))
            assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(FeatureError, match="scores hold NaN"):
        paired_auc([0, 1], [0.1, 0.2], [0.1, np.nan], ["a", "b"])
    with pytest.raises(FeatureError, match=r"lengths \[2, 2, 1, 2\]"):
        paired_rates([0, 1], [0], [0, 1], ["a", "b"])
    with pytest.raises(FeatureError, match="a prediction is missing"):
        paired_rates([0, 1], [0, None], [0, 1], ["a", "b"])
