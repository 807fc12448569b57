"""Odd tables: a raw folder with tiny images and one table, made from a seed."""

from __future__ import annotations

import functools
import io
import random
import shutil
from pathlib import Path

import numpy as np
from fuzz import containers, words
from fuzz.cases import ARRIVE, EITHER, Case, Meant, verdict
from fuzz.typed import damage
from fuzz.ways import Way
from PIL import Image

POOL = 24


def check(seed: int, folder: Path, way: Way) -> str | None:
    """Import the table of a seed; what is wrong, or None."""
    case = make(seed, folder)
    out = folder / "out"
    outcome = way("import", [str(case.raw if case.draw.random() < 0.3 else case.raw / case.name), str(out)], case.settings)
    fault = verdict(case, outcome, out)
    return f"[{case.name}: {', '.join(case.what) or 'plain'}] {fault}" if fault else None


def make(seed: int, folder: Path) -> Case:
    """The raw folder of a seed below ``folder``, and what must become of it."""
    draw = random.Random(f"table {seed}")
    kind = draw.choice(containers.DELIMITED + containers.OTHERS)
    case = Case(draw, folder / "raw", kind, containers.draw_dialect(draw, kind))
    case.raw.mkdir(parents=True)
    case.name = draw.choice(["table", "labels", "my table", "T\u00e4belle", "metadata", "a.b"]) + f".{kind}"
    if draw.random() < 0.04:
        case.name = case.name.replace(f".{kind}", f".{kind.upper()}")
    _columns(case)
    count = draw.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 12])
    vocabularies = {column: _vocabulary(case) for column in case.used}
    for number in range(count):
        case.rows.append(_row(case, number, vocabularies))
    _images(case)
    case.settings["skip_bad"] = 0 if draw.random() < 0.15 else 10_000
    damage(case)
    if case.settings.get("unknown") == "drop":
        for row in case.rows:
            if row.values.get(case.settings["attributes"][0]) == _UNKNOWN:
                row.refuse()
    first = next(iter(case.rows), None)
    if case.twin and first and first.fate != ARRIVE:  # then the second of the two may be the one that arrives
        first.fate, first.values, first.caption, first.subject = EITHER, {}, False, None
        case.twin.fate = EITHER
    return case


_UNKNOWN = frozenset({"unknown"})


def _columns(case: Case) -> None:
    draw = case.draw
    case.image = draw.choice(words.IMAGE_COLUMNS)
    attribute = draw.choice(words.GROUP_COLUMNS)
    case.used = [attribute]
    case.settings = {"attributes": [attribute], "size": 8, "mode": "L"}
    if draw.random() < 0.3:
        case.used.append("finding")
        case.settings["conditions"] = ["finding"]
    columns = [case.image, *case.used]
    if draw.random() < 0.6:
        columns.append("caption")
    if draw.random() < 0.3:
        columns.append("patient")
        case.settings["subject_column"] = "patient"
    if draw.random() < 0.12:
        columns.append("fold")
        case.settings["split_column"] = "fold"
    if draw.random() < 0.1:
        case.settings["unknown"] = "drop"
    extras = [name for name in draw.sample(words.EXTRA_COLUMNS, draw.choice([0, 0, 1, 2, 4])) if name not in columns]
    columns += extras
    draw.shuffle(columns)
    case.columns = columns
    if case.delimited and draw.random() < 0.07:
        case.dialect.encoding = draw.choice(["cp1252", "latin-1"])
        case.what.append(case.dialect.encoding)
        if draw.random() < 0.5:
            case.settings["encoding"] = case.dialect.encoding
        else:
            case.loose = True


def _vocabulary(case: Case) -> tuple[tuple[str, ...], ...]:
    draw, dialect = case.draw, case.dialect
    if dialect.encoding in ("cp1252", "latin-1"):
        return draw.choice(words.LATIN)
    never = case.delimited and dialect.quoting == "never"
    kinds = [words.PAIRS] * 8 + [words.COMMAS, words.QUOTES, words.LATIN]
    if not never:
        kinds.append(words.BREAKS)
    chosen = draw.choice(kinds)
    if draw.random() < 0.02 and not (case.kind == "xlsx" or case.delimited):
        case.what.append("control characters")
        chosen = words.CONTROLS
    pair = draw.choice(
        chosen[:3] if chosen is words.CONTROLS and case.kind == "parquet" else chosen
    )  # only JSON can write half a character
    if chosen is words.CONTROLS:
        case.may_fail = True
    return pair


def _row(case: Case, number: int, vocabularies: dict[str, tuple[tuple[str, ...], ...]]) -> Meant:
    draw = case.draw
    row = Meant(number, {})
    for column in case.columns:
        if column in vocabularies:
            row.cells[column] = _value(case, row, column, vocabularies[column])
        elif column == "caption":
            row.cells[column] = _caption(case, number)
            row.caption = True
        elif column == "patient":
            row.cells[column], row.subject = draw.choice(
                [(f"P{number}", f"P{number}"), (str(100 + number), str(100 + number)), ("nan", None), ("", None)]
            )
        elif column == "fold":
            row.cells[column] = draw.choice(["train", "Train", "test", "val", "validation", ""])
        elif column != case.image:
            numbers = [words.with_commas(draw)] if case.dialect.delimiter == ";" or not case.delimited else []
            row.cells[column] = draw.choice(["", "x", str(number), "1.5", "a, b", "-", *numbers])
    return row


