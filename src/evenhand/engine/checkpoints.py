"""Checkpoints: safetensors and JSON in a folder that appears only when whole, with a hash for every file."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evenhand.core.artifacts import manifest_faults, new_folder, read_json, write_json, write_manifest
from evenhand.core.errors import UserError

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """Named groups of tensors, and facts that JSON can hold."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    facts: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write ``folder/step-N`` atomically, then drop all but the newest ``keep``."""
    path = folder / f"step-{checkpoint.step:08d}"
    for abandoned in folder.glob(".step-*") if folder.is_dir() else []:  # a kill in the middle of a write; the run folder is ours alone
        shutil.rmtree(abandoned, ignore_errors=True)
    with new_folder(path, replace=True) as partial:  # a damaged one is there where the step is reached again
        for name, tensors in checkpoint.tensors.items():
            save_tensors(partial / f"{name}.safetensors", tensors)
        write_json(partial / "facts.json", {"step": checkpoint.step, **checkpoint.facts})
        write_manifest(partial)
    found = checkpoint_folders(folder)
    newest = found.index(path)
    for old in [*found[: max(0, newest + 1 - keep)], *found[newest + 1 :]]:  # later ones are damaged: the run has gone back behind them
        shutil.rmtree(old)
    return path


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as safetensors; ones that share memory are written apart, and only those are copied for it."""
    apart: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        memory = whole.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != whole.nbytes:
            whole = whole.clone()
        seen.add(whole.untyped_storage().data_ptr())
        apart[name] = whole
    save_file(apart, path)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Every finished checkpoint, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def load_latest(folder: Path, *, quiet: bool = False) -> Checkpoint | None:
    """The newest checkpoint whose every file has its hash; damaged ones are named (not if ``quiet``) and passed over.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    found = checkpoint_folders(folder)
    for path in reversed(found):
        faults = manifest_faults(path)
        if not faults:
            return _load(path)
        if not quiet:
            print(f"warning: {faults[0]}; the checkpoint before it is used", file=sys.stderr)
    if found:
        raise UserError(f"{folder}: every checkpoint is damaged ({len(found)}); start again in another folder")
    return None


def _load(path: Path) -> Checkpoint:
    facts = read_json(path / "facts.json")
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Checkpoint(facts.pop("step"), tensors, facts)
