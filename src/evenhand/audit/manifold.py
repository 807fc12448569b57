"""Further views of quality: overlap of nearest-neighbour manifolds, the inception score as its logarithm, and Gaussian-kernel MMD.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder. By subgroup, with ``subsampling``::

    size_matched_each(real, synthetic, groups, groups, overlap_measured, higher_is_better=True)["coverage"]
    of_whole_groups(real_probs, probs, groups, groups, lambda _, p, ids, n: log_inception_score_at(p, n, subjects=ids[1]))
    of_whole_groups(real, synthetic, groups, groups, lambda x, y, ids, _: clip_distance(x, y, subjects=ids))
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.special import rel_entr

from evenhand.audit.fidelity import kernel_distance
from evenhand.audit.frame import Estimate
from evenhand.audit.intervals import (
    FeatureError,
    Measured,
    as_feature_pair,
    effective_subjects,
    left_out_slopes,
    subject_codes,
    subject_slopes,
    t_multiplier,
)
from evenhand.audit.subsampling import Telling

NEIGHBOURS = 5
OVERLAP = ("precision", "recall", "density", "coverage")
CLIP_SIGMA = 10.0
_MMD_SCALE = 1000  # the unit that the paper reports in
_BLOCK_CELLS = 4_000_000  # distances held at once: 32 MB
_SAME = 1e-12  # squared distances below this share of the largest squared norm are rounding: copies lie at distance 0
_OPEN = 1 - 1e-9  # of a ball's squared radius: what lies on its edge, as a copy of the k-th neighbour does, is outside on any processor
_LARGEST = 1e150  # its square is still a number
_TOLD = Telling()


@dataclass(frozen=True)
class Manifold:
    """Precision, recall and coverage, each a share from 0 to 1, and density, which is 0 or more and about 1 for equal laws."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: Any, synthetic: Any, *, k: int = NEIGHBOURS) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020).

    A ball reaches from each image to its ``k``-th nearest neighbour on its own side. Precision: share of generated images in a real
    ball; recall: share of real images in a generated one; density: real balls around a generated image, over ``k``; coverage: share
    of real images with a generated image in their ball. Balls are open, as in the authors' ``prdc``.

    All four change with n: compare groups at one n. Between equal laws coverage is about 1 - 2^-k where n = m, and precision and
    recall are below 1 in many dimensions. Many images of one subject make small balls: take one or a few images a subject. NaN where
    every ball that a value needs has radius 0, as of images that do not differ.

    Raises:
        FeatureError: wrong shape, NaN or Inf, ``k`` below 1, or no more than ``k`` rows on a side.

    >>> manifold_metrics([[0.0], [1.0], [2.0]], [[0.5], [1.5], [9.0]], k=1)
    Manifold(precision=0.6666666666666666, recall=1.0, density=1.3333333333333333, coverage=1.0)
    """
    x, y = as_feature_pair(real, synthetic)
    if k < 1:
        raise FeatureError(f"k = {k} nearest neighbours; take 1 or more")
    for name, n in (("real", len(x)), ("synthetic", len(y))):
        if n <= k:
            raise FeatureError(f"{name} features have {n} rows; k = {k} nearest neighbours need at least {k + 1} images a side")
    if max(np.abs(x).max(), np.abs(y).max()) > _LARGEST:
        raise FeatureError(f"features are too large for float64 (above {_LARGEST:g}); scale them down")
    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2  # a common offset would cost digits
    x, y = x - centre, y - centre
    radius_x, radius_y = _OPEN * _radii(x, k), _OPEN * _radii(y, k)
    around, recalled, covered = np.zeros(len(y), dtype=int), 0, 0  # of a generated image: real balls around it; of real images: counts
    for rows, squares in _square_distances(x, y):
        inside = squares < radius_x[rows, None]
        around += inside.sum(axis=0)
        covered += int(inside.any(axis=1).sum())
        recalled += int((squares < radius_y).any(axis=1).sum())
    recall = recalled / len(x) if radius_y.any() else math.nan
    if not radius_x.any():
        return Manifold(math.nan, recall, math.nan, math.nan)
    return Manifold(float((around > 0).mean()), recall, float(around.mean()) / k, covered / len(x))


def overlap_measured(
    x: np.ndarray, y: np.ndarray, subjects_x: np.ndarray, subjects_y: np.ndarray, telling: Telling = _TOLD, *, k: int = NEIGHBOURS
) -> dict[str, Measured]:
    """``manifold_metrics`` with their slopes in the subjects of either side, by leaving out one subject at a time.

    For the slopes, which ``telling`` may leave out, all distances are held at once: for samples of some hundreds. A sample of
    no more than ``k`` images has no values.
    """
    shares = {"precision": 1, "recall": 0, "coverage": 0}
    if min(len(x), len(y)) <= k:
        return {name: Measured(math.nan) for name in OVERLAP}
    values = asdict(manifold_metrics(x, y, k=k))
    if telling.partitions == 0 or min(subjects_x.max(), subjects_y.max()) == 0:
        return {name: Measured(values[name], share_of=shares.get(name)) for name in OVERLAP}
    centre = (x.mean(axis=0) + y.mean(axis=0)) / 2
    x, y = x - centre, y - centre
    across = np.concatenate([block for _, block in _square_distances(x, y)])
    real, made = _Balls.of(x, subjects_x, across, k), _Balls.of(y, subjects_y, across.T, k)
    slopes = {
        "precision": (left_out_slopes((real.around_without > 0).mean(axis=1)), subject_slopes((real.around > 0) / len(y), subjects_y)),
        "recall": (subject_slopes((made.around > 0) / len(x), subjects_x), left_out_slopes((made.around_without > 0).mean(axis=1))),
        "density": (left_out_slopes(real.around_without.mean(axis=1) / k), subject_slopes(real.around / k / len(y), subjects_y)),
        "coverage": (left_out_slopes(real.covered_without), left_out_slopes(real.covered_without_others(subjects_y))),
    }
    return {name: Measured(values[name], slopes[name], share_of=shares.get(name)) for name in OVERLAP}


@dataclass(frozen=True)
class _Balls:
    """Balls of one side's images, the other side's images in them, and both without each subject in turn.

    Attributes:
        inside: whether the other side's image is in the ball (n, m).
        around: balls around each image of the other side (m,).
        around_without: the same without each subject (A, m).
        covered_without: share of the balls left that hold an image of the other side (A,).
    """

    inside: np.ndarray
    around: np.ndarray
    around_without: np.ndarray
    covered_without: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, subjects: np.ndarray, across: np.ndarray, k: int) -> _Balls:
        n, count, sizes = len(x), int(subjects.max()) + 1, np.bincount(subjects)
        within = np.concatenate([block for _, block in _square_distances(x, x)])
        np.fill_diagonal(within, np.inf)
        near = np.argsort(within, axis=1, kind="stable")[:, : k + int(sizes.max())]  # a subject can take away as many
        squares = np.take_along_axis(within, near, axis=1)
        inside: np.ndarray = np.less(across, _OPEN * squares[:, k - 1, None])
        # Balls that reach further without a subject: those that count it among their k nearest. Each pair (ball, subject) once.
        theirs = subjects[near]
        first = np.ones((n, k), dtype=bool)
        for place in range(1, k):
            first[:, place] = np.all(theirs[:, :place] != theirs[:, place, None], axis=1)
        ball, rank = np.nonzero(first & np.not_equal(theirs[:, :k], subjects[:, None]))
        gone = theirs[ball, rank]
        left = np.cumsum(np.not_equal(theirs[ball], gone[:, None]), axis=1)
        reach = np.where((left == k).any(axis=1), squares[ball, (left == k).argmax(axis=1)], np.inf)
        wider = np.less(across[ball], _OPEN * reach[:, None])
        own, losers, gainers = np.any(inside, axis=1), _sum_over(subjects, count), _sum_over(gone, count)
        lost, gained = losers @ inside.astype(float), gainers @ (wider.astype(float) - inside[ball])
        covered = gainers @ (wider.any(axis=1).astype(float) - own[ball]) - losers @ own.astype(float)
        around = inside.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(inside, around, np.rint(around - lost + gained), (own.sum() + covered) / (n - sizes))

    def covered_without_others(self, subjects: np.ndarray) -> np.ndarray:
        """Share of balls that still hold an image without each subject (B,) of the other side."""
        by_subject = _sum_over(subjects, int(subjects.max()) + 1) @ self.inside.T.astype(float)
        held = self.inside.sum(axis=1)
        return np.asarray(((held > 0) & (by_subject < held)).mean(axis=1))


def _sum_over(codes: np.ndarray, count: int) -> csr_array:
    """The matrix (count, n) that adds up what belongs to each code."""
    return csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(count, len(codes)))


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other row."""
    radii = np.empty(len(x))
    for rows, squares in _square_distances(x, x):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
        radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    return radii


