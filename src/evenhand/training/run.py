"""The run folder: config.yaml, log.jsonl, checkpoints/, and the resulting model."""

from __future__ import annotations

from pathlib import Path

import yaml
from accelerate import Accelerator

from evenhand.core.artifacts import new_folder, provenance, read_json, write_json
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import checkpoint_folders
from evenhand.models.adapters import merge_lora, save_lora
from evenhand.models.pipelines import quiet_libraries
from evenhand.training.data import TrainingData
from evenhand.training.plots import plot_method
from evenhand.training.settings import RESUMABLE, TrainSettings
from evenhand.training.state import TrainingState, trainable_pipeline
from evenhand.training.weighting import METHODS


def check_folder(settings: TrainSettings) -> None:
    """Whether a run may begin in ``settings.out``, or go on there with ``--resume``.

    Raises:
        UserError: the folder holds something else, or settings differ that would change the result.
    """
    config = settings.out / "config.yaml"
    if config.is_file():
        _same_run(settings, config)
    elif [file for file in settings.out.iterdir() if not file.name.startswith(".")]:
        raise UserError(f"{settings.out}: not empty, and not a run; choose another --out")


def _same_run(settings: TrainSettings, config: Path) -> None:
    if not settings.resume:
        done = checkpoint_folders(settings.out / "checkpoints")
        at = f" at step {int(done[-1].name.removeprefix('step-'))}" if done else ""
        raise UserError(f"{settings.out}: holds a run{at} already; go on with --resume, or choose another --out")
    before, now = yaml.safe_load(config.read_text()), settings.model_dump(mode="json")
    for key, value in now.items():
        schedule_bound = key == "steps" and (settings.schedule == "cosine" or METHODS[settings.method].paced)
        if (key not in RESUMABLE or schedule_bound) and before.get(key) != value:
            raise UserError(
                f"{config}: --resume with {key} = {value!r}, but the run began with {before.get(key)!r}; keep it, or choose another --out"
            )


def publish(settings: TrainSettings, state: TrainingState, data: TrainingData, accelerator: Accelerator) -> Path:
    """Write the model with averaged weights as ``OUT/model``; a LoRA run adds ``OUT/lora`` and folds it into the model."""
    target = settings.out / "model"
    weights = state.averaged_weights()  # every rank takes part: its weights may be sharded
    if accelerator.is_main_process and _steps_behind(target) != state.step:
        pipeline, _ = trainable_pipeline(settings)
        pipeline.unet.load_state_dict(weights, strict=False)
        if settings.lora is not None:
            with new_folder(settings.out / "lora", replace=True) as folder:
                save_lora(pipeline, folder)
            merge_lora(pipeline)
        with new_folder(target, replace=True) as folder, quiet_libraries():
            pipeline.save_pretrained(folder, safe_serialization=True)
            facts = {
                "trained_on": str(settings.cohort),
                **data.fingerprint,
                "steps": state.step,
                "lost_steps": state.lost,
                "skipped": state.skipped,
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
