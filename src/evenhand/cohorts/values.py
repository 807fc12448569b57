"""What a raw cell means: missing, a group, an age."""

from __future__ import annotations

from collections.abc import Mapping

from evenhand.core.errors import did_you_mean
from evenhand.core.groups import UNKNOWN

# how raw tables write that nothing is known; "none" is missing on purpose: it is a finding, not a gap
MISSING = ("", "nan", "na", "n/a", "null", "-1", "-1.0", "unknown", "unspecified", "?")


class BadRow(Exception):
    """Why one row is not taken, in a few words and without the row's number."""


class LeftOut(Exception):
    """Why one good row is left out, as the settings ask; rows are counted by these words."""


def cell(row: Mapping[str, str], column: str) -> str:
    """One value; a row too short to have it is a bad row."""
    if column not in row:
        raise BadRow(f"no value in column {column!r}; the row is cut short")
    return row[column]


def is_missing(value: str) -> bool:
    """Whether a raw value says that nothing is known."""
    return value.strip().lower() in MISSING


def translate(column: str, value: str, groups: Mapping[str, str]) -> str:
    """A raw value as a group; missing becomes ``unknown``.

    Raises:
        BadRow: a value that ``groups`` does not know.
    """
    if is_missing(value):
        return UNKNOWN
    if value.strip().lower() not in groups:
        raise BadRow(f"{column} {value!r} is no known group; {did_you_mean(value.strip().lower(), groups)}")
    return groups[value.strip().lower()]
