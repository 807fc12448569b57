"""Reading raw tables row by row, by column name, without executing anything."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evenhand.core.errors import UserError, did_you_mean

Row = dict[str, str]


def read_rows(path: Path, required: Sequence[str] = (), *, ending: str | None = None) -> Iterator[tuple[str, Row]]:
    """Rows as text by column name, with their place: ``('labels.csv row 2', {...})``.

    The header of a CSV file is row 1, as a spreadsheet shows it; rows of JSON lines and Parquet count from 1. ``ending`` stands
    for that of the name, where the name misleads: JSON lines in a file that ends in ``.json``.

    Raises:
        UserError: no such file, not readable as what its name says, or a required column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the raw data folder or its table")
    reader = {".parquet": _parquet_rows, ".jsonl": _json_rows}.get(ending or path.suffix.lower(), _csv_rows)
    first = 2 if reader is _csv_rows else 1
    try:
        for number, row in enumerate(reader(path, required), start=first):
            yield f"{path.name} row {number}", row
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save the table as UTF-8") from None
    except (csv.Error, ValueError, RecursionError) as error:  # ValueError: of Arrow, of JSON, and for numbers of too many digits
        raise UserError(f"{path}: not a readable table ({error}); save it as CSV, Parquet or JSON lines") from None


def column_names(path: Path) -> list[str]:
    """The columns of a table: its header, or the keys of its first JSON line."""
    if path.suffix.lower() == ".parquet":
        try:
            return list(pq.read_schema(path).names)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not a readable table ({error}); save it as CSV, Parquet or JSON lines") from None
    if path.suffix.lower() == ".jsonl":
        return list(next((row for _, row in read_rows(path)), {}))
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        return _header(file.readline())


def require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    """Raise ``UserError`` for the first required column that the table lacks."""
    for name in required:
        if name not in found:
            raise UserError(f"{path}: no column {name!r}; {did_you_mean(name, found)}")


def _header(line: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)), [])]


def _delimiter(header: str) -> str:
    """Tab or comma, by the header: Dataverse files have ``.tab`` or no ending at all."""
    return "\t" if header.count("\t") > header.count(",") else ","


def _csv_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        names = _header(head)
        require_columns(path, names, required)
        for values in csv.reader(file, delimiter=_delimiter(head)):
            if values:
                yield {name: value.strip() for name, value in zip(names, values, strict=False)}


def _json_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise UserError(f"{path} row {number + 1}: not a JSON object; each line is one image's columns")
            if number == 0:
                require_columns(path, list(row), required)
            yield {str(name): _text(value) for name, value in row.items()}


def _parquet_rows(path: Path, required: Sequence[str]) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        require_columns(path, file.schema_arrow.names, required)
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()
