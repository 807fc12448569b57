"""The components of a pipeline folder: which it has, which files they are read from, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from evenhand.core.artifacts import is_file, read_json
from evenhand.core.errors import UserError
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries
from evenhand.models.weights import component_files, load_weights, names_in

INDEX_FILE = "model_index.json"
SCHEDULER_FILE = "scheduler_config.json"
_MOST_LAYERS, _LARGEST = 1000, 10**9
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json``: the pipeline's class, its components, and its own settings.

    Raises:
        UserError: it is no table.
    """
    index = read_json(folder / INDEX_FILE)
    if not isinstance(index, dict):
        raise UserError(f"{folder / INDEX_FILE}: not a table of components; copy the file again")
    return index


def component_classes(folder: Path, index: Mapping[str, Any], wanted: Mapping[str, type], left_out: tuple[str, ...]) -> dict[str, type]:
    """The classes of the components that are loaded, by name.

    Args:
        wanted: what each must be, exactly or as a base class.
        left_out: what may be there, and is not loaded.

    Raises:
        UserError: one is not there, is of another class, or is there and unknown.
    """
    stated = {name: entry for name, entry in index.items() if isinstance(entry, list) and any(part is not None for part in entry)}
    if unknown := sorted(stated.keys() - wanted.keys() - set(left_out)):
        raise UserError(f"{folder / INDEX_FILE}: lists {unknown[0]!r}, which a {index['_class_name']} does not have; take it out")
    return {name: _component_class(folder, name, stated.get(name), base) for name, base in wanted.items()}


def _component_class(folder: Path, name: str, entry: list[Any] | None, base: type) -> type:
    where = folder / INDEX_FILE
    if entry is None:
        raise UserError(f"{where}: lists no {name!r}; copy the model again, with all of its folders")
    library, class_name = entry if len(entry) == 2 and all(isinstance(part, str) for part in entry) else ("", "")
    try:
        kind = getattr(_LIBRARIES.get(library), class_name, None)
    except LOAD_ERRORS:  # a library that the class wants is not installed
        kind = None
    if not isinstance(kind, type):
        raise UserError(f"{where}: {name!r} is {entry!r}, which diffusers and transformers do not have here; it must be {_named(base)}")
    if kind is not base and (base.__name__ in ("AutoencoderKL", "UNet2DConditionModel") or not issubclass(kind, base)):
        raise UserError(f"{where}: {name!r} is {class_name}, which is not supported; it must be {_named(base)}")
    return kind


def _named(base: type) -> str:
    bases = {"SchedulerMixin": "a scheduler of diffusers", "PreTrainedTokenizerBase": "a tokenizer", "PreTrainedModel": "a text encoder"}
    return bases.get(base.__name__, base.__name__)


def files_of(folder: Path, kind: type) -> list[Path]:
    """What is read of a component, all of it and no more.

    Raises:
        UserError: nothing is there to be read.
    """
    if issubclass(kind, SchedulerMixin):
        return [_required(folder / SCHEDULER_FILE)]
    if issubclass(kind, PreTrainedTokenizerBase):
        return _tokenizer_files(folder)
    return [_required(folder / "config.json"), *component_files(folder, kind)[1:]]


def _required(path: Path) -> Path:
    if not is_file(path):
        what = "a link that leads nowhere" if path.is_symlink() or path.parent.is_symlink() else "no such file"
        raise UserError(f"{path}: {what}; copy the model again, with all of its folders")
    return path


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [folder / name for name in names_in(folder) if name.endswith((".json", ".txt", ".model")) and is_file(folder / name)]
    if not {file.name for file in files} & set(_VOCABULARIES):  # transformers would make one of two words
        wanted = ", ".join(_VOCABULARIES[:2])
        raise UserError(f"{folder}: no vocabulary ({wanted} or another); copy the model again, with all of its folders")
    return files


def load_component(folder: Path, kind: Any) -> Any:
    """Read one component; networks strictly and in float32, see ``load_weights``.

    Raises:
        UserError: it cannot be read.
    """
    files_of(folder, kind)
    if not issubclass(kind, SchedulerMixin | PreTrainedTokenizerBase):
        _check_class(folder, kind)
        _check_sizes(folder / "config.json")
        loaded = load_weights(kind, folder)
        loaded.require_whole(folder)
        return loaded.model.eval()
    if issubclass(kind, SchedulerMixin) and not isinstance(read_json(folder / SCHEDULER_FILE), dict):
        raise UserError(f"{folder / SCHEDULER_FILE}: not a table of settings; copy the file again")
    try:
        with quiet_libraries():
            return kind.from_pretrained(str(folder), local_files_only=True)
    except LOAD_ERRORS as error:
        raise UserError(f"{folder}: cannot load the model ({kind.__name__}: {brief(error)}); copy the folder again") from None


def _check_sizes(where: Path) -> None:
    """Raise for numbers of layers that would be built for hours, and for sizes that no memory holds."""
    config = read_json(where)
    for name, value in config.items() if isinstance(config, dict) else ():
        for number in value if isinstance(value, list) else [value]:
            most = _MOST_LAYERS if "layers" in name else _LARGEST
            if isinstance(number, int | float) and not isinstance(number, bool) and abs(number) > most:
                raise UserError(f"{where}: {name} is {number}, above {most:,}; restore the settings that the network was saved with")


def _check_class(folder: Path, kind: type) -> None:
    """diffusers reads the settings of another class without a word."""
    config = read_json(folder / "config.json")
    stated = config.get("_class_name") if isinstance(config, dict) else None
    if stated is not None and stated != kind.__name__:
        raise UserError(f"{folder / 'config.json'}: of {stated}, but {INDEX_FILE} says {kind.__name__}; copy the folder that belongs there")
