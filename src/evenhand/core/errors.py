"""Errors a user can cause: one line that says what is wrong, where, and what to do."""

import difflib
from collections.abc import Callable, Iterable

from evenhand.core.names import same_name


class UserError(Exception):
    """Wrong input. The message is one line: what is wrong, where (file, row, value), what to do.

    Signs that cannot be printed, which damaged files put into names and cells, are shown as ``?``.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if line.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in line))


def did_you_mean(name: str, choices: Iterable[str], show: Callable[[str], str] = str) -> str:
    """Name what there is, nearest names first: ``did you mean 'sex'? There is: age, sex``; each as ``show`` writes it."""
    known = [str(choice) for choice in choices]
    near = same_name(str(name), known)[:3] or difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(show(n)) for n in near)}? " if near else ""
    return f"{hint}There is: {', '.join(map(show, known)) if known else 'nothing'}"
