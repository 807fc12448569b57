"""Loading and saving diffusion models: diffusers pipeline folders, safetensors only."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from evenhand.core.artifacts import new_folder, read_json, sha256_folder
from evenhand.core.errors import UserError, did_you_mean

# Families that training, alignment and generation know. Others answer with this list.
FAMILIES: dict[str, type[DiffusionPipeline]] = {"StableDiffusionPipeline": StableDiffusionPipeline}

# What diffusers and transformers raise on a folder that is not what it says, down to a truncated file.
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)

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
            pipeline = FAMILIES[family].from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, safety_checker=None, requires_safety_checker=False
            )
    except LOAD_ERRORS as error:
        raise UserError(
            f"{folder}: cannot load the model ({brief(error)}); it must be a diffusers folder with safetensors weights"
        ) from None
    side = pipeline.unet.config.sample_size
    if not isinstance(side, int):
        raise UserError(f"{folder}: unet/config.json: sample_size is {side!r}; write the latent's side, one number")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fetched(name: str) -> Path:
    try:
        with quiet_libraries():
            return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except LOAD_ERRORS as error:
        raise UserError(f"{name}: no such folder here, and not to be had from the hub ({brief(error)})") from None


def brief(error: BaseException) -> str:
    """The first line of what a library says, without a final full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def save_pipeline(pipeline: DiffusionPipeline, path: Path) -> None:
    """Write a pipeline folder atomically."""
    with new_folder(path) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)


def model_hash(model: str | Path) -> str:
    """SHA-256 over weights and settings of a local model."""
    return sha256_folder(model_folder(model))


def training_scheduler(pipeline: DiffusionPipeline) -> DDPMScheduler:
    """The noise schedule that the model was trained with, whatever sampler it is saved with."""
    return DDPMScheduler.from_config(pipeline.scheduler.config)


@torch.no_grad()
def encode_prompts(pipeline: DiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    """Token states of the frozen text encoder: (n, tokens, width). Prompts over the limit are cut, see ``overlong``."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    batch = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):  # as StableDiffusionPipeline.encode_prompt does
        mask = batch.attention_mask.to(encoder.device)
    return encoder(batch.input_ids.to(encoder.device), attention_mask=mask)[0]


def overlong(pipeline: DiffusionPipeline, prompts: list[str]) -> list[str]:
    """Prompts that the tokenizer's limit cuts; their end does not reach the model."""
    tokenizer = pipeline.tokenizer
    with quiet_libraries():
        lengths = [len(ids) for ids in tokenizer(prompts, truncation=False).input_ids] if prompts else []
    return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > tokenizer.model_max_length]


def image_geometry(pipeline: DiffusionPipeline) -> tuple[int, str]:
    """Side in pixels and image mode ("L" or "RGB") that the model draws."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    mode = "L" if pipeline.vae.config.out_channels == 1 else "RGB"
    return int(pipeline.unet.config.sample_size) * factor, mode


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep advice of diffusers and transformers that a user of ours cannot act on from the terminal."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    barred = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub)(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library in barred:
            library.enable_progress_bar()
