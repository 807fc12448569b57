"""Who is generated, how many, and with which prompt: a table with one row per image, made before anything is drawn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.prompts import check_state, template_pattern, write_prompt
from evenhand.cohorts.sources.captions import mine
from evenhand.cohorts.tables import TableReader
from evenhand.cohorts.values import is_missing, meant
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS, UNSPECIFIED, known, observed_mix
from evenhand.core.progress import warn
from evenhand.core.randomness import derive_seed


@dataclass(frozen=True)
class Plan:
    """A table (sample_id, prompt, attributes, conditions, modality, seed) and the schema of its columns."""

    table: pd.DataFrame
    modality: str
    attributes: Mapping[str, list[str]]
    conditions: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()  # what a reader of the cohort should know


def plan_like(cohort: Cohort, n: int, *, prompt_attributes: Sequence[str] | None, seed: int) -> Plan:
    """``n`` images with the joint mix of attributes and conditions of ``cohort``, rows with an unknown value left out of the mix.

    A cohort whose prompts no template wrote, such as captions, is drawn from with its own prompts, unless ``prompt_attributes`` asks
    for the template's. Attributes that the prompts do not name are ``unspecified``: nothing was asked. An attribute or condition that
    is unknown in every row is left out, with a note.

    Raises:
        UserError: no row knows all attributes and conditions together.
    """
    if prompt_attributes is None and _has_captions(cohort):
        return _plan_of_captions(cohort, n, seed)
    schema, table = cohort.schema, cohort.table
    asked = _stated(prompt_attributes, schema.attributes)
    absent = [name for name in (*asked, *schema.conditions) if not known(table, [name]).any()]
    names = [name for name in (*asked, *schema.conditions) if name not in absent]
    rows = known(table, names)
    if len(table) and not rows.any():
        one = max(names, key=lambda name: int(known(table, [name]).sum()))
        raise UserError(f"{cohort.root}: no row knows all of {', '.join(names)}; name fewer, for example --prompt-attributes {one}")
    notes = [f"{name} is unknown in every row of {cohort.root}; prompts leave it out" for name in absent]
    if rows.sum() < len(rows):
        notes.append(f"the mix is that of {int(rows.sum())} of {len(rows)} rows of {cohort.root}, which know all of {', '.join(names)}")
    if not names:
        strata = pd.DataFrame({"n": [n]})
    else:
        counts = observed_mix(table, names).counts(n)
        strata = pd.DataFrame([(*values, count) for values, count in counts.items()], columns=[*names, "n"])
    return replace(_expanded(strata, schema.modality, schema.attributes, schema.conditions, asked, seed), notes=tuple(notes))


def _has_captions(cohort: Cohort) -> bool:
    """Whether some prompts of a cohort are other than what its modality's template writes of its groups."""
    schema = cohort.schema
    pattern = template_pattern(schema.modality, schema.attributes, schema.conditions)
    return not all(pattern.fullmatch(prompt) for prompt in cohort.table["prompt"].astype(str).unique())


def _plan_of_captions(cohort: Cohort, n: int, seed: int) -> Plan:
    """The prompts of ``n`` rows drawn without replacement; beyond the cohort's size every row is drawn again before any a third time.

    A group counts as requested where the caption names it. Conditions are those of the row: a caption describes its image.
    """
    schema, hashes = cohort.schema, cohort.image_hashes().tolist()
    if not len(cohort):
        raise UserError(f"{cohort.root}: no row, so there is no prompt to draw; name another cohort with --like")
    order = sorted(range(len(cohort)), key=lambda row: (derive_seed(seed, "caption", hashes[row]), row))
    rows = cohort.table.iloc[[order[i % len(order)] for i in range(n)]].reset_index(drop=True)
    rows = rows[["prompt", *schema.columns]].astype(object)
    named = {}
    for name in schema.attributes:
        asked = [_names(caption, name, value) for caption, value in zip(rows["prompt"], rows[name], strict=True)]
        named[name] = sum(asked)
        rows[name] = rows[name].where(pd.Series(asked), UNSPECIFIED)
    for name in schema.conditions:
        rows[name] = rows[name].where(known(rows, [name]), UNSPECIFIED)
    counts = "".join(f"; {count} of {n} name their {name}" for name, count in named.items())
    note = f"prompts are the captions of {cohort.root}{counts}. --prompt-attributes asks for template prompts instead"
    return replace(_expanded(rows.assign(n=1), schema.modality, schema.attributes, schema.conditions, [], seed), notes=(note,))


def _names(caption: str, column: str, group: object) -> bool:
    """Whether a caption names this group of its patient: as a word, or as a sex or an age that Evenhand reads from captions."""
    if not isinstance(group, str) or group in NOT_GROUPS:
        return False
    described = {"sex": mine(caption).sex, "gender": mine(caption).sex, "age_group": mine(caption).age_group}
    word = re.search(rf"(?<!\w){re.escape(group)}(?!\w)", caption, re.IGNORECASE)
    return described.get(column) == group or word is not None