def _square_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances (b, m) of some rows of x at a time."""
    norms_x, norms_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    floor = _SAME * max(float(norms_x.max()), float(norms_y.max()))
    step = max(1, _BLOCK_CELLS // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        squares = x[rows] @ y.T
        squares *= -2
        squares += norms_x[rows, None]
        squares += norms_y
        squares[squares <= floor] = 0
        yield rows, squares


def log_inception_score(probs: Any) -> float:
    """Logarithm of the inception score (Salimans et al. 2016): mean KL divergence of p(y|x) from its mean over images, in nats.

    From 0 (every image has the same class probabilities) to the log of the number of classes. It is the information that an image
    carries about its class, so it says whether images are told apart, not whether they look real. It falls with n, as the mean is
    fitted to the same images: by about (classes - 1) / 2n where images are sure of their class, and it never exceeds log n. So groups
    compare at one n only. No mean over splits is taken, as that would make n smaller still.

    Args:
        probs: class probabilities (n, C), rows of 0 or more that sum to 1 (to 1e-3; rounding is scaled away).

    Raises:
        FeatureError: not probabilities, or fewer than 2 images or classes.

    >>> round(log_inception_score([[1, 0], [0, 1]]), 12) == round(float(np.log(2)), 12)
    True
    """
    try:
        p = np.asarray(probs, dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError("class probabilities are not numbers; give an array (n, classes)") from None
    if p.ndim != 2 or p.shape[0] < 2 or p.shape[1] < 2:
        raise FeatureError(f"class probabilities have shape {p.shape}; give an array (n, classes), at least 2 of each")
    good = np.asarray(((p >= 0) & (p <= 1.001)).all(axis=1))  # no NaN passes
    good[good] = np.abs(p[good].sum(axis=1) - 1) <= 1e-3
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise FeatureError(f"class probabilities must be 0 or more and sum to 1; row {row} does not (take the softmax of logits)")
    p = p / p.sum(axis=1, keepdims=True)
    return max(0.0, float(rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))


def log_inception_score_at(probs: Any, n: int, *, subjects: Any = None) -> Estimate:
    """``log_inception_score`` of ``n`` of these images, averaged over all ways to choose them, with a 95 % interval.

    The mean over choices differs from the score of all by what a mean of ``n`` images varies more: half the sum over classes of
    (1 / n - 1 / N) var_k / mean_k, to second order in it. So nothing is drawn. The interval adds the variance of the images' own
    divergences over subjects, and that of the fitted mean, which is all that is left where classes are equally frequent and images sure of
    theirs.

    Args:
        probs: class probabilities (N, C), as in ``log_inception_score``.
        n: images of a choice, at most N.
        subjects: one id per image; None = every image its own subject.

    Raises:
        FeatureError: not probabilities, or ``n`` not from 2 to N.

    >>> log_inception_score_at([[1, 0], [0, 1], [1, 0], [0, 1]], 4).value == log_inception_score([[1, 0], [0, 1]])
    True
    """
    whole = log_inception_score(probs)
    p = np.asarray(probs, dtype=np.float64)
    if not 2 <= n <= len(p):
        raise FeatureError(f"n = {n} of {len(p)} images; choose from 2 to all of them")
    p = p / p.sum(axis=1, keepdims=True)
    codes = subject_codes(subjects, len(p))
    root = np.sqrt(p.mean(axis=0))
    scaled = np.divide(p - p.mean(axis=0), root, out=np.zeros_like(p), where=root > 0)
    spread = scaled.T @ scaled / (len(p) - 1)
    value = whole - float(np.trace(spread)) * (1 / n - 1 / len(p)) / 2
    own = subject_slopes(rel_entr(p, p.mean(axis=0)).sum(axis=1) / len(p), codes)
    units = effective_subjects(np.bincount(codes))
    variance = float((own**2).sum()) * len(own) / max(len(own) - 1, 1) + float((spread**2).sum()) / 2 / units**2
    half = t_multiplier(units) * math.sqrt(variance)
    return Estimate(max(0.0, value), max(0.0, value - half), value + half, n)


def clip_distance(real: Any, synthetic: Any, *, sigma: float = CLIP_SIGMA, subjects: Any = None) -> Estimate:
    """Unbiased squared MMD of unit-length rows with the kernel exp(-|x - y|^2 / 2 sigma^2), times 1000 (CMMD; Jayasumana et al. 2024).

    With CLIP image embeddings and sigma = 10 it is their metric. Their published code averages over all pairs, an image with itself
    too, which adds about 1000 (1/n + 1/m) v / sigma^2 where v is the embeddings' total variance, and so punishes small groups; here
    those pairs are left out (Gretton et al. 2012, eq. 3 instead of 5), so the value may be below 0. The interval is that of
    ``kernel_distance``.

    Args:
        real, synthetic: embeddings (n, d) and (m, d).
        subjects: as in ``kernel_distance``: pairs of images of one subject are left out too.

    Raises:
        FeatureError: wrong shape, fewer than 2 rows or subjects on a side, NaN or Inf, sigma not above 0, a row of zeros to scale.
    """
    x, y = as_feature_pair(real, synthetic)
    if not sigma > 0:
        raise FeatureError(f"sigma = {sigma}; the kernel's width is above 0")

    def kernel(products: np.ndarray, _: int) -> np.ndarray:
        """Less 1, which no difference of means sees: values near 1 would cost the digits that count."""
        return np.asarray(np.expm1((products - 1) / sigma**2))

    found = kernel_distance(_unit(x, "real"), _unit(y, "synthetic"), subjects=subjects, kernel=kernel)
    return Estimate(_MMD_SCALE * found.value, _MMD_SCALE * found.low, _MMD_SCALE * found.high, found.n)


def _unit(x: np.ndarray, name: str) -> np.ndarray:
    largest = np.abs(x).max(axis=1, keepdims=True)  # first, so that no square overflows or vanishes
    if not largest.all():
        row = int(np.flatnonzero(largest[:, 0] == 0)[0])
        raise FeatureError(f"{name} features are all 0 in row {row} and have no unit length; check that image")
    x = x / largest
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))
