"""Excel workbooks of unknown origin, read as values: sizes are checked before a sheet is unpacked, nothing is computed."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openpyxl
from openpyxl.utils.cell import coordinate_to_tuple

from evenhand.cohorts.arrays import BOUNDED
from evenhand.cohorts.header import Header, Row, cell_text
from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError

MAX_BYTES = 100_000_000  # of all parts unpacked; a table of 65,000 patients has about 10 million
MAX_ROWS = 1_000_000
MAX_COLUMNS = 1024
_BESIDE = 8  # columns beside the header's that may not hold a value
_MERGED = re.compile(rb'<(?:\w+:)?mergeCell ref="([A-Z]+[0-9]+):([A-Z]+[0-9]+)"')
_OLD = b"\xd0\xcf\x11\xe0"  # how old workbooks begin, and those with a password
# what zipfile, the XML parser and openpyxl raise on damaged files; encryption is a RuntimeError
_PARSE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, RuntimeError, OverflowError),
)


class Workbook:
    """The first sheet of a workbook that holds anything; a note names the others.

    Raises:
        UserError: no workbook, too large, empty, or a column's name stands twice.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.notes, self.sheet, self.top, self.header = path, [], "", 0, Header(path, [])
        with _readable(path), path.open("rb") as file:
            if file.read(4) == _OLD:
                raise UserError(f"{path}: has a password, or is an old workbook (.xls); save it as .xlsx without a password, or as CSV")
        with _readable(path):
            _check_size(path)
            with _opened(path) as book:
                sheets = sorted(book.worksheets, key=lambda sheet: sheet.sheet_state != "visible")
                filled = [(sheet.title, *first) for sheet in sheets if (first := _first_row(sheet))]
        if not filled:
            raise UserError(f"{path}: no sheet holds anything; restore the file or name another table")
        self.sheet, self.top, names = filled[0]
        if len(filled) > 1:
            others = ", ".join(repr(title) for title, *_ in filled[1:])[:200]
            self.notes.append(f"{path.name}: sheet {self.sheet!r} is read, and not {others}; save the one that is wanted on its own")
        self.header = Header(path, names)
        with _readable(path), _opened(path) as book:
            self.merged = _merged_cells(book, self.sheet, self.top)
        if self.merged:
            number = sum(map(len, self.merged.values()))
            self.notes.append(f"{path.name}: {number} merged cells hold their value in each of their rows")

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return self.header.columns

    def rows(self) -> Iterator[tuple[int, Row | BadRow | None]]:
        """Rows by column name with the sheet's own row number; None for a row without any value."""
        width = min(len(self.header.names) + _BESIDE, MAX_COLUMNS)
        with _readable(self.path), _opened(self.path) as book, _opened(self.path, formulas=True) as formulas:
            sheets = [found[self.sheet] for found in (book, formulas)]
            for sheet in sheets:
                sheet.reset_dimensions()  # what a sheet claims of its own size may be wrong
            both = zip(*(sheet.iter_rows(min_row=self.top + 1, max_col=width, values_only=True) for sheet in sheets), strict=True)
            merged: dict[int, tuple[int, Any]] = {}  # column -> the last row of the merged cell that covers it, and its value
            for number, (cells, written) in enumerate(_quietly(both), start=self.top + 1):
                if number > MAX_ROWS:
                    raise UserError(f"{self.path}: more than {MAX_ROWS:,} rows; save its table as CSV")
                uncomputed = next((text for value, text in zip(cells, written, strict=False) if value is None and text is not None), None)
                if uncomputed is not None:
                    yield number, BadRow(f"formula {str(uncomputed)[:40]!r} has no stored result; open the workbook in Excel and save it")
                else:
                    merged |= {column: (last, cells[column]) for column, last in self.merged.get(number, ()) if column < len(cells)}
                    values = [merged[i][1] if i in merged and number <= merged[i][0] else value for i, value in enumerate(cells)]
                    yield number, self.header.row([cell_text(value) for value in values])


def _first_row(sheet: Any) -> tuple[int, list[str]] | None:
    """Number and cells of the first row that holds anything."""
    sheet.reset_dimensions()
    for number, cells in enumerate(_quietly(sheet.iter_rows(max_row=MAX_ROWS, max_col=MAX_COLUMNS, values_only=True)), start=1):
        if any(value is not None for value in cells):
            return number, [cell_text(value) for value in cells]
    return None


def _quietly(rows: Iterator[Any]) -> Iterator[Any]:
    """The same rows; warnings are silent while one is read, and only then."""
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = next(rows, None)
        if row is None:
            return
        yield row


def _merged_cells(book: Any, title: str, top: int) -> dict[int, list[tuple[int, int]]]:
    """First row below ``top`` of a cell that is merged over several -> its column, from 0, and its last row."""
    with book._archive.open(book[title]._worksheet_path) as file:
        found = _MERGED.findall(file.read())
    merged: dict[int, list[tuple[int, int]]] = {}
    for first, last in found:
        (row, column), (last_row, _) = coordinate_to_tuple(first.decode()), coordinate_to_tuple(last.decode())
        if last_row > row > top:
            merged.setdefault(row, []).append((column - 1, last_row))
    return merged


@contextmanager
def _opened(path: Path, *, formulas: bool = False) -> Iterator[Any]:
    with path.open("rb") as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns of styles and extensions that it leaves out
            book = openpyxl.load_workbook(file, read_only=True, data_only=not formulas, keep_links=False)
        yield book


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _PARSE_ERRORS as error:
        brief = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: not a readable workbook ({brief}); save it as .xlsx without a password, or as CSV") from None


def _check_size(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        size = sum(part.file_size for part in file.infolist())  # zipfile unpacks no more than this
        if any(part.compress_type not in BOUNDED for part in file.infolist()):
            raise zipfile.BadZipFile("compressed in a way that Excel never uses")
    if size > MAX_BYTES:
        raise UserError(f"{path}: unpacks to {size:,} bytes, more than {MAX_BYTES:,}; save its table as CSV")
