"""Who is in which group: what the table states, else what a judge reads in the image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from evenhand.audit.result import Basis
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.tables import TableReader
from evenhand.cohorts.values import is_missing, meant
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNSPECIFIED, known
from evenhand.core.names import joint_label, quoted, same_name
from evenhand.core.progress import warn

FEW_SILENT = 0.05  # of the images; where no more are silent they are left out, and no judge is asked


@dataclass(frozen=True)
class Reading:
    """Groups of real and generated images along one or several columns, as categoricals with the same categories."""

    by: tuple[str, ...]
    real: pd.Series
    synthetic: pd.Series
    basis: Basis

    def kept(self, real: np.ndarray, synthetic: np.ndarray) -> Reading:
        """The same of some images: masks (n,) and (m,)."""
        return replace(self, real=self.real[real].reset_index(drop=True), synthetic=self.synthetic[synthetic].reset_index(drop=True))

    @property
    def question(self) -> str:
        """The columns as they stand in a question's name: ``sex*age_group``."""
        return "*".join(quoted(name, column=True) for name in self.by)


def stated(cohort: Cohort, column: str) -> pd.Series:
    """The column's groups, missing where the table states none or has no such column."""
    if column not in cohort.table.columns:
        return pd.Series([None] * len(cohort), dtype=object)
    values = cohort.table[column].astype(object)
    return values.where(known(cohort.table, [column]), None).map(lambda value: None if value is None else str(value)).reset_index(drop=True)


def image_ids(cohort: Cohort) -> np.ndarray:
    """What draws know each image by (n,): the hash of its file, then its name, which parts images of one content."""
    return np.array([f"{hash_} {name}" for hash_, name in zip(cohort.image_hashes(), cohort.table["image"], strict=True)], dtype=object)


def judged(probabilities: np.ndarray, groups: Sequence[str]) -> pd.Series:
    """The likeliest group of each image."""
    return pd.Series([groups[code] for code in probabilities.argmax(axis=1)], dtype=object)


def read_column(real: Cohort, synthetic: Cohort, column: str, judgement: pd.Series | None, *, prefer_judge: bool = False) -> Reading:
    """Groups along one column: requested where stated, else the judge's reading; ``prefer_judge`` takes the judge's throughout.

    Where hardly an image is silent, those that are stay out.
    """
    asked = stated(synthetic, column)
    silent = asked.isna()
    if judgement is not None and (prefer_judge or silent.mean() > FEW_SILENT):
        labels = judgement if prefer_judge else asked.where(~silent, judgement)
        basis: Basis = "judge" if prefer_judge or silent.all() else "mixed"
    else:
        labels, basis = asked, "requested" if not silent.all() else "none"
    truth = stated(real, column)
    names = list(real.schema.columns.get(column, []))
    extra = sorted({*truth.dropna(), *labels.dropna()} - set(names))
    return Reading((column,), _categorical(truth, [*names, *extra]), _categorical(labels, [*names, *extra]), basis)


def alike_column(real: Cohort, synthetic: Cohort, column: str, judgements: tuple[pd.Series, pd.Series] | None) -> Reading:
    """Groups along one column told alike on both sides, for comparing images with images.

    By what is stated; generated images that are silent where others are not stay out. Where all are silent, by the judge's reading
    of both sides: images that a judge takes for one group differ from those that are of it, so stated groups of real images beside
    judged ones of generated images would show a gap where there is none.
    """
    asked, truth = stated(synthetic, column), stated(real, column)
    if asked.isna().all() and judgements is not None:
        truth, asked = judgements
        basis: Basis = "judge"
    else:
        basis = "none" if asked.isna().all() else "requested"
    names = list(real.schema.columns.get(column, []))
    extra = sorted({*truth.dropna(), *asked.dropna()} - set(names))
    return Reading((column,), _categorical(truth, [*names, *extra]), _categorical(asked, [*names, *extra]), basis)


def everyone(real: Cohort, synthetic: Cohort) -> Reading:
    """All images as one group, where no column parts them."""
    sides = [_categorical(pd.Series(["all images"] * len(cohort), dtype=object), ["all images"]) for cohort in (real, synthetic)]
    return Reading(("all",), sides[0], sides[1], "none")


