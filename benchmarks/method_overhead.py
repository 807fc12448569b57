"""What a method costs a step, beside plain training, measured alternately on the same model, batches and machine.

    python benchmarks/method_overhead.py --work runs/overhead

Every method makes one step in turn, in one process and in an order that rotates, so that a machine that is slow for a while is slow for
all. Processor time is summed over windows of as many steps as one proposal of the reference form serves; a method's overhead is the
ratio of its windows to uniform's, with the standard error over windows. Steps of arms that the robust form gives up are not overhead of
a step: they are stated as a share of all computed steps.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from fair_training import METHODS

from evenhand.cohorts.cohort import SCHEMA_FILE
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.engine.devices import accelerator
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.data import TrainingData
from evenhand.training.log import TrainingLog
from evenhand.training.loop import training_step
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState

WINDOW = 30  # steps: one proposal of the reference form


def main() -> None:
    """Make what is missing, measure, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "cohort" / SCHEMA_FILE).exists():
        write_phantoms("fundus", work / "cohort", n=1000, mix="race=white:0.77,black:0.15,asian:0.08")
    if not (work / "model").exists():
        init_tiny_latent(TinySettings(cohort=work / "cohort", out=work / "model", clip_steps=2, autoencoder_steps=2))
    runs = {name: _run(work, name, changes, options.batch_size) for name, changes in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for turn in range((1 + options.windows) * WINDOW):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            times[name].append(_step(*runs[name]))
    windows = {name: np.array(found[WINDOW:]).reshape(-1, WINDOW).sum(axis=1) for name, found in times.items()}  # the first one warms up
    ratios = {name: found / windows["uniform"] for name, found in windows.items()}
    robust = runs["bayesian_robust"][1].method
    schedule = robust.schedule(1500)  # type: ignore[attr-defined]
    payload = {
        "window": WINDOW, "batch_size": options.batch_size,
        "step_seconds": {name: float(found.sum()) / found.size / WINDOW for name, found in windows.items()},
        "overhead": {name: float(windows[name].sum() / windows["uniform"].sum()) - 1 for name in windows},
        "standard_error": {name: float(found.std(ddof=1) / np.sqrt(len(found))) for name, found in ratios.items()},
        "ratios": {name: found.tolist() for name, found in ratios.items()},
        "lost_share_of_a_run_of_1500": len(schedule) * robust.options.arm_steps / 1500,  # type: ignore[attr-defined]
    }  # fmt: skip
    print(write_result("method_overhead", payload, seeds=[0]).read_text())


def _run(work: Path, name: str, changes: dict[str, Any], batch_size: int) -> tuple[TrainSettings, TrainingState, TrainingData, TrainingLog]:
    device = accelerator("no")
    settings = TrainSettings(
        model=str(work / "model"), cohort=work / "cohort", out=work / name, attributes=["race"], batch_size=batch_size,
        learning_rate=1e-4, **changes,
    )  # fmt: skip
    state = TrainingState.create(settings, device)
    data = TrainingData.prepare(settings, state, device)
    settings.out.mkdir(exist_ok=True)
    return settings, state, data, TrainingLog(settings.out / "log.jsonl", data.groups, state.step, active=True)


def _step(settings: TrainSettings, state: TrainingState, data: TrainingData, log: TrainingLog) -> float:
    """Processor seconds of one step."""
    device, start = accelerator("no"), time.process_time()
    training_step(settings, device, state, data, state.method.odds(state.step), log)
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
