"""Reading raw tables row by row, by column name, without executing anything."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from evenhand.cohorts.delimited import DelimitedTable
from evenhand.cohorts.header import Row, cell_text, check_distinct, clean, require_columns
from evenhand.cohorts.jsontable import JsonTable
from evenhand.cohorts.textfile import UNREADABLE, TextFile, open_text
from evenhand.cohorts.values import BadRow
from evenhand.cohorts.workbook import Workbook
from evenhand.core.errors import UserError

__all__ = ["ENDINGS", "KINDS", "Row", "TableReader", "require_columns", "table_ending"]

_TEXT = {".csv": DelimitedTable, ".tsv": DelimitedTable, ".tab": DelimitedTable, ".txt": DelimitedTable}
_JSON = {".json": JsonTable, ".jsonl": JsonTable, ".ndjson": JsonTable}
_WORKBOOK = (".xlsx", ".xlsm")
ENDINGS = (*_TEXT, *_JSON, *(f"{ending}.gz" for ending in (*_TEXT, *_JSON)), ".parquet", *_WORKBOOK)
KINDS = f"{', '.join(ending for ending in ENDINGS if not ending.endswith('.gz'))}, or text packed as .gz"  # as errors name them
# what a damaged file raises while it is read; struct.error: of gzip
_FAULTS = (OSError, EOFError, zlib.error, struct.error, pa.ArrowException, ValueError, RecursionError)


class _Table(Protocol):
    """A table of any kind; ``rows`` can be called again and again."""

    notes: list[str]

    @property
    def names(self) -> list[str]: ...

    def rows(self) -> Iterator[tuple[int, Row | BadRow | None]]: ...


@dataclass
class TableReader:
    """Reads the tables of one import or command.

    Args:
        encoding: of all text tables; None finds out.
        remedy: what a user can do where the encoding was guessed wrong.
    """

    encoding: str | None = None
    remedy: str = "name the encoding with --encoding"
    _tables: dict[tuple[Path, str], _Table] = field(default_factory=dict)
    _texts: dict[Path, TextFile] = field(default_factory=dict)
    _empty: dict[Path, int] = field(default_factory=dict)

    def rows(self, path: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows as text by column name, or what is wrong with a row, with their place: ``('labels.csv row 2', {...})``.

        The header of delimited text is row 1, as a spreadsheet shows it; JSON lines have the number of their line, rows of Parquet
        count from 1. Rows without any value are passed over and counted in ``notes``.

        Raises:
            UserError: no such file, not readable as what its name says, or a required column is missing.
        """
        for number, row in self.numbered(path, required):
            yield f"{path.name} row {number}", row

    def good_rows(self, path: Path, required: Sequence[str] = ()) -> Iterator[tuple[str, Row]]:
        """As ``rows``, for a table of which every row is needed.

        Raises:
            UserError: also for the first row that is not whole.
        """
        for place, row in self.rows(path, required):
            if isinstance(row, BadRow):
                raise UserError(f"{path.parent / place}: {row}")
            yield place, row

    def whole(self, path: Path, required: Sequence[str] = ()) -> Iterator[tuple[int, Row]]:
        """As ``good_rows``, with the number alone."""
        for number, row in self.numbered(path, required):
            if isinstance(row, BadRow):
                raise UserError(f"{path}: row {number}: {row}")
            yield number, row

    def numbered(self, path: Path, required: Sequence[str] = ()) -> Iterator[tuple[int, Row | BadRow]]:
        """As ``rows``, with the number alone."""
        table = self._open(path)
        require_columns(path, table.names, required)
        empty = 0
        with _Faults(path):
            for number, row in table.rows():
                if row is None:
                    empty += 1
                elif isinstance(row, dict) and len(row) < len(table.names) and (lacking := [name for name in required if name not in row]):
                    yield number, BadRow(f"column {lacking[0]!r} holds nested values or bytes; write them as plain columns")
                else:
                    yield number, row
        self._empty[path] = empty

    def columns(self, path: Path) -> list[str]:
        """The columns of a table: its header, or the keys of all its JSON objects."""
        return list(self._open(path).names)

    def leave_out(self, path: Path, column: str) -> None:
        """Do not read one column of a Parquet file as text: it holds images, and a row that has nothing else is a row all the same."""
        table = self._open(path)
        if isinstance(table, ParquetTable):
            table.leave_out(column)

    def lines(self, path: Path) -> Iterator[str]:
        """Lines of a text file that is no table, without their ends."""
        if not path.stat().st_size:
            return
        with _Faults(path):
            if path not in self._texts:
                self._texts[path] = open_text(path, self.encoding, self.remedy)
            with self._texts[path].open(newline="\n") as file:
                yield from (line.rstrip("\r\n") for line in file)

    def notes(self) -> list[str]:
        """What was taken for granted of the tables that were read."""
        texts = [text.note for text in self._texts.values() if text.note]
        notes = dict.fromkeys([*texts, *(note for table in self._tables.values() for note in table.notes)])
        empty = [f"{path.name}: {number} rows hold no value and were passed over" for path, number in self._empty.items() if number]
        return [*notes, *empty]

    def _open(self, path: Path) -> _Table:
        key = (path, str(path.stat().st_mtime_ns) if path.is_file() else "")
        if key not in self._tables:
            with _Faults(path):
                self._tables[key] = self._opened(path)
        return self._tables[key]

    def _opened(self, path: Path) -> _Table:
        if not path.exists():
            what = "workbook" if path.suffix.lower() in _WORKBOOK else "raw data folder or its table"
            raise UserError(f"{path}: no such file; name the {what}")
        if not path.is_file():
            raise UserError(f"{path}: not a file; name the table itself")
        if path.suffix.lower() in UNREADABLE:
            kind, remedy = UNREADABLE[path.suffix.lower()]
            raise UserError(f"{path}: {kind}; {remedy}")
        if path.suffix.lower() in _WORKBOOK:
            return Workbook(path)
        if path.suffix.lower() == ".parquet":
            return ParquetTable(path)
        text = open_text(path, self.encoding, self.remedy)
        return _JSON.get(table_ending(path).removesuffix(".gz"), DelimitedTable)(text)


