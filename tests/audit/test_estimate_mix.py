"""Shares corrected for a classifier's errors, refused where they cannot be known, and anchored by labels of a hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from evenhand.audit.identifiability import one_against_rest_auc
from evenhand.audit.intervals import FeatureError
from evenhand.audit.mixing import log_probabilities, recalibrate
from evenhand.audit.representation import estimate_mix, prediction_powered_mix

Arrays = tuple[np.ndarray, np.ndarray]


def two_groups(rng: np.random.Generator, n: int, share: float, accuracy: float = 0.8, moved: float = 0.0) -> Arrays:
    """Labels (n,) and calibrated-at-one-half logits (n,) of a classifier with this accuracy; ``moved`` is added to the logits."""
    apart = 2 * norm.ppf(accuracy)
    labels = (rng.random(n) < share).astype(int)
    return labels, apart * (rng.normal(size=n) + apart * (labels - 0.5)) + moved


def three_groups(rng: np.random.Generator, n: int, shares: list[float]) -> Arrays:
    labels = rng.choice(3, n, p=shares)
    points = rng.normal(size=(n, 3))
    points[np.arange(n), labels] += 1.8
    return labels, _softmax(1.8 * points)


def _softmax(values: np.ndarray) -> np.ndarray:
    exponent = np.exp(values - values.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_a_mix_is_recovered_though_the_classifier_errs(share: float) -> None:
    errors, covered, refused, repeats = [], 0, 0, 10
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        (labels, calibration), (_, logits) = two_groups(rng, 2000, 0.5, 0.78), two_groups(rng, 500, share, 0.78)
        found = estimate_mix(_sigmoid(logits), _sigmoid(calibration), labels, n_boot=100, seed=seed)
        errors.append(found.values[1] - share)
        covered += found.low[1] <= share <= found.high[1]
        refused += not found.identifiable
    assert abs(np.mean(errors)) <= 0.03 and np.sqrt(np.mean(np.square(errors))) <= 0.06
    assert covered >= 8 and refused <= 2


def test_counting_is_biased_and_every_correction_is_not() -> None:
    rng = np.random.default_rng(3)
    (labels, calibration), (_, logits) = two_groups(rng, 8000, 0.5), two_groups(rng, 8000, 0.2)
    shares = {
        method: estimate_mix(_sigmoid(logits), _sigmoid(calibration), labels, method=method, n_boot=0).values[1]
        for method in ("raw", "acc", "pacc", "emq")
    }
    assert shares["raw"] == pytest.approx(0.2 * 0.8 + 0.8 * 0.2, abs=0.02)
    assert all(shares[method] == pytest.approx(0.2, abs=0.03) for method in ("acc", "pacc", "emq"))


def test_estimators_agree_with_quapy() -> None:
    from quapy.method.aggregative import ACC, EMQ

    rng = np.random.default_rng(4)
    (labels, calibration), (_, probs) = three_groups(rng, 3000, [1 / 3] * 3), three_groups(rng, 800, [0.7, 0.2, 0.1])
    prior = np.bincount(labels) / len(labels)
    theirs, _ = EMQ.EM(prior, probs)
    assert estimate_mix(probs, calibration, labels, n_boot=0).values == pytest.approx(theirs, abs=0.02)  # ours recalibrates first
    matrix = np.stack([np.bincount(calibration[labels == j].argmax(1), minlength=3) / (labels == j).sum() for j in range(3)], axis=1)
    observed = np.bincount(probs.argmax(1), minlength=3) / len(probs)
    acc = estimate_mix(probs, calibration, labels, method="acc", n_boot=0)
    assert acc.values == pytest.approx(ACC.solve_adjustment(matrix, observed, method="inversion", solver="minimize"), abs=1e-3)
    assert acc.condition_number == pytest.approx(np.linalg.cond(_mean_probabilities(calibration, labels)))


def _mean_probabilities(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([probs[labels == j].mean(axis=0) for j in range(probs.shape[1])], axis=1)


def test_acc_by_hand() -> None:
    # the classifier is right on 8 of 10 of either group; 5 of 10 images look positive: (0.5 - 0.2) / (0.8 - 0.2) = 0.5
    votes = np.array([0.9] * 8 + [0.1] * 2)
    calibration = np.concatenate([1 - votes, votes])
    labels = np.repeat([0, 1], 10)
    found = estimate_mix(np.array([0.9] * 32 + [0.1] * 68), calibration, labels, method="acc", n_boot=0)
    assert found.values[1] == pytest.approx((0.32 - 0.2) / 0.6) and found.raw is not None and found.raw[1] == pytest.approx(0.32)
    assert math.isnan(found.low[0]) and math.isnan(found.high[1])  # no draws, no interval


def test_three_groups_within_eight_points() -> None:
    apart = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        (labels, calibration), (_, probs) = three_groups(rng, 2000, [1 / 3] * 3), three_groups(rng, 500, [0.6, 0.3, 0.1])
        found = estimate_mix(probs, calibration, labels, n_boot=0)
        apart.append(0.5 * np.abs(found.values - [0.6, 0.3, 0.1]).sum())
    assert np.mean(apart) <= 0.08


@pytest.mark.parametrize("moved", [1.0, -1.0])
def test_scores_moved_by_one_logit_are_refused(moved: float) -> None:
    refused = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        (labels, calibration), (_, logits) = two_groups(rng, 2000, 0.5), two_groups(rng, 500, 0.5, moved=moved)
        found = estimate_mix(_sigmoid(logits), _sigmoid(calibration), labels, n_boot=0, seed=seed)
        refused += not found.identifiable
        assert found.identifiable or "scores fit no mixture" in found.reason
    assert refused >= 9


@pytest.mark.parametrize(("apart", "off", "known"), [(14.0, 6.3, False), (14.0, 0.7, True), (2.0, 0.95, False), (0.0, 0.6, False)])
def test_a_misfit_counts_by_the_distance_between_classes_along_its_own_feature(apart: float, off: float, known: bool) -> None:
    """However far apart the classes' scores lie: 28 standard deviations here, of which a quarter would be 7."""
    rng = np.random.default_rng(0)
    labels, kinds = rng.integers(2, size=900), (rng.random(500) < 0.3).astype(int)
    probs = [_sigmoid(20.0 * (kind - 0.5) + rng.normal(scale=0.7, size=len(kind))) for kind in (labels, kinds)]
    there, here = (rng.normal(size=(len(kind), 8)) for kind in (labels, kinds))
    for features, kind in ((there, labels), (here, kinds)):
        features[:, 3] += apart * kind
    here[:, 3] += off
    found = estimate_mix(probs[1], probs[0], labels, features=here, calibration_features=there, n_boot=0)
    assert found.identifiable is known and (known or found.reason.endswith("sd off"))


