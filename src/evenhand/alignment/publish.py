"""The aligned model as a folder, with what it was guided by: the audit refuses those classifiers as judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.state import AlignState, tunable_pipeline
from evenhand.engine.runs import write_model
from evenhand.models.pipelines import stage_of


def publish(
    settings: AlignSettings,
    state: AlignState,
    groups: list[str],
    guides: Guides,
    held_out: Guides,
    check: Mapping[str, Any],
    accelerator: Accelerator,
) -> Path:
    """Write the best weights as ``OUT/model``; a LoRA run adds ``OUT/lora`` and folds it into the model."""
    if accelerator.is_main_process:
        pipeline = tunable_pipeline(settings)
        facts = {
            "settings": settings.model_dump(mode="json"),
            "seed": settings.seed,
            "guides": [*_facts(guides, "guide"), *_facts(held_out, "held-out guide")],
            "target": dict(zip(groups, state.target.tolist(), strict=True)),
            "kept": state.best,
            **check,
            "aligned_from": state.model_sha256,
        }
        write_model(settings.out, settings.model, pipeline, stage_of(pipeline).unet, state.best_weights, settings.sampling.block(), facts)
    accelerator.wait_for_everyone()
    return settings.out / "model"


def _facts(guides: Guides, role: str) -> list[dict[str, Any]]:
    return [
        {"role": role, "target": guide.target, "sha256": guide.sha256, "subjects_sha256": guide.subjects_sha256, "auc": guide.auc}
        for guide in guides.all
    ]
