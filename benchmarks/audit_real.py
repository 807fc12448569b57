"""The audit on real images where the truth is known: real against real, one group blurred, and a planted mix.

    EVENHAND_DATA=... python benchmarks/audit_real.py nih-cxr --work runs/audit-nih

Subjects are parted in two. One part is the real cohort, half of whose subjects train the judges; the other stands in for generated
images. Four audits by the same judges: as it is (no gap should stand), with one group blurred (that group should be
named), with prompts silent on sex as it is, and with a planted 80/20 mix (to be estimated within its interval, or refused where
the judge cannot see sex).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_result
from PIL import Image
from scipy.ndimage import gaussian_filter

from evenhand.audit.result import AuditResult, PresenceTable
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort, write_table
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import write_json
from evenhand.core.groups import UNSPECIFIED
from evenhand.core.randomness import generator
from evenhand.report.html import write_report

BLUR = 2.0  # px, on one group
PLANTED = 0.8  # share of the first group of sex
AT_MOST = 4  # planted images of one patient: generated images are apart from each other, sixty of one patient are not


@dataclass(frozen=True)
class World:
    """One data set: its folder under EVENHAND_DATA, which conditions it has, and how long judges train."""

    folder: str
    conditions: list[str] | None
    judge_epochs: float


WORLDS = {"ham10000": World("ham10000", None, 5), "nih-cxr": World("nih_cxr", ["view"], 30)}


def main() -> None:
    """Make the cohorts that are missing, audit each, and write what was found for every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    if "EVENHAND_DATA" not in os.environ:
        raise SystemExit("EVENHAND_DATA is not set; it names the folder that holds the raw data sets")
    found = {f"seed {seed}": _audited(options.source, options.work / f"seed{seed}", seed) for seed in options.seeds}
    path = write_result(f"audit_real_{WORLDS[options.source].folder}", {"found": found}, seeds=options.seeds)
    print(path.read_text())


def _audited(source: str, work: Path, seed: int) -> dict[str, Any]:
    """The four audits of one split of the subjects and one training of the judges."""
    world = WORLDS[source]
    work.mkdir(parents=True, exist_ok=True)
    real, other = _parts(source, work, seed)
    made = {
        "as_it_is": _stand_in(other, work / "same", silent=False),
        "blurred": _stand_in(other, work / "blurred", silent=False, blurred="female"),
        "silent": _stand_in(other, work / "silent", silent=True),
        "planted": _stand_in(_with_mix(other, seed), work / "planted", silent=True),
    }
    judges: list[Path] = []
    results = {}
    for name in ("silent", "as_it_is", "blurred", "planted"):  # the silent one first: it trains a judge of sex too
        out = work / f"{name}.json"
        results[name] = audit_cohorts(
            AuditSettings(
                real=real.root, synthetic=made[name].root, out=out, judge=judges or None, primary=["quality:sex"],
                judge_epochs=world.judge_epochs, copies=name == "as_it_is", seed=seed,
            )
        )  # fmt: skip
        judges = judges or [Path(judge.path) for judge in results[name].judges]
        write_report([out], out.with_suffix(".html"))
    return {
        "real": {"images": len(real), "subjects": int(real.table["subject_id"].nunique())},
        "other": {"images": len(other), "subjects": int(other.table["subject_id"].nunique())},
        "judge_auc": {judge.target: judge.auc for judge in results["silent"].judges},
        "quality": {name: _quality(results[name]) for name in ("as_it_is", "blurred")},
        "presence": {name: _presence(results[name], made[name], other) for name in ("silent", "planted")},
    }


