"""From arrays to the result's tables: quality and semantics by subgroup and intersection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from evenhand.audit.auc_gaps import fidelity_gap
from evenhand.audit.equity import equity_scaled
from evenhand.audit.fidelity import frechet_distance, halves_distance, kernel_distance
from evenhand.audit.frame import Estimate, SubgroupFrame
from evenhand.audit.gaps import GapTest, quality_gap
from evenhand.audit.intervals import FeatureError, gap_interval
from evenhand.audit.manifold import OVERLAP, clip_distance, log_inception_score_at, overlap_measured
from evenhand.audit.readings import Reading
from evenhand.audit.result import Cell, GroupRow, QualityTable, SemanticRow, SemanticTable, number
from evenhand.audit.semantics import group_auc
from evenhand.audit.subsampling import MONTE_CARLO, of_whole_groups, size_matched, size_matched_each
from evenhand.core.names import condition_is

_FRECHET_AT_MOST, _OVERLAP_AT_MOST = 500, 300  # images a side and group


@dataclass(frozen=True)
class Resampling:
    """How intervals are made."""

    repeats: int
    n_boot: int
    min_n: int
    seed: int


@dataclass(frozen=True)
class Sides:
    """Features of both sides, (n, d) and (m, d), their subjects, and what identifies their images (None: their rows)."""

    real: np.ndarray
    synthetic: np.ndarray
    real_subjects: np.ndarray
    synthetic_subjects: np.ndarray
    real_ids: np.ndarray | None = None
    synthetic_ids: np.ndarray | None = None

    @property
    def subjects(self) -> tuple[np.ndarray, np.ndarray]:
        """As the distances take them."""
        return self.real_subjects, self.synthetic_subjects

    @property
    def ids(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """As the distances take them."""
        return self.real_ids, self.synthetic_ids


@dataclass(frozen=True)
class Scored:
    """A judge's scores (n,) of one side, its labels (1, 0, or -1 where unknown), its subjects, and what identifies its images."""

    scores: np.ndarray
    labels: np.ndarray
    subjects: np.ndarray
    ids: np.ndarray | None = None


@dataclass(frozen=True)
class Whole:
    """Both distances of all images, and the kernel distance's floor: the same for every reading, so measured once."""

    kid: Cell
    fid: Cell
    floor: Cell

    @classmethod
    def of(cls, sides: Sides, how: Resampling) -> Whole:
        """The Fréchet distance's interval is not given at full size, only the matched one's is."""
        fid = Estimate(frechet_distance(sides.real, sides.synthetic), math.nan, math.nan, len(sides.synthetic))
        kid = kernel_distance(sides.real, sides.synthetic, subjects=sides.subjects)
        return cls(Cell.of(kid), Cell.of(fid), real_floor(sides, np.ones(len(sides.real), dtype=bool), how))


def quality_table(
    reading: Reading, sides: Sides, whole: Whole, metric: Literal["kid", "fid"], encoder: str, how: Resampling, *, primary: bool
) -> QualityTable:
    """A distance by subgroup, size-matched, with the real-against-real floor beside the kernel distance."""
    frame = size_matched(
        sides.real, sides.synthetic, reading.real, reading.synthetic, "kid" if metric == "kid" else "frechet",
        repeats=how.repeats, seed=how.seed, subjects=sides.subjects, ids=sides.ids, min_n=how.min_n, with_overall=False,
        at_most=None if metric == "kid" else _FRECHET_AT_MOST,
    )  # fmt: skip
    floors: dict = {}
    answer: dict[str, Any] = {"worst": _name(frame.worst)}
    if metric == "kid":
        tested = quality_gap(
            sides.real, sides.synthetic, reading.real, reading.synthetic,
            subjects=sides.subjects, ids=sides.ids, seed=how.seed, min_n=how.min_n,
        )  # fmt: skip
        answer |= _answer(tested) if tested.view else {"untested": tested.reason}
        floors = {name: real_floor(sides, (reading.real == name).to_numpy(), how) for name in frame.by_group.index}
    return QualityTable(
        question=f"quality:{reading.question}", by=list(reading.by), basis=reading.basis, metric=metric, primary=primary, encoder=encoder,
        n=frame.overall.n, overall=whole.kid if metric == "kid" else whole.fid,
        overall_reference=whole.floor if metric == "kid" else None,
        rows=group_rows(frame, floors, reading), **gap_of(frame), monte_carlo=_monte_carlo(frame), **answer,
    )  # fmt: skip


