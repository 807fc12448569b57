"""Before and after: two audits of the same real cohort, compared on the same samples, and whether a gap was closed from above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from evenhand.audit.decisions import LevellingDown, PairedDifference, levelling_down, paired_bootstrap
from evenhand.audit.frame import Estimate, SubgroupFrame
from evenhand.audit.result import AuditResult, QualityTable, SemanticTable
from evenhand.core.groups import UNSPECIFIED


@dataclass(frozen=True)
class Change:
    """One measure of the second audit minus that of the first, on the images that both have."""

    label: str
    n: int
    difference: PairedDifference


@dataclass(frozen=True)
class Comparison:
    """What changed, which gaps closed because the best group got worse, and why some things could not be paired."""

    changes: list[Change]
    levelling: list[LevellingDown]
    unpaired: str


def compare(before: AuditResult, after: AuditResult, images: tuple[pd.DataFrame, pd.DataFrame], seed: int = 0) -> Comparison:
    """Compare two audits.

    AUC is compared by a paired bootstrap over the samples that both cohorts have under one name and one request: made from the same
    plan and seeds. Where there are none, or other judges read them, nothing is paired, and that is said.

    Args:
        images: the per-image tables (audit.parquet) of both.
    """
    levelling = list(_levelled(before, after))
    judges = [{judge.target: judge.sha256 for judge in result.judges} for result in (before, after)]
    sides = [table[table["side"] == "synthetic"].set_index("image") for table in images]
    common = sides[0].index.intersection(sides[1].index)
    if before.real.sha256 != after.real.sha256:
        return Comparison([], levelling, "the real cohorts differ")
    if common.empty:
        return Comparison([], levelling, "the two cohorts have no image names in common: generate both from one plan and seed")
    changes, unpaired = [], []
    for condition, value in dict.fromkeys((table.condition, table.value) for table in before.semantics):
        score = f"judge.{condition}.{value}"
        if judges[0].get(condition) != judges[1].get(condition) or any(score not in side for side in sides):
            unpaired.append(f"the judges of {condition} differ: give the first audit's to the second with --judge")
            continue
        labels = [side.loc[common, f"condition.{condition}"] for side in sides]
        same = ((labels[0] == labels[1]) & (labels[0] != UNSPECIFIED)).to_numpy()
        if same.sum() < 2:
            unpaired.append(f"no image was asked for the same {condition} in both")
        else:
            truth = (labels[0][same] == value).to_numpy().astype(int)
            records = [{"score": side.loc[common[same], score].to_numpy(), "label": truth} for side in sides]
            subjects = sides[0].loc[common[same], "subject_id"].to_numpy()
            difference = paired_bootstrap("auc", records[0], records[1], subjects=subjects, ids=common[same], seed=seed)
            changes.append(Change(f"AUC of {condition} = {value}", int(same.sum()), difference))
    return Comparison(changes, levelling, "; ".join(dict.fromkeys(unpaired)))


def _levelled(before: AuditResult, after: AuditResult) -> Iterator[LevellingDown]:
    """A verdict for each single column whose gap shrank because its best group got worse."""
    later = {_identity(table): table for table in _answers(after)}
    for early in _answers(before):
        late = later.get(_identity(early))
        if late is not None and len(early.by) == 1:
            found = levelling_down(_frame(early), _frame(late), higher_is_better=early.direction == "higher")
            if found.flagged:
                yield replace(found, text=f"{early.question}: {found.text}")


def _answers(result: AuditResult) -> list[QualityTable | SemanticTable]:
    return [*(table for table in result.quality if table.metric == "kid" and table.primary), *result.semantics]


def _identity(table: QualityTable | SemanticTable) -> tuple[str, str]:
    return table.question, getattr(table, "encoder", "")


def _frame(table: QualityTable | SemanticTable) -> SubgroupFrame:
    def estimate(cell: object) -> Estimate:
        value, low, high = (np.nan if getattr(cell, name) is None else getattr(cell, name) for name in ("value", "low", "high"))
        return Estimate(value, low, high, cell.n)  # type: ignore[attr-defined]

    cells = {row.group: (estimate(row), row.reason) for row in table.rows}
    return SubgroupFrame.of(cells, estimate(table.overall), table.direction == "higher")
