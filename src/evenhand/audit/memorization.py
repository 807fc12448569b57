"""Memorisation: which generated images are copies of training images, and how near the others come.

A copy may be mirrored, cropped or shifted by a few pixels, resampled, compressed or brightened, so a training image is laid over a
generated one by least squares before the two are compared. Held-out images, which nobody trained on, say how near chance comes.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from evenhand.audit.frame import Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import (
    FeatureError,
    as_features,
    bootstrap_weights,
    canonical_order,
    percentile_interval,
    share_interval,
    subject_codes,
)
from evenhand.core.randomness import generator

Encoder = Callable[[np.ndarray], Any]
MIN_HELDOUT, MIN_N = 10, 10
TAIL = 0.01  # a copy is nearer than all but this share of held-out images
_HELDOUT_AT_MOST, _TRIALS = 1500, 100
_BLOCK, _PAIRS = 256, 128  # images, and pairs of pictures, held at once


@dataclass(frozen=True)
class CopyScores:
    """How near each of n generated images comes to a training image; NaN where an image is blank.

    ``score`` is the larger of ``distance`` and ``ratio``, each in units of its 1st percentile over held-out images: below 1 is a
    copy, 0 an exact one. ``distance`` is how much of the picture (0 to 1, root mean square) the nearest training image leaves
    unexplained, or a distance of features; ``heldout_distance`` the same for the nearest held-out image. ``heldout_score`` holds the
    scores of the held-out images themselves (NaN where not used). ``leaked`` held-out images are in the training set and were left
    out. ``sensitivity`` is the share of mirrored and compressed training images, half of them cropped too, that would be called copies.
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
        if self.sensitivity < 0.25:
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


def copy_rate(train: Any, heldout: Any, synthetic: Any, *, encoder: Encoder | None = None) -> Estimate:
    """Share of generated images that are copies or near copies of a training image, with a 95 % interval.

    A copy is nearer to a training image than 99 % of held-out images are, both outright and relative to how near it comes to a
    held-out image (distances set against those to neighbours, as in Carlini et al. 2023, arXiv 2301.13188). What passes by chance,
    as the held-out images tell, is taken off. NaN where edited copies of training images cannot be told from held-out images.

    Args:
        train, heldout, synthetic: images (n, H, W) or (n, H, W, 3) in [0, 1], or whole numbers 0..255; sizes may differ.
        encoder: images -> features (n, d), compared by Euclidean distance, mirrored or not. None = pixels.

    Raises:
        FeatureError: another shape or range, NaN, fewer than 10 held-out images, or blank images only.
    """
    return score_copies(train, heldout, synthetic, encoder=encoder).estimate


def score_copies(
    train: Any, heldout: Any, synthetic: Any, *, encoder: Encoder | None = None, heldout_subjects: Any = None
) -> CopyScores:
    """As ``copy_rate``, with an answer an image. Held-out images of one of ``heldout_subjects`` are no neighbours of each other."""
    names = ("training", "held-out", "generated")
    stacks = [_as_images(images, name) for images, name in zip((train, heldout, synthetic), names, strict=True)]
    side = min(_SIDE, *(size for stack in stacks for size in stack.shape[1:3]))
    if side < 8:
        raise FeatureError(f"images of {side} pixels are too small to tell copies; give 8 or more")
    pictures = [_pictures(stack, side, name) for stack, name in zip(stacks, names, strict=True)]
    rows = [_in_order(part) for part in pictures]
    rows[1] = rows[1][:_HELDOUT_AT_MOST]
    if len(rows[0]) < 1 or len(rows[1]) < MIN_HELDOUT:
        counts = f"{len(rows[0])} training and {len(rows[1])} held-out images that are not blank"
        raise FeatureError(f"{counts}: copies are told by comparison; give at least 1 and {MIN_HELDOUT}")
    edited = _edited(stacks[0], rows[0][:_TRIALS])
    finder: _Finder
    if encoder is None:
        parts, trials = [part[index] for part, index in zip(pictures, rows, strict=True)], _pictures(edited, side, "edited")
        finder = _Search(parts[0])
    else:
        parts = [_encoded(encoder, stack, name)[index] for stack, name, index in zip(stacks, names, rows, strict=True)]
        trials, finder = _encoded(encoder, edited, "edited"), _Features()

    known = finder.gallery(parts[0])
    copied, found = finder.nearest(trials, known), finder.nearest(parts[2], known)
    control = _control(finder, known, parts[1], subject_codes(heldout_subjects, len(stacks[1]))[rows[1]], copied.distance)
    others = finder.nearest(parts[2], control.gallery).distance
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
        sensitivity=float((control.score(copied.distance, finder.nearest(trials, control.gallery).distance) < 1).mean()),
    )


