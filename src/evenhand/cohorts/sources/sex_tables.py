"""The sex of subjects from a table beside the data: of its own, or by a mapping of ids from TCGA's clinical tables."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from evenhand.cohorts.tables import Row, TableReader
from evenhand.cohorts.values import BadRow, cell, is_missing
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN

SEXES = {"female": "female", "male": "male", "f": "female", "m": "male"}
# how GDC, TCGA and cBioPortal write that nothing is known
_NOT_STATED = (
    "'--",
    "--",
    "[not available]",
    "[unknown]",
    "[not evaluated]",
    "[not applicable]",
    "not reported",
    "not specified",
    "unspecified",
)
PATIENT_COLUMNS = ("bcr_patient_barcode", "case_submitter_id", "cases.submitter_id", "submitter_id", "patient id", "patient_id", "patient")
SEX_COLUMNS = ("gender", "demographic.gender", "demographic.sex_at_birth", "sex")
_SUBJECT_COLUMN = re.compile(r"brats_?(?:20)?\d\d_subject_id", re.IGNORECASE)
_BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}", re.IGNORECASE)


@dataclass
class SexTable:
    """Subject -> ``female`` or ``male``; subjects that are ``unknown`` there are missing here. ``spellings`` are those not known."""

    sexes: dict[str, str] = field(default_factory=dict)
    spellings: Counter[str] = field(default_factory=Counter)
    contradicted: set[str] = field(default_factory=set)
    listed: int = 0  # subjects that the table lists at all

    def add(self, subject: str, value: str) -> None:
        """One row; a subject with two sexes has none that is known."""
        if is_missing(value) or value.strip().lower() in _NOT_STATED:
            return
        sex = SEXES.get(value.strip().lower())
        if sex is None:
            self.spellings[value[:80]] += 1
        elif self.sexes.setdefault(subject, sex) != sex:
            self.contradicted.add(subject)

    def get(self, subject: str) -> str:
        """The sex of one subject."""
        return UNKNOWN if subject in self.contradicted else self.sexes.get(subject, UNKNOWN)


def read_sex_table(path: Path, reader: TableReader) -> SexTable:
    """``subject_id,sex``; any further columns are passed over.

    Raises:
        UserError: no such file, unreadable, a missing column, or a row without a subject.
    """
    table = SexTable()
    seen = set()
    for place, row in reader.good_rows(path, ("subject_id", "sex")):
        subject = _needed(path, place, row, "subject_id")
        table.add(subject, row.get("sex", ""))
        seen.add(subject)
    table.listed = len(seen)
    return table


def read_clinical(mapping: Path, clinical: Path, reader: TableReader) -> SexTable:
    """Sex of BraTS subjects: ``name_mapping.csv`` names the TCGA patients of every year's subjects, whose ``gender`` a clinical table has.

    Raises:
        UserError: unreadable, or a missing column.
    """
    by_patient = _read_gender(clinical, reader)
    names = reader.columns(mapping)
    subjects = [name for name in names if _SUBJECT_COLUMN.fullmatch(name)] or ["BraTS_2018_subject_ID"]
    table = SexTable(spellings=by_patient.spellings)
    for place, row in reader.good_rows(mapping, (*subjects, "TCGA_TCIA_subject_ID")):
        ids, patient = {row.get(name, "") for name in subjects}, row.get("TCGA_TCIA_subject_ID", "")
        if is_missing(patient) or all(map(is_missing, ids)):
            continue  # those who are not of TCGA
        found = _BARCODE.search(patient)
        if not found:
            raise UserError(
                f"{mapping.parent / place}: TCGA_TCIA_subject_ID {patient[:60]!r} holds no TCGA-XX-XXXX; mend the row or empty it"
            )
        table.listed += 1
        for subject in ids:
            if not is_missing(subject):
                table.add(subject, by_patient.get(found[0].upper()))
    return table


def _read_gender(clinical: Path, reader: TableReader) -> SexTable:
    """TCGA patient -> sex; rows of other ids (such as the second header of TCGA's own tables) are passed over."""
    if not clinical.is_file():
        raise UserError(f"{clinical}: no such file; name TCGA's clinical table")
    names = reader.columns(clinical)
    patient, sex = _column(clinical, names, PATIENT_COLUMNS), _column(clinical, names, SEX_COLUMNS)
    table = SexTable()
    for place, row in reader.good_rows(clinical):
        found = _BARCODE.match(_needed(clinical, place, row, patient))
        if found:
            table.add(found[0].upper(), row.get(sex, ""))
    return table


def _column(path: Path, names: list[str], wanted: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in names}
    found = next((lower[name] for name in wanted if name in lower), None)
    if found is None:
        raise UserError(f"{path}: no column {' or '.join(map(repr, wanted))}; {did_you_mean(wanted[0], names)}")
    return found


def _needed(path: Path, place: str, row: Row, column: str) -> str:
    try:
        value = cell(row, column)
    except BadRow as fault:
        raise UserError(f"{path.parent / place}: {fault}; mend the row or remove it") from None
    if not value:
        raise UserError(f"{path.parent / place}: empty {column}; mend the row or remove it")
    return value
