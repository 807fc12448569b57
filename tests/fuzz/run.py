"""Run many cases: ``python -m fuzz.run --count 20000 --seed 0``, in the folder ``tests`` or with it on PYTHONPATH.

Cases run in forked workers, or with ``--command`` through the real ``evenhand``. A case that computes for more than 10 s, or waits for
more than 60 s, is ended and counts as a hang. One line for each failure names its kind and seed: ``--only tables:123`` runs that alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
for _library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{_library}_VERBOSITY", "error")

SHARES = {"tables": 0.70, "images": 0.225, "models": 0.075}
CHUNK = 100
WAIT = 60.0
MEMORY = 3 << 30  # bytes that a worker may allocate; a case that needs more ends in a MemoryError


class Failure(NamedTuple):
    """A case that went wrong."""

    kind: str
    seed: int
    fault: str


def check(kind: str, seed: int, folder: Path, *, command: bool = False) -> str | None:
    """Run one case below ``folder``, which must be empty; what is wrong, or None."""
    from fuzz import images, models, tables
    from fuzz.ways import by_command, in_process

    return {"tables": tables, "images": images, "models": models}[kind].check(seed, folder, by_command if command else in_process)


def kept_seeds() -> list[tuple[str, int]]:
    """Seeds of cases that once failed."""
    lines = Path(__file__).with_name("seeds.txt").read_text(encoding="utf-8").splitlines()
    return [(line.split()[0], int(line.split()[1])) for line in lines if line.strip() and not line.startswith("#")]


def cases(kinds: Sequence[str], count: int, seed: int) -> list[tuple[str, int]]:
    """The cases of a run, by kind."""
    total = sum(SHARES[kind] for kind in kinds)
    return [(kind, seed + number) for kind in kinds for number in range(round(count * SHARES[kind] / total))]


def run(todo: Sequence[tuple[str, int]], *, command: bool = False, keep: Path | None = None) -> Iterator[Failure | None]:
    """Each case in turn: None where it went right."""
    waiting = list(todo)
    while waiting:
        chunk = [case for case in waiting[:CHUNK] if case[0] == waiting[0][0]]
        done = 0
        for failure in _chunk(chunk, command=command, keep=keep):
            done += 1
            yield failure
        waiting = waiting[done:]


def _chunk(chunk: Sequence[tuple[str, int]], *, command: bool, keep: Path | None) -> Iterator[Failure | None]:
    """The cases of one worker, up to the first that ends it."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as scratch:
        ours, theirs = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(ours)
            _work(chunk, Path(scratch), os.fdopen(theirs, "w"), command=command, keep=keep)
        os.close(theirs)
        try:
            yield from _results(chunk, worker, os.fdopen(ours), 8 * WAIT if command else WAIT)
        finally:
            if _ended(worker) is None:
                os.kill(worker, signal.SIGKILL)
                os.waitpid(worker, 0)


def _results(chunk: Sequence[tuple[str, int]], worker: int, file: IO[str], wait: float) -> Iterator[Failure | None]:
    with file:
        for kind, seed in chunk:
            ready, _, _ = select.select([file.fileno()], [], [], wait)
            line = file.readline() if ready else ""
            if not line:
                yield Failure(kind, seed, _how_it_ended(worker) if ready else f"hang: no answer in {wait:.0f} s")
                return
            fault = json.loads(line)
            yield Failure(kind, seed, fault) if fault else None


def _how_it_ended(worker: int) -> str:
    for _ in range(100):
        status = _ended(worker)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return "hang: more than 10 s of computing" if code == -signal.SIGPROF else f"the worker ended with {code}"
        time.sleep(0.05)
    return "the worker closed its pipe"


_STATUS: dict[int, int] = {}


def _ended(worker: int) -> int | None:
    """The status of a worker that has ended."""
    if worker not in _STATUS:
        found, status = os.waitpid(worker, os.WNOHANG)
        if found:
            _STATUS[worker] = status
    return _STATUS.get(worker)


def _work(chunk: Sequence[tuple[str, int]], scratch: Path, pipe: IO[str], *, command: bool, keep: Path | None) -> None:
    """A worker's life: its answers are one line of JSON for each case."""
    from fuzz.ways import CPU_LIMIT

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for kind, seed in chunk:
        folder = scratch / "case"
        folder.mkdir()
        signal.setitimer(signal.ITIMER_PROF, 0 if command else CPU_LIMIT)
        try:
            fault = check(kind, seed, folder, command=command)
        except BaseException as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
            fault = f"the generator itself failed: {type(error).__name__}: {error} ({where})"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps(fault), file=pipe, flush=True)
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow it")
    parser.add_argument("--kind", choices=sorted(SHARES), action="append")
    parser.add_argument("--command", action="store_true", help="through the real command")
    parser.add_argument("--only", metavar="KIND:SEED", action="append", help="these cases alone")
    parser.add_argument("--keep", type=Path, help="copy the folder of each case here")
    parser.add_argument("--kept", action="store_true", help="the seeds of seeds.txt")
    asked = parser.parse_args(arguments)
    only = [(text.split(":")[0], int(text.split(":")[1])) for text in asked.only or ()]
    todo = only or (kept_seeds() if asked.kept else cases(asked.kind or list(SHARES), asked.count, asked.seed))
    _preload({kind for kind, _ in todo}, command=asked.command)
    began, failures, seen = time.time(), Counter[str](), Counter(kind for kind, _ in todo)
    for number, failure in enumerate(run(todo, command=asked.command, keep=asked.keep), start=1):
        if failure is not None:
            failures[failure.kind] += 1
            print(f"{failure.kind}:{failure.seed} {failure.fault}", flush=True)
        if number % 1000 == 0:
            print(f"... {number} cases, {failures.total()} failures, {time.time() - began:.0f} s", flush=True)
    for kind, number in seen.items():
        print(f"{kind}: {number} cases {'through the command' if asked.command else 'in process'}, {failures[kind]} failures")
    print(f"all: {len(todo)} cases, {failures.total()} failures, {time.time() - began:.0f} s")
    return 1 if failures else 0


def _preload(kinds: set[str], *, command: bool) -> None:
    """Import once what every worker needs."""
    import fuzz.images
    import fuzz.tables

    import evenhand.cohorts.sources.importing

    if "models" in kinds:
        import fuzz.models

        fuzz.models.base()
        if not command:
            import evenhand.generation.generate  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
