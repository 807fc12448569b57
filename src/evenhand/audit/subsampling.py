"""A metric by subgroup, every group at one number of images: subsamples, their average, its interval and what the draws left open.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from evenhand.audit.fidelity import frechet_measured, kernel_distance
from evenhand.audit.frame import UNDEFINED, Estimate, FeatureError, SubgroupFrame, as_labels
from evenhand.audit.intervals import (
    Measured,
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
# Features of two samples, the subject codes of each, and in how many ways to part the subjects where that tells the variances (0: leave
# them out where they cost much) -> the values of one or more statistics.
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int], dict[str, Measured]]
WholeMeasure = Callable[[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]], Estimate]  # of whole groups, with their subject codes
MIN_N = 10
MONTE_CARLO = "monte_carlo"  # the column of a frame: standard error of a value that another seed of the draws would show
_CLOSE = 0.02  # of the interval's half width: the Monte Carlo error at which no more is drawn
_ROUNDS = (8, 100)  # permutations drawn, at least and at most
_TOLD = 6  # of them those whose variances are told where that costs much
_FOLDS, _PARTITIONS = 10, 10


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
    width (or 100 orders are done). The interval adds the variance between subjects at the sampled size, scaled to the group's own
    number of subjects, and that of the draws. ``"kid"`` needs no draws: the mean of a U-statistic over all subsamples of one size is
    the statistic of the whole group.

    Args:
        real, synthetic: features (n, d) and (m, d).
        real_groups, synthetic_groups: one label per image; unknown, unspecified, NaN and -1 are no group. Categories of a pandas
            categorical stay in the frame where no image has them.
        metric: (real, synthetic) -> float, or "kid" or "frechet". The variance of a function is told by leaving out a tenth of the
            subjects at a time; that of "frechet" in closed form.
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
        return of_whole_groups(*sides, lambda x, y, codes: kernel_distance(x, y, subjects=codes), **how)
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
    """As ``size_matched`` for a U-statistic, which needs no draws: ``repeats`` and ``seed`` have no part in it."""

    def cell(sides: Any, codes: Any, ranks: Any, common: int, name: str) -> dict[str, tuple[Estimate, float]]:
        whole = measure(sides[0], sides[1], codes)
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
    subjects = [int(ids.max()) + 1 for ids in codes]
    multiplier = t_multiplier(min(subjects))
    rounds: list[dict[str, np.ndarray]] = []  # of each statistic the mean value and variance of a round
    fractions = []
    whole = all(len(ids) == common for ids in codes)  # nothing to draw: one subsample is the group
    for number in range(1 if whole else _ROUNDS[1]):
        found: list[dict[str, Measured]] = []
        for drawn in _round(codes, common, 1 if whole else repeats, generator(key[0], "size_matched", key[1], number)):
            ids = [np.unique(side[index], return_inverse=True)[1] for side, index in zip(codes, drawn, strict=True)]
            partitions = _PARTITIONS if whole else int(number < _TOLD)
            found.append(measure(sides[0][drawn[0]], sides[1][drawn[1]], ids[0], ids[1], partitions))
            fractions.append([(int(own.max()) + 1) / count for own, count in zip(ids, subjects, strict=True)])
        rounds.append({name: np.mean([[cell[name].value, *cell[name].variances] for cell in found], axis=0) for name in found[0]})
        cells = {name: _cell([row[name] for row in rounds], np.mean(fractions, axis=0), multiplier, common) for name in rounds[0]}
        close = all(not error > _CLOSE * (cell.high - cell.low) / 2 for cell, error in cells.values())
        if whole or (number + 1 >= _ROUNDS[0] and close):
            break
    return cells


def _cell(rounds: list[np.ndarray], fractions: np.ndarray, multiplier: float, n: int) -> tuple[Estimate, float]:
    """The mean of rounds, its interval and its Monte Carlo error, from rows of value and either side's variance."""
    table = np.array(rounds)
    value, variances = float(table[:, 0].mean()), np.nanmean(table[:, 1:], axis=0) if np.isfinite(table).any() else np.full(2, math.nan)
    drawing = float(table[:, 0].var(ddof=1)) / len(table) if len(table) > 1 else 0.0
    half = multiplier * math.sqrt(float(np.dot(variances, fractions)) + drawing)
    return Estimate(value, value - half, value + half, n), math.sqrt(drawing)


def _round(codes: tuple[np.ndarray, np.ndarray], n: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (n,) of either side, several times: cut at even distances from one random order of whole subjects, laid in a circle.

    So every image is drawn about as often as any other, and what it adds to a mean of subsamples is not left to chance.
    """
    orders = []
    for ids in codes:
        place = rng.permutation(int(ids.max()) + 1)
        orders.append(np.argsort(place[ids], kind="stable"))
    times = max(repeats, *(math.ceil(len(order) / n) for order in orders))
    for time in range(times):
        first, second = (order[(time * len(order) // times + np.arange(n)) % len(order)] for order in orders)
        yield first, second


def _frechet(x: np.ndarray, y: np.ndarray, codes_x: np.ndarray, codes_y: np.ndarray, _: int) -> dict[str, Measured]:
    return {"value": frechet_measured(x, y, codes_x, codes_y)}


def _by_folds(metric: Callable[[np.ndarray, np.ndarray], Any], seed: int) -> Measure:
    """Any function's value, and its variances by leaving out a tenth of the subjects at a time."""

    def value_of(x: np.ndarray, y: np.ndarray) -> float:
        found = metric(x, y)
        return float(getattr(found, "value", found))

    def variance(pair: tuple[np.ndarray, np.ndarray], codes: np.ndarray, side: int, partitions: int) -> float:
        subjects, found = int(codes.max()) + 1, []
        folds = min(_FOLDS, subjects)
        for partition in range(partitions):
            fold = generator(seed, "size_matched", "folds", side, partition).permutation(subjects)[codes] % folds
            kept = [[part[fold != left_out] if place == side else part for place, part in enumerate(pair)] for left_out in range(folds)]
            found.append(jackknife_variance(np.array([value_of(*parts) if len(parts[side]) > 1 else math.nan for parts in kept])))
        return float(np.mean(found)) if found else math.nan

    def measure(x: np.ndarray, y: np.ndarray, codes_x: np.ndarray, codes_y: np.ndarray, partitions: int) -> dict[str, Measured]:
        pair = x, y
        return {"value": Measured(value_of(*pair), (variance(pair, codes_x, 0, partitions), variance(pair, codes_y, 1, partitions)))}

    return measure
