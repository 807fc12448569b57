"""Memorisation: which generated images are copies of training images, and how near the others come.

A copy may be mirrored, cropped or shifted by a few pixels, resampled, compressed or brightened, so a training image is laid over a
generated one by least squares before the two are compared. Held-out images, which nobody trained on, say how near chance comes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import (
    FeatureError,
    as_features,
    bootstrap_weights,
    drawing_order,
    image_ranks,
    percentile_interval,
    share_interval,
    subject_codes,
)
from evenhand.audit.matching import LARGEST_SIDE, NearestPictures, as_float, as_images, as_pictures, not_blank
from evenhand.audit.neighbours import Finder, NearestFeatures, expected_nearest, largest_of_nearest, nearest_other
from evenhand.core.randomness import generator

Encoder = Callable[[np.ndarray], Any]
MIN_HELDOUT, MIN_N = 10, 10
TAIL = 0.01  # a copy is nearer than all but this share of held-out images
_ROOM = 0.15  # and nearer still: so far on the way (of logarithms) to where edited copies lie
MIN_SENSITIVITY = 0.5
_HELDOUT_AT_MOST, _TRIALS = 1500, 100
_BLOCK = 256  # images encoded at once
_EDGE = 1e-9  # of a distance: as far as that one's fellow, but for rounding, is not farther


@dataclass(frozen=True)
class CopyScores:
    """How near each of n generated images comes to a training image; NaN where an image is blank.

    ``score`` is the larger of ``distance`` and ``ratio``, each in units of its 1st percentile over held-out images (drawn in where
    edited copies lie far below it): below 1 is a copy, 0 an exact one. ``distance`` is how much of the picture (0 to 1, root mean
    square) the nearest training image leaves unexplained, or a distance of features; ``heldout_distance`` the same for the nearest
    held-out image. ``heldout_score`` holds the scores of the held-out images themselves (NaN where not used). ``leaked`` held-out
    images are in the training set and were left out. ``sensitivity`` is the share of mirrored and compressed training images, half
    of them cropped too, that would be called copies.
    """

    score: np.ndarray
    distance: np.ndarray
    heldout_distance: np.ndarray
    train_index: np.ndarray  # -1 where an image is blank
    transform: np.ndarray  # "none", "flipped", "moved" or "flipped, moved": how the training image was laid over
    heldout_score: np.ndarray
    leaked: int
    sensitivity: float

    @property
    def is_copy(self) -> np.ndarray:
        """Which images are copies or near copies (n,)."""
        return self.score < 1

    @property
    def ratio(self) -> np.ndarray:
        """Distance to the nearest training image over that to the nearest held-out image (n,)."""
        return _ratio(self.distance, self.heldout_distance)

    @property
    def reason(self) -> str:
        """Why no copy rate can be told; empty where it can."""
        if self.sensitivity < MIN_SENSITIVITY:
            return f"only {self.sensitivity:.0%} of edited training images are told from held-out ones: images are too alike"
        return "" if np.isfinite(self.score).any() else "every generated image is blank"

    @property
    def estimate(self) -> Estimate:
        """The copy rate of all images."""
        return _chance_corrected(self, np.ones(len(self.score), dtype=bool), np.arange(len(self.score)), self.heldout_score)

    def worst(self, count: int = 10) -> np.ndarray:
        """Indices of the generated images nearest to a training image, worst first."""
        order = np.lexsort((self.distance, self.score))
        return order[np.isfinite(self.score[order])][:count]


def copy_rate(train: Any, heldout: Any, synthetic: Any, *, encoder: Encoder | None = None, ids: Any = None) -> Estimate:
    """Share of generated images that are copies or near copies of a training image, with a 95 % interval.

    A copy is nearer to a training image than 99 % of held-out images are, both outright and relative to how near it comes to a
    held-out image (distances set against those to neighbours, as in Carlini et al. 2023, arXiv 2301.13188). What passes by chance,
    as the held-out images tell, is taken off. NaN where edited copies of training images cannot be told from held-out images.

    Args:
        train, heldout, synthetic: images (n, H, W) or (n, H, W, 3) in [0, 1], or whole numbers 0..255; sizes may differ.
        encoder: images -> features (n, d), compared by Euclidean distance, mirrored or not. None = pixels.
        ids: three arrays (None in place of any), of training, held-out and generated images: what identifies each image, such as
            the hash of its file; draws are keyed on it. None = its row.

    Raises:
        FeatureError: another shape or range, NaN, fewer than 10 held-out images, or blank images only.
    """
    return score_copies(train, heldout, synthetic, encoder=encoder, ids=ids).estimate


def score_copies(
    train: Any, heldout: Any, synthetic: Any, *, encoder: Encoder | None = None, heldout_subjects: Any = None, ids: Any = None
) -> CopyScores:
    """As ``copy_rate``, with an answer an image. Held-out images of one of ``heldout_subjects`` are no neighbours of each other."""
    names = ("training", "held-out", "generated")
    stacks = [as_images(images, name) for images, name in zip((train, heldout, synthetic), names, strict=True)]
    side = min(LARGEST_SIDE, *(size for stack in stacks for size in stack.shape[1:3]))
    if side < 8:
        raise FeatureError(f"images of {side} pixels are too small to tell copies; give 8 or more")
    pictures = [as_pictures(stack, side, name) for stack, name in zip(stacks, names, strict=True)]
    ranks = [image_ranks(own, len(stack)) for own, stack in zip((None,) * 3 if ids is None else ids, stacks, strict=True)]
    rows = [not_blank(part, own) for part, own in zip(pictures, ranks, strict=True)]
    rows[1] = rows[1][:_HELDOUT_AT_MOST]
    if len(rows[0]) < 1 or len(rows[1]) < MIN_HELDOUT:
        counts = f"{len(rows[0])} training and {len(rows[1])} held-out images that are not blank"
        raise FeatureError(f"{counts}: copies are told by comparison; give at least 1 and {MIN_HELDOUT}")
    edited = _edited(stacks[0], rows[0][:_TRIALS])
    finder: Finder
    if encoder is None:
        parts, trials = [part[index] for part, index in zip(pictures, rows, strict=True)], as_pictures(edited, side, "edited")
        finder = NearestPictures(parts[0])
    else:
        parts = [_encoded(encoder, stack, name)[index] for stack, name, index in zip(stacks, names, rows, strict=True)]
        trials, finder = _encoded(encoder, edited, "edited"), NearestFeatures()

    known: Any = finder.gallery(parts[0])
    control = _control(finder, known, parts[1], subject_codes(heldout_subjects, len(stacks[1]))[rows[1]], trials)
    found, others = finder.nearest(parts[2], known), finder.nearest(parts[2], control.gallery).distance
    n = len(stacks[2])
    transform = np.array(["none", "flipped", "moved", "flipped, moved"])[found.flipped + 2 * found.moved]
    return CopyScores(
        score=_spread(control.score(found.distance, others), rows[2], n, math.nan),
        distance=_spread(found.distance, rows[2], n, math.nan),
        heldout_distance=_spread(others, rows[2], n, math.nan),
        train_index=_spread(rows[0][found.which], rows[2], n, -1),
        transform=_spread(transform, rows[2], n, "none"),
        heldout_score=_spread(control.own_score(), rows[1][control.kept], len(stacks[1]), math.nan),
        leaked=int((~control.kept).sum()),
        sensitivity=control.sensitivity,
    )


@dataclass(frozen=True)
class _Control:
    """The held-out images that are kept, as a gallery, and how near each comes to a training image: outright and in ratio."""

    gallery: Any
    kept: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    cut: float = 1.0
    sensitivity: float = math.nan

    def score(self, distance: np.ndarray, others: np.ndarray) -> np.ndarray:
        limits = [np.quantile(values, TAIL) for values in (self.distance, self.ratio)]
        return np.maximum(_ratio(distance, limits[0]), _ratio(_ratio(distance, others), limits[1])) / self.cut

    def own_score(self) -> np.ndarray:
        """Each held-out image by the limits of all the others: none is judged by itself."""
        return np.maximum(*(_ratio(values, _low_tail_of_others(values)) for values in (self.distance, self.ratio))) / self.cut


def _control(finder: Finder, known: Any, heldout: np.ndarray, ids: np.ndarray, trials: np.ndarray) -> _Control:
    """Held-out images against the training images, without those as near as edited copies are: they leaked."""
    copied, distance = finder.nearest(trials, known).distance, finder.nearest(heldout, known).distance
    usual, most = np.quantile(copied, [0.5, 0.95])
    limit = min(most, max(0.25 * float(np.median(distance)), 0.05 * usual))
    kept = (distance > limit) | (most == 0)  # an encoder that sees nothing shows no leak
    if kept.sum() < MIN_HELDOUT or len(np.unique(ids[kept])) < 2:
        counts = f"{int(kept.sum())} held-out images, of {len(np.unique(ids[kept]))} subject(s), are not in the training set"
        raise FeatureError(f"{counts}; give at least {MIN_HELDOUT}, of 2 or more")
    gallery = finder.gallery(heldout[kept])
    apart = finder.nearest(heldout[kept], gallery, ids[kept]).distance
    control = _Control(gallery, kept, distance[kept], _ratio(distance[kept], apart))
    edited = control.score(copied, finder.nearest(trials, gallery).distance)
    # One patient's many images, near those of another, can be more than the tail. Where edited copies leave room they are kept out.
    cut = float(np.clip(np.quantile(edited, 0.95), 0.01, 1)) ** _ROOM
    return replace(control, cut=cut, sensitivity=float((edited < cut).mean()))


def _low_tail_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the quantile ``TAIL`` of all the others."""
    in_order, rank = np.sort(values), np.argsort(np.argsort(values, kind="stable"))
    place = TAIL * (len(values) - 2)
    below, above = (in_order[at + (rank <= at)] for at in (int(place), int(place) + 1))
    return below + (above - below) * (place - int(place))