@dataclass(frozen=True)
class _Control:
    """The held-out images that are kept, as a gallery, and how near each comes to a training image: outright and in ratio."""

    gallery: Any
    kept: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray

    def score(self, distance: np.ndarray, others: np.ndarray) -> np.ndarray:
        limits = [np.quantile(values, TAIL) for values in (self.distance, self.ratio)]
        return np.maximum(_ratio(distance, limits[0]), _ratio(_ratio(distance, others), limits[1]))

    def own_score(self) -> np.ndarray:
        """Each held-out image by the limits of all the others: none is judged by itself."""
        return np.maximum(*(_ratio(values, _low_tail_of_others(values)) for values in (self.distance, self.ratio)))


def _control(finder: _Finder, known: Any, heldout: np.ndarray, ids: np.ndarray, copied: np.ndarray) -> _Control:
    """Held-out images against the training images, without those as near as edited copies are: they leaked."""
    distance = finder.nearest(heldout, known).distance
    usual, most = np.quantile(copied, [0.5, 0.95])
    limit = min(most, max(0.25 * float(np.median(distance)), 0.05 * usual))
    kept = (distance > limit) | (most == 0)  # an encoder that sees nothing shows no leak
    if kept.sum() < MIN_HELDOUT or len(np.unique(ids[kept])) < 2:
        counts = f"{int(kept.sum())} held-out images, of {len(np.unique(ids[kept]))} subject(s), are not in the training set"
        raise FeatureError(f"{counts}; give at least {MIN_HELDOUT}, of 2 or more")
    gallery = finder.gallery(heldout[kept])
    apart = finder.nearest(heldout[kept], gallery, ids[kept]).distance
    return _Control(gallery, kept, distance[kept], _ratio(distance[kept], apart))


def _low_tail_of_others(values: np.ndarray) -> np.ndarray:
    """For each value the quantile ``TAIL`` of all the others."""
    in_order, rank = np.sort(values), np.argsort(np.argsort(values, kind="stable"))
    place = TAIL * (len(values) - 2)
    below, above = (in_order[at + (rank <= at)] for at in (int(place), int(place) + 1))
    return below + (above - below) * (place - int(place))


def copy_rate_by_group(scores: CopyScores, groups: Any, subjects: Any = None, *, heldout_groups: Any = None) -> SubgroupFrame:
    """The copy rate by group: lower is better. Rare groups tend to be memorised more.

    Args:
        groups: a label an image; unknown, unspecified, NaN and -1 are no group, yet count in ``overall``.
        subjects: one id an image; None = every image its own subject.
        heldout_groups: a label a held-out image. What passes by chance is then told by the group's own held-out images, where it has
            50 of them: a group whose images are all alike comes nearer to training images.
    """
    control = scores.heldout_score
    own, names = as_labels(np.full(len(control), -1) if heldout_groups is None else heldout_groups)
    if len(own) != len(control):
        raise FeatureError(f"{len(own)} group labels for {len(control)} held-out images; give one an image")

    def cell(rows: np.ndarray, ids: np.ndarray, name: Any) -> Estimate:
        chance = control[own == names.index(name)] if name in names else control
        return _chance_corrected(scores, rows, ids, chance if np.isfinite(chance).sum() >= 50 else control)

    return _by_group(groups, subjects, np.isfinite(scores.score), cell, False, scores.reason)


def _chance_corrected(scores: CopyScores, rows: np.ndarray, ids: np.ndarray, control: np.ndarray) -> Estimate:
    """(share - chance) / (1 - chance); the interval joins those of the two shares (MOVER; Zou and Donner 2008)."""
    rows = rows & np.isfinite(scores.score)
    n, passed = int(rows.sum()), control[np.isfinite(control)] < 1
    if scores.reason or n == 0 or passed.all():
        return _undefined(n)
    share, low, high = share_interval(scores.is_copy[rows], subject_codes(ids[rows], n))
    chance, least, most = share_interval(passed, np.arange(len(passed)))
    value = share - chance
    bounds = np.array([value, value - math.hypot(share - low, most - chance), value + math.hypot(high - share, chance - least)])
    return Estimate(*np.clip(bounds / (1 - chance), 0, 1).tolist(), n)


