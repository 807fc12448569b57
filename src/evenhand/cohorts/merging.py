"""Joining two cohorts into one."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from evenhand.cohorts.cohort import (
    BASE_COLUMNS,
    IMAGE_FOLDER,
    SCHEMA_FILE,
    SYNTHETIC_COLUMNS,
    TABLE_FILE,
    Cohort,
    CohortSchema,
    write_table,
)
from evenhand.cohorts.prompts import write_prompt
from evenhand.cohorts.values import Spellings, counted
from evenhand.core.artifacts import new_folder, provenance, write_json
from evenhand.core.errors import UserError
from evenhand.core.groups import NOT_GROUPS, UNKNOWN, UNSPECIFIED
from evenhand.core.names import same_name

MIXED = "mixed"


def merge_cohorts(a: Path | str, b: Path | str, out: Path | str) -> Cohort:
    """Join two cohorts as a new one; images are copied as they are.

    Attributes and conditions are those of both. A column that one side lacks is ``unknown`` there (``unspecified`` where that side
    is synthetic). Cohorts of different modality become ``mixed``, with a column ``modality``. Subject ids get the cohort's name in
    front and images a folder of that name, so that two different subjects 17 stay two. Images that both hold (by SHA-256) are kept
    and counted in ``schema.made["duplicates"]``. Spellings of one value become the more frequent one, with a note, in prompts that
    a template wrote too; captions stay.

    Raises:
        UserError: sizes or modes differ, one side is synthetic and the other is not, an image is missing, or ``out`` exists.
    """
    sides = (Cohort.load(a), Cohort.load(b))
    _require_alike(*sides)
    labels = _labels(*(side.schema.name for side in sides))
    schema = _joined_schema(*sides, labels)
    spellings = _spellings(sides, schema)
    schema = _respelt(schema, spellings, [*_columns_alike(*sides), *_notes(spellings)])
    tables = [_relabelled(side, label, schema, spellings) for side, label in zip(sides, labels, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    made = {**schema.made, "duplicates": int(table["sha256"].dropna().duplicated().sum()) if "sha256" in table else 0}
    schema = schema.model_copy(update={"made": made})
    with new_folder(Path(out)) as folder:
        for source, target in _copies(sides, tables):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                (folder / target).write_bytes(source.read_bytes())
            except FileNotFoundError:
                raise UserError(f"{source}: missing image; run 'evenhand cohort check' on its cohort") from None
        write_table(folder / TABLE_FILE, table)
        write_json(folder / SCHEMA_FILE, schema.model_dump())
    return Cohort.load(out)


def _require_alike(a: Cohort, b: Cohort) -> None:
    if a.schema.image_size != b.schema.image_size:
        size = min(a.schema.image_size, b.schema.image_size)
        raise UserError(
            f"{b.root}: images of {b.schema.image_size} pixels, but {a.root} has {a.schema.image_size}; import both with --size {size}"
        )
    if a.schema.image_mode != b.schema.image_mode:
        raise UserError(
            f"{b.root}: images of mode {b.schema.image_mode}, but {a.root} has {a.schema.image_mode}; import both with mode RGB"
        )
    if a.schema.synthetic != b.schema.synthetic:
        real, made = (b, a) if a.schema.synthetic else (a, b)
        raise UserError(f"{made.root} is synthetic and {real.root} is not; keep them apart: the audit takes one of each")


def _labels(a: str, b: str) -> tuple[str, str]:
    """A short safe name for each side, never the same."""
    first, second = (re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-").lower()[:40] or "cohort" for name in (a, b))
    return (first, second) if first != second else (f"{first}-1", f"{second}-2")


def _joined_schema(a: Cohort, b: Cohort, labels: tuple[str, str]) -> CohortSchema:
    one, two = a.schema, b.schema
    for name in one.columns:
        if (name in one.attributes) != (name in two.attributes) and name in two.columns:
            raise UserError(f"column {name!r} is an attribute in one cohort and a condition in the other; import one of them again")

    def joined(left: dict[str, list[str]], right: dict[str, list[str]]) -> dict[str, list[str]]:
        return {name: list(dict.fromkeys([*left.get(name, ()), *right.get(name, ())])) for name in {**left, **right}}

    def both(left: str, right: str) -> str:
        return left if left == right else "; ".join(part for part in (left, right) if part)

    kept = {"name", "source", "licence", "made"}
    parts = {label: side.schema.model_dump(include=kept) for label, side in zip(labels, (a, b), strict=True)}
    return CohortSchema(
        name="+".join(labels),
        modality=one.modality if one.modality == two.modality else MIXED,
        attributes=joined(one.attributes, two.attributes),
        conditions=joined(one.conditions, two.conditions),
        image_size=one.image_size,
        image_mode=one.image_mode,
        synthetic=one.synthetic,
        source=both(one.source, two.source),
        licence=both(one.licence, two.licence),
        made=provenance(merged=parts),
    )


def _spellings(sides: tuple[Cohort, Cohort], schema: CohortSchema) -> dict[str, Spellings]:
    """How both sides spell the groups of every column, by number of images."""
    found = {name: Spellings(finding=name in schema.conditions) for name in schema.columns}
    for side in sides:
        for name, groups in side.schema.columns.items():
            counts = side.table[name].dropna().astype(str).value_counts(sort=False)
            for group in dict.fromkeys([*groups, *counts.index]):
                found[name].add(group, int(counts.get(group, 0)))
    return found


def _respelt(schema: CohortSchema, spellings: dict[str, Spellings], notes: list[str]) -> CohortSchema:
    """The schema with one name for each value."""

    def named(columns: dict[str, list[str]]) -> dict[str, list[str]]:
        found = {name: [spellings[name].name(group) for group in groups] for name, groups in columns.items()}
        return {name: list(dict.fromkeys(group for group in groups if group is not None)) for name, groups in found.items()}

    parts = {"attributes": named(schema.attributes), "conditions": named(schema.conditions), "made": {**schema.made, "notes": notes}}
    return schema.model_copy(update=parts)


def _notes(spellings: dict[str, Spellings]) -> list[str]:
    """Which spellings were joined or look alike, and which groups of either side mean that nothing is known."""
    notes = [note for name, found in spellings.items() for note in found.notes(name)]
    for name, found in spellings.items():
        words = Counter({word: number for word, number in found.words().items() if word not in NOT_GROUPS})
        if words:
            notes.append(f"{name}: read as missing: {counted(words)}")
    return notes


def _columns_alike(a: Cohort, b: Cohort) -> list[str]:
    """Columns that the two sides spell differently: they are not joined, and each is unknown on the other side."""
    pairs = [(name, near) for name in a.schema.columns if name not in b.schema.columns for near in same_name(name, b.schema.columns)]
    return [f"columns {one!r} and {other!r} stand side by side; where they are one, rename it and import again" for one, other in pairs]


def _relabelled(side: Cohort, label: str, schema: CohortSchema, spellings: dict[str, Spellings]) -> pd.DataFrame:
    """One side's table in the joined schema; image names are those of the new folder."""
    table = side.table.copy()
    table["subject_id"] = label + ":" + table["subject_id"].astype(str)
    table["image"] = [f"{IMAGE_FOLDER}/{label}/{name.removeprefix(f'{IMAGE_FOLDER}/')}" for name in table["image"]]
    twice = side.table.loc[table["image"].duplicated(), "image"]
    if len(twice):
        raise UserError(f"{side.root}: image {twice.iloc[0]!r} stands twice in the table; run 'evenhand cohort check' on it")
    gap = UNSPECIFIED if side.schema.synthetic else UNKNOWN
    for name in schema.columns:
        if name not in side.schema.columns:
            table[name] = gap
            continue
        values = {value: spellings[name].name(str(value)) for value in table[name].dropna().unique()}
        known = {value: group or (value if value in NOT_GROUPS else gap) for value, group in values.items()}
        table[name] = table[name].map(known).fillna(gap)
    table["prompt"] = _prompts(side, table)
    if schema.modality == MIXED:
        table["modality"] = table["modality"] if side.schema.modality == MIXED else side.schema.modality
    first = [*BASE_COLUMNS, *(["modality"] if schema.modality == MIXED else []), *schema.columns]
    last = [name for name in (*SYNTHETIC_COLUMNS, "sha256") if name in table]
    extras = [name for name in table if name not in (*first, *last)]
    return table[[*first, *extras, *last]]


