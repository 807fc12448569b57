"""Manifold metrics, log-IS and Gaussian MMD against naive formulas, hand-worked figures and their authors' code."""

import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from prdc import compute_prdc

from evenhand.audit.intervals import FeatureError
from evenhand.audit.manifold import (
    Manifold,
    clip_distance,
    log_inception_score,
    log_inception_score_at,
    manifold_metrics,
    overlap_measured,
)
from evenhand.audit.subsampling import of_whole_groups, size_matched, size_matched_each
from evenhand.core.errors import UserError

NAMES = ("precision", "recall", "density", "coverage")


def cmmd(*features, **how) -> float:
    return clip_distance(*features, **how).value


def normal(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def by_sorting(x: np.ndarray, y: np.ndarray, k: int) -> dict[str, float]:
    """The definitions, one distance at a time."""

    def radius(z: np.ndarray, i: int) -> float:
        return sorted(math.dist(z[i], other) for j, other in enumerate(z) if j != i)[k - 1]

    real, fake = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    apart = [[math.dist(a, b) for b in y] for a in x]
    around = [sum(apart[i][j] < real[i] for i in range(len(x))) for j in range(len(y))]
    return {
        "precision": float(np.mean([count > 0 for count in around])),
        "recall": float(np.mean([any(apart[i][j] < fake[j] for j in range(len(y))) for i in range(len(x))])),
        "density": float(np.mean(around)) / k,
        "coverage": float(np.mean([min(apart[i]) < real[i] for i in range(len(x))])),
    }


CASES = [(60, 45, 4, 5, 1.0, 0.0), (30, 80, 9, 3, 0.6, 0.5), (25, 25, 40, 1, 1.3, 0.0), (6, 7, 3, 5, 1.0, 1.0)]


@pytest.mark.parametrize(("n", "m", "d", "k", "scale", "shift"), CASES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_manifold_metrics_are_their_definitions(n: int, m: int, d: int, k: int, scale: float, shift: float, offset: float) -> None:
    x, y = normal(n, d, 1, shift=offset), normal(m, d, 2, scale, shift + offset)
    assert vars(manifold_metrics(x, y, k=k)) == pytest.approx(by_sorting(x, y, k), abs=1e-12)


@pytest.mark.parametrize(("n", "m", "d", "k", "scale", "shift"), [(300, 200, 16, 5, 1.0, 0.0), (150, 250, 64, 5, 0.8, 0.3), *CASES[:3]])
def test_manifold_metrics_are_those_of_prdc(n: int, m: int, d: int, k: int, scale: float, shift: float) -> None:
    x, y = normal(n, d, 3), normal(m, d, 4, scale, shift)
    assert vars(manifold_metrics(x, y, k=k)) == pytest.approx(compute_prdc(x, y, nearest_k=k), abs=1e-12)


def test_a_case_worked_by_hand() -> None:
    # real balls: 0 +- 1, 1 +- 1, 2 +- 1; 0.5 lies in two, 1.5 in two, 9 in none
    found = manifold_metrics([[0.0], [1.0], [2.0]], [[0.5], [1.5], [9.0]], k=1)
    assert found == Manifold(precision=2 / 3, recall=1.0, density=4 / 3, coverage=1.0)
    # generated balls: 0.5 +- 1, 1.5 +- 1, 9 +- 7.5; with 9 moved to 2.5 the real 0 is still within 1 of 0.5
    assert manifold_metrics([[0.0], [1.0], [20.0]], [[0.5], [1.5], [2.5]], k=1).recall == pytest.approx(2 / 3)
    # balls are open: a generated image at the very radius is outside
    assert manifold_metrics([[0.0], [1.0]], [[2.0], [5.0]], k=1) == Manifold(0.0, 1.0, 0.0, 0.0)


def test_dropped_modes_cost_recall_and_coverage_and_strange_images_cost_precision() -> None:
    two_modes = np.concatenate([normal(100, 4, 1), normal(100, 4, 2, shift=20)])
    one_mode = normal(200, 4, 3)
    dropped = manifold_metrics(two_modes, one_mode)
    assert dropped.precision > 0.9 and dropped.recall < 0.55 and dropped.coverage < 0.55
    strange = manifold_metrics(one_mode, two_modes)
    assert strange.precision < 0.55 and strange.recall > 0.9


def test_equal_laws_give_density_1_and_coverage_1_less_2_to_the_minus_k() -> None:
    found = [manifold_metrics(normal(300, 3, seed), normal(300, 3, 1000 + seed)) for seed in range(10)]
    assert np.mean([one.density for one in found]) == pytest.approx(1, abs=0.03)
    assert np.mean([one.coverage for one in found]) == pytest.approx(1 - 2**-5, abs=0.01)


def test_copies_are_covered_though_rounding_moves_them() -> None:
    x = normal(50, 6, 5, shift=1e4)
    found = manifold_metrics(x, x.copy())
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1) and found.density >= 1


def test_images_that_do_not_differ_are_undefined_not_bad() -> None:
    flat, varied = np.full((20, 3), 0.1), normal(20, 3, 6)
    assert all(math.isnan(value) for value in vars(manifold_metrics(flat, flat)).values())
    against_flat = manifold_metrics(varied, flat)
    assert math.isnan(against_flat.recall) and not math.isnan(against_flat.precision)
    against_varied = manifold_metrics(flat, varied)
    assert [math.isnan(getattr(against_varied, name)) for name in NAMES] == [True, False, True, True]


def test_blocks_change_nothing_and_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(400, 8, 7), normal(500, 8, 8)
    whole = manifold_metrics(x, y)
    monkeypatch.setattr("evenhand.audit.manifold._BLOCK_CELLS", 5000)
    tracemalloc.start()
    pieces = manifold_metrics(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pieces == whole
    assert peak < 0.5 * 400 * 500 * 8  # the whole table of distances is never held


def test_row_order_changes_nothing() -> None:
    x, y, order = normal(80, 5, 9), normal(70, 5, 10), np.random.default_rng(0).permutation(80)
    subjects = np.arange(80) // 3
    assert vars(manifold_metrics(x[order], y)) == pytest.approx(vars(manifold_metrics(x, y)), abs=1e-10)
    assert cmmd(x[order], y, subjects=subjects[order]) == pytest.approx(cmmd(x, y, subjects=subjects), abs=1e-10)


def test_log_inception_score_by_hand() -> None:
    assert log_inception_score(np.eye(4)) == pytest.approx(math.log(4), abs=1e-12)
    assert log_inception_score([[0.3, 0.7]] * 5) == pytest.approx(0, abs=1e-12)
    # p(y) = (.5, .5); each image: .9 ln 1.8 + .1 ln .2 = .529008 - .160944
    assert log_inception_score([[0.9, 0.1], [0.1, 0.9]]) == pytest.approx(0.368064, abs=1e-6)
    # p(y) = (.75, .25): (ln 4/3 + (.5 ln 2/3 + .5 ln 2)) / 2
    assert log_inception_score([[1, 0], [0.5, 0.5]]) == pytest.approx((math.log(4 / 3) + 0.5 * math.log(4 / 3)) / 2, abs=1e-12)
    assert log_inception_score(np.array([[0.2, 0.8, 0.0]] * 3)) == 0  # a class that nothing shows is no NaN


def test_log_inception_score_falls_with_n_as_stated() -> None:
    rng = np.random.default_rng(0)
    small = np.mean([log_inception_score(np.eye(5)[rng.integers(5, size=40)]) for _ in range(300)])
    assert math.log(5) - small == pytest.approx((5 - 1) / (2 * 40), rel=0.15)
    assert log_inception_score(np.eye(50)[rng.integers(50, size=6)]) <= math.log(6)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([[0.5, 0.6], [0.5, 0.5]], "row 0 does not"),
        ([[0.5, 0.5], [-0.1, 1.1]], "row 1 does not"),
        ([[0.5, 0.5], [np.nan, 1.0]], "row 1 does not"),
        ([[np.inf, -np.inf], [0.5, 0.5]], "row 0 does not"),
        ([[1e308, 1e308], [0.5, 0.5]], "row 0 does not"),
        ([[0.5, 0.5]], "shape (1, 2)"),
        (np.ones((4, 1)), "shape (4, 1)"),
        (np.ones(4) / 4, "shape (4,)"),
        (np.zeros((0, 3)), "shape (0, 3)"),
        ([["a", "b"]] * 2, "not numbers"),
    ],
)
def test_what_is_no_probability_is_a_one_line_error(bad, says: str) -> None:
    with pytest.raises(FeatureError) as caught:
        log_inception_score(bad)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def mmd_by_double_loop(x: np.ndarray, y: np.ndarray, sigma: float, same_x: np.ndarray, same_y: np.ndarray) -> float:
    kernel = lambda a, b: math.exp(-sum((a - b) ** 2) / (2 * sigma**2))  # noqa: E731

    def within(z: np.ndarray, same: np.ndarray) -> float:
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if same[i] != same[j]])

    return 1000 * float(within(x, same_x) + within(y, same_y) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_clip_distance_is_the_naive_double_loop() -> None:
    x, y = normal(23, 6, 1), normal(31, 6, 2, shift=0.4)
    unit = lambda z: z / np.sqrt((z**2).sum(axis=1, keepdims=True))  # noqa: E731
    ids, other = np.arange(23), np.arange(31)
    assert cmmd(x, y) == pytest.approx(mmd_by_double_loop(unit(x), unit(y), 10, ids, other), abs=1e-9)
    assert cmmd(x, y, sigma=2) == pytest.approx(mmd_by_double_loop(unit(x), unit(y), 2, ids, other), abs=1e-9)
    by_subject = cmmd(x, y, subjects=(ids // 4, other // 3))
    assert by_subject == pytest.approx(mmd_by_double_loop(unit(x), unit(y), 10, ids // 4, other // 3), abs=1e-9)


def test_clip_distance_is_the_published_code_less_the_images_paired_with_themselves() -> None:
    x, y = normal(40, 8, 3), normal(25, 8, 4, shift=0.5)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y)]
    kernel = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / 200)  # noqa: E731
    xx, yy, xy = kernel(unit[0], unit[0]), kernel(unit[1], unit[1]), kernel(*unit)
    published = 1000 * (xx.mean() + yy.mean() - 2 * xy.mean())
    bias = 1000 * ((1 - (xx.sum() - 40) / (40 * 39)) / 40 + (1 - (yy.sum() - 25) / (25 * 24)) / 25)
    assert cmmd(x, y) == pytest.approx(published - bias, abs=1e-9)
    assert bias > 0.1


def test_clip_distance_of_equal_laws_centres_on_0_at_any_n() -> None:
    for n in (15, 60):
        values = np.array([cmmd(normal(n, 8, seed, shift=0.5), normal(n + 5, 8, 500 + seed, shift=0.5)) for seed in range(100)])
        assert abs(values.mean()) <= 2.5 * values.std() / math.sqrt(len(values)) and values.min() < 0
    assert cmmd(np.full((5, 3), 2.0), np.full((6, 3), 7.0)) == pytest.approx(0, abs=1e-9)  # one direction, whatever the length


@pytest.mark.parametrize("metric", [manifold_metrics, cmmd])
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.full((8, 3), np.nan), "NaN or Inf (first in row 0)"),
        (np.zeros(8), "shape (8,)"),
        (np.zeros((1, 3)), "1 rows"),
        (np.zeros((0, 3)), "0 rows"),
        (np.ones((8, 4)), "use one encoder for both"),
    ],
)
def test_bad_features_are_one_line_errors(metric, bad, says: str) -> None:
    for pair in ((bad, normal(8, 3, 0)), (normal(8, 3, 0), bad)):
        with pytest.raises(FeatureError) as caught:
            metric(*pair)
        assert says in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_faults_of_each_metric_name_value_and_remedy() -> None:
    x = normal(8, 3, 0)
    with pytest.raises(FeatureError, match="synthetic features have 5 rows; k = 5 nearest neighbours need at least 6"):
        manifold_metrics(x, x[:5])
    with pytest.raises(FeatureError, match="k = 0"):
        manifold_metrics(x, x, k=0)
    with pytest.raises(FeatureError, match="too large"):
        manifold_metrics(x * 1e200, x)
    assert cmmd(x * 1e200, x * 1e-200) == pytest.approx(cmmd(x, x), abs=1e-9)
    with pytest.raises(FeatureError, match="sigma = 0"):
        cmmd(x, x, sigma=0)
    with pytest.raises(FeatureError, match="synthetic features are all 0 in row 2"):
        cmmd(x, x * (np.arange(8) != 2)[:, None])
    with pytest.raises(FeatureError, match="real features are all of one subject"):
        cmmd(x, x, subjects=["a"] * 8)


