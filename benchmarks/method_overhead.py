"""What a method costs a step, beside plain training, measured alternately on the same model, batches and machine.

    python benchmarks/method_overhead.py --work runs/overhead

Each round runs a window of steps of every method in turn, in one process, and takes the processor time of each window; a method's
overhead is the median over rounds of its ratio to uniform. Steps of arms that the robust form gives up are not overhead of a step: they
are stated as a share of all computed steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

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
    parser.add_argument("--rounds", type=int, default=7)
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
    for turn in range(options.rounds + 1):
        for name in list(runs) if turn % 2 else list(runs)[::-1]:
            times[name].append(_window(*runs[name]))
    times = {name: found[1:] for name, found in times.items()}  # the first round warms up
    ratios = {name: [own / plain for own, plain in zip(found, times["uniform"], strict=True)] for name, found in times.items()}
    robust = runs["bayesian_robust"][1].method
    schedule = robust.schedule(1500)  # type: ignore[attr-defined]
    payload = {
        "window": WINDOW, "batch_size": options.batch_size, "step_seconds": {n: statistics.median(t) / WINDOW for n, t in times.items()},
        "overhead": {name: statistics.median(found) - 1 for name, found in ratios.items()}, "ratios": ratios,
        "lost_share_of_a_run_of_1500": len(schedule) * robust.options.arm_steps / 1500,  # type: ignore[attr-defined]
    }  # fmt: skip
    print(write_result("method_overhead", payload, seeds=[0]).read_text())


def _run(work: Path, name: str, changes: dict[str, Any], batch_size: int) -> tuple[TrainSettings, TrainingState, TrainingData]:
    device = accelerator("no")
    settings = TrainSettings(
        model=str(work / "model"), cohort=work / "cohort", out=work / name, attributes=["race"], batch_size=batch_size, **changes
    )
    state = TrainingState.create(settings, device)
    return settings, state, TrainingData.prepare(settings, state, device)


def _window(settings: TrainSettings, state: TrainingState, data: TrainingData) -> float:
    """Processor seconds of one window of steps."""
    settings.out.mkdir(exist_ok=True)
    log = TrainingLog(settings.out / "log.jsonl", data.groups, state.step, active=True)
    device, start = accelerator("no"), time.process_time()
    for _ in range(WINDOW):
        training_step(settings, device, state, data, state.method.odds(state.step), log)
    return time.process_time() - start


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
