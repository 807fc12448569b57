"""Cells: missing words, spellings of one value, groups that a value means."""

import pytest

from evenhand.cohorts.values import BadRow, Spellings, counted, identity, is_missing, meant, translate
from evenhand.core.names import sense


@pytest.mark.parametrize(
    "word",
    [
        *("", " ", "nan", "NaN", "NA", "n/a", "N.A.", "#N/A", "<NA>", "NaT", "None", "nil", "NULL", "UNK", "Unknown", "not reported"),
        *("Not_Reported", "[Not Available]", "(blank)", "missing", "--", "'--", ".", "-", "\u2013", "?", "???", "-1", "-1.0", "\u22121"),
        *("\\N", "<null>", "not\u00a0available", "ｎａ", "#DIV/0!", "Patient declined to answer", "Declined"),
    ],
)
def test_missing_words(word) -> None:
    assert is_missing(word) and identity(word) == ""


@pytest.mark.parametrize(
    "word",
    ["no", "0", "0.0", "F", "+", "<60", ">=60", "normal", "other", "-2", "-10", "Nauru", "N", "a-b", "[a]", "?x"],
)
def test_words_that_are_not_missing(word) -> None:
    assert not is_missing(word) and not is_missing(word, finding=True) and identity(f" {word} ") == word


@pytest.mark.parametrize("word", ["none", "None", "NONE ", "nil"])
def test_none_is_a_finding_and_no_attribute(word) -> None:
    assert is_missing(word) and not is_missing(word, finding=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1.0"), ("1", "01.00"), ("-0.0", "0"), (".5", "0.50"), ("1e+02", "100"), ("True", "TRUE"), ("e\u0301", "\u00e9"), ("Ｍ１", "m1"),
     ("non\u2011white", "Non-White"), ("a\u00a0b", "A  b"), ("\u2163", "IV"),
     (">= 60", "\u226560"), ("18 - 30", "18\u201330"), ("< 1", "<1")],
)  # fmt: skip
def test_spellings_of_one_value(one, other) -> None:
    assert sense(one) == sense(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "1a"), ("1", "10"), ("1", "-1"), ("<60", ">60"), (">60", ">=60"), ("x\u00b2", "x2"), ("1e2", "100"), ("a b", "ab"), ("1/2", "1"),
     ("1" * 40, "1" * 39 + "2"), ("a_b", "a b"), ("", "0"), ("True", "1")],
)  # fmt: skip
def test_values_that_stay_apart(one, other) -> None:
    assert sense(one) != sense(other)


def test_the_most_frequent_spelling_and_of_two_the_first() -> None:
    found = Spellings()
    for value in ("B", "b", "a", "A", "A", "unk", ""):
        found.add(value)
    assert [found.name(value) for value in ("b", "a", "A ", "UNK", "c")] == ["B", "A", "A", None, "c"]
    assert found.joined() == ["'B' (1), 'b' (1) -> 'B'", "'A' (2), 'a' (1) -> 'A'"]
    assert counted(found.words()) == "'unk' (1), empty (1)"
    alone = Spellings()
    alone.add("")
    assert alone.words().total() == 0 and alone.joined() == [] and alone.known == {}  # an absent group is none


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["True", "1", "1.0", "FALSE", "0", "True"], ["True", "True", "True", "FALSE", "FALSE", "True"]),
        (["0", "1", "1"], ["0", "1", "1"]),
        (["True", "1", "2"], ["True", "1", "2"]),  # a column of counts
    ],
)
def test_numbers_and_words_for_true_and_false_are_one_where_nothing_else_stands(values, names) -> None:
    found = Spellings()
    for value in values:
        found.add(value)
    assert [found.name(value) for value in values] == names


def test_groups_that_look_alike_are_told_and_stay() -> None:
    found = Spellings()
    for value in ("M", "male", "F", "female", "II", "III", "other"):
        found.add(value)
    assert found.notes("sex") == ["sex: 'M' and 'male', 'F' and 'female' stay groups of their own; write them alike where they are one"]
    assert found.name("M") == "M"


def test_the_group_that_a_value_means() -> None:
    groups = ["male", "female", "1"]
    assert [meant(value, groups) for value in ("male", "MALE", "1.0", "mal", "")] == ["male", "male", "1", None, None]
    assert meant("MALE", ["male", "Male"]) is None and meant("Male", ["male", "Male"]) == "Male"


def test_translate() -> None:
    groups = {"0": "none", "1": "mass", "na": "other"}
    assert [translate("mass", value, groups) for value in ("0.0", " 1 ", "1.00", "NA", "n/a", "")] == [
        *("none", "mass", "mass", "other", "unknown", "unknown")
    ]
    with pytest.raises(BadRow, match="mass '2' is no known group; There is: 0, 1, na"):
        translate("mass", "2", groups)
