"""How far an audit's figures move when only the seed of its draws changes, and what an audit costs.

    EVENHAND_DATA=... python benchmarks/audit_seeds.py --work runs/audit-seeds --demo quickstart
    EVENHAND_DATA=... python benchmarks/audit_seeds.py --work runs/audit-seeds --demo quickstart --baseline CHECKOUT/src

Three pairs of cohorts, each audited with three seeds and the same judges: the demo's, HAM10000 and NIH ChestX-ray14. Of a real data set the
stand-in for generated images are its own training images, blurred and a little brighter: what is measured is the draws' noise, which no
trained model changes. A value's change is told in half widths of its own interval, the largest over pairs of seeds. ``--baseline``
measures another version of Evenhand beside this one.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, write_result
from scipy.ndimage import gaussian_filter

from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort, to_image
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import read_json, write_json

SEEDS = (0, 1, 2)
REAL = {"ham10000": ("ham10000", None), "nih-cxr": ("nih_cxr", ["effusion", "view"])}
MOST = 1500  # real images of a data set
BLUR, BRIGHTER = 0.7, 0.02
NEAR = (0.01, 0.1)  # p-values whose change matters


def main() -> None:
    """Make what is missing, audit, compare, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--demo", type=Path, required=True, help="the folder that evenhand quickstart wrote")
    parser.add_argument("--baseline", type=Path, help="src folder of another version to measure beside this one")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pairs = {"demo": (options.demo / "real", options.demo / "generated")}
    pairs |= {name: _stand_in(name, options.work) for name in REAL}
    result = RESULTS / "audit_seeds.json"
    known = read_json(result) if result.exists() else {}
    payload = {key: known.get(key, {}) for key in ("now", "baseline")}
    version = "baseline" if options.baseline else "now"
    for name, pair in pairs.items():  # written as they come: all of them take a quarter of an hour
        payload[version][name] = _measured(options.work / version, name, *pair, options)
        result = write_result("audit_seeds", payload, seeds=list(SEEDS))
    print(result.read_text())


def _stand_in(name: str, work: Path) -> tuple[Path, Path]:
    """A real cohort, and its training images as if they were generated."""
    real, made = work / name / "real", work / name / "made"
    folder, conditions = REAL[name]
    if not (real / SCHEMA_FILE).exists():
        raw = Path(os.environ["EVENHAND_DATA"]) / folder
        import_cohort(name, raw, real, ImportSettings(size=64, conditions=conditions, limit=MOST, seed=0))
    if not (made / SCHEMA_FILE).exists():
        cohort, blurred = Cohort.load(real).split("train"), work / name / "blurred"
        for file, pixels in zip(cohort.table["image"], cohort.pixels(), strict=True):
            (blurred / file).parent.mkdir(parents=True, exist_ok=True)
            to_image(gaussian_filter(pixels, (BLUR, BLUR, 0)[: pixels.ndim]) + BRIGHTER).save(blurred / file)
        table = cohort.table.assign(split="test", subject_id=[f"made-{row}" for row in range(len(cohort))])
        schema = cohort.schema.model_copy(update={"synthetic": True, "name": f"{name}-blurred"})
        Cohort(schema, table.drop(columns="sha256", errors="ignore"), blurred).save(made)
    return real, made


def _measured(work: Path, name: str, real: Path, made: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The largest changes between seeds, by section, and the seconds of each audit."""
    judges = options.demo / "audit-judges" if name == "demo" else options.work / name / "audit-judges"
    work.mkdir(parents=True, exist_ok=True)
    if not judges.exists():
        _audit(real, made, options.work / name / "audit.json", [], 0, None)
    audits, seconds = [], []
    for seed in SEEDS:
        out = work / f"{name}-{seed}.json"
        if not out.exists():
            start = time.perf_counter()
            _audit(real, made, out, sorted(path.parent for path in judges.glob("*/model.safetensors")), seed, options.baseline)
            write_json(out.with_suffix(".seconds"), {"seconds": round(time.perf_counter() - start, 1)})
        seconds.append(read_json(out.with_suffix(".seconds"))["seconds"])
        audits.append(read_json(out))
    changes: dict[str, dict[str, Any]] = {}
    for first, second in itertools.combinations(audits, 2):
        for section, kind, change, where in _changes(first, second, section=""):
            row = changes.setdefault(section, {})
            if change > row.get(kind, {}).get("largest", -1.0):
                row[kind] = {"largest": round(change, 4), "at": where}
    return {"seconds": seconds, "largest_change": changes}


def _audit(real: Path, made: Path, out: Path, judges: list[Path], seed: int, source: Path | None) -> None:
    words = ["audit", "--real", str(real), "--synthetic", str(made), "--out", str(out), "--seed", str(seed)]
    words += [word for judge in judges for word in ("--judge", str(judge))]
    environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
    subprocess.run([sys.executable, "-c", "from evenhand.cli import main; main()", *words], env=environment, check=True)


def _changes(first: Any, second: Any, section: str, where: str = "") -> Iterator[tuple[str, str, float, str]]:
    """Section, kind of figure, how far it moved, and where, for all figures of two audits."""
    if isinstance(first, list) and isinstance(second, list):
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _changes(one, other, section, f"{where}[{place}]")
    if not isinstance(first, dict) or not isinstance(second, dict):
        return
    if "metric" in first or "question" in first:
        section = f"{section.split(':', maxsplit=1)[0]}:{first.get('metric') or first.get('measure') or ''}".rstrip(":")
        where = f"{first.get('question', '')}{where.rpartition(']')[2]}"
    for kind, change, name in _own_changes(first, second):
        yield section, kind, change, f"{where}.{name}"
    for name in first.keys() & second.keys():
        yield from _changes(first[name], second[name], section or name, f"{where}.{name}")


def _own_changes(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Kind of figure, how far it moved, and its name, for the figures of one table or cell."""
    for value, low, high, kind in (("value", "low", "high", ""), ("gap", "gap_low", "gap_high", "gap ")):
        bounds = [first.get(name) for name in (value, low, high)]
        if all(isinstance(bound, float | int) for bound in bounds) and bounds[2] > bounds[1]:
            for name, what in ((value, "value"), (low, "bound"), (high, "bound")):
                if second.get(name) is not None:
                    yield kind + what, 2 * abs(first[name] - second[name]) / (bounds[2] - bounds[1]), name
    one, other = first.get("p_value"), second.get("p_value")
    if one is not None and other is not None:
        yield "p-value", abs(one - other), "p_value"
        if NEAR[0] <= min(one, other) and max(one, other) <= NEAR[1]:
            yield "p-value near .05", abs(one - other), f"p_value: {one:.4f} and {other:.4f}"
    if first.get("effect") and second.get("effect"):
        yield "effect, in parts of itself", abs(first["effect"] - second["effect"]) / first["effect"], "effect"


if __name__ == "__main__":
    main()
