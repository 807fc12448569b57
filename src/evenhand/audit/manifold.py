"""Further views of quality: overlap of nearest-neighbour manifolds, the inception score as its logarithm, and Gaussian-kernel MMD.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder. Each is a metric for
``fidelity.size_matched``::

    size_matched(real, synthetic, groups, groups, lambda x, y: manifold_metrics(x, y).coverage, higher_is_better=True)
    size_matched(real_probs, probs, groups, groups, lambda _, p: log_inception_score(p), higher_is_better=True)
    size_matched(real, synthetic, groups, groups, gaussian_mmd)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import rel_entr

from evenhand.audit.intervals import FeatureError, as_feature_pair, two_sided_subjects

NEIGHBOURS = 5
OVERLAP = ("precision", "recall", "density", "coverage")
CLIP_SIGMA = 10.0
_MMD_SCALE = 1000  # the unit that the paper reports in
_BLOCK_CELLS = 4_000_000  # distances held at once: 32 MB
_SAME = 1e-12  # squared distances below this share of the largest squared norm are rounding: copies lie at distance 0
_OPEN = 1 - 1e-9  # of a ball's squared radius: what lies on its edge, as a copy of the k-th neighbour does, is outside on any processor
_LARGEST = 1e150  # its square is still a number


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


def gaussian_mmd(real: Any, synthetic: Any, *, sigma: float = CLIP_SIGMA, normalise: bool = True, subjects: Any = None) -> float:
    """Unbiased squared MMD with the kernel exp(-|x - y|^2 / 2 sigma^2), times 1000 (CMMD; Jayasumana et al. 2024).

    With CLIP image embeddings scaled to unit length and sigma = 10 it is their metric. Their published code averages over all pairs,
    an image with itself too, which adds about 1000 (1/n + 1/m) v / sigma^2 where v is the embeddings' total variance, and so punishes
    small groups; here those pairs are left out (Gretton et al. 2012, eq. 3 instead of 5), so the value may be below 0.

    Args:
        real, synthetic: embeddings (n, d) and (m, d).
        normalise: scale each row to unit length.
        subjects: as in ``kernel_distance``: pairs of images of one subject are left out too.

    Raises:
        FeatureError: wrong shape, fewer than 2 rows or subjects on a side, NaN or Inf, sigma not above 0, a row of zeros to scale.
    """
    x, y = as_feature_pair(real, synthetic)
    if not sigma > 0:
        raise FeatureError(f"sigma = {sigma}; the kernel's width is above 0")
    codes_x, codes_y = two_sided_subjects(subjects, len(x), len(y))
    for name, codes in (("real", codes_x), ("synthetic", codes_y)):
        if codes.max() == 0:
            raise FeatureError(f"{name} features are all of one subject; a distance needs at least 2 subjects a side")
    if normalise:
        x, y = _unit(x, "real"), _unit(y, "synthetic")
    elif max(np.abs(x).max(), np.abs(y).max()) > _LARGEST:
        raise FeatureError(f"features are too large for float64 (above {_LARGEST:g}); scale them down")
    within = _mean_kernel(x, x, codes_x, codes_x, sigma) + _mean_kernel(y, y, codes_y, codes_y, sigma)
    return _MMD_SCALE * (within - 2 * _mean_kernel(x, y, None, None, sigma))


def _unit(x: np.ndarray, name: str) -> np.ndarray:
    largest = np.abs(x).max(axis=1, keepdims=True)  # first, so that no square overflows or vanishes
    if not largest.all():
        row = int(np.flatnonzero(largest[:, 0] == 0)[0])
        raise FeatureError(f"{name} features are all 0 in row {row} and have no unit length; check that image, or take normalise=False")
    x = x / largest
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _mean_kernel(x: np.ndarray, y: np.ndarray, codes_x: np.ndarray | None, codes_y: np.ndarray | None, sigma: float) -> float:
    """Mean of the kernel less 1 over pairs of different subjects; less 1, as values near 1 would cost the digits that count."""
    total, pairs = 0.0, 0
    for rows, squares in _square_distances(x, y):
        kernel = np.expm1(squares / (-2 * sigma**2))
        apart = len(kernel) * len(y)
        if codes_x is not None and codes_y is not None:
            same = codes_x[rows, None] == codes_y
            kernel[same] = 0
            apart -= int(same.sum())
        total += float(kernel.sum())
        pairs += apart
    return total / pairs