def _prompts(side: Cohort, table: pd.DataFrame) -> list[str]:
    """The prompts of one side, written anew where a template wrote them of groups that have another name in ``table``."""
    schema = side.schema
    stated = (schema.made.get("settings") or {}).get("prompt_attributes")
    states = (None, [] if stated == ["none"] else stated)
    columns = ["prompt", *schema.columns]

    def template(row: dict[str, str], state: list[str] | None) -> str:
        attributes, conditions = ({name: row[name] for name in names} for names in (schema.attributes, schema.conditions))
        return write_prompt(schema.modality, attributes, conditions, state)

    def prompt(old: dict[str, str], new: dict[str, str]) -> str:
        for state in states if old != new else ():
            with contextlib.suppress(UserError):  # a number of which the template knows no meaning
                if template(old, state) == old["prompt"]:
                    return template(new, state)
        return str(old["prompt"])

    rows = (frame[columns].to_dict("records") for frame in (side.table, table))
    return [prompt(old, new) for old, new in zip(*rows, strict=True)]


def _copies(sides: tuple[Cohort, Cohort], tables: list[pd.DataFrame]) -> Iterator[tuple[Path, str]]:
    for side, table in zip(sides, tables, strict=True):
        for name, target in zip(side.table["image"], table["image"], strict=True):
            yield side.image_path(name), target
