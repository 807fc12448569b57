"""Errors: one line, near names."""

import pytest

from evenhand.core.errors import UserError, did_you_mean


def test_a_message_is_one_line() -> None:
    assert str(UserError("first\n  second\tthird ")) == "first second third"


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
