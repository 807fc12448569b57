"""Writers of tables: text in many dialects and encodings, JSON, Parquet, Excel workbooks."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

Cells = list[str]
DELIMITED = ("csv", "csv", "csv", "tsv", "txt", "tab", "csv.gz")
OTHERS = ("jsonl", "jsonl", "json", "parquet", "parquet", "xlsx", "jsonl.gz")


@dataclass
class Dialect:
    """How a delimited table is written."""

    delimiter: str = ","
    quoting: str = "minimal"  # minimal, all, text (all but numbers), never
    end: str = "\n"
    last_end: bool = True
    encoding: str = "utf-8"
    sep_line: bool = False
    blanks_above: int = 0
    trailing: int = 0  # further delimiters at the end of every line
    padded: bool = False  # a blank behind every delimiter
    index: bool = False  # a first column of row numbers, without a name
    blank_rows: dict[int, str] = field(default_factory=dict)  # before which row -> what the line contains
    raw: dict[int, str] = field(default_factory=dict)  # lines that are written as they are, by row; -1: the header


def draw_dialect(draw: random.Random, kind: str) -> Dialect:
    """A dialect that fits the kind of the file."""
    delimiter = "\t" if kind in ("tsv", "tab") else draw.choice([",", ",", ",", ";", ";", "\t", "|"])
    return Dialect(
        delimiter=delimiter,
        quoting=draw.choice(["minimal", "minimal", "all", "text", "never"])
        if delimiter == "\t"
        else draw.choice(["minimal", "minimal", "all", "text"]),
        end=draw.choice(["\n", "\n", "\r\n", "\r\n", "\r"]),
        last_end=draw.random() < 0.8,
        encoding=draw.choice(["utf-8"] * 6 + ["utf-8-sig", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"]),
        sep_line=draw.random() < 0.05,
        blanks_above=draw.choice([0] * 12 + [1, 2]),
        trailing=draw.choice([0] * 12 + [1, 3]),
        padded=delimiter != "\t" and draw.random() < 0.06,
        index=draw.random() < 0.08,
    )


def line_of(dialect: Dialect, cells: Cells, number: int | None) -> str:
    """One row as text; ``number`` is what the column without a name contains, None in the header."""
    shown = [_cell(dialect, cell) for cell in cells]
    if dialect.index:
        shown.insert(0, "" if number is None else str(number))
    blank = " " if dialect.padded else ""
    return (dialect.delimiter + blank).join(shown) + dialect.delimiter * dialect.trailing


def _cell(dialect: Dialect, cell: str) -> str:
    if dialect.quoting == "never":
        return cell
    needed = any(sign in cell for sign in (dialect.delimiter, '"', "\n", "\r")) or cell != cell.strip()
    number = cell.replace(".", "", 1).isdecimal()
    if needed or dialect.quoting == "all" or (dialect.quoting == "text" and not number):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def delimited(header: Cells, rows: list[Cells], dialect: Dialect) -> bytes:
    """The bytes of a delimited table."""
    lines = [""] * dialect.blanks_above
    if dialect.sep_line:
        lines.append(f"sep={dialect.delimiter}")
    lines.append(dialect.raw.get(-1) or line_of(dialect, header, None))
    for number, row in enumerate(rows):
        if number in dialect.blank_rows:
            lines.append(dialect.blank_rows[number])
        lines.append(dialect.raw.get(number) or line_of(dialect, row, number))
    if len(rows) in dialect.blank_rows:
        lines.append(dialect.blank_rows[len(rows)])
    text = dialect.end.join(lines) + (dialect.end if dialect.last_end else "")
    return encoded(text, dialect.encoding)


def encoded(text: str, encoding: str) -> bytes:
    """Text as bytes; the ``-bom`` encodings begin with their mark."""
    if encoding.endswith("-bom"):
        return ("\ufeff" + text).encode(encoding.removesuffix("-bom"), errors="surrogatepass")
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")


def packed(data: bytes, draw: random.Random) -> bytes:
    """A gzip file, sometimes of several members."""
    if draw.random() < 0.2:
        cut = draw.randrange(len(data) + 1)
        return gzip.compress(data[:cut], mtime=0) + gzip.compress(data[cut:], mtime=0)
    return gzip.compress(data, mtime=0)


def typed(cell: str, draw: random.Random) -> Any:
    """A cell as a program would hold it: numbers, booleans and nothing, sometimes."""
    if cell == "" and draw.random() < 0.7:
        return None
    if cell in ("True", "False") and draw.random() < 0.7:
        return cell == "True"
    plain = cell.isascii() and cell.replace(".", "", 1).isdigit() and len(cell) < 15
    if plain and draw.random() < 0.5 and (cell == "0" or not cell.startswith("0") or cell.startswith("0.")):
        return float(cell) if "." in cell else int(cell)
    return cell


def as_json(header: Cells, rows: list[list[Any]], kind: str, draw: random.Random, *, absent: bool) -> str:
    """JSON lines, or one array; null values may be absent."""
    objects = [{name: value for name, value in zip(header, row, strict=True) if not (absent and value is None)} for row in rows]
    ascii_only = draw.random() < 0.5 or any(
        "\ud800" <= sign <= "\udfff" for row in rows for value in row if isinstance(value, str) for sign in value
    )
    if kind.startswith("jsonl"):
        lines = [json.dumps(item, ensure_ascii=ascii_only) for item in objects]
        if draw.random() < 0.2:
            lines.insert(draw.randrange(len(lines) + 1), "")
        return "\n".join(lines) + ("\n" if draw.random() < 0.8 else "")
    return json.dumps(objects, ensure_ascii=ascii_only, indent=draw.choice([None, 2]))


def as_parquet(header: Cells, rows: list[list[Any]], draw: random.Random, extra: dict[str, pa.Array]) -> bytes:
    """A Parquet file whose columns have the types that programs give them."""
    columns = {name: _column([row[index] for row in rows], draw) for index, name in enumerate(header)}
    table = pa.table({**columns, **extra})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=draw.choice(["none", "snappy", "zstd", "gzip"]), row_group_size=draw.choice([1, 3, 1024]))
    return buffer.getvalue()


def _column(values: list[Any], draw: random.Random) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    array = pa.array(values) if kinds else pa.nulls(len(values))
    if pa.types.is_string(array.type):
        way = draw.randrange(4)
        return [array, array.cast(pa.large_string()), array.dictionary_encode(), array.cast(pa.binary()).cast(pa.string())][way]
    if pa.types.is_int64(array.type) and draw.random() < 0.5:
        return array.cast(draw.choice([pa.float64(), pa.float32(), pa.int16()]), safe=False)
    return array


def odd_columns(draw: random.Random, n: int) -> dict[str, pa.Array]:
    """Columns of types that no group has, which must not disturb."""
    day = datetime.date(2020, 2, 29)
    choices: dict[str, pa.Array] = {
        "when": pa.array([day] * n),
        "at": pa.array([datetime.datetime(2020, 2, 29, 1, 2, 3)] * n, type=pa.timestamp("ns")),
        "zoned": pa.array([datetime.datetime(2020, 2, 29)] * n, type=pa.timestamp("us", tz="Europe/Berlin")),
        "boxes": pa.array([[1.5, 2.5]] * n),
        "meta": pa.array([{"a": 1, "b": [None, "x"]}] * n),
        "blob": pa.array([b"\xff\xfe\x00"] * n),
        "price": pa.array([None] * n, type=pa.decimal128(9, 2)),
        "length": pa.array([datetime.timedelta(seconds=5)] * n),
        "nothing": pa.nulls(n),
        "flags": pa.array([True] * n),
    }
    return {name: choices[name] for name in draw.sample(sorted(choices), draw.choice([0, 0, 1, 2]))}


def as_xlsx(header: Cells, rows: list[list[Any]], draw: random.Random, *, formula: tuple[int, int] | None = None) -> bytes:
    """A workbook; ``formula`` places one that no program has computed."""
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for _ in range(draw.choice([0, 0, 0, 0, 1])):
        sheet.append([])
    sheet.append(header)
    for number, row in enumerate(rows):
        sheet.append(row)
        placed = (sheet.max_row, formula[1] + 1) if formula and formula[0] == number else None
        if placed:
            sheet.cell(*placed).value = "=A1&B1"
        for cell in sheet[sheet.max_row]:
            if isinstance(cell.value, str) and (cell.row, cell.column) != placed:
                cell.data_type = "s"  # a text that begins with '=' is a text
    if draw.random() < 0.2:
        book.create_sheet("notes").append(["made", datetime.date(2020, 1, 1)])
    if draw.random() < 0.1:
        sheet.column_dimensions["A"].hidden = True
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write a table's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
