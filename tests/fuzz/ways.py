"""The two ways in which a case is run: in this process, and through the real command."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenhand.core.errors import UserError

CPU_LIMIT = 10  # seconds of computing that a case may take
START = 15  # and what importing torch takes on a slow machine
WAIT = 400  # seconds in all, on a machine that does other things as well


@dataclass(frozen=True)
class Outcome:
    """How a command ended: 0, or 1 with its message; ``crash`` is what no command may end with."""

    code: int
    message: str = ""
    crash: str = ""


Way = Callable[[str, list[str], dict[str, Any]], Outcome]  # command, its arguments, its options


def in_process(command: str, arguments: list[str], options: dict[str, Any]) -> Outcome:
    """Call what the command calls."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
            if command == "import":
                from evenhand.cohorts.sources.importing import ImportSettings, import_cohort

                import_cohort("table", Path(arguments[0]), Path(arguments[1]), ImportSettings.resolve(**options))
            else:
                from evenhand.generation.generate import GenerateSettings, generate

                generate(GenerateSettings.resolve(**options))
    except UserError as error:
        return Outcome(1, str(error))
    except Exception:
        return Outcome(2, crash=_told(traceback.format_exc()))
    return Outcome(0)


def by_command(command: str, arguments: list[str], options: dict[str, Any]) -> Outcome:
    """Run the ``evenhand`` that is installed beside this Python."""
    program = shutil.which("evenhand", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "evenhand is not installed"
    words = ["cohort", "import", "table", *arguments] if command == "import" else [command, *arguments]
    line = [program, *words, *(_option(name, value) for name, value in options.items())]
    before = _computed()
    try:
        done = subprocess.run(line, capture_output=True, timeout=WAIT, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Outcome(3, crash=f"hang: more than {WAIT} s")
    if _computed() - before > CPU_LIMIT + START:
        return Outcome(3, crash=f"hang: {_computed() - before:.0f} s of computing")
    errors = done.stderr.decode("utf-8", errors="replace")
    if "Traceback" in errors or done.returncode < 0:
        return Outcome(2, crash=f"exit {done.returncode}, {_told(errors)}")
    lines = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
    if done.returncode == 1 and (len(lines) != 1 or not errors.rstrip("\n").endswith(lines[0])):
        return Outcome(2, crash=f"exit 1, and the last line is no error: {errors[-300:]!r}")
    return Outcome(done.returncode, lines[0] if lines else errors)


def _told(text: str) -> str:
    """The end of a traceback, its last line first."""
    lines = [line.strip() for line in text.strip().splitlines()]
    ours = [line for line in lines if line.startswith("File") and "evenhand" in line]
    return f"traceback: {lines[-1][:300]} | {' | '.join(ours[-1:] + lines[-7:-1])}"


def _option(name: str, value: Any) -> str:
    text = ",".join(value) if isinstance(value, list) else str(value)
    return f"--{name.replace('_', '-')}={text}"


def _computed() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
