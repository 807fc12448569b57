"""The run folder: config.yaml, log.jsonl, checkpoints/, and the resulting model."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from accelerate import Accelerator

from evenhand.core.artifacts import new_folder, provenance, write_json
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import checkpoint_folders
from evenhand.models.adapters import merge_lora, save_lora
from evenhand.models.pipelines import quiet_libraries
from evenhand.training.data import TrainingData
from evenhand.training.settings import RESUMABLE, TrainSettings
from evenhand.training.state import TrainingState, trainable_pipeline


def prepare_folder(settings: TrainSettings, accelerator: Accelerator) -> None:
    """Begin a run, or check that ``--resume`` goes on with the same settings.

    Raises:
        UserError: the folder holds another run, or settings differ that would change the result.
    """
    if accelerator.is_main_process:
        config = settings.out / "config.yaml"
        if config.is_file():
            _same_run(settings, config)
        elif [file for file in settings.out.iterdir() if file.name != ".lock"]:
            raise UserError(f"{settings.out}: not empty, and not a run; choose another --out")
        settings.save(config)
    accelerator.wait_for_everyone()


def _same_run(settings: TrainSettings, config: Path) -> None:
    if not settings.resume:
        done = checkpoint_folders(settings.out / "checkpoints")
        at = f" at step {int(done[-1].name.removeprefix('step-'))}" if done else ""
        raise UserError(f"{settings.out}: holds a run{at} already; go on with --resume, or choose another --out")
    before, now = yaml.safe_load(config.read_text()), settings.model_dump(mode="json")
    for key, value in now.items():
        schedule_bound = key == "steps" and settings.schedule == "cosine"
        if (key not in RESUMABLE or schedule_bound) and before.get(key) != value:
            raise UserError(
                f"{config}: --resume with {key} = {value!r}, but the run began with {before.get(key)!r}; keep it, or choose another --out"
            )


def publish(settings: TrainSettings, state: TrainingState, data: TrainingData, accelerator: Accelerator) -> Path:
    """Write the model with averaged weights as ``OUT/model``; a LoRA run adds ``OUT/lora`` and folds it into the model."""
    target = settings.out / "model"
    weights = state.averaged_weights()  # every rank takes part: its weights may be sharded
    if accelerator.is_main_process and not target.exists():
        pipeline, _ = trainable_pipeline(settings)
        pipeline.unet.load_state_dict(weights, strict=False)
        if settings.lora is not None:
            shutil.rmtree(settings.out / "lora", ignore_errors=True)
            with new_folder(settings.out / "lora") as folder:
                save_lora(pipeline, folder)
            merge_lora(pipeline)
        with new_folder(target) as folder, quiet_libraries():
            pipeline.save_pretrained(folder, safe_serialization=True)
            facts = {"trained_on": str(settings.cohort), **data.fingerprint, "steps": state.step, "skipped": state.skipped}
            write_json(folder / "evenhand.json", provenance(settings=settings.model_dump(mode="json"), seed=settings.seed, **facts))
    accelerator.wait_for_everyone()
    return target
