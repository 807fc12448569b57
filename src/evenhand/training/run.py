"""The run folder: config.yaml, log.jsonl, checkpoints/, and the resulting model."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from evenhand.core.artifacts import read_json
from evenhand.engine.runs import write_model
from evenhand.models.pipelines import stage_of
from evenhand.models.sampling import inherited_block
from evenhand.training.data import TrainingData
from evenhand.training.plots import plot_method
from evenhand.training.settings import RESUMABLE, TrainSettings
from evenhand.training.state import TrainingState, trainable_pipeline
from evenhand.training.weighting import METHODS


def resumable(settings: TrainSettings) -> list[str]:
    """Settings that may differ when a run goes on: what is computed stays the same."""
    schedule_bound = settings.schedule == "cosine" or METHODS[settings.method].paced
    return [name for name in RESUMABLE if name != "steps" or not schedule_bound]


def publish(settings: TrainSettings, state: TrainingState, data: TrainingData, accelerator: Accelerator) -> Path:
    """Write the model with averaged weights as ``OUT/model``; a LoRA run adds ``OUT/lora`` and folds it into the model."""
    target = settings.out / "model"
    weights = state.learner.averaged_weights()  # every rank takes part: its weights may be sharded
    if accelerator.is_main_process and _steps_behind(target) != state.step:
        pipeline = trainable_pipeline(settings)
        facts = {
            "settings": settings.model_dump(mode="json"),
            "seed": settings.seed,
            "trained_on": str(settings.cohort),
            **data.fingerprint,
            "steps": state.step,
            "lost_steps": state.lost,
            "skipped": state.skipped,
        }
        unet, sampling = stage_of(pipeline, settings.stage).unet, inherited_block(settings.model)
        write_model(settings.out, settings.model, pipeline, unet, weights, sampling, facts)
    if accelerator.is_main_process:
        plot_method(settings.out / "log.jsonl", settings.out / "method.svg")
    accelerator.wait_for_everyone()
    return target


def _steps_behind(model: Path) -> int | None:
    """Steps of the model that stands there already; a run that goes on with more steps replaces it."""
    note = model / "evenhand.json"
    return read_json(note).get("steps") if note.is_file() else None
