"""The presence chapter: who is in the pictures, as requested or as judged and corrected, against a target mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from scipy.special import ndtr

from evenhand.audit.intervals import Z95, effective_subjects, subject_codes
from evenhand.audit.readings import Reading, cross, stated
from evenhand.audit.representation import MixEstimate, estimate_mix, mix_gap, prediction_powered_mix, raw_presence
from evenhand.audit.result import PresenceRow, PresenceTable, number
from evenhand.cohorts.cohort import Cohort
from evenhand.core.groups import Mix
from evenhand.core.names import joint_label
from evenhand.core.randomness import generator

UNSEEN = "the prompts are silent and no judge reads this column"
_TARGETS = 20_000  # draws of a target's sampling error
NOT_HELD_OUT = "no real images are held out from the judge, so its errors cannot be measured"


@dataclass(frozen=True)
class JudgedColumn:
    """One judge's probabilities (n, K) and penultimate features of real and generated images."""

    groups: list[str]
    real: np.ndarray
    synthetic: np.ndarray
    features: Callable[[], tuple[np.ndarray, np.ndarray]]  # (n, d) real, (m, d) generated: made when a judge is asked, cached


@dataclass(frozen=True)
class PresenceData:
    """Both sides as presence needs them.

    ``held_out`` marks the real images that calibrate the judges; ``labels`` holds a hand's labels of some generated images.
    The ids are what draws know images by; None = their rows.
    """

    real: Cohort
    synthetic: Cohort
    held_out: np.ndarray
    columns: Mapping[str, JudgedColumn]
    labels: Mapping[str, pd.Series]
    n_boot: int
    seed: int
    real_ids: np.ndarray | None = None
    synthetic_ids: np.ndarray | None = None


def presence_table(reading: Reading, target: Target, data: PresenceData, *, judge_only: bool = False) -> PresenceTable:
    """Shares among generated images against ``target``; by a judge they are corrected for its errors, or refused."""
    names = [str(name) for name in reading.synthetic.cat.categories]
    subjects = data.synthetic.table["subject_id"].astype(object).to_numpy()
    counted = raw_presence(reading.synthetic.astype(object), names, subjects)
    found = _corrected(reading, data, judge_only) if reading.basis in ("judge", "mixed") else None
    rows = []
    for name, cell in zip(names, counted.by_group.to_dict("records"), strict=True):
        raw = tuple(number(float(cell[key])) for key in ("raw", "low", "high"))
        shown = tuple(number(bound) for bound in found.shares.get(name, (math.nan,) * 3)) if found else raw
        reason = UNSEEN if reading.basis == "none" else str(cell["reason"]) or target.reason
        rows.append(
            PresenceRow(
                group=name, n=int(cell["n"]), value=shown[0], low=shown[1], high=shown[2], raw=raw[0], raw_low=raw[1], raw_high=raw[2],
                target=number(target.shares.get(name, math.nan)), reason=reason,
            )
        )  # fmt: skip
    shares = {row.group: row.value if row.value is not None else math.nan for row in rows}
    known = found is None or found.estimate.identifiable
    gap = mix_gap(shares, target.shares) if target.shares and known and reading.basis != "none" else math.nan
    errors = _joint_errors(names, found) if math.isfinite(gap) else None
    wanted = np.array([target.shares.get(name, math.nan) for name in names])
    radius, parity = (math.nan, math.nan) if errors is None else gap_error(errors, wanted, target.effective)
    return PresenceTable(
        question=f"presence:{reading.question}", by=list(reading.by), basis=reading.basis, shown=judge_only,
        n=counted.n, n_real=target.n, n_target=target.effective, stated=list(target.stated), gap=number(gap),
        gap_low=number(max(gap - radius, 0.0)), gap_high=number(min(gap + radius, 1.0)), gap_at_parity=number(parity),
        p_value=target_p_value(rows, target) if found and math.isfinite(gap) else None,
        raw_gap=number(mix_gap(counted.mix, target.shares) if target.shares else math.nan),
        method=found.estimate.method if found else "requested" if reading.basis == "requested" else "none",
        identifiable=known if reading.basis != "none" else None, refusal=found.estimate.reason if found else "",
        condition_number=number(found.estimate.condition_number) if found else None,
        sensitivity=found.estimate.effects.get("sensitivity") if found else None,
        n_calibration=_calibrating(reading, data) if found and found.estimate.method != "labelled" else None, rows=rows,
    )  # fmt: skip


def gap_error(errors: np.ndarray, wanted: np.ndarray, effective: float) -> tuple[float, float]:
    """95th percentile, and mean, of the total variation distance that errors of the shares and of the target alone make.

    By the triangle inequality no gap is further from the true one than that distance.

    Args:
        errors: draws (B, K) of the shares' joint error.
        wanted: (K,) shares of the target; it has the error of ``effective`` independent real images, none where that is 0.
    """
    if effective > 0:
        n = max(1, round(effective))
        target = wanted / wanted.sum()
        draws = generator(0, "presence", "target").multinomial(n, target, size=_TARGETS) / n
        errors = np.resize(errors, draws.shape) - (draws - target)
    apart = np.abs(errors).sum(axis=1) / 2
    return float(np.quantile(apart, 0.95)), float(apart.mean())


