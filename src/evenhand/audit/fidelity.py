"""Quality of generated images, as a distance between two sets of features: Fréchet and kernel.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from evenhand.audit.frame import Estimate, FeatureError
from evenhand.audit.intervals import (
    Measured,
    as_feature_pair,
    as_features,
    subject_codes,
    subject_slopes,
    t_multiplier,
    two_sided_subjects,
)

Kernel = Callable[[np.ndarray, int], np.ndarray]  # of inner products, in place, and of the number of features
_BLOCK_CELLS, _KEPT_CELLS = 4_000_000, 8_000_000  # kernel values held at once (32 MB), and kept between two passes
LARGEST = 1e25  # of a feature: its cubic kernel can still be squared
_NORMAL = ndtri((np.arange(400) + 0.5) / 400)  # a standard normal, as 400 equally likely values


def frechet_distance(real: Any, synthetic: Any) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features (FID; Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), in float64. The last term is the nuclear norm of A1 A2' for any roots
    S = A' A: of the centred features themselves where a side has fewer images than features, so that nothing d x d is ever made;
    else of the symmetric roots by eigh. The means are taken off first, so a common offset costs no digits.

    Raises:
        FeatureError: wrong shape, fewer than 2 rows, NaN or Inf.

    >>> frechet_distance([[0.0], [2.0]], [[1.0], [3.0]])
    1.0
    """
    pair = _Centred.of(*as_feature_pair(real, synthetic))
    return pair.distance(float(np.linalg.svd(pair.product, compute_uv=False).sum()))


def frechet_measured(x: np.ndarray, y: np.ndarray, subjects_x: np.ndarray, subjects_y: np.ndarray) -> Measured:
    """``frechet_distance`` of features (n, d) and (m, d), with its slopes in the subjects of either side, given as codes.

    With U s V' = A1 A2' and image i counted w times, the nuclear norm's slope in w is half of sum_k s_k U_ik^2, since U' dM V is all that
    moves it.
    """
    pair = _Centred.of(x, y)
    left, values, right = np.linalg.svd(pair.product, full_matrices=False)
    slopes = []
    for side, along, sign, root, codes in (
        (pair.x, left, 1, pair.roots[0], subjects_x),
        (pair.y, right.T, -1, pair.roots[1], subjects_y),
    ):
        shares = ((along if root is None else side @ (root.inverse @ along)) ** 2) @ values
        own = 2 * sign * (side @ pair.between) * math.sqrt(len(side) - 1) / len(side) + (side**2).sum(axis=1) - shares
        slopes.append(subject_slopes(own, codes))
    return Measured(pair.distance(float(values.sum())), (slopes[0], slopes[1]))


@dataclass(frozen=True)
class _Centred:
    """Both sides about their means, over sqrt(n - 1); what lies between the means; the matrix whose nuclear norm is tr (S1 S2)^(1/2).

    ``roots``: of the covariances, where the matrix is their product; None where it is that of the features themselves.
    """

    x: np.ndarray
    y: np.ndarray
    between: np.ndarray
    product: np.ndarray
    roots: tuple[_Root | None, _Root | None]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray) -> _Centred:
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x, y = (x - mean_x) / math.sqrt(len(x) - 1), (y - mean_y) / math.sqrt(len(y) - 1)
        if min(len(x), len(y)) < x.shape[1]:
            return cls(x, y, mean_x - mean_y, _finite(x @ y.T), (None, None))
        roots = _Root.of(x), _Root.of(y)
        return cls(x, y, mean_x - mean_y, _finite(roots[0].matrix @ roots[1].matrix), roots)

    def distance(self, overlap: float) -> float:
        apart, spread = float((self.between**2).sum()), float((self.x**2).sum() + (self.y**2).sum())
        _finite(np.array([apart, spread]))
        return max(0.0, apart + max(0.0, spread - 2 * overlap))


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FeatureError("features are too large for float64; scale them down")
    return values


@dataclass(frozen=True)
class _Root:
    """The symmetric root (d, d) of a covariance, and its eigenvectors over its eigenvalues' roots."""

    matrix: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, centred: np.ndarray) -> _Root:
        values, vectors = np.linalg.eigh(_finite(centred.T @ centred))
        roots = np.sqrt(np.clip(values, 0, None))
        clear = roots > 1e-7 * roots.max()
        return cls((vectors * roots) @ vectors.T, (vectors * np.where(clear, 1 / np.where(clear, roots, 1), 0)) @ vectors.T)


def cubic(products: np.ndarray, features: int) -> np.ndarray:
    """(x.y / d + 1)^3, the kernel of KID."""
    products /= features
    products += 1
    products *= products * products
    return products


