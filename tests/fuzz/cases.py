"""What a generated table is, and what its author knows of every row."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from fuzz.containers import Dialect
from fuzz.ways import Outcome
from fuzz.words import clean, skeleton

from evenhand.cohorts.checking import check_cohort
from evenhand.core.artifacts import read_json

ARRIVE, REFUSE, EITHER = "arrive", "refuse", "either"
MAX_MESSAGE = 500


@dataclass
class Meant:
    """One row as its author meant it."""

    number: int
    cells: dict[str, Any]
    file: str | None = None  # its image below the raw folder
    fate: str = ARRIVE
    values: dict[str, frozenset[str] | None] = field(default_factory=dict)  # column -> spellings of its value; None: unchecked
    caption: bool = False  # whether the prompt holds 'film NUMBER'
    subject: str | None = None

    def refuse(self) -> None:
        """This row must not arrive."""
        self.fate = REFUSE

    def doubt(self) -> None:
        """This row may arrive or be refused, if it is not refused already."""
        self.fate = EITHER if self.fate == ARRIVE else self.fate


@dataclass
class Case:
    """A raw folder with one table, and what an import of it must give."""

    draw: random.Random
    raw: Path
    kind: str
    dialect: Dialect
    columns: list[str] = field(default_factory=list)
    image: str = ""
    used: list[str] = field(default_factory=list)  # columns that the settings name
    rows: list[Meant] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "table.csv"
    what: list[str] = field(default_factory=list)  # what is odd
    may_fail: bool = False  # the whole table may be refused in one line
    must_fail: bool = False
    needs: str = ""  # what the one line must contain, as a regular expression
    free: bool = False  # the bytes are damaged at random: only tracebacks and hangs count
    loose: bool = False  # letters beyond ASCII may be read as others
    at_least: bool = False  # lines that are no rows may be listed as well
    absent: bool = False  # JSON: keys of null values are left out
    extra: dict[str, Any] = field(default_factory=dict)  # Parquet: further columns
    formula: tuple[int, int] | None = None
    twin: Meant | None = None  # a row that names the image of the first row again
    data: bytes = b""

    @property
    def delimited(self) -> bool:
        """Whether it is text with delimiters."""
        return self.kind.removesuffix(".gz") in ("csv", "tsv", "tab", "txt")

    @property
    def tabs(self) -> bool:
        """Whether quotes may be letters."""
        return self.dialect.delimiter == "\t"

    def fail(self, *, must: bool = False, needs: str = "") -> None:
        """The whole table may, or must, be refused."""
        self.may_fail, self.must_fail, self.needs = True, must or self.must_fail, needs or self.needs


def verdict(case: Case, outcome: Outcome, out: Path) -> str | None:
    """What is wrong with what an import did; None where all is right."""
    if outcome.crash:
        return outcome.crash
    if outcome.code not in (0, 1):
        return f"exit code {outcome.code}: {outcome.message[-300:]}"
    if outcome.code == 1:
        return _refusal(case, outcome.message, out)
    if case.must_fail:
        return "imported, but must be refused"
    return _success(case, out)


def _refusal(case: Case, message: str, out: Path) -> str | None:
    fault = _line(message)
    if fault or case.free:
        return fault
    lines, strict = message.replace(str(case.raw.parent), ""), not case.settings.get("skip_bad")
    refused, doubtful = ([row for row in case.rows if row.fate == fate] for fate in (REFUSE, EITHER))
    of_a_row = bool(strict and (refused or doubtful)) or all(row.fate != ARRIVE for row in case.rows)
    if (case.may_fail or case.must_fail) and not (of_a_row and re.search(r"row \d+", lines)):
        if case.needs and not re.search(case.needs, lines):
            return f"the refusal does not contain {case.needs!r}: {message}"
        return None if case.name in lines or case.raw.name in lines else f"the refusal names no file: {message}"
    if not of_a_row:
        return f"a table that can be read is refused: {message}"
    dropped = case.settings.get("unknown") == "drop"  # such rows are counted, not named
    if (refused or doubtful) and not dropped and not re.search(r"row \d+", lines):
        return f"the refusal names no row: {message}"
    return _listing(case, len(refused), out)


def _listing(case: Case, refused: int, out: Path) -> str | None:
    """Whether the list beside the cohort holds every bad row."""
    file = out.with_name(f"{out.name}.faults.txt")
    listed = len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 1
    short = listed < refused and case.settings.get("unknown") != "drop"
    return f"{listed} faults listed, {refused} rows are bad" if short else None


def _line(message: str) -> str | None:
    if "\n" in message.strip() or "Traceback" in message:
        return f"not one line: {message[:600]}"
    if len(message) > MAX_MESSAGE:
        return f"a message of {len(message)} characters: {message[:200]}"
    unseen = [sign for sign in message if not sign.isprintable()]
    return f"a message with unprintable characters: {message!r}" if unseen else None


def _success(case: Case, out: Path) -> str | None:
    table = pd.read_parquet(out / "cohort.parquet")
    made = read_json(out / "cohort.json")["made"]
    long = next((fault for fault in made["skipped"] if len(fault) > MAX_MESSAGE or "\n" in fault), None)
    if long:
        return f"a listed fault is no short line: {long[:300]!r}"
    faults = check_cohort(out).faults
    if faults:
        return f"the cohort has faults: {faults[0]}"
    if case.free:
        return None
    listed = len(made["skipped"]) + made["dropped_unknown"] + sum(made["left_out"].values())
    total, meant = len(table) + listed, len(case.rows)
    if total < meant or (total > meant and not case.at_least):
        return f"{meant} rows are meant, {len(table)} arrived and {listed} are listed: {made['skipped'][:3]}"
    return _rows(case, table)


def _rows(case: Case, table: pd.DataFrame) -> str | None:
    by_file = {row.file: row for row in case.rows if row.file and row.fate != REFUSE}
    films = {row.number: row for row in case.rows if row.caption and row.file is None and row.fate != REFUSE}
    arrived, names = set(), dict[tuple[str, frozenset[str]], set[str]]()
    for found in table.to_dict("records"):
        row = by_file.get(found["image_id"])
        film = re.search(r"film\s+(\d+)", str(found["prompt"]))
        if row is None and film:  # images that lie in the table have names that the table gives
            row = films.get(int(film[1]))
        if row is None:
            return f"image {found['image_id']!r} arrived, which no row means or which is bad"
        if row.number in arrived:
            return f"row {row.number} arrived twice"
        arrived.add(row.number)
        fault = _row(case, row, found, names)
        if fault:
            return fault
    for (column, _), several in names.items():
        if len(several) > 1 and not case.loose:
            return f"one value of {column!r} has the names {sorted(several)}"
    lost = [row for row in case.rows if row.fate == ARRIVE and row.number not in arrived]
    return f"row {lost[0].number} is refused, but good: {lost[0].cells!r:.300}" if lost else None


def _row(case: Case, row: Meant, found: dict[str, Any], names: dict[tuple[str, frozenset[str]], set[str]]) -> str | None:
    view = skeleton if case.loose else clean
    for column, spellings in row.values.items():
        if spellings is None:
            continue
        names.setdefault((column, spellings), set()).add(found[column])
        if view(str(found[column])) not in {view(spelling) for spelling in spellings}:
            return f"row {row.number}: {column!r} is {found[column]!r}, meant is one of {sorted(spellings)}"
    if row.caption and not re.search(rf"film {row.number}\b", clean(str(found["prompt"]))):
        return f"row {row.number}: the prompt is {found['prompt']!r:.200}"
    if row.subject is not None and clean(str(found["subject_id"])) != clean(row.subject):
        return f"row {row.number}: the subject is {found['subject_id']!r}, meant is {row.subject!r}"
    return None
