"""What can be wrong with a table beyond its cells: quotes, lengths of rows, headers, encodings. Each knows what must follow."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace

from fuzz import containers
from fuzz.cases import Case, Meant
from fuzz.words import MISSING, RESERVED

Damage = Callable[[Case], None]


def render(case: Case) -> None:
    """The bytes of the table as it stands."""
    draw = case.draw
    cells = [[row.cells[column] for column in case.columns] for row in case.rows]
    if case.delimited:
        case.data = containers.delimited(case.columns, cells, case.dialect)
        if case.kind.endswith(".gz"):
            case.data = containers.packed(case.data, draw)
        return
    values = [
        [
            value if column == case.image and not str(value).isdigit() else _typed(case, value)
            for column, value in zip(case.columns, row, strict=True)
        ]
        for row in cells
    ]
    if "json" in case.kind:
        text = containers.as_json(case.columns, values, case.kind, draw, absent=case.absent)
        case.data = text.encode("utf-8", errors="surrogatepass")
        if case.kind.endswith(".gz"):
            case.data = containers.packed(case.data, draw)
    elif case.kind == "parquet":
        case.data = containers.as_parquet(case.columns, values, draw, case.extra)
    else:
        case.data = containers.as_xlsx(case.columns, values, draw, formula=case.formula)


def _typed(case: Case, value: object) -> object:
    return containers.typed(value, case.draw) if isinstance(value, str) else value


def _line(case: Case, row: Meant, **changed: str) -> list[str]:
    """The cells of a row as they stand in its line; the values of ``changed`` are written as they are."""
    cells = [
        containers.line_of(replace(case.dialect, index=False, trailing=0, padded=False), [row.cells[column]], None)
        for column in case.columns
    ]
    return [changed.get(column, cell) for column, cell in zip(case.columns, cells, strict=True)]


def _raw(case: Case, row: Meant, cells: list[str]) -> None:
    shown = [str(row.number), *cells] if case.dialect.index else cells
    case.dialect.raw[row.number] = case.dialect.delimiter.join(shown) + case.dialect.delimiter * case.dialect.trailing


def plain_column(case: Case) -> str:
    """A column whose cells may be changed freely."""
    free = [name for name in case.columns if name not in (case.image, "patient", "fold", *case.used)]
    if not free:
        case.columns.append("remark")
        for row in case.rows:
            row.cells["remark"] = "fine"
        return "remark"
    return case.draw.choice(free)


def _open_quote(case: Case) -> None:
    row, column = case.draw.choice(case.rows), plain_column(case)
    _raw(case, row, _line(case, row, **{column: '"' + f"film {row.number} halo sign"}))
    case.at_least = True
    if case.tabs:
        row.doubt()
    else:
        row.refuse()
        case.fail(needs=r"row \d+|header|quote")
    for other in case.rows:
        if case.dialect.quoting != "minimal" or "\n" in "".join(map(str, other.cells.values())):
            other.doubt()


def _two_quotes(case: Case) -> None:
    """Two stray quotes that would pair over whole rows."""
    if len(case.rows) < 3 or case.dialect.quoting in ("all", "text"):
        return
    column = plain_column(case)
    first, last = sorted(case.draw.sample(range(len(case.rows)), 2))
    _raw(case, case.rows[first], _line(case, case.rows[first], **{column: f'"film {first} halo'}))
    _raw(case, case.rows[last], _line(case, case.rows[last], **{column: f'film {last} halo"'}))
    case.at_least = True
    for row in case.rows[first : last + 1]:
        row.doubt()
    case.fail(needs=r"row \d+|quote")


def _quote_inside(case: Case) -> None:
    row, column = case.draw.choice(case.rows), plain_column(case)
    _raw(case, row, _line(case, row, **{column: f'film {row.number} of 5" x 7" size'}))


def _text_beside_quotes(case: Case) -> None:
    row, column = case.draw.choice(case.rows), plain_column(case)
    _raw(case, row, _line(case, row, **{column: f'"film {row.number} "so called" node'}))
    row.doubt()
    case.at_least = True
    case.fail(needs=r"row \d+|quote")


def _extra_cell(case: Case) -> None:
    row = case.draw.choice(case.rows)
    cells = _line(case, row)
    cells.insert(case.draw.randrange(len(cells)), "more")
    if not cells[-1].strip(' "'):
        cells[-1] = "end"
        case.rows[row.number].cells[case.columns[-1]] = "end"
    _raw(case, row, cells)
    row.refuse()


def _short_row(case: Case) -> None:
    row = case.draw.choice(case.rows)
    case.dialect.trailing = 0
    cells = _line(case, row)
    kept = cells[: case.draw.randrange(1, len(cells))]
    if not any(cell.strip(' "') for cell in kept):  # else it is a row without any value, which is passed over
        kept[0] = "short"
    _raw(case, row, kept)
    row.refuse()


def _long_row(case: Case) -> None:
    row = case.draw.choice(case.rows)
    _raw(case, row, [*_line(case, row), "", ""])
    row.doubt()


def duplicate_name(case: Case) -> None:
    name = case.draw.choice([case.image, *case.used])
    case.columns = [*case.columns]
    case.columns.insert(case.draw.randrange(len(case.columns) + 1), name)
    case.fail(must=True, needs=column_name(name))


def column_name(name: str) -> str:
    """A column as a message shows it; long names may be cut."""
    return "".join(sign if sign.isalnum() else "." for sign in name[:20].strip())


def _blank_rows(case: Case) -> None:
    for _ in range(case.draw.choice([1, 1, 3])):
        blank = case.draw.choice(["", "", "  ", case.dialect.delimiter * (len(case.columns) - 1)])
        case.dialect.blank_rows[case.draw.randrange(len(case.rows) + 1)] = blank


def _no_header(case: Case) -> None:
    case.dialect.raw[-1] = containers.line_of(case.dialect, [str(case.rows[0].cells[column]) or "x" for column in case.columns], 0)
    case.fail(must=True)


def _comment(case: Case) -> None:
    case.dialect.raw[-1] = f"# exported by a program{case.dialect.end}" + containers.line_of(case.dialect, case.columns, None)
    case.fail()


def _cut_in_last_line(case: Case) -> None:
    render(case)
    if case.kind.endswith(".gz") or case.dialect.encoding.startswith("utf-16"):
        return
    last = case.rows[-1]
    case.data = case.data.rstrip(b"\r\n")[: -case.draw.randrange(1, 4)]
    last.doubt()
    last.values = dict.fromkeys(last.values)
    last.subject, last.caption, case.at_least = None, False, True
    case.fail(needs=r"row \d+|quote|UTF-8")


def _stray_bytes(case: Case) -> None:
    if case.dialect.encoding != "utf-8" or case.kind.endswith(".gz"):
        return
    column = plain_column(case)
    row = case.draw.choice(case.rows)
    row.cells[column] = f"film {row.number} @@ end"
    render(case)
    case.data = case.data.replace(b"@@", case.draw.choice([b"\xff", b"\xe9", b"\x80\x81", b"\xc3"]))
    case.loose = True
    case.fail()


def _zero_bytes(case: Case) -> None:
    column, row = plain_column(case), case.draw.choice(case.rows)
    row.cells[column] = f"film {row.number} \x00 end"
    row.doubt()
    case.fail()


def _mixed_ends(case: Case) -> None:
    render(case)
    if case.kind.endswith(".gz") or case.dialect.encoding.startswith("utf-16") or case.dialect.end == "\r":
        return
    end, other = (b"\r\n", b"\n") if case.dialect.end == "\r\n" else (b"\n", b"\r\n")
    case.data = case.data.replace(end, other, 1)


def _cut_container(case: Case) -> None:
    """A packed or binary file that is cut off: rows at its end are lost, so it must be refused."""
    render(case)
    if case.kind.endswith(".gz") and not case.data.startswith(b"\x1f\x8b"):
        case.data = gzip.compress(case.data)
    case.data = case.data[: case.draw.randrange(1, max(2, len(case.data) - 8))]
    if (case.delimited and not case.kind.endswith(".gz")) or case.kind == "jsonl":
        case.free = True  # of text nobody can tell
    case.fail(must=not case.free)


def _not_packed(case: Case) -> None:
    render(case)
    if case.kind.endswith(".gz"):
        case.data = gzip.decompress(case.data)
        case.fail()


def _nothing(case: Case) -> None:
    case.data = case.draw.choice(
        [b"\n", b" ", b"\n\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00" * 50, b"\x89PNG\r\n\x1a\n" + bytes(range(256))]
    )
    case.fail(must=True)


def _no_rows(case: Case) -> None:
    for row in case.rows:
        row.refuse()
    case.rows = []
    case.fail(must=True)


def _other_kind(case: Case) -> None:
    """The content of another kind of file than the name says."""
    kind, names = case.draw.choice(["jsonl", "csv", "parquet", "xlsx", "json"]), case.columns
    values = [[str(row.cells[column]).replace("\ud800", "") for column in names] for row in case.rows]
    texts = {"json": json.dumps(values), "jsonl": "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in values)}
    if kind == case.kind.removesuffix(".gz"):
        return
    if kind in texts:
        case.data = texts[kind].encode()
    elif kind == "parquet":
        case.data = containers.as_parquet(names, values, case.draw, {})
    elif kind == "xlsx":
        case.data = b"PK\x03\x04" + bytes(100)
    else:
        case.data = containers.delimited(names, values, containers.Dialect())
    case.free = False
    case.fail()


def _utf16_unmarked(case: Case) -> None:
    case.dialect.encoding = case.draw.choice(["utf-16-le", "utf-16-be", "utf-32"])
    case.settings.pop("encoding", None)
    case.loose = False
    case.fail()


def _many_columns(case: Case) -> None:
    for number in range(600):
        case.columns.append(f"feature {number}")
    for row in case.rows:
        row.cells.update({f"feature {number}": str(number) for number in range(600)})


def _free(case: Case) -> None:
    case.free = True
    case.fail()


def some_bytes(case: Case) -> None:
    """Change some bytes."""
    draw, data = case.draw, bytearray(case.data)
    for _ in range(draw.choice([1, 1, 2, 5, 30])):
        place = draw.randrange(len(data) + 1)
        way = draw.randrange(4)
        if way == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif way == 1:
            data[place:place] = draw.choice([b'"', b"\n", b",", b"\x00", b"\xef\xbb\xbf", b"\t", b";", b"{", b"]", b"\r", b"\x1a", b"\xff"])
        elif way == 2:
            del data[place : place + draw.choice([1, 2, 40])]
        else:
            data[place:place] = data[: draw.randrange(1, 60)]
    case.data = bytes(data) or b"\n"


def reserved(case: Case) -> None:
    """An attribute under a name that cohorts use themselves."""
    old, new = case.settings["attributes"][0], case.draw.choice(RESERVED)
    if new in case.columns:
        return
    case.columns = [new if name == old else name for name in case.columns]
    for row in case.rows:
        row.cells[new] = row.cells.pop(old)
        row.values[new] = row.values.pop(old)
    case.settings["attributes"], case.used = [new], [new if name == old else name for name in case.used]
    case.fail(needs=new)


def _missing_words(case: Case) -> None:
    for row, word in zip(case.rows, case.draw.sample(MISSING, len(case.rows)), strict=True):
        row.cells[case.settings["attributes"][0]], row.values[case.settings["attributes"][0]] = word, frozenset({"unknown"})


ANY: dict[str, Damage] = {
    "cut off": _cut_container, "nothing": _nothing, "no rows": _no_rows, "other kind": _other_kind, "free bytes": _free,
    "many columns": _many_columns, "words for missing": _missing_words,
}  # fmt: skip
TEXT: dict[str, Damage] = ANY | {
    "open quote": _open_quote, "two quotes": _two_quotes, "quote inside": _quote_inside, "text beside quotes": _text_beside_quotes,
    "extra cell": _extra_cell, "short row": _short_row, "long row": _long_row, "duplicate name": duplicate_name,
    "blank rows": _blank_rows, "no header": _no_header, "comment": _comment, "cut in the last line": _cut_in_last_line,
    "stray bytes": _stray_bytes, "zero bytes": _zero_bytes, "mixed ends": _mixed_ends, "not packed": _not_packed,
    "unmarked UTF-16": _utf16_unmarked,
}  # fmt: skip
