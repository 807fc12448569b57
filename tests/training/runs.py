"""Runs that are killed, watched and compared, for the tests of training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from evenhand.engine.checkpoints import Checkpoint, load_latest
from evenhand.training.data import TrainingData
from evenhand.training.loop import train
from evenhand.training.settings import TrainResult, TrainSettings
from evenhand.training.state import TrainingState


def settings_for(model: Path, cohort: Path, out: Path, **changes: Any) -> TrainSettings:
    """Forty small steps; every checkpoint is kept."""
    base = {"steps": 40, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 5, "keep_checkpoints": 9, "log_every": 5}
    return TrainSettings(model=str(model), cohort=cohort, out=out, **{**base, **changes})


@contextmanager
def watched(rows: dict[int, list[int]]) -> Iterator[None]:
    """Note which samples each step saw."""
    batch = TrainingData.batch

    def noted(data: TrainingData, step: int, odds: Any) -> Any:
        pieces = batch(data, step, odds)
        rows[step] = [int(row) for piece in pieces for row in piece.rows]
        return pieces

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingData, "batch", noted)
        yield


@contextmanager
def stopped_after(step: int, stop: Any) -> Iterator[None]:
    """Call ``stop`` when ``step`` steps are done, before anything of the step is saved."""
    count = TrainingState.count

    def counted(state: TrainingState, finite: bool, limit: int) -> None:
        count(state, finite, limit)
        if state.step == step:
            stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "count", counted)
        yield


def train_until_killed(settings: dict[str, Any], step: int, seen: str) -> None:
    """In a process of its own: train, write down the batches, and die by SIGKILL after ``step`` steps."""
    rows: dict[int, list[int]] = {}

    def die() -> None:
        Path(seen).write_text(repr(rows))
        os.kill(os.getpid(), signal.SIGKILL)

    with watched(rows), stopped_after(step, die):
        train(TrainSettings(**settings))


class Crash(Exception):
    """What stands for a crash within this process."""


def train_with_crash(settings: TrainSettings, step: int) -> TrainResult:
    """Train, crash after ``step`` steps, and go on."""

    def crash() -> None:
        raise Crash

    with stopped_after(step, crash), pytest.raises(Crash):
        train(settings)
    return train(settings.model_copy(update={"resume": True}))


def last_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint of a run."""
    checkpoint = load_latest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def assert_equal(a: Checkpoint, b: Checkpoint) -> None:
    """Every tensor the same to the bit, and every fact."""
    assert a.step == b.step and a.facts == b.facts
    assert a.tensors.keys() == b.tensors.keys() and a.tensors.keys() - {"averages"} == {"model", "optimizer"}  # ema 0 keeps none
    for part, tensors in a.tensors.items():
        assert tensors and tensors.keys() == b.tensors[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.tensors[part][name]), f"{part}: {name}"