def kernel_distance(real: Any, synthetic: Any, *, subjects: Any = None, kernel: Kernel = cubic) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (KID; Bińkowski et al. 2018, eq. 4 and 5).

    The interval counts both terms of the variance of a two-sample U-statistic (Hoeffding): that of the witness function, which
    vanishes where the two laws agree, and that of the doubly centred kernel, which does not. Subjects are the units: their sums
    enter, and a pair of images of one subject is no pair of independent draws, so it is left out of the average.

    Args:
        real, synthetic: features (n, d) and (m, d).
        subjects: one id per image: n ids of the real images, n + m ids, or a pair of arrays. None = every image its own subject.
        kernel: another function of inner products.

    Raises:
        FeatureError: wrong shape, fewer than 2 rows or subjects on a side, NaN or Inf.
    """
    x, y = as_feature_pair(real, synthetic)
    if max(np.abs(x).max(), np.abs(y).max()) > LARGEST:
        raise FeatureError(f"features are too large for float64 (above {LARGEST:g}); scale them down")
    codes_x, codes_y = two_sided_subjects(subjects, len(x), len(y))
    x, size_x = _by_subject(x, codes_x, "real")
    y, size_y = _by_subject(y, codes_y, "synthetic")
    n, m = len(x), len(y)

    kernel_x, kernel_y = _Sums(x, x, size_x, size_x, kernel), _Sums(y, y, size_y, size_y, kernel)
    kernel_xy = _Sums(x, y, size_x, size_y, kernel)
    within_x, own_x = _row_sums(kernel_x)
    within_y, own_y = _row_sums(kernel_y)
    across_x, across_y = _cross_sums(kernel_xy)
    mean_x, mean_y = within_x / (n - size_x), within_y / (m - size_y)  # (A,) sums over a subject of its images' mean kernel
    level_x = within_x.sum() / (n * n - (size_x**2).sum())
    level_y = within_y.sum() / (m * m - (size_y**2).sum())
    level_xy = across_x.sum() / (n * m)
    value = float(level_x + level_y - 2 * level_xy)

    slope_x = _centred_squares(mean_x - across_x / m, size_x)
    slope_y = _centred_squares(mean_y - across_y / n, size_y)
    plugged = 4 * slope_x / n**2 + 4 * slope_y / m**2
    pairs = (
        2 * _pair_squares(kernel_x, mean_x, mean_x, level_x, apart=True) / n**4
        + 2 * _pair_squares(kernel_y, mean_y, mean_y, level_y, apart=True) / m**4
        + 4 * _pair_squares(kernel_xy, across_x / m, across_y / n, level_xy, apart=False) / (n * m) ** 2
    )
    plugged_value = (within_x.sum() + own_x.sum()) / n**2 + (within_y.sum() + own_y.sum()) / m**2 - 2 * level_xy
    # Noise of the plugged-in witness inflates its variance by 2 pairs and its norm by plugged_value - value. Taking that noise off
    # matters far from 0 and is meaningless near it, where all is noise: so by degrees.
    clear = value**2 / (value**2 + 4 * pairs) if value > 0 and pairs > 0 else 0.0
    norm = plugged_value - clear * (plugged_value - value)
    slope = max(0.0, plugged - clear * 2 * pairs) / norm if norm > 0 else 0.0
    low, high = _distance_interval(value, slope, float(pairs), t_multiplier(min(len(size_x), len(size_y))))
    return Estimate(value, low, high, m)


def halves_distance(features: Any, *, subjects: Any = None) -> Estimate:
    """``kernel_distance`` between two halves of one set, over all ways to part its subjects: 0 on average, and the range of 95 % of them.

    Where a perfect generator would be measured with half as many images on each side. The range is that of the degenerate part of a
    U-statistic, taken as normal; no split is drawn.

    Args:
        features: features (n, d).
        subjects: one id per image; None = every image its own subject.

    Raises:
        FeatureError: wrong shape, fewer than 4 subjects, NaN or Inf.
    """
    x = as_features(features, "real")
    codes = subject_codes(subjects, len(x))
    if codes.max() < 3:
        raise FeatureError(f"features of {codes.max() + 1} subjects; two halves need at least 4")
    x, size = _by_subject(x, codes, "real")
    sums, n = _Sums(x, x, size, size, cubic), len(x)
    within, _ = _row_sums(sums)
    level = within.sum() / (n * n - (size**2).sum())
    squares = _pair_squares(sums, within / (n - size), within / (n - size), level, apart=True)
    reach = t_multiplier(len(size)) * math.sqrt(32 * squares) / n**2  # 2 + 2 + 4 of a quarter of the pairs, over (n / 2)^4
    return Estimate(0.0, -reach, reach, n)


def _distance_interval(value: float, slope: float, pairs: float, z: float) -> tuple[float, float]:
    """Every distance t under which ``value`` is neither too small nor too large: the tests inverted.

    About t the statistic is modelled as s ((Z + sqrt(t / s))^2 - 1) + T: the witness's direction with s = slope / 4, which gives
    the variance slope * t far from 0, and the other directions T, normal, which bring the variance at t = 0 to ``pairs``. Below 0
    the law is that of t = 0, moved. An interval of +- 1.96 standard errors instead always covers 0 where the laws agree
    (measured: 400 of 400), since a large estimate brings its own large error.
    """
    if not pairs > 0:
        return value, value
    step = slope / 4
    rest = math.sqrt(max(pairs - 2 * step**2, 0.01 * pairs))

    def below(t: float) -> float:
        """Probability of a statistic below the value found, were t the distance."""
        shifted = step * ((_NORMAL + math.sqrt(max(t, 0.0) / step)) ** 2 - 1) if step > 0 else np.full(1, max(t, 0.0))
        return float(ndtr((value - min(t, 0.0) - shifted) / rest).mean())

    tail, reach = float(ndtr(-z)), 20 * math.sqrt(pairs + slope * max(value, 0.0)) + 100 * slope
    bounds = [brentq(lambda t, p=p: below(t) - p, value - reach, value + reach) for p in (1 - tail, tail)]
    return min(value, bounds[0]), max(value, bounds[1])


def _by_subject(features: np.ndarray, codes: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by subject, and the number of images of each subject (A,)."""
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise FeatureError(f"{name} features are all of one subject; a distance needs at least 2 subjects a side")
    return features[np.argsort(codes, kind="stable")], sizes


