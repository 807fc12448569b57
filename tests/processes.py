"""Real processes for tests: forked from a server that has imported torch once, so each starts in a moment."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PRELOAD = ["evenhand.cli", "evenhand.training.loop", "evenhand.generation.generate", "evenhand.engine.features"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: a negative code is the signal that killed it."""

    code: int
    output: str


def run(target: Callable[..., None], *args: Any, log: Path, env: dict[str, str] | None = None) -> Ended:
    """Run ``target(*args)`` in a process of its own and wait for its end."""
    return _end(_start(target, args, log, env or {}), log)


def run_ranks(target: Callable[..., None], *args: Any, log: Path, world: int = 2) -> list[Ended]:
    """Run ``target(*args)`` in ``world`` processes that talk over gloo, as ``accelerate launch --cpu`` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    logs = [log.with_name(f"{log.name}-{rank}") for rank in range(world)]
    started = [
        _start(target, args, logs[rank], {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
        for rank in range(world)
    ]
    return [_end(process, file) for process, file in zip(started, logs, strict=True)]


def command(arguments: list[str]) -> None:
    """The command line, as a target."""
    from evenhand.cli import main

    sys.argv = ["evenhand", *arguments]
    main()


def _start(target: Callable[..., None], args: tuple, log: Path, env: dict[str, str]) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    cache = {"EVENHAND_CACHE": os.environ["EVENHAND_CACHE"]}  # the server may have started under another
    process = context.Process(target=_enter, args=(target, args, str(log), {**cache, **env}))
    process.start()
    return process


def _enter(target: Callable[..., None], args: tuple, log: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    target(*args)


def _end(process: multiprocessing.process.BaseProcess, log: Path) -> Ended:
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"a process did not end: {log.read_text()}")
    return Ended(process.exitcode, log.read_text())