def cross(readings: Sequence[Reading]) -> Reading:
    """The intersection of readings: every product of groups is a category, empty ones too."""
    names = [joint_label(parts) for parts in itertools.product(*(reading.real.cat.categories for reading in readings))]
    real = _joined([reading.real for reading in readings])
    synthetic = _joined([reading.synthetic for reading in readings])
    bases = {reading.basis for reading in readings}
    basis: Basis = "none" if "none" in bases else bases.pop() if len(bases) == 1 else "mixed"
    return Reading(tuple(name for r in readings for name in r.by), _categorical(real, names), _categorical(synthetic, names), basis)


def with_intersections(readings: Mapping[str, Reading], most: int = 2) -> list[Reading]:
    """Every reading, then every intersection of two to ``most`` of them."""
    crossed = (cross(part) for size in range(2, most + 1) for part in itertools.combinations(readings.values(), size))
    return [*readings.values(), *crossed]


def _categorical(values: pd.Series, names: Sequence[str]) -> pd.Series:
    return pd.Series(pd.Categorical(values, categories=list(names)))


def _joined(parts: Sequence[pd.Series]) -> pd.Series:
    frame = pd.concat([part.astype(object) for part in parts], axis=1)
    whole = frame.notna().all(axis=1)
    return pd.Series([joint_label(row.tolist()) if ok else None for row, ok in zip(frame.to_numpy(), whole, strict=True)], dtype=object)


def hand_labels(path: Path, synthetic: Cohort) -> dict[str, pd.Series]:
    """Labels that a person gave some generated images: column -> one label per image of the cohort, missing where nobody looked.

    Args:
        path: a table with the column ``image``, as in the cohort's table, and one column per attribute; empty cells are not labelled.

    Raises:
        UserError: no such file, no such column, image or group, or an image twice; file, row and value are named.
    """
    if not path.exists():
        raise UserError(f"--labels {path}: no such file; name the table of labels")
    reader = TableReader(remedy="save it as UTF-8")
    header = reader.columns(path)
    columns = [name for name in header if name in synthetic.schema.attributes]
    if "image" not in header or not columns:
        wanted = ", ".join(synthetic.schema.attributes)
        raise UserError(f"--labels {path}: wants a column image and one or more of {wanted}; it has {', '.join(header)}")
    for name in header:
        if name not in columns and (near := [column for column in same_name(name, synthetic.schema.attributes) if column not in header]):
            raise UserError(f"--labels {path}: column {name!r} is {near[0]!r} in {synthetic.root}; rename it")
    places = {str(image): place for place, image in enumerate(synthetic.table["image"])}
    found = {name: pd.Series([None] * len(synthetic), dtype=object) for name in columns}
    seen: set[str] = set()
    for row, record in reader.whole(path, ("image", *columns)):
        image = record["image"]
        if image not in places:
            raise UserError(f"--labels {path}: row {row}: image {image!r} is not in {synthetic.root}; {did_you_mean(image, places)}")
        if image in seen:
            raise UserError(f"--labels {path}: row {row}: image {image!r} stands twice; keep one row per image")
        seen.add(image)
        for name in columns:
            value, groups = record[name], synthetic.schema.attributes[name]
            group = meant(value, groups)
            if group is None and not is_missing(value):
                raise UserError(f"--labels {path}: row {row}: {name} has no group {value!r}; {did_you_mean(value, groups)}")
            found[name].iloc[places[image]] = group
    for note in reader.notes():
        warn(note)
    return {name: labels for name, labels in found.items() if labels.notna().any()}


def per_image_table(
    sides: Mapping[str, Cohort],
    readings: Mapping[str, Reading],
    scores: Mapping[str, Mapping[str, np.ndarray]],
    groups: Mapping[str, list[str]],
) -> pd.DataFrame:
    """One row per image of either side: groups used, conditions stated, judges' probabilities.

    Args:
        sides: ``real`` and ``synthetic``.
        scores: side -> target -> probabilities (n, G); ``groups`` names their columns.
    """
    tables = []
    for side, cohort in sides.items():
        table = cohort.table[["image", "subject_id"]].astype(str).reset_index(drop=True)
        table.insert(0, "side", side)
        for column, reading in readings.items():
            table[f"group.{column}"] = (reading.real if side == "real" else reading.synthetic).astype(object).fillna(UNSPECIFIED)
        for column in cohort.schema.conditions:
            table[f"condition.{column}"] = stated(cohort, column).fillna(UNSPECIFIED)
        for target, values in scores[side].items():
            for place, group in enumerate(groups[target]):
                table[f"judge.{target}.{group}"] = values[:, place]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
