"""The audit of one generated cohort against a real one: wires encoders and judges to the pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from evenhand.audit.copying import TRAIN_AT_MOST, memorization_chapter
from evenhand.audit.decisions import Question, Rule, parse_question, parse_rule
from evenhand.audit.findings import caveats, headline_findings
from evenhand.audit.intervals import FeatureError
from evenhand.audit.judges import Judges, cohort_hash, gather_judges
from evenhand.audit.presence import JudgedColumn, PresenceData, presence_table, target_shares
from evenhand.audit.readings import Reading, hand_labels, judged, per_image_table, read_column, stated, with_pairs
from evenhand.audit.result import AuditResult, CohortFacts, EncoderFacts, Memorization, PresenceTable, QualityTable, SemanticTable
from evenhand.audit.tables import Resampling, Sides, condition_labels, quality_table, semantic_table, values_with_auc
from evenhand.audit.verdicts import Table, check_rules, decide
from evenhand.cohorts.cohort import Cohort, write_table
from evenhand.core.artifacts import claim, provenance
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.core.groups import parse_mix
from evenhand.engine.devices import processes
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder


class AuditSettings(Settings):
    """Settings of ``evenhand audit``."""

    real: Path
    synthetic: Path
    out: Path
    judge: list[Path] | None = Field(None, description="classifier folders; default: trained on the real cohort's training split")
    encoder: list[Path] | None = Field(None, description="vision model or classifier folders, the first is primary; default: judges")
    target: str | None = Field(None, description="mix that presence is held against, 'sex=male:0.5,female:0.5'; default: the real cohort's")
    labels: Path | None = Field(None, description="CSV with a column image and one an attribute: some generated images read by hand")
    primary: list[str] = Field([], description="questions declared beforehand, such as 'quality:race'; all others are adjusted apart")
    fail_on: list[str] = Field([], description="rules such as 'presence:sex>0.05' that make the command exit with 3")
    copies: bool = Field(True, description="look for copies of the real cohort's training images")
    force_judge: bool = Field(False, description="let a classifier judge that guided the model's alignment; the report says so")
    judge_arch: str = "resnet"
    judge_epochs: float = Field(8, gt=0)
    batch_size: int = Field(64, ge=1)
    repeats: int = Field(20, ge=1, description="subsamples averaged in a size-matched distance")
    n_boot: int = Field(1000, ge=100, description="bootstrap samples of subjects")
    min_n: int = Field(20, ge=2, description="a group with fewer images is insufficient")
    seed: int = 0


@dataclass(frozen=True)
class _Compared:
    """Both sides as they are compared: the real rows chosen, all generated ones, and what the judges say of them."""

    real: Cohort
    synthetic: Cohort
    scores: dict[str, dict[str, np.ndarray]]
    judges: Judges

    def judgement(self, column: str) -> pd.Series | None:
        """The judge's reading of generated images, where there is a judge."""
        values = self.scores["synthetic"].get(column)
        return None if values is None else judged(values, self.judges.by_target[column].groups)

    def subjects(self, side: str) -> np.ndarray:
        """Subject ids; a generated image without one is a subject of its own."""
        cohort = self.real if side == "real" else self.synthetic
        return cohort.table["subject_id"].astype(object).to_numpy()


@dataclass(frozen=True)
class _Declared:
    """What was said before the first number was seen: the primary questions, and the rules that fail an audit."""

    primary: list[Question]
    rules: list[Rule]

    @classmethod
    def of(cls, settings: AuditSettings, real: Cohort) -> _Declared:
        schema = real.schema
        primary = [parse_question(text, attributes=schema.attributes, conditions=schema.conditions) for text in settings.primary]
        rules = [parse_rule(text, attributes=schema.attributes, conditions=schema.conditions) for text in settings.fail_on]
        return cls(primary, rules)


def audit_cohorts(settings: AuditSettings) -> AuditResult:
    """Compare a generated cohort with a real one by subgroup; write audit.json and, beside it, the per-image audit.parquet.

    Images are compared with the real validation and test images, or with all of them where those are too few; shares with those
    of the whole real cohort. Every image passes each network once.

    Raises:
        UserError: not a cohort, nothing to compare, a judge or encoder that cannot be loaded, or ``out`` in use by another run.
    """
    real, synthetic = Cohort.load(settings.real), Cohort.load(settings.synthetic)
    _check(settings, real, synthetic)
    declared = _Declared.of(settings, real)
    compared_real, real_rows = _held_out(real, settings.min_n)
    with _claimed(settings.out) as folder:
        judges = gather_judges(
            real, synthetic, settings.judge or [], folder,
            arch=settings.judge_arch, epochs=settings.judge_epochs, seed=settings.seed, force=settings.force_judge,
        )  # fmt: skip
        scores = {
            side: {name: cohort_predictions(judge, cohort, batch_size=settings.batch_size) for name, judge in judges.by_target.items()}
            for side, cohort in (("real", compared_real), ("synthetic", synthetic))
        }
        compared = _Compared(compared_real, synthetic, scores, judges)
        readings = {name: read_column(compared_real, synthetic, name, compared.judgement(name)) for name in real.schema.attributes}
        presence = _presence(real, compared, readings, settings)
        quality, encoders = _quality(compared, readings, settings)
        semantics = _semantics(compared, readings, settings)
        copies = _memorization(real, real_rows, compared, readings, settings)
        result = _result(settings, declared, (real, real_rows), compared, presence, quality, encoders, semantics, copies)
        if processes().is_main_process:
            sides = {"real": compared_real, "synthetic": synthetic}
            groups = {name: judge.groups for name, judge in judges.by_target.items()}
            write_table(settings.out.with_suffix(".parquet"), per_image_table(sides, readings, scores, groups))
            result.save(settings.out)
        processes().wait_for_everyone()
    return result