def test_features_that_moved_are_refused_and_a_new_mix_is_not() -> None:
    rng = np.random.default_rng(5)
    (labels, calibration), (kinds, logits) = two_groups(rng, 2000, 0.4), two_groups(rng, 500, 0.85)
    there, here = (rng.normal(size=(len(kind), 24)) + 0.8 * np.outer(kind, np.arange(24) < 6) for kind in (labels, kinds))

    def judged(features: np.ndarray) -> tuple[bool, str]:
        found = estimate_mix(_sigmoid(logits), _sigmoid(calibration), labels, features=features, calibration_features=there, n_boot=0)
        return found.identifiable, found.reason

    assert judged(here) == (True, "")
    assert judged(here + (np.arange(24) == 20)) == (False, "features fit no mixture of the calibration classes: one lies 1.0 sd off")
    assert judged(here + here.std(axis=0))[0] is False
    assert judged(here + 0.05)[0] is True  # told apart in the end by any test, and of no consequence


def test_a_judge_that_sees_little_and_a_group_without_images_are_refused() -> None:
    rng = np.random.default_rng(6)
    labels, logits = two_groups(rng, 2000, 0.5, accuracy=float(norm.cdf(norm.ppf(0.6) / math.sqrt(2))))
    found = estimate_mix(_sigmoid(logits[:500]), _sigmoid(logits), labels, n_boot=0)
    assert found.auc is not None and found.auc[1] == pytest.approx(0.6, abs=0.03)
    assert not found.identifiable and "cannot see the attribute: AUC 0.5" in found.reason
    labels, probs = three_groups(rng, 300, [0.5, 0.5, 0.0])
    absent = estimate_mix(probs, probs, labels, n_boot=20)
    assert not absent.identifiable and absent.reason == "group 2 has 0 calibration images, at least 10 wanted"
    assert math.isnan(absent.values[2])


