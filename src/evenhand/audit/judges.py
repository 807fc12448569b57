"""Which classifiers read the images: those given, and for what they do not cover, ones trained on the real cohort's training split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evenhand.audit.readings import FEW_SILENT, stated
from evenhand.audit.result import CohortFacts, JudgeFacts
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort
from evenhand.cohorts.meeting import Names, require_alike
from evenhand.core.artifacts import claim, sha256_folder
from evenhand.core.errors import UserError
from evenhand.engine.devices import processes
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier


@dataclass(frozen=True)
class Judges:
    """Column -> classifier; which were trained here; which columns have none, and why."""

    by_target: dict[str, Classifier]
    trained: set[str]
    unjudged: dict[str, str]
    guides: set[str] = field(default_factory=set)

    @property
    def facts(self) -> list[JudgeFacts]:
        """For the result."""
        return [
            JudgeFacts(
                path=str(judge.path),
                target=target,
                groups=judge.groups,
                auc=judge.auc,
                sha256=judge.sha256,
                subjects_sha256=judge.subjects_sha256,
                trained_here=target in self.trained,
                guided=judge.sha256 in self.guides,
            )
            for target, judge in self.by_target.items()
        ]


def cohort_hash(cohort: Cohort) -> str:
    """One hash of schema and table; the table holds the hash of every image."""
    return sha256_folder(cohort.root, (SCHEMA_FILE, TABLE_FILE))


def guides_of(cohort: Cohort) -> set[str]:
    """Hashes of the classifiers that guided any alignment of the model behind a generated cohort, by its provenance."""
    return guides_in(cohort.schema.made or {})


def guides_in(provenance: Mapping[str, Any]) -> set[str]:
    """Hashes of the classifiers that guided any alignment of a model, by its provenance or that of its images."""
    hashes: set[str] = set()
    note: Mapping[str, Any] | None = provenance
    while note:  # a model may have been aligned more than once, or trained further since: every note holds that of the model before
        hashes |= {str(guide["sha256"] if isinstance(guide, dict) else guide) for guide in note.get("guides") or []}
        note = note.get("model_provenance")
    return hashes


def gather_judges(
    real: Cohort, synthetic: Cohort, given: list[Path], folder: Path, recipe: Recipe, *, force: bool = False, as_encoder: bool = False
) -> Judges:
    """Load the judges given; train the others that this audit needs into ``folder``, or reuse those made there from the same cohort.

    Needed are a judge for every condition that the generated images state (to see whether they show it), and for every attribute
    on which prompts are silent; with ``as_encoder`` some judge, whose features the distances take.

    Raises:
        UserError: two judges of one column, a judge of a column that the real cohort lacks, or one that guided the model.
    """
    judges: dict[str, Classifier] = {}
    guides = guides_of(synthetic)
    for path in given:
        judge = Classifier.load(path)
        real.require_column(judge.target)
        known = Names(judge.groups, judge.groups)
        require_alike(judge.target, (f"--judge {path}", known), (str(real.root), Names.of(real, judge.target)))
        if judge.target in judges:
            raise UserError(f"--judge {path}: {judge.target} has a judge already ({judges[judge.target].path}); give one a column")
        if judge.sha256 in guides and not force:
            raise UserError(
                f"--judge {path}: this classifier guided the alignment of the model that made {synthetic.root}, and a tuned model "
                "fools its guide; give one that took no part, or --force-judge to go on all the same"
            )
        judges[judge.target] = judge
    needed = [name for name in real.schema.conditions if stated(synthetic, name).notna().any()]
    needed += [name for name in real.schema.attributes if stated(synthetic, name).isna().mean() > FEW_SILENT]
    if as_encoder and not needed and not judges:
        needed = list(real.schema.columns)[:1]
    trained, unjudged = set(), {}
    for target in needed:
        if target in judges:
            continue
        train = real.split("train")
        present = stated(train, target).nunique() if len(train) else 0
        if present < 2:
            unjudged[target] = f"no judge can be trained: {present} known group in the real cohort's training split"
            continue
        judges[target] = trained_classifier(real, target, folder, recipe)
        trained.add(target)
    return Judges(judges, trained, unjudged, guides)


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained for an audit."""

    arch: str
    epochs: float
    seed: int


def trained_classifier(cohort: Cohort, target: str, folder: Path, recipe: Recipe, rows: str = "train") -> Classifier:
    """The name holds what it was made from: another cohort, seed or length makes another folder, and nothing is overwritten."""
    made_of = f"{recipe.arch} {recipe.epochs:g} {recipe.seed} {rows} {cohort_hash(cohort)}"
    safe = re.sub(r"[^\w-]+", "_", target)[:60]  # a column's name may hold a slash
    if safe != target:
        made_of += f" {target}"
    out = folder / f"{safe}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    state = processes()
    if state.is_main_process and not out.is_dir():
        facts = {"cohort": cohort.root, "target": target, "out": out, "rows": rows, **asdict(recipe)}
        train_classifier(ClassifierSettings.model_validate(facts))
    state.wait_for_everyone()
    return Classifier.load(out)


@contextmanager
def kept_beside(out: Path, what: str) -> Iterator[Path]:
    """The folder of trained classifiers beside a result, ``audit-judges``, held by this run; gone again where nothing was trained."""
    folder = out.parent / f"{out.stem}-{what}"
    if not processes().is_main_process:
        yield folder
        return
    with claim(folder):
        try:
            yield folder
        finally:
            if [file.name for file in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()


def cohort_facts(cohort: Cohort) -> CohortFacts:
    """For the result."""
    made = cohort.schema.made
    return CohortFacts(
        path=str(cohort.root.resolve()),
        name=cohort.schema.name,
        modality=cohort.schema.modality,
        n=len(cohort),
        subjects=int(cohort.table["subject_id"].nunique()),
        sha256=cohort_hash(cohort),
        synthetic=cohort.schema.synthetic,
        source=cohort.schema.source,
        licence=cohort.schema.licence,
        model_sha256=made.get("model_sha256"),
        image_size=cohort.schema.image_size,
        made_at=made.get("made_at"),
        guidance_scale=_one_value(cohort.table, "guidance_scale"),
    )


def _one_value(table: pd.DataFrame, column: str) -> float | None:
    """The value that all rows share, if they do."""
    values = table[column].dropna().unique().tolist() if column in table else []
    return float(values[0]) if len(values) == 1 else None