def audit_several(settings: AuditSettings, others: Sequence[Path]) -> list[tuple[Path, AuditResult]]:
    """Audit several generated cohorts, such as one at each guidance scale, by the same judges: audit.json, audit-2.json, ...

    Returns:
        Each audit's path and result; a report of all of them draws presence and quality along the guidance scale.
    """
    found = [(settings.out, audit_cohorts(settings))]
    judges = [Path(judge.path) for judge in found[0][1].judges]
    for place, synthetic in enumerate(others, start=2):
        out = settings.out.with_name(f"{settings.out.stem}-{place}.json")
        again = settings.model_copy(update={"synthetic": synthetic, "out": out, "judge": judges})
        found.append((out, audit_cohorts(again)))
    return found


def _check(settings: AuditSettings, real: Cohort, synthetic: Cohort) -> None:
    if settings.out.suffix != ".json":
        raise UserError(f"--out {settings.out}: name a .json file, such as audit.json")
    if settings.out.is_dir():
        raise UserError(f"--out {settings.out}: is a folder; name a .json file in it")
    for cohort in (real, synthetic):
        if len(cohort) < 2:
            raise UserError(f"{cohort.root}: {len(cohort)} images; an audit needs at least 2 a side")
    if not real.schema.attributes:
        raise UserError(f"{real.root}: no attributes, so there are no subgroups to compare; import it with --attributes")


@contextmanager
def _claimed(out: Path) -> Iterator[Path]:
    """The folder of judges beside audit.json, held by this run; gone again where nothing was trained."""
    folder = out.parent / f"{out.stem}-judges"
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


def _held_out(real: Cohort, min_n: int) -> tuple[Cohort, Any]:
    held_out = real.split("val", "test")
    return (held_out, "val+test") if len(held_out) >= 2 * min_n else (real, "all")


def _presence(real: Cohort, compared: _Compared, readings: dict[str, Reading], settings: AuditSettings) -> list[PresenceTable]:
    """By column and pair, as used; where a column is requested and has a judge, also by the judge: what was asked is not yet shown."""
    mix = parse_mix(settings.target, compared.real.schema.attributes) if settings.target else None
    data = PresenceData(
        compared.real, compared.synthetic, _calibrating(compared), _judged_columns(compared, settings),
        hand_labels(settings.labels, compared.synthetic) if settings.labels else {}, settings.n_boot, settings.seed,
    )  # fmt: skip
    whole = {name: read_column(real, compared.synthetic, name, compared.judgement(name)) for name in readings}
    targets = {reading.by: target_shares(reading, mix) for reading in with_pairs(whole)}
    tables = [presence_table(reading, *targets[reading.by], data) for reading in with_pairs(readings)]
    for name, reading in readings.items():
        if reading.basis in ("requested", "mixed") and name in compared.judges.by_target:
            shown = read_column(compared.real, compared.synthetic, name, compared.judgement(name), prefer_judge=True)
            tables.append(presence_table(shown, *targets[shown.by], data, judge_only=True))
    return tables


def _calibrating(compared: _Compared) -> np.ndarray:
    """Which real images tell the judges' errors: those of the training split trained them."""
    table = compared.real.table
    return (table["split"] != "train").to_numpy() if "split" in table else np.ones(len(table), dtype=bool)


def _judged_columns(compared: _Compared, settings: AuditSettings) -> dict[str, JudgedColumn]:
    def features(judge: Classifier) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        def made() -> tuple[np.ndarray, np.ndarray]:
            encoder, sides = Encoder.load(judge.path), (compared.real, compared.synthetic)
            real, synthetic = (cohort_features(encoder, side, batch_size=settings.batch_size) for side in sides)
            return real, synthetic

        return made

    return {
        name: JudgedColumn(list(judge.groups), compared.scores["real"][name], compared.scores["synthetic"][name], features(judge))
        for name, judge in compared.judges.by_target.items()
    }