def copy_rate_by_group(
    scores: CopyScores, groups: Any, subjects: Any = None, *, heldout_groups: Any = None, min_n: int = MIN_N
) -> SubgroupFrame:
    """The copy rate by group: lower is better. Rare groups tend to be memorised more.

    Args:
        groups: one label per image; unknown, unspecified, NaN and -1 are no group, yet count in ``overall``.
        subjects: one id per image; None = every image its own subject.
        heldout_groups: a label a held-out image. What passes by chance is then told by the group's own held-out images, where it has
            50 of them: a group whose images are all alike comes nearer to training images.
    """
    control = scores.heldout_score
    own, names = as_labels(np.full(len(control), -1) if heldout_groups is None else heldout_groups)
    if len(own) != len(control):
        raise FeatureError(f"{len(own)} group labels for {len(control)} held-out images; give one per image")

    def cell(rows: np.ndarray, ids: np.ndarray, name: Any) -> Estimate:
        chance = control[own == names.index(name)] if name in names else control
        return _chance_corrected(scores, rows, ids, chance if np.isfinite(chance).sum() >= 50 else control)

    return _by_group(groups, subjects, np.isfinite(scores.score), cell, False, min_n, scores.reason)


def _chance_corrected(scores: CopyScores, rows: np.ndarray, ids: np.ndarray, control: np.ndarray) -> Estimate:
    """(share - chance) / (1 - chance); the interval joins those of the two shares (MOVER; Zou and Donner 2008)."""
    rows = rows & np.isfinite(scores.score)
    n, passed = int(rows.sum()), control[np.isfinite(control)] < 1
    if scores.reason or n == 0 or passed.all():
        return _undefined(n)
    share, low, high = share_interval(scores.is_copy[rows], subject_codes(ids[rows], n))
    chance, least, most = share_interval(passed, np.arange(len(passed)))
    value = share - chance
    below, above = value - math.hypot(share - low, most - chance), value + math.hypot(high - share, chance - least)
    value, below, above = np.clip(np.array([value, below, above]) / (1 - chance), 0, 1).tolist()
    return Estimate(value, below, above, n)


