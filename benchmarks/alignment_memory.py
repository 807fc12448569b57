"""How much memory an iteration of alignment needs, beside a training step of the same batch, by gradient path.

    python benchmarks/alignment_memory.py --work runs/alignment-memory

Bytes are those that PyTorch's allocator holds at the worst moment beyond what it held before, from its own profiler, so they do not depend
on the machine. ``full`` is measured over several numbers of solver steps: what a further step costs is the slope.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from torch.profiler import ProfilerActivity, profile

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import iterate
from evenhand.alignment.work import prepare
from evenhand.cohorts.cohort import SCHEMA_FILE
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.engine.devices import accelerator
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.data import TrainingData
from evenhand.training.log import TrainingLog
from evenhand.training.loop import training_step
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState

BATCH, SOLVER_STEPS = 24, 20
FULL_STEPS = (4, 8, 12, 20)
PATHS: dict[str, dict[str, Any]] = {
    "adjusted": {"path": "adjusted"},
    "adjusted, no consistency": {"path": "adjusted", "consistency": 0},
    "truncated, last 2": {"path": "truncated"},
    "truncated, last 1": {"path": "truncated", "carrying": "last:1"},
    **{f"full, {steps} steps": {"path": "full", "solver_steps": steps} for steps in FULL_STEPS},
}


def main() -> None:
    """Make what is missing, measure, and write bytes and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    _made(work)
    training = _training(work)
    found = {name: _alignment(work, changes) for name, changes in PATHS.items()}
    slope = float(np.polyfit(FULL_STEPS, [found[f"full, {steps} steps"] for steps in FULL_STEPS], 1)[0])
    payload = {
        "batch_size": BATCH, "solver_steps": SOLVER_STEPS, "training_step_bytes": training, "peak_bytes": found,
        "of_a_training_step": {name: value / training for name, value in found.items()},
        "full_bytes_a_further_step": slope, "first_activation_map_bytes": BATCH * 32 * 16 * 16 * 4,
    }  # fmt: skip
    print(write_result("alignment_memory", payload, seeds=[0]).read_text())


def _made(work: Path) -> None:
    """A small cohort, an untrained model of usual size, and a classifier."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "cohort" / SCHEMA_FILE).exists():
        write_phantoms("brain", work / "cohort", n=600, prompt_attributes=["none"])
    if not (work / "model").exists():
        init_tiny_latent(TinySettings(cohort=work / "cohort", out=work / "model", clip_steps=2, autoencoder_steps=2))
    if not (work / "guide").exists():
        train_classifier(ClassifierSettings(cohort=work / "cohort", target="sex", out=work / "guide", steps=100))


def _training(work: Path) -> int:
    device = accelerator("no")
    settings = TrainSettings(
        model=str(work / "model"), cohort=work / "cohort", out=work / "run", batch_size=BATCH, learning_rate=1e-4, ema=0.9
    )
    state = TrainingState.create(settings, device)
    data = TrainingData.prepare(settings, state, device)
    settings.out.mkdir(exist_ok=True)
    log = TrainingLog(settings.out / "log.jsonl", data.groups, state.step, active=False)
    return _peak(lambda: training_step(settings, device, state, data, state.method.odds(state.step), log))


def _alignment(work: Path, changes: dict[str, Any]) -> int:
    settings = AlignSettings.model_validate(
        {
            "model": str(work / "model"), "guide": [work / "guide"], "target": "sex=male:0.5,female:0.5", "prompts": str(work / "cohort"),
            "out": work / "aligned", "solver_steps": SOLVER_STEPS, "batch_size": BATCH, "form": "kl",
            "guidance_scale": 1.0, **changes,
        }
    )  # fmt: skip
    parts = prepare(settings, accelerator("no"))
    return _peak(lambda: iterate(parts))


def _peak(step: Callable[[], Any]) -> int:
    """Bytes at the worst moment of the second call: the first makes the optimizer's state."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in events]).max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
