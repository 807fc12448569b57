"""NIH ChestX-ray14: frontal chest radiographs, several a patient (Wang et al. 2017, arXiv 1705.02315)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.tables import Row, read_rows
from evenhand.cohorts.values import BadRow, cell, is_missing, translate
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
REQUIRED = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
SEXES = {"f": "female", "m": "male", "female": "female", "male": "male"}
VIEWS = {"pa": "PA", "ap": "AP"}
FINDINGS = (
    *("No Finding", "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)


class NihCxr(Source):
    """``Data_Entry_2017.csv`` with images under ``images/`` or ``images_001/images/`` and so on.

    The header names two columns that hold a comma, ``OriginalImage[Width,Height]``, so columns are read by name, never counted.
    Besides ``effusion`` the conditions ``finding`` (none, any) and ``view`` (PA, AP) can be asked for.
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
        self.table = next((raw / name for name in TABLES if (raw / name).is_file()), None)
        if self.table is None:
            raise UserError(f"{raw}: no {TABLES[0]}; name the folder that holds it")
        parts = sorted(path.name for path in raw.glob("images_*") if path.is_dir())
        self.folders = ["images", *(f"{part}/images" for part in parts), *parts]

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Rows of the table, with their place."""
        assert self.table is not None
        return read_rows(self.table, REQUIRED)

    def record(self, row: Row) -> Record:
        """One radiograph; the labels are kept as ``finding_labels``."""
        image_id = cell(row, "Image Index")
        if not image_id:
            raise BadRow("empty Image Index")
        values = {
            "sex": translate("Patient Gender", cell(row, "Patient Gender"), SEXES),
            "age_group": age_group(cell(row, "Patient Age")),
            **_findings(cell(row, "Finding Labels")),
            "view": translate("View Position", cell(row, "View Position"), VIEWS),
        }
        return Record(
            image=self.find(image_id, self.folders),
            image_id=image_id.removesuffix(".png"),
            subject_id=cell(row, "Patient ID") or image_id,
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            extras={"finding_labels": cell(row, "Finding Labels")},
        )


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
