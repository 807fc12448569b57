"""What a semantic correlation answers with: typed, written as JSON, read back, and as one DataFrame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

import pandas as pd

from evenhand.audit.paired import Paired
from evenhand.audit.result import Cell, CohortFacts, Document, Part

FORMAT = 1
SIDES = ("real_trained", "synthetic_trained", "difference")


class Beside(Part):
    """One measure of both classifiers; ``difference`` is synthetic-trained minus real-trained, on the same test images."""

    real_trained: Cell
    synthetic_trained: Cell
    difference: Cell

    @classmethod
    def of(cls, found: Paired, **more: Any) -> Self:
        """The same as cells, NaN as None; ``more`` are further fields."""
        return cls(**{side: Cell.of(getattr(found, side), found.reason) for side in SIDES}, **more)


class GroupBeside(Beside):
    """AUC of one group, with its number of generated images; those of the test are the cells' ``n``."""

    group: str
    n_synthetic: int


class Worst(Part):
    """The group of the lowest AUC by either classifier; None where no group has one."""

    real_trained: str | None
    synthetic_trained: str | None


class CorrelationTable(Part):
    """One value of a label, one architecture, one attribute: higher AUC and ES-AUC are better, lower gap, parity and odds.

    ``parity`` and ``odds`` are of the predicted classes of the label, so a label of several values has them in each of its tables.
    """

    label: str
    value: str
    arch: str
    attribute: str
    n_train_real: int
    n_train_synthetic: int
    auc: Beside
    rows: Sequence[GroupBeside]
    worst: Worst
    gap: Beside
    es_auc: Beside
    parity: Beside
    odds: Beside

    def measures(self) -> Iterator[tuple[str, str, Beside]]:
        """(measure, group, values), overall ones first."""
        yield "auc", "overall", self.auc
        yield from (("auc", row.group, row) for row in self.rows)
        for name in ("gap", "es_auc", "parity", "odds"):
            yield name, "overall", getattr(self, name)


class ClassifierFacts(Part):
    """Which classifier was tested, and what it was trained on."""

    label: str
    arch: str
    trained_on: Literal["real", "synthetic"]
    path: str
    sha256: str
    n_train: int
    values: list[str]


class SemanticResult(Document):
    """Everything one ``evenhand semantic`` found, and everything needed to make it again.

    ``refused`` says which labels have no tables and why, ``notes`` what limits the comparison, ``warnings`` how to read ES-AUC.
    """

    what: ClassVar[tuple[str, str]] = ("a semantic correlation", "evenhand semantic")
    kind: Literal["semantic correlation"] = "semantic correlation"
    format: int = FORMAT
    real: CohortFacts
    synthetic: CohortFacts
    test_rows: Literal["test", "val+test"]
    n_test: int
    tables: list[CorrelationTable]
    refused: list[str]
    notes: list[str]
    warnings: list[str]
    classifiers: list[ClassifierFacts]
    seeds: dict[str, int]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def frame(self) -> pd.DataFrame:
        """One row a measure and group: label, value, arch, attribute, measure (auc, gap, es_auc, parity, odds), group, n.

        Then each of real_trained, synthetic_trained and difference with its interval (_low, _high), NaN where undefined, and why.
        """
        rows = []
        for table in self.tables:
            for measure, group, found in table.measures():
                row: dict[str, Any] = {name: getattr(table, name) for name in ("label", "value", "arch", "attribute")}
                row |= {"measure": measure, "group": group, "n": found.difference.n}
                for side in SIDES:
                    cell = getattr(found, side)
                    row |= {side: cell.value, f"{side}_low": cell.low, f"{side}_high": cell.high}
                rows.append(row | {"reason": found.difference.reason})
        numbers = [f"{side}{end}" for side in SIDES for end in ("", "_low", "_high")]
        columns = ["label", "value", "arch", "attribute", "measure", "group", "n", *numbers, "reason"]
        return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))
