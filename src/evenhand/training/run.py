"""The run folder: config.yaml, log.jsonl, checkpoints/, and the resulting model."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from evenhand.core.artifacts import new_folder, provenance, read_json, write_json
from evenhand.models.adapters import merge_lora, save_lora
from evenhand.models.pipelines import keep_clip, model_provenance, quiet_libraries, stage_of
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
        unet = stage_of(pipeline, settings.stage).unet
        unet.load_state_dict(weights, strict=False)
        if settings.lora is not None:
            with new_folder(settings.out / "lora", replace=True) as folder:
                save_lora(unet, folder)
            merge_lora(unet)
        with new_folder(target, replace=True) as folder, quiet_libraries():
            pipeline.save_pretrained(folder, safe_serialization=True)
            keep_clip(settings.model, folder)
            facts = {
                "trained_on": str(settings.cohort),
                **data.fingerprint,
                "steps": state.step,
                "lost_steps": state.lost,
                "skipped": state.skipped,
                "model_provenance": model_provenance(settings.model),  # a cascade's stages may have seen different cohorts
            }
            write_json(folder / "evenhand.json", provenance(settings=settings.model_dump(mode="json"), seed=settings.seed, **facts))
    if accelerator.is_main_process:
        plot_method(settings.out / "log.jsonl", settings.out / "method.svg")
    accelerator.wait_for_everyone()
    return target


def _steps_behind(model: Path) -> int | None:
    """Steps of the model that stands there already; a run that goes on with more steps replaces it."""
    note = model / "evenhand.json"
    return read_json(note).get("steps") if note.is_file() else None
