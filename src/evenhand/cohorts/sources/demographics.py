"""Race and ethnicity as Stanford's records spell them, and the table of CheXpert's patients that holds them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from evenhand.cohorts.tables import TableReader
from evenhand.cohorts.values import BadRow, cell, is_missing
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN

REQUIRED = ("PATIENT", "PRIMARY_RACE", "ETHNICITY")
RACE_GROUPS = ["asian", "black", "white", "other"]
ETHNICITY_GROUPS = ["non-hispanic", "hispanic"]
_NOT_STATED = (
    *("unknown", "race and ethnicity unknown", "race unknown", "ethnicity unknown", "not reported", "not specified", "none"),
    *("patient refused", "refused", "declines to state", "declined to state", "unable to determine"),
)
_RACE_NAMES = {
    "asian": "asian",
    **dict.fromkeys(("black", "black or african american", "african american"), "black"),
    **dict.fromkeys(("white", "white or caucasian", "caucasian"), "white"),
    **dict.fromkeys(("other", "other race", "two or more races"), "other"),
    **dict.fromkeys(("native american", "american indian or alaska native", "american indian", "alaska native"), "other"),
    **dict.fromkeys(("pacific islander", "native hawaiian or other pacific islander", "native hawaiian"), "other"),
}
# spelling in lower case -> race, and the ethnicity that it states as well
RACES: dict[str, tuple[str, str]] = {
    **{name: (group, UNKNOWN) for name, group in _RACE_NAMES.items()},
    **{f"{name} - historical conv": (group, UNKNOWN) for name, group in _RACE_NAMES.items()},
    **{f"{name}, {ethnicity}": (group, ethnicity) for name, group in _RACE_NAMES.items() for ethnicity in ETHNICITY_GROUPS},
    **dict.fromkeys(("hispanic", "hispanic or latino", "hispanic/latino", "hispanic - historical conv"), (UNKNOWN, "hispanic")),
    **dict.fromkeys(_NOT_STATED, (UNKNOWN, UNKNOWN)),
}
ETHNICITIES = {
    **dict.fromkeys(("hispanic", "hispanic/latino", "hispanic or latino"), "hispanic"),
    **dict.fromkeys(("non-hispanic", "non-hispanic/non-latino", "not hispanic", "not hispanic or latino"), "non-hispanic"),
    **dict.fromkeys(_NOT_STATED, UNKNOWN),
}


@dataclass(frozen=True)
class Patient:
    """What the records say of one patient, in their own words."""

    race: str
    ethnicity: str

    def groups(self) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Race and ethnicity as groups, and (column, spelling) of each value that no table here knows: it is ``unknown``."""
        race, stated = RACES.get(_norm(self.race), (UNKNOWN, UNKNOWN))
        ethnicity = ETHNICITIES.get(_norm(self.ethnicity), UNKNOWN)
        strange = [("race", self.race)] if not _is_known(self.race, RACES) else []
        if not _is_known(self.ethnicity, ETHNICITIES):
            strange.append(("ethnicity", self.ethnicity))
        elif ethnicity == UNKNOWN:
            ethnicity = stated  # "White, non-Hispanic" says both
        return {"race": race, "ethnicity": ethnicity}, strange

    def joined(self, other: Patient) -> Patient:
        """Two rows of one patient: where they contradict each other, both spellings stand, and are no known group."""
        return Patient(
            _joined(self.race, other.race, {name: race for name, (race, _) in RACES.items()}),
            _joined(self.ethnicity, other.ethnicity, ETHNICITIES),
        )


def read_demographics(path: Path, reader: TableReader) -> dict[str, Patient]:
    """Patients by id (``patient00001``) from ``CHEXPERT DEMO.xlsx``, or the same table as CSV.

    Raises:
        UserError: unreadable, too large, a missing column, or a row without a patient id.
    """
    patients: dict[str, Patient] = {}
    for place, row in reader.good_rows(path, REQUIRED):
        try:
            name = patient_id(cell(row, "PATIENT"))
            patient = Patient(cell(row, "PRIMARY_RACE"), cell(row, "ETHNICITY"))
        except BadRow as fault:
            raise UserError(f"{path.parent / place}: {fault}; mend the row or remove it") from None
        patients[name] = patients[name].joined(patient) if name in patients else patient
    return patients


def patient_id(text: str) -> str:
    """``patient00001`` from that, from a path that holds it, or from the bare number.

    Raises:
        BadRow: no such id.
    """
    found = re.search(r"(?:^|/)patient(\d{1,10})(?:/|$)", text, flags=re.IGNORECASE) or re.fullmatch(r"(\d{1,10})(?:\.0)?", text.strip())
    if not found:
        raise BadRow(f"no patient id such as 'patient00001' in {text[:80]!r}")
    return f"patient{int(found[1]):05d}"


def _joined(one: str, two: str, groups: dict[str, str]) -> str:
    first, second = groups.get(_norm(one), UNKNOWN), groups.get(_norm(two), UNKNOWN)
    if UNKNOWN in (first, second):
        return two if first == UNKNOWN and second != UNKNOWN else one
    return one if first == second else f"{one} / {two}"


def _norm(spelling: str) -> str:
    return " ".join(spelling.lower().split())


def _is_known(spelling: str, table: dict) -> bool:
    return is_missing(spelling) or _norm(spelling) in table
