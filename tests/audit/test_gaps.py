"""The quality gap test against naive formulas, and its false alarms and power by simulation."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from evenhand.audit.fidelity import kernel_distance
from evenhand.audit.gaps import GapTest, quality_gap
from evenhand.audit.intervals import FeatureError
from evenhand.audit.subsampling import size_matched
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.core.errors import UserError

SIZES = (250, 80, 40)
Damage = Callable[[np.ndarray], np.ndarray]


def labels(sizes: tuple[int, ...]) -> np.ndarray:
    return np.repeat(["a", "b", "c", "d"][: len(sizes)], sizes)


def drawn(rng: np.random.Generator, sizes: tuple[int, ...], d: int, images: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features with unequal variances, ``images`` a subject that share most of it; and the subjects."""
    spread = np.linspace(1.5, 0.3, d)
    subjects = np.concatenate([np.arange(n) // images + 10_000 * i for i, n in enumerate(sizes)])
    _, codes = np.unique(subjects, return_inverse=True)
    shared = rng.normal(size=(codes.max() + 1, d))[codes]
    return (0.8 * shared + 0.6 * rng.normal(size=(len(codes), d))) * spread, subjects


def differing(x: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Each group in a law of its own: other mean, other variance."""
    scale, shift = np.repeat([1, 1.4, 0.7], sizes)[:, None], np.repeat([0, 0.4, -0.5], sizes)[:, None]
    return x * scale + shift


def flags(world: Callable[[np.random.Generator], tuple], seeds: int, n_boot: int = 199) -> float:
    """Share of seeds in which a gap is flagged."""
    found = 0
    for seed in range(seeds):
        real, synthetic, groups, subjects = world(np.random.default_rng(seed))
        found += quality_gap(real, synthetic, groups, groups, subjects=subjects, seed=seed, n_boot=n_boot).p_value < 0.05
    return found / seeds


def world(sizes: tuple[int, ...] = SIZES, d: int = 24, *, own_laws: bool = False, images: int = 1, damage: Damage = lambda y: y):
    def make(rng: np.random.Generator) -> tuple:
        (real, ids), (synthetic, others) = drawn(rng, sizes, d, images), drawn(rng, sizes, d, images)
        synthetic = damage(synthetic)
        if own_laws:
            real, synthetic = differing(real, sizes), differing(synthetic, sizes)
        return real, synthetic, labels(sizes), (ids, others)

    return make


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def naive(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """KID, and KID over the kernel variance of x."""
    apart = lambda z: np.mean([k for i, row in enumerate(kernel(z, z)) for j, k in enumerate(row) if i != j])  # noqa: E731
    kid = apart(x) + apart(y) - 2 * kernel(x, y).mean()
    return kid, kid / (np.diag(kernel(x, x)).mean() - apart(x))


def test_the_table_is_the_naive_formula() -> None:
    rng = np.random.default_rng(0)
    sizes = (30, 25, 20)
    real, synthetic, groups, _ = world(sizes, 5, own_laws=True)(rng)
    synthetic[groups == "c"] += 0.5
    found = quality_gap(real, synthetic, groups, groups, n_boot=99)
    expected = {g: naive(real[groups == g], synthetic[groups == g]) for g in "abc"}
    for g in "abc":
        row = found.by_group.loc[g]
        assert (row["kid"], row["relative"]) == pytest.approx(expected[g], abs=1e-9)
        assert row["kid"] == pytest.approx(kernel_distance(real[groups == g], synthetic[groups == g]).value, abs=1e-9)
    kids = [expected[g][0] for g in "abc"]
    assert found.gap == pytest.approx(max(kids) - min(kids), abs=1e-9)
    assert found.gap == pytest.approx(size_matched(real, synthetic, groups, groups, "kid").gap, abs=1e-9)
    assert found.effect == pytest.approx(np.ptp(found.by_group[found.view]), abs=1e-12)
    assert found.worst == "c" and found.reason == "" and (found.by_group["reason"] == "").all()


def test_whitened_distances_are_those_of_features_in_mahalanobis_units() -> None:
    real, synthetic, groups, _ = world((30, 25, 20), 4, own_laws=True)(np.random.default_rng(1))
    both, twice = np.concatenate([real, synthetic]), np.concatenate([groups, groups])
    centred = both - np.array([both[twice == g].mean(axis=0) for g in twice])
    covariance = centred.T @ centred / len(centred)
    values, vectors = np.linalg.eigh(covariance + np.trace(covariance) / 4 * np.eye(4))
    white = centred @ vectors / np.sqrt(values)  # another root than Cholesky's: kernels see inner products only
    found = quality_gap(real, synthetic, groups, groups, n_boot=99).by_group["whitened"]
    for g in "abc":
        assert found[g] == pytest.approx(naive(white[:75][groups == g], white[75:][groups == g])[1], abs=1e-9)


def test_whitened_distances_have_no_unit() -> None:
    real, synthetic, groups, _ = world((30, 25, 20), 4)(np.random.default_rng(2))
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    first = quality_gap(real, synthetic, groups, groups, n_boot=99)
    second = quality_gap(real @ turn * 50 + 9, synthetic @ turn * 50 + 9, groups, groups, n_boot=99)
    np.testing.assert_allclose(first.by_group["whitened"], second.by_group["whitened"], atol=1e-9)
    assert not np.allclose(first.by_group["kid"], second.by_group["kid"], rtol=0.5)


@pytest.mark.parametrize("own_laws", [False, True])
def test_perfect_generation_is_rarely_flagged(own_laws: bool) -> None:
    assert flags(world(own_laws=own_laws), 100) <= 0.08


def test_perfect_generation_of_ten_images_a_subject_is_rarely_flagged() -> None:
    sizes = (600, 300, 200)
    assert flags(world(sizes, 16, own_laws=True, images=10), 60) <= 0.08
    as_images = lambda rng: (*world(sizes, 16, images=10)(rng)[:3], None)  # noqa: E731
    assert flags(as_images, 30, 99) > 0.3  # images taken as subjects: gaps cried where there are none


@pytest.mark.parametrize("damage", [lambda y: y + 0.15, lambda y: 0.6 * y])
def test_groups_that_are_all_equally_bad_are_rarely_flagged(damage: Damage) -> None:
    real, synthetic, *_ = world(damage=damage)(np.random.default_rng(0))
    assert kernel_distance(real, synthetic).low > 0  # bad indeed
    assert flags(world(damage=damage), 80) <= 0.08


def test_few_subjects_and_heavy_tails_raise_no_false_alarms() -> None:
    assert flags(world((12, 12, 12), 24), 100) <= 0.08
    heavy = lambda rng: tuple(np.sign(z) * np.abs(z) ** 1.5 if i < 2 else z for i, z in enumerate(world()(rng)))  # noqa: E731
    assert flags(heavy, 60) <= 0.08


def uneven(rng: np.random.Generator, harm: float = 0.0) -> tuple:
    """Two groups of 40 patients, most with one to four images, some with 15, 40 and 60, images of one patient much alike."""
    parts = []
    for side in range(2):
        images = np.concatenate([np.r_[rng.integers(1, 5, size=37), 15, 40, 60] for _ in "ab"])
        patients = np.repeat(np.arange(80), images)
        values = (0.9 * rng.normal(size=(80, 16)))[patients] + 0.4 * rng.normal(size=(len(patients), 16))
        groups = np.where(patients < 40, "a", "b")
        values[(groups == "b") & (side == 1)] += harm
        parts.append((values, groups, patients))
    (real, real_groups, ids), (synthetic, groups, others) = parts
    return real, synthetic, real_groups, groups, (ids, others)


def test_a_patient_with_a_third_of_the_images_raises_no_false_alarm_and_hides_no_gap() -> None:
    def p_value(seed: int, harm: float) -> float:
        *sides, subjects = uneven(np.random.default_rng(seed), harm)
        return quality_gap(*sides, subjects=subjects, seed=seed, n_boot=199).p_value

    assert np.mean([p_value(seed, 0.0) < 0.05 for seed in range(100)]) <= 0.08
    assert np.mean([p_value(seed, 0.6) < 0.05 for seed in range(20)]) >= 0.9


def test_more_features_than_images_raise_no_false_alarms() -> None:
    assert flags(world((40, 30, 25), 150), 100) <= 0.08


@cache
def phantom_features() -> dict[str, np.ndarray]:
    """Features (1800, 64) of 64 px chest phantoms, whole, blurred and noisy: random 5 x 5 filters, rectified, pooled in quarters."""
    rng = np.random.default_rng(0)
    images = MODALITIES["chest"].generate(1800, size=64, seed=5).images
    filters = rng.normal(size=(25, 16)).astype(np.float32)
    filters -= filters.mean(axis=0)

    def features(batch: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(batch, (5, 5), axis=(1, 2))[:, ::2, ::2]  # (n, 30, 30, 5, 5)
        maps = np.maximum(windows.reshape(*windows.shape[:3], 25) @ filters, 0)
        return maps.reshape(len(batch), 2, 15, 2, 15, 16).mean(axis=(2, 4)).reshape(len(batch), 64)

    noisy = np.clip(images + 0.05 * rng.standard_normal(images.shape, dtype=np.float32), 0, 1)
    sets = {"whole": images, "blur": gaussian_filter(images, (0, 1, 1)), "noise": noisy}
    return {name: np.concatenate([features(part) for part in np.split(values, 12)]) for name, values in sets.items()}


@pytest.mark.parametrize("harm", ["blur", "noise"])
def test_blur_or_noise_in_one_group_of_300_is_flagged_and_named(harm: str) -> None:
    features, groups = phantom_features(), labels((400, 200, 300))
    found = []
    for seed in range(12):
        rows = np.random.default_rng(seed).permutation(1800)
        real, synthetic = features["whole"][rows[:900]], features["whole"][rows[900:]].copy()
        synthetic[600:] = features[harm][rows[900:]][600:]
        found.append(quality_gap(real, synthetic, groups, groups, seed=seed, n_boot=199))
    assert np.mean([test.p_value < 0.05 for test in found]) >= 0.9
    assert np.mean([test.worst == "c" for test in found]) >= 0.95


def test_phantoms_all_blurred_alike_or_not_at_all_are_rarely_flagged() -> None:
    features, groups, flagged = phantom_features(), labels((400, 200, 300)), []
    for seed in range(160):
        rows, harm = np.random.default_rng(seed).permutation(1800), ("whole", "blur")[seed % 2]
        real, synthetic = features["whole"][rows[:900]], features[harm][rows[900:]]
        flagged.append(quality_gap(real, synthetic, groups, groups, seed=seed, n_boot=99).p_value < 0.05)
    assert np.mean(flagged) <= 0.08


def test_the_worst_group_is_not_the_noise_of_a_tiny_one() -> None:
    groups, named = labels((200, 150, 12)), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        real, synthetic = rng.normal(size=(362, 16)), rng.normal(size=(362, 16))
        synthetic[200:350] += 0.3
        test = quality_gap(real, synthetic, groups, groups, seed=seed, n_boot=199)
        assert test.p_value == test.pairs["p_value"].min() < 0.05
        named.append(test.worst)
    assert named.count("b") >= 9


def test_pairs_name_who_differs() -> None:
    rng = np.random.default_rng(4)
    groups = labels((120, 100, 80, 60))
    real, synthetic = rng.normal(size=(360, 8)), rng.normal(size=(360, 8))
    synthetic[groups == "b"] *= 0.2
    found = quality_gap(real, synthetic, groups, groups, n_boot=199)
    pairs = found.pairs.set_index(["first", "second"])
    assert len(pairs) == 6 and found.worst == "b" and found.p_value == pairs["p_value"].min() < 1 / 200
    with_b = [("b" in pair) for pair in pairs.index]
    assert (pairs["p_value"][with_b] < 0.05).all() and (pairs["p_value"][~np.array(with_b)] > 0.05).all()
    assert pairs.loc[("a", "b"), "difference"] == pytest.approx(
        found.by_group.loc["a", found.view] - found.by_group.loc["b", found.view], abs=1e-12
    )


def answers(test: GapTest) -> list[float]:
    return [test.statistic, test.p_value, test.effect, test.gap, *test.by_group["kid"], *test.pairs["p_value"]]


def test_row_order_and_names_of_subjects_change_nothing_and_a_seed_repeats() -> None:
    real, synthetic, groups, (ids, others) = world((60, 40, 30), 6, images=2)(np.random.default_rng(5))
    synthetic[groups == "b"] += 0.2
    call = lambda a, b, seed=0: answers(  # noqa: E731
        quality_gap(real[a], synthetic[b], groups[a], groups[b], subjects=(-ids[a], others[b]), ids=(a, b), seed=seed, n_boot=199)
    )
    rng = np.random.default_rng(0)
    first = call(np.arange(130), np.arange(130))
    assert call(rng.permutation(130), rng.permutation(130)) == pytest.approx(first, abs=1e-10)
    other = call(np.arange(130), np.arange(130), seed=1)
    assert other[3:7] == first[3:7] and other[0] != first[0]


def test_of_a_large_group_some_subjects_are_drawn_whatever_the_order_of_rows() -> None:
    real, synthetic, groups, (ids, others) = world((250, 80, 40), 6, images=2)(np.random.default_rng(5))
    synthetic[groups == "b"] += 1.0
    call = lambda a, b, **more: quality_gap(  # noqa: E731
        real[a], synthetic[b], groups[a], groups[b], subjects=(ids[a], others[b]), ids=(a, b), n_boot=99, **more
    )
    rng, rows = np.random.default_rng(0), np.arange(370)
    few, again, all_of_them = call(rows, rows, at_most=60), call(rng.permutation(370), rng.permutation(370), at_most=60), call(rows, rows)
    assert answers(few) == pytest.approx(answers(again), abs=1e-10)
    assert few.by_group["n_real"].tolist() == [250, 80, 40] and few.worst == "b" and few.p_value < 0.05
    assert few.by_group.loc["c", "kid"] == all_of_them.by_group.loc["c", "kid"]  # 40 images are not too many
    assert few.by_group.loc["a", "kid"] != all_of_them.by_group.loc["a", "kid"]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic, groups, subjects = world((60, 40, 30), 6, images=2)(np.random.default_rng(6))
    whole = quality_gap(real, synthetic, groups, groups, subjects=subjects, n_boot=99)
    monkeypatch.setattr("evenhand.audit.fidelity._BLOCK_CELLS", 300)
    assert answers(quality_gap(real, synthetic, groups, groups, subjects=subjects, n_boot=99)) == pytest.approx(answers(whole), abs=1e-9)


def test_a_subject_in_two_groups_is_one_subject() -> None:
    # every real subject stands in both groups: what it shares cancels in the difference, and a test that took them apart would be blind
    rng = np.random.default_rng(7)
    shared = np.repeat(rng.normal(size=(60, 8)), 2, axis=0)
    real, synthetic = shared + 0.05 * rng.normal(size=(120, 8)), np.repeat(rng.normal(size=(60, 8)), 2, axis=0)
    synthetic = synthetic + 0.05 * rng.normal(size=(120, 8))
    groups, ids = np.tile(["a", "b"], 60), np.repeat(np.arange(60), 2)
    synthetic[groups == "b"] += 0.15
    together = quality_gap(real, synthetic, groups, groups, subjects=(ids, ids))
    apart = quality_gap(real, synthetic, groups, groups, subjects=None)
    assert together.gap == pytest.approx(apart.gap, abs=1e-12) and together.p_value < 0.05 < apart.p_value


def test_groups_that_cannot_be_measured_stay_with_a_reason() -> None:
    rng = np.random.default_rng(8)
    real, synthetic = rng.normal(size=(100, 4)), rng.normal(size=(100, 4))
    rg = ["a"] * 40 + ["b"] * 30 + ["tiny"] * 5 + ["only"] * 20 + ["unknown", None, np.nan, -1, "unspecified"]
    sg = ["a"] * 40 + ["b"] * 30 + ["tiny"] * 20 + ["-1"] * 10
    categories = ["a", "absent", "b", "only", "tiny", "unknown", "unspecified", -1, "-1"]
    real_groups, synthetic_groups = (pd.Series(pd.Categorical(g, categories=categories)) for g in (rg, sg))
    found = quality_gap(real, synthetic, real_groups, synthetic_groups, n_boot=99)
    assert found.by_group["reason"].to_dict() == {
        "a": "",
        "absent": "no real images",
        "b": "",
        "only": "no synthetic images",
        "tiny": "insufficient: 5 real images, at least 10 wanted",
    }
    assert found.by_group["kid"].notna().tolist() == [True, False, True, False, False] and len(found.pairs) == 1
    assert found.by_group["n_real"].tolist() == [40, 0, 30, 20, 5] and 0 < found.p_value <= 1
    alone = quality_gap(real[:40], synthetic[:40], real_groups[:40], synthetic_groups[:40])
    assert math.isnan(alone.p_value) and math.isnan(alone.effect) and math.isnan(alone.gap) and alone.worst is None and alone.pairs.empty
    assert alone.reason.startswith("1 of 5 groups can be measured, a gap needs 2 (absent: no real images")
    none = quality_gap(real, synthetic, ["unknown"] * 100, [-1] * 100)
    assert math.isnan(none.p_value) and none.by_group.empty and none.reason == "0 of 0 groups can be measured, a gap needs 2"


def test_few_subjects_and_images_that_do_not_differ_are_reasons() -> None:
    rng = np.random.default_rng(9)
    real, synthetic, groups = rng.normal(size=(90, 4)), rng.normal(size=(90, 4)), labels((30, 30, 30))
    subjects = np.where(groups == "c", 1000 + np.arange(90) // 5, np.arange(90))
    real[groups == "b"] = 0.3
    found = quality_gap(real, synthetic, groups, groups, subjects=subjects)
    assert found.by_group["reason"].tolist() == [
        "",
        "its real images all have the same features",
        "insufficient: real images of 6 subjects, at least 10 wanted",
    ]
    assert math.isnan(found.p_value) and math.isnan(found.by_group.loc["b", "whitened"])
    constant = quality_gap(np.ones((40, 3)), np.ones((40, 3)), labels((20, 20)), labels((20, 20)))
    assert math.isnan(constant.p_value) and "same features" in constant.reason
    dead = real[groups != "b"] * [1, 1, 1, 0]  # a feature that never changes
    assert 0 < quality_gap(dead, dead[::-1] + 0.1, labels((30, 30)), labels((30, 30)), n_boot=99).p_value <= 1


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.full((30, 3), np.nan), "NaN or Inf (first in row 0)"),
        (np.full((30, 3), 1e200), "too large"),
        (np.zeros(30), "shape (30,)"),
        (np.zeros((1, 3)), "1 rows"),
        (np.zeros((30, 4)), "use one encoder for both"),
        (np.zeros((29, 3)), "give one per image"),
    ],
)
def test_bad_input_is_a_one_line_error(bad: np.ndarray, says: str) -> None:
    groups = ["a", "b"] * 15
    for pair in ((bad, np.ones((30, 3))), (np.ones((30, 3)), bad)):
        with pytest.raises(FeatureError) as caught:
            quality_gap(*pair, groups, groups)
        assert says in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, UserError)
    with pytest.raises(FeatureError, match="3 subject ids"):
        quality_gap(np.ones((30, 3)), np.ones((30, 3)), groups, groups, subjects=[1, 2, 3])


def test_a_group_whose_real_images_do_not_differ_moves_no_other_group() -> None:
    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(120, 5)), rng.normal(0.1, 1.1, size=(120, 5))
    real[80:] = 1.0
    groups = np.repeat(["a", "b", "flat"], 40)
    together = quality_gap(real, synthetic, groups, groups, n_boot=199)
    alone = quality_gap(real[:80], synthetic[:80], groups[:80], groups[:80], n_boot=199)
    assert together.by_group.loc["flat", "reason"] == "its real images all have the same features"
    assert together.p_value == alone.p_value and together.effect == pytest.approx(alone.effect, rel=1e-9)


def test_which_images_of_a_large_group_are_taken_hangs_on_no_seed() -> None:
    rng = np.random.default_rng(4)
    real, synthetic = rng.normal(size=(260, 4)), rng.normal(0.05, 1.1, size=(260, 4))
    groups = np.repeat(["a", "b"], 130)
    found = [quality_gap(real, synthetic, groups, groups, n_boot=999, at_most=60, seed=seed) for seed in range(3)]
    assert len({test.effect for test in found}) == 1
    assert max(test.p_value for test in found) - min(test.p_value for test in found) < 0.1
