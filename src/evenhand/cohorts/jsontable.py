"""Tables as JSON lines, or as one array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from evenhand.cohorts.header import Row, cell_text, clean
from evenhand.cohorts.textfile import MAX_LINE, TextFile
from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError

MAX_ARRAY = 100_000_000  # characters of a file that is one array: it is held in memory as a whole
MAX_COLUMNS = 10_000
_WANTED = "save it as an array of objects (pandas: to_json(orient='records')) or as JSON lines"
_JSON_ERRORS = (ValueError, RecursionError)  # ValueError: also for numbers of too many digits


class JsonTable:
    """One table; its columns are the keys of all its rows, and a key that a row lacks is an empty cell.

    Raises:
        UserError: neither JSON lines nor an array of objects.
    """

    def __init__(self, text: TextFile) -> None:
        self.text, self.path = text, text.path
        self.notes = [text.note] if text.note else []
        with text.open() as file:
            first = next((clean(line) for line in iter(lambda: file.readline(MAX_LINE), "") if clean(line)), "")
        self.is_array = first.startswith("[")
        names: dict[str, None] = {}
        objects = faults = 0
        for _, found in self._objects():
            objects, faults = objects + isinstance(found, dict), faults + isinstance(found, BadRow)
            names.update(dict.fromkeys(found) if isinstance(found, dict) else {})
            if len(names) > MAX_COLUMNS:
                raise UserError(f"{self.path}: more than {MAX_COLUMNS:,} columns; {_WANTED}")
        if not objects and (faults or not self.is_array):
            raise UserError(f"{self.path}: neither JSON lines nor an array of objects; {_WANTED}")
        if objects == 1 and not faults and not self.is_array and all(isinstance(value, dict | list) for value in _parsed(first).values()):
            raise UserError(f"{self.path}: one object, with the keys {', '.join(names)[:80]}; {_WANTED}")
        self.names = list(names)

    def rows(self) -> Iterator[tuple[int, Row | BadRow | None]]:
        """Rows by column name with their number: the line of JSON lines, the place in an array from 1.

        A nested value is left out of its row: it is missed only where it is needed.
        """
        for number, found in self._objects():
            if isinstance(found, BadRow):
                yield number, found
                continue
            row = {name: cell_text(found.get(name)) for name in self.names if not isinstance(found.get(name), list | dict)}
            if (broken := _no_text(row)) is not None:
                yield number, BadRow(f"column {broken[:60]!r} holds half a character (a lone surrogate), which is no text; mend the cell")
            else:
                yield number, row if any(row.values()) or len(row) < len(self.names) else None

    def _objects(self) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        with self.text.open() as file:
            if self.is_array:
                yield from enumerate(self._array(file.read(MAX_ARRAY + 1)), start=1)
                return
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                if clean(line):
                    yield number, _checked_object(clean(line))

    def _array(self, text: str) -> list[dict[str, Any] | BadRow]:
        if len(text) > MAX_ARRAY:
            raise UserError(f"{self.path}: an array of more than {MAX_ARRAY:,} characters; save it as JSON lines")
        try:
            found = _parsed(clean(text))
        except _JSON_ERRORS as error:
            raise UserError(f"{self.path}: not valid JSON ({' '.join(str(error).split())[:100]}); restore the file") from None
        return [_named(item) for item in found]


def _checked_object(line: str) -> dict[str, Any] | BadRow:
    try:
        return _named(_parsed(line))
    except _JSON_ERRORS as error:
        return BadRow(f"not valid JSON ({' '.join(str(error).split())[:100]}); mend the line")


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Pairs)


class _Pairs(dict[str, Any]):
    """An object of JSON that remembers which key stands twice, since the last one alone would be kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__((clean(name), value) for name, value in pairs)
        names = [clean(name) for name, _ in pairs]
        self.twice = next((name for name in names if names.count(name) > 1), None) if len(self) < len(names) else None


def _no_text(row: Row) -> str | None:
    """The first column whose cell no file can hold as text; JSON's escapes can write what UTF-8 cannot."""
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError:
        return next(name for name, value in row.items() if any("\ud800" <= sign <= "\udfff" for sign in value))
    return None


def _named(item: Any) -> dict[str, Any] | BadRow:
    if not isinstance(item, _Pairs):
        return BadRow("not a JSON object; each line is one image's columns")
    return item if item.twice is None else BadRow(f"key {item.twice[:60]!r} stands twice; keep one of the two")
