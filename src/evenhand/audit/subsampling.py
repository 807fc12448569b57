"""A metric by subgroup, every group at one number of images: subsamples, their average, its interval and what the draws left open.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from evenhand.audit.fidelity import frechet_measured, kernel_distance
from evenhand.audit.frame import UNDEFINED, Estimate, FeatureError, SubgroupFrame, as_labels
from evenhand.audit.intervals import (
    Measured,
    as_feature_pair,
    drawing_order,
    effective_subjects,
    jackknife_variance,
    subject_codes,
    t_multiplier,
    two_sided_ranks,
    two_sided_subjects,
    wilson_interval,
)
from evenhand.core.errors import did_you_mean
from evenhand.core.randomness import generator

Metric = Callable[[np.ndarray, np.ndarray], Any] | Literal["kid", "frechet"]


class Telling(NamedTuple):
    """The number of a subsample, and in how many ways to part its subjects where that tells its variances.

    ``partitions`` 0: leave slopes and variances out where they cost much.
    """

    draw: int = 0
    partitions: int = 1


# features of two samples, and the subject codes of each -> the values of one or more statistics
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Telling], dict[str, Measured]]
# of whole groups, with their subject codes, and the common n
WholeMeasure = Callable[[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], int], Estimate]
MIN_N = 10
MONTE_CARLO = "monte_carlo"  # the column of a frame: standard error of a value that another seed of the draws would show
_CLOSE = 0.02  # of the interval's half width: the Monte Carlo error at which no more is drawn
_LEAST, _MOST, _MOST_OF_SMALL = 80, 1000, 4000  # subsamples, of at least 3 orders
_SMALL = 20_000  # cells of a subsample
_TOLD = 60  # of them those whose slopes are told where that costs much
_FOLDS, _PARTITIONS = 10, 10
_FEWEST = 3.0  # subjects in a subsample, on average: of fewer no interval is told
UNDEFINED_REASON = "not defined: images do not differ, or are too few"


def size_matched(
    real: Any,
    synthetic: Any,
    real_groups: Any,
    synthetic_groups: Any,
    metric: Metric,
    *,
    higher_is_better: bool = False,
    repeats: int = 10,
    seed: int = 0,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = MIN_N,
    at_most: int | None = None,
    with_overall: bool = True,
) -> SubgroupFrame:
    """A metric by group, every group at one n: a distance of few images is larger than that of many though both are perfect.

    Each group's generated images are compared with its own real ones; both sides of every group are subsampled without replacement,
    whole subjects at a time, to the smallest side of any group, and the metric is averaged. Subsamples are cut from random orders so
    that every image enters about as often as any other, and drawn until the Monte Carlo error is a fiftieth of the interval's half
    width (or 1,000 are drawn, 4,000 of small ones). The interval adds the variance over subjects, by the mean over subsamples of the
    metric's slope in each of them, and that of the draws. ``"kid"`` needs no draws: the mean of a U-statistic over all subsamples of
    one size is the statistic of the whole group.

    Args:
        real, synthetic: features (n, d) and (m, d).
        real_groups, synthetic_groups: one label per image; unknown, unspecified, NaN and -1 are no group. Categories of a pandas
            categorical stay in the frame where no image has them.
        metric: (real, synthetic) -> float, or "kid" or "frechet". The slopes of "frechet" have a closed form. Of a function the
            variance in a subsample is told, by leaving out a tenth of the subjects at a time, and scaled to the group: where the group is
            far larger than the common n, that interval is too wide.
        repeats: subsamples cut from one random order; more where a group has more than that many times the common n.
        subjects: as in ``kernel_distance``.
        ids: what identifies each image, such as the hash of its file, in the same forms; draws are keyed on it. None = its row.
        min_n: a group with fewer images on a side is ``insufficient`` and does not set the common n.
        at_most: the common n is no larger; for metrics whose cost grows faster than n.
        with_overall: measure all rows too; without, ``overall`` has the common n and no value.

    Returns:
        The frame; n is the common n, the columns n_real and n_synthetic hold what each group has, monte_carlo the standard error of the
        value over seeds. ``overall`` is the metric of all rows, at the same n.

    Raises:
        FeatureError: features that no distance can be computed from, or labels that are not one per image.
    """
    if isinstance(metric, str) and metric not in ("kid", "frechet"):
        raise FeatureError(f"metric {metric!r} is not known; {did_you_mean(metric, ('kid', 'frechet'))}, or give a function")
    how: dict[str, Any] = {
        "higher_is_better": higher_is_better, "repeats": repeats, "seed": seed, "subjects": subjects, "ids": ids, "min_n": min_n,
        "at_most": at_most, "with_overall": with_overall,
    }  # fmt: skip
    sides = real, synthetic, real_groups, synthetic_groups
    if metric == "kid" or metric is kernel_distance:
        return of_whole_groups(*sides, lambda x, y, codes, _: kernel_distance(x, y, subjects=codes), **how)
    frame = size_matched_each(*sides, _frechet if metric == "frechet" else _by_folds(metric, seed), **how)["value"]  # type: ignore[arg-type]
    return frame.clipped(0.0, math.inf) if metric == "frechet" else frame


def size_matched_each(
    real: Any, synthetic: Any, real_groups: Any, synthetic_groups: Any, measure: Measure, *, repeats: int = 10, seed: int = 0, **how: Any
) -> dict[str, SubgroupFrame]:
    """As ``size_matched``, one frame for each of several statistics that ``measure`` tells at once, with their variances."""
    if repeats < 1:
        raise FeatureError(f"repeats = {repeats}; take at least one subsample")

    def cell(sides: Any, codes: Any, ranks: Any, common: int, name: str) -> dict[str, tuple[Estimate, float]]:
        return _averaged(sides, codes, ranks, measure, common, repeats, (seed, name))

    return _frames(real, synthetic, real_groups, synthetic_groups, cell, **how)


def of_whole_groups(
    real: Any,
    synthetic: Any,
    real_groups: Any,
    synthetic_groups: Any,
    measure: WholeMeasure,
    *,
    repeats: int = 10,
    seed: int = 0,
    **how: Any,
) -> SubgroupFrame:
    """As ``size_matched`` for what needs no draws, such as a U-statistic: ``repeats`` and ``seed`` have no part in it."""

    def cell(sides: Any, codes: Any, ranks: Any, common: int, name: str) -> dict[str, tuple[Estimate, float]]:
        whole = measure(sides[0], sides[1], codes, common)
        return {"value": (Estimate(whole.value, whole.low, whole.high, common), 0.0)}

    return _frames(real, synthetic, real_groups, synthetic_groups, cell, **how)["value"]


def _frames(
    real: Any,
    synthetic: Any,
    real_groups: Any,
    synthetic_groups: Any,
    cell: Callable[..., dict[str, tuple[Estimate, float]]],
    *,
    higher_is_better: bool = False,
    subjects: Any = None,
    ids: Any = None,
    min_n: int = MIN_N,
    at_most: int | None = None,
    with_overall: bool = True,
) -> dict[str, SubgroupFrame]:
    """A frame for each statistic, from what ``cell`` tells of each group at the common n, and its Monte Carlo error."""
    x, y = as_feature_pair(real, synthetic)
    codes, ranks = two_sided_subjects(subjects, len(x), len(y)), two_sided_ranks(ids, len(x), len(y))
    labels_x, labels_y, names = common_labels(real_groups, synthetic_groups, len(x), len(y))
    rows = {name: (np.flatnonzero(labels_x == i), np.flatnonzero(labels_y == i)) for i, name in enumerate(names)}
    sizes = {name: (len(a), len(b)) for name, (a, b) in rows.items()}
    reasons = {name: group_fault(rows[name], codes, min_n) for name in names}
    eligible = [min(sizes[name]) for name in names if not reasons[name]]
    common = min(eligible, default=min(len(x), len(y)))
    common = common if at_most is None else min(common, at_most)

    def measured(pair: tuple[np.ndarray, np.ndarray], name: str) -> dict[str, tuple[Estimate, float]]:
        own = [subject_codes(side[index], len(index)) for side, index in zip(codes, pair, strict=True)]
        ordered = [side[index] for side, index in zip(ranks, pair, strict=True)]
        return cell((x[pair[0]], y[pair[1]]), tuple(own), tuple(ordered), common, name)

    found = {name: measured(rows[name], str(name)) for name in names if not reasons[name]}
    overall = measured((np.arange(len(x)), np.arange(len(y))), "overall") if with_overall else {}
    statistics = list(next(iter(found.values()), overall)) or ["value"]
    counts = {"n_real": [a for a, _ in sizes.values()], "n_synthetic": [b for _, b in sizes.values()]}
    frames = {}
    for statistic in statistics:
        cells = {name: (_missing(min(sizes[name])), reasons[name]) if reasons[name] else (found[name][statistic][0], "") for name in names}
        cells = {
            name: (cell, reason or ("" if math.isfinite(cell.value) else UNDEFINED_REASON)) for name, (cell, reason) in cells.items()
        }
        errors = [math.nan if reasons[name] else found[name][statistic][1] for name in names]
        whole = overall[statistic][0] if with_overall else _missing(common)
        frames[statistic] = SubgroupFrame.of(cells, whole, higher_is_better, **counts, **{MONTE_CARLO: errors})
    return frames


def common_labels(real: Any, synthetic: Any, n: int, m: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Codes of either side's labels, and the names that both point to."""
    codes_x, names_x = as_labels(real)
    codes_y, names_y = as_labels(synthetic)
    if len(codes_x) != n or len(codes_y) != m:
        raise FeatureError(f"{len(codes_x)} and {len(codes_y)} group labels for {n} and {m} images; give one per image")
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


