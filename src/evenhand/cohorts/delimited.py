"""Delimited text: commas, semicolons, tabs or bars; strict, so that every row is read as a whole or named as bad."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from evenhand.cohorts.header import Header, Row
from evenhand.cohorts.textfile import MAX_LINE, TextFile
from evenhand.cohorts.values import BadRow, is_missing
from evenhand.core.errors import UserError

MAX_CELL = 16_000_000  # characters
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
SAMPLE = 50  # rows that decide between two delimiters
MAX_HEADER_LINES = 20
_SEP = re.compile(r'\ufeff?"?sep=([,;|\t:^~])"?\s*', re.IGNORECASE)  # Excel's own first line
_COMMENT = re.compile(r"#+ *[^\W\d_]")  # "# exported by", not the name "#" of a column of row numbers
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)(,\d+)?")  # as Excel writes it where the comma is the decimal sign
_FIGURES = re.compile(r"\d+")
_FILE = re.compile(r"\S+(\.[A-Za-z]{3,4})")
csv.field_size_limit(MAX_CELL)  # the module's own bound, 131,072 characters, is less than the text of a long report


@dataclass(frozen=True)
class Format:
    """How the cells of one file are written."""

    delimiter: str
    quoted: bool = True  # whether quotes enclose cells; else they are letters
    skip_blanks: bool = False  # blanks between a delimiter and a quote
    above: int = 0  # lines above the header


class DelimitedTable:
    """One table; its format is found when it is opened, by reading it once.

    Raises:
        UserError: no header, or a name that stands twice in it.
    """

    first_row = 2

    def __init__(self, text: TextFile) -> None:
        self.text, self.path = text, text.path
        self.notes = [text.note] if text.note else []
        with text.open() as file:
            above, lines, delimiter = _head(self.path, file)
        self.row_of_header = 1 + sum(1 for line in above if not _SEP.fullmatch(line))  # as a spreadsheet counts; it hides 'sep='
        options = [delimiter] if delimiter else [mark for mark in DELIMITERS if _count(lines, mark)] or [_usual(self.path)]
        formats = [Format(mark, skip_blanks=_has_blanks(lines, mark), above=len(above)) for mark in options]
        self.format, self.header = self._best(formats)
        self.format, self.header = self._unquoted()
        self.decimals = self._decimal_commas() if self.format.delimiter != "," else ()
        if self.decimals:
            named = ", ".join(self.header.names[index] for index in self.decimals)
            self.notes.append(f"{self.path.name}: decimal commas are read as points in {named}")

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return self.header.columns

    def rows(self) -> Iterator[tuple[int, Row | BadRow | None]]:
        """Rows by column name with their number, which is a spreadsheet's; None for a row without any value."""
        for number, cells in self._records(self.format, self.header):
            if isinstance(cells, BadRow):
                yield number, cells
            elif cells:
                points = [_with_point(cell) if index in self.decimals else cell for index, cell in enumerate(cells)]
                yield number, self.header.row(points)

    def _records(self, form: Format, header: Header | None) -> Iterator[tuple[int, list[str] | BadRow]]:
        """Cells of each row below the header; a blank line is an empty list."""
        with self.text.open() as file:
            for _ in range(form.above):
                file.readline(MAX_LINE)
            records = _parse(_Lines(self.path, file), form, len(header.names) if header else 0)
            if header is not None:
                next(records, None)
            yield from enumerate(records, start=self.row_of_header + (header is not None))

    def _header(self, form: Format) -> Header:
        """The header, with bracketed names that hold a comma joined where the rows want that."""
        cells = next((cells for _, cells in self._records(form, None)), [])
        if isinstance(cells, BadRow):
            raise UserError(f"{self.path}: the header: {cells}")
        remedy = f"quote cells that hold a {DELIMITERS.get(form.delimiter, form.delimiter)}"
        joined = _joined(cells, form.delimiter)
        if len(joined) < len(cells):
            loose = Header(self.path, [], remedy=remedy)
            first = next((found for _, found in self._records(form, loose) if isinstance(found, list) and any(found)), [])
            if len(_trimmed(first)) == len(_trimmed(joined)):
                cells = joined
        return Header(self.path, cells, remedy=remedy)

    def _best(self, formats: Sequence[Format]) -> tuple[Format, Header]:
        """The format that gives the first rows as many cells as the header."""
        found, faults = [], []
        for form in formats:
            try:
                found.append((form, self._header(form)))
            except UserError as fault:
                faults.append(fault)
        if not found:
            raise faults[0]
        best = max(found, key=lambda pair: self._fit(*pair))
        if faults and not self._fit(*best)[0]:
            raise faults[0]
        return best

    def _fit(self, form: Format, header: Header) -> tuple[float, int]:
        """How many of the first rows have the header's number of cells, then how many columns there are."""
        rows = [cells for _, cells in islice(self._records(form, header), SAMPLE) if cells]
        good = sum(isinstance(header.row(cells), dict) for cells in rows if isinstance(cells, list))
        width = len(header.names)
        return (good / len(rows) if rows and width > 1 else 0.0), width

    def _unquoted(self) -> tuple[Format, Header]:
        """The format of a tab-separated file whose quotes are letters: they do not pair, or pair over the ends of whole rows."""
        if self.format.delimiter != "\t":
            return self.format, self.header
        literal = replace(self.format, quoted=False)
        names = next((cells for _, cells in self._records(literal, None)), [])
        if isinstance(names, list) and any(map(_enclosed, names)):
            return self.format, self.header  # quotes enclose the header's names, so they do in the rows
        header = self._header(literal)
        (read, bad), (lines, short) = self._faults(self.format, self.header), self._faults(literal, header)
        if not bad and read == lines:
            return self.format, self.header
        return (literal, header) if short < bad or not short else (self.format, self.header)

    def _faults(self, form: Format, header: Header) -> tuple[int, int]:
        """The number of rows in a format, and of those that are not whole."""
        found = [isinstance(cells, BadRow) or isinstance(header.row(cells), BadRow) for _, cells in self._records(form, header)]
        return len(found), sum(found)

    def _decimal_commas(self) -> tuple[int, ...]:
        """Columns of numbers of which some have a decimal comma, and nothing else stands in them."""
        numbers = set(range(len(self.header.names)))
        seen: set[int] = set()
        for _, cells in self._records(self.format, self.header):
            if not numbers:
                break
            if isinstance(cells, BadRow):
                continue
            for index in list(numbers):
                value = cells[index].strip() if index < len(cells) else ""
                match = _NUMBER.fullmatch(value)
                if match and match[1]:
                    seen.add(index)
                elif not match and not is_missing(value):
                    numbers.discard(index)
        return tuple(sorted(numbers & seen))


