"""What a raw cell means: missing, or a group. Every importer, ``cohort check``, ``merge`` and the audit ask here."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from evenhand.core.errors import did_you_mean
from evenhand.core.groups import UNKNOWN
from evenhand.core.names import look_alike, sense, tidy

# how tables write that nothing is known; underscores count as blanks, and brackets around a word do not count
_NOTHING = (
    *("", "na", "n/a", "n.a", "n.a.", "n a", "#n/a", "#n/a n/a", "#na", "nan", "-nan", "nat", "null", "\\n", "nul"),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "#null!", "#value!", "#ref!", "#div/0!", "#name?", "#num!"),
    *("unknown", "unknwon", "unkown", "unk", "unk.", "unspecified", "undefined", "missing", "blank", "no data"),
    *("no information", "data missing", "missing data", "not reported", "not available", "not applicable", "not known", "not specified"),
    *("not stated", "not recorded", "not provided", "not given", "not documented", "not collected", "not asked", "not evaluated"),
    *("not determined", "not disclosed", "unavailable", "unreported", "unrecorded", "unable to obtain", "unknown/not reported"),
    *("unknown or not reported", "unknown/not specified", "unknown/declined", "declined to answer", "patient declined to answer"),
    *("prefer not to say", "prefer not to answer", "declined", "patient declined", "refused", "patient refused", "tbd", "n/k"),
)
_NO_FINDING = ("none", "nil")  # nothing is known of a patient; of an image, that there is no finding
_DASHES = re.compile(r"[-?._*~/\\'\"\s]+")  # cells of signs alone, such as "--", "?" and GDC's "'--"
_BRACKETS = re.compile(r"\[(.*)\]|\((.*)\)|<(.*)>|\{(.*)\}", re.DOTALL)
_MINUS_ONE = sense("-1")
_MISSING = frozenset(map(sense, _NOTHING))
_TRUTH = {sense("1"): "true", "true": "true", sense("0"): "false", "false": "false"}


class BadRow(Exception):
    """Why one row is not taken, in a few words and without the row's number."""


class LeftOut(Exception):
    """Why one good row is left out, as the settings ask; rows are counted by these words."""


def cell(row: Mapping[str, str], column: str) -> str:
    """One value; a row too short to have it is a bad row."""
    if column not in row:
        raise BadRow(f"no value in column {column!r}; the row is cut short")
    return row[column]


def is_missing(value: str, *, finding: bool = False) -> bool:
    """Whether a raw value says that nothing is known; in a column of findings ``none`` says that there is no finding.

    >>> is_missing("#N/A"), is_missing("None"), is_missing("None", finding=True), is_missing("no")
    (True, True, False, False)
    """
    word = sense(value)
    if word in _MISSING or word == _MINUS_ONE or _DASHES.fullmatch(word):
        return True
    word = sense(word.replace("_", " "))
    found = _BRACKETS.fullmatch(word)
    word = next(part for part in found.groups() if part is not None).strip() if found else word
    return word in _MISSING or (word in _NO_FINDING and not finding) or (found is not None and not word.strip(" -?._*"))


def identity(value: str) -> str:
    """An id as it stands, empty where it is missing: numbers and cases are no spellings of one id."""
    return "" if is_missing(value) else value.strip()


def meant(value: str, groups: Iterable[str]) -> str | None:
    """The group that a value means, whatever its spelling; None where it means none of them, or more than one."""
    groups = list(groups)
    if value in groups:
        return value
    wanted = sense(value)
    found = [group for group in groups if sense(group) == wanted]
    return found[0] if len(found) == 1 else None


def translate(column: str, value: str, groups: Mapping[str, str]) -> str:
    """A raw value as a group; missing becomes ``unknown``.

    Raises:
        BadRow: a value that ``groups`` does not know.
    """
    known = meant(value.strip().lower(), groups)
    if known is not None:
        return groups[known]
    if is_missing(value):
        return UNKNOWN
    raise BadRow(f"{column} {value!r} is no known group; {did_you_mean(value.strip().lower(), groups)}")


