"""Names of groups and columns as text: when two spellings are one value, joint labels, and quotes where signs have a meaning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

JOINT = " x "  # between the parts of a joint group's label
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]\d{1,3})?", re.ASCII)
_COMPATIBLE = ("<wide>", "<narrow>", "<noBreak>", "<compat>")  # one character in another form; superscripts and fractions are not
_SIGNS = str.maketrans(
    {**dict.fromkeys("‐‑‒–—―−﹣", "-"), **dict.fromkeys("‘’‛′", "'"), **dict.fromkeys("“”„″", '"'), "≥": ">=", "≤": "<="}
)
_GAPS = re.compile(r"(?<=[<>=]) (?=\d)|(?<=\d) ?(?=- ?\d)|(?<=\d-) (?=\d)|(?<=\d -) (?=\d)")  # beside the sign of a limit or a range
_ABBREVIATION = 3  # letters at most, such as "F", "pos"
_ROMAN = re.compile("[ivx]+")
_MIX_SIGNS = ',;:/"'  # what a group's name in a mix must be quoted for
_COLUMN_SIGNS = ',;:/"*='  # the same of a column's name, in mixes and questions


def tidy(text: str) -> str:
    """The text as it is shown: composed Unicode, no space around it, one blank for every run of white space inside.

    >>> tidy("  Black/African  American ")
    'Black/African American'
    """
    if text.isascii():
        return " ".join(text.split())
    return " ".join("".join(sign for sign in unicodedata.normalize("NFC", text) if sign not in "\u200b\u2060\ufeff").split())


def sense(text: str) -> str:
    """What two spellings of one value have in common: case, form of characters, and the way a number is written do not count.

    >>> sense("MALE ") == sense("male"), sense("1.0") == sense("1"), sense("1a") == sense("01a")
    (True, True, False)
    """
    if not text.isascii():
        text = "".join(_plain_form(sign) for sign in unicodedata.normalize("NFC", text)).translate(_SIGNS)
    text = tidy(text)
    return _number(text) or unicodedata.normalize("NFC", _GAPS.sub("", text).casefold())


def _plain_form(sign: str) -> str:
    if unicodedata.category(sign) == "Cf":  # marks of direction, joiners, soft hyphens: not seen
        return ""
    form, _, codes = unicodedata.decomposition(sign).partition(" ")
    return "".join(chr(int(code, 16)) for code in codes.split()) if form in _COMPATIBLE else sign


def _number(text: str) -> str:
    """A whole cell that is a number, in one form; empty for any other text. No float is made: long ids stay apart."""
    if not _NUMBER.fullmatch(text):
        return ""
    mantissa, _, exponent = text.lower().partition("e")
    whole, _, rest = mantissa.lstrip("+-").partition(".")
    digits = (whole + rest).lstrip("0")
    power = int(exponent or 0) - len(rest) + len(digits) - len(digits.rstrip("0"))
    digits = digits.rstrip("0")
    sign = "-" if text[0] == "-" and digits else ""
    return f"\0{sign}{digits or '0'}e{power if digits else 0}"  # which no text is: "1e2" is no number here, but may be a name


def same_name(name: str, choices: Iterable[str]) -> list[str]:
    """The choices that are other spellings of ``name``."""
    wanted = sense(name)
    return [choice for choice in choices if choice != name and sense(choice) == wanted]


def look_alike(one: str, other: str) -> bool:
    """Whether two names may mean one group: one abbreviates the other, or they differ in what parts their words.

    >>> look_alike("F", "female"), look_alike("non_white", "nonwhite"), look_alike("II", "III")
    (True, True, False)
    """
    short, long = sorted((sense(one), sense(other)), key=len)
    if len(short) <= _ABBREVIATION and short.isalpha():
        return len(long) > _ABBREVIATION and long.startswith(short) and not _ROMAN.fullmatch(long)
    plain = [re.sub(r"(?<=\w)[\s_./,-]+(?=\w)", "", text) for text in (short, long)]
    return plain[0] == plain[1]


def joint_label(parts: Sequence[str]) -> str:
    """One label of a joint group, ``male x old``; two different groups never have the same.

    >>> joint_label(["male", "old"]), joint_label(["a x b", "c"])
    ('male x old', '"a x b" x c')
    """
    if len(parts) < 2:
        return "".join(parts)
    return JOINT.join(in_quotes(part) if part[:1] == '"' or (part != "x" and JOINT in f" {part} ") else part for part in parts)


def in_quotes(name: str) -> str:
    """The name in double quotes, with a backslash before quotes and backslashes inside."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quoted(name: str, *, column: bool = False) -> str:
    """A group's or a column's name as a mix or a question takes it: in double quotes where a sign of it has a meaning there.

    >>> quoted("Black/African American"), quoted(">=60")
    ('"Black/African American"', '>=60')
    """
    odd = any(sign in name for sign in (_COLUMN_SIGNS if column else _MIX_SIGNS))
    return in_quotes(name) if odd or not name or name != name.strip() else name


def condition_is(column: str, value: str) -> str:
    """``tumour=yes`` as a question has it."""
    return f"{quoted(column, column=True)}={quoted(value)}"


def unquoted(text: str) -> str:
    """The name that ``quoted`` wrote; text without quotes is trimmed and stays as it is.

    Raises:
        ValueError: text behind the closing quote, or no closing quote.
    """
    text = text.strip()
    if text[:1] != '"':
        return text
    if not _is_closed(text):
        raise ValueError(f"no closing quote in {text}")
    if _end_of_quotes(text, 0) < len(text):
        raise ValueError(f"text behind the closing quote in {text}")
    return re.sub(r'\\([\\"])', r"\1", text[1:-1])


def cut(text: str, sign: str, most: int = -1) -> list[str]:
    """The parts of a text between signs that stand outside of quotes, at most ``most`` cuts from the left.

    A quote opens where a part begins: behind any sign of a mix, or at the start. Elsewhere it is a character like others.

    >>> cut('"a,b":0.5,c:0.5', ",")
    ['"a,b":0.5', 'c:0.5']
    """
    parts: list[str] = []
    start = 0
    for place in _outside(text):
        if text[place] == sign and (most < 0 or len(parts) < most):
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def cut_last(text: str, sign: str) -> tuple[str, str, str]:
    """``str.rpartition`` by a sign that stands outside of quotes."""
    places = [place for place in _outside(text) if text[place] == sign]
    return (text[: places[-1]], sign, text[places[-1] + 1 :]) if places else ("", "", text)


def _outside(text: str) -> Iterator[int]:
    """The places of a text that are not inside quotes."""
    place, opens = 0, True
    while place < len(text):
        sign = text[place]
        if sign == '"' and opens:
            place = _end_of_quotes(text, place)
            opens = False
            continue
        yield place
        opens = sign in ",;:/*=" or (opens and sign.isspace())
        place += 1


def _end_of_quotes(text: str, start: int) -> int:
    """The place behind the quote that closes the one at ``start``; the end of the text where none does."""
    found = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL).match(text, start)
    return found.end() if found else len(text)


def _is_closed(text: str) -> bool:
    return re.match(r'"(?:[^"\\]|\\.)*"', text, re.DOTALL) is not None
