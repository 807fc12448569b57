"""Age groups from ages as tables write them: years, units, limits, ranges, and the codes of data sets that hide high ages."""

from __future__ import annotations

import re

from evenhand.cohorts.values import BadRow, is_missing
from evenhand.core.groups import UNKNOWN

LIMIT = 60  # years: the groups are below it, and from it on
MAX_AGE = 120  # ChestX-ray14 has patients of 412 years
# MIMIC-III moves births of patients above 89 by 300 years; later admissions of the same patient are some years more
HIDDEN = (300, 311)
MAX_LENGTH = 40  # of a cell: longer ones are prose
_NUMBER = r"\d{1,9}(?:[.,]\d*)?"
_UNITS = (
    (r"y(?:ears?|rs?)?\.?(?:[\s-]*old|[\s/.-]*o\.?)?", 1.0),
    (r"m(?:onths?|os?|ths?)?\.?(?:[\s-]*old)?", 12.0),
    (r"w(?:eeks?|ks?)?\.?(?:[\s-]*old)?", 365.25 / 7),
    (r"d(?:ays?)?\.?(?:[\s-]*old)?", 365.25),
    (r"h(?:ours?|rs?)?\.?(?:[\s-]*old)?", 365.25 * 24),
)
_PART = re.compile(rf"({_NUMBER})(?:[\s-]*({'|'.join(f'(?:{unit})' for unit, _ in _UNITS)}))?(?![a-z])[\s,]*(?:and\s+)?")
_AT_LEAST = re.compile(
    r"(?:>=|≥|=>|at least|from)\s*(.+)|(.+?)\s*(?:\+|plus|(?:and|or) (?:over|above|older|up|more))(?:\s*y(?:ears?|rs?)?)?"
)
_ABOVE = re.compile(r"(?:>|over|above|older than|more than)\s*(.+)")
_AT_MOST = re.compile(r"(?:<=|≤|=<|up to|at most)\s*(.+)|(.+?)\s*(?:and|or) (?:under|below|younger|less)")
_BELOW = re.compile(r"(?:<|under|below|younger than|less than)\s*(.+)")
_RANGE = re.compile(r"([\[(])?\s*(.+?)\s*(?:-|–|—|\bto\b|\.\.|,\s|;|:)\s*(.+?)\s*([\])])?")


def age_group(value: str) -> str:
    """``<60`` or ``>=60`` from an age; what is missing, impossible, or a range with ages on both sides of 60 is ``unknown``.

    Read are years (``57``, ``57.0``, ``2,5``, ``057Y``, ``58 years``), other units (``011M``, ``5 weeks``, ``1 year 6 months``), limits
    (``> 89``, ``90+``, ``<1``), ranges (``50-59``, ``[50-60)``), and MIMIC-III's 300 to 311 years, which stand for more than 89.

    Raises:
        BadRow: not an age.
    """
    if is_missing(value):
        return UNKNOWN
    text = " ".join(value.lower().split())
    for reading in (_of_years, _of_limit, _of_range) if len(text) <= MAX_LENGTH else ():
        group = reading(text)
        if group is not None:
            return group
    raise BadRow(f"age {value[:60]!r} is not a number of years")


def years(text: str) -> float | None:
    """``58 years``, ``011m`` or ``1 year 6 months`` in lower case as years; None where it is no age."""
    total, end, last = 0.0, 0, ""
    while end < len(text):
        found = _PART.match(text, end)
        if not found or (end and not (last and found[2])):  # only parts with units add up: "58 60" is no age
            return None
        last = found[2] or ""
        total += float(found[1].replace(",", ".")) / next((scale for words, scale in _UNITS if re.fullmatch(words, last)), 1.0)
        end = found.end()
    return total if end else None


def _of_years(text: str) -> str | None:
    age = years(text)
    if age is None:
        return None
    if HIDDEN[0] <= age <= HIDDEN[1]:
        return ">=60"
    return UNKNOWN if age > MAX_AGE else _side(age)


def _of_limit(text: str) -> str | None:
    for words, above, counts in ((_AT_LEAST, True, True), (_ABOVE, True, False), (_AT_MOST, False, True), (_BELOW, False, False)):
        found = words.fullmatch(text)
        limit = years(next(part for part in found.groups() if part is not None)) if found else None
        if limit is None:
            continue
        if limit > MAX_AGE:
            return UNKNOWN
        if above:  # ages count in whole years: more than 59 is 60
            return ">=60" if limit >= LIMIT - (0 if counts else 1) else UNKNOWN
        return "<60" if limit < LIMIT or (limit == LIMIT and not counts) else UNKNOWN
    return None


def _of_range(text: str) -> str | None:
    found = _RANGE.fullmatch(text)
    if not found:
        return None
    unit = re.search(r"[a-z].*", found[3])  # "2-3 months": one unit for both
    low, high = years(found[2] if not unit or re.search("[a-z]", found[2]) else f"{found[2]} {unit[0]}"), years(found[3])
    if low is None or high is None or low > high:
        return None
    if high > MAX_AGE:
        return UNKNOWN
    last = _side(high) if found[4] != ")" or high == low else "<60" if high <= LIMIT else ">=60"
    first = ">=60" if low >= LIMIT or (found[1] == "(" and low >= LIMIT - 1) else "<60"
    return first if first == last else UNKNOWN


def _side(age: float) -> str:
    return ">=60" if age >= LIMIT else "<60"
