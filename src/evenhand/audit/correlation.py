"""Semantic correlation as FairDiffusion measures it (Luo et al. 2025, arXiv 2412.20374), beside classifiers trained on real images.

For every label and architecture one classifier is trained on all generated images and one, of the same recipe, on the real training
split; both are tested on the same real test images, by subgroup. Labels come from the tables, never from prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from evenhand.audit.correlation_result import Beside, ClassifierFacts, CorrelationTable, GroupBeside, SemanticResult, Worst
from evenhand.audit.downstream import scores_for, train_pair
from evenhand.audit.equity import WARNINGS
from evenhand.audit.judges import Recipe, cohort_facts, kept_beside
from evenhand.audit.paired import paired_auc, paired_rates
from evenhand.audit.readings import Reading, image_ids, judged, read_column, stated
from evenhand.audit.tables import condition_labels, values_with_auc
from evenhand.cohorts.cohort import Cohort, write_table
from evenhand.cohorts.meeting import require_names_meet
from evenhand.core.artifacts import provenance
from evenhand.core.config import Settings
from evenhand.core.errors import UserError, did_you_mean
from evenhand.engine.devices import processes
from evenhand.engine.features import cohort_predictions
from evenhand.models.classifiers import ARCHITECTURES, Classifier

PUBLISHED_EPOCHS = {"vit": 50.0, "efficientnet": 10.0}
OTHER_EPOCHS = 10.0
UNLIKE_SIZES = 1.1  # times as many training images on one side


class SemanticSettings(Settings):
    """Settings of ``evenhand semantic``."""

    real: Path
    synthetic: Path
    label: list[str] = Field(min_length=1, description="columns to classify: conditions, as a rule")
    out: Path = Field(description="a .json file, or a folder that gets semantic.json")
    arch: list[str] = Field(["vit", "efficientnet"], min_length=1)
    attributes: list[str] | None = Field(None, min_length=1, description="default: all of the real cohort")
    epochs: float | None = Field(None, gt=0, description="default: as published, vit 50 and efficientnet 10; others 10")
    test_rows: Literal["test", "val+test"] = Field("test", description="val only sets the real-trained classifier's temperature")
    batch_size: int = Field(64, ge=1)
    n_boot: int = Field(1000, ge=100, description="bootstrap samples of subjects")
    min_n: int = Field(20, ge=2, description="a group with fewer test images is insufficient")
    seed: int = 0

    @property
    def file(self) -> Path:
        """The JSON file that is written."""
        return self.out if self.out.suffix == ".json" else self.out / "semantic.json"


def semantic_correlation(settings: SemanticSettings) -> SemanticResult:
    """Train and test classifiers by label and architecture; write the JSON and, beside it, the test images' scores as Parquet.

    Classifiers are kept in a folder beside the JSON and used again where cohort, label and recipe are the same.

    Returns:
        One table a label, value, architecture and attribute. A label that cannot be tested has none, but a line in ``refused``.

    Raises:
        UserError: an unknown label, attribute or architecture, not a cohort, no held-out real images, generated images that are
            test images, or ``out`` in use by another run.
    """
    real, synthetic = Cohort.load(settings.real), Cohort.load(settings.synthetic)
    test = real.split(*settings.test_rows.split("+"))
    attributes = _checked(settings, real, synthetic, test)
    trials, refused = [], []
    with kept_beside(settings.file, "classifiers") as folder:
        for label in dict.fromkeys(settings.label):
            rows = test.subset(stated(test, label).notna())
            if fault := _untestable(rows, label):
                refused.append(fault)
                continue
            for arch in dict.fromkeys(settings.arch):
                pair = train_pair(real, synthetic, label, folder, _recipe(settings, arch))
                if isinstance(pair, str):
                    refused.append(pair)
                    break
                trials.append(Trial.of(arch, pair, rows, settings.batch_size))
        tables = [table for trial in trials for table in _tables(trial, synthetic, attributes, settings)]
        result = SemanticResult(
            real=cohort_facts(real), synthetic=cohort_facts(synthetic), test_rows=settings.test_rows, n_test=len(test), tables=tables,
            refused=refused, notes=_notes(trials, synthetic), warnings=list(WARNINGS), classifiers=[c for t in trials for c in t.facts],
            seeds={"semantic": settings.seed}, settings=settings.model_dump(mode="json"), provenance=provenance(),
        )  # fmt: skip
        if processes().is_main_process:
            write_table(settings.file.with_suffix(".parquet"), _per_image_table(test, trials, attributes))
            result.save(settings.file)
        processes().wait_for_everyone()
    return result


@dataclass(frozen=True)
class Trial:
    """One label and architecture: real-trained and synthetic-trained classifier, the test images, and what each says of them."""

    arch: str
    pair: tuple[Classifier, Classifier]
    test: Cohort
    scores: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, arch: str, pair: tuple[Classifier, Classifier], test: Cohort, batch_size: int) -> Trial:
        """With the scores (n, K) of both."""
        first, second = (cohort_predictions(classifier, test, batch_size=batch_size) for classifier in pair)
        return cls(arch, pair, test, (first, second))

    @property
    def label(self) -> str:
        """What is classified."""
        return self.pair[0].target

    @property
    def sizes(self) -> tuple[int, int]:
        """Training images of both."""
        return int(self.pair[0].facts["n"]["train"]), int(self.pair[1].facts["n"]["train"])

    @property
    def facts(self) -> list[ClassifierFacts]:
        """For the result."""
        kinds: tuple[Literal["real", "synthetic"], ...] = ("real", "synthetic")
        return [
            ClassifierFacts(
                label=self.label, arch=self.arch, trained_on=kind, path=str(classifier.path), sha256=classifier.sha256,
                n_train=size, values=classifier.groups,
            )
            for kind, classifier, size in zip(kinds, self.pair, self.sizes, strict=True)
        ]  # fmt: skip


def _checked(settings: SemanticSettings, real: Cohort, synthetic: Cohort, test: Cohort) -> list[str]:
    """The attributes to compare by, once all names and files are found to be usable."""
    if settings.out.is_dir() if settings.out.suffix == ".json" else settings.out.is_file():
        raise UserError(f"--out {settings.out}: name a .json file, or a folder")
    for cohort in (real, synthetic):
        for label in settings.label:
            cohort.require_column(label)
    for arch in settings.arch:
        if arch not in ARCHITECTURES:
            raise UserError(f"--arch: unknown architecture {arch!r}; {did_you_mean(arch, ARCHITECTURES)}")
    names = list(real.schema.attributes)
    for name in settings.attributes or []:
        if name not in names:
            raise UserError(f"--attributes: no attribute {name!r}; {did_you_mean(name, names)}")
    attributes = list(dict.fromkeys(settings.attributes or names))
    require_names_meet(synthetic, real, dict.fromkeys([*settings.label, *attributes]))
    if not attributes:
        raise UserError(f"{real.root}: no attributes, so there are no subgroups to compare; import it with --attributes")
    if not len(test):
        raise UserError(f"{real.root}: no images in the {settings.test_rows} split, so there is nothing to test on; import it with splits")
    if leaked := len(set(synthetic.image_hashes()) & set(test.image_hashes())):
        raise UserError(f"{synthetic.root}: {leaked} images are real test images of {real.root}, to the byte; give generated images")
    return attributes


def _untestable(test: Cohort, label: str) -> str:
    """Why no AUC of a label can be had from these labelled test images; empty where it can."""
    values = sorted(set(stated(test, label)))
    if len(values) > 1:
        return ""
    return f"{label} is " + (f"{values[0]} in all {len(test)} real test images" if values else "known of no real test image")


def _recipe(settings: SemanticSettings, arch: str) -> Recipe:
    return Recipe(arch, settings.epochs or PUBLISHED_EPOCHS.get(arch, OTHER_EPOCHS), settings.seed)


def _tables(trial: Trial, synthetic: Cohort, attributes: Sequence[str], settings: SemanticSettings) -> list[CorrelationTable]:
    """One table a value and attribute; parity and odds, which are of all values at once, are measured once an attribute."""
    truth, subjects = stated(trial.test, trial.label), trial.test.table["subject_id"].astype(object).to_numpy()
    how: dict[str, Any] = {
        "subjects": subjects, "ids": image_ids(trial.test), "n_boot": settings.n_boot, "seed": settings.seed, "min_n": settings.min_n
    }  # fmt: skip
    predicted = [judged(scores, classifier.groups) for scores, classifier in zip(trial.scores, trial.pair, strict=True)]
    tables = []
    for attribute in (name for name in attributes if name != trial.label):
        reading = read_column(trial.test, synthetic, attribute, None)
        rates = paired_rates(truth, predicted[0], predicted[1], reading.real, **how)
        for value in values_with_auc(trial.pair[0].groups):
            scores = [scores_for(value, *side) for side in zip(trial.pair, trial.scores, strict=True)]
            found = paired_auc(condition_labels(truth, value), scores[0], scores[1], reading.real, **how)
            worst = [None if name is None else str(name) for name in found.worst]
            tables.append(
                CorrelationTable(
                    label=trial.label, value=value, arch=trial.arch, attribute=attribute,
                    n_train_real=trial.sizes[0], n_train_synthetic=trial.sizes[1],
                    auc=Beside.of(found.overall), rows=_rows(found.by_group, reading),
                    worst=Worst(real_trained=worst[0], synthetic_trained=worst[1]),
                    gap=Beside.of(found.gap), es_auc=Beside.of(found.equity_scaled),
                    parity=Beside.of(rates.parity), odds=Beside.of(rates.odds),
                )
            )  # fmt: skip
    return tables


def _rows(by_group: dict, reading: Reading) -> list[GroupBeside]:
    made = reading.synthetic.value_counts()
    return [GroupBeside.of(found, group=str(name), n_synthetic=int(made.get(name, 0))) for name, found in by_group.items()]


def _notes(trials: Sequence[Trial], synthetic: Cohort) -> list[str]:
    """What limits the comparison: training sets that differ in size or in the values they show, and images without a label."""
    notes = []
    for label, trial in {trial.label: trial for trial in trials}.items():
        first, second = trial.sizes
        if max(first, second) > UNLIKE_SIZES * min(first, second):
            notes.append(f"{label}: {first} real and {second} generated training images, so the difference is of number as well as of kind")
        asked = stated(synthetic, label)
        if silent := int(asked.isna().sum()):
            notes.append(f"{label}: {silent} generated images state none, and trained nothing")
        if unseen := [value for value in sorted(set(stated(trial.test, label))) if value not in set(asked)]:
            notes.append(f"{label}: no generated image is {', '.join(unseen)}, so the classifier trained on them cannot tell it")
    return notes


def _per_image_table(test: Cohort, trials: Sequence[Trial], attributes: Sequence[str]) -> pd.DataFrame:
    """One row a test image: groups, labels, and ``real.LABEL.ARCH.VALUE``, ``synthetic. ...``: probabilities, NaN without a label."""
    table = test.table[["image", "subject_id"]].astype(str).reset_index(drop=True)
    columns = {f"group.{name}": stated(test, name) for name in attributes}
    for trial in trials:
        truth = stated(test, trial.label)
        columns[f"label.{trial.label}"] = truth
        for side, classifier, scores in zip(("real", "synthetic"), trial.pair, trial.scores, strict=True):
            for place, value in enumerate(classifier.groups):
                filled = np.full(len(test), np.nan)
                filled[truth.notna().to_numpy()] = scores[:, place]
                columns[f"{side}.{trial.label}.{trial.arch}.{value}"] = pd.Series(filled)
    return pd.concat([table, pd.DataFrame(columns)], axis=1)