def authenticity(train_features: Any, synthetic_features: Any, *, subjects: Any = None) -> Estimate:
    """Share of generated images that are authentic (Alaa et al. 2022, arXiv 2102.08921), with a 95 % interval.

    An image is authentic if it is farther from its nearest training image than that one is from its own nearest fellow. Repeated
    training images count once: with a fellow at distance 0 every near copy of theirs would be authentic.

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


def authenticity_by_group(train_features: Any, synthetic_features: Any, groups: Any, *, subjects: Any = None) -> SubgroupFrame:
    """``authenticity`` by group of the generated images: higher is better."""
    authentic = _authentic(train_features, synthetic_features)

    def cell(rows: np.ndarray, ids: np.ndarray, _: Any) -> Estimate:
        n = int(rows.sum())
        return Estimate(*share_interval(authentic[rows], subject_codes(ids[rows], n)), n)

    return _by_group(groups, subjects, np.ones(len(authentic), dtype=bool), cell, True)


def _authentic(train_features: Any, synthetic_features: Any) -> np.ndarray:
    train, synthetic = _as_feature_sets(("training", train_features), ("generated", synthetic_features))
    train = np.unique(train, axis=0)
    if len(train) < 2:
        raise FeatureError("all training images have the same features; authenticity needs 2 that differ")
    distance, nearest = _nearest_rows(synthetic, train)
    return distance > _nearest_rows(train, train, np.arange(len(train)))[0][nearest]


def nearest_ratio(
    train: Any, heldout: Any, synthetic: Any, groups: Any, *, subjects: Any = None, n_boot: int = 1000, seed: int = 0
) -> SubgroupFrame:
    """Mean distance to the nearest training image over that to the nearest held-out image, by group: below 1 is memorised.

    The larger a set, the nearer its nearest image, so the sets are put at one size. A larger held-out set enters with what a random
    subset of it would give (in expectation: no draw is made). A larger training set enters whole, since a subset would miss copies;
    the ratio is divided by what its size alone does to the distances of held-out images.

    Args:
        train, heldout, synthetic: features (n, d) of one encoder.
        groups, subjects: a label, and an id, for each generated image.

    Raises:
        FeatureError: another shape, NaN or Inf, or labels that are not one an image.
    """
    known, control, made = _as_feature_sets(("training", train), ("held-out", heldout), ("generated", synthetic))
    size = min(len(known), len(control))
    near, far = _expected_nearest(made, known, len(known)), _expected_nearest(made, control, size)
    whole, part = (_expected_nearest(control, known, number).mean() for number in (len(known), size))
    far = far * (whole / part if part > 0 else 1.0)

    def cell(rows: np.ndarray, ids: np.ndarray, name: Any) -> Estimate:
        n = int(rows.sum())
        order, codes = canonical_order(np.column_stack([near, far])[rows], subject_codes(ids[rows], n))
        above, below = near[rows][order], far[rows][order]
        if below.sum() == 0:
            return _undefined(n)
        draws = bootstrap_weights(codes, n_boot, generator(seed, "nearest_ratio", str(name)))
        with np.errstate(divide="ignore", invalid="ignore"):
            replicates = np.concatenate([(weights @ above) / (weights @ below) for weights in draws])
        return Estimate(float(above.sum() / below.sum()), *percentile_interval(replicates), n)

    return _by_group(groups, subjects, np.ones(len(near), dtype=bool), cell, True)


def _expected_nearest(queries: np.ndarray, gallery: np.ndarray, size: int) -> np.ndarray:
    """Mean distance to the nearest of ``size`` rows drawn from a gallery without replacement, over all such draws."""
    if size == len(gallery):
        return _nearest_rows(queries, gallery)[0]
    left = len(gallery) - np.arange(len(gallery) - size)
    share = np.cumprod(np.r_[size / len(gallery), (left - size) / (left - 1)])  # of draws in which the k-th nearest comes first
    return np.concatenate([np.sqrt(np.sort(squares, axis=1)[:, : len(share)]) @ share for _, squares in _squares(queries, gallery)])


def _by_group(
    groups: Any, subjects: Any, usable: np.ndarray, cell: Callable[[np.ndarray, np.ndarray, Any], Estimate], higher: bool, fault: str = ""
) -> SubgroupFrame:
    """A frame of ``cell(rows, subject codes, group)``; a small group, or all of a faulty whole, is undefined."""
    codes, names = as_labels(groups)
    if len(codes) != len(usable):
        raise FeatureError(f"{len(codes)} group labels for {len(usable)} generated images; give one an image")
    ids, cells = subject_codes(subjects, len(usable)), {}
    for code, name in enumerate(names):
        rows = usable & (codes == code)
        n = int(rows.sum())
        reason = fault or ("no images" if n == 0 else f"insufficient: {n} images, at least {MIN_N} wanted" if n < MIN_N else "")
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


# Images as they come, and as they are compared.


def _as_images(images: Any, name: str) -> np.ndarray:
    """Images (n, H, W) or (n, H, W, 3), as they came."""
    try:
        stack = np.asarray(images)
    except ValueError:  # images of different sizes
        stack = np.empty(0, dtype=object)
    if stack.ndim == 4 and stack.shape[3] == 1:
        stack = stack[..., 0]
    if stack.dtype.kind not in "fiub" or stack.ndim not in (3, 4) or stack.shape[3:] not in ((), (3,)) or 0 in stack.shape:
        raise FeatureError(f"{name} images have shape {stack.shape}, type {stack.dtype}; give numbers (n, H, W) or (n, H, W, 3), n > 0")
    return stack


def _as_float(images: np.ndarray, name: str) -> np.ndarray:
    """float32 in [0, 1]; whole numbers are of 0..255."""
    part = images.astype(np.float32)
    if images.dtype.kind in "iu":
        part /= 255
    if not (np.isfinite(part).all() and part.min() >= -0.01 and part.max() <= 1.01):
        raise FeatureError(f"{name} images hold {part.min():g} to {part.max():g}; give finite numbers in [0, 1], or whole ones to 255")
    return part


def _pictures(images: np.ndarray, side: int, name: str) -> np.ndarray:
    """Brightness (n, S, S), averaged over areas."""
    down, across = (_areas(side, size) for size in images.shape[1:3])
    made = []
    for start in range(0, len(images), _BLOCK):
        part = _as_float(images[start : start + _BLOCK], name)
        made.append(down @ (part @ _LUMA if part.ndim == 4 else part) @ across.T)
    return np.concatenate(made)


def _areas(out: int, size: int) -> np.ndarray:
    """Weights (out, size) of a mean over the pixels that each of ``out`` equal parts covers."""
    edges = np.arange(out + 1) * (size / out)
    cells = np.arange(size)
    weights = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    return (weights * (out / size)).astype(np.float32)


def _in_order(pictures: np.ndarray) -> np.ndarray:
    """Rows of pictures that are not blank, in an order from content: no result depends on the table's."""
    flat = pictures.reshape(len(pictures), -1)
    order = canonical_order(flat, np.arange(len(flat)))[0]
    return order[flat[order].std(axis=1) > 1 / 255]


