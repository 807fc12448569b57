"""Distances against independent formulas, and their intervals by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import sqrtm

from evenhand.audit.fidelity import frechet_distance, frechet_measured, halves_distance, kernel_distance
from evenhand.audit.frame import Estimate
from evenhand.audit.intervals import FeatureError
from evenhand.audit.manifold import overlap_measured
from evenhand.audit.subsampling import UNDEFINED_REASON, size_matched, size_matched_each
from evenhand.core.errors import UserError


def sample(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ np.diag(np.linspace(0.5, 1.5, d)) * scale + shift


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it is printed."""
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(s @ t)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * np.trace(root).real)


def by_double_loop(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(z: np.ndarray) -> float:
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return float(within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y]))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 64), (80, 200, 64), (60, 300, 64), (90, 80, 128)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_frechet_distance_is_the_printed_formula(n: int, m: int, d: int, offset: float) -> None:
    x, y = sample(n, d, 1, shift=offset), sample(m, d, 2, scale=1.3, shift=offset + 0.2)
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-6)


def test_frechet_distance_of_known_gaussians() -> None:
    # one feature: (m1 - m2)^2 + (s1 - s2)^2, here 3^2 + (sqrt 2 - sqrt 8)^2 = 9 + 2
    assert frechet_distance([[0.0], [2.0]], [[2.0], [6.0]]) == pytest.approx(9 + 2)


@pytest.mark.parametrize(("n", "d"), [(300, 32), (40, 128)])
def test_self_distance_is_nearly_0(n: int, d: int) -> None:
    x = sample(n, d, 3, shift=1e3)
    x[:, :2] = 7.0  # dead features
    assert 0 <= frechet_distance(x, x) <= 1e-6
    assert frechet_distance(np.ones((5, 3)), np.ones((6, 3))) == 0


def test_frechet_and_kernel_distance_ignore_row_order() -> None:
    x, y = sample(50, 8, 1), sample(60, 8, 2)
    order = np.random.default_rng(0).permutation(50)
    subjects = np.arange(50) // 3
    assert frechet_distance(x[order], y) == pytest.approx(frechet_distance(x, y), abs=1e-10)
    whole, mixed = kernel_distance(x, y, subjects=subjects), kernel_distance(x[order], y, subjects=subjects[order])
    assert (mixed.value, mixed.low, mixed.high) == pytest.approx((whole.value, whole.low, whole.high), abs=1e-10)


def test_kernel_distance_is_the_naive_double_loop() -> None:
    x, y = sample(25, 7, 4), sample(31, 7, 5, shift=0.3)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(by_double_loop(x, y), abs=1e-9)
    assert found.low < found.value < found.high and found.n == 31


def test_kernel_distance_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, subjects = sample(90, 6, 4), sample(70, 6, 5), np.arange(90) // 7
    whole = kernel_distance(x, y, subjects=subjects)
    monkeypatch.setattr("evenhand.audit.fidelity._BLOCK_CELLS", 500)
    pieces = kernel_distance(x, y, subjects=subjects)
    assert (pieces.value, pieces.low, pieces.high) == pytest.approx((whole.value, whole.low, whole.high), rel=1e-9)


