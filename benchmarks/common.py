"""What every benchmark shares: results as JSON that say how they came about, intervals over seeds, and tables."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import t as student

from evenhand.audit.frame import Estimate
from evenhand.cohorts.cohort import Cohort, to_image
from evenhand.core.artifacts import provenance, read_json, write_atomically, write_json
from evenhand.core.groups import NOT_GROUPS, intersection

JOINT = "everything"  # label of all attributes and conditions
RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, payload: dict[str, Any], *, seeds: list[int]) -> Path:
    """Write ``results/name.json`` atomically: command, versions, commit, threads and load of the machine, seeds, then ``payload``.

    Paths of this machine are kept out of what is committed: of the arguments and values that are absolute paths the last part stays.
    """
    made = provenance(seeds=seeds, cores=os.cpu_count(), omp_num_threads=os.environ.get("OMP_NUM_THREADS"))
    made["command"] = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    made["load_average"] = [round(value, 2) for value in os.getloadavg()]
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, _without_roots({**made, **payload}))
    return path


def is_done(note: Path, plan: Mapping[str, Any]) -> bool:
    """Whether a run's figures are there; figures of another plan than today's end the script."""
    if not note.exists():
        return False
    if read_json(note).get("plan") != plan:
        raise SystemExit(f"{note}: of another recipe, or of other --images; take another --work, or remove it, and what was drawn")
    return True


def contact_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], *, tile: int, colours: int, gap: int = 8) -> None:
    """Rows of images as a small PNG; every two rows belong together, a gap parts them from the next two."""
    sheet = Image.new("RGB", (max(map(len, rows)) * tile, len(rows) * tile + (len(rows) - 1) // 2 * gap), (255, 255, 255))
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            picture = to_image(image).convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(picture, (across * tile, down * tile + down // 2 * gap))
    write_atomically(path, lambda partial: sheet.quantize(colours).save(partial, format="PNG", optimize=True))


def with_joint(cohort: Cohort, invisible: Sequence[str] = ()) -> Cohort:
    """The cohort with all attributes and conditions as one label: a classifier of it sees more of an image than one of a single label."""
    names = [name for name in (*cohort.schema.attributes, *cohort.schema.conditions) if name not in invisible]
    joint = intersection(cohort.table, names)
    labels = sorted(set(joint) - set(NOT_GROUPS))
    schema = cohort.schema.model_copy(update={"conditions": {**cohort.schema.conditions, JOINT: labels}})
    return Cohort(schema, cohort.table.assign(**{JOINT: joint}), cohort.root)


def number(found: Estimate | float) -> float:
    """A distance as a number, whether its measure gives an interval with it or not."""
    return found.value if isinstance(found, Estimate) else found


def interval(values: np.ndarray) -> dict[str, float | None]:
    """Mean of paired differences, with a 95 % t interval."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(student.isf(0.025, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *rows])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.3g}" + (f" ± {np.std(values, ddof=1).round(9):.2g}" if len(values) > 1 else "")


def with_interval(found: Mapping[str, float | None]) -> str:
    """A mean and its interval, where there is one."""
    bounds = "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['mean']:.3g}{bounds}"


def _without_roots(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_roots(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_roots(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, str) and value.startswith("/")):
        return Path(value).name if Path(value).is_absolute() else str(value)
    return value
