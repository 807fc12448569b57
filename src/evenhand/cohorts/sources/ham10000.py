"""HAM10000: 10,015 dermatoscopic images of 7,470 lesions (Tschandl, Rosendahl, Kittler 2018, doi 10.1038/sdata.2018.161)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.lookup import file_in, split_ending, subfolders
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, cell, identity, translate
from evenhand.core.errors import UserError

TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
# the tables of ISIC 2018, task 3, and the split of their images; the first is read where no table above is there
ISIC_TABLES = {
    "ISIC2018_Task3_Training_GroundTruth.csv": "",  # split by lesion
    "ISIC2018_Task3_Validation_GroundTruth.csv": "val",
    "ISIC2018_Task3_Test_GroundTruth.csv": "test",  # one-hot from ISIC; with lesion, age and sex from Dataverse
    "ISIC2018_Task3_Test_GroundTruth.tab": "test",
}
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"  # the lesions of the first
DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")  # columns of the one-hot tables
_HELD_OUT = re.compile(r"(?:.*/)?ISIC2018_Task3_(Validation|Test)", re.IGNORECASE)  # the folder of an image
REQUIRED = ("lesion_id", "image_id", "dx", "age", "sex")
# the binary condition of FairDiffusion (arXiv 2412.20374)
MALIGNANCY = {
    **dict.fromkeys(("akiec", "bcc", "mel"), "malignant"),
    **dict.fromkeys(("bkl", "df", "nv", "vasc"), "benign"),
}
SEXES = {"female": "female", "male": "male"}
ENDINGS = (".jpg", ".png", ".jpeg")


class Ham10000(Source):
    """Kaggle's layout, Dataverse's file names, or ISIC's. Subjects are lesions: several images of one lesion stay in one split.

    Images of ISIC 2018's validation and test sets are ``val`` and ``test``, as published.
    """

    name = "ham10000"
    modality = "dermoscopy"
    mode = "RGB"
    citation = "HAM10000 (Tschandl, Rosendahl, Kittler 2018, doi 10.1038/sdata.2018.161)"
    licence = "CC BY-NC 4.0"
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"malignancy": ["benign", "malignant"]}

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        places = [raw, *subfolders(raw)]
        self.tables = [(table, "") for table in (file_in(raw, *TABLES),) if table]
        for name, split in ISIC_TABLES.items():
            table = next((path for folder in places if (path := file_in(folder, name))), None)
            if table is not None and split not in (known for _, known in self.tables):
                self.tables.append((table, split))
        if not self.tables:
            raise UserError(f"{raw}: no {TABLES[0]} (or Dataverse's {TABLES[1]}, {TABLES[2]}); name the folder that holds it")
        groupings = next((path for folder in places if (path := file_in(folder, GROUPINGS))), None)
        rows = self.reader.good_rows(groupings, ("image", "lesion_id")) if groupings else ()
        self.lesions = {row["image"]: row["lesion_id"] for _, row in rows}
        self.without_lesion = 0
        folders = [path.name for path in subfolders(raw)]
        self.folders = sorted(folders, key=lambda name: ("images" not in name.lower(), name))

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of every table, with their place; the published split stands in the column ``""``."""
        for table, split in self.tables:
            one_hot = set(DIAGNOSES) <= set(self.reader.columns(table))
            for place, row in self.reader.rows(table, ("image", *DIAGNOSES) if one_hot else REQUIRED):
                found = self._from_one_hot(row) if one_hot and isinstance(row, dict) else row
                yield place, found if isinstance(found, BadRow) else {**found, "": split}

    def _from_one_hot(self, row: Row) -> Row | BadRow:
        """A row of ISIC as one of the metadata; age and sex are not in it."""
        found = [name for name in DIAGNOSES if row[name] in ("1", "1.0")]
        if len(found) != 1:
            return BadRow(f"{len(found)} of {', '.join(DIAGNOSES)} are 1; one diagnosis is wanted")
        lesion = self.lesions.get(row["image"], "")
        return {"image_id": row["image"], "lesion_id": lesion, "dx": found[0].lower(), "age": "", "sex": ""}

    def notes(self) -> list[str]:
        """Images whose lesion is not told."""
        if not self.without_lesion:
            return []
        return [f"{self.without_lesion} images have no lesion_id ({GROUPINGS} has those of ISIC): each is a subject of its own"]

    def record(self, row: Row) -> Record:
        """One image: sex, age group and malignancy; the diagnosis is kept as ``dx``."""
        image_id = cell(row, "image_id")
        if not image_id:
            raise BadRow("empty image_id")
        values = {
            "sex": translate("sex", cell(row, "sex"), SEXES),
            "age_group": age_group(cell(row, "age")),
            "malignancy": translate("dx", cell(row, "dx"), MALIGNANCY),
        }
        image = self.find(image_id, self.folders, ENDINGS)
        held_out = _HELD_OUT.match(image)
        lesion = identity(cell(row, "lesion_id"))
        self.without_lesion += not lesion
        return Record(
            image=image,
            image_id=split_ending(image_id)[0],
            subject_id=lesion or image_id,
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            split=row[""] or (parse_split(held_out[1]) if held_out else None),
            extras={"dx": cell(row, "dx")},
        )
