"""The same cohorts and judges give the same figures on every processor: an older one is emulated in a process of its own."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, write_table
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import write_json
from evenhand.models.classifiers import ClassifierSettings, train_classifier

# No AVX: other vector lengths, so other orders of summation, so other last bits of features.
OLD_PROCESSOR = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3",
    "OPENBLAS_CORETYPE": "Nehalem",
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
AUDIT = """
import sys
from pathlib import Path
import evenhand.audit.subsampling as subsampling
from evenhand.audit.run import AuditSettings, audit_cohorts
subsampling._LEAST = 12
subsampling._MOST = subsampling._MOST_OF_SMALL = 48
root = Path(sys.argv[1])
audit_cohorts(AuditSettings(
    real=root / "real", synthetic=root / "generated", out=Path(sys.argv[2]), judge=[root / "sex", root / "tumour"],
    repeats=2, n_boot=100, min_n=5,
))
"""
ROUNDING = 1e-6  # a tenth of the last decimal that a report shows; an unbiased distance may lie as near to 0 as it likes
NOT_FIGURES = ("provenance", "settings", "findings")


def figures(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a result with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if path or name not in NOT_FIGURES:
                yield from figures(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from figures(inner, f"{path}[{place}]")
    else:
        yield path, value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cohorts of phantoms, several images per subject, prompts silent on sex; and a judge of each column that is judged."""
    root = tmp_path_factory.mktemp("processors")
    write_phantoms("brain", root / "real", n=200, mix="sex=male:0.6,female:0.4", size=32, seed=0, images_a_subject=2)
    made = write_phantoms("brain", root / "generated", n=80, size=32, seed=1)
    write_table(made.root / TABLE_FILE, made.table.assign(sex="unspecified"))
    write_json(made.root / SCHEMA_FILE, made.schema.model_copy(update={"synthetic": True}).model_dump())
    for target in ("sex", "tumour"):
        train_classifier(ClassifierSettings(cohort=root / "real", target=target, out=root / target, steps=40, batch_size=16))
    return root


def test_an_audit_gives_the_same_figures_on_another_processor(world: Path) -> None:
    results = []
    for name, processor in (("this", {}), ("old", OLD_PROCESSOR)):
        environment = {**os.environ, "EVENHAND_CACHE": str(world / f"cache-{name}"), **processor}
        out = world / name / "audit.json"
        subprocess.run([sys.executable, "-c", AUDIT, str(world), str(out)], env=environment, check=True, capture_output=True, timeout=300)
        results.append(dict(figures(json.loads(out.read_text(encoding="utf-8")))))
    here, there = results
    assert here.keys() == there.keys() and sum(isinstance(value, float) for value in here.values()) > 300
    apart = {
        path: (value, there[path])
        for path, value in here.items()
        if (not math.isclose(value, there[path], rel_tol=1e-4, abs_tol=ROUNDING) if isinstance(value, float) else value != there[path])
    }
    assert not apart