def _joint_errors(names: list[str], found: _Corrected | None) -> np.ndarray | None:
    """Draws (B, K) of the shares' errors; 0 of what was requested, None where an estimate has none."""
    if found is None:
        return np.zeros((1, len(names)))
    if found.errors is None:
        return None
    size = max(len(part) for part in found.errors.values())
    return np.stack([found.errors.get(name, np.zeros(1)) + np.zeros(size) for name in names], axis=1)


def target_p_value(rows: Sequence[PresenceRow], target: Target) -> float:
    """Shares against their targets: the smallest two-sided p-value of a group, times the number of groups (Bonferroni).

    Of two groups one share says it all, so there is one test. A target that is a share of real images has an error of its own.
    """
    smallest = 1.0
    for row in rows:
        if row.value is None or row.low is None or row.high is None or row.target is None:
            continue
        off = row.value - row.target
        side = row.value - row.low if off > 0 else row.high - row.value  # the bound towards the target
        error = math.hypot(side / Z95, math.sqrt(row.target * (1 - row.target) / target.effective) if target.effective else 0.0)
        smallest = min(smallest, float(2 * ndtr(-abs(off) / error)) if error > 0 else float(off == 0))
    return min(1.0, smallest * (len(rows) if len(rows) > 2 else 1))


def _calibrating(reading: Reading, data: PresenceData) -> int:
    """Held-out real images whose groups are known."""
    known = np.all([stated(data.real, name).notna() for name in reading.by], axis=0)
    return int((known & data.held_out).sum())


@dataclass(frozen=True)
class Target:
    """Wanted shares by group; how many real images they rest on (0: stated), and how many independent ones those are worth.

    ``stated`` names the columns whose shares a mix gave; without shares, ``reason`` says why.
    """

    shares: dict[str, float]
    n: int = 0
    effective: float = 0.0
    stated: tuple[str, ...] = ()
    reason: str = ""


def target_shares(parts: Sequence[Reading], mix: Mix | None, subjects: np.ndarray | None = None) -> Target:
    """Wanted share of every product of the columns' groups: stated by the mix, else as among the real images' known labels.

    Where the mix speaks of some of the columns alone, real images say what it leaves open: within each group that it states, the
    others have their shares among the real images of that group. ``subjects`` are those of the real images (n,).
    """
    crossed = cross(parts)
    names = [str(name) for name in crossed.real.cat.categories]
    stated_at = [place for place, part in enumerate(parts) if mix is not None and part.by[0] in mix.names]
    columns = tuple(parts[place].by[0] for place in stated_at)
    keys = [tuple(cell[place] for place in stated_at) for cell in _product([list(part.real.cat.categories) for part in parts])]
    wanted: dict[tuple[str, ...], float] = {(): 1.0} if mix is None else mix.joint(columns)
    if len(columns) == len(parts):
        return Target({name: wanted.get(key, 0.0) for name, key in zip(names, keys, strict=True)}, stated=columns)
    codes = crossed.real.cat.codes.to_numpy()
    known = codes >= 0
    if not known.any():
        return Target({}, stated=columns, reason="no real image has a known group")
    found = np.bincount(codes[known], minlength=len(names)) / known.sum()
    shown = {key: float(sum(share for share, other in zip(found, keys, strict=True) if other == key)) for key in keys}
    absent = next((key for key, share in wanted.items() if share > 0 and not shown.get(key)), None)
    if absent is not None:
        reason = f"the target wants {joint_label(absent)}, and no real image of it says how the rest is shared"
        return Target({}, stated=columns, reason=reason)
    weights = np.array([wanted.get(key, 0.0) / shown[key] if shown[key] else 0.0 for key in keys])
    images = np.bincount(subject_codes(None if subjects is None else subjects[known], int(known.sum())), weights[codes[known]])
    shares = {name: float(share) for name, share in zip(names, found * weights, strict=True)}
    return Target(shares, int(known.sum()), effective_subjects(images), columns)


@dataclass(frozen=True)
class _Corrected:
    shares: dict[str, tuple[float, float, float]]
    estimate: MixEstimate  # the first one that was refused, else the last one
    errors: dict[str, np.ndarray] | None  # of each share, draws (B,); None where an estimate has none