def _quality(compared: _Compared, readings: dict[str, Reading], settings: AuditSettings) -> tuple[list[QualityTable], list[EncoderFacts]]:
    tables: list[QualityTable] = []
    facts = []
    for place, path in enumerate(settings.encoder or _default_encoders(compared)):
        encoder = Encoder.load(path)
        real, synthetic = (cohort_features(encoder, side, batch_size=settings.batch_size) for side in (compared.real, compared.synthetic))
        facts.append(
            EncoderFacts(
                path=str(path),
                name=encoder.name,
                dim=real.shape[1],
                sha256=encoder.sha256,
                features_real=len(real),
                features_synthetic=len(synthetic),
            )
        )
        sides = Sides(real, synthetic, compared.subjects("real"), compared.subjects("synthetic"))
        for reading in with_pairs(readings):
            try:
                tables += [
                    quality_table(reading, sides, metric, encoder.name, _resampling(settings), primary=place == 0)
                    for metric in ("kid", "fid")
                ]
            except FeatureError as error:
                raise UserError(f"--encoder {path}: {error}") from None
    return tables, facts


def _default_encoders(compared: _Compared) -> list[Path]:
    """A judge of a condition and one of an attribute, where there are both: fitted on real images, to what such a picture shows."""
    judges, schema = compared.judges.by_target, compared.real.schema
    kinds = ([name for name in names if name in judges][:1] for names in (schema.conditions, schema.attributes))
    found = [judges[name].path for names in kinds for name in names]
    if not found:
        raise UserError(f"{compared.real.root}: no judge could be trained to serve as encoder; give --encoder with a vision model folder")
    return found


def _semantics(compared: _Compared, readings: dict[str, Reading], settings: AuditSettings) -> list[SemanticTable]:
    tables = []
    for condition in compared.real.schema.conditions:
        judge = compared.judges.by_target.get(condition)
        asked, true = stated(compared.synthetic, condition), stated(compared.real, condition)
        if judge is None or asked.isna().all():
            continue
        for value in values_with_auc(judge.groups):
            sides = [
                (compared.scores[side][condition][:, judge.groups.index(value)], condition_labels(labels, value), compared.subjects(side))
                for side, labels in (("real", true), ("synthetic", asked))
            ]
            for reading in with_pairs(readings):
                tables.append(semantic_table(reading, condition, value, sides[0], sides[1], _resampling(settings)))
    return tables


def _memorization(
    real: Cohort, real_rows: str, compared: _Compared, readings: dict[str, Reading], settings: AuditSettings
) -> tuple[Memorization | None, str]:
    """Copies of the real training split, or why they were not looked for."""
    train = real.split("train")
    if not settings.copies:
        return None, ""
    if real_rows == "all" or len(train) == 0:
        return None, "copies: training images cannot be told from held-out ones in this real cohort, so none were looked for"
    if len(train) > TRAIN_AT_MOST:
        train = train.subset(np.arange(len(train)) < TRAIN_AT_MOST)
    encoder = Encoder.load((settings.encoder or _default_encoders(compared))[0])
    features = [cohort_features(encoder, side, batch_size=settings.batch_size) for side in (train, compared.synthetic)]
    found = memorization_chapter(train, compared.real, compared.synthetic, with_pairs(readings), (features[0], features[1]))
    return (None, f"copies: {found}") if isinstance(found, str) else (found, "")


def _resampling(settings: AuditSettings) -> Resampling:
    return Resampling(settings.repeats, settings.n_boot, settings.min_n, settings.seed)


def _result(
    settings: AuditSettings,
    declared: _Declared,
    real: tuple[Cohort, Any],
    compared: _Compared,
    presence: list[PresenceTable],
    quality: list[QualityTable],
    encoders: list[EncoderFacts],
    semantics: list[SemanticTable],
    copies: tuple[Memorization | None, str],
) -> AuditResult:
    facts = (_cohort_facts(real[0]), _cohort_facts(compared.synthetic))
    judges = compared.judges.facts
    unjudged = dict(compared.judges.unjudged)
    unjudged |= dict.fromkeys(_silent_conditions(compared), "its values are not stated in the generated cohort")
    memorization, uncopied = copies
    limits = caveats(*facts, real[1], len(compared.real), judges, encoders, presence, unjudged, uncopied)
    tables: list[Table] = [*presence, *quality, *semantics, *(memorization.tables if memorization else [])]
    decisions = decide(tables, declared.primary)
    return AuditResult(
        real=facts[0],
        synthetic=facts[1],
        real_rows=real[1],
        n={"real": len(real[0]), "real_compared": len(compared.real), "synthetic": len(compared.synthetic)},
        seeds={"audit": settings.seed},
        settings=settings.model_dump(mode="json"),
        judges=judges,
        encoders=encoders,
        presence=presence,
        quality=quality,
        semantics=semantics,
        memorization=memorization,
        decisions=decisions,
        rules=check_rules(declared.rules, tables),
        findings=[*headline_findings(presence, quality, semantics, decisions, memorization), *limits],
        provenance=provenance(),
    )


def _silent_conditions(compared: _Compared) -> list[str]:
    return [name for name in compared.real.schema.conditions if stated(compared.synthetic, name).isna().all()]


def _cohort_facts(cohort: Cohort) -> CohortFacts:
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