def authenticity(train_features: Any, synthetic_features: Any, *, subjects: Any = None) -> Estimate:
    """Share of generated images that are authentic (Alaa et al. 2022, arXiv 2102.08921), with a 95 % interval.

    An image is authentic if it is farther from its nearest training image than that one is from its own nearest fellow; of several
    equally near ones it must hold for each. Repeated training images count once: with a fellow at distance 0 every near copy of theirs
    would be authentic.

    Args:
        train_features, synthetic_features: (n, d) and (m, d) of one encoder.
        subjects: one id a generated image; None = every image its own subject.

    Raises:
        FeatureError: another shape, NaN or Inf, or fewer than 2 different training images.

    >>> authenticity([[0.0], [1.0], [5.0]], [[0.5], [7.0], [0.0], [9.5]]).value
    0.25
    """
    authentic = _authentic(train_features, synthetic_features)
    return Estimate(*share_interval(authentic, subject_codes(subjects, len(authentic))), len(authentic))


def authenticity_by_group(
    train_features: Any, synthetic_features: Any, groups: Any, *, subjects: Any = None, min_n: int = MIN_N
) -> SubgroupFrame:
    """``authenticity`` by group of the generated images: higher is better."""
    authentic = _authentic(train_features, synthetic_features)

    def cell(rows: np.ndarray, ids: np.ndarray, _: Any) -> Estimate:
        n = int(rows.sum())
        return Estimate(*share_interval(authentic[rows], subject_codes(ids[rows], n)), n)

    return _by_group(groups, subjects, np.ones(len(authentic), dtype=bool), cell, True, min_n)


