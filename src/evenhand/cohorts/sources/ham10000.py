"""HAM10000: 10,015 dermatoscopic images of 7,470 lesions (Tschandl, Rosendahl, Kittler 2018, doi 10.1038/sdata.2018.161)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.lookup import file_in, split_ending, subfolders
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, cell, translate
from evenhand.core.errors import UserError

TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
REQUIRED = ("lesion_id", "image_id", "dx", "age", "sex")
# the binary condition of FairDiffusion (arXiv 2412.20374)
MALIGNANCY = {
    **dict.fromkeys(("akiec", "bcc", "mel"), "malignant"),
    **dict.fromkeys(("bkl", "df", "nv", "vasc"), "benign"),
}
SEXES = {"female": "female", "male": "male"}
ENDINGS = (".jpg", ".png", ".jpeg")


class Ham10000(Source):
    """Kaggle's layout, or Dataverse's file names. Subjects are lesions: several images of one lesion stay in one split."""

    name = "ham10000"
    modality = "dermoscopy"
    mode = "RGB"
    citation = "HAM10000 (Tschandl, Rosendahl, Kittler 2018, doi 10.1038/sdata.2018.161)"
    licence = "CC BY-NC 4.0"
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"malignancy": ["benign", "malignant"]}

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.table = file_in(raw, *TABLES)
        if self.table is None:
            raise UserError(f"{raw}: no {TABLES[0]} (or Dataverse's {TABLES[1]}, {TABLES[2]}); name the folder that holds it")
        folders = [path.name for path in subfolders(raw)]
        self.folders = sorted(folders, key=lambda name: ("images" not in name.lower(), name))

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of the metadata, with their place."""
        assert self.table is not None
        return self.reader.rows(self.table, REQUIRED)

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
        return Record(
            image=self.find(image_id, self.folders, ENDINGS),
            image_id=split_ending(image_id)[0],
            subject_id=cell(row, "lesion_id") or image_id,
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            extras={"dx": cell(row, "dx")},
        )