def _parts(source: str, work: Path, seed: int) -> tuple[Cohort, Cohort]:
    """The real part and the one that stands in for generated images, 60 to 40, by subject."""
    for name in ("real", "other"):
        if not (work / name / SCHEMA_FILE).exists():
            if not (work / "all" / SCHEMA_FILE).exists():
                settings = ImportSettings(size=64, conditions=WORLDS[source].conditions, seed=seed)
                import_cohort(source, Path(os.environ["EVENHAND_DATA"]) / WORLDS[source].folder, work / "all", settings)
            whole = Cohort.load(work / "all")
            subjects = np.array(sorted(whole.table["subject_id"].unique()))
            drawn = generator(seed, "audit-real").permutation(len(subjects)) < 0.6 * len(subjects)
            inside = whole.table["subject_id"].isin(subjects[drawn])
            part = whole.subset(inside if name == "real" else ~inside)
            place = part.table["subject_id"].map({subject: i for i, subject in enumerate(sorted(part.table["subject_id"].unique()))})
            splits = np.array(["train", "val", "train", "test"])[place.to_numpy() % 4]  # many held out: they are what is compared
            Cohort(part.schema, part.table.assign(split=splits), part.root).save(work / name)
    return Cohort.load(work / "real"), Cohort.load(work / "other")


def _with_mix(other: Cohort, seed: int) -> Cohort:
    """The largest random part with the planted mix, of a few images a patient."""
    first, second = other.schema.attributes["sex"][:2]
    mixed = other.table.iloc[generator(seed, "few").permutation(len(other))]
    few = (mixed.groupby("subject_id").cumcount() < AT_MOST).sort_index().to_numpy()
    rows = {name: np.flatnonzero((other.table["sex"] == name) & few) for name in (first, second)}
    n = int(min(len(rows[first]) / PLANTED, len(rows[second]) / (1 - PLANTED)))
    draws = generator(seed, "planted")
    kept = [draws.permutation(rows[name])[: round(share * n)] for name, share in ((first, PLANTED), (second, 1 - PLANTED))]
    return other.subset(np.isin(np.arange(len(other)), np.concatenate(kept)))


def _stand_in(cohort: Cohort, path: Path, *, silent: bool, blurred: str | None = None) -> Cohort:
    """The cohort written as if it were generated; its prompts silent on sex, or one group blurred."""
    if not (path / SCHEMA_FILE).exists():
        cohort.save(path)
        copy = Cohort.load(path)
        table = copy.table
        if blurred is not None:
            for name in table.loc[table["sex"] == blurred, "image"]:
                _blur(copy.image_path(name))
            table = table.assign(sha256=None)
        write_table(path / TABLE_FILE, table.assign(sex=UNSPECIFIED, true_sex=table["sex"]) if silent else table)
        write_json(path / SCHEMA_FILE, copy.schema.model_copy(update={"synthetic": True, "name": path.name}).model_dump())
    return Cohort.load(path)


def _blur(path: Path) -> None:
    pixels = np.asarray(Image.open(path), dtype=np.float32)
    soft = gaussian_filter(pixels, (BLUR, BLUR, 0)[: pixels.ndim])
    Image.fromarray(soft.round().astype(np.uint8)).save(path, quality=95)  # quality: for JPEG alone


def _quality(result: AuditResult) -> dict[str, Any]:
    decisions = {decision.question: decision.model_dump() for decision in result.decisions if decision.question.startswith("quality")}
    table = next(table for table in result.quality if table.by == ["sex"] and table.metric == "kid" and table.primary)
    return {"decisions": decisions, "worst": table.worst, "rows": [row.model_dump(exclude={"reference"}) for row in table.rows]}


def _presence(result: AuditResult, made: Cohort, other: Cohort) -> dict[str, Any]:
    table: PresenceTable = next(table for table in result.presence if table.by == ["sex"])
    known = made.table.loc[made.table["true_sex"].isin(other.schema.attributes["sex"]), "true_sex"]
    truth = known.value_counts(normalize=True).to_dict()
    bounded = [row for row in table.rows if row.low is not None and row.high is not None]
    inside = {row.group: (row.low or 0) <= truth.get(row.group, 0) <= (row.high or 0) for row in bounded}
    return {"identifiable": table.identifiable, "refusal": table.refusal, "truth": truth, "truth_inside_interval": inside,
            "rows": [row.model_dump() for row in table.rows], "n_calibration": table.n_calibration}  # fmt: skip


if __name__ == "__main__":
    main()
