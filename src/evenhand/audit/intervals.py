"""Resampling of subjects: every interval treats the subject, not the image, as the unit that could have been another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from evenhand.audit.frame import FeatureError, SubgroupFrame
from evenhand.core.randomness import generator

Z95 = 1.959963984540054
BETWEEN_SEEDS = Z95 * math.sqrt(2)  # standard errors within which two draws of one figure lie in 95 % of cases
_WEIGHTS_AT_ONCE = 4_000_000  # cells of a bootstrap block: 32 MB
_ERRORS_DRAWN = 20_000
HEAVY = 3.0  # times the median images a subject


def as_features(features: Any, name: str) -> np.ndarray:
    """Features as float64 (n, d), n >= 2, all finite.

    Raises:
        FeatureError: wrong shape, too few rows, NaN or Inf; LAPACK never sees them.
    """
    try:
        array = np.asarray(features, dtype=np.float64)
    except (TypeError, ValueError):
        raise FeatureError(f"{name} features are not numbers; give an array (n, d)") from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise FeatureError(f"{name} features have shape {array.shape}; give an array (n, d) with one row per image")
    if len(array) < 2:
        raise FeatureError(f"{name} features have {len(array)} rows; a distance needs at least 2 images a side")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise FeatureError(f"{name} features hold NaN or Inf (first in row {row}); check the image and the encoder that made them")
    return array


def as_feature_pair(real: Any, synthetic: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both sides checked, with the same number of features."""
    x, y = as_features(real, "real"), as_features(synthetic, "synthetic")
    if x.shape[1] != y.shape[1]:
        raise FeatureError(f"real features have {x.shape[1]} columns, synthetic ones {y.shape[1]}; use one encoder for both")
    return x, y


def subject_codes(subjects: Any, n: int) -> np.ndarray:
    """Codes 0..A-1 of the subjects of ``n`` images, in sorted order of their ids; None = every image its own subject.

    A missing id is a subject of its own.

    Raises:
        FeatureError: not one id per image.
    """
    if subjects is None:
        return np.arange(n)
    ids = pd.Series(np.asarray(subjects, dtype=object).ravel())
    if len(ids) != n:
        raise FeatureError(f"{len(ids)} subject ids for {n} images; give one per image")
    missing = ids.isna().to_numpy()
    codes = np.full(n, -1)
    known = ids[~missing].astype(str)
    codes[~missing], names = pd.factorize(known, sort=True)
    codes[missing] = len(names) + np.arange(missing.sum())
    return codes


def subject_weights(images: np.ndarray) -> np.ndarray:
    """What an image of each subject counts (A,), given images a subject (A,): none counts for more than thrice the median subject.

    A patient of whom there are sixty images where others have two would otherwise decide alone what a group looks like.
    """
    return np.asarray(np.minimum(1.0, HEAVY * np.median(images) / np.maximum(images, 1)))