def _edited(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Training images as a copy may come: mirrored or not, JPEG 75 to 95, every other one also cropped (6 % a side) and retoned."""
    made = []
    for place, row in enumerate(rows):
        rng = generator(0, "memorization/edit", place)
        picture = Image.fromarray(np.rint(_as_float(images[row], "training") * 255).clip(0, 255).astype(np.uint8))
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


class _Matches(NamedTuple):
    """The nearest image of a gallery for each query: how far, which, and whether it had to be mirrored or moved."""

    distance: np.ndarray
    which: np.ndarray
    flipped: np.ndarray
    moved: np.ndarray


class _Finder(Protocol):
    """How the nearest image is found."""

    def gallery(self, part: np.ndarray) -> Any: ...

    def nearest(self, queries: np.ndarray, gallery: Any, subjects: np.ndarray | None = None) -> _Matches: ...


# By an encoder's features.


def _as_feature_sets(*sets: tuple[str, Any]) -> list[np.ndarray]:
    parts = [as_features(features, name) for name, features in sets]
    if len({part.shape[1] for part in parts}) > 1:
        raise FeatureError(f"features have {', '.join(str(part.shape[1]) for part in parts)} columns; use one encoder for all")
    return parts


def _encoded(encoder: Encoder, images: np.ndarray, name: str) -> np.ndarray:
    """Features (n, 2, d) of images as they are and mirrored."""
    sides: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(images), _BLOCK):
        block = _as_float(images[start : start + _BLOCK], name)
        for part, view in zip(sides, (block, block[:, :, ::-1]), strict=True):
            part.append(np.asarray(encoder(np.ascontiguousarray(view))))
            if part[-1].ndim != 2 or len(part[-1]) != len(view):
                raise FeatureError(f"the encoder gave shape {part[-1].shape} for {len(view)} {name} images; it must give (n, d)")
    both = as_features(np.concatenate([*sides[0], *sides[1]]), name)
    return np.stack(np.split(both, 2), axis=1)


class _Features:
    """The nearest rows of a gallery (N, 2, d), which are not mirrored, to queries (n, 2, d), which may be."""

    def gallery(self, part: np.ndarray) -> np.ndarray:
        return part[:, 0]

    def nearest(self, queries: np.ndarray, gallery: np.ndarray, subjects: np.ndarray | None = None) -> _Matches:
        plain, mirrored = (_nearest_rows(queries[:, mirror], gallery, subjects) for mirror in (0, 1))
        flipped = mirrored[0] < plain[0]
        distance, which = (np.where(flipped, there, here) for here, there in zip(plain, mirrored, strict=True))
        return _Matches(distance, which, flipped, np.zeros(len(flipped), dtype=bool))


def _nearest_rows(queries: np.ndarray, gallery: np.ndarray, subjects: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest row, and which; rows of the query's own subject are left out where queries are the gallery."""
    distance, which = np.empty(len(queries)), np.empty(len(queries), dtype=int)
    for rows, squares in _squares(queries, gallery):
        if subjects is not None:
            squares[subjects[rows, None] == subjects] = np.inf
        which[rows] = squares.argmin(axis=1)
        distance[rows] = np.linalg.norm(queries[rows] - gallery[which[rows]], axis=1)  # by difference: exactly 0 for a copy
    return distance, which


def _squares(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of some queries at a time to all of the gallery. The mean is taken off first: an offset costs no digits."""
    centre = gallery.mean(axis=0)
    rows = gallery - centre
    sizes = (rows**2).sum(axis=1)
    for start in range(0, len(queries), _BLOCK):
        part = queries[start : start + _BLOCK] - centre
        squares = (part**2).sum(axis=1)[:, None] + sizes - 2 * part @ rows.T
        squares[squares < 1e-12 * sizes] = 0  # rounding alone
        yield slice(start, start + _BLOCK), squares


# By pixels: a search for candidates, each of which is then laid over the picture.

_SIDE, _INNER = 64, 0.9  # pixels of a picture; the part of a generated picture that is compared: a shift leaves no hole in it
_COARSE, _PARTS, _FINE = 16, 128, 32  # grid of the search and its components; grid of the comparison
_CANDIDATES, _STEPS = 6, 3
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Views of a picture: scale and shift of y, then of x, in half widths. Crops of up to 6 % a side, and shifts without a crop.
_GRIDS = ((1.0, 0.09), (0.97, 0.03), (0.91, 0.03))
_CROPS = [(zoom, y, zoom, x) for zoom, step in _GRIDS for y, x in itertools.product((0.0, -step, step), repeat=2)]
_SHIFTS = [(1.0, y, 1.0, x) for y, x in itertools.product((-0.045, 0.045), repeat=2)]
_VIEWS = np.array([*_CROPS, *_SHIFTS]) * [_INNER, 1, _INNER, 1]
_STILL = np.array([[_INNER, 0, _INNER, 0]])
_LEAST_VIEW, _MOST_VIEW = (np.array([zoom * _INNER, step, zoom * _INNER, step]) for zoom, step in ((0.84, -0.14), (1.06, 0.14)))


class _Search:
    """Finds, for each picture, the picture of a gallery that explains it best.

    Whitened low-resolution views of the gallery (crops and shifts) give candidates, for either mirror image; Gauss-Newton then lays
    each candidate over the picture. Whitening gives the anatomy that all images share no more say than an image's own texture.
    """

    def __init__(self, pictures: np.ndarray) -> None:
        n = 1000
        drawn = pictures[np.arange(n) % len(pictures)]
        drawn[::2] = drawn[::2, :, ::-1]
        # Crops among what it is fitted on keep the whitening from blowing up what a crop changes: shared edges, a little moved.
        low, high, left, right = generator(0, "memorization/search").uniform(-0.02, 0.06, (4, n))
        views = np.stack([1 - low - high, low - high, 1 - left - right, left - right], axis=1) * [_INNER, 1, _INNER, 1]
        pieces = [slice(start, start + _PAIRS) for start in range(0, n, _PAIRS)]
        seen = np.concatenate([_unit(_view(drawn[piece], views[piece], _COARSE)) for piece in pieces])
        self._mean = seen.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(seen.T, dtype=np.float64))
        self._turn = (vectors / np.sqrt(np.clip(values, 0, None) + 3e-5 * max(values[-1], 1e-12)))[:, -_PARTS:].astype(np.float32)

    def _describe(self, seen: np.ndarray) -> np.ndarray:
        return _unit((_unit(seen) - self._mean) @ self._turn, centred=False)

    def gallery(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pictures (N, S, S), and what the search sees of them (views, N, parts)."""
        blocks = [pictures[i : i + _PAIRS] for i in range(0, len(pictures), _PAIRS)]
        seen = [np.stack([self._describe(_view(part, view[None], _COARSE)) for view in _VIEWS]) for part in blocks]
        return pictures, np.concatenate(seen, axis=1)

    def nearest(self, queries: np.ndarray, gallery: tuple[np.ndarray, np.ndarray], subjects: np.ndarray | None = None) -> _Matches:
        """The best match of each picture; where queries are the gallery, those of its own subject are left out."""
        parts = [_Matches(np.empty(0), np.empty(0, dtype=int), np.empty(0, dtype=bool), np.empty(0, dtype=bool))]
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            own = None if subjects is None else subjects[start : start + _BLOCK, None] == subjects
            best, which = self._likeness(np.stack([block, block[:, :, ::-1]]), gallery[1])
            best[slice(0, 0) if own is None else own] = -np.inf
            top = np.argpartition(-best, min(_CANDIDATES, best.shape[1]) - 1, axis=1)[:, :_CANDIDATES]
            which = np.take_along_axis(which, top, axis=1)
            far, view = _overlay(block, gallery[0], top, which >= len(_VIEWS), _VIEWS[which % len(_VIEWS)])
            if own is not None:
                far[np.take_along_axis(own, top, axis=1)] = np.inf  # there were no candidates of others left
            first = (np.arange(len(block)), far.argmin(axis=1))
            moved = (np.abs(view[first] - _STILL) > 0.015).any(axis=1)
            parts.append(_Matches(far[first], top[first], which[first] >= len(_VIEWS), moved))
        return _Matches(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _likeness(self, both: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best cosine of b pictures with each of the gallery (b, N), and in which view; mirrored ones count on."""
        best = np.full((both.shape[1], seen.shape[1]), -np.inf, dtype=np.float32)
        which = np.zeros(best.shape, dtype=np.int16)
        for mirror, pictures in enumerate(both):
            asked = self._describe(_view(pictures, _STILL, _COARSE))
            for view, part in enumerate(seen):
                cosine = asked @ part.T
                better = cosine > best
                np.copyto(best, cosine, where=better)
                which[better] = view + mirror * len(seen)
        return best, which


def _overlay(pictures: np.ndarray, gallery: np.ndarray, top: np.ndarray, flipped: np.ndarray, view: np.ndarray) -> tuple[Any, np.ndarray]:
    """How much of each picture its candidates (b, k) leave unexplained, and the view of the candidate that fits best (b, k, 4)."""
    seen = _view(pictures, _STILL, _FINE)
    both = np.stack([seen, _view(pictures[:, :, ::-1], _STILL, _FINE)])
    row, mirror, which, start = np.repeat(np.arange(len(top)), top.shape[1]), flipped.ravel().astype(int), top.ravel(), view.reshape(-1, 4)
    pieces = [slice(i, i + _PAIRS) for i in range(0, len(row), _PAIRS)]
    found = [_lay_over(both[mirror[piece], row[piece]], gallery[which[piece]], start[piece]) for piece in pieces]
    far, view = (np.concatenate(part) for part in zip(*found, strict=True))
    return far.reshape(top.shape), view.reshape(*top.shape, 4)


def _lay_over(target: np.ndarray, pictures: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton over the view: root of the share of ``target`` (p, o, o) that a picture, recoloured and blurred, leaves."""
    wanted = target.reshape(len(target), -1) - target.mean(axis=(1, 2))[:, None]
    total = np.maximum((wanted**2).sum(axis=1), 1e-12)
    least, best = np.full(len(target), np.inf), view
    for step in range(_STEPS + 1):
        terms = _terms(_view(pictures, view, target.shape[1]))
        gram, side = (terms @ terms.transpose(0, 2, 1)).astype(np.float64), (terms @ wanted[..., None]).astype(np.float64)
        tone = _solved(gram[:, :3, :3], side[:, :3], 1e-7)
        rest = wanted - (tone[:, None].astype(np.float32) @ terms[:, :3])[:, 0]
        left = np.where(tone[:, 0] > 0, np.minimum((rest**2).sum(axis=1) / total, 1), 1)  # a negative is no copy
        best = np.where((left < least)[:, None], view, best)
        least = np.minimum(left, least)
        if step < _STEPS:
            change = _solved(gram, side, 1e-4)
            shift_y, zoom_y, shift_x, zoom_x = np.clip(change[:, 3:] / np.maximum(change[:, :1], 0.2), -0.08, 0.08).T
            scale_y, scale_x = view[:, 0], view[:, 2]
            view = view + np.stack([scale_y * zoom_y, scale_y * shift_y, scale_x * zoom_x, scale_x * shift_x], axis=1)
            view = np.clip(view, _LEAST_VIEW, _MOST_VIEW)
    return np.sqrt(least), best


def _terms(seen: np.ndarray) -> np.ndarray:
    """What may be fitted (p, 7, pixels): the picture, its Laplacian (blur), its square (tone), and a shift and zoom of y and of x."""
    size = seen.shape[1]
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    around = np.pad(seen, ((0, 0), (1, 1), (1, 1)), mode="edge")
    up, down, left, right = around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    centred = seen - seen.mean(axis=(1, 2), keepdims=True)
    y, x = (down - up) * (size / 4), (right - left) * (size / 4)
    terms = np.stack([centred, up + down + left + right - 4 * seen, centred**2, y, y * line[:, None], x, x * line], axis=1)
    terms = terms.reshape(len(seen), 7, -1)
    return terms - terms.mean(axis=2, keepdims=True)


def _solved(gram: np.ndarray, side: np.ndarray, damping: float) -> np.ndarray:
    ridge = damping * np.einsum("pii->pi", gram) + 1e-12
    return np.linalg.solve(gram + ridge[:, None] * np.eye(gram.shape[1]), side)[..., 0]


def _view(pictures: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """Pictures (p, S, S) seen through views (p or 1, 4) on a grid (p, size, size), smoothly sampled."""
    side = pictures.shape[1]
    return _sampling(size, side, view[:, :1], view[:, 1:2]) @ pictures @ _sampling(size, side, view[:, 2:3], view[:, 3:]).transpose(0, 2, 1)


def _sampling(size: int, side: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Gaussian weights (p, size, side). What lies outside the view has none, even at its edge: a crop never saw it."""
    at, scale, shift = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32), scale.astype(np.float32), shift.astype(np.float32)
    low, high = np.maximum(shift - scale, -1), np.minimum(shift + scale, 1)
    seen = np.clip((np.minimum(at + 1 / side, high) - np.maximum(at - 1 / side, low)) * (side / 2), 1e-6, 1)
    points = np.clip(scale * ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) + shift, low, high)
    width = max(0.6 * side / size, 0.8) * 2 / side
    weights = np.exp(-0.5 * ((points[:, :, None] - at) / np.float32(width)) ** 2) * seen[:, None]
    return weights / weights.sum(axis=2, keepdims=True)


def _unit(values: np.ndarray, centred: bool = True) -> np.ndarray:
    """Rows of length 1, about their mean."""
    rows = values.reshape(len(values), -1)
    rows = rows - rows.mean(axis=1, keepdims=True) if centred else rows
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
