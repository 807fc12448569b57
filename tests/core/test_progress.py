"""Progress off a terminal: a line a tenth, and silence where asked."""

import io

import pytest
from rich.console import Console

from evenhand.core import progress
from evenhand.core.progress import track, warn


def test_lines_off_a_terminal(capsys) -> None:
    with track("work", 20) as bar:
        for _ in range(20):
            bar.advance(note="loss 1")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"work: {n}/20 loss 1" for n in range(2, 21, 2)]


def test_a_warning_shows_what_a_user_wrote(capsys) -> None:
    warn("a lesion [arrow] in [bold]white[/b], data/[old]/cohort")
    assert capsys.readouterr().err == "warning: a lesion [arrow] in [bold]white[/b], data/[old]/cohort\n"


def test_resumed_work_says_only_what_is_left(capsys) -> None:
    with track("work", 10, done=8) as bar:
        bar.advance(2)
    assert capsys.readouterr().err == "work: 10/10\n" and bar.done == 10


@pytest.mark.parametrize("total", [0, 3])
def test_quiet_and_empty(capsys, total) -> None:
    with track("work", total, quiet=True) as bar:
        for _ in range(total):
            bar.advance()
    assert capsys.readouterr().err == "" and bar.done == total


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100))
    with track("work", 4) as bar:
        bar.advance(3, note="loss 0.25")
    assert "work loss 0.25" in screen.getvalue() and "3/4" in screen.getvalue()