def kernel_blocks(
    x: np.ndarray, y: np.ndarray, size_x: np.ndarray, size_y: np.ndarray, kernel: Kernel = cubic
) -> Iterator[tuple[slice, np.ndarray]]:
    """Kernel sums between subjects, some rows (subjects of x) at a time: (rows, (a, B)). Memory stays bounded."""
    ends = np.cumsum(size_x)
    rows_at_once = max(1, _BLOCK_CELLS // len(y))
    starts_y = np.cumsum(size_y) - size_y
    first = 0
    while first < len(size_x):
        begin = ends[first] - size_x[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + rows_at_once, side="right")))
        sums = kernel(x[begin : ends[last - 1]] @ y.T, x.shape[1])
        if len(size_y) < len(y):
            sums = np.add.reduceat(sums, starts_y, axis=1)
        if last - first < len(sums):
            sums = np.add.reduceat(sums, ends[first:last] - size_x[first:last] - begin, axis=0)
        yield slice(first, last), sums
        first = last


@dataclass
class _Sums:
    """Kernel sums between subjects, gone through twice: kept from the first time where they are not too many."""

    x: np.ndarray
    y: np.ndarray
    size_x: np.ndarray
    size_y: np.ndarray
    kernel: Kernel
    kept: list[tuple[slice, np.ndarray]] = field(default_factory=list)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """As ``kernel_blocks``."""
        if self.kept:
            yield from self.kept
            return
        small = len(self.size_x) * len(self.size_y) <= _KEPT_CELLS
        for rows, kernel in kernel_blocks(self.x, self.y, self.size_x, self.size_y, self.kernel):
            if small:
                self.kept.append((rows, kernel))
            yield rows, kernel


def _row_sums(within: _Sums) -> tuple[np.ndarray, np.ndarray]:
    """For each subject: the sum of kernels with other subjects' images, and with its own."""
    others, own = np.empty(len(within.size_x)), np.empty(len(within.size_x))
    for rows, kernel in within.blocks():
        own[rows] = kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)]
        kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0
        others[rows] = kernel.sum(axis=1)
    return others, own


def _cross_sums(across: _Sums) -> tuple[np.ndarray, np.ndarray]:
    """Sums of kernels between the sides, for each subject of x and of y."""
    by_x, by_y = np.empty(len(across.size_x)), np.zeros(len(across.size_y))
    for rows, kernel in across.blocks():
        by_x[rows] = kernel.sum(axis=1)
        by_y += kernel.sum(axis=0)
    return by_x, by_y


def _centred_squares(sums: np.ndarray, size: np.ndarray) -> float:
    """Sum of squares of subjects' sums about what their size alone makes them, corrected for the fitted mean."""
    centred = sums - size * sums.sum() / size.sum()
    return float((centred**2).sum()) * len(size) / (len(size) - 1)


def _pair_squares(sums: _Sums, mean_x: np.ndarray, mean_y: np.ndarray, level: float, *, apart: bool) -> float:
    """Sum of squared doubly centred kernel sums over pairs of subjects; ``apart`` leaves out pairs of a subject with itself."""
    total = 0.0
    for rows, kernel in sums.blocks():
        centred = kernel - np.outer(mean_x[rows], sums.size_y)
        centred -= np.outer(sums.size_x[rows], mean_y - level * sums.size_y)
        if apart:
            centred[np.arange(len(centred)), np.arange(rows.start, rows.stop)] = 0
        total += float((centred**2).sum())
    return total