def table_ending(path: Path) -> str:
    """The ending in lower case, ``.csv.gz`` where the file is packed."""
    endings = [ending.lower() for ending in path.suffixes]
    return "".join(endings[-2:]) if endings[-1:] == [".gz"] else "".join(endings[-1:])


class ParquetTable:
    """A Parquet file; columns of nested values and of bytes that are no text are left out of its rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            nested = [field.name for field in schema if pa.types.is_nested(field.type)]
            nested += [field.name for field in schema if _is_bytes(field.type) and not _is_text(file, field.name)]
        self.names = [clean(name) for name in schema.names]
        check_distinct(path, self.names)
        self.plain = [name for name in schema.names if name not in nested]  # the rest may be whole images, which are not even read
        self.has_images = False

    def leave_out(self, column: str) -> None:
        """Take a column of images out of the rows."""
        self.plain = [name for name in self.plain if name != column]
        self.has_images = True

    def rows(self) -> Iterator[tuple[int, Row | BadRow | None]]:
        """Rows by column name, counted from 1."""
        number = 0
        with pq.ParquetFile(self.path) as file:
            if not self.plain and self.has_images:
                yield from ((number, {}) for number in range(1, file.metadata.num_rows + 1))
                return
            for batch in file.iter_batches(batch_size=1024, columns=self.plain):
                names = [clean(name) for name in batch.schema.names]
                columns = [_texts(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    row = {name: value for name, value in zip(names, values, strict=True) if value is not None}
                    yield number, row if self.has_images or any(row.values()) else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_text(file: pq.ParquetFile, name: str) -> bool:
    """Whether the first bytes of a column are text, as some writers store it."""
    first = next(file.iter_batches(batch_size=16, columns=[name]), None)
    return first is None or None not in _texts(first.column(0))


def _texts(column: pa.Array) -> list[str | None]:
    """The cells of a column; None for bytes that are no text."""
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        return [cell_text(float(f"{value:.7g}")) if value is not None else "" for value in column.to_pylist()]
    return [_text(value) for value in column.to_pylist()]


def _text(value: object) -> str | None:
    try:
        return cell_text(value)
    except UnicodeDecodeError:
        return None


class _Faults:
    """Turns what libraries raise for a damaged file into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _FAULTS):
            brief = " ".join(str(error).split())[:100] or type(error).__name__
            raise UserError(f"{self.path}: not a readable table ({brief}); restore it, or save it as CSV, Parquet or JSON lines") from None