def test_one_image_gives_no_share_and_no_crash() -> None:
    rng = np.random.default_rng(10)
    labels, logits = two_groups(rng, 200, 0.5)
    features = rng.normal(size=(200, 3))
    found = estimate_mix([0.7], _sigmoid(logits), labels, features=features[:1], calibration_features=features, n_boot=20)
    assert not found.identifiable and "1 image(s) only" in found.reason and found.values.sum() == pytest.approx(1)


def test_one_patient_with_most_images_is_no_proof_of_a_shift() -> None:
    refused = 0
    for seed in range(10):  # forty patients, one of whom has a third of the images, all alike
        rng = np.random.default_rng(seed)
        labels, logits = two_groups(rng, 600, 0.5)
        kinds, own = two_groups(rng, 40, 0.5)
        patient = np.repeat(np.arange(40), [20] + [1] * 39)
        found = estimate_mix(_sigmoid(own[patient]), _sigmoid(logits), labels, n_boot=0, seed=seed, subjects=(patient, None))
        refused += not found.identifiable
    assert refused <= 2 and len(kinds) == 40


def test_intervals_widen_with_clusters_and_ignore_the_order_of_rows() -> None:
    rng = np.random.default_rng(7)
    labels, logits = two_groups(rng, 600, 0.5)
    probs = np.repeat(_sigmoid(two_groups(rng, 30, 0.3)[1]), 10)
    subjects = np.repeat(np.arange(30), 10)
    alone = estimate_mix(probs, _sigmoid(logits), labels, n_boot=200)
    ids = np.arange(300), np.arange(600)
    clustered = estimate_mix(probs, _sigmoid(logits), labels, n_boot=200, subjects=subjects, ids=ids)
    assert clustered.high[1] - clustered.low[1] > 1.5 * (alone.high[1] - alone.low[1])
    order, there = rng.permutation(300), rng.permutation(600)
    moved = ids[0][order], ids[1][there]
    again = estimate_mix(probs[order], _sigmoid(logits)[there], labels[there], n_boot=200, subjects=subjects[order], ids=moved)
    for name in ("values", "low", "high"):
        assert getattr(again, name) == pytest.approx(getattr(clustered, name), abs=1e-10)


def test_names_stand_for_columns_in_their_order() -> None:
    rng = np.random.default_rng(8)
    (labels, calibration), (_, logits) = two_groups(rng, 500, 0.5), two_groups(rng, 300, 0.9)
    by_code = estimate_mix(_sigmoid(logits), _sigmoid(calibration), labels, n_boot=0).values
    names = np.array(["female", "male"])[labels]
    assert estimate_mix(_sigmoid(logits), _sigmoid(calibration), names, n_boot=0).values == pytest.approx(by_code)
    other = pd.Series(pd.Categorical(names, categories=["male", "female"]))
    turned = estimate_mix(1 - _sigmoid(logits), 1 - _sigmoid(calibration), other, n_boot=0).values
    assert turned[0] == pytest.approx(by_code[1])
    unknown = np.concatenate([labels.astype(float), [np.nan, -1]])
    more = np.concatenate([_sigmoid(calibration), [0.5, 0.5]])
    assert estimate_mix(_sigmoid(logits), more, unknown, n_boot=0).values == pytest.approx(by_code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probs": [[0.5, 0.6]]}, r"probs: row 0 is \[0.5, 0.6\], no probabilities that sum to 1; apply softmax first"),
        ({"probs": [np.nan, 0.5]}, "probs: row 0 is .*nan"),
        ({"probs": np.zeros((0, 2))}, r"probs have shape \(0, 2\)"),
        ({"probs": np.full((4, 3), 1 / 3)}, "probs have 3 columns, calibration_probs 2; use one classifier for both"),
        ({"calibration_labels": ["a", "b", "c", "a"]}, r"calibration_labels name 3 groups \(a, b, c\) for 2 columns"),
        ({"calibration_labels": [0, 1]}, "2 calibration_labels for 4 images; give one per image"),
        ({"calibration_labels": [-1, -1, -1, -1]}, "no image has a known group"),
        ({"method": "em"}, "method 'em' is not known; did you mean"),
        ({"features": np.zeros((4, 2))}, "features and calibration_features belong together"),
    ],
)
def test_bad_input_is_one_line(change: dict, message: str) -> None:
    given = {"probs": [0.1, 0.9, 0.4, 0.3], "calibration_probs": [0.1, 0.9, 0.4, 0.3], "calibration_labels": [0, 1, 0, 1]} | change
    with pytest.raises(FeatureError, match=message):
        estimate_mix(given.pop("probs"), given.pop("calibration_probs"), given.pop("calibration_labels"), n_boot=0, **given)