class Spellings:
    """The spellings that one column of groups has, and the one name that each value gets: its most frequent, then its first.

    ``1`` and ``True`` are one value in a column that has nothing but truth values.

    >>> sex = Spellings()
    >>> for value in ("male", "MALE", "male ", "F", "n/a"):
    ...     sex.add(value)
    >>> sex.name("MALE"), sex.name("n/a"), sex.joined()
    ('male', None, ["'male' (2), 'MALE' (1) -> 'male'"])
    """

    def __init__(self, *, finding: bool = False) -> None:
        self.finding = finding
        self.missing: Counter[str] = Counter()
        self.known: dict[str, Counter[str]] = {}  # sense -> its spellings, in the order in which they came
        self._senses: dict[str, str] = {}  # of spellings seen

    def add(self, value: str, number: int = 1) -> None:
        """Count a raw value."""
        shown = tidy(value)
        if is_missing(shown, finding=self.finding):
            self.missing[shown] += number
            return
        meaning = self._senses.setdefault(shown, sense(shown))
        self.known.setdefault(meaning, Counter())[shown] += number

    def name(self, value: str) -> str | None:
        """The group's name; None where the value is missing. A value that was never added keeps its own spelling."""
        shown = tidy(value)
        if is_missing(shown, finding=self.finding):
            return shown if self._is_negative(shown) else None
        meaning = self._senses.get(shown) or sense(shown)
        spellings = self._values().get(_TRUTH.get(meaning, meaning) if self._are_truths() else meaning)
        return spellings.most_common(1)[0][0] if spellings else shown

    def _are_truths(self) -> bool:
        return self.known.keys() <= _TRUTH.keys()

    def _values(self) -> dict[str, Counter[str]]:
        """The spellings of each value."""
        if not self._are_truths():
            return self.known
        values: dict[str, Counter[str]] = {}
        for meaning, spellings in self.known.items():
            values.setdefault(_TRUTH[meaning], Counter()).update(spellings)
        return values

    def _is_negative(self, shown: str) -> bool:
        """Whether a dash is the opposite of a plus that the column has too."""
        return "+" in self.known and sense(shown) == "-"

    def words(self) -> Counter[str]:
        """What was read as missing besides empty cells, with the empty ones where there is such a word; else nothing."""
        found = Counter({word: number for word, number in self.missing.items() if not self._is_negative(word)})
        return found if any(found) else Counter()

    def joined(self) -> list[str]:
        """What was joined, a line for each value of several spellings."""
        several = [spellings for spellings in self._values().values() if len(spellings) > 1]
        return [f"{counted(spellings)} -> {spellings.most_common(1)[0][0]!r}" for spellings in several]

    def alike(self) -> list[str]:
        """Pairs of values that look like one and were not joined, such as ``'M'`` and ``'male'``."""
        names = [spellings.most_common(1)[0][0] for spellings in self._values().values()]
        return [f"{one!r} and {other!r}" for one, other in itertools.combinations(names, 2) if look_alike(one, other)]

    def notes(self, column: str) -> list[str]:
        """What to say of a column: what was joined, and what looks alike and was not."""
        notes = [f"{column}: spellings of one value: {line}" for line in self.joined()]
        if alike := self.alike():
            more = f" and {len(alike) - 4} more" if len(alike) > 4 else ""
            notes.append(f"{column}: {', '.join(alike[:4])}{more} stay groups of their own; write them alike where they are one")
        return notes


def counted(values: Counter[str], most: int = 12) -> str:
    """Values with their numbers, the most frequent first: ``'male' (12), 'MALE' (1)``."""
    shown = [f"{value[:60]!r} ({number})" if value else f"empty ({number})" for value, number in values.most_common(most)]
    return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")