def test_kernel_distance_leaves_out_pairs_of_one_subject() -> None:
    x, y = sample(4, 3, 6), sample(5, 3, 7)
    kernel = (x @ x.T / 3 + 1) ** 3
    apart = [kernel[i, j] for i in range(4) for j in range(4) if i // 2 != j // 2]
    ky, kxy = (y @ y.T / 3 + 1) ** 3, (x @ y.T / 3 + 1) ** 3
    expected = np.mean(apart) + (ky.sum() - np.trace(ky)) / 20 - 2 * kxy.mean()
    assert kernel_distance(x, y, subjects=[0, 0, 1, 1]).value == pytest.approx(expected, abs=1e-12)


def clustered(rng: np.random.Generator, subjects: int, images: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.repeat(np.arange(subjects), images)
    return 0.8 * rng.normal(size=(subjects, d))[ids] + 0.6 * rng.normal(size=(len(ids), d)), ids


def test_kernel_distance_under_equal_laws_centres_on_0_and_its_interval_covers() -> None:
    draws = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        draws.append(kernel_distance(rng.normal(size=(60, 16)), rng.normal(size=(50, 16))))
    values = np.array([draw.value for draw in draws])
    assert abs(values.mean()) <= 2.5 * values.std() / np.sqrt(len(values))
    assert 0.90 <= np.mean([draw.low <= 0 <= draw.high for draw in draws]) <= 0.99


def test_kernel_distance_interval_covers_a_real_difference() -> None:
    d, shift = 8, 0.4
    rng = np.random.default_rng(99)
    truth = np.mean([kernel_distance(rng.normal(size=(2000, d)), rng.normal(size=(2000, d)) + shift).value for _ in range(3)])
    hits = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        found = kernel_distance(rng.normal(size=(80, d)), rng.normal(size=(80, d)) + shift)
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / 120 <= 0.99


def test_kernel_distance_interval_covers_when_a_subject_has_ten_images() -> None:
    with_subjects, without, hits = [], [], 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        (x, a), (y, b) = clustered(rng, 20, 10, 8), clustered(rng, 20, 10, 8)
        found = kernel_distance(x, y, subjects=np.concatenate([a, b]))
        hits += found.low <= 0 <= found.high
        with_subjects.append(found.value)
        without.append(kernel_distance(x, y).low > 0)
    assert hits / 80 >= 0.88
    assert abs(np.mean(with_subjects)) <= 3 * np.std(with_subjects) / np.sqrt(80)
    assert np.mean(without) > 0.5  # images taken as subjects: a difference cried where there is none


def test_size_matched_shows_no_gap_where_the_naive_distance_grows() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(["large", "middle", "small"], [400, 120, 40])
    real, synthetic = rng.normal(size=(560, 16)), rng.normal(size=(560, 16))
    naive = [frechet_distance(real[groups == g], synthetic[groups == g]) for g in ("large", "middle", "small")]
    assert naive[0] < naive[1] < naive[2] and naive[2] > 5 * naive[0]
    matched = size_matched(real, synthetic, groups, groups, "frechet", repeats=5)
    assert (matched.by_group["n"] == 40).all() and matched.overall.n == 40
    rows = matched.by_group
    assert rows["low"].max() < rows["high"].min()  # every two intervals overlap
    assert matched.gap < 0.25 * (naive[2] - naive[0])
    kernel = size_matched(real, synthetic, groups, groups, "kid").by_group
    assert (kernel["low"] <= 0.02).all() and (kernel["n"] == 40).all()


def test_size_matched_names_a_blurred_group_worst_and_its_direction() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b"], [150, 100])
    real, synthetic = rng.normal(size=(250, 8)), rng.normal(size=(250, 8))
    synthetic[150:] *= 0.3
    for metric in ("kid", "frechet", kernel_distance, frechet_distance):
        frame = size_matched(real, synthetic, groups, groups, metric, repeats=3)
        assert frame.worst == "b" and frame.by_group.loc["b", "low"] > frame.by_group.loc["a", "high"]
        assert frame.gap == pytest.approx(frame.by_group["value"].max() - frame.by_group["value"].min())
    assert size_matched(real, synthetic, groups, groups, "kid", higher_is_better=True).worst == "a"


def test_size_matched_gives_the_metric_one_n_and_the_group_its_own_real_images() -> None:
    real = np.repeat([[0.0], [10.0]], [30, 50], axis=0) + np.linspace(0, 1, 80)[:, None]
    synthetic = real[::-1] + 0.01
    seen = []

    def metric(x: np.ndarray, y: np.ndarray) -> float:
        seen.append((len(x), len(y)))
        return float(abs(x.mean() - y.mean()))

    frame = size_matched(real, synthetic, [0] * 30 + [1] * 50, [1] * 50 + [0] * 30, metric, repeats=4)
    assert (frame.by_group["value"] < 1).all()
    assert max(seen) == (30, 30) and frame.by_group["n"].tolist() == [30, 30]
    assert frame.by_group["n_real"].tolist() == [30, 50]


def test_size_matched_ignores_row_order_and_repeats_with_its_seed() -> None:
    rng = np.random.default_rng(2)
    real, synthetic = rng.normal(size=(70, 4)), rng.normal(size=(90, 4))
    rg, sg = np.where(np.arange(70) < 25, "x", "y"), np.where(np.arange(90) < 30, "x", "y")
    subjects, ids = np.arange(70) // 2, (np.arange(70), np.arange(90))
    first = size_matched(real, synthetic, rg, sg, "frechet", repeats=3, subjects=subjects, ids=ids)
    a, b = rng.permutation(70), rng.permutation(90)
    second = size_matched(real[a], synthetic[b], rg[a], sg[b], "frechet", repeats=3, subjects=subjects[a], ids=(a, b))
    columns = ["value", "low", "high"]
    np.testing.assert_allclose(first.by_group[columns], second.by_group[columns], atol=1e-10)
    other = size_matched(real, synthetic, rg, sg, "frechet", repeats=3, seed=1, subjects=subjects, ids=ids)
    assert not np.allclose(first.by_group["value"], other.by_group["value"])


def test_labels_that_are_no_group_never_are_one_and_empty_cells_stay() -> None:
    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    rg = ["a"] * 30 + ["b"] * 20 + ["tiny"] * 4 + ["unknown", "unspecified", None, np.nan, "-1", -1]
    sg = ["a"] * 30 + ["c"] * 20 + ["tiny"] * 10
    frame = size_matched(real, synthetic, rg, sg, "kid")
    assert frame.by_group.index.tolist() == ["a", "b", "tiny", "c"]
    assert frame.by_group["reason"].tolist() == [
        "",
        "no synthetic images",
        "insufficient: 4 real images, at least 10 wanted",
        "no real images",
    ]
    assert frame.by_group["value"].isna().tolist() == [False, True, True, True]
    assert np.isnan(frame.gap) and frame.worst == "a"
    empty = pd.Series(pd.Categorical(["a"] * 60, categories=["a", "absent"]))
    absent = size_matched(real, synthetic, empty, empty, "kid").by_group.loc["absent"]
    assert np.isnan(absent["value"]) and absent["reason"] == "no real images"


def test_integer_groups_with_missing_ones_keep_their_names() -> None:
    rng = np.random.default_rng(3)
    groups = np.array([0.0] * 20 + [1.0] * 18 + [np.nan, -1.0])
    frame = size_matched(rng.normal(size=(40, 3)), rng.normal(size=(40, 3)), groups, groups, "kid")
    assert frame.by_group.index.tolist() == [0, 1] and frame.by_group["n"].tolist() == [18, 18]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.full((5, 3), np.nan), "NaN or Inf (first in row 0)"),
        (np.array([[0.0] * 3, [np.inf, 0, 0]]), "NaN or Inf (first in row 1)"),
        (np.zeros(5), "shape (5,)"),
        (np.zeros((1, 3)), "1 rows"),
        (np.zeros((0, 3)), "0 rows"),
        (np.zeros((5, 4)), "use one encoder for both"),
        ([["a", "b", "c"]] * 4, "not numbers"),
    ],
)
def test_bad_features_are_one_line_errors(distance, bad, says: str) -> None:
    for pair in ((bad, np.ones((5, 3))), (np.ones((5, 3)), bad)):
        with pytest.raises(FeatureError) as caught:
            distance(*pair)
        assert says in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, UserError)