def _authentic(train_features: Any, synthetic_features: Any) -> np.ndarray:
    train, synthetic = _as_feature_sets(("training", train_features), ("generated", synthetic_features))
    apart = nearest_other(train)
    if not np.isfinite(apart).any():
        raise FeatureError("all training images have the same features; authenticity needs 2 that differ")
    distance, reach = largest_of_nearest(synthetic, train, apart)
    return np.asarray(distance > reach * (1 + _EDGE))


def nearest_ratio(
    train: Any,
    heldout: Any,
    synthetic: Any,
    groups: Any,
    *,
    subjects: Any = None,
    ids: Any = None,
    n_boot: int = 1000,
    seed: int = 0,
    min_n: int = MIN_N,
) -> SubgroupFrame:
    """Mean distance to the nearest training image over that to the nearest held-out image, by group: below 1 is memorised.

    The larger a set, the nearer its nearest image, so the sets are put at one size. A larger held-out set enters with what a random
    subset of it would give (in expectation: no draw is made). A larger training set enters whole, since a subset would miss copies;
    the ratio is divided by what its size alone does to the distances of held-out images.

    Args:
        train, heldout, synthetic: features (n, d) of one encoder.
        groups, subjects: a label, and an id, for each generated image.
        ids: what identifies each generated image, such as the hash of its file; draws are keyed on it. None = its row.

    Raises:
        FeatureError: another shape, NaN or Inf, or labels that are not one per image.
    """
    known, control, made = _as_feature_sets(("training", train), ("held-out", heldout), ("generated", synthetic))
    size = min(len(known), len(control))
    near, far = expected_nearest(made, known, len(known)), expected_nearest(made, control, size)
    whole, part = (expected_nearest(control, known, number).mean() for number in (len(known), size))
    far = far * (whole / part if part > 0 else 1.0)
    ranks = image_ranks(ids, len(near))

    def cell(rows: np.ndarray, units: np.ndarray, name: Any) -> Estimate:
        n = int(rows.sum())
        order, codes = drawing_order(ranks[rows], units[rows])
        above, below = near[rows][order], far[rows][order]
        if below.sum() == 0:
            return _undefined(n)
        draws = bootstrap_weights(codes, n_boot, generator(seed, "nearest_ratio", str(name)))
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = np.concatenate([(weights @ above) / (weights @ below) for weights in draws])
        return Estimate(float(above.sum() / below.sum()), *percentile_interval(replicates), n)

    return _by_group(groups, subjects, np.ones(len(near), dtype=bool), cell, True, min_n)


