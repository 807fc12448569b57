"""Copies are planted and must be counted; distances are held against double loops and scikit-learn."""

import itertools
import math
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from cohorts.raw_data import real_data
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from evenhand.audit import matching, memorization
from evenhand.audit.frame import Estimate
from evenhand.audit.intervals import FeatureError
from evenhand.audit.memorization import (
    CopyScores,
    authenticity,
    authenticity_by_group,
    copy_rate,
    copy_rate_by_group,
    nearest_ratio,
    score_copies,
)
from evenhand.audit.neighbours import expected_nearest
from evenhand.cohorts.phantoms import MODALITIES

Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as again:
        return np.asarray(again, dtype=np.float32) / 255


def cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 4 % off a side, scaled back."""
    size = len(image)
    left, top, right, bottom = rng.uniform(0, 0.04, 4) * size
    picture = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    box = (left, top, size - right, size - bottom)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float32) / 255


EDITS: dict[str, Edit] = {
    "exact": lambda image, rng: image,
    "flipped": lambda image, rng: image[:, ::-1],
    "jpeg95": lambda image, rng: compressed(image, 95),
    "flipped jpeg95": lambda image, rng: compressed(image[:, ::-1], 95),
    "jpeg85": lambda image, rng: compressed(image, 85),
    "cropped": cropped,
    "brighter": lambda image, rng: np.clip((image - 0.5) * 0.95 + 0.53, 0, 1),
    "shifted": lambda image, rng: np.roll(image, (1, -1), axis=(0, 1)),
}


def edited(images: np.ndarray, edits: list[str], seed: int = 0) -> np.ndarray:
    """Each image changed by the edits in turn."""
    rng = np.random.default_rng(seed)
    return np.stack([EDITS[edits[i % len(edits)]](image, rng) for i, image in enumerate(images)]).astype(np.float32)


def world(modality: str, sizes: tuple[int, int, int] = (250, 120, 120), size: int = 32) -> list[np.ndarray]:
    """Training, held-out and innocent images."""
    images = MODALITIES[modality].generate(sum(sizes), size=size, seed=5).images
    return np.split(images, np.cumsum(sizes)[:2])


def planted(train: np.ndarray, innocent: np.ndarray, share: float, edits: list[str]) -> np.ndarray:
    copies = round(share * len(innocent))
    return np.concatenate([edited(train[:copies], edits), innocent[copies:]]) if copies else innocent


@pytest.fixture(scope="module")
def dermoscopy() -> tuple[list[np.ndarray], CopyScores]:
    """120 innocent images, then 96 copies, every edit in turn, of training images 0 to 95."""
    parts = world("dermoscopy")
    made = np.concatenate([parts[2], edited(parts[0][:96], list(EDITS))])
    return parts, score_copies(parts[0], parts[1], made)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_planted_copies_are_counted(share: float) -> None:
    train, heldout, innocent = world("chest")
    found = copy_rate(train, heldout, planted(train, innocent, share, ["exact", "flipped", "jpeg95", "flipped jpeg95", "cropped"]))
    assert abs(found.value - share) <= 0.03 and found.n == len(innocent)
    assert found.low <= share <= found.high and found.high - found.low < 0.25


@pytest.mark.parametrize("modality", ["brain", "chest"])
def test_copies_are_told_in_grey_images_of_either_kind(modality: str) -> None:
    train, heldout, innocent = world(modality)
    edits = ["exact", "flipped", "jpeg95", "flipped jpeg95", "cropped", "brighter"]
    scores = score_copies(train, heldout, np.concatenate([innocent, edited(train[:90], edits)]))
    assert scores.is_copy[: len(innocent)].mean() <= 0.02 and scores.is_copy[len(innocent) :].mean() >= 0.97
    assert scores.sensitivity > 0.9 and scores.leaked == 0 and scores.reason == ""


def test_every_edit_is_told_in_colour(dermoscopy: tuple[list[np.ndarray], CopyScores]) -> None:
    (_, _, innocent), scores = dermoscopy
    n = len(innocent)
    assert scores.is_copy[n:].all() and scores.is_copy[:n].mean() <= 0.02
    assert (scores.train_index[n:] == np.arange(96)).all()
    by_edit = dict(zip(EDITS, np.arange(96).reshape(-1, len(EDITS)).T + n, strict=True))
    assert (scores.transform[by_edit["exact"]] == "none").all() and (scores.transform[by_edit["flipped jpeg95"]] == "flipped").all()
    assert (scores.transform[by_edit["shifted"]] == "moved").all()
    assert abs(scores.estimate.value - 96 / (96 + n)) < 0.02


def test_exact_copies_rank_worst(dermoscopy: tuple[list[np.ndarray], CopyScores]) -> None:
    (_, _, innocent), scores = dermoscopy
    names = np.array(["innocent"] * len(innocent) + list(EDITS) * (96 // len(EDITS)))
    exact = np.isin(names, ["exact", "flipped"])
    changed = np.isin(names, ["innocent", "jpeg95", "flipped jpeg95", "jpeg85", "cropped"])  # a plain shift or gain is undone in full
    assert scores.score[exact].max() < 1e-3 < scores.score[changed].min()
    assert set(scores.worst(48)) == set(np.flatnonzero(~np.isin(names, ["innocent", "jpeg95", "flipped jpeg95", "jpeg85", "cropped"])))
    assert len(scores.worst(10**6)) == len(scores.score)


def test_scores_grow_with_the_noise_on_a_copy() -> None:
    train, heldout, _ = world("chest")
    noise = np.random.default_rng(1).normal(size=(30, 32, 32))
    levels = [0, 0.01, 0.02, 0.04, 0.08, 0.16]
    scores = score_copies(train, heldout, np.concatenate([np.clip(train[:30] + level * noise, 0, 1) for level in levels]))
    by_level = scores.score.reshape(len(levels), 30)
    assert (np.diff(by_level, axis=0) > 0).mean() > 0.98 and (np.diff(np.median(by_level, axis=1)) > 0).all()
    shares = (by_level < 1).mean(axis=1)
    assert shares[0] == 1 and (np.diff(shares) <= 0).all() and shares[-1] == 0


def test_a_worse_generator_is_no_copier() -> None:
    train, heldout, innocent = world("chest")
    small = [Image.fromarray((image * 255).astype(np.uint8)).resize((16, 16)) for image in innocent[:60]]
    blurred = np.stack([np.asarray(picture.resize((32, 32)), dtype=np.float32) / 255 for picture in small])
    averages = np.stack([train[start : start + 4].mean(axis=0) for start in range(60)])
    scores = score_copies(train, heldout, np.concatenate([blurred, averages, heldout]))
    frame = copy_rate_by_group(scores, ["blurred"] * 60 + ["averages"] * 60 + ["held-out"] * len(heldout))
    assert frame.by_group["value"].max() <= 0.03


def test_row_order_changes_nothing(dermoscopy: tuple[list[np.ndarray], CopyScores]) -> None:
    (train, heldout, innocent), scores = dermoscopy
    made = np.concatenate([innocent, edited(train[:96], list(EDITS))])
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(part)) for part in (train, heldout, made)]
    shuffled = score_copies(*(part[order] for part, order in zip((train, heldout, made), orders, strict=True)), ids=orders)
    np.testing.assert_allclose(shuffled.score, scores.score[orders[2]], rtol=0, atol=1e-10)
    np.testing.assert_allclose(shuffled.heldout_score, scores.heldout_score[orders[1]], rtol=0, atol=1e-10)
    assert (orders[0][shuffled.train_index] == scores.train_index[orders[2]]).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, heldout, innocent = world("chest", (60, 40, 30))
    made = np.concatenate([innocent, edited(train[:20], ["cropped"])])
    whole = score_copies(train, heldout, made)
    monkeypatch.setattr(matching, "_BLOCK", 17)
    monkeypatch.setattr(matching, "_PAIRS", 11)
    np.testing.assert_allclose(score_copies(train, heldout, made).score, whole.score, rtol=1e-3, atol=1e-5)


def test_sizes_types_and_repeats_of_images_may_differ() -> None:
    train, heldout, innocent = world("dermoscopy", (80, 60, 50), size=48)
    made = planted(train, innocent, 0.2, ["exact", "jpeg95"])
    small = np.stack([np.asarray(Image.fromarray(np.rint(image * 255).astype(np.uint8)).resize((40, 36))) for image in made])
    assert copy_rate(np.concatenate([train, train]), heldout, small).value == pytest.approx(0.2, abs=0.03)  # whole numbers of 0..255
    assert copy_rate(train[:1], heldout, np.concatenate([train[:1], innocent])).value == pytest.approx(1 / 51, abs=0.01)
    assert copy_rate(train, heldout, made.mean(axis=3, keepdims=True)).value == pytest.approx(0.2, abs=0.03)


def test_held_out_images_that_were_trained_on_are_left_out() -> None:
    train, heldout, innocent = world("dermoscopy")
    mixed = np.concatenate([heldout[:100], edited(train[100:120], ["exact", "jpeg95"])])
    scores = score_copies(train, mixed, planted(train, innocent, 0.5, ["exact", "flipped"]))
    assert scores.leaked == 20 and np.isnan(scores.heldout_score[100:]).all() and np.isfinite(scores.heldout_score[:100]).all()
    assert scores.estimate.value == pytest.approx(0.5, abs=0.03)
    with pytest.raises(FeatureError, match=r"4 held-out images, of 4 subject\(s\), are not in the training set"):
        copy_rate(train, np.concatenate([train[:50], heldout[:4]]), innocent)


def test_images_of_one_held_out_subject_are_no_neighbours() -> None:
    """60 training images, 40 of subjects, second ones of 20 of these, and 12 generated ones, all equally far from each other but twins."""
    coarse = np.random.default_rng(0).uniform(size=(132, 8, 8))
    train, heldout, innocent = np.split(np.kron(coarse, np.ones((4, 4))).astype(np.float32), [60, 120])
    features = np.eye(132)
    features[100:120] = features[60:80] + 0.1 * features[100:120]
    known = np.stack([coarse, coarse[:, :, ::-1]]).reshape(264, -1)

    def encoder(images: np.ndarray) -> np.ndarray:
        """The features of the image that each one is, edited or mirrored."""
        seen = images.reshape(len(images), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(images), -1)
        return features[((seen[:, None] - known) ** 2).sum(axis=2).argmin(axis=1) % 132]

    found = score_copies(train, heldout, innocent, encoder=encoder)
    grouped = score_copies(train, heldout, innocent, encoder=encoder, heldout_subjects=np.arange(60) % 40)
    single = score_copies(train, heldout[:40], innocent, encoder=encoder)
    assert grouped.sensitivity == single.sensitivity == 1
    np.testing.assert_allclose(grouped.heldout_score[:40], single.heldout_score, rtol=1e-6)
    assert (found.heldout_score[:20] > 10 * grouped.heldout_score[:20]).all()  # a twin at hand makes the ratio large
    with pytest.raises(FeatureError, match=r"of 1 subject\(s\)"):
        score_copies(train, heldout[:40], innocent, encoder=encoder, heldout_subjects=["a"] * 40)


def test_an_encoder_tells_copies_too() -> None:
    train, heldout, innocent = world("dermoscopy")

    def encoder(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)

    scores = score_copies(train, heldout, planted(train, innocent, 0.5, ["exact", "flipped", "jpeg95"]), encoder=encoder)
    assert scores.estimate.value == pytest.approx(0.5, abs=0.03)
    assert (scores.transform[:6] == ["none", "flipped", "none"] * 2).all() and scores.score[0] == 0
    features = encoder(train)
    assert scores.distance[90] == pytest.approx(
        min(np.linalg.norm(features - encoder(view)[0], axis=1).min() for view in (innocent[90:91], innocent[90:91, :, ::-1])), rel=1e-6
    )
    blind = score_copies(train, heldout, innocent, encoder=lambda images: np.ones((len(images), 2)))
    assert "too alike" in blind.reason and math.isnan(blind.estimate.value) and blind.estimate.n == 120
    with pytest.raises(FeatureError, match="the encoder gave shape"):
        copy_rate(train, heldout, innocent, encoder=lambda images: np.ones(3))
    with pytest.raises(FeatureError, match="NaN or Inf"):
        copy_rate(train, heldout, innocent, encoder=lambda images: np.full((len(images), 2), np.nan))


def test_blank_images_have_no_score() -> None:
    train, heldout, innocent = world("chest", (40, 30, 20))
    made = innocent.copy()
    made[3] = 0.4
    scores = score_copies(np.concatenate([train, np.zeros((1, 32, 32))]), heldout, made)
    assert np.flatnonzero(np.isnan(scores.score)).tolist() == [3] and scores.train_index[3] == -1 and scores.estimate.n == 19
    blank = score_copies(train, heldout, np.zeros((5, 32, 32)))
    assert blank.estimate.n == 0 and math.isnan(blank.estimate.value) and blank.reason == "every generated image is blank"


IMAGES = np.random.default_rng(0).random((20, 16, 16))


@pytest.mark.parametrize(
    ("train", "heldout", "synthetic", "message"),
    [
        (IMAGES, IMAGES[:0], IMAGES, "held-out images have shape"),
        (IMAGES, IMAGES[:9], IMAGES, "9 held-out"),
        (IMAGES[:0], IMAGES, IMAGES, "training images have shape"),
        (IMAGES, IMAGES, [], "generated images have shape"),
        (IMAGES * 0, IMAGES, IMAGES, "0 training"),
        (IMAGES, IMAGES * 0 + 0.5, IMAGES, "0 held-out"),
        (IMAGES, IMAGES, IMAGES * 255, "finite numbers in"),
        (IMAGES, IMAGES, np.where(IMAGES > 0.99, np.nan, IMAGES), "finite numbers in"),
        (IMAGES, IMAGES, IMAGES[0], "give numbers"),
        (IMAGES, IMAGES, np.zeros((3, 8, 8, 4)), "give numbers"),
        (IMAGES, IMAGES, [np.zeros((8, 8)), np.zeros((9, 9))], "give numbers"),
        (IMAGES, IMAGES, np.array(["a"]), "give numbers"),
        (IMAGES, IMAGES, IMAGES[:, :4, :4], "too small"),
        (IMAGES, IMAGES, IMAGES, "0 held-out images, of 0"),
    ],
)  # fmt: skip
def test_bad_images_are_refused_in_one_line(train: np.ndarray, heldout: np.ndarray, synthetic: np.ndarray, message: str) -> None:
    with pytest.raises(FeatureError, match=message) as refusal:
        copy_rate(train, heldout, synthetic)
    assert "\n" not in str(refusal.value)


def scored(score: list[float], heldout: list[float], sensitivity: float = 1.0) -> CopyScores:
    n, values = len(score), np.array(score, dtype=float)
    return CopyScores(values, values, np.ones(n), np.zeros(n, dtype=int), np.full(n, "none"), np.array(heldout), 0, sensitivity)


def test_what_passes_by_chance_is_taken_off() -> None:
    scores = scored([0.5] * 55 + [2.0] * 45, [0.9] * 10 + [3.0] * 90)
    assert scores.estimate.value == pytest.approx((0.55 - 0.1) / 0.9)
    # Wilson: 55 of 100 is [.4524, .6439], 10 of 100 is [.0552, .1744]; joined: .45 -+ sqrt(.0976^2 + .0744^2), sqrt(.0939^2 + .0448^2)
    assert (scores.estimate.low, scores.estimate.high) == pytest.approx((0.3637, 0.6156), abs=2e-4)
    none = scored([2.0] * 100, [0.9] * 10 + [3.0] * 90).estimate
    assert (none.value, none.low) == (0, 0) and 0 <= none.high < 0.05
    assert scored([0.5] * 20, [0.5] * 20).estimate == pytest.approx(Estimate(math.nan, math.nan, math.nan, 20), nan_ok=True)


def test_copy_rate_by_group() -> None:
    score = [0.5] * 30 + [2.0] * 10 + [2.0] * 40 + [0.5] * 5 + [0.5] * 20 + [math.nan]
    labels = ["rare"] * 40 + ["common"] * 40 + ["few"] * 5 + ["unknown"] * 20 + ["rare"]
    groups = pd.Categorical(labels, ["common", "rare", "few", "absent", "unknown"])
    heldout = [2.0] * 100
    frame = copy_rate_by_group(scored(score, heldout), groups)
    assert frame.by_group["value"].to_dict() == pytest.approx({"common": 0, "rare": 0.75, "few": math.nan, "absent": math.nan}, nan_ok=True)
    assert frame.by_group["n"].tolist() == [40, 40, 5, 0] and frame.worst == "rare" and frame.gap == pytest.approx(0.75)
    assert frame.by_group.loc["absent", "reason"] == "no images" and frame.by_group.loc["few", "reason"].startswith("insufficient: 5")
    assert frame.overall.n == 105 and frame.overall.value == pytest.approx(55 / 105)
    # a group whose own held-out images pass as often as its generated ones is no more memorised than by chance
    own = copy_rate_by_group(scored(score, [0.5] * 45 + [2.0] * 15 + [2.0] * 60), groups, heldout_groups=["rare"] * 60 + ["common"] * 60)
    assert own.by_group.loc["rare", "value"] == pytest.approx(0, abs=1e-12) and own.by_group.loc["common", "value"] == 0


def test_intervals_by_group_count_subjects() -> None:
    scores = scored([0.5] * 20 + [2.0] * 20, [2.0] * 100)
    alone = copy_rate_by_group(scores, ["a"] * 40).by_group.loc["a"]
    pairs = copy_rate_by_group(scores, ["a"] * 40, np.arange(40) // 4).by_group.loc["a"]
    assert pairs["high"] - pairs["low"] > 1.5 * (alone["high"] - alone["low"])


def test_groups_are_undefined_where_no_rate_can_be_told() -> None:
    frame = copy_rate_by_group(scored([0.5] * 20, [2.0] * 20, sensitivity=0.3), ["a"] * 20)
    assert math.isnan(frame.overall.value) and "too alike" in frame.by_group.loc["a", "reason"] and frame.worst is None
    with pytest.raises(FeatureError, match="3 group labels for 20"):
        copy_rate_by_group(scored([0.5] * 20, [2.0] * 20), ["a"] * 3)
    with pytest.raises(FeatureError, match="2 group labels for 20 held-out"):
        copy_rate_by_group(scored([0.5] * 20, [2.0] * 20), ["a"] * 20, heldout_groups=["a", "b"])


def test_low_tail_of_others_is_the_quantile_without_the_value() -> None:
    values = np.random.default_rng(0).random(237)
    expected = [np.quantile(np.delete(values, i), memorization.TAIL) for i in range(len(values))]
    np.testing.assert_allclose(memorization._low_tail_of_others(values), expected, rtol=1e-12)


def test_authenticity_by_hand() -> None:
    # nearest fellows: 0 -> 1, 1 -> 1, 5 -> 4. Distances: .5 to 0 (<= 1), 7 to 5 is 2 (<= 4), 0 to 0, 9.5 to 5 is 4.5 (> 4)
    train, made = [[0.0], [1.0], [5.0]], [[0.5], [7.0], [0.0], [9.5]]
    assert authenticity(train, made).value == 0.25
    assert authenticity([*train, [0.0], [5.0]], made).value == 0.25  # repeats count once
    with pytest.raises(FeatureError, match="needs 2 that differ"):
        authenticity([[1.0], [1.0]], made)
    with pytest.raises(FeatureError, match="1, 2 columns"):
        authenticity(train, [[1.0, 2.0], [3.0, 4.0]])


def test_authenticity_is_that_of_a_double_loop() -> None:
    rng = np.random.default_rng(2)
    train, made = rng.normal(size=(60, 5)), rng.normal(size=(80, 5))
    fellow = [min(np.linalg.norm(a - b) for j, b in enumerate(train) if i != j) for i, a in enumerate(train)]
    authentic = []
    for image in made:
        apart = [np.linalg.norm(image - other) for other in train]
        authentic.append(min(apart) > fellow[int(np.argmin(apart))])
    found = authenticity(train + 1e3, made + 1e3, subjects=np.arange(80) // 2)
    assert found.value == pytest.approx(np.mean(authentic)) and found.low < found.value < found.high and found.n == 80
    copied = np.concatenate([train[:40] + 1e-6, made[40:]])
    frame = authenticity_by_group(train, copied, ["a"] * 40 + ["b"] * 38 + ["c", "unknown"])
    assert frame.by_group.loc["a", "value"] == 0 and frame.worst == "a" and math.isnan(frame.by_group.loc["c", "value"])
    assert frame.by_group.loc["b", "value"] == pytest.approx(np.mean(authentic[40:78]))


def test_expected_nearest_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(4, 3)), rng.normal(size=(7, 3))
    apart = np.linalg.norm(queries[:, None] - gallery, axis=2)
    for size in (1, 3, 6, 7):
        expected = np.mean([apart[:, list(rows)].min(axis=1) for rows in itertools.combinations(range(7), size)], axis=0)
        np.testing.assert_allclose(expected_nearest(queries, gallery, size), expected, rtol=1e-9)


def test_nearest_ratio_of_sets_of_one_size() -> None:
    rng = np.random.default_rng(4)
    train, heldout, made = (rng.normal(size=(n, 6)) for n in (90, 90, 50))
    frame = nearest_ratio(train, heldout, made, ["a"] * 50)
    near, far = (NearestNeighbors(n_neighbors=1).fit(part).kneighbors(made)[0].mean() for part in (train, heldout))
    assert frame.overall.value == pytest.approx(near / far) and frame.overall.low < near / far < frame.overall.high
    order = rng.permutation(50)
    again = nearest_ratio(train[::-1], heldout, made[order], ["a"] * 50, ids=order)
    assert (again.overall.value, again.overall.low) == pytest.approx((frame.overall.value, frame.overall.low), abs=1e-10)


@pytest.mark.parametrize(("n", "m"), [(800, 100), (100, 800), (300, 300)])
def test_nearest_ratio_is_one_where_nothing_is_memorised(n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    train, heldout, made = (rng.normal(size=(size, 8)) for size in (n, m, 400))
    made[:100] = train[rng.choice(n, 100)] + 0.1 * rng.normal(size=(100, 8))
    frame = nearest_ratio(train, heldout, made, ["rare"] * 100 + ["common"] * 290 + ["unknown"] * 10, subjects=np.arange(400) // 2)
    assert frame.by_group.loc["common", "value"] == pytest.approx(1, abs=0.05)
    assert frame.by_group.loc["rare", "value"] < 0.4 and frame.by_group.loc["rare", "high"] < 0.5 and frame.worst == "rare"


def test_nearest_ratio_without_distances_is_undefined() -> None:
    same = np.ones((12, 3))
    frame = nearest_ratio(same, same, same, ["a"] * 12)
    assert math.isnan(frame.overall.value) and frame.by_group.loc["a", "reason"].startswith("not defined")
    with pytest.raises(FeatureError, match="3, 2, 3 columns"):
        nearest_ratio(same, same[:, :2], same, ["a"] * 12)


def test_real_radiographs_of_patients_with_many_alike() -> None:
    paths = sorted((real_data("nih_cxr") / "images").glob("*.png"))
    place = pd.factorize(np.array([path.name[:8] for path in paths]))[0] * 79 % 204  # patients in another order
    images = np.stack([np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255 for path in paths])
    train, heldout, innocent = images[place < 110], images[(place >= 110) & (place < 150)], images[place >= 150]
    for share in (0.0, 0.1, 0.5):
        made = planted(train, innocent, share, ["exact", "flipped", "jpeg95", "cropped"])
        assert copy_rate(train, heldout, made).value == pytest.approx(round(share * len(innocent)) / len(innocent), abs=0.03)


def test_training_images_that_differ_by_rounding_are_one_to_authenticity() -> None:
    rng = np.random.default_rng(0)
    train, made = rng.normal(size=(80, 6)), rng.normal(size=(60, 6))
    once = authenticity(train, made).value
    for noise in (0.0, 1e-7):
        twice = np.concatenate([train, train * (1 + noise * rng.normal(size=train.shape))])
        assert authenticity(twice, made).value == once
    with pytest.raises(FeatureError, match="the same features"):
        authenticity(np.ones((5, 3)), made[:, :3])


def test_authenticity_of_images_as_near_to_one_training_image_as_to_another_does_not_depend_on_row_order() -> None:
    rng = np.random.default_rng(0)
    train, made = (np.round(rng.normal(size=(n, 4)) * 1.5) / 1.5 for n in (150, 120))  # on a grid: many are equally near
    groups = np.array(["a", "b"] * 60)
    first = authenticity_by_group(train, made, groups).by_group
    for seed in range(3):
        order, others = np.random.default_rng(seed).permutation(120), np.random.default_rng(seed + 9).permutation(150)
        again = authenticity_by_group(train[others], made[order], groups[order]).by_group
        pd.testing.assert_frame_equal(first, again)
    # by hand: 1 lies between 0 (its fellow 0.5 away) and 2 (its fellow 3 away), so it is not farther than each one's fellow
    assert authenticity([[-0.5], [0.0], [2.0], [5.0]], [[1.0], [9.0]]).value == 0.5
    assert authenticity([[5.0], [2.0], [0.0], [-0.5]], [[1.0], [9.0]]).value == 0.5
