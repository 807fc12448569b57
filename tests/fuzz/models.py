"""Odd model folders: a tiny Stable Diffusion folder with one thing changed, from which one image is drawn in one step."""

from __future__ import annotations

import functools
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from fuzz.cases import MAX_MESSAGE
from fuzz.folders import MARKER, WAYS
from fuzz.ways import Way
from PIL import Image


@functools.cache
def base() -> Path:
    """The folder that every case copies; it is removed when the process that made it ends."""
    import atexit

    from models.plain import write_plain

    folder, owner = Path(tempfile.mkdtemp(prefix="fuzz-model-")), os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    return write_plain(folder / "model", "ddim")


def check(seed: int, folder: Path, way: Way) -> str | None:
    """Draw from the model of a seed; what is wrong, or None."""
    draw = random.Random(f"model {seed}")
    name = draw.choice(sorted(WAYS))
    model = folder / "model"
    shutil.copytree(base(), model, copy_function=os.link)
    wanted = WAYS[name](draw, model)
    plan, out = folder / "plan.csv", folder / "out"
    plan.write_text("n,prompt\n1,film\n")
    options = {"model": str(model), "plan": str(plan), "out": str(out), "steps": 1, "guidance_scale": 1.0, "precision": "no"}
    if way.__name__ == "by_command":
        del options["precision"]
    outcome = way("generate", [], options)
    fault = outcome.crash
    if not fault and (folder / MARKER).exists():
        fault = "code of the model's folder was run"
    if not fault and outcome.code == 1:
        fault = _refusal(wanted, outcome.message)
    elif not fault:
        fault = "drawn from, but must be refused" if wanted == "refuse" else _image(out)
    return f"[{name}] {fault}" if fault else None


def _refusal(wanted: str, message: str) -> str:
    if "\n" in message or len(message) > MAX_MESSAGE or not message.isprintable():
        return f"no short line ({len(message)} characters): {message!r:.600}"
    if "/model" not in message and "drawn images" not in message:  # the latter is known once the model was loaded
        return f"the refusal does not name the model: {message}"
    return f"a good model is refused: {message}" if wanted == "draws" else ""


def _image(out: Path) -> str:
    table = pd.read_parquet(out / "cohort.parquet")
    if len(table) != 1:
        return f"{len(table)} images"
    pixels = np.asarray(Image.open(out / table["image"][0]), dtype=float)
    return "an image of one colour" if pixels.std() == 0 else ""