def _answer(tested: GapTest) -> dict[str, Any]:
    distances = {str(name): number(float(value)) for name, value in tested.by_group[tested.view].items()}
    return {
        "p_value": number(tested.p_value), "effect": number(tested.effect), "worst": _name(tested.worst),
        "view": tested.view, "tested": distances,
    }  # fmt: skip


def overlap_tables(reading: Reading, sides: Sides, encoder: str, how: Resampling) -> list[QualityTable]:
    """Precision, recall, density and coverage by subgroup, at one n of a few hundred at most: they need no more to be told."""
    frames = size_matched_each(
        sides.real, sides.synthetic, reading.real, reading.synthetic, overlap_measured, higher_is_better=True,
        repeats=how.repeats, seed=how.seed, subjects=sides.subjects, ids=sides.ids, min_n=how.min_n, at_most=_OVERLAP_AT_MOST,
    )  # fmt: skip
    found = []
    for name in OVERLAP:
        frame = frames[name].clipped(0.0, math.inf) if name == "density" else frames[name]
        found.append(_view(reading, frame, name, encoder, {}, None))
    return found


def inception_table(reading: Reading, probabilities: Sides, judge: str, how: Resampling) -> QualityTable:
    """Logarithm of the inception score by subgroup, by a judge's class probabilities; beside it that of the real images."""
    found, beside = (
        of_whole_groups(
            probabilities.real, probabilities.synthetic, reading.real, reading.synthetic, measure, higher_is_better=True,
            subjects=probabilities.subjects, ids=probabilities.ids, min_n=how.min_n,
        )
        for measure in (
            lambda _, made, codes, n: log_inception_score_at(made, n, subjects=codes[1]),
            lambda real, _, codes, n: log_inception_score_at(real, n, subjects=codes[0]),
        )
    )  # fmt: skip
    cells = {name: Cell.of(_estimate(row), str(row["reason"])) for name, row in beside.by_group.iterrows()}
    return _view(reading, found, "log-is", judge, cells, Cell.of(beside.overall))


def clip_distance_table(reading: Reading, sides: Sides, encoder: str, how: Resampling) -> QualityTable:
    """Gaussian-kernel distance of CLIP embeddings (CMMD) by subgroup."""
    frame = of_whole_groups(
        sides.real, sides.synthetic, reading.real, reading.synthetic, lambda x, y, codes, _: clip_distance(x, y, subjects=codes),
        subjects=sides.subjects, ids=sides.ids, min_n=how.min_n,
    )  # fmt: skip
    return _view(reading, frame, "cmmd", encoder, {}, None)


def _view(reading: Reading, frame: SubgroupFrame, metric: Any, encoder: str, beside: dict, overall: Cell | None) -> QualityTable:
    return QualityTable(
        question=f"quality:{reading.question}", by=list(reading.by), basis=reading.basis, metric=metric, primary=False, encoder=encoder,
        direction="higher" if frame.higher_is_better else "lower", n=frame.overall.n,
        overall=Cell.of(frame.overall, "" if frame.overall.defined else "too few images"),
        overall_reference=overall, rows=group_rows(frame, beside, reading), **gap_of(frame), monte_carlo=_monte_carlo(frame),
        worst=_name(frame.worst),
    )  # fmt: skip


def _monte_carlo(frame: SubgroupFrame) -> float:
    """The largest Monte Carlo error of a group's value, in half widths of its interval."""
    half = (frame.by_group["high"] - frame.by_group["low"]) / 2
    found = (frame.by_group[MONTE_CARLO] / half)[half > 0].dropna()
    return float(found.max()) if len(found) else 0.0