def test_each_is_a_metric_by_group_at_one_n() -> None:
    real, synthetic = normal(160, 4, 1), normal(160, 4, 2)
    synthetic[100:] = 0.2 * synthetic[100:] + 4  # narrow and elsewhere
    groups = pd.Series(pd.Categorical(["a"] * 100 + ["b"] * 60, categories=["a", "b", "absent"]))
    for name in NAMES:
        frame = size_matched(
            real, synthetic, groups, groups, lambda x, y, name=name: getattr(manifold_metrics(x, y), name), higher_is_better=True, repeats=2
        )
        assert frame.worst == "b" and frame.by_group.loc["a", "value"] > frame.by_group.loc["b", "value"] + 0.3
        assert frame.by_group.loc["absent", "reason"] == "no real images" and math.isnan(frame.by_group.loc["absent", "value"])
        assert (frame.by_group["n"].iloc[:2] == 60).all()
    assert of_whole_groups(real, synthetic, groups, groups, lambda x, y, ids, _: clip_distance(x, y, subjects=ids)).worst == "b"
    probs = np.eye(3)[np.random.default_rng(0).integers(3, size=160)]
    probs[100:] = 1 / 3
    frame = size_matched(probs, probs, groups, groups, lambda _, p: log_inception_score(p), higher_is_better=True, repeats=2)
    assert frame.worst == "b" and frame.by_group.loc["b", "value"] == pytest.approx(0, abs=1e-12)