def _value(case: Case, row: Meant, column: str, values: tuple[tuple[str, ...], ...]) -> str:
    draw = case.draw
    missing = column in case.settings["attributes"]  # in a column of findings 'none' is no finding
    if draw.random() < 0.12:
        word = draw.choice(words.MISSING)
        row.values[column] = _UNKNOWN if missing or word.lower() != "none" else frozenset({"none", "None"})
        return word
    spellings = draw.choice(values)
    row.values[column] = frozenset(spellings)
    if any(sign < " " and sign not in "\n\t" for value in values for spelling in value for sign in spelling) or "\ud800" in "".join(
        spellings
    ):
        row.doubt()
    return draw.choice(spellings) if draw.random() < 0.4 else spellings[0]


def _caption(case: Case, number: int) -> str:
    draw = case.draw
    if case.dialect.encoding == "cp1252":
        return draw.choice([words.CAPTIONS[0], *words.LATIN_CAPTIONS]).format(i=number)
    if case.dialect.encoding == "latin-1":
        return draw.choice([words.CAPTIONS[0], words.LATIN_CAPTIONS[0]]).format(i=number)
    text = draw.choice(words.CAPTIONS).format(i=number)
    if draw.random() < 0.05:
        text += draw.choice([' "quoted"', ", with comma", "; semicolon", "\nsecond line", " it's", " |", "\\", '""'])
    if draw.random() < 0.01:
        text += "long " * 28_000  # beyond the 131,072 characters of the csv module
    return text.replace("\n", " ") if case.dialect.quoting == "never" else text


@functools.cache
def pool() -> tuple[bytes, ...]:
    """Tiny images that tables share: no two alike, none dark."""
    found = []
    for number in range(POOL):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        found.append(buffer.getvalue())
    return tuple(found)


_STYLES = (
    "exact",
    "exact",
    "exact",
    "exact",
    "backslash",
    "dot",
    "upper",
    "upper file",
    "bare",
    "quotes",
    "blanks",
    "number",
    "decomposed",
)
_BAD = ("missing", "dots", "absolute", "hidden", "empty", "word", "folder", "text", "no bytes", "web", "long", "twice", "outside")


def _images(case: Case) -> None:
    draw = case.draw
    inner = draw.choice(["", "scans/", "scans/", "a b/c,d/", "Gr\u00f6\u00dfe/"])
    if case.dialect.encoding in ("cp1252", "latin-1") and not inner.isascii():
        inner = ""
    style = draw.choice(_STYLES)
    if style != "exact":
        case.what.append(f"images: {style}")
    data = pool()
    for row in case.rows:
        name = {"number": str(row.number + 1), "decomposed": f"e\u0301{row.number}"}.get(style, f"f{row.number:03d}")
        if style == "decomposed" and (case.dialect.encoding in ("cp1252", "latin-1")):
            name = f"f{row.number}"
        ending = ".PNG" if style == "upper file" else ".png"
        folder = "" if style == "number" else inner
        row.file = f"{folder}{words.unicodedata.normalize('NFC', name)}{ending}"
        containers.write(case.raw / row.file, data[row.number % POOL])
        row.cells[case.image] = _written(f"{folder}{name}", ending, style)
    if draw.random() < 0.25:
        row = draw.choice(case.rows)
        how = draw.choice(_BAD)
        case.what.append(f"image {row.number}: {how}")
        _spoil(case, row, how)


def _written(stem: str, ending: str, style: str) -> str:
    path = stem + ending
    if style == "quotes":
        return f"'{path}'"
    ways = {"backslash": path.replace("/", "\\"), "dot": f"./{path}", "upper": f"{stem}.PNG", "upper file": f"{stem}.png", "bare": stem}
    return {**ways, "blanks": f" {path} ", "number": stem}.get(style, path)


def _spoil(case: Case, row: Meant, how: str) -> None:
    """One image that is not there, or not one, or not inside the raw folder."""
    assert row.file
    file, cells = case.raw / row.file, row.cells
    written = {"missing": "no/such.png", "dots": f"../raw/{row.file}", "absolute": "/etc/hostname", "empty": "", "word": "nan"}
    written |= {"web": "https://example.org/1.png", "long": "x" * 3000}
    if how in written:
        cells[case.image] = written[how]
        row.refuse()
    elif how == "hidden":
        containers.write(file.with_name(f"._{file.name}"), b"\x00\x05\x16\x07")
        cells[case.image] = row.file.replace(file.name, f"._{file.name}")
        row.refuse()
    elif how == "folder":
        (case.raw / "folder.png").mkdir()
        cells[case.image] = "folder.png"
        row.refuse()
    elif how in ("text", "no bytes"):
        file.write_bytes(b"not an image, but text" if how == "text" else b"")
        row.refuse()
    elif how == "twice":
        first = case.rows[0]
        if first is not row and first.fate == ARRIVE:
            cells[case.image], row.file, case.twin = first.cells[case.image], None, row
            row.refuse()
    else:
        outside = case.raw.parent / "outside.png"
        shutil.copyfile(file, outside)
        file.unlink()
        file.symlink_to(outside)
        row.refuse()
