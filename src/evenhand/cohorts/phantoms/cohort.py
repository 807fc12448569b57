"""Phantoms written as a cohort: a data set whose every group and condition is known and can be read back from its pixels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evenhand.cohorts.cohort import Cohort, CohortSchema, to_image
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.phantom import Modality
from evenhand.cohorts.prompts import check_state, write_prompt
from evenhand.cohorts.splits import assign_splits
from evenhand.cohorts.writing import CohortWriter, cohort_writer
from evenhand.core.artifacts import provenance
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import Mix
from evenhand.core.progress import track


def find_modality(name: str) -> Modality:
    """The phantom modality of that name.

    Raises:
        UserError: there is none; the message gives near names.
    """
    if name not in MODALITIES:
        raise UserError(f"phantom: unknown modality {name!r}; {did_you_mean(name, MODALITIES)}")
    return MODALITIES[name]


def write_phantoms(
    modality: str,
    out: Path,
    *,
    n: int,
    mix: str | Mix | None = None,
    size: int = 32,
    seed: int = 0,
    harder: str | None = None,
    prompt_attributes: Sequence[str] | None = None,
    images_a_subject: int = 1,
) -> Cohort:
    """Draw ``n`` phantoms and write them as a cohort; memory does not grow with ``n``.

    Args:
        mix: shares of groups and conditions over subjects; what it leaves out has equal shares.
        harder: ``"sex=female:4"`` multiplies the nuisance variance of that group by 4.
        prompt_attributes: the attributes that prompts state; None states all, ``["none"]`` none. Conditions are always stated.
        images_a_subject: images of one subject share groups, condition and anatomy; pose, contrast and noise differ.

    Raises:
        UserError: unknown modality, group or attribute, ``n`` below 1, ``size`` below 24, or ``out`` exists and is not empty.
    """
    kind = find_modality(modality)
    state = check_state(prompt_attributes, kind.attributes)
    drawn = kind.blocks(n, mix=mix, size=size, seed=seed, harder=harder, images_a_subject=images_a_subject)
    made = provenance(
        generator=f"evenhand.cohorts.phantoms.{kind.name}",
        mix=str(kind.complete(mix)),
        n=n,
        size=size,
        seed=seed,
        harder=harder,
        images_a_subject=images_a_subject,
        prompt_attributes=state,
    )
    schema = CohortSchema(
        name=f"{kind.name}-phantoms",
        modality=kind.name,
        attributes=kind.attributes,
        conditions=kind.conditions,
        image_size=size,
        image_mode=kind.image_mode,
        source="Evenhand phantoms: drawn, no patient data",
        licence="Apache-2.0",
        made=made,
    )
    with cohort_writer(Path(out), schema) as writer, track(f"drawing {kind.name} phantoms", n) as bar:
        for block in drawn:
            splits = assign_splits(block.table["subject_id"], seed)
            for pixels, row, split in zip(block.images, block.table.to_dict("records"), splits, strict=True):
                _add(writer, kind, pixels, row, split, state)
            bar.advance(len(block.table))
    return Cohort.load(out)


def _add(
    writer: CohortWriter, kind: Modality, pixels: np.ndarray, row: Mapping[Hashable, str], split: str, state: list[str] | None
) -> None:
    groups = {name: row[name] for name in kind.attributes}
    findings = {name: row[name] for name in kind.conditions}
    prompt = write_prompt(kind.name, groups, findings, state)
    entry = {"subject_id": row["subject_id"], "split": split, "prompt": prompt, **groups, **findings}
    writer.add(to_image(pixels), entry, name=f"{writer.written:06d}")
