"""Quality of generated images, as a distance between two sets of features: Fréchet, kernel, and size-matched by subgroup.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from evenhand.audit.frame import UNDEFINED, Estimate, SubgroupFrame, as_labels
from evenhand.audit.intervals import (
    FeatureError,
    as_feature_pair,
    drawing_order,
    jackknife_variance,
    subject_codes,
    t_multiplier,
    two_sided_ranks,
    two_sided_subjects,
)
from evenhand.core.errors import did_you_mean
from evenhand.core.randomness import generator

Metric = Callable[[np.ndarray, np.ndarray], Any] | Literal["kid", "frechet"]
MIN_N = 10
_BLOCK_CELLS, _KEPT_CELLS = 4_000_000, 8_000_000  # kernel values held at once (32 MB), and kept between two passes
_FOLDS, _JACKKNIFED = 10, 1
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
    x, y = as_feature_pair(real, synthetic)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = (x - mean_x) / math.sqrt(len(x) - 1), (y - mean_y) / math.sqrt(len(y) - 1)
    small = min(len(x), len(y)) < x.shape[1]
    product = x @ y.T if small else _root(x) @ _root(y)
    apart, spread = float(((mean_x - mean_y) ** 2).sum()), float((x**2).sum() + (y**2).sum())
    if not (np.isfinite(product).all() and math.isfinite(apart + spread)):
        raise FeatureError("features are too large for float64; scale them down")
    overlap = float(np.linalg.svd(product, compute_uv=False).sum())
    return max(0.0, apart + max(0.0, spread - 2 * overlap))


def _root(centred: np.ndarray) -> np.ndarray:
    """The symmetric root of the covariance of centred, scaled features."""
    covariance = centred.T @ centred
    if not np.isfinite(covariance).all():
        raise FeatureError("features are too large for float64; scale them down")
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def kernel_distance(real: Any, synthetic: Any, *, subjects: Any = None) -> Estimate:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (KID; Bińkowski et al. 2018, eq. 4 and 5).

    The interval counts both terms of the variance of a two-sample U-statistic (Hoeffding): that of the witness function, which
    vanishes where the two laws agree, and that of the doubly centred kernel, which does not. Subjects are the units: their sums
    enter, and a pair of images of one subject is no pair of independent draws, so it is left out of the average.

    Args:
        real, synthetic: features (n, d) and (m, d).
        subjects: one id an image: n ids of the real images, n + m ids, or a pair of arrays. None = every image its own subject.

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

    kernel_x, kernel_y = _Kernel(x, x, size_x, size_x), _Kernel(y, y, size_y, size_y)
    kernel_xy = _Kernel(x, y, size_x, size_y)
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


def kernel_blocks(x: np.ndarray, y: np.ndarray, size_x: np.ndarray, size_y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Kernel sums between subjects, some rows (subjects of x) at a time: (rows, (a, B)). Memory stays bounded."""
    ends = np.cumsum(size_x)
    rows_at_once = max(1, _BLOCK_CELLS // len(y))
    starts_y = np.cumsum(size_y) - size_y
    first = 0
    while first < len(size_x):
        begin = ends[first] - size_x[first]
        last = max(first + 1, int(np.searchsorted(ends, begin + rows_at_once, side="right")))
        kernel = x[begin : ends[last - 1]] @ y.T
        kernel /= x.shape[1]
        kernel += 1
        kernel *= kernel * kernel
        if len(size_y) < len(y):
            kernel = np.add.reduceat(kernel, starts_y, axis=1)
        if last - first < len(kernel):
            kernel = np.add.reduceat(kernel, ends[first:last] - size_x[first:last] - begin, axis=0)
        yield slice(first, last), kernel
        first = last


@dataclass
class _Kernel:
    """Kernel sums between subjects, gone through twice: kept from the first time where they are not too many."""

    x: np.ndarray
    y: np.ndarray
    size_x: np.ndarray
    size_y: np.ndarray
    kept: list[tuple[slice, np.ndarray]] = field(default_factory=list)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """As ``kernel_blocks``."""
        if self.kept:
            yield from self.kept
            return
        small = len(self.size_x) * len(self.size_y) <= _KEPT_CELLS
        for rows, kernel in kernel_blocks(self.x, self.y, self.size_x, self.size_y):
            if small:
                self.kept.append((rows, kernel))
            yield rows, kernel


def _row_sums(within: _Kernel) -> tuple[np.ndarray, np.ndarray]:
    """For each subject: the sum of kernels with other subjects' images, and with its own."""
    others, own = np.empty(len(within.size_x)), np.empty(len(within.size_x))
    for rows, kernel in within.blocks():
        own[rows] = kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)]
        kernel[np.arange(len(kernel)), np.arange(rows.start, rows.stop)] = 0
        others[rows] = kernel.sum(axis=1)
    return others, own