def test_area_under_the_curve_of_each_class() -> None:
    from sklearn.metrics import roc_auc_score

    labels, probs = three_groups(np.random.default_rng(9), 200, [0.5, 0.5, 0.0])
    found = one_against_rest_auc(probs, labels)
    assert found[0] == pytest.approx(roc_auc_score(labels == 0, probs[:, 0])) and math.isnan(found[2])


def test_labels_of_a_hand_mend_a_moved_classifier() -> None:
    covered, errors, narrower = 0, [], 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        truth, logits = two_groups(rng, 800, 0.3, accuracy=0.9, moved=1.0)
        labels = np.where(np.arange(800) < 120, truth, -1)
        found = prediction_powered_mix(_sigmoid(logits), labels)
        covered += found.low[1] <= 0.3 <= found.high[1]
        errors.append(found.values[1] - 0.3)
        narrower += found.high[1] - found.low[1] < 2 * 1.98 * math.sqrt(0.21 / 120)
    assert 0.90 <= covered / 200 <= 0.99
    assert abs(np.mean(errors)) < 0.01 and narrower > 190


def test_labels_of_a_hand_need_two() -> None:
    with pytest.raises(FeatureError, match="1 images are labelled; label at least 2"):
        prediction_powered_mix([0.2, 0.8, 0.5], [1, -1, np.nan])
    everything = prediction_powered_mix([0.2, 0.8, 0.5, 0.1], [0, 1, 1, 0])
    assert everything.values == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("sure", [1.0, 6.0, 15.0, 1e6])
def test_a_judge_that_is_far_too_sure_of_itself_is_recalibrated_and_not_turned_round(sure: float) -> None:
    rng = np.random.default_rng(3)
    labels, kinds = rng.integers(0, 2, 1000), (rng.random(400) < 0.2).astype(int)
    probs = [1 / (1 + np.exp(-np.clip(sure * 2.4 * (2 * kind - 1 + rng.normal(size=len(kind))), -500, 500))) for kind in (labels, kinds)]
    slope = recalibrate(log_probabilities(np.column_stack([1 - probs[0], probs[0]])), labels, np.ones((1, 1000)))[0, 0]
    found = estimate_mix(probs[1], probs[0], labels, n_boot=100)
    assert slope > 0 and found.values[1] == pytest.approx(kinds.mean(), abs=0.06)
    assert found.low[1] <= kinds.mean() <= found.high[1] and found.identifiable


def test_hard_votes_are_corrected_too() -> None:
    rng = np.random.default_rng(4)
    labels, kinds = rng.integers(0, 2, 2000), (rng.random(500) < 0.77).astype(int)
    votes = [np.eye(2)[np.where(rng.random(len(kind)) < 0.85, kind, 1 - kind)] for kind in (labels, kinds)]
    found = estimate_mix(votes[1], votes[0], labels, n_boot=100)
    assert found.values[1] == pytest.approx(estimate_mix(votes[1], votes[0], labels, n_boot=0, method="acc").values[1], abs=0.01)


def test_columns_in_the_wrong_order_are_named_as_such() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 400)
    probs = 1 / (1 + np.exp(-3 * (2 * labels - 1 + rng.normal(size=400))))
    assert "wrong way round" in estimate_mix(1 - probs, 1 - probs, labels, n_boot=0).reason


def test_a_group_that_few_images_do_not_show_may_still_be_there() -> None:
    labels = np.arange(400) % 2
    sure = np.where(labels == 1, 0.999, 0.001)
    found = estimate_mix(np.full(30, 0.999), sure, labels, n_boot=100)
    assert found.values[1] > 0.99 and found.low[1] < 0.9 and found.high[0] > 0.1
