"""Weights of one component, read strictly: safetensors only, every tensor there and of the right shape, all numbers, in float32.

What is missing or unexpected is judged after the library's own renames, tied weights and ignore lists.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from evenhand.core.artifacts import is_file, read_json
from evenhand.core.errors import UserError
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries, shortened

CONFIG_FILE = "config.json"
_PRECISIONS = ("fp32", "fp16", "bf16")  # variants of one network; others, such as "ema", are other networks
_SHARD = re.compile(r"-\d+-of-\d+$")
_NAMED = 3  # tensors that a message names
_LONGEST = 320  # characters of all that it says of them
_POINTER = b"version https://git-lfs"
# Notes on how a file came to be: they change with every save, and nothing that is computed.
_NOTES = ("transformers_version", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True)
class WeightFiles:
    """The files that a library reads: one, or an index and its shards."""

    files: tuple[Path, ...]
    variant: str | None  # "fp16" of model.fp16.safetensors


def weight_files(folder: Path, kind: type) -> WeightFiles:
    """The files that ``kind.from_pretrained`` is to read from ``folder``: without a variant in their names where there are such.

    Raises:
        UserError: none, pickles only, several variants and none to prefer, or an index that names what is not there.
    """
    stem = "diffusion_pytorch_model" if issubclass(kind, ModelMixin) else "model"
    names = names_in(folder)
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    # Each library has its own order where both are there.
    for name in (index, single) if issubclass(kind, ModelMixin) else (single, index):
        if is_file(folder / name):
            return WeightFiles(_with_shards(folder / name), None)
    found = _variants(folder, stem, names)
    known = [variant for variant in _PRECISIONS if variant in found] or list(found)
    if not found:
        raise UserError(_without_weights(folder, single, names))
    if len(known) > 1 and known[0] not in _PRECISIONS:
        raise UserError(f"{folder}: weights in the variants {', '.join(known)}, and none without; rename those that are meant to {single}")
    return WeightFiles(_with_shards(found[known[0]]), known[0])


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder.

    Raises:
        UserError: it is not there.
    """
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        what = "a link that leads nowhere" if folder.is_symlink() else "no such folder"
        raise UserError(f"{folder}: {what}; copy the model again, with all of its folders") from None