def _averaged(
    sides: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    ranks: tuple[np.ndarray, np.ndarray],
    measure: Measure,
    common: int,
    repeats: int,
    key: tuple[int, str],
) -> dict[str, tuple[Estimate, float]]:
    """Each statistic averaged over subsamples of ``common`` images a side, with its interval and its Monte Carlo error."""
    (order_x, codes_x), (order_y, codes_y) = map(drawing_order, ranks, codes)
    sides, codes = (sides[0][order_x], sides[1][order_y]), (codes_x, codes_y)
    whole = all(len(ids) == common for ids in codes)  # nothing to draw: one subsample is the group
    times = 1 if whole else min(max(repeats, *(math.ceil(len(ids) / common) for ids in codes)), _MOST // 2)
    at_most = _MOST_OF_SMALL if common * sides[0].shape[1] <= _SMALL else _MOST
    least, most = (1, 1) if whole else (max(3, math.ceil(_LEAST / times)), max(3, at_most // times))
    averages: dict[str, _Average] = {}
    number = 0
    for round_number in range(most):
        for drawn in _round(codes, common, times, generator(key[0], "size_matched", key[1], round_number)):
            ids = [np.unique(side[index], return_inverse=True) for side, index in zip(codes, drawn, strict=True)]
            telling = Telling(number, _PARTITIONS if whole else int(number < _TOLD))
            found = measure(sides[0][drawn[0]], sides[1][drawn[1]], ids[0][1], ids[1][1], telling)
            for name, cell in found.items():
                averages.setdefault(name, _Average.over(codes)).add(cell, (ids[0][0], ids[1][0]))
            number += 1
        for average in averages.values():
            average.end_round()
        # Asked only where the number has doubled: the last bits, which differ from processor to processor, then hardly ever decide.
        asked = (round_number + 1) % least == 0 and ((round_number + 1) // least).bit_count() == 1
        if asked and all(average.settled(common) for average in averages.values()):
            break
    return {name: (average.estimate(common), average.error) for name, average in averages.items()}


@dataclass
class _Average:
    """The mean of a statistic over subsamples of a group, and the mean of its slopes in the group's subjects."""

    sizes: tuple[np.ndarray, np.ndarray]  # images of each subject of either side
    slopes: list[np.ndarray]
    values: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    variances: list[tuple[float, float]] = field(default_factory=list)  # in a subsample, scaled to the group
    _lengths: list[int] = field(default_factory=list)  # of rounds
    subjects: list[tuple[int, int]] = field(default_factory=list)  # in a subsample
    told: int = 0
    share_of: int | None = None

    @classmethod
    def over(cls, codes: tuple[np.ndarray, np.ndarray]) -> _Average:
        sizes = np.bincount(codes[0]), np.bincount(codes[1])
        return cls(sizes, [np.zeros(len(size)) for size in sizes])

    def add(self, found: Measured, drawn: tuple[np.ndarray, np.ndarray]) -> None:
        """One subsample's value; ``drawn`` are the codes of the subjects in it."""
        self.values.append(found.value)
        self.subjects.append((len(drawn[0]), len(drawn[1])))
        self.share_of = found.share_of
        if found.slopes is not None:
            self.told += 1
            for total, ids, slopes in zip(self.slopes, drawn, found.slopes, strict=True):
                total[ids] += slopes
        if found.variances is not None:
            first, second = (v * len(ids) / len(size) for v, ids, size in zip(found.variances, drawn, self.sizes, strict=True))
            self.variances.append((first, second))

    def end_round(self) -> None:
        self.rounds.append(float(np.mean(self.values[sum(self._lengths) :])))
        self._lengths.append(len(self.values) - sum(self._lengths))

    @property
    def error(self) -> float:
        """Monte Carlo standard error of the mean."""
        return float(np.std(self.rounds, ddof=1)) / math.sqrt(len(self.rounds)) if len(self.rounds) > 1 else 0.0

    def settled(self, n: int) -> bool:
        """Whether more subsamples would hardly move the mean, or it is not defined."""
        found = self.estimate(n)
        return not self.error > _CLOSE * (found.high - found.low) / 2

    def estimate(self, n: int) -> Estimate:
        value = float(np.mean(self.values))
        if not math.isfinite(value) or min(np.mean(self.subjects, axis=0)) < _FEWEST or not (self.told or self.variances):
            return Estimate(value, math.nan, math.nan, n)
        variance = float(np.sum(np.mean(self.variances, axis=0))) if self.variances else self._of_slopes()
        effective = [effective_subjects(size) for size in self.sizes]
        half = t_multiplier(min(effective)) * math.sqrt(variance + self.error**2)
        low, high = value - half, value + half
        if self.share_of is not None:  # of images that are all in, or all out, nothing varies, and yet the next might differ
            edges = wilson_interval(min(value, 1.0), effective[self.share_of])
            low, high = max(0.0, min(low, edges[0])), min(1.0, max(high, edges[1]))
        return Estimate(value, low, high, n)

    def _of_slopes(self) -> float:
        means = [total / self.told for total in self.slopes]
        return float(sum((mean**2).sum() * len(mean) / max(len(mean) - 1, 1) for mean in means))


def _round(
    codes: tuple[np.ndarray, np.ndarray], n: int, times: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (n,) of either side, several times: cut at even distances from one random order of whole subjects, laid in a circle.

    So every image is drawn about as often as any other, and what it adds to a mean of subsamples is not left to chance.
    """
    orders = []
    for ids in codes:
        place = rng.permutation(int(ids.max()) + 1)
        orders.append(np.argsort(place[ids], kind="stable"))
    for time in range(times):
        first, second = (order[(time * len(order) // times + np.arange(n)) % len(order)] for order in orders)
        yield first, second


def _frechet(x: np.ndarray, y: np.ndarray, codes_x: np.ndarray, codes_y: np.ndarray, _: Telling) -> dict[str, Measured]:
    return {"value": frechet_measured(x, y, codes_x, codes_y)}


def _by_folds(metric: Callable[[np.ndarray, np.ndarray], Any], seed: int) -> Measure:
    """Any function's value, and its variances by leaving out a tenth of the subjects at a time."""

    def value_of(x: np.ndarray, y: np.ndarray) -> float:
        found = metric(x, y)
        return float(getattr(found, "value", found))

    def variance(pair: tuple[np.ndarray, np.ndarray], codes: np.ndarray, side: int, telling: Telling) -> float:
        subjects, found = int(codes.max()) + 1, []
        folds = min(_FOLDS, subjects)
        draws = generator(seed, "size_matched", "folds", side, telling.draw)
        for _ in range(telling.partitions):
            fold = draws.permutation(subjects)[codes] % folds
            kept = [[part[fold != left_out] if place == side else part for place, part in enumerate(pair)] for left_out in range(folds)]
            found.append(jackknife_variance(np.array([value_of(*parts) if len(parts[side]) > 1 else math.nan for parts in kept])))
        return float(np.mean(found))

    def measure(x: np.ndarray, y: np.ndarray, codes_x: np.ndarray, codes_y: np.ndarray, telling: Telling) -> dict[str, Measured]:
        pair = x, y
        told = None if telling.partitions == 0 else (variance(pair, codes_x, 0, telling), variance(pair, codes_y, 1, telling))
        return {"value": Measured(value_of(*pair), variances=told)}

    return measure
