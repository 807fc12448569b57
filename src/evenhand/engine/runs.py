"""What every long run shares: a folder of its own, settings that hold over a resumption, and an orderly stop."""

from __future__ import annotations

import signal
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import checkpoint_folders

CONFIG_FILE = "config.yaml"


def check_folder(settings: Settings, resumable: Collection[str]) -> None:
    """Whether a run may begin in ``settings.out``, or go on there with ``--resume``.

    Args:
        settings: with ``out`` and ``resume``.
        resumable: settings that may differ when it goes on.

    Raises:
        UserError: the folder holds something else, or settings differ that would change the result.
    """
    given: Any = settings
    out: Path = given.out
    if (out / CONFIG_FILE).is_file():
        _same_run(settings, out, resumable, resume=given.resume)
    elif [file for file in out.iterdir() if not file.name.startswith(".")]:
        raise UserError(f"{out}: not empty, and not a run; choose another --out")


def _same_run(settings: Settings, out: Path, resumable: Collection[str], *, resume: bool) -> None:
    if not resume:
        done = checkpoint_folders(out / "checkpoints")
        at = f" at step {int(done[-1].name.removeprefix('step-'))}" if done else ""
        raise UserError(f"{out}: holds a run{at} already; go on with --resume, or choose another --out")
    config = out / CONFIG_FILE
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    began, now = {**defaults, **yaml.safe_load(config.read_text())}, settings.model_dump(mode="json")  # a setting may be newer than the run
    for key, value in now.items():
        if key not in resumable and began[key] != value:
            raise UserError(
                f"{config}: --resume with {key} = {value!r}, but the run began with {began[key]!r}; keep it, or choose another --out"
            )


def any_rank(flag: bool, accelerator: Accelerator) -> bool:
    """Whether ``flag`` is set on any process; the answer is the same on all."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


class StopSignal:
    """SIGTERM and SIGINT set a flag; the loop saves at the end of the step."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> StopSignal:
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever owns it handles signals
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True
