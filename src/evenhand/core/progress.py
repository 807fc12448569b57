"""Progress of long work: a rich bar on a terminal, a plain line every tenth of the way elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


def warn(text: str) -> None:
    """A line on standard error; brackets in it, which prompts and paths may have, are shown as they are."""
    console.print(f"[yellow]warning[/]: {escape(text)}", highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line of information on standard error."""
    console.print(escape(text), highlight=False, soft_wrap=True)


class Bar:
    """Counts work done; what is shown depends on where standard error goes."""

    def __init__(self, label: str, total: int, done: int, progress: Progress | None) -> None:
        self.label, self.total, self.done = label, max(total, 1), done
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=done) if progress else None
        self._tenths = 10 * done // self.total

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more units; ``note`` is a short figure shown beside the bar, such as a loss."""
        self.done += n
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, advance=n, description=f"{self.label} {note}".rstrip())
        elif 10 * self.done // self.total > self._tenths:
            self._tenths = 10 * self.done // self.total
            print(f"{self.label}: {self.done}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def track(label: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Bar]:
    """Show progress of ``total`` units of work; ``quiet`` (ranks other than the first) shows nothing."""
    if quiet or not console.is_terminal:
        bar = Bar(label, total, done, None)
        if quiet:
            bar._tenths = 11
        yield bar
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bar(label, total, done, progress)