class _Lines:
    """Lines of a file for the csv module; those of a row that is not whole can be read again."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.waiting: deque[str] = deque()
        self.taken: list[str] = []  # of the row at hand
        self.size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.waiting.popleft() if self.waiting else self.file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        if len(line) >= MAX_LINE:
            raise UserError(f"{self.path}: a line of more than {MAX_LINE:,} characters; no table has such lines")
        self.taken.append(line)
        self.size += len(line)
        if self.size > MAX_CELL:
            raise csv.Error("too long")
        return line

    def begin(self) -> None:
        """Begin a row."""
        self.taken, self.size = [], 0

    def again(self) -> None:
        """Read all but the first line of the row at hand again, as rows of their own."""
        self.waiting.extendleft(reversed(self.taken[1:]))


def _parse(lines: _Lines, form: Format, width: int) -> Iterator[list[str] | BadRow]:
    """Cells row by row. A row with an open quote is bad, and the line below it begins another."""
    skip = form.skip_blanks and form.delimiter != "\t"
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=form.delimiter, quoting=quoting, skipinitialspace=skip, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fault = "a quote is opened and not closed" if len(lines.taken) > 1 or _odd(lines.taken) else "text beside the quotes of a cell"
            yield BadRow(f"{fault}: {lines.taken[0].strip()[:60]!r}; close the quote, and double each quote inside a quoted cell")
            lines.again()
            continue
        if len(lines.taken) > 1 and _swallowed(lines.taken, form.delimiter, width):
            yield BadRow(f"a quoted cell holds {len(lines.taken) - 1} lines that are rows themselves: {cells[0][:40]!r}; close its quote")
            lines.again()
            continue
        yield cells


def _enclosed(cell: str) -> bool:
    return len(cell) > 2 and cell.startswith('"') and cell.rstrip().endswith('"')


def _odd(lines: Sequence[str]) -> bool:
    return sum(line.count('"') for line in lines) % 2 == 1


def _swallowed(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether each line of one row is a row for itself: as many cells, and one of them of the same form throughout."""
    parts = [line.strip("\r\n").split(delimiter) for line in lines]
    if width < 2 or any(len(cells) < width or any(cells[width:]) for cells in parts):  # empty cells beyond the header's are none
        return False
    forms = [[_form(cell.strip(' "')) for cell in cells[:width]] for cells in parts]
    return any(column[0] and len(set(column)) == 1 for column in zip(*forms, strict=True))


def _form(cell: str) -> str:
    """What cells of one column have in common: the ending of a file's name, or all but the figures."""
    ending = _FILE.fullmatch(cell)
    return ending[1].lower() if ending else _FIGURES.sub("0", cell)


def _head(path: Path, file: IO[str]) -> tuple[list[str], list[str], str | None]:
    """The lines above the header, its own lines, and the delimiter where the file names it."""
    above: list[str] = []
    delimiter = None
    while line := file.readline(MAX_LINE):
        named = _SEP.fullmatch(line)
        if named and delimiter is None:
            delimiter = named[1]
        elif line.replace("\ufeff", "").strip() and not _COMMENT.match(line.replace("\ufeff", "")):
            lines = [line]
            while _odd(lines) and len(lines) < MAX_HEADER_LINES and (line := file.readline(MAX_LINE)):
                lines.append(line)
            return above, lines, delimiter
        above.append(line)
    raise UserError(f"{path}: no header, only blank lines or comments; the first line names the columns")


def _count(lines: Sequence[str], delimiter: str) -> int:
    """How often a delimiter stands outside of quotes."""
    return sum(part.count(delimiter) for part in "".join(lines).split('"')[::2])


def _has_blanks(lines: Sequence[str], delimiter: str) -> bool:
    return f"{delimiter} " in lines[0]


def _usual(path: Path) -> str:
    """The delimiter of a table of one column, by its ending."""
    return "\t" if {".tsv", ".tab"} & {ending.lower() for ending in path.suffixes} else ","


def _joined(cells: Sequence[str], delimiter: str) -> list[str]:
    """Names such as ``OriginalImage[Width`` and ``Height]`` as the one name that they are."""
    names: list[str] = []
    for cell in cells:
        if names and names[-1].count("[") > names[-1].count("]"):
            names[-1] += delimiter + cell
        else:
            names.append(cell)
    return names


def _trimmed(cells: Sequence[str]) -> list[str]:
    """Cells without the empty ones at the end."""
    last = max((index for index, cell in enumerate(cells) if cell.strip()), default=-1)
    return list(cells[: last + 1])


def _with_point(cell: str) -> str:
    value = cell.strip()
    return value.replace(".", "").replace(",", ".") if _NUMBER.fullmatch(value) else cell