def _corrected(reading: Reading, data: PresenceData, judge_only: bool) -> _Corrected:
    """Shares of every cell: images are sorted by what their prompt states, and the judges say the rest.

    Whether the mix can be known is asked of all images on which the same columns are silent; their shares are then estimated for
    each requested value apart.
    """
    counted = np.flatnonzero(reading.synthetic.notna())  # the few that are silent where none is judged stay out
    asked = pd.DataFrame({name: [None] * len(data.synthetic) if judge_only else stated(data.synthetic, name) for name in reading.by})
    asked = asked.iloc[counted]
    shares: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    drawn = True
    tested: MixEstimate | None = None
    for pattern, there in _strata(asked.isna()).items():
        columns = [name for name, unstated in zip(reading.by, pattern, strict=True) if unstated]
        whole = _estimate(columns, counted[there], data) if columns else None
        if whole is not None and (tested is None or tested.identifiable):
            tested = whole
        for requested, part in _strata(asked.iloc[there].fillna("")).items():
            rows = counted[there[part]]
            estimate = whole if whole is None or len(rows) == len(there) else _estimate(columns, rows, data)
            drawn &= estimate is None or estimate.errors is not None
            for cell, bounds, error in _cells(reading.by, requested, columns, estimate, data):
                shares[cell] = shares.get(cell, np.zeros(3)) + bounds * len(rows) / len(asked)
                errors[cell] = _added(errors.get(cell), error * len(rows) / len(asked))
    assert tested is not None  # a basis with a judge has silent images
    bounds_of = {cell: (float(b[0]), float(b[1]), float(b[2])) for cell, b in shares.items()}
    return _Corrected(bounds_of, tested, errors if drawn else None)


def _added(before: np.ndarray | None, more: np.ndarray) -> np.ndarray:
    """The sum of two independent errors' draws, of the larger number of both."""
    if before is None:
        return more
    size = max(len(before), len(more))
    return np.asarray(np.resize(before, size) + np.resize(more, size))


def _strata(frame: pd.DataFrame) -> dict[tuple, np.ndarray]:
    """Which rows hold each combination of values, by place."""
    places: dict[tuple, list[int]] = {}
    for place, values in enumerate(frame.itertuples(index=False, name=None)):
        places.setdefault(values, []).append(place)
    return {values: np.array(rows) for values, rows in places.items()}


def _cells(
    by: Sequence[str], requested: Sequence[str], columns: list[str], estimate: MixEstimate | None, data: PresenceData
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names of the cells that share what was requested, with value and bounds (3,) of each, and draws of its error (B,)."""
    if estimate is None:
        yield joint_label(requested), np.ones(3), np.zeros(1)
        return
    for place, judged in enumerate(_product([data.columns[name].groups for name in columns])):
        filled = dict(zip(columns, judged, strict=True))
        cell = joint_label([filled.get(name, value) for name, value in zip(by, requested, strict=True)])
        error = np.zeros(1) if estimate.errors is None else estimate.errors[:, place]
        yield cell, np.array([estimate.values[place], estimate.low[place], estimate.high[place]]), error


def _estimate(columns: list[str], rows: np.ndarray, data: PresenceData) -> MixEstimate:
    """The mix of the judged columns' joint groups among these generated images."""
    judged = [data.columns[name] for name in columns]
    names = [joint_label(parts) for parts in _product([column.groups for column in judged])]
    own = _joint([column.synthetic[rows] for column in judged])
    subjects = data.synthetic.table["subject_id"].astype(object).to_numpy()[rows]
    if len(columns) == 1 and columns[0] in data.labels and data.labels[columns[0]].iloc[rows].notna().sum() > 1:
        labels = pd.Series(pd.Categorical(data.labels[columns[0]].iloc[rows], categories=names))
        return prediction_powered_mix(own, labels, subjects=subjects)
    truth = pd.DataFrame({name: stated(data.real, name) for name in columns})
    told = truth.to_numpy().tolist()
    joint = pd.Series([joint_label(parts) if all(isinstance(part, str) for part in parts) else None for parts in told], dtype=object)
    kept = data.held_out & joint.isin(names).to_numpy()
    if kept.sum() < 2:
        return _refused(len(names), len(rows), NOT_HELD_OUT)
    features = [column.features() for column in judged]
    return estimate_mix(
        own, _joint([column.real[kept] for column in judged]), pd.Series(pd.Categorical(joint[kept], categories=names)),
        features=np.hstack([there for _, there in features])[rows], calibration_features=np.hstack([here for here, _ in features])[kept],
        n_boot=data.n_boot, seed=data.seed,
        subjects=(subjects, data.real.table["subject_id"].astype(object).to_numpy()[kept]),
        ids=(_of(data.synthetic_ids, rows), _of(data.real_ids, kept)),
    )  # fmt: skip


def _of(ids: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if ids is None else ids[rows]


def _refused(k: int, n: int, reason: str) -> MixEstimate:
    nothing = np.full(k, math.nan)
    return MixEstimate(nothing, nothing, nothing, False, reason, n)


def _product(groups: Sequence[list[str]]) -> list[tuple[str, ...]]:
    return reduce(lambda parts, more: [(*part, name) for part in parts for name in more], groups, [()])  # type: ignore[arg-type]


def _joint(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Joint probabilities (n, K1 K2 ..) of several judges that err apart, in the order of ``_product``."""
    joint = reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), probabilities)
    return joint / joint.sum(axis=1, keepdims=True)
