"""What can be wrong with JSON, Parquet and workbooks. Each knows what must follow."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pyarrow as pa
from fuzz import containers
from fuzz.cases import ARRIVE, EITHER, Case
from fuzz.damage import ANY, TEXT, Damage, column_name, duplicate_name, plain_column, render, reserved, some_bytes


def damage(case: Case) -> None:
    """Perhaps spoil the table, and write it."""
    draw = case.draw
    kinds = TEXT if case.delimited else JSON if "json" in case.kind else PARQUET if case.kind == "parquet" else WORKBOOK
    spoil = draw.choice(sorted(kinds)) if draw.random() < 0.6 else ""
    if spoil:
        case.what.append(spoil)
        kinds[spoil](case)
    elif draw.random() < 0.04:
        case.what.append("reserved name")
        reserved(case)
    if not case.data:
        render(case)
    if (case.free or spoil == "free bytes") and case.data:
        some_bytes(case)
    containers.write(case.raw / case.name, case.data)


def _set_line(case: Case, change: Callable[[str], str], number: int) -> None:
    """Change one line of JSON lines."""
    render(case)
    data = gzip.decompress(case.data) if case.kind.endswith(".gz") else case.data
    lines = [line for line in data.decode("utf-8", errors="surrogatepass").split("\n") if line]
    lines[number] = change(lines[number])
    data = "\n".join(lines).encode("utf-8", errors="surrogatepass")
    case.data = gzip.compress(data) if case.kind.endswith(".gz") else data


def _broken_line(case: Case) -> None:
    row = case.draw.choice(case.rows)
    ways = [lambda line: line[:-2], lambda line: line + "}", lambda line: f"[{line}]", lambda line: line.replace('"', "'")]
    ways += [lambda line: '"text"', lambda line: "null", lambda line: line[:-1] + ",}", lambda line: "[" * 100_000, lambda line: "7"]
    if case.kind == "json":
        render(case)
        case.data = case.data.rstrip()[:-1]
        case.fail(must=True)
        return
    _set_line(case, case.draw.choice(ways), row.number)
    row.refuse()
    row.fate = row.fate if row.number else EITHER  # a first line in brackets is an array
    case.fail(needs=r"row \d+|line \d+" if row.number else "")  # without its first line it may be taken for no JSON at all


def _nested_group(case: Case) -> None:
    row = case.draw.choice(case.rows)
    row.cells[case.used[0]] = case.draw.choice([{"value": "x"}, ["x"], [], {"a": {"b": 1}}])
    row.refuse()
    row.fate = EITHER if row.cells[case.used[0]] == [] else row.fate
    row.values[case.used[0]] = frozenset({"unknown"})


def _nested_beside(case: Case) -> None:
    case.columns.append("boxes")
    for row in case.rows:
        row.cells["boxes"] = case.draw.choice([[1, 2], {"a": [None]}, None, [], 1e308])


def _absent(case: Case) -> None:
    case.absent = True
    for row in case.rows:
        if case.draw.random() < 0.4:
            row.cells[case.used[0]], row.values[case.used[0]] = None, frozenset({"unknown"})
            row.doubt()
    if all(row.cells[case.used[0]] in (None, "") for row in case.rows):
        case.fail()


def _absent_image(case: Case) -> None:
    case.absent = True
    row = case.draw.choice(case.rows)
    row.cells[case.image] = None
    row.refuse()
    if len(case.rows) == 1:
        case.fail()


def _odd_number(case: Case) -> None:
    column, row = plain_column(case), case.draw.choice(case.rows)
    row.cells[column] = f"@@{row.number}"
    row.caption = row.caption and column != "caption"
    render(case)
    data = gzip.decompress(case.data) if case.kind.endswith(".gz") else case.data
    odd = case.draw.choice([b"NaN", b"-Infinity", b"1" * 5000, b"1e999", b"-0", b"true", b'"\\ud800"', b'"\\u0000"'])
    data = data.replace(f'"@@{row.number}"'.encode(), odd)
    case.data = gzip.compress(data) if case.kind.endswith(".gz") else data
    row.doubt()
    if odd.startswith(b"1"):
        case.fail()


def _wrapped(case: Case) -> None:
    records = [{column: row.cells[column] for column in case.columns} for row in case.rows]
    ways = [{"data": records}, {"rows": records, "version": 1}, {name: [row[name] for row in records] for name in case.columns}]
    ways += [{name: {str(number): row[name] for number, row in enumerate(records)} for name in case.columns}]
    if "json" in case.kind and not case.kind.endswith(".gz"):
        case.data = json.dumps(case.draw.choice(ways)).encode()
        case.fail()


def _pretty(case: Case) -> None:
    if case.kind == "jsonl":
        case.data = "\n".join(json.dumps({column: row.cells[column] for column in case.columns}, indent=1) for row in case.rows).encode()
        case.fail()


def _utf16(case: Case) -> None:
    if not case.kind.endswith(".gz"):
        render(case)
        case.data = case.data.decode("utf-8", errors="replace").encode(case.draw.choice(["utf-16", "utf-8-sig"]))
        case.loose = True


def _struct(case: Case) -> None:
    """Images inside the table, as the datasets library writes them."""
    if not all(row.caption for row in case.rows):
        return
    found = []
    for row in case.rows:
        data = (case.raw / row.file).read_bytes() if row.file and row.fate == ARRIVE else b""
        if not data:
            row.refuse()
        found.append({"bytes": data or None, "path": case.draw.choice([f"{row.number}.png", None, "same.png"])})
        row.file = None
    name = case.image
    case.columns.remove(name)
    case.extra[name] = pa.array(found, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _bytes_column(case: Case) -> None:
    name = case.used[0]
    case.columns.remove(name)
    case.extra[name] = pa.array([case.draw.choice([b"\xff\x00", b"male", None]) for _ in case.rows])
    for row in case.rows:
        row.doubt()
        row.values[name] = None
    case.fail()


def _list_column(case: Case) -> None:
    name = case.used[0]
    case.columns.remove(name)
    case.extra[name] = pa.array([["x"], []] * len(case.rows))[: len(case.rows)]
    case.fail(needs=column_name(name))
    for row in case.rows:
        row.refuse()


def _odd_columns(case: Case) -> None:
    case.extra.update(containers.odd_columns(case.draw, len(case.rows)))


def _formula(case: Case) -> None:
    row = case.draw.choice(case.rows)
    case.formula = (row.number, case.columns.index(case.used[0]))
    row.refuse()


JSON: dict[str, Damage] = ANY | {
    "broken line": _broken_line, "nested group": _nested_group, "nested beside": _nested_beside, "absent keys": _absent,
    "absent image": _absent_image, "odd number": _odd_number, "wrapped": _wrapped, "pretty": _pretty, "UTF-16": _utf16,
}  # fmt: skip
PARQUET: dict[str, Damage] = ANY | {
    "images inside": _struct, "bytes": _bytes_column, "lists": _list_column, "odd columns": _odd_columns,
}  # fmt: skip
WORKBOOK: dict[str, Damage] = ANY | {"formula": _formula, "duplicate name": duplicate_name}
