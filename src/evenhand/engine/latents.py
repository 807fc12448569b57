"""Latents and text embeddings, computed once for a cohort and model, kept on disk and read through memory maps.

The posterior's mean and standard deviation are kept, so that training still draws a fresh latent each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import cache_folder, claim, write_atomically, write_json
from evenhand.core.errors import UserError
from evenhand.core.progress import track
from evenhand.engine.batching import rank_batches
from evenhand.models.pipelines import encode_prompts, image_geometry
from evenhand.models.stages import Stage
from evenhand.models.tensors import to_tensor
from evenhand.models.text import tokenized
from evenhand.models.weights import fingerprint

_BATCH = 32
_TOKENIZED = 1024


@dataclass(frozen=True)
class LatentCache:
    """Arrays of one cohort under one model: mean (n, C, h, w), std of that shape or (n, 1, 1, 1), text (unique prompts, tokens, width)."""

    mean: np.ndarray
    std: np.ndarray
    text: np.ndarray
    prompt_codes: np.ndarray

    @property
    def silent(self) -> torch.Tensor:
        """Token states of the empty prompt, (tokens, width); it is kept last."""
        return torch.from_numpy(np.array(self.text[-1]))

    def latents(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and standard deviation of some rows."""
        return torch.from_numpy(np.asarray(self.mean[rows])), torch.from_numpy(np.asarray(self.std[rows]))

    def embeddings(self, rows: np.ndarray) -> torch.Tensor:
        """Token states (len(rows), tokens, width)."""
        return torch.from_numpy(np.asarray(self.text[self.prompt_codes[rows]]))


def latent_cache(stage: Stage, cohort: Cohort, accelerator: Accelerator) -> LatentCache:
    """Read the cache of this cohort, model and stage, or compute it, ranks sharing the work.

    Raises:
        UserError: the cohort's images do not fit the model.
    """
    side, mode = image_geometry(stage.pipeline)
    if (cohort.schema.image_size, cohort.schema.image_mode) != (side, mode):
        raise UserError(
            f"{cohort.root}: images are {cohort.schema.image_size} px {cohort.schema.image_mode}, the model draws {side} px {mode}; "
            f"import again with --size {side}" + (" --mode " + mode if cohort.schema.image_mode != mode else "")
        )
    prompts, codes = np.unique(cohort.table["prompt"].astype(str), return_inverse=True)
    folder = cache_folder("latents") / _key(cohort, [*prompts.tolist(), ""], stage)
    with _held_by_first_rank(folder, accelerator):  # another run may be filling it: wait, then read what it made
        if not _whole(folder, accelerator):
            _fill(folder, stage, cohort, [*prompts.tolist(), ""], accelerator)
    mean, std, text = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("mean", "std", "text"))
    return LatentCache(mean, std, text, codes)


def _key(cohort: Cohort, prompts: list[str], stage: Stage) -> str:
    """All that the arrays depend on and no more: a fine-tuned model shares those of the model that it was made of.

    Networks enter by what they compute, not by their files, and the tokenizer by its tokens.
    """
    pipeline = stage.pipeline
    side, mode = image_geometry(pipeline)
    digest = hashlib.sha256("\n".join([str(side), mode, stage.encoding, fingerprint(pipeline.text_encoder)]).encode())
    for name in cohort.image_hashes():
        digest.update(f"{name}\n".encode())
    for start in range(0, len(prompts), _TOKENIZED):
        batch = tokenized(pipeline.tokenizer, prompts[start : start + _TOKENIZED])
        for values in (batch.input_ids, batch.attention_mask):
            digest.update(f"{tuple(values.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:32]


def _fill(folder: Path, stage: Stage, cohort: Cohort, prompts: list[str], accelerator: Accelerator) -> None:
    pipeline = stage.pipeline
    pipeline.text_encoder.to(accelerator.device)
    if accelerator.is_main_process:
        for name, part in zip(("mean", "std"), _encoded(stage, cohort, np.arange(1), accelerator), strict=True):
            _reserve(folder / f"{name}.npy", (len(cohort), *part.shape[1:]))
        text = torch.cat([encode_prompts(pipeline, prompts[i : i + _BATCH]).cpu() for i in range(0, len(prompts), _BATCH)])
        write_atomically(folder / "text.npy", lambda path: _save_array(path, text.float().numpy()))
    accelerator.wait_for_everyone()
    mean, std = (np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+") for name in ("mean", "std"))
    batches = rank_batches(len(cohort), _BATCH, accelerator.process_index, accelerator.num_processes)
    with track("latents", len(batches), quiet=not accelerator.is_main_process) as bar:
        for rows in batches:
            mean[rows], std[rows] = _encoded(stage, cohort, rows, accelerator)
            bar.advance()
    mean.flush()
    std.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(folder / "whole.json", {"images": len(cohort), "prompts": len(prompts)})
    accelerator.wait_for_everyone()


@torch.no_grad()
def _encoded(stage: Stage, cohort: Cohort, rows: np.ndarray, accelerator: Accelerator) -> list[np.ndarray]:
    pixels = to_tensor(cohort.pixels(rows), stage.channels).to(accelerator.device)
    parts = [part.float().cpu().numpy() for part in stage.encode(pixels)]
    if not all(np.isfinite(part).all() for part in parts):
        raise UserError(
            f"{cohort.root}: latents are not finite (NaN or infinity) for images of rows {rows[0]} to {rows[-1]}; "
            "the model's autoencoder overflows, give another model"
        )
    return parts


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    """An array file with its space taken: a full disk is an error here, not a bus error at some later write to the map."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink()
        raise


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _whole(folder: Path, accelerator: Accelerator) -> bool:
    """The first rank's answer, so that all ranks do the same."""
    found = torch.tensor(float((folder / "whole.json").is_file()), device=accelerator.device)
    return bool(broadcast(found) > 0)


@contextmanager
def _held_by_first_rank(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    if not accelerator.is_main_process:
        yield
        return
    with claim(folder, wait=True):
        yield
