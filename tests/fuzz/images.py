"""Odd image files: cohorts of a few images of which some are damaged, deep, turned, or no images at all."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pandas as pd
from fuzz.cases import MAX_MESSAGE
from fuzz.formats import SIDE, File, odd_file, picture
from fuzz.ways import Way
from PIL import Image

from evenhand.core.artifacts import read_json


def check(seed: int, folder: Path, way: Way) -> str | None:
    """Import the images of a seed; what is wrong, or None."""
    draw = random.Random(f"image {seed}")
    raw, out = folder / "raw", folder / "out"
    raw.mkdir()
    files: dict[str, File] = {}
    kinds: dict[str, str] = {}
    for number in range(draw.choice([1, 2, 3, 5])):
        kind, file = odd_file(draw, number)
        name = f"i{number}{file.ending}"
        files[name], kinds[name] = file, kind
        (raw / name).write_bytes(file.data)
    (raw / "table.csv").write_text("image,sex\n" + "".join(f"{name},f\n" for name in files))
    strict = draw.random() < 0.15
    options = {"attributes": ["sex"], "size": SIDE, "mode": "L", "skip_bad": 0 if strict else 100}
    outcome = way("import", [str(raw), str(out)], options)
    fault = outcome.crash
    if not fault and outcome.code == 1:
        fault = _refusal(files, outcome.message, strict=strict)
    elif not fault:
        fault = _arrived(files, out)
    return f"[{', '.join(f'{name}: {kind}' for name, kind in kinds.items())}] {fault}" if fault else None


def _refusal(files: dict[str, File], message: str, *, strict: bool) -> str:
    if "\n" in message or len(message) > MAX_MESSAGE or not message.isprintable():
        return f"no short line: {message!r:.600}"
    bad = [name for name, file in files.items() if file.fate != "arrive"]
    if not bad or (not strict and len(bad) < len(files)):
        return f"good images are refused: {message}"
    if strict and not any(name in message for name in bad):
        return f"the refusal names no image: {message}"
    return ""


def _arrived(files: dict[str, File], out: Path) -> str:
    table = pd.read_parquet(out / "cohort.parquet")
    made = read_json(out / "cohort.json")["made"]
    skipped = made["skipped"]
    if len(table) + len(skipped) != len(files):
        return f"{len(files)} images, {len(table)} arrived, {len(skipped)} are listed"
    for fault in skipped:
        if len(fault) > MAX_MESSAGE or not fault.isprintable():
            return f"a listed fault is no short line: {fault!r:.400}"
    arrived = dict(zip(table["image_id"], table["image"], strict=True))
    alone = len({file.deep for file in files.values() if file.deep}) < 2
    for number, (name, file) in enumerate(files.items()):
        listed = next((fault for fault in skipped if f"{name}:" in fault), None)
        fault = _fate(name, file, listed, there=name in arrived)
        if not fault and not listed and file.like > -1 and (alone or not file.deep):
            alike = _alike(out / arrived[name], picture(number))
            fault = f"{name} does not show its picture: correlation {alike:.2f}" if alike < file.like else ""
        if fault:
            return fault
    return ""


def _fate(name: str, file: File, listed: str | None, *, there: bool) -> str:
    if there == (listed is not None):
        return f"{name} is neither imported nor listed, or both"
    if file.fate == "refuse" and not listed:
        return f"{name} is imported, but is no whole image"
    return f"{name} is refused, but good: {listed}" if file.fate == "arrive" and listed else ""


def _alike(path: Path, wanted: np.ndarray) -> float:
    found = np.asarray(Image.open(path), dtype=float)
    if found.std() < 2:
        return 0.0
    return float(np.corrcoef(found.ravel(), wanted.ravel())[0, 1])
