"""The header of a raw table, and what makes a row of cells whole."""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError, did_you_mean

Row = dict[str, str]
MAX_NAMED = 40  # columns that an error names


class Header:
    """Names of columns, of which no two are alike.

    Args:
        cells: the header's cells; empty ones at its end name no column.
        remedy: what to do about a row of too many cells.

    Raises:
        UserError: a name that stands twice.
    """

    def __init__(self, path: Path, cells: Sequence[str], *, remedy: str = "name every column in the header") -> None:
        names = [" ".join(clean(name).split()) for name in cells]  # spreadsheets break long names over lines
        self.given = len(names)  # with those that name no column
        self.unnamed = [index for index, name in enumerate(names) if not name]
        while names and not names[-1]:
            names.pop()
        check_distinct(path, names)
        self.names, self.remedy = names, remedy
        self.columns = [name for name in names if name]

    def row(self, cells: Sequence[str]) -> Row | BadRow | None:
        """One row by column name; what is wrong with it; or None where all its cells are empty."""
        values = [clean(value) for value in cells]
        if not any(values):
            return None
        width = len(self.names)
        if len(values) < width:
            missing = self.names[len(values)] or f"number {len(values) + 1}"
            return BadRow(f"{len(values)} of {width} cells: no value in column {missing!r}; the row is cut short")
        if any(values[self.given :]):
            number = max(index for index, value in enumerate(values, start=1) if value)
            return BadRow(f"{number} cells for {width} columns; {self.remedy}")
        for index in self.unnamed:
            value = values[index] if index < len(values) else ""
            if value and (index or not value.isdecimal()):  # a first column of row numbers is what pandas and R write
                return BadRow(f"value {value[:40]!r} in column {index + 1}, which has no name; name it in the header, or empty it")
        return {name: value for name, value in zip(self.names, values, strict=False) if name}


def clean(value: str) -> str:
    """A cell without the blanks around it, and without the marks that begin and end files of some editors."""
    return value.replace("\ufeff", "").strip().strip("\x1a")


def cell_text(value: object) -> str:
    """A typed value as the text of a cell: nothing for null and NaN, whole numbers without a point, dates without midnight."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    if isinstance(value, bytes):
        return clean(value.decode("utf-8"))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return clean(str(value))


def check_distinct(path: Path, names: Sequence[str]) -> None:
    """Raise ``UserError`` for the first name that stands twice in a header."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name and first.setdefault(name, number) != number:
            places = f"columns {first[name]} and {number}"
            raise UserError(f"{path}: column {name[:60]!r} stands twice in the header ({places}); rename or remove one of the two")


def require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    """Raise ``UserError`` for the first required column that the table lacks."""
    for name in required:
        if name not in found:
            listed = [column[:60] for column in found]
            if len(listed) > MAX_NAMED:
                near = difflib.get_close_matches(name, listed, n=3)
                listed = [*dict.fromkeys([*near, *listed[:MAX_NAMED]]), f"and {len(listed) - MAX_NAMED} more"]
            raise UserError(f"{path}: no column {name!r}; {did_you_mean(name, listed)}")