def _by_group(
    groups: Any,
    subjects: Any,
    usable: np.ndarray,
    cell: Callable[[np.ndarray, np.ndarray, Any], Estimate],
    higher: bool,
    min_n: int,
    fault: str = "",
) -> SubgroupFrame:
    """A frame of ``cell(rows, subject codes, group)``; a small group, one of one subject, or all of a faulty whole, is undefined."""
    codes, names = as_labels(groups)
    if len(codes) != len(usable):
        raise FeatureError(f"{len(codes)} group labels for {len(usable)} generated images; give one per image")
    ids, cells = subject_codes(subjects, len(usable)), {}
    for code, name in enumerate(names):
        rows = usable & (codes == code)
        n = int(rows.sum())
        reason = fault or ("no images" if n == 0 else f"insufficient: {n} images, at least {min_n} wanted" if n < min_n else "")
        reason = reason or ("insufficient: all images are of one subject" if len(np.unique(ids[rows])) < 2 else "")
        estimate = _undefined(n) if reason else cell(rows, ids, name)
        cells[name] = (estimate, reason if reason or estimate.defined else "not defined: nothing to compare with")
    overall = _undefined(int(usable.sum())) if fault or not usable.any() else cell(usable, ids, "overall")
    return SubgroupFrame.of(cells, overall, higher)


def _undefined(n: int) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, n)


def _ratio(above: np.ndarray, below: Any) -> np.ndarray:
    """above / below, where 0 / 0 is 1 (as near to one as to the other) and x / 0 infinite."""
    safe = np.where(below > 0, below, 1.0)
    return np.where(below > 0, above / safe, np.where(above > 0, math.inf, 1.0))


def _spread(values: np.ndarray, rows: np.ndarray, n: int, empty: Any) -> np.ndarray:
    """``values`` put at ``rows`` of n."""
    full = np.full(n, empty, dtype=values.dtype)
    full[rows] = values
    return full


def _edited(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Training images as a copy may come: mirrored or not, JPEG 75 to 95, every other one also cropped (6 % a side) and retoned."""
    made = []
    for place, row in enumerate(rows):
        rng = generator(0, "memorization/edit", place)
        picture = Image.fromarray(np.rint(as_float(images[row], "training") * 255).clip(0, 255).astype(np.uint8))
        (width, height), cut, buffer = picture.size, rng.uniform(0, 0.06, 4) * (place % 2), io.BytesIO()
        box = (cut[0] * width, cut[1] * height, width * (1 - cut[2]), height * (1 - cut[3]))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
        with Image.open(buffer) as again:
            pixels = np.asarray(again, dtype=np.float32) / 255
        contrast, brightness = rng.uniform(-1, 1, 2) * (place % 2) * [0.05, 0.03]
        made.append(np.clip((pixels - 0.5) * (1 + contrast) + 0.5 + brightness, 0, 1))
    return np.stack(made)


def _encoded(encoder: Encoder, images: np.ndarray, name: str) -> np.ndarray:
    """Features (n, 2, d) of images as they are and mirrored."""
    sides: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(images), _BLOCK):
        block = as_float(images[start : start + _BLOCK], name)
        for part, view in zip(sides, (block, block[:, :, ::-1]), strict=True):
            part.append(np.asarray(encoder(np.ascontiguousarray(view))))
            if part[-1].ndim != 2 or len(part[-1]) != len(view):
                raise FeatureError(f"the encoder gave shape {part[-1].shape} for {len(view)} {name} images; it must give (n, d)")
    both = as_features(np.concatenate([*sides[0], *sides[1]]), name)
    return np.stack(np.split(both, 2), axis=1)


def _as_feature_sets(*sets: tuple[str, Any]) -> list[np.ndarray]:
    parts = [as_features(features, name) for name, features in sets]
    if len({part.shape[1] for part in parts}) > 1:
        raise FeatureError(f"features have {', '.join(str(part.shape[1]) for part in parts)} columns; use one encoder for all")
    return parts
