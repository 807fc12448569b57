"""Checking a cohort: every fault with its row, and who is in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from evenhand.cohorts.cohort import BASE_COLUMNS, SCHEMA_FILE, SPLITS, TABLE_FILE, Cohort, CohortSchema
from evenhand.cohorts.images import BadImage, inside, open_verified
from evenhand.cohorts.values import Spellings, counted, is_missing
from evenhand.core.artifacts import sha256_file
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS, UNKNOWN


@dataclass(frozen=True)
class CheckReport:
    """``faults``: one line a fault, empty where all is well; ``counts``: as ``group_counts``; ``notes``: as ``notes_on``."""

    faults: list[str]
    counts: pd.DataFrame
    notes: list[str]


def check_cohort(path: Path | str) -> CheckReport:
    """Read every row and every image of a cohort. Rows count from 1.

    A cohort so damaged that its table cannot be read gives that one fault, and no counts.
    """
    root = Path(path)
    try:
        cohort = Cohort.load(root)
    except UserError as error:
        faults = _missing_columns(root) or [str(error)]
        return CheckReport(faults, pd.DataFrame(columns=["column", "group", "images", "subjects", *SPLITS]), [])
    faults = [*_group_faults(cohort), *_row_faults(cohort), *_image_faults(cohort), *_subject_faults(cohort)]
    return CheckReport(faults, group_counts(cohort), notes_on(cohort))


def group_counts(cohort: Cohort) -> pd.DataFrame:
    """Images and subjects by group: columns ``column, group, images, subjects, train, val, test``.

    Groups of the schema without an image stay, with 0; ``unknown`` and ``unspecified`` come last where they occur.
    """
    rows = []
    for column, groups in cohort.schema.columns.items():
        values = cohort.table[column].fillna(UNKNOWN)
        for group in [*groups, *sorted(set(values) - set(groups), key=str)]:
            found = cohort.table[values == group]
            splits = {split: int((found["split"] == split).sum()) for split in SPLITS}
            rows.append({"column": column, "group": group, "images": len(found), "subjects": found["subject_id"].nunique(), **splits})
    return pd.DataFrame(rows, columns=["column", "group", "images", "subjects", *SPLITS])


def notes_on(cohort: Cohort) -> list[str]:
    """What is not wrong, but limits what this cohort can tell: one group only, an empty group, an empty split, rows left out."""
    notes = []
    counts = group_counts(cohort)
    for column in cohort.schema.columns:
        rows = counts[(counts["column"] == column) & ~counts["group"].isin(NOT_GROUPS)]
        present = list(rows.loc[rows["images"] > 0, "group"])
        if len(present) < 2:
            only = f"one group only ({present[0]})" if present else "no known group"
            notes.append(f"{column}: {only}; no gap between its groups can be told")
        else:
            notes += [f"{column}: no image of group {group!r}" for group in rows.loc[rows["images"] == 0, "group"]]
    for split in SPLITS:
        if not cohort.schema.synthetic and not (cohort.table["split"] == split).any():
            notes.append(f"split {split!r} is empty")
    notes += _shared_images(cohort)
    made = cohort.schema.made
    skipped, dropped = made.get("skipped") or [], made.get("dropped_unknown") or 0
    if skipped:
        notes.append(f"{len(skipped)} bad rows were left out at import; {SCHEMA_FILE} lists them")
    if dropped:
        notes.append(f"{dropped} rows with an unknown attribute were left out at import")
    notes += [f"{number} rows were left out at import: {reason}" for reason, number in (made.get("left_out") or {}).items()]
    return [*notes, *(made.get("pixels") or ()), *(made.get("notes") or ())]


def _shared_images(cohort: Cohort) -> list[str]:
    """Images whose pixels stand in several splits: what is learned from one is then known of the other."""
    if "sha256" not in cohort.table:
        return []
    known = cohort.table[cohort.table["sha256"].notna()]
    leaking = known[known.groupby("sha256")["split"].transform("nunique") > 1]
    if leaking.empty:
        return []
    rows = leaking[leaking["sha256"] == leaking["sha256"].iloc[0]].drop_duplicates("split")
    pair = " and ".join(f"{name} ({split})" for name, split in zip(rows["image"].iloc[:2], rows["split"].iloc[:2], strict=True))
    option = " (--subject-column)" if cohort.schema.made.get("importer") == "table" else ""
    remedy = f"the splits leak; keep one of each, or give both one subject{option}"
    return [f"identical images in two splits: {leaking['sha256'].nunique()}, such as {pair}; {remedy}"]


def _missing_columns(root: Path) -> list[str]:
    """All columns that a readable table lacks; ``Cohort.load`` names the first only."""
    try:
        schema = CohortSchema.model_validate_json((root / SCHEMA_FILE).read_bytes())
        found = list(pd.read_parquet(root / TABLE_FILE).columns)
    except (OSError, ValueError):
        return []
    wanted = (*BASE_COLUMNS, *schema.columns)
    return [f"{root / TABLE_FILE}: no column {name!r}; {did_you_mean(name, found)}" for name in wanted if name not in found]


def _group_faults(cohort: Cohort) -> list[str]:
    """Groups that are spellings of one value, and groups and subject ids whose name says that nothing is known."""
    faults = []
    for column, groups in cohort.schema.columns.items():
        counts = cohort.table[column].astype(str).value_counts()
        spellings = Spellings(finding=column in cohort.schema.conditions)
        for group in groups:
            spellings.add(group, int(counts.get(group, 0)))
        faults += [
            f"{SCHEMA_FILE}: {column}: {line.partition(' -> ')[0]} are spellings of one value, and stand as groups of their own"
            for line in spellings.joined()
        ]
        if words := spellings.words():
            faults.append(f"{SCHEMA_FILE}: {column}: {counted(words)} means that nothing is known, and stands as a group")
    subjects = Counter(cohort.table["subject_id"].dropna().astype(str))
    nobody = Counter({subject: number for subject, number in subjects.items() if is_missing(subject)})
    if nobody:
        faults.append(f"{TABLE_FILE}: subject_id {counted(nobody)} means that the subject is not known, and stands as one subject")
    return faults


def _row_faults(cohort: Cohort) -> list[str]:
    faults = []
    for column, groups in {**cohort.schema.columns, "split": list(SPLITS)}.items():
        allowed = {*groups} if column == "split" else {*groups, *NOT_GROUPS}
        for number, value in enumerate(cohort.table[column], start=1):
            if value not in allowed:
                faults.append(f"{_row(number)}: {column} {value!r} is no group of {SCHEMA_FILE}; {did_you_mean(str(value), groups)}")
    for column in ("subject_id", "prompt"):
        missing = cohort.table[column].isna() | (cohort.table[column].astype(str).str.strip() == "")
        faults += [f"{_row(number)}: empty {column}" for number, empty in enumerate(missing, start=1) if empty]
    return faults


def _image_faults(cohort: Cohort) -> list[str]:
    faults: list[str] = []
    names: dict[str, int] = {}
    contents: dict[str, int] = {}
    recorded = cohort.table["sha256"] if "sha256" in cohort.table else [None] * len(cohort)
    for number, (name, expected) in enumerate(zip(cohort.table["image"], recorded, strict=True), start=1):
        if names.setdefault(name, number) != number:
            faults.append(f"{_row(number)}: {name} stands in row {names[name]} already")
            continue
        try:
            file = inside(cohort.root, name)
            image = open_verified(file)
        except BadImage as fault:
            faults.append(f"{_row(number)}: {name}: {fault}")
            continue
        faults += [f"{_row(number)}: {name}: {fault}" for fault in _shape_faults(image, cohort.schema)]
        digest = sha256_file(file)
        if isinstance(expected, str) and digest != expected:
            faults.append(f"{_row(number)}: {name}: SHA-256 differs from the table; the file was changed after import")
        if contents.setdefault(digest, number) != number:
            faults.append(f"{_row(number)}: {name}: same image as in row {contents[digest]}")
    return faults


def _shape_faults(image: Image.Image, schema: CohortSchema) -> list[str]:
    wanted = (schema.image_size, schema.image_size)
    faults = []
    if image.size != wanted:
        faults.append(f"{image.width} x {image.height} pixels, not {wanted[0]} x {wanted[1]}")
    if image.mode != schema.image_mode:
        faults.append(f"mode {image.mode}, not {schema.image_mode}")
    return faults


def _subject_faults(cohort: Cohort) -> list[str]:
    faults = []
    first: dict[str, tuple[str, int]] = {}
    for number, (subject, split) in enumerate(zip(cohort.table["subject_id"], cohort.table["split"], strict=True), start=1):
        known, row = first.setdefault(subject, (split, number))
        if split != known:
            faults.append(f"{_row(number)}: subject {subject!r} is in split {split!r} here and in {known!r} in row {row}")
    return faults


def _row(number: int) -> str:
    return f"{TABLE_FILE} row {number}"
