"""Loading and saving diffusion models: diffusers pipeline folders, safetensors only."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline

from evenhand.core.artifacts import new_folder, read_json, sha256_folder
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.progress import warn
from evenhand.models.imagen import BaseStage, ImagenPipeline, SuperResolutionStage
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries
from evenhand.models.stages import LatentStage, Stage
from evenhand.models.text import token_states


@dataclass(frozen=True)
class Family:
    """A class of pipelines and the stages that it draws with, in that order, under the names of ``--stage``."""

    pipeline: type[DiffusionPipeline]
    stages: Mapping[str, type[Stage]]
    options: Mapping[str, Any] = field(default_factory=dict)  # of from_pretrained


# Families that training, alignment and generation know. Others answer with this list.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        StableDiffusionPipeline, {"base": LatentStage}, {"safety_checker": None, "requires_safety_checker": False}
    ),
    "ImagenPipeline": Family(ImagenPipeline, {"base": BaseStage, "super-resolution": SuperResolutionStage}),
}

CLIP_FOLDER = "clip"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(model: str | Path) -> Path:
    """The pipeline folder behind ``model``: a pipeline folder, a run folder, or a hub id (``org/name``, fetched once).

    Raises:
        UserError: none of them.
    """
    path = Path(model)
    if not path.exists() and _HUB_ID.fullmatch(str(model)):
        return _fetched(str(model))
    for candidate in (path, path / "model"):
        if (candidate / "model_index.json").is_file():
            return candidate
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: a run that has not finished (no model yet); go on with 'evenhand train --resume'")
    raise UserError(f"{path}: not a model (no model_index.json); make one with 'evenhand model init' or give a diffusers folder")


def load_pipeline(model: str | Path) -> DiffusionPipeline:
    """Load what ``model_folder`` finds, in float32.

    Weights are read from safetensors only. A safety checker is not loaded: it was trained on web photographs.

    Raises:
        UserError: not a model, an unknown family, or weights that are not safetensors.
    """
    folder = model_folder(model)
    index = read_json(folder / "model_index.json")
    family = str(index.get("_class_name", "")) if isinstance(index, dict) else ""
    if family not in FAMILIES:
        raise UserError(f"{folder}: pipeline class {family!r} is not supported; {did_you_mean(family, FAMILIES)}")
    try:
        with quiet_libraries():
            kind = FAMILIES[family]
            pipeline = kind.pipeline.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, **kind.options)
    except LOAD_ERRORS as error:
        raise UserError(
            f"{folder}: cannot load the model ({brief(error)}); it must be a diffusers folder with safetensors weights"
        ) from None
    for stage in stages_of(pipeline).values():
        side = stage.unet.config.sample_size
        if not isinstance(side, int):
            raise UserError(f"{folder}: {stage.unet_name}/config.json: sample_size is {side!r}; write the latent's side, one number")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fetched(name: str) -> Path:
    try:
        with quiet_libraries():
            return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except LOAD_ERRORS as error:
        raise UserError(f"{name}: no such folder here, and not to be had from the hub ({brief(error)})") from None


def save_pipeline(pipeline: DiffusionPipeline, path: Path) -> None:
    """Write a pipeline folder atomically."""
    with new_folder(path) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)


def has_clip(model: str | Path) -> bool:
    """Whether the folder of the CLIP model that tiny models are made with is there."""
    return (model_folder(model) / CLIP_FOLDER).is_dir()


def clip_of(model: str | Path) -> Path:
    """The folder of the CLIP model, text and vision, that tiny models are made with.

    Raises:
        UserError: the model has none.
    """
    if not has_clip(model):
        raise UserError(f"{model}: holds no image encoder of its own; name a CLIP or DINOv2 folder with --consistency-encoder")
    return model_folder(model) / CLIP_FOLDER


def keep_clip(model: str | Path, folder: Path) -> None:
    """Copy the CLIP model of ``model``, where it has one, beside what was made of it."""
    if has_clip(model):
        shutil.copytree(model_folder(model) / CLIP_FOLDER, folder / CLIP_FOLDER)


def model_hash(model: str | Path) -> str:
    """SHA-256 over weights and settings of a local model."""
    return sha256_folder(model_folder(model))


def model_provenance(model: str | Path) -> dict[str, Any]:
    """How a model was made, as it says itself; empty where it does not."""
    note = model_folder(model) / "evenhand.json"
    return dict(read_json(note)) if note.is_file() else {}


def stages_of(pipeline: DiffusionPipeline) -> dict[str, Stage]:
    """The pipeline's stages by name, in the order in which they draw."""
    return {name: kind(pipeline) for name, kind in FAMILIES[type(pipeline).__name__].stages.items()}


def stage_of(pipeline: DiffusionPipeline, name: str = "base") -> Stage:
    """The stage of that name.

    Raises:
        UserError: the pipeline has none; the message gives those it has.
    """
    stages = stages_of(pipeline)
    if name not in stages:
        raise UserError(f"--stage {name}: {type(pipeline).__name__} has no such stage; {did_you_mean(name, stages)}")
    return stages[name]


def training_scheduler(holder: DiffusionPipeline | Stage) -> DDPMScheduler:
    """The noise schedule that a model or a stage was trained with, whatever sampler it is saved with."""
    return DDPMScheduler.from_config(holder.scheduler.config)


def encode_prompts(pipeline: DiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """Token states of the frozen text encoder: (n, tokens, width). Prompts over the limit are cut, see ``warn_of_overlong``."""
    return token_states(pipeline.tokenizer, pipeline.text_encoder, prompts)


def warn_of_overlong(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> None:
    """Say how many prompts, one an image, the tokenizer's limit cuts; their end does not reach the model."""
    tokenizer, images = pipeline.tokenizer, Counter(prompts)
    with quiet_libraries():
        lengths = [len(ids) for ids in tokenizer(list(images), truncation=False).input_ids] if images else []
    limit = tokenizer.model_max_length
    if long := [prompt for prompt, length in zip(images, lengths, strict=True) if length > limit]:
        n = sum(images[prompt] for prompt in long)
        warn(f"{len(long)} prompts ({n} images) exceed the tokenizer's {limit} tokens; their end is cut")


def image_geometry(pipeline: DiffusionPipeline) -> tuple[int, str]:
    """Side in pixels and image mode ("L" or "RGB") that the model draws."""
    last = list(stages_of(pipeline).values())[-1]
    return last.side, "L" if last.channels == 1 else "RGB"