def test_what_lies_on_the_edge_of_a_ball_is_outside_whatever_the_last_bits_say() -> None:
    x = normal(60, 7, 3)
    rounding = 1 + 1e-14 * np.random.default_rng(0).choice([-1, 1], size=(60, 1))
    for copies in (x, x * rounding):  # of each image, and so of each k-th neighbour
        found = manifold_metrics(x, copies, k=1)
        assert (found.density, found.coverage, found.precision, found.recall) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("images_per_subject", [1, 3])
def test_variances_are_those_of_leaving_out_one_subject_at_a_time(images_per_subject: int) -> None:
    x, y = normal(48, 3, 20), normal(42, 3, 21, shift=0.6)
    subjects = np.arange(48) // images_per_subject, np.arange(42) // images_per_subject
    found = overlap_measured(x, y, *subjects)
    whole = vars(manifold_metrics(x, y))
    for side in (0, 1):
        left_out = []
        for subject in np.unique(subjects[side]):
            kept = [part[subjects[side] != subject] if place == side else part for place, part in enumerate((x, y))]
            left_out.append(list(vars(manifold_metrics(*kept)).values()))
        replicates = np.array(left_out)
        oracle = (len(replicates) - 1) / len(replicates) * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0)
        for name, variance in zip(NAMES, oracle, strict=True):
            assert found[name].value == whole[name]
            slopes = found[name].slopes[side]
            assert slopes.sum() == pytest.approx(0, abs=1e-12)
            assert (slopes**2).sum() * len(slopes) / (len(slopes) - 1) == pytest.approx(variance, rel=0.02), (name, side)


