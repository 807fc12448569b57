"""Loading and saving diffusion models: diffusers pipeline folders, safetensors only."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

from evenhand.core.artifacts import is_file, new_folder, read_json, sha256_files
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.progress import warn
from evenhand.models.components import INDEX_FILE, component_classes, files_of, load_component, read_index
from evenhand.models.encoders import encoder_files
from evenhand.models.imagen import BaseStage, ImagenPipeline, SuperResolutionStage
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries
from evenhand.models.preprocessing import PREPROCESSOR_FILE
from evenhand.models.schedules import drop_defaults
from evenhand.models.shapes import check_cascade, check_latent_model
from evenhand.models.stages import LatentStage, Stage
from evenhand.models.text import token_states
from evenhand.models.weights import load_weights


@dataclass(frozen=True)
class Family:
    """A class of pipelines and the stages that it draws with, in that order, under the names of ``--stage``."""

    pipeline: type[DiffusionPipeline]
    stages: Mapping[str, type[Stage]]
    components: Mapping[str, type]  # what is loaded
    check: Callable[[Path, Mapping[str, Any]], None]  # of the components, loaded
    told: str
    left_out: tuple[str, ...] = ()  # components that may be there and do not enter what is drawn
    options: Mapping[str, Any] = field(default_factory=dict)  # of from_pretrained


_TEXT: dict[str, type] = {"tokenizer": PreTrainedTokenizerBase, "text_encoder": PreTrainedModel}
_STABLE_DIFFUSION: dict[str, type] = {**_TEXT, "vae": AutoencoderKL, "unet": UNet2DConditionModel, "scheduler": SchedulerMixin}
_CASCADE: dict[str, type] = {
    **_TEXT,
    "unet": UNet2DConditionModel,
    "scheduler": SchedulerMixin,
    "super_resolution_unet": UNet2DConditionModel,
    "super_resolution_scheduler": SchedulerMixin,
}

# Families that training, alignment and generation know. Others answer with this list.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        StableDiffusionPipeline, {"base": LatentStage}, _STABLE_DIFFUSION, check_latent_model, "Stable Diffusion 1.x and 2.x, tiny-latent",
        left_out=("safety_checker", "feature_extractor", "image_encoder"), options={"requires_safety_checker": False},
    ),
    "ImagenPipeline": Family(
        ImagenPipeline, {"base": BaseStage, "super-resolution": SuperResolutionStage}, _CASCADE, check_cascade, "tiny-imagen"
    ),
}  # fmt: skip

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
        if is_file(candidate / INDEX_FILE):
            return candidate
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: a run that has not finished (no model yet); go on with 'evenhand train --resume'")
    raise UserError(f"{path}: not a model (no model_index.json); make one with 'evenhand model init' or give a diffusers folder")


def load_pipeline(model: str | Path) -> DiffusionPipeline:
    """Load what ``model_folder`` finds, in float32 whatever was stored.

    Weights are read from safetensors only, with "fp16" in their names where they have no plain ones, and all of them must be there. A
    safety checker is not loaded: it was trained on web photographs.

    Raises:
        UserError: not a model, an unknown family, a shape that is not supported, or weights that are missing, pickles or not finite.
    """
    folder = model_folder(model)
    family, classes = _components(folder)
    parts = {name: load_component(folder / name, kind) for name, kind in classes.items()}
    family.check(folder, parts)
    try:
        with quiet_libraries():
            absent = dict.fromkeys(family.left_out)
            pipeline = family.pipeline.from_pretrained(str(folder), local_files_only=True, **parts, **absent, **family.options)
    except LOAD_ERRORS as error:
        raise UserError(
            f"{folder}: cannot load the model ({brief(error)}); it must be a diffusers folder with safetensors weights"
        ) from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _components(folder: Path) -> tuple[Family, dict[str, type]]:
    """The family of a pipeline folder, and the classes of what is loaded of it."""
    index = read_index(folder)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        known = " and ".join(f"{known} ({family.told})" for known, family in FAMILIES.items())
        raise UserError(f"{folder}: pipeline class {name!r} is not supported; supported are {known}")
    family = FAMILIES[name]
    return family, component_classes(folder, index, family.components, family.left_out)


def _fetched(name: str) -> Path:
    """Fetched without a variant; where a model has weights of the fp16 variant only, those as well."""
    try:
        with quiet_libraries():
            folder = Path(DiffusionPipeline.download(name, use_safetensors=True))
            if is_file(folder / INDEX_FILE) and not any(folder.glob("*/*.safetensors")):
                folder = Path(DiffusionPipeline.download(name, use_safetensors=True, variant="fp16"))
            return folder
    except LOAD_ERRORS as error:
        raise UserError(f"{name}: no such folder here, and not to be had from the hub ({brief(error)})") from None


def save_pipeline(pipeline: DiffusionPipeline, path: Path) -> None:
    """Write a pipeline folder atomically."""
    with new_folder(path) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
        drop_defaults(pipeline, folder)


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
    """Write the CLIP model of ``model``, where it has one, beside what was made of it, in float32 as that is."""
    if not has_clip(model):
        return
    source, copy = clip_of(model), folder / CLIP_FOLDER
    copy.mkdir()
    loaded = load_weights(CLIPModel, source)
    loaded.require_whole(source)
    with quiet_libraries():
        loaded.model.save_pretrained(copy, safe_serialization=True)
    shutil.copyfile(source / PREPROCESSOR_FILE, copy / PREPROCESSOR_FILE)


def model_files(model: str | Path) -> dict[str, Path]:
    """Every file that is read of a model, by its name within: settings, weights, vocabularies, and CLIP where the model has one.

    Raises:
        UserError: a component has none.
    """
    folder = model_folder(model)
    files = [folder / INDEX_FILE]
    for name, kind in _components(folder)[1].items():
        files += files_of(folder / name, kind)
    if has_clip(folder):
        files += encoder_files(folder / CLIP_FOLDER)
    return {file.relative_to(folder).as_posix(): file for file in files}


def model_hash(model: str | Path) -> str:
    """SHA-256 over names and contents of all files that are read of a local model, wherever links among them lead.

    Raises:
        UserError: a component has no file.
    """
    return sha256_files(model_files(model))


def model_provenance(model: str | Path) -> dict[str, Any]:
    """How a model was made, as it says itself; empty where it does not."""
    note = model_folder(model) / "evenhand.json"
    facts = read_json(note) if is_file(note) else {}
    if not isinstance(facts, dict):
        raise UserError(f"{note}: not a table of facts; take the file out, or write it anew")
    return facts


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
    """Say how many prompts, one per image, the tokenizer's limit cuts; their end does not reach the model."""
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
