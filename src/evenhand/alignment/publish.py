"""The aligned model as a folder, with what it was guided by: the audit refuses those classifiers as judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.state import AlignState, tunable_pipeline
from evenhand.core.artifacts import new_folder, provenance, write_json
from evenhand.models.adapters import merge_lora, save_lora
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import keep_clip, model_provenance, stage_of


def publish(
    settings: AlignSettings,
    state: AlignState,
    guides: Guides,
    held_out: Guides,
    certified: dict[str, float] | None,
    accelerator: Accelerator,
) -> Path:
    """Write the best weights as ``OUT/model``; a LoRA run adds ``OUT/lora`` and folds it into the model."""
    target = settings.out / "model"
    if accelerator.is_main_process:
        pipeline = tunable_pipeline(settings)
        unet = stage_of(pipeline, settings.stage).unet
        unet.load_state_dict(state.best_weights, strict=False)
        if settings.lora is not None:
            with new_folder(settings.out / "lora", replace=True) as folder:
                save_lora(unet, folder)
            merge_lora(unet)
        facts = {
            "guides": [*_facts(guides, "guide"), *_facts(held_out, "held-out guide")],
            "target": dict(zip(guides.joint, state.target.tolist(), strict=True)),
            "kept": state.best,
            "certified": certified,
            "aligned_from": state.model_sha256,
            "model_provenance": model_provenance(settings.model),
        }
        with new_folder(target, replace=True) as folder, quiet_libraries():
            pipeline.save_pretrained(folder, safe_serialization=True)
            keep_clip(settings.model, folder)
            write_json(folder / "evenhand.json", provenance(settings=settings.model_dump(mode="json"), seed=settings.seed, **facts))
    accelerator.wait_for_everyone()
    return target


def _facts(guides: Guides, role: str) -> list[dict[str, Any]]:
    return [
        {"role": role, "target": guide.target, "sha256": guide.sha256, "subjects_sha256": guide.subjects_sha256, "auc": guide.auc}
        for guide in guides.all
    ]