def test_huge_features_and_single_subjects_are_errors_and_constant_ones_are_not() -> None:
    with pytest.raises(FeatureError, match="too large"), np.errstate(all="ignore"):
        frechet_distance(np.full((4, 2), 1e200) * [[1], [2], [3], [4]], np.ones((4, 2)))
    with pytest.raises(FeatureError, match="all of one subject"):
        kernel_distance(np.ones((4, 2)), np.ones((4, 2)), subjects=[1, 1, 1, 1])
    with pytest.raises(FeatureError, match="3 subject ids"):
        kernel_distance(np.ones((4, 2)), np.ones((4, 2)), subjects=[1, 2, 3])
    assert kernel_distance(np.ones((4, 2)), np.ones((5, 2))) == Estimate(0.0, 0.0, 0.0, 5)


@pytest.mark.parametrize(("n", "features"), [(60, 5), (24, 40)])
def test_the_frechet_distances_variance_is_that_of_counting_an_image_a_little_more_often(n: int, features: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, features)), rng.normal(0.3, 1.2, size=(n + 7, features))
    subjects = np.arange(n) // 2

    def weighted(counts: np.ndarray) -> float:
        """The distance with image i of x counted so many times: closed form of two Gaussians."""
        mean = (counts @ x) / counts.sum()
        centred = (x - mean) * np.sqrt(counts * n / counts.sum() / (n - 1))[:, None]
        other = (y - y.mean(axis=0)) / math.sqrt(len(y) - 1)
        overlap = np.linalg.svd(centred @ other.T, compute_uv=False).sum()
        return float(((mean - y.mean(axis=0)) ** 2).sum() + (centred**2).sum() + (other**2).sum() - 2 * overlap)

    step = 1e-5
    slopes = np.array([(weighted(np.ones(n) + step * row) - weighted(np.ones(n) - step * row)) / (2 * step) for row in np.eye(n)])
    sums = np.bincount(subjects, weights=slopes)
    found = frechet_measured(x, y, subjects, np.arange(n + 7))
    assert found.value == pytest.approx(frechet_distance(x, y), rel=1e-12) and found.value == pytest.approx(weighted(np.ones(n)), rel=1e-9)
    np.testing.assert_allclose(found.slopes[0], sums, rtol=1e-4, atol=1e-7 * abs(sums).max())


