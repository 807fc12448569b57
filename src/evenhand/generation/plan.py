"""Who is generated, how many, and with which prompt: a table with one row an image, made before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.prompts import check_state, write_prompt
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN, UNSPECIFIED, observed_mix
from evenhand.core.randomness import derive_seed


@dataclass(frozen=True)
class Plan:
    """A table (sample_id, prompt, attributes, conditions, modality, seed) and the schema of its columns."""

    table: pd.DataFrame
    modality: str
    attributes: Mapping[str, list[str]]
    conditions: Mapping[str, list[str]]


def plan_like(cohort: Cohort, n: int, *, prompt_attributes: Sequence[str] | None, seed: int) -> Plan:
    """``n`` images with the joint mix of attributes and conditions of ``cohort``, unknown values left out of the mix.

    Attributes that the prompts do not state are ``unspecified``: nothing was asked.
    """
    schema = cohort.schema
    stated = _stated(prompt_attributes, schema.attributes)
    names = [*stated, *schema.conditions]
    if not names:
        strata = pd.DataFrame({"n": [n]})
    else:
        counts = observed_mix(cohort.table, names).counts(n)
        strata = pd.DataFrame([(*values, count) for values, count in counts.items()], columns=[*names, "n"])
    return _expanded(strata, schema.modality, schema.attributes, schema.conditions, stated, seed)


def plan_from_file(path: Path, *, prompt_attributes: Sequence[str] | None, like: Cohort | None, seed: int) -> Plan:
    """A CSV with a column ``n`` and either ``prompt`` or columns of attributes and conditions of the cohort ``like``.

    Raises:
        UserError: unreadable, a column or a value that ``like`` lacks, or an ``n`` that is not a whole number.
    """
    try:
        strata = pd.read_csv(path, dtype="str", keep_default_na=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --plan wants a CSV with a column n") from None
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV ({error}); --plan wants a CSV with a column n") from None
    if "n" not in strata:
        raise UserError(f"{path}: no column 'n'; {did_you_mean('n', strata.columns)}")
    if "prompt" not in strata and like is None:
        raise UserError(f"{path}: no column 'prompt'; add it, or name the cohort whose templates write prompts with --like")
    attributes = dict(like.schema.attributes) if like else {}
    conditions = dict(like.schema.conditions) if like else {}
    strata["n"] = [_count(path, row, value) for row, value in enumerate(strata["n"], start=2)]
    for column in strata.columns.difference(["n", "prompt"]):
        _check_values(path, strata, column, {**attributes, **conditions})
    stated = _stated(prompt_attributes, attributes)
    return _expanded(strata, like.schema.modality if like else "mixed", attributes, conditions, stated, seed)


def _stated(prompt_attributes: Sequence[str] | None, attributes: Mapping[str, list[str]]) -> list[str]:
    chosen = check_state(prompt_attributes, attributes)
    return list(attributes) if chosen is None else chosen


def _count(path: Path, row: int, value: str) -> int:
    if not (value.strip().isascii() and value.strip().isdigit()):
        raise UserError(f"{path}: row {row}: n is {value!r}; write a whole number of images")
    return int(value)


def _check_values(path: Path, strata: pd.DataFrame, column: str, schema: Mapping[str, list[str]]) -> None:
    if column not in schema:
        raise UserError(f"{path}: unknown column {column!r}; {did_you_mean(column, ['n', 'prompt', *schema])}")
    for row, value in enumerate(strata[column], start=2):
        if value not in (*schema[column], "", UNSPECIFIED):
            raise UserError(f"{path}: row {row}: {column} has no group {value!r}; {did_you_mean(value, schema[column])}")


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
        return {name: row[name] for name in names if row[name] not in (UNKNOWN, UNSPECIFIED)}

    return write_prompt(modality, asked(attributes), asked(conditions), list(stated))