def plan_from_file(path: Path, *, prompt_attributes: Sequence[str] | None, like: Cohort | None, seed: int) -> Plan:
    """A table with a column ``n`` and either ``prompt`` or columns of attributes and conditions of the cohort ``like``.

    Raises:
        UserError: unreadable, a row that is not whole, a column or a value that ``like`` lacks, or an ``n`` that is not a whole number.
    """
    strata = _read(path)
    if "prompt" not in strata and like is None:
        raise UserError(f"{path}: no column 'prompt'; add it, or name the cohort whose templates write prompts with --like")
    attributes = dict(like.schema.attributes) if like else {}
    conditions = dict(like.schema.conditions) if like else {}
    strata["n"] = [_count(path, row, value) for row, value in strata["n"].items()]
    for column in strata.columns.difference(["n", "prompt"]):
        strata[column] = _meant(path, strata, column, {**attributes, **conditions}, finding=column in conditions)
    if "prompt" in strata:
        _require_prompts(path, strata)
    stated = _stated(prompt_attributes, attributes)
    return _expanded(strata, like.schema.modality if like else "mixed", attributes, conditions, stated, seed)


def _read(path: Path) -> pd.DataFrame:
    """The plan as text; its index is the number of each row in the file."""
    if not path.exists():
        raise UserError(f"{path}: no such file; --plan wants a table with a column n")
    reader = TableReader(remedy="save it as UTF-8")
    columns, rows = reader.columns(path), dict(reader.whole(path, ("n",)))
    for note in reader.notes():
        warn(note)
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=columns, dtype="str").fillna("")


def _stated(prompt_attributes: Sequence[str] | None, attributes: Mapping[str, list[str]]) -> list[str]:
    chosen = check_state(prompt_attributes, attributes)
    return list(attributes) if chosen is None else chosen


def _count(path: Path, row: object, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}(?:\.0*)?", value.strip(), re.ASCII):  # tables with an empty cell write 40 as 40.0
        raise UserError(f"{path}: row {row}: n is {value!r}; write a whole number of images")
    return int(value.partition(".")[0])


def _require_prompts(path: Path, strata: pd.DataFrame) -> None:
    """Refuse a word for missing, such as nan, in the place of a prompt; an empty cell asks for an image without one."""
    for row, value in strata["prompt"].items():
        if value.strip() and is_missing(value):
            raise UserError(f"{path}: row {row}: prompt {value!r} says that there is none; write the prompt, or empty the cell")


def _meant(path: Path, strata: pd.DataFrame, column: str, schema: Mapping[str, list[str]], *, finding: bool) -> list[str]:
    """The groups that the cells mean, whatever their spelling; empty where they are missing.

    Raises:
        UserError: a column or a value that the cohort lacks.
    """
    if column not in schema:
        raise UserError(f"{path}: unknown column {column!r}; {did_you_mean(column, ['n', 'prompt', *schema])}")
    found = []
    for row, value in strata[column].items():
        group = meant(value, schema[column])
        if group is None and not is_missing(value, finding=finding):
            raise UserError(f"{path}: row {row}: {column} has no group {value!r}; {did_you_mean(value, schema[column])}")
        found.append(group or "")
    return found


def _expanded(
    strata: pd.DataFrame,
    modality: str,
    attributes: Mapping[str, list[str]],
    conditions: Mapping[str, list[str]],
    stated: Sequence[str],
    seed: int,
) -> Plan:
    if not int(strata["n"].sum()):
        raise UserError("the plan asks for no image; give --n, or counts above 0")
    rows = strata.loc[strata.index.repeat(strata["n"].astype(int))].drop(columns="n").reset_index(drop=True)
    for name in (*attributes, *conditions):
        asked = rows[name].replace("", UNSPECIFIED) if name in rows else UNSPECIFIED
        rows[name] = asked if name in stated or name in conditions or "prompt" in rows else UNSPECIFIED
    if "prompt" not in rows:
        rows["prompt"] = [_prompt(modality, row, attributes, conditions, stated) for row in rows.to_dict("records")]
    rows.insert(0, "sample_id", range(len(rows)))
    rows["seed"] = [derive_seed(seed, "image", i) for i in range(len(rows))]
    return Plan(rows, modality, attributes, conditions)


def _prompt(modality: str, row: Mapping, attributes: Mapping, conditions: Mapping, stated: Sequence[str]) -> str:
    def asked(names: Mapping) -> dict[str, str]:
        return {name: row[name] for name in names if row[name] not in NOT_GROUPS}

    return write_prompt(modality, asked(attributes), asked(conditions), list(stated))
