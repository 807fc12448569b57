"""Cost of a subgroup audit beside the procedure it replaces: a feature pass and a full-size Fréchet distance for every group.

    python benchmarks/audit_cost.py --work runs/audit-cost

Both read the same cohorts with the same two encoders (a ResNet-50 and a ViT of usual size, random weights: only cost is measured), for
every group of three attributes, all their intersections and the whole. The reference does what published subgroup evaluations do:
images of each group are read and encoded again, and the distance takes a matrix square root of the full covariance. Ours is the whole
of ``evenhand audit``: intervals, gap tests, presence, overlap, from one feature pass. Each runs in a process of its own, in turn, with
an empty cache; peak memory is that of the process. Ours runs twice, with and without intersections, to see memory by number of groups.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result

from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import write_json
from evenhand.core.randomness import generator
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.preprocessing import Preprocessing

SIDE = 32
ATTRIBUTES = ("sex", "age_group", "site")


def main() -> None:
    """Make the cohorts and encoders that are missing, run each procedure in turn, and write what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=5000, help="images a side")
    parser.add_argument("--part", choices=("ours", "ours-single", "reference"), help="run one procedure here and print its cost")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(_measured(options.part, options.work)))
        return
    _prepare(options.work, options.n)
    found = {part: _in_a_process(part, options) for part in ("ours", "reference", "ours-single")}
    ratio = {name: found["reference"][name] / found["ours"][name] for name in ("seconds", "processor_seconds")}
    print(
        write_result("audit_cost", {"n": options.n, "groups": _count(options.work), "found": found, "ratio": ratio}, seeds=[0]).read_text()
    )


def _in_a_process(part: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(options.work), "--n", str(options.n), "--part", part]
    environment = os.environ | {"EVENHAND_CACHE": str(options.work / f"cache-{part}-{time.time_ns()}")}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _measured(part: str, work: Path) -> dict[str, Any]:
    start = time.perf_counter()
    images = _reference(work) if part == "reference" else _ours(work, 1 if part == "ours-single" else len(ATTRIBUTES))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 1), "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss / 1024), "images_encoded": images,
    }  # fmt: skip


def _prepare(work: Path, n: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("real", "synthetic")):
        if not (work / name / SCHEMA_FILE).exists():
            made = write_phantoms("brain", work / f"{name}-drawn", n=n, size=SIDE, seed=seed)
            sites = np.array(["north", "south"])[generator(seed, "site").integers(2, size=n)]
            schema = made.schema.model_copy(update={"attributes": {**made.schema.attributes, "site": ["north", "south"]}})
            Cohort(schema, made.table.assign(site=sites, split="test"), made.root).save(work / name)
            if name == "synthetic":
                schema = Cohort.load(work / name).schema.model_copy(update={"synthetic": True})
                write_json(work / name / SCHEMA_FILE, schema.model_dump())
    if not (work / "judge").exists():
        write_phantoms("brain", work / "judged", n=200, size=SIDE, seed=9)
        train_classifier(ClassifierSettings(cohort=work / "judged", target="tumour", out=work / "judge", steps=20))
    for name, build in (("resnet50", _resnet), ("vit", _vit)):
        if not (work / name).exists():
            build().save_pretrained(work / name)
            Preprocessing((SIDE, SIDE), None, (0.5,) * 3, (0.5,) * 3).save(work / name)


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig())


def _vit() -> Any:
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(image_size=SIDE, patch_size=8, hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6)
    return ViTModel(small)


def _ours(work: Path, intersect: int) -> int:
    result = audit_cohorts(
        AuditSettings(
            real=work / "real", synthetic=work / "synthetic", out=work / f"audit-{time.time_ns()}.json", judge=[work / "judge"],
            encoder=[work / "resnet50", work / "vit"], intersect=intersect, copies=False,
        )
    )  # fmt: skip
    return sum(encoder.features_real + encoder.features_synthetic for encoder in result.encoders)


def _cells(table: Any) -> list[np.ndarray]:
    """Rows of the whole, of every group and of every intersection."""
    cells = [np.arange(len(table))]
    for size in range(1, len(ATTRIBUTES) + 1):
        for names in itertools.combinations(ATTRIBUTES, size):
            cells += [np.asarray(rows) for _, rows in sorted(table.groupby(list(names)).indices.items())]
    return cells


def _count(work: Path) -> int:
    return len(_cells(Cohort.load(work / "real").table))


def _reference(work: Path) -> int:
    from scipy.linalg import sqrtm

    cohorts = [Cohort.load(work / name) for name in ("real", "synthetic")]
    encoded = 0
    for name in ("resnet50", "vit"):
        encoder = Encoder.load(work / name)
        for pair in zip(*(_cells(cohort.table) for cohort in cohorts), strict=True):
            moments = []
            for cohort, rows in zip(cohorts, pair, strict=True):
                features = np.concatenate([encoder.features(cohort.pixels(rows[i : i + 64])) for i in range(0, len(rows), 64)]).astype(
                    float
                )
                encoded += len(rows)
                moments.append((features.mean(axis=0), np.cov(features, rowvar=False)))
            (mean, covariance), (other_mean, other) = moments
            root = np.real(sqrtm(covariance @ other))
            float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other) - 2 * np.trace(root))
    return encoded


if __name__ == "__main__":
    main()