def real_floor(sides: Sides, rows: np.ndarray, how: Resampling) -> Cell:
    """Kernel distance between two halves of the real images, parted by subject: what a perfect generator would be measured at."""
    n = int(rows.sum())
    if n < max(4, how.min_n):
        return Cell(n=n, reason=f"insufficient: {n} real images to split in two")
    try:
        return Cell.of(halves_distance(sides.real[rows], subjects=sides.real_subjects[rows]))
    except FeatureError as error:
        return Cell(n=n, reason=f"insufficient: {error}")


def semantic_table(
    reading: Reading,
    condition: str,
    value: str,
    real: Scored,
    synthetic: Scored,
    how: Resampling,
) -> SemanticTable:
    """AUC of a judge's score for ``value`` against the requested condition, and by how much it is less than on real images."""
    found, reference = (
        group_auc(side.scores, side.labels, groups, n_boot=how.n_boot, seed=how.seed, subjects=side.subjects, ids=side.ids, min_n=how.min_n)
        for side, groups in ((synthetic, reading.synthetic), (real, reading.real))
    )
    beside = {name: Cell.of(_estimate(row), str(row["reason"])) for name, row in reference.by_group.iterrows()}
    tested = fidelity_gap(
        synthetic.scores, synthetic.labels, reading.synthetic, real.scores, real.labels, reading.real,
        subjects=synthetic.subjects, real_subjects=real.subjects, ids=synthetic.ids, real_ids=real.ids,
        n_boot=how.n_boot, seed=how.seed, min_n=how.min_n,
    )  # fmt: skip
    differences = {name: Cell.of(_estimate(row), str(row["reason"])) for name, row in tested.frame.by_group.iterrows()}
    rows = [
        SemanticRow(**row.model_dump(), difference=differences[name])
        for name, row in zip(found.by_group.index, group_rows(found, beside, reading), strict=True)
    ]
    return SemanticTable(
        question=f"semantics:{condition_is(condition, value)}:{reading.question}", condition=condition, value=value,
        by=list(reading.by), basis=reading.basis,
        overall=Cell.of(found.overall, "" if found.overall.defined else "one class only or no labelled images"),
        overall_reference=Cell.of(reference.overall, "" if reference.overall.defined else "one class only or no labelled images"),
        rows=rows, **gap_of(tested.frame), p_value=number(tested.p_value), worst=_name(tested.worst),
        es_reference=number(equity_scaled(found.overall.value, found, higher_is_better=True)),
        es_macro=number(equity_scaled(found.overall.value, found, higher_is_better=True, form="macro")),
    )  # fmt: skip


def gap_of(frame: SubgroupFrame) -> dict[str, float | None]:
    """The gap between groups and its bounds, as fields of a table."""
    return dict(zip(("gap", "gap_low", "gap_high"), map(number, (frame.gap, *gap_interval(frame))), strict=True))


def group_rows(frame: SubgroupFrame, beside: dict, reading: Reading) -> list[GroupRow]:
    """A frame's groups with their sizes on both sides, and what stands ``beside`` each."""
    real, synthetic = reading.real.value_counts(), reading.synthetic.value_counts()
    return [
        GroupRow(
            group=str(name),
            n_real=int(real.get(name, 0)),
            n_synthetic=int(synthetic.get(name, 0)),
            reference=beside.get(name),
            **Cell.of(_estimate(row), str(row["reason"])).model_dump(),
        )
        for name, row in frame.by_group.iterrows()
    ]


def _estimate(row: pd.Series) -> Estimate:
    return Estimate(float(row["value"]), float(row["low"]), float(row["high"]), int(row["n"]))


def _name(group: object) -> str | None:
    return None if group is None else str(group)


def condition_labels(values: pd.Series, value: str) -> np.ndarray:
    """1 where the condition is ``value``, 0 where it is another, -1 where nothing is stated."""
    return np.where(values.isna(), -1, (values == value).astype(int))


def values_with_auc(values: Sequence[str]) -> list[str]:
    """Which values of a condition get an AUC: of two the second (the first's is the same number), of more each against the rest."""
    return list(values[1:]) if len(values) == 2 else list(values)
