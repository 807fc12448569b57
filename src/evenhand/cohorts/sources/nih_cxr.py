"""NIH ChestX-ray14: frontal chest radiographs, several per patient (Wang et al. 2017, arXiv 1705.02315)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.lookup import file_in, fold, split_ending, subfolders, tidy
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.splits import FRACTIONS, split_of
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, cell, identity, is_missing, translate
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN

# what the table is called, and where its images lie besides images/ and images_001/images/
TABLES: dict[str, tuple[str, ...]] = {
    "Data_Entry_2017.csv": (),  # NIH 2017, and Kaggle's nih-chest-xrays/data
    "Data_Entry_2017_v2020.csv": (),  # NIH since 2020
    "sample_labels.csv": ("sample/images", "sample/sample/images", "sample"),  # Kaggle's nih-chest-xrays/sample
}
SEX_COLUMNS = ("Patient Gender", "Patient Sex")  # the second in tables handed out since 2023
REQUIRED = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")
TEST_LIST, TRAIN_LIST = "test_list.txt", "train_val_list.txt"
LIST_NAMES = {TEST_LIST: (TEST_LIST, "test_list_NIH.txt"), TRAIN_LIST: (TRAIN_LIST, "train_val_list_NIH.txt")}  # Kaggle's end in _NIH
SEXES = {"f": "female", "m": "male", "female": "female", "male": "male"}
VIEWS = {"pa": "PA", "ap": "AP"}
FINDINGS = (
    *("No Finding", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
_TRAIN = FRACTIONS[0] / (FRACTIONS[0] + FRACTIONS[1])  # of the patients who are not held out


class NihCxr(Source):
    """A table of ``TABLES`` with images under ``images/`` or ``images_001/images/`` and so on.

    The header names two columns that hold a comma, ``OriginalImage[Width,Height]``, so columns are read by name, never counted.
    Images of ``test_list.txt`` are ``test``, as published; all others are then split into ``train`` and ``val`` by patient. Besides
    ``effusion`` the conditions ``finding`` (none, any) and ``view`` (PA, AP) can be asked for.
    """

    name = "nih-cxr"
    modality = "chest"
    mode = "L"
    citation = "NIH ChestX-ray14 (Wang et al. 2017, arXiv 1705.02315), NIH Clinical Center"
    licence = "free use with attribution to the NIH Clinical Center"
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"effusion": ["none", "effusion"], "finding": ["none", "any"], "view": ["PA", "AP"]}
    default_conditions: ClassVar[tuple[str, ...] | None] = ("effusion",)

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        table = file_in(raw, *TABLES)
        if table is None:
            raise UserError(f"{raw}: no {next(iter(TABLES))}; name the folder that holds it (or {', '.join(list(TABLES)[1:])})")
        self.table, names = table, self.reader.columns(table)
        self.sex = next((name for name in SEX_COLUMNS if name in names), SEX_COLUMNS[0])
        parts = [path.name for path in subfolders(raw, "images")]  # Kaggle's smaller copies have images-224/images-224/
        inner = [f"{part}/{path.name}" for part in parts for path in subfolders(raw / part, "images")]
        more = next(folders for name, folders in TABLES.items() if fold(name) == fold(table.name))
        self.folders = list(dict.fromkeys(["images", *more, *inner, *parts]))
        self.listed = {name: _read_list(raw, name) for name in (TEST_LIST, TRAIN_LIST)}
        found = [name for name, images in self.listed.items() if images is not None]
        self.facts |= {"published_splits": ", ".join(found)} if found else {}
        self.counts: Counter[str] = Counter()

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of the table, with their place."""
        return self.reader.rows(self.table, (*REQUIRED[:4], self.sex, *REQUIRED[4:]))

    def record(self, row: Row) -> Record:
        """One radiograph; the labels are kept as ``finding_labels``."""
        image_id = cell(row, "Image Index")
        if not image_id:
            raise BadRow("empty Image Index")
        values = {
            "sex": translate(self.sex, cell(row, self.sex), SEXES),
            "age_group": age_group(cell(row, "Patient Age")),
            **_findings(cell(row, "Finding Labels")),
            "view": translate("View Position", cell(row, "View Position"), VIEWS),
        }
        subject = identity(cell(row, "Patient ID")) or image_id
        return Record(
            image=self.find(image_id, self.folders),
            image_id=split_ending(image_id)[0],
            subject_id=subject,
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            split=self._split(image_id, subject),
            extras={"finding_labels": cell(row, "Finding Labels")},
        )

    def notes(self) -> list[str]:
        """What the published lists left open."""
        notes = []
        if self.counts["neither"]:
            notes.append(f"{self.counts['neither']} images are in neither {TEST_LIST} nor {TRAIN_LIST}: they are train or val")
        if self.listed[TEST_LIST] and not self.counts["test"]:
            notes.append(f"no image is in {TEST_LIST}: the split 'test' is empty")
        return notes

    def _split(self, image_id: str, subject: str) -> str | None:
        """``test`` as the lists say, which part patients; None where there are no lists."""
        key = _key(image_id)
        test, rest = self.listed[TEST_LIST], self.listed[TRAIN_LIST]
        if test is None and rest is None:
            return None
        if test and rest and key in test and key in rest:
            raise BadRow(f"{image_id} is in {TEST_LIST} and in {TRAIN_LIST}; remove it from one of the two")
        held_out = key in test if test is not None else key not in (rest or ())
        self.counts["test"] += held_out
        self.counts["neither"] += bool(test is not None and rest is not None and not held_out and key not in rest)
        return "test" if held_out else split_of(subject, self.settings.seed, (_TRAIN, 1 - _TRAIN, 0.0))


def _read_list(raw: Path, name: str) -> frozenset[str] | None:
    """The image ids of one published list, one per line; None where there is no such file."""
    path = file_in(raw, *LIST_NAMES[name])
    if path is None:
        return None
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return frozenset(_key(line) for line in file if line.strip())


def _key(name: str) -> str:
    """An image's id, whatever folder and ending a list gives it."""
    return fold(split_ending(tidy(name).rsplit("/", maxsplit=1)[-1])[0])


def _findings(labels: str) -> dict[str, str]:
    """``effusion`` and ``finding`` from labels joined by ``|``; no label at all is unknown, not healthy."""
    if is_missing(labels):
        return {"effusion": UNKNOWN, "finding": UNKNOWN}
    found = [label.strip() for label in labels.split("|")]
    for label in found:
        if label not in FINDINGS:
            raise BadRow(f"Finding Labels {label!r} is no known finding; there is: {', '.join(FINDINGS)}")
    return {
        "effusion": "effusion" if "Effusion" in found else "none",
        "finding": "none" if found == ["No Finding"] else "any",
    }
