"""Quality gap between subgroups: do the generated images of some groups lie further from their own real images than those of others.

Arrays in, plain results out: real (n, d) and synthetic (m, d) features of one encoder.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import solve_triangular

from evenhand.audit.fidelity import LARGEST, kernel_blocks
from evenhand.audit.intervals import (
    FeatureError,
    as_feature_pair,
    drawing_order,
    effective_subjects,
    subject_weights,
    two_sided_ranks,
    two_sided_subjects,
)
from evenhand.audit.subsampling import MIN_N, common_labels, group_fault
from evenhand.core.randomness import generator

MIN_SUBJECTS = 10  # on a side of a group; with fewer, resampled signs are too coarse a law
SMALLEST_P, AT_MOST = 1e-4, 1000
_VIEWS = ("relative", "whitened")
_LEAST_DRAWS = 20
_SCREENING, _REFINED = 999, 30_000  # draws; the many only where the p-value is
_DOUBTFUL = 0.005, 0.2
_DRAWS_AT_ONCE, _PAIRS_AT_ONCE = 2500, 2_000_000
P_VALUE_ERROR = len(_VIEWS) * math.sqrt(0.025 * 0.975 / _REFINED)  # standard error by the draws of a p-value near .05
_RIDGE = 1.0  # in mean eigenvalues; with less, many features drown a shift along the main directions


@dataclass(frozen=True)
class GapTest:
    """A test that all groups are generated equally well, and how far apart they are; NaN, with the reason, where there is none.

    Attributes:
        statistic, p_value: largest studentised difference between two groups, and its chance where all are equally well generated.
        gap: largest minus smallest KID of a group to its own real images, no subject counting for more than thrice the usual.
        effect: largest minus smallest distance in the column of ``by_group`` that ``view`` names, the one that shows the difference
            more clearly. A share of the kernel variance of real images: free of the features' unit, so encoders compare.
        worst: the group of the largest distance in that column, among those that lie above another (pairs' p_value < .05) if any do:
            the largest distance of all may be a small group's noise.
        by_group: indexed by group: n_real, n_synthetic, kid; relative = kid / kernel variance of the group's real images;
            whitened = the same ratio of whitened features; reason, where a group has no value.
        pairs: first, second, difference (in that column), p_value (adjusted for all pairs: the smallest is the test's own).
    """

    statistic: float
    p_value: float
    effect: float
    gap: float
    worst: Hashable | None
    view: str
    by_group: pd.DataFrame
    pairs: pd.DataFrame
    reason: str


@dataclass(frozen=True)
class _Side:
    """One side: features (n, d) by subject, codes of subject and of group (n,), and what its subjects' signs are keyed on."""

    features: np.ndarray
    subjects: np.ndarray
    groups: np.ndarray
    key: tuple[int, str]

    def signs(self, chunk: int, number: int) -> np.ndarray:
        """Signs (A, number) of all subjects: a chunk of the draws."""
        draws = generator(*self.key[:1], "quality_gap", self.key[1], chunk)
        return 2 * draws.integers(0, 2, size=(int(self.subjects.max()) + 1, number), dtype=np.int8) - 1


@dataclass(frozen=True)
class _Part:
    """One side of one group: features by subject, images per subject (A,), what each image of it counts (A,), and some signs (A, b)."""

    features: np.ndarray
    images: np.ndarray
    weight: np.ndarray
    signs: np.ndarray

    @property
    def signs_and_ones(self) -> np.ndarray:
        """Signs (A, b + 1); the last column is ones."""
        return np.column_stack([self.signs.astype(np.float64), np.ones(len(self.images))])

    @property
    def size(self) -> np.ndarray:
        """What each subject counts (A,): its images, or fewer."""
        return np.asarray(self.images * self.weight)

    @property
    def effective(self) -> float:
        """As many subjects of equal size would tell as much."""
        return effective_subjects(self.size)


@dataclass(frozen=True)
class _Draws:
    """A group's distance, and what its error is made of, each (B,): at a true distance t it is even + sqrt(t) odd - t scale.

    ``even`` is the doubly centred kernel, ``odd`` the witness function at distance 1, ``scale`` the kernel variance of real images,
    in units of which all of this is. ``subjects``: effective ones, on the side that has fewer.
    """

    kid: float
    value: float
    even: np.ndarray
    odd: np.ndarray
    scale: np.ndarray
    subjects: float


def quality_gap(
    real: Any,
    synthetic: Any,
    real_groups: Any,
    synthetic_groups: Any,
    *,
    subjects: Any = None,
    ids: Any = None,
    seed: int = 0,
    min_n: int = MIN_N,
    n_boot: int | None = None,
    at_most: int = AT_MOST,
) -> GapTest:
    """Test whether all groups are generated equally well, each against its own real images.

    A group's distance is its unbiased KID over the kernel variance of its own real images: KID grows with the spread of the features
    and with their offset, in which real groups differ. It is taken of the features as they are and of whitened ones (pooled
    covariance within groups, with a ridge), since the few directions in which patients differ most else hide all others. The
    statistic is the largest studentised difference between two groups; of the two views the smaller p-value is taken, doubled.

    Groups may be equally well generated and yet none perfectly, each in a law of its own, so no label is permuted. Under the null
    every group lies at one distance t, estimated from all; about it a group's error is that of a U-statistic: its linear and its
    degenerate part (Hoeffding), with random signs for whole subjects (wild bootstrap; Dehling and Mikosch 1994, for MMD Chwialkowski
    et al. 2014). A U-statistic needs no size matching: its mean over all subsamples of one size is the value itself.

    A patient of whom there are sixty images where others have two would decide alone, so none counts for more than three times the
    images that the group's median subject has. Few subjects widen the null law (Student).

    Equal damage to pixels need not be an equal distance: a blur takes more from a group with finer detail.

    Args:
        real, synthetic: features (n, d) and (m, d).
        real_groups, synthetic_groups: one label per image; unknown, unspecified, NaN and -1 are no group.
        subjects: as in ``kernel_distance``; images of one subject share a sign, in whichever groups they are.
        ids: as in ``size_matched``.
        min_n: a group with fewer images on a side is ``insufficient``, and so is one with fewer than ``MIN_SUBJECTS`` subjects.
        n_boot: draws of the null law. None = 999, and 30,000 where those give a p-value from .005 to .2. No p-value below 1e-4 is given.
        at_most: of a group with more images on a side, whole subjects are taken up to so many, since cost grows with their square.
            Which ones hangs on their ids, not on the seed.

    Raises:
        FeatureError: features that no distance can be computed from, or labels that are not one per image.
    """
    x, y = as_feature_pair(real, synthetic)
    if max(np.abs(x).max(), np.abs(y).max()) > LARGEST:
        raise FeatureError(f"features are too large for float64 (above {LARGEST:g}); scale them down")
    if n_boot is not None and n_boot < _LEAST_DRAWS:
        raise FeatureError(f"n_boot = {n_boot} draws tell no null law; take {_LEAST_DRAWS} or more")
    codes, ranks = two_sided_subjects(subjects, len(x), len(y)), two_sided_ranks(ids, len(x), len(y))
    labels_x, labels_y, names = common_labels(real_groups, synthetic_groups, len(x), len(y))
    sizes = [(int((labels_x == i).sum()), int((labels_y == i).sum())) for i in range(len(names))]
    for place, (labels, side) in enumerate(((labels_x, "real"), (labels_y, "synthetic"))):
        _thin(ranks[place], codes[place], labels, at_most, side)
    rows = [(np.flatnonzero(labels_x == i), np.flatnonzero(labels_y == i)) for i in range(len(names))]
    reasons = [group_fault(pair, codes, min_n) or _few_subjects(pair, codes) or _all_alike(x[pair[0]]) for pair in rows]
    for number in (_SCREENING, _REFINED) if n_boot is None else (n_boot,):
        draws = _drawn((x, y), ranks, codes, (labels_x, labels_y), reasons, number, seed)
        found = _result(names, sizes, reasons, draws, seed)
        if not _DOUBTFUL[0] <= found.p_value <= _DOUBTFUL[1]:
            break
    return found


def _drawn(
    features: tuple[np.ndarray, np.ndarray],
    ranks: tuple[np.ndarray, np.ndarray],
    codes: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    reasons: list[str],
    n_boot: int,
    seed: int,
) -> dict[str, dict[int, _Draws]]:
    """Distances and draws of each usable group, by view; one whose kernel does not vary gets its reason.

    Signs are held a chunk at a time.
    """
    usable = [i for i, reason in enumerate(reasons) if not reason]
    if not usable:
        return {view: {} for view in _VIEWS}
    real, synthetic = (
        _ordered(features[place], ranks[place], codes[place], labels[place], usable, (seed, side))
        for place, side in enumerate(("real", "synthetic"))
    )
    views = {"relative": (real.features, synthetic.features), "whitened": _whitened((real, synthetic))}
    parts: dict[tuple[str, int], list[_SomeDraws]] = {}
    for chunk, start in enumerate(range(0, n_boot, _DRAWS_AT_ONCE)):
        signs = [side.signs(chunk, min(_DRAWS_AT_ONCE, n_boot - start)) for side in (real, synthetic)]
        for (view, values), i in product(views.items(), usable):
            pair = _part(real, values[0], signs[0], i), _part(synthetic, values[1], signs[1], i)
            parts.setdefault((view, i), []).append(_some_draws(*pair))
    draws: dict[str, dict[int, _Draws]] = {view: {} for view in _VIEWS}
    for (view, i), found in parts.items():
        joined = _group_draws(found)
        if joined is None:
            reasons[i] = "its real images all have the same features"
        else:
            draws[view][i] = joined
    return draws


def _all_alike(features: np.ndarray) -> str:
    """Found beforehand: whitened with them, all other groups would be measured in another unit."""
    apart = np.abs(features - features[0]).max()
    return "its real images all have the same features" if apart <= 1e-9 * np.abs(features).max() else ""


def _thin(ranks: np.ndarray, codes: np.ndarray, labels: np.ndarray, at_most: int, side: str) -> None:
    """Unlabel what a large group has too many of: whole subjects in a random order that no seed changes."""
    for group in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == group)
        if len(rows) > at_most:
            order, subjects = drawing_order(ranks[rows], codes[rows])
            place = generator(0, "quality_gap", f"{side} of {group}").permutation(int(subjects.max()) + 1)[subjects]
            labels[rows[order[np.argsort(place, kind="stable")[at_most:]]]] = -1


def _few_subjects(rows: tuple[np.ndarray, np.ndarray], codes: tuple[np.ndarray, np.ndarray]) -> str:
    for side, index, ids in zip(("real", "synthetic"), rows, codes, strict=True):
        found = len(np.unique(ids[index]))
        if found < MIN_SUBJECTS:
            return f"insufficient: {side} images of {found} subjects, at least {MIN_SUBJECTS} wanted"
    return ""


def _ordered(
    features: np.ndarray, ranks: np.ndarray, codes: np.ndarray, labels: np.ndarray, usable: list[int], key: tuple[int, str]
) -> _Side:
    """Rows of usable groups in drawing order."""
    keep = np.isin(labels, usable)
    features, labels = features[keep], labels[keep]
    order, subjects = drawing_order(ranks[keep], codes[keep])
    return _Side(features[order], subjects, labels[order], key)


def _part(side: _Side, features: np.ndarray, signs: np.ndarray, group: int) -> _Part:
    rows = side.groups == group
    subjects, images = np.unique(side.subjects[rows], return_counts=True)
    return _Part(features[rows], images, subject_weights(images), signs[subjects])


def _whitened(sides: tuple[_Side, _Side]) -> tuple[np.ndarray, ...]:
    """Features of both sides about their group's mean, in units in which their pooled covariance within groups is about 1.

    Real and generated images of a group have one mean and enter one covariance: taken by side, the fitted centre would itself set
    the sides apart (measured at d = 512: a gap in 76 % of null worlds).
    """
    values = np.concatenate([side.features for side in sides])
    groups = np.concatenate([side.groups for side in sides])
    for group in np.unique(groups):
        values[groups == group] -= values[groups == group].mean(axis=0)
    values /= np.abs(values).max() or 1.0
    covariance = values.T @ values / len(values)
    mean_eigenvalue = float(np.trace(covariance)) / len(covariance)
    if mean_eigenvalue > 0:
        root = np.linalg.cholesky(covariance + _RIDGE * mean_eigenvalue * np.eye(len(covariance)))
        values = solve_triangular(root, values.T, lower=True).T
    return tuple(np.split(values, [len(sides[0].features)]))


def _group_draws(parts: list[_SomeDraws]) -> _Draws | None:
    """KID of one group in units of its real images' kernel variance, and draws of its error; None where that variance is 0."""
    margins = parts[0].margins
    even, odd, scale = (np.concatenate([getattr(part, name) for part in parts]) for name in ("even", "odd", "scale"))
    kid = margins.level_x + margins.level_y - 2 * margins.level
    odd *= _at_distance_1(kid, margins.plugged, margins.plugged_value, float(even.var()))
    variance = margins.own - margins.level_x
    if variance <= 1e-12 * margins.own:
        return None
    return _Draws(kid, kid / variance, even / variance, odd / math.sqrt(variance), scale / variance, margins.fewest)


@dataclass(frozen=True)
class _Margins:
    """What no sign enters: mean kernels within and between the sides and of real images with themselves, the plugged-in witness's squared
    norm and the biased distance, and the effective subjects of the side that has fewer.
    """

    level_x: float
    level_y: float
    level: float
    own: float
    plugged: float
    plugged_value: float
    fewest: float


@dataclass(frozen=True)
class _SomeDraws:
    """Parts of the error (b,) for some signs, as in ``_Draws`` but in the kernel's own unit."""

    margins: _Margins
    even: np.ndarray
    odd: np.ndarray
    scale: np.ndarray


def _some_draws(real: _Part, synthetic: _Part) -> _SomeDraws:
    """The error under some signs e.

    The kernel between subjects is made once, some rows at a time, and multiplied by signs: centring it by its margins commutes with the
    products e' K e, so that needs no second pass. As e^2 = 1, what centring puts on the diagonal is known beforehand.
    """
    x, y = real.size, synthetic.size
    n, m = float(x.sum()), float(y.sum())
    signs_x, signs_y = real.signs_and_ones, synthetic.signs_and_ones
    within_x, own_x, even_x, mean_x, level_x = _within(real, signs_x)
    within_y, own_y, even_y, mean_y, level_y = _within(synthetic, signs_y)
    across_x, across_y, cross = _across(real, synthetic, signs_x, signs_y)
    level = float(across_x.sum()) / (n * m)
    e_x, e_y = signs_x[:, :-1].T, signs_y[:, :-1].T  # (b, A)
    cross -= (e_x @ (across_x / m)) * (e_y @ y) + (e_x @ x) * (e_y @ (across_y / n)) - level * (e_x @ x) * (e_y @ y)
    # The fitted margins took that much variance, as in ``_within``.
    cross /= math.sqrt((1 - 1 / real.effective) * (1 - 1 / synthetic.effective))
    witness_x, witness_y = _centred(mean_x - across_x / m, real), _centred(mean_y - across_y / n, synthetic)
    plugged_value = float((within_x + own_x).sum()) / n**2 + float((within_y + own_y).sum()) / m**2 - 2 * level
    own = ((real.features**2).sum(axis=1) / real.features.shape[1] + 1) ** 3
    own = np.add.reduceat(own, np.cumsum(real.images) - real.images) * real.weight
    plugged = 4 * float((witness_x**2).sum()) / n**2 + 4 * float((witness_y**2).sum()) / m**2
    fewest = min(real.effective, synthetic.effective)
    return _SomeDraws(
        margins=_Margins(level_x, level_y, level, float(own.sum()) / n, plugged, plugged_value, fewest),
        even=even_x + even_y - 2 * cross / (n * m),
        odd=2 * (e_x @ witness_x) / n + 2 * (e_y @ witness_y) / m,
        scale=e_x @ _centred(own - 2 * mean_x, real) / n,
    )


def _within(part: _Part, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Kernel sums of each subject with others (A,) and with itself (A,), the centred form e' K e / n^2 (b,), means (A,), level."""
    size, n = part.size, float(part.size.sum())
    sums, own, form = np.empty(len(size)), np.empty(len(size)), np.zeros(signs.shape[1] - 1)
    for rows, whole in kernel_blocks(part.features, part.features, part.images, part.images):
        kernel = whole * (part.weight[rows, None] * part.weight)
        here, there = np.arange(len(kernel)), np.arange(rows.start, rows.stop)
        own[rows] = kernel[here, there]
        kernel[here, there] = 0
        product = kernel @ signs
        sums[rows] = product[:, -1]
        form += np.einsum("ab,ab->b", signs[rows, :-1], product[:, :-1])
    mean = sums / (n - size)
    level = float(sums.sum()) / float(n * n - (size**2).sum())
    e = signs[:, :-1].T
    form += (e @ size) * (level * (e @ size) - 2 * (e @ mean))
    form -= float((size * (level * size - 2 * mean)).sum())
    shrunk = math.sqrt((part.effective - 3) / (part.effective - 1))  # by U-centring on fitted margins (Székely and Rizzo 2014)
    return sums, own, form / shrunk / n**2, mean, level


def _across(real: _Part, synthetic: _Part, signs_x: np.ndarray, signs_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernel sums of each real and each generated subject with the other side, and the form e' K f (b,), not centred."""
    by_x, by_y = np.empty(len(real.size)), np.zeros(len(synthetic.size))
    form = np.zeros(signs_x.shape[1] - 1)
    for rows, whole in kernel_blocks(real.features, synthetic.features, real.images, synthetic.images):
        kernel = whole * (real.weight[rows, None] * synthetic.weight)
        product = kernel @ signs_y
        by_x[rows] = product[:, -1]
        by_y += kernel.sum(axis=0)
        form += np.einsum("ab,ab->b", signs_x[rows, :-1], product[:, :-1])
    return by_x, by_y, form


def _centred(sums: np.ndarray, part: _Part) -> np.ndarray:
    """Subjects' sums about what their size alone makes them, corrected for the fitted mean."""
    return (sums - part.size * sums.sum() / part.size.sum()) * math.sqrt(part.effective / (part.effective - 1))


def _at_distance_1(kid: float, plugged: float, plugged_value: float, pairs: float) -> float:
    """What the plugged-in witness is multiplied by to have norm 1, its noise taken off by degrees as in ``kernel_distance``."""
    clear = kid**2 / (kid**2 + 4 * pairs) if kid > 0 and pairs > 0 else 0.0
    norm = plugged_value - clear * (plugged_value - kid)
    return math.sqrt(max(0.0, plugged - clear * 2 * pairs) / plugged / norm) if norm > 0 and plugged > 0 else 0.0


@dataclass(frozen=True)
class _Tested:
    """One view: distances (G,), differences and studentised ones of all pairs (P,), and the largest of these under the null (B,)."""

    values: np.ndarray
    differences: np.ndarray
    studentised: np.ndarray
    null: np.ndarray

    @property
    def p_values(self) -> np.ndarray:
        """Chance (P,) of so large a maximum under the null; beyond the 90th percentile by an exponential tail.

        That is the tail of a degenerate U-statistic, and heavier than a normal one; below 1e-4 it would be a guess.
        """
        start = float(np.quantile(self.null, 0.9))
        beyond = self.null[self.null > start] - start
        excess = max(float(beyond.sum()) / max(len(beyond), 1), np.finfo(float).tiny)
        body = (1 + (self.null >= self.studentised[:, None]).sum(axis=1)) / (1 + len(self.null))
        tail = 0.1 * np.exp(-np.maximum(self.studentised - start, 0) / excess)
        return np.asarray(np.where(self.studentised > start, np.maximum(tail, SMALLEST_P / 2), body))


def _tested(draws: list[_Draws], seed: int) -> _Tested:
    first, second = np.array(list(combinations(range(len(draws)), 2))).T
    values = np.array([group.value for group in draws])
    even, odd, scale = (np.array([getattr(group, name) for group in draws]) for name in ("even", "odd", "scale"))  # (G, B)
    still, slope = np.maximum(even.var(axis=1), np.finfo(float).tiny), odd.var(axis=1)

    # A variance told by few subjects is itself off; as in Student's law, that makes the studentised differences wider.
    rng, freedom = generator(seed, "quality_gap", "variance"), np.array([group.subjects - 1 for group in draws])
    told = rng.chisquare(freedom[:, None], size=even.shape) / freedom[:, None]

    def studentised(distances: np.ndarray, told: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """|differences| (P, B) in standard errors at the common distance (B,) of each column, clipped at 0."""
        common = np.zeros(distances.shape[1])
        for _ in range(3):
            weight = 1 / (still[:, None] + slope[:, None] * common)
            common = np.maximum(0.0, (weight * distances).sum(axis=0) / weight.sum(axis=0))
        variance = (still[:, None] + slope[:, None] * common) * told
        return np.abs(distances[first] - distances[second]) / np.sqrt(variance[first] + variance[second]), common

    found, common = studentised(values[:, None])
    t = float(common[0])
    if t > 0:  # the law at t is wider than at 0, so a t that is noise costs power
        t *= t**2 / (t**2 + 1 / float((1 / (still + slope * t)).sum()))
    distances, at_once = t + even + math.sqrt(t) * odd - t * scale, max(1, _PAIRS_AT_ONCE // len(first))
    null = [
        studentised(distances[:, start : start + at_once], told[:, start : start + at_once])[0].max(axis=0)
        for start in range(0, distances.shape[1], at_once)
    ]
    return _Tested(values, values[first] - values[second], found[:, 0], np.concatenate(null))


def _result(names: list[Any], sizes: list[tuple[int, int]], reasons: list[str], draws: dict[str, dict[int, _Draws]], seed: int) -> GapTest:
    whole = [i for i, reason in enumerate(reasons) if not reason]
    column = lambda view, name: [getattr(draws[view][i], name) if i in whole else math.nan for i in range(len(names))]  # noqa: E731
    table = pd.DataFrame(
        {
            "n_real": pd.Series([a for a, _ in sizes], dtype=int),
            "n_synthetic": pd.Series([b for _, b in sizes], dtype=int),
            "kid": pd.Series(column(_VIEWS[0], "kid"), dtype=float),
            **{view: pd.Series(column(view, "value"), dtype=float) for view in _VIEWS},
            "reason": pd.Series(reasons, dtype=object),
        }
    ).set_index(pd.Index(names, name="group"))
    none = pd.DataFrame({"first": [], "second": [], "difference": [], "p_value": []})
    if len(whole) < 2:
        told = "; ".join(f"{names[i]}: {reason}" for i, reason in enumerate(reasons) if reason)
        reason = f"{len(whole)} of {len(names)} groups can be measured, a gap needs 2" + (f" ({told})" if told else "")
        return GapTest(math.nan, math.nan, math.nan, math.nan, None, "", table, none, reason)
    tests = {view: _tested([draws[view][i] for i in whole], seed) for view in _VIEWS}
    p_values = {view: test.p_values for view, test in tests.items()}
    view = min(_VIEWS, key=lambda v: (p_values[v].min(), -tests[v].studentised.max()))
    adjusted = np.minimum(1.0, len(_VIEWS) * np.min(list(p_values.values()), axis=0))
    chosen, pairs = tests[view], list(combinations([names[i] for i in whole], 2))
    frame = pd.DataFrame({"first": [a for a, _ in pairs], "second": [b for _, b in pairs]}).assign(
        difference=chosen.differences, p_value=adjusted
    )
    kid = table["kid"].to_numpy()[whole]
    above = {pair[int(difference < 0)] for pair, difference, p in zip(pairs, chosen.differences, adjusted, strict=True) if p < 0.05}
    worst = max((i for i in whole if names[i] in above or not above), key=lambda i: draws[view][i].value)
    return GapTest(
        statistic=float(chosen.studentised.max()),
        p_value=float(adjusted.min()),
        effect=float(np.ptp(chosen.values)),
        gap=float(np.ptp(kid)),
        worst=names[worst],
        view=view,
        by_group=table,
        pairs=frame,
        reason="",
    )