def _cross_sums(across: _Kernel) -> tuple[np.ndarray, np.ndarray]:
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


def _pair_squares(sums: _Kernel, mean_x: np.ndarray, mean_y: np.ndarray, level: float, *, apart: bool) -> float:
    """Sum of squared doubly centred kernel sums over pairs of subjects; ``apart`` leaves out pairs of a subject with itself."""
    total = 0.0
    for rows, kernel in sums.blocks():
        centred = kernel - np.outer(mean_x[rows], sums.size_y)
        centred -= np.outer(sums.size_x[rows], mean_y - level * sums.size_y)
        if apart:
            centred[np.arange(len(centred)), np.arange(rows.start, rows.stop)] = 0
        total += float((centred**2).sum())
    return total


def size_matched(
    real: Any,
    synthetic: Any,
    real_groups: Any,
    synthetic_groups: Any,
    metric: Metric,
    *,
    higher_is_better: bool = False,
    repeats: int = 20,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = MIN_N,
    at_most: int | None = None,
    with_overall: bool = True,
) -> SubgroupFrame:
    """A metric by group, every group at one n: a distance of few images is larger than that of many though both are perfect.

    Each group's generated images are compared with its own real ones; both sides of every group are subsampled without
    replacement, whole subjects at a time, to the smallest side of any group, and the metric is averaged over ``repeats``. The
    interval adds the variance between subjects (leave out a tenth of them) at the sampled size, scaled to the group's own number
    of subjects, and that of the draws. ``"kid"`` needs no draws: the mean of a U-statistic over all subsamples of one size is the
    statistic of the whole group.

    Args:
        real, synthetic: features (n, d) and (m, d).
        real_groups, synthetic_groups: a label an image; unknown, unspecified, NaN and -1 are no group. Categories of a pandas
            categorical stay in the frame where no image has them.
        metric: (real, synthetic) -> float, or "kid" or "frechet".
        subjects: as in ``kernel_distance``.
        ids: what identifies each image, such as the hash of its file, in the same forms; draws are keyed on it. None = its row.
        min_n: a group with fewer images on a side is ``insufficient`` and does not set the common n.
        at_most: the common n is no larger; for metrics whose cost grows faster than n.
        with_overall: measure all rows too; without, ``overall`` has the common n and no value.

    Returns:
        The frame; n is the common n, the columns n_real and n_synthetic hold what each group has. ``overall`` is the metric of all
        rows, at the same n.

    Raises:
        FeatureError: features that no distance can be computed from, or labels that are not one an image.
    """
    x, y = as_feature_pair(real, synthetic)
    if isinstance(metric, str) and metric not in ("kid", "frechet"):
        raise FeatureError(f"metric {metric!r} is not known; {did_you_mean(metric, ('kid', 'frechet'))}, or give a function")
    if repeats < 1:
        raise FeatureError(f"repeats = {repeats}; take at least one subsample")
    codes, ranks = two_sided_subjects(subjects, len(x), len(y)), two_sided_ranks(ids, len(x), len(y))
    labels_x, labels_y, names = common_labels(real_groups, synthetic_groups, len(x), len(y))
    rows = {name: (np.flatnonzero(labels_x == i), np.flatnonzero(labels_y == i)) for i, name in enumerate(names)}
    sizes = {name: (len(a), len(b)) for name, (a, b) in rows.items()}
    reasons = {name: group_fault(rows[name], codes, min_n) for name in names}
    eligible = [min(sizes[name]) for name in names if not reasons[name]]
    common = min(eligible, default=min(len(x), len(y)))
    common = common if at_most is None else min(common, at_most)

    def cell(side_x: np.ndarray, side_y: np.ndarray, name: str) -> Estimate:
        return _at_size(
            (x[side_x], y[side_y]),
            (subject_codes(codes[0][side_x], len(side_x)), subject_codes(codes[1][side_y], len(side_y))),
            (ranks[0][side_x], ranks[1][side_y]), metric, common, repeats, (seed, name),
        )  # fmt: skip

    cells = {
        name: (cell(*rows[name], str(name)), "") if not reasons[name] else (_missing(min(sizes[name])), reasons[name]) for name in names
    }
    overall = cell(np.arange(len(x)), np.arange(len(y)), "overall") if with_overall else _missing(common)
    counts = {"n_real": [a for a, _ in sizes.values()], "n_synthetic": [b for _, b in sizes.values()]}
    return SubgroupFrame.of(cells, overall, higher_is_better, **counts)


