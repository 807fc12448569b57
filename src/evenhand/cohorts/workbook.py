"""Excel workbooks of unknown origin, read as values: sizes are checked before a sheet is unpacked, nothing is computed."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openpyxl

from evenhand.cohorts.arrays import BOUNDED
from evenhand.cohorts.tables import Row, require_columns
from evenhand.core.errors import UserError

MAX_BYTES = 100_000_000  # of all parts unpacked; a table of 65,000 patients has about 10 million
MAX_ROWS = 1_000_000
MAX_COLUMNS = 256
# what zipfile, the XML parser and openpyxl raise on damaged files; encryption is a RuntimeError
_PARSE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, RuntimeError, OverflowError),
)


def read_workbook(path: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
    """Rows of the first sheet as text by column name, with their place; the header is row 1, and empty rows are passed over.

    Raises:
        UserError: no such file, no workbook, too large, or a required column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the workbook")
    try:
        _check_size(path)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # openpyxl warns of styles and extensions that it leaves out
            book = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
            yield from _rows(path, book.worksheets[0], required)
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


def _rows(path: Path, sheet: Any, required: Sequence[str]) -> Iterator[tuple[str, Row]]:
    sheet.reset_dimensions()  # what a sheet claims of its own size may be wrong
    head = next(sheet.iter_rows(max_row=1, max_col=MAX_COLUMNS, values_only=True), ())
    names = [_text(value) for value in head]
    while names and not names[-1]:
        names.pop()
    require_columns(path, names, required)
    for number, cells in enumerate(sheet.iter_rows(min_row=2, max_row=MAX_ROWS + 1, max_col=len(names), values_only=True), start=2):
        if number > MAX_ROWS:
            raise UserError(f"{path}: more than {MAX_ROWS:,} rows; save its table as CSV")
        values = [_text(value) for value in cells]
        if any(values):
            yield f"{path.name} row {number}", dict(zip(names, values, strict=False))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
