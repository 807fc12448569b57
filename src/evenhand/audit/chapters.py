"""The chapters of an audit: from the cohorts and what the judges say of them to each chapter's tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from evenhand.audit.copying import TRAIN_AT_MOST, Features, memorization_chapter
from evenhand.audit.downstream import downstream_tables, train_pair
from evenhand.audit.fairness import Answers, fairness_table
from evenhand.audit.identifiability import MIN_AUC, one_against_rest_auc
from evenhand.audit.intervals import HEAVY, FeatureError, few_a_subject, image_ranks, subject_codes
from evenhand.audit.judges import Judges, Recipe
from evenhand.audit.presence import JudgedColumn, PresenceData, presence_table, target_shares
from evenhand.audit.readings import Reading, alike_column, everyone, hand_labels, image_ids, judged, read_column, stated, with_intersections
from evenhand.audit.result import EncoderFacts, FairnessTable, Memorization, PresenceTable, QualityTable, SemanticTable, UtilityTable
from evenhand.audit.settings import AuditSettings
from evenhand.audit.tables import (
    Resampling,
    Scored,
    Sides,
    Whole,
    clip_distance_table,
    condition_labels,
    inception_table,
    overlap_tables,
    quality_table,
    semantic_table,
    values_with_auc,
)
from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.groups import parse_mix
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder


@dataclass(frozen=True)
class Compared:
    """Both sides as they are compared: the real rows chosen, all generated ones, and what the judges say of them."""

    real: Cohort
    synthetic: Cohort
    scores: dict[str, dict[str, np.ndarray]]
    judges: Judges

    def judgement(self, column: str, side: str = "synthetic") -> pd.Series | None:
        """The judge's reading of the images of one side, where there is a judge."""
        values = self.scores[side].get(column)
        return None if values is None else judged(values, self.judges.by_target[column].groups)

    def judge_auc(self, column: str) -> float:
        """Area under the ROC curve of the column's judge on the real images, of the group that it tells worst; NaN without labels."""
        groups, labels = self.judges.by_target[column].groups, stated(self.real, column)
        codes = labels.map({group: code for code, group in enumerate(groups)}).fillna(-1).to_numpy(dtype=int)
        rows = (codes >= 0) & (self.calibrating if self.calibrating.any() else True)
        found = one_against_rest_auc(self.scores["real"][column][rows], codes[rows])
        return float(np.nanmin(found)) if np.isfinite(found).any() else math.nan

    @cached_property
    def calibrating(self) -> np.ndarray:
        """Which real images tell the judges' errors (n,): those of the training split trained them."""
        table = self.real.table
        return (table["split"] != "train").to_numpy() if "split" in table else np.ones(len(table), dtype=bool)

    def sides(self, real: np.ndarray, synthetic: np.ndarray) -> Sides:
        """Features, or scores, of the images that ``light`` keeps, with their subjects."""
        kept = self.light
        subjects = [self.subjects(side)[rows] for side, rows in zip(("real", "synthetic"), kept, strict=True)]
        ids = [self.ids[side][rows] for side, rows in zip(("real", "synthetic"), kept, strict=True)]
        return Sides(real[kept[0]], synthetic[kept[1]], subjects[0], subjects[1], ids[0], ids[1])

    @cached_property
    def light(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images of either side enter distances: of a subject at most thrice as many as of the median one."""
        return self._few_a_subject("real"), self._few_a_subject("synthetic")

    def _few_a_subject(self, side: str) -> np.ndarray:
        """Which images of a subject stay is told by their hashes."""
        subjects = self.subjects(side)
        return few_a_subject(subject_codes(subjects, len(subjects)), self.ids[side])

    @cached_property
    def ids(self) -> dict[str, np.ndarray]:
        """What draws know the images of either side by."""
        return {"real": image_ids(self.real), "synthetic": image_ids(self.synthetic)}

    def subjects(self, side: str) -> np.ndarray:
        """Subject ids; a generated image without one is a subject of its own."""
        cohort = self.real if side == "real" else self.synthetic
        return cohort.table["subject_id"].astype(object).to_numpy()


def left_out(compared: Compared) -> list[str]:
    """That images of heavy subjects stay out of distances, where some do."""
    counts = [int((~kept).sum()) for kept in compared.light]
    if not any(counts):
        return []
    return [
        f"{counts[0]} real and {counts[1]} generated images enter no distance: their subjects have more than {HEAVY:.0f} times as many "
        "images as the median one, and would decide alone"
    ]


def told_alike(compared: Compared, readings: dict[str, Reading]) -> tuple[dict[str, Reading], list[str]]:
    """Readings that part both sides alike, and why some columns have none: a judge that cannot tell groups parts nothing."""
    found, refused = {}, []
    for name in readings:
        judgements = compared.judgement(name, "real"), compared.judgement(name, "synthetic")
        whole = None if judgements[0] is None or judgements[1] is None else (judgements[0], judgements[1])
        reading = alike_column(compared.real, compared.synthetic, name, whole)
        auc = compared.judge_auc(name) if reading.basis == "judge" else 1.0
        if not auc >= MIN_AUC:
            refused.append(
                f"quality, semantics, calibration and copies by {name} are not given: prompts are silent on it, and its judge hardly "
                f"tells the groups of real images apart (AUC {auc:.2f}, at least {MIN_AUC} wanted)"
            )
        else:
            found[name] = reading
            silent = int(reading.synthetic.isna().sum())
            if silent:
                refused.append(f"{silent} of {len(reading.synthetic)} generated images state no {name}: they enter no comparison by it")
    return found or {"all": everyone(compared.real, compared.synthetic)}, refused


def _crossed(readings: dict[str, Reading], settings: AuditSettings) -> list[Reading]:
    return with_intersections(readings, settings.intersect)


def presence_chapter(real: Cohort, compared: Compared, readings: dict[str, Reading], settings: AuditSettings) -> list[PresenceTable]:
    """By column and pair, as used; where a column is requested and has a judge, also by the judge: what was asked is not yet shown."""
    mix = parse_mix(settings.target, compared.real.schema.attributes) if settings.target else None
    data = PresenceData(
        compared.real, compared.synthetic, compared.calibrating, _judged_columns(compared, settings),
        _labels(settings.labels, compared) if settings.labels else {}, settings.n_boot, settings.seed,
        compared.ids["real"], compared.ids["synthetic"],
    )  # fmt: skip
    whole = {name: read_column(real, compared.synthetic, name, compared.judgement(name)) for name in readings}
    subjects = real.table["subject_id"].astype(object).to_numpy()
    crossed = _crossed(readings, settings)
    targets = {reading.by: target_shares([whole[name] for name in reading.by], mix, subjects) for reading in crossed}
    tables = [presence_table(reading, targets[reading.by], data) for reading in crossed]
    for name, reading in readings.items():
        if reading.basis in ("requested", "mixed") and name in compared.judges.by_target:
            shown = read_column(compared.real, compared.synthetic, name, compared.judgement(name), prefer_judge=True)
            tables.append(presence_table(shown, targets[shown.by], data, judge_only=True))
    return tables


def _labels(path: Path, compared: Compared) -> dict[str, pd.Series]:
    """A hand's labels, each beside a judge of its column."""
    found = hand_labels(path, compared.synthetic)
    for name, labels in found.items():
        judge = compared.judges.by_target.get(name)
        if judge is None:
            raise UserError(f"--labels {path}: {name} has labels, but no judge reads it in this audit; give one with --judge")
        strange = set(labels.dropna()) - set(judge.groups)
        if strange:
            raise UserError(
                f"--labels {path}: {name} = {min(strange)!r} is no group of its judge ({', '.join(judge.groups)}); leave it empty"
            )
    return found


def _judged_columns(compared: Compared, settings: AuditSettings) -> dict[str, JudgedColumn]:
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


def quality_chapter(
    compared: Compared, readings: dict[str, Reading], settings: AuditSettings
) -> tuple[list[QualityTable], list[EncoderFacts]]:
    """Distances by every encoder; by the first one also how far the manifolds overlap, and log-IS by a judge's probabilities."""
    tables: list[QualityTable] = []
    facts = []
    how, light = resampling(settings), compared.light
    alone = [reading.kept(*light) for reading in readings.values()]
    crossed = [reading.kept(*light) for reading in _crossed(readings, settings)]
    for place, path in enumerate(settings.encoder or _default_encoders(compared)):
        encoder = Encoder.load(path)
        real, synthetic = (cohort_features(encoder, side, batch_size=settings.batch_size) for side in (compared.real, compared.synthetic))
        facts.append(
            EncoderFacts(
                path=str(path), name=encoder.name, dim=real.shape[1], sha256=encoder.sha256,
                features_real=len(real), features_synthetic=len(synthetic),
            )
        )  # fmt: skip
        sides = compared.sides(real, synthetic)
        try:
            whole = Whole.of(sides, how)
            for reading in crossed:
                tables += [quality_table(reading, sides, whole, metric, encoder.name, how, primary=place == 0) for metric in ("kid", "fid")]
            if place == 0:
                tables += [table for reading in alone for table in overlap_tables(reading, sides, encoder.name, how)]
            if encoder.is_clip:
                tables += [clip_distance_table(reading, sides, encoder.name, how) for reading in alone]
        except FeatureError as error:
            raise UserError(f"--encoder {path}: {error}") from None
    return tables + _inception_tables(compared, alone, how), facts


def _inception_tables(compared: Compared, readings: list[Reading], how: Resampling) -> list[QualityTable]:
    """By the first judge of a condition, else of an attribute; none without a judge."""
    schema = compared.real.schema
    name = next((name for name in (*schema.conditions, *schema.attributes) if name in compared.judges.by_target), None)
    if name is None:
        return []
    sides = compared.sides(*(compared.scores[side][name] for side in ("real", "synthetic")))
    return [inception_table(reading, sides, f"judge of {name}", how) for reading in readings]


def _default_encoders(compared: Compared) -> list[Path]:
    """A judge of a condition and one of an attribute, where there are both: fitted on real images, to what such a picture shows."""
    judges, schema = compared.judges.by_target, compared.real.schema
    kinds = ([name for name in names if name in judges][:1] for names in (schema.conditions, schema.attributes))
    found = [judges[name].path for names in kinds for name in names]
    if not found:
        raise UserError(f"{compared.real.root}: no judge could be trained to serve as encoder; give --encoder with a vision model folder")
    return found


def semantics_chapter(compared: Compared, readings: dict[str, Reading], settings: AuditSettings) -> list[SemanticTable]:
    """Each condition that generated images state and that has a judge, by every group and intersection."""
    tables = []
    for condition in compared.real.schema.conditions:
        judge = compared.judges.by_target.get(condition)
        asked, true = stated(compared.synthetic, condition), stated(compared.real, condition)
        if judge is None or asked.isna().all():
            continue
        for value in values_with_auc(judge.groups):
            sides = [
                Scored(
                    compared.scores[side][condition][:, judge.groups.index(value)], condition_labels(labels, value),
                    compared.subjects(side), compared.ids[side],
                )
                for side, labels in (("real", true), ("synthetic", asked))
            ]  # fmt: skip
            for reading in _crossed(readings, settings):
                tables.append(semantic_table(reading, condition, value, sides[0], sides[1], resampling(settings)))
    return tables


def fairness_chapter(compared: Compared, readings: dict[str, Reading], settings: AuditSettings) -> list[FairnessTable]:
    """By single attributes: calibration of each condition's judge, and how far its predictions differ between groups."""
    tables = []
    for condition in compared.real.schema.conditions:
        judge = compared.judges.by_target.get(condition)
        sides = [stated(cohort, condition) for cohort in (compared.real, compared.synthetic)]
        if judge is None or any(side.isna().all() for side in sides):
            continue
        real, synthetic = (
            Answers(compared.scores[name][condition], labels, compared.subjects(name), compared.ids[name])
            for name, labels in zip(("real", "synthetic"), sides, strict=True)
        )
        tables += [fairness_table(reading, condition, judge.groups, real, synthetic, resampling(settings)) for reading in readings.values()]
    return tables


def utility_chapter(
    real: Cohort, real_rows: str, compared: Compared, readings: dict[str, Reading], settings: AuditSettings, folder: Path
) -> tuple[list[UtilityTable], list[str]]:
    """Train on generated images, test on real ones, by condition; and why some of them were not."""
    if not settings.utility:
        return [], []
    if real_rows == "all" or not real.schema.conditions:
        return [], ["utility: it needs a condition to classify, and held-out real images that no classifier saw"]
    tables, refused = [], []
    for condition in real.schema.conditions:
        pair = train_pair(real, compared.synthetic, condition, folder, recipe(settings))
        if isinstance(pair, str):
            refused.append(f"utility: {pair}")
        else:
            tables += downstream_tables(pair, compared.real, _crossed(readings, settings), resampling(settings), settings.batch_size)
    return tables, refused


def copies_chapter(
    real: Cohort, real_rows: str, compared: Compared, readings: dict[str, Reading], settings: AuditSettings
) -> tuple[Memorization | None, list[str]]:
    """Copies of the real training split, and what limits the search or why there was none."""
    train = real.split("train")
    if not settings.copies:
        return None, []
    if real_rows == "all" or len(train) == 0:
        return None, ["copies: training images cannot be told from held-out ones in this real cohort, so none were looked for"]
    limits = []
    if len(train) > TRAIN_AT_MOST:
        limits = [f"copies: {TRAIN_AT_MOST} of {len(train)} training images, drawn at random, were searched; copies of others are missed"]
        drawn = generator(settings.seed, "copies").permutation(len(train))[image_ranks(image_ids(train), len(train))] < TRAIN_AT_MOST
        train = train.subset(drawn)
    encoder = Encoder.load((settings.encoder or _default_encoders(compared))[0])
    cohorts = (train, compared.real, compared.synthetic)
    features = Features(*(cohort_features(encoder, side, batch_size=settings.batch_size) for side in cohorts))
    found = memorization_chapter(*cohorts, _crossed(readings, settings), features, resampling(settings))
    return (None, [*limits, f"copies: {found}"]) if isinstance(found, str) else (found, limits)


def recipe(settings: AuditSettings) -> Recipe:
    """How classifiers are trained, by the settings."""
    return Recipe(settings.judge_arch, settings.judge_epochs, settings.seed)


def resampling(settings: AuditSettings) -> Resampling:
    """How intervals are made, by the settings."""
    return Resampling(settings.repeats, settings.n_boot, settings.min_n, settings.seed)