def test_the_floor_is_the_range_of_distances_between_random_halves() -> None:
    rng = np.random.default_rng(5)
    x = np.repeat(rng.normal(size=(60, 4)), 2, axis=0) + 0.3 * rng.normal(size=(120, 4))
    subjects = np.arange(120) // 2
    floor = halves_distance(x, subjects=subjects)
    values = []
    for _ in range(400):
        half = (rng.permutation(60) < 30)[subjects]
        values.append(kernel_distance(x[half], x[~half], subjects=(subjects[half], subjects[~half])).value)
    assert abs(np.mean(values)) < 0.1 * floor.high and floor.value == 0
    assert np.std(values) == pytest.approx(floor.high / 2.0, rel=0.15)
    with pytest.raises(FeatureError, match="features of 2 subjects; two halves need at least 4"):
        halves_distance(x[:4], subjects=subjects[:4])


def test_another_seed_hardly_moves_a_size_matched_distance() -> None:
    rng = np.random.default_rng(6)
    real, synthetic = rng.normal(size=(300, 8)), rng.normal(0.1, 1.1, size=(400, 8))
    groups = ["a"] * 200 + ["b"] * 60 + ["c"] * 40, ["a"] * 300 + ["b"] * 50 + ["c"] * 50
    frames = [size_matched(real, synthetic, *groups, "frechet", seed=seed).by_group for seed in range(3)]
    half = (frames[0]["high"] - frames[0]["low"]) / 2
    for first, second in ((0, 1), (1, 2)):
        assert ((frames[first]["value"] - frames[second]["value"]).abs() < 0.1 * half).all()
        assert ((frames[first]["high"] - frames[second]["high"]).abs() < 0.2 * half).all()
    assert (frames[0]["monte_carlo"] < 0.03 * half).all() and frames[0].loc["a", "monte_carlo"] > 0


def test_subsamples_of_one_or_two_subjects_tell_no_interval() -> None:
    rng = np.random.default_rng(7)
    subjects = np.repeat(np.arange(10), 40)
    real, synthetic = (rng.normal(size=(10, 4))[subjects] + 0.5 * rng.normal(size=(400, 4)) for _ in range(2))
    how = {"subjects": (subjects, subjects), "at_most": 20, "with_overall": False}
    row = size_matched(real, synthetic, ["a"] * 400, ["a"] * 400, "frechet", **how).by_group.loc["a"]
    assert np.isfinite(row["value"]) and np.isnan(row["low"]) and np.isnan(row["high"]) and row["reason"] == ""


def test_the_interval_of_a_group_far_larger_than_the_common_n_is_that_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subsamples of 20 of 300: their own variance, scaled, would be several times too wide."""
    monkeypatch.setattr("evenhand.audit.subsampling._MOST_OF_SMALL", 200)
    values, halves = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        real, synthetic = rng.normal(size=(300, 4)), rng.normal(0.5, 1, size=(300, 4))
        row = size_matched(real, synthetic, ["a"] * 300, ["a"] * 300, "frechet", at_most=20, with_overall=False).by_group.loc["a"]
        values.append(row["value"])
        halves.append((row["high"] - row["low"]) / 2)
    assert 0.6 < np.mean(halves) / 1.96 / np.std(values, ddof=1) < 1.7


def test_what_cannot_be_told_has_a_reason() -> None:
    real = np.vstack([np.zeros((40, 3)), np.random.default_rng(0).normal(size=(3, 3))])
    frame = size_matched_each(real, real, ["a"] * 43, ["a"] * 43, overlap_measured, at_most=20, with_overall=False)["precision"]
    assert np.isnan(frame.by_group.loc["a", "value"]) and frame.by_group.loc["a", "reason"] == UNDEFINED_REASON


def test_a_share_at_its_edge_has_an_interval_with_a_width() -> None:
    rng = np.random.default_rng(1)
    real, synthetic = rng.normal(size=(80, 3)), 0.3 * rng.normal(size=(80, 3))
    row = size_matched_each(real, synthetic, ["a"] * 80, ["a"] * 80, overlap_measured)["precision"].by_group.loc["a"]
    assert row["value"] == 1 and row["high"] == 1 and row["low"] == pytest.approx(1 - 1.96**2 / (80 + 1.96**2), abs=1e-3)  # Wilson
