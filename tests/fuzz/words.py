"""What cells of odd tables contain: groups in their spellings, words for missing, captions and names of columns."""

from __future__ import annotations

import random
import unicodedata

MISSING = (
    *("", "nan", "NaN", "NA", "n/a", "N/A", "#N/A", "<NA>", "null", "NULL", "UNK", "unknown", "Unknown", "not reported", "--", "NaT"),
    *("?", "-1", "Not available", "none", "None", "unspecified"),
)
PAIRS = (  # two or more values of one column, each with spellings that mean the same
    (("male", "Male", "MALE", " male"), ("female", "Female", "FEMALE", "female ")),
    (("1", "1.0", "1.00"), ("0", "0.0")),
    (("2", "2.0"), ("10", "10.0"), ("3",)),
    (("<60",), (">=60",)),
    (("< 60",), (">= 60",), ("60-70",)),
    (("Black/African American", "black/african american"), ("White",), ("Asian/Pacific Islander",)),
    (("yes", "Yes", "YES"), ("no", "No", "NO")),
    (("True", "true", "TRUE"), ("False", "false")),
    (("positive",), ("negative",), ("equivocal",)),
    (("Caf\u00e9", "Cafe\u0301"), ("Gru\u0308n", "Gr\u00fcn")),
    (("\u5973", "\u5973 "), ("\u7537",)),
    (("\U0001f469\u200d\u2695\ufe0f",), ("\U0001f468",)),
    (("type: I",), ("type: II",), ("type: I/II",)),
    (("stage=1",), ("stage=2",), ("stage<3",)),
    (("it's",), ("its",)),
    (("[bold]x[/bold]",), ("[red]",), ("[/bold]",)),
    (("%s",), ("{0}",), ("$HOME",)),
    (("=1+1",), ("@SUM(A1)",), ("+1 group",)),
    (("CON",), ("nul.txt",), ("a..b",)),
    (("a*b",), ("a;b",), ("a:b",)),
    (("1e400",), ("inf",), ("-inf",)),
    (("1_000",), ("0x10",)),
    (("\u0661",), ("\u00b2",), ("x",)),
    (("9" * 400,), ("8",)),
    (("i" * 300,), ("i" * 299,)),
    (("\u0130stanbul",), ("izmir",)),
    (("Stra\u00dfe",), ("Weg",)),
    (("normal",), ("no tumor",), ("tumor",)),
    (("nonbinary",), ("nancy",), ("native",)),
    (("train",), ("test",)),
    (("unit\u00b5",), ("unit\u2126",)),
    (("058Y",), ("> 89",), ("90+",)),
    (("a\u00a0b",), ("c\u3000d",)),
)
COMMAS = ((("a,b",), ("a, b, c",)), (("18,5-25",), ("25,5+",)))
QUOTES = ((('say "hi"',), ("say hi",)), (("5'11\"",), ("6'0\"",)), (('"A"',), ('"B"',)))
BREAKS = ((("up\nper",), ("low\nner",)),)
CONTROLS = ((("a\x07b",), ("c\x1bd",)), (("x\x00y",), ("z",)), (("p\u202eq",), ("r\u200bs",)), (("\ud800",), ("t",)))
LATIN = (
    (("M\u00e4nnlich", "m\u00e4nnlich"), ("Weiblich",)),
    (("H\u00e9t\u00e9rog\u00e8ne",), ("Homog\u00e8ne",)),
    (("\u00d8st",), ("\u00c5s",)),
)
RESERVED = ("image", "subject_id", "split", "prompt", "sha256", "image_id", "seed", "model", "licence", "steps", "guidance_scale")
GROUP_COLUMNS = (
    "sex",
    "Sex",
    "race",
    "age group",
    "Patient Gender",
    "GESCHLECHT",
    "g\u00eanero",
    "group.1",
    "sex_at_birth",
    "x" * 80,
    "class",
)
IMAGE_COLUMNS = ("image", "file_name", "image_path", "path", "filename", "file")
EXTRA_COLUMNS = ("note", "Unnamed: 0", "index", "a b", "#", "Dx (main)", "\u00e9tat", "height [cm]", "weight", "__x", "0", "comment")
CAPTIONS = (
    "Chest film {i} with effusion",
    "film {i}: a 45-year-old woman",
    "  film   {i} ",
    "[tag] film {i} {{brace}}",
    "film {i} \u2013 na\u00efve \u0394 \u00b5m",
    "film {i} <NA> nan",
    "film {i} " + "word " * 120,
)
LATIN_CAPTIONS = ("film {i}: R\u00f6ntgen, \u00bd Dosis", "film {i} \u2013 \u20ac \u201cquoted\u201d")


def clean(text: str) -> str:
    """A cell as two people would call it the same: without signs that cannot be seen, quotes around it and several blanks."""
    shown = "".join(" " if sign.isspace() else sign for sign in text)
    shown = "".join(sign for sign in shown if unicodedata.category(sign) not in ("Cc", "Cf", "Cs"))
    return " ".join(unicodedata.normalize("NFC", shown).replace('"', " ").split())


def skeleton(text: str) -> str:
    """The letters that any 8-bit code has."""
    return "".join(sign for sign in clean(text) if sign.isascii() and sign.isalnum())


def with_commas(draw: random.Random) -> str:
    """A number that a German spreadsheet writes."""
    return f"{draw.randrange(1, 300)},{draw.randrange(1, 10)}"
