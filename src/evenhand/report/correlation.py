"""A semantic correlation as a table to read on a terminal; every interval and reason is in its JSON."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evenhand.audit.correlation_result import SIDES, CorrelationTable, SemanticResult
from evenhand.audit.result import Cell

_COLUMNS = ("by", "trained on", "AUC", "ES-AUC", "worst group", "gap", "DPD", "EOD")
_WORDS = ("by", "trained on", "worst group")
_TRAINED = {"real_trained": "real", "synthetic_trained": "generated", "difference": "difference"}


def render(result: SemanticResult) -> Group:
    """A table a label and architecture, three rows an attribute: trained on real images, on generated ones, and the difference."""
    tables: dict[str, Table] = {}
    for part in result.tables:
        title = f"{part.label}={part.value}, {part.arch}: {part.n_train_real} real, {part.n_train_synthetic} generated training images"
        table = tables.setdefault(title, _empty(title))
        for place, side in enumerate(SIDES):
            words = [part.attribute if place == 0 else "", _TRAINED[side]]
            table.add_row(*map(Text, [*words, *_figures(part, side)]), end_section=place == len(SIDES) - 1)
    return Group(*tables.values(), *(Text(line) for line in _lines(result)))


def _empty(title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _WORDS else "right", overflow="fold")
    return table


def _figures(part: CorrelationTable, side: str) -> list[str]:
    cells = [getattr(getattr(part, measure), side) for measure in ("auc", "es_auc", "gap", "parity", "odds")]
    figures = [_figure(cell, signed=side == "difference") for cell in cells]
    return [figures[0], figures[1], _worst(part, side), *figures[2:]]


def _worst(part: CorrelationTable, side: str) -> str:
    """The group of the lowest AUC and that AUC; of the differences, the group that loses most."""
    rows = {row.group: getattr(row, side) for row in part.rows}
    values = {group: cell.value for group, cell in rows.items() if cell.value is not None}
    if not values:
        return "-"
    group = min(values, key=lambda name: values[name])
    return f"{group} {_figure(rows[group], signed=side == 'difference')}"


def _figure(cell: Cell, *, signed: bool = False) -> str:
    return "-" if cell.value is None else f"{cell.value:{'+' if signed else ''}.3f}"


def _lines(result: SemanticResult) -> Iterator[str]:
    """Why a figure is missing, what limits the comparison, and how to read ES-AUC."""
    yield from (f"not tested: {line}" for line in result.refused)
    yield from dict.fromkeys(_undefined(result))
    yield from (f"note: {line}" for line in result.notes)
    if result.tables:
        yield "AUC and ES-AUC: higher is better; gap, DPD and EOD: lower. A dash is undefined, not 0. Intervals stand in the file below."
        yield from (f"ES: {line}" for line in result.warnings)


def _undefined(result: SemanticResult) -> Iterator[str]:
    for part in result.tables:
        for measure, group, found in part.measures():
            if found.difference.reason:
                what = (
                    f"AUC of {group}"
                    if group != "overall"
                    else {"auc": "AUC", "es_auc": "ES-AUC", "parity": "DPD", "odds": "EOD"}.get(measure, measure)
                )
                yield f"undefined: {part.label}={part.value} by {part.attribute}, {what}: {found.difference.reason}"