@pytest.mark.parametrize("concentration", [[0.4, 0.8, 1.2], [0.02, 0.02, 0.02]])
def test_log_inception_score_of_n_is_the_mean_over_choices(concentration: list[float]) -> None:
    rng = np.random.default_rng(3)
    probs = rng.dirichlet(concentration, size=200)
    found = log_inception_score_at(probs, 50)
    drawn = [log_inception_score(probs[rng.permutation(200)[:50]]) for _ in range(3000)]
    assert found.value == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(3000) + 2e-4)
    assert log_inception_score_at(probs, 200).value == log_inception_score(probs)
    with pytest.raises(FeatureError, match="n = 201 of 200 images"):
        log_inception_score_at(probs, 201)


@pytest.mark.parametrize("concentration", [[0.4, 0.8, 1.2], [0.02, 0.02, 0.02]])
def test_log_inception_scores_interval_is_that_over_samples(concentration: list[float]) -> None:
    rng = np.random.default_rng(4)
    found = [log_inception_score_at(rng.dirichlet(concentration, size=120), 60) for _ in range(300)]
    mean = np.mean([cell.value for cell in found])
    assert np.mean([cell.low <= mean <= cell.high for cell in found]) >= 0.9
    assert np.mean([cell.high - cell.low for cell in found]) / 3.92 / np.std([cell.value for cell in found]) == pytest.approx(1, abs=0.3)


def test_overlap_by_group_with_intervals_that_another_seed_hardly_moves() -> None:
    real, synthetic = normal(220, 6, 1), normal(300, 6, 2, shift=0.3)
    groups = [pd.Categorical(np.where(np.arange(n) < part, "a", "b"), ["a", "b", "absent"]) for n, part in ((220, 160), (300, 200))]
    frames = [size_matched_each(real, synthetic, *groups, overlap_measured, higher_is_better=True, seed=seed) for seed in (0, 1)]
    for name in NAMES:
        first, second = (frame[name].by_group for frame in frames)
        assert first.loc["absent", "reason"] == "no real images" and math.isnan(first.loc["absent", "monte_carlo"])
        half = (first["high"] - first["low"])[:2] / 2
        assert ((first["value"] - second["value"])[:2].abs() < 0.1 * half).all()
        assert all(((first[bound] - second[bound])[:2].abs() < 0.2 * half).all() for bound in ("low", "high"))
        assert (first["monte_carlo"][:2] < 0.04 * half).all()