def common_labels(real: Any, synthetic: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    codes_x, names_x = as_labels(real)
    codes_y, names_y = as_labels(synthetic)
    if len(codes_x) != n or len(codes_y) != m:
        raise FeatureError(f"{len(codes_x)} and {len(codes_y)} group labels for {n} and {m} images; give one an image")
    names = [*names_x, *(name for name in names_y if name not in names_x)]
    place = np.array([names.index(name) for name in names_y] + [-1])  # code -1 picks the last: no group
    return codes_x, place[codes_y], names


def group_fault(rows: tuple[np.ndarray, np.ndarray], codes: tuple[np.ndarray, np.ndarray], min_n: int) -> str:
    """Why a group has no value; empty where it has one."""
    for side, index, ids in zip(("real", "synthetic"), rows, codes, strict=True):
        if len(index) == 0:
            return f"no {side} images"
        if len(index) < max(min_n, 2):
            return f"insufficient: {len(index)} {side} images, at least {max(min_n, 2)} wanted"
        if len(np.unique(ids[index])) < 2:
            return f"insufficient: all {side} images are of one subject"
    return ""


def _missing(n: int) -> Estimate:
    return Estimate(UNDEFINED.value, UNDEFINED.low, UNDEFINED.high, n)


def _at_size(
    sides: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    ranks: tuple[np.ndarray, np.ndarray],
    metric: Metric,
    common: int,
    repeats: int,
    key: tuple[int, str],
) -> Estimate:
    """The metric averaged over subsamples of ``common`` images a side, with its interval."""
    if metric == "kid" or metric is kernel_distance:
        whole = kernel_distance(*sides, subjects=codes)
        return Estimate(whole.value, whole.low, whole.high, common)
    chosen = frechet_distance if metric == "frechet" else metric
    measure = lambda x, y: float(getattr(value := chosen(x, y), "value", value))  # noqa: E731
    (order_x, codes_x), (order_y, codes_y) = map(drawing_order, ranks, codes)
    sides, codes = (sides[0][order_x], sides[1][order_y]), (codes_x, codes_y)
    values, variances, fractions = [], [], []
    for repeat in range(repeats):
        rng = generator(key[0], "size_matched", key[1], repeat)
        drawn = [_draw(ids, common, rng) for ids in codes]
        pair = [side[index] for side, index in zip(sides, drawn, strict=True)]
        values.append(measure(*pair))
        if repeat < _JACKKNIFED:
            ids = [code[index] for code, index in zip(codes, drawn, strict=True)]
            variances.append([_fold_variance(pair, ids, side, measure, rng) for side in (0, 1)])
            fractions.append([len(np.unique(ids[side])) / (codes[side].max() + 1) for side in (0, 1)])
    fraction = np.mean(fractions, axis=0)
    variance = float((np.mean(variances, axis=0) * (fraction + (1 - fraction) / repeats)).sum())
    value = float(np.mean(values))
    half = t_multiplier(int(min(code.max() + 1 for code in codes))) * math.sqrt(variance)
    low = max(0.0, value - half) if chosen is frechet_distance else value - half
    return Estimate(value, low, value + half, common)


def _draw(codes: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of whole subjects in random order until there are ``n`` images; the last subject may be cut."""
    order = rng.permutation(int(codes.max()) + 1)
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[codes], kind="stable")[:n]


def _fold_variance(
    pair: list[np.ndarray], ids: list[np.ndarray], side: int, measure: Callable[..., float], rng: np.random.Generator
) -> float:
    """Variance of the metric from one side's subjects, by leaving out a tenth of them at a time."""
    codes = subject_codes(ids[side], len(ids[side]))
    subjects = int(codes.max()) + 1
    folds = min(_FOLDS, subjects)
    fold = rng.permutation(subjects)[codes] % folds
    values = []
    for left_out in range(folds):
        kept = list(pair)
        kept[side] = pair[side][fold != left_out]
        values.append(measure(*kept) if len(kept[side]) > 1 else math.nan)
    return jackknife_variance(np.array(values))
