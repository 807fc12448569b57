"""What every long run shares: a folder of its own, settings that hold over a resumption, a log, a model, and an orderly stop."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from evenhand.core.artifacts import new_folder, provenance, write_json, write_text
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import checkpoint_folders
from evenhand.models.adapters import has_lora, merge_lora, save_lora
from evenhand.models.libraries import quiet_libraries
from evenhand.models.pipelines import keep_clip, model_provenance
from evenhand.models.sampling import BLOCK
from evenhand.models.schedules import drop_defaults

CONFIG_FILE = "config.yaml"


def check_folder(settings: Settings, resumable: Collection[str]) -> None:
    """Whether a run may begin in ``settings.out``, or go on there with ``--resume``.

    Args:
        settings: with ``out`` and ``resume``.
        resumable: settings that may differ when it goes on.

    Raises:
        UserError: the folder holds something else, or settings differ that would change the result.
    """
    given: Any = settings
    out: Path = given.out
    if (out / CONFIG_FILE).is_file():
        _same_run(settings, out, resumable, resume=given.resume)
    elif [file for file in out.iterdir() if not file.name.startswith(".")]:
        raise UserError(f"{out}: not empty, and not a run; choose another --out")


def began_with(out: Path) -> dict[str, Any]:
    """The settings that the run in ``out`` began with; empty where there is none."""
    config = out / CONFIG_FILE
    return dict(yaml.safe_load(config.read_text()) or {}) if config.is_file() else {}


def _same_run(settings: Settings, out: Path, resumable: Collection[str], *, resume: bool) -> None:
    if not resume:
        done = checkpoint_folders(out / "checkpoints")
        at = f" at step {int(done[-1].name.removeprefix('step-'))}" if done else ""
        raise UserError(f"{out}: holds a run{at} already; go on with --resume, or choose another --out")
    config = out / CONFIG_FILE
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    began, now = {**defaults, **yaml.safe_load(config.read_text())}, settings.model_dump(mode="json")  # a setting may be newer than the run
    for key, value in now.items():
        if key not in resumable and began[key] != value:
            raise UserError(
                f"{config}: --resume with {key} = {value!r}, but the run began with {began[key]!r}; keep it, or choose another --out"
            )


def write_model(
    out: Path,
    source: str,
    pipeline: DiffusionPipeline,
    unet: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    sampling: Mapping[str, Any],
    facts: dict[str, Any],
) -> None:
    """Write ``pipeline`` with ``weights`` in ``unet`` as ``out/model``; a LoRA also as ``out/lora``, and folded into the model.

    Args:
        source: the model that the run began with, whose CLIP and history are kept beside.
        sampling: how the model is drawn unless options say otherwise, see ``models/sampling.py``.
        facts: for ``evenhand.json``, as the former.
    """
    unet.load_state_dict(weights, strict=False)
    if has_lora(unet):
        with new_folder(out / "lora", replace=True) as folder:
            save_lora(unet, folder)
        merge_lora(unet)
    with new_folder(out / "model", replace=True) as folder, quiet_libraries():
        pipeline.save_pretrained(folder, safe_serialization=True)
        drop_defaults(pipeline, folder)
        keep_clip(source, folder)
        write_json(folder / "evenhand.json", provenance(**{BLOCK: sampling}, **facts, model_provenance=model_provenance(source)))


def drop_lines_after(log: Path, key: str, last: int) -> None:
    """Lines of a JSONL log that a kill has lost would stand twice after a resume; a half-written one goes as well."""
    if log.exists():
        kept = [line for line in log.read_text().splitlines() if _number(line, key) <= last]
        write_text(log, "".join(line + "\n" for line in kept))


def _number(line: str, key: str) -> float:
    try:
        return float(json.loads(line)[key])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def any_rank(flag: bool, accelerator: Accelerator) -> bool:
    """Whether ``flag`` is set on any process; the answer is the same on all."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


class StopSignal:
    """SIGTERM and SIGINT set a flag; the loop saves at the end of the step."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> StopSignal:
        try:
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever owns it handles signals
            self._before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.seen = True