def _variants(folder: Path, stem: str, names: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    forms = (r"{}\.(.+)\.safetensors", r"{}\.safetensors\.index\.(.+)\.json", r"{}\.safetensors\.(.+)\.index\.json")
    for name in names:
        for form in forms:
            match = re.fullmatch(form.format(re.escape(stem)), name)
            if match and not _SHARD.search(match[1]) and is_file(folder / name):
                found.setdefault(match[1], folder / name)
    return found


def _without_weights(folder: Path, wanted: str, names: list[str]) -> str:
    if (folder / wanted).is_symlink():
        return f"{folder / wanted}: a link that leads nowhere; copy the file itself"
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        return (
            f"{folder}: the weights are pickles ({pickles[0]}), which may run code and are not read; it must be a folder with safetensors: "
            "load it with its library where you trust it, and write it with save_pretrained(..., safe_serialization=True)"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    there = f"there is {', '.join(others[:_NAMED])}" if others else "there is no safetensors file"
    return f"{folder}: no {wanted}, and no index of shards ({there}); copy the model again, or rename the file"


def _with_shards(path: Path) -> tuple[Path, ...]:
    if path.suffix != ".json":
        return (path,)
    index = read_json(path)
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        raise UserError(f"{path}: no index of shards (no 'weight_map'); copy the file again")
    shards = sorted(set(named.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{path}: names {shard!r}; shards must be safetensors files beside their index (pickles are not read)")
        if not is_file(path.parent / shard):
            raise UserError(f"{path}: names {shard}, which is not there; copy all {len(shards)} shards")
    held = {name for shard in shards for name in tensor_names(path.parent / shard)}
    if faults := [*_listed("is in no shard", named.keys() - held), *_listed("is not in the index", held - named.keys())]:
        raise UserError(f"{path}: {'; '.join(faults)}; copy the index and its shards from one place")
    return (path, *(path.parent / shard for shard in shards))


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        UserError: it is none, or not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except LOAD_ERRORS as error:
        if _begins_with(path, _POINTER):
            raise UserError(f"{path}: a pointer of Git LFS, not the weights; run 'git lfs pull' where it came from") from None
        raise UserError(f"{path}: not a whole safetensors file ({brief(error)}); copy it again") from None


def _begins_with(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text


def component_files(folder: Path, kind: type) -> list[Path]:
    """What ``kind`` reads from ``folder``: its settings and weights."""
    return [folder / CONFIG_FILE, *weight_files(folder, kind).files]


@dataclass(frozen=True)
class Loaded:
    """A network, and where its weights do not fit it."""

    model: torch.nn.Module
    missing: set[str]
    unexpected: set[str]
    misshapen: dict[str, str]  # name: "(2,), not (8,)"

    def require_whole(self, folder: Path) -> None:
        """Raise where weights are missing, unexpected, of another shape or not finite."""
        faults = [
            *_listed("is missing", self.missing),
            *_listed("is unexpected", self.unexpected),
            *_listed("has another shape than config.json says", self.misshapen, lambda name: f"{name} is {self.misshapen[name]}"),
        ]
        if faults:
            told = shortened("; ".join(faults), _LONGEST)
            raise UserError(f"{folder}: {told}; the weights are not whole, or not of this config.json: copy the folder again")
        require_finite_weights(self.model, folder)


def load_weights(kind: Any, folder: Path, what: str = "the model", **options: Any) -> Loaded:
    """Load a network of ``kind``, a class of diffusers or transformers with ``from_pretrained``, in float32, whatever was stored.

    Args:
        what: for the message.

    Raises:
        UserError: it cannot be loaded, or would need more than ``config.json`` and safetensors.
    """
    _check_config(folder)
    found = weight_files(folder, kind)
    for file in found.files:
        if file.suffix != ".json":
            tensor_names(file)
    precision = {"torch_dtype" if issubclass(kind, ModelMixin) else "dtype": torch.float32}
    try:
        with quiet_libraries():
            model, report = kind.from_pretrained(
                str(folder), variant=found.variant, use_safetensors=True, local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True, **precision, **options,
            )  # fmt: skip
    except LOAD_ERRORS as error:
        raise UserError(f"{folder}: cannot load {what} ({brief(error)}); it must be a whole folder with safetensors weights") from None
    misshapen = {name: f"{tuple(stored)}, not {tuple(wanted)}" for name, stored, wanted in report["mismatched_keys"]}
    # diffusers leaves what it does not find without values, and does not report it of shards
    empty = {name for name, value in model.state_dict().items() if value.is_meta}
    missing = (set(report["missing_keys"]) | empty) - misshapen.keys()
    return Loaded(model, missing, set(report["unexpected_keys"]), misshapen)


def _check_config(folder: Path) -> None:
    names_in(folder)  # says more of a link that leads nowhere
    config = read_json(folder / CONFIG_FILE)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG_FILE}: not a table of settings; copy the file again")
    if config.get("quantization_config"):
        raise UserError(f"{folder}: the weights are quantized, and float32 is computed with; give the model that was not quantized")
    if config.get("transformers_weights") is not None:
        raise UserError(f"{folder / CONFIG_FILE}: 'transformers_weights' names a file of weights; remove it, and name the file as usual")
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder}: holds an adapter (adapter_config.json); merge it into the weights, or remove it")


def _listed(what: str, names: Iterable[str], shown: Callable[[str], str] = str) -> list[str]:
    """``3 weights are missing (a, b, c)``, or nothing where there are no names."""
    names = sorted(names)
    if not names:
        return []
    if len(names) > 1:
        verb, _, rest = what.partition(" ")
        what = f"{ {'is': 'are', 'has': 'have'}[verb]} {rest}"
    first = ", ".join(shortened(shown(name), 100) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} weight{'s' if len(names) > 1 else ''} {what} ({first}{more})"]


def require_finite_weights(model: torch.nn.Module, folder: Path) -> None:
    """Raise at the first tensor that holds something that is no finite number.

    Raises:
        UserError: with the tensor's name.
    """
    for name, value in model.state_dict().items():
        # A sum is quicker than a look at each number; it may overflow where none is infinite, so that it only says where to look.
        if value.is_floating_point() and not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
            what = "NaN" if torch.isnan(value).any() else "infinity"
            where = f"{folder.name}.{name}"
            raise UserError(f"{folder}: the weights hold {what} in {where}; load an earlier checkpoint, or copy the model again")


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of what a network computes: names, shapes and values of its tensors, and its settings, however they are stored."""
    config: Any = model.config
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {key: value for key, value in settings.items() if not key.startswith("_") and key not in _NOTES}
    digest = hashlib.sha256(json.dumps([type(model).__name__, kept], sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(value.shape)}\0{value.dtype}\0".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
