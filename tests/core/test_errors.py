"""Errors: one line, near names."""

import pytest

from evenhand.core.errors import UserError, did_you_mean


def test_a_message_is_one_line() -> None:
    assert str(UserError("first\n  second\tthird ")) == "first second third"


@pytest.mark.parametrize("sign", ["\x1b", "\x07", "\x00", "\x9b", "\u202e", "\ud800", "\uffff"])
def test_a_message_moves_no_cursor_and_can_be_printed(sign) -> None:
    assert str(UserError(f"labels.csv row 2: {sign}[2Jna\u00efve")) == "labels.csv row 2: ?[2Jna\u00efve"


@pytest.mark.parametrize(
    ("name", "choices", "text"),
    [
        ("sxe", ["age", "sex"], "did you mean 'sex'? There is: age, sex"),
        ("colour", ["age", "sex"], "There is: age, sex"),
        ("ages", ["age", "stage"], "did you mean 'age' or 'stage'? There is: age, stage"),
        ("x", [], "There is: nothing"),
    ],
)
def test_did_you_mean(name: str, choices: list[str], text: str) -> None:
    assert did_you_mean(name, choices) == text