def few_a_subject(codes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A mask (n,) by the same rule: of a subject with too many images those of the smallest ``keys`` stay."""
    sizes = np.bincount(codes)
    order = np.lexsort((keys, codes))
    place = np.empty(len(codes), dtype=int)
    place[order] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.asarray(place < max(1, round(HEAVY * float(np.median(sizes)))))


def effective_subjects(size: np.ndarray) -> float:
    """How many equal subjects these of ``size`` (A,) are worth (Kish): one with half of the images leaves fewer than four."""
    return float(size.sum() ** 2 / (size.astype(float) ** 2).sum())


def two_sided_subjects(subjects: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Subject codes of ``n`` real and ``m`` synthetic images.

    ``subjects`` is a pair (real ids, synthetic ids, either None), or one array of n ids (the real ones), or of n + m ids. The two
    sides are drawn apart: an id that stands on both is two subjects.
    """
    real, synthetic = _two_sides(subjects, n, m, "subject ids")
    return subject_codes(real, n), subject_codes(synthetic, m)


def image_ranks(ids: Any, n: int) -> np.ndarray:
    """Rank (n,) of each of ``n`` images by its id, in the order of integers or else of texts; None = by its row.

    Images of one id keep the order of their rows.

    Draws are keyed on these ranks, never on features or scores: those differ in their last bits from processor to processor.

    Raises:
        FeatureError: not one id per image.
    """
    if ids is None:
        return np.arange(n)
    names = np.asarray(ids).ravel()
    if names.dtype.kind not in "iu":
        names = np.array([str(name) for name in np.asarray(ids, dtype=object).ravel()], dtype=object)
    if len(names) != n:
        raise FeatureError(f"{len(names)} image ids for {n} images; give one per image")
    ranks = np.empty(n, dtype=int)
    ranks[np.argsort(names, kind="stable")] = np.arange(n)
    return ranks


def two_sided_ranks(ids: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """``image_ranks`` of ``n`` real and ``m`` synthetic images; ``ids`` as the subjects of ``two_sided_subjects``."""
    real, synthetic = _two_sides(ids, n, m, "image ids")
    return image_ranks(real, n), image_ranks(synthetic, m)


def _two_sides(values: Any, n: int, m: int, what: str) -> tuple[Any, Any]:
    """The values of either side, None where there are none."""
    if isinstance(values, tuple | list) and len(values) == 2 and all(part is None or np.ndim(part) == 1 for part in values):
        return values[0], values[1]
    if values is None or len(values) == n:
        return values, None
    if len(values) != n + m:
        raise FeatureError(f"{len(values)} {what} for {n} real and {m} synthetic images; give {n}, {n + m} or a pair of arrays")
    both = np.asarray(values, dtype=object)
    return both[:n], both[n:]


def drawing_order(ranks: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of rows in which seeded draws are made, and new subject codes in that order: subjects by their first image's rank.

    With ids, draws depend neither on the order of the table nor on what subjects are called.
    """
    by_rank = np.argsort(ranks, kind="stable")
    renumbered = pd.factorize(codes[by_rank])[0]
    by_subject = np.argsort(renumbered, kind="stable")
    return by_rank[by_subject], renumbered[by_subject]


def bootstrap_weights(codes: np.ndarray, n_boot: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Blocks (b, n) of how often each image stands in a bootstrap sample of whole subjects; ``n_boot`` rows in all."""
    subjects = int(codes.max()) + 1
    block = max(1, _WEIGHTS_AT_ONCE // max(len(codes), 1))
    for start in range(0, n_boot, block):
        draws = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=min(block, n_boot - start))
        yield draws[:, codes].astype(np.float64)


def bound_error(n_boot: int) -> float:
    """Standard error that drawing ``n_boot`` replicates leaves in a 95 % percentile bound, in half widths of a normal interval.

    >>> round(bound_error(2000), 3)
    0.03
    """
    return math.sqrt(0.025 * 0.975 / n_boot) / float(stats.norm.pdf(Z95)) / Z95


def percentile_interval(replicates: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the defined replicates; NaN where fewer than half are defined."""
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < max(2, len(replicates) / 2):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def gap_interval(frame: SubgroupFrame) -> tuple[float, float]:
    """95 % bounds of ``frame.gap``, the largest less the smallest value of the groups that have an interval; NaN with fewer than two.

    A range is never further from the true one than the range of its values' errors, so the bounds are the gap give or take the 95th
    percentile of that, for independent normal errors as wide as each group's interval says on either side. Where all groups are equal
    the lower bound is above 0 in 5 % of samples; the upper one is conservative.
    """
    table = frame.defined.dropna(subset=["low", "high"])
    if len(table) < 2:
        return math.nan, math.nan
    values, low, high = (table[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    draws = generator(0, "gap_interval").standard_normal((_ERRORS_DRAWN, len(table)))  # of no seed: the same for every audit
    errors = np.where(draws > 0, draws * (values - low), draws * (high - values)) / Z95
    radius = float(np.quantile(np.ptp(errors, axis=1), 0.95))
    return max(frame.gap - radius, 0.0), frame.gap + radius


def equal_shares_p(frame: SubgroupFrame) -> float:
    """p-value of equal shares in all groups that have an interval: Cochran's Q, chi-square with G - 1 degrees of freedom.

    A share's standard error is that of its interval towards the common mean: one at the edge of what is possible has none beyond. NaN
    with fewer than two groups.
    """
    table = frame.defined.dropna(subset=["low", "high"])
    table = table[table["low"] < table["high"]]
    if len(table) < 2:
        return math.nan
    values, low, high = (table[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    errors = (high - low) / (2 * Z95)
    for _ in range(2):
        mean = (values / errors**2).sum() / (1 / errors**2).sum()
        towards = np.where(values > mean, values - low, high - values) / Z95
        errors = np.where(towards > 0, towards, (high - low) / (2 * Z95))
    mean = (values / errors**2).sum() / (1 / errors**2).sum()
    return float(stats.chi2.sf((((values - mean) / errors) ** 2).sum(), len(values) - 1))


def jackknife_variance(replicates: np.ndarray) -> float:
    """Variance from leave-one-fold-out values (J,): (J - 1) / J times their sum of squares about the mean."""
    folds = len(replicates)
    return float((folds - 1) / folds * ((replicates - replicates.mean()) ** 2).sum())


@dataclass(frozen=True)
class Measured:
    """A statistic of two samples, and how it hangs on their subjects.

    Attributes:
        slopes: for each subject of either sample, (A,) and (B,), how much the statistic rises where it counts a little more; they sum to
            0. None where not told.
        variances: instead of slopes, the variance that either sample's subjects bring.
        share_of: 0 or 1 where the value is a share of the first or second sample's images.
    """

    value: float
    slopes: tuple[np.ndarray, np.ndarray] | None = None
    variances: tuple[float, float] | None = None
    share_of: int | None = None


def subject_slopes(slopes: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """Slopes (A,) by subject code of a statistic whose slope in how often image i counts is given (n,), without what counting all does.

    Their sum of squares is the statistic's variance by the infinitesimal jackknife.

    >>> subject_slopes(np.array([1.0, 2.0, 3.0]) / 3, np.arange(3)).tolist()  # of a mean
    [-0.33333333333333337, 0.0, 0.33333333333333326]
    """
    return np.asarray(np.bincount(subjects, weights=slopes - slopes.mean()))


def left_out_slopes(replicates: np.ndarray) -> np.ndarray:
    """The same from the values (A,) that the statistic has without each subject in turn (jackknife)."""
    return np.asarray((replicates.mean() - replicates) * (len(replicates) - 1) / len(replicates))


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of ``n`` independent images, which has a width at 0 and 1 too."""
    z2 = Z95**2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def t_multiplier(subjects: float) -> float:
    """Half width of a 95 % interval in standard errors, for so many independent subjects."""
    return float(stats.t.ppf(0.975, max(subjects - 1, 1)))


def share_interval(hits: np.ndarray, codes: np.ndarray) -> tuple[float, float, float]:
    """Share of true ``hits`` (n,) with Wilson's interval at the effective number of images.

    Images of one subject count as one another's repeats in so far as they agree: the variance of the share between subjects
    gives the design effect (Kish 1965), and n / effect enters Wilson's formula (1927), which holds at shares of 0 and 1 too.
    """
    n, subjects = len(hits), int(codes.max()) + 1
    share = float(hits.mean())
    effective = float(subjects)
    if 0 < share < 1 and subjects > 1:
        excess = np.bincount(codes, weights=hits - share)
        clustered = subjects / (subjects - 1) * float((excess**2).sum()) / n**2
        alone = share * (1 - share) / (n - 1)  # the same variance were every image its own subject
        effective = n * min(alone / clustered, 1.0) if clustered > 0 else float(n)
    return share, *wilson_interval(share, effective)
