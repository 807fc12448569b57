"""CheXpert: 224,316 chest radiographs of 65,240 patients (Irvin et al. 2019, arXiv 1901.07031); CheXpert Plus (arXiv 2405.19538)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.lookup import file_in, subfolders, tidy
from evenhand.cohorts.prompts import CHEST_FINDINGS
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.sources.demographics import ETHNICITY_GROUPS, RACE_GROUPS, Patient, patient_id, read_demographics
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, LeftOut, cell, is_missing, translate
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN

# the tables of CheXpert, and the split of their patients
TABLES = {"train.csv": "train", "valid.csv": "val", "test.csv": "test"}
# tables of labels alone, as the test set is handed out: taken where the table above of the same split is missing
LABEL_TABLES = {
    "val_labels.csv": "val",  # of CheXlocalize, one row per image
    "test_labels.csv": "test",  # the same
    "groundtruth.csv": "test",  # of rajpurkarlab/cheXpert-test-set-labels, one row per study
}
# "CheXpert-v1.0 batch 2 (train 1)" and so on: the training images as Stanford AIMI hands them out, without a folder train/
_BATCH = re.compile(r"batch[ _-]*\d", re.IGNORECASE)
PLUS_TABLE = "df_chexpert_plus_240401.csv"
PLUS_CITATION = "CheXpert Plus (Chambon et al. 2024, arXiv 2405.19538), Stanford AIMI"
# CheXbert's labels of CheXpert Plus. CheXpert itself was labelled from the impression; whole reports tell of history too
LABEL_FILES = ("impression_fixed.json", "report_fixed.json", "findings_fixed.json")
LABEL_FOLDERS = ("", "chexbert_labels", "labels", "label")
WORKBOOK = "CHEXPERT DEMO.xlsx"
SEXES = {"female": "female", "male": "male", "f": "female", "m": "male"}
DIRECTIONS = {"frontal": "frontal", "lateral": "lateral"}
PROJECTIONS = {"pa": "PA", "ap": "AP", "ll": UNKNOWN, "rl": UNKNOWN}
LABELS = {"1": True, "0": False, "1.0": True, "0.0": False}
FINDINGS = {"effusion": "Pleural Effusion", "finding": "No Finding", **CHEST_FINDINGS}  # condition -> column of labels
ENDINGS = (".jpg", ".png", ".jpeg")
LATERAL = "lateral views; --conditions with 'view' keeps them"
MAX_SPELLINGS = 20  # so many are named


@dataclass(frozen=True)
class Columns:
    """How one edition names its columns."""

    path: str
    sex: str
    age: str
    direction: str
    projection: str
    others: tuple[str, ...] = ()


CLASSIC = Columns("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")
PLUS = Columns("path_to_image", "sex", "age", "frontal_lateral", "ap_pa", ("deid_patient_id", "race", "ethnicity", "split"))


class Chexpert(Source):
    """``train.csv`` and ``valid.csv``, or the one table of CheXpert Plus, with their images; subjects are patients.

    Patients of ``train.csv`` are split as in every import. Those of ``valid.csv`` are ``val`` and those of ``test.csv`` are ``test``,
    as published. Frontal views alone are taken unless the condition ``view`` is asked for. A finding that is not mentioned is
    absent; what an uncertain one (-1) counts as, ``uncertain`` says. Race and ethnicity come from ``CHEXPERT DEMO.xlsx``, or from
    the table of CheXpert Plus.
    """

    name = "chexpert"
    modality = "chest"
    mode = "L"
    citation = "CheXpert (Irvin et al. 2019, arXiv 1901.07031), Stanford ML Group"
    licence = "Stanford University School of Medicine CheXpert Dataset Research Use Agreement"
    attributes: dict[str, list[str]] = {
        "sex": ["female", "male"],
        "race": RACE_GROUPS,
        "ethnicity": ETHNICITY_GROUPS,
        "age_group": ["<60", ">=60"],
    }
    conditions: dict[str, list[str]] = {
        "effusion": ["none", "effusion"],
        "finding": ["none", "any"],
        **{column: ["none", column] for column in CHEST_FINDINGS},
        "view": ["PA", "AP", "lateral"],
    }
    default_conditions: ClassVar[tuple[str, ...] | None] = ("effusion",)
    stated: ClassVar[tuple[str, ...] | None] = ("sex", "race")

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.tables = _find_tables(raw)
        self.base = self.tables[0].parent
        self.plus = self.tables[0].name.lower() == PLUS_TABLE
        self.columns = PLUS if self.plus else CLASSIC
        if self.plus:
            self.citation = PLUS_CITATION
        self.folders = _image_folders(raw, self.base)
        self.batches = [folder for folder in self.folders if _BATCH.search(folder)]
        self.findings = [FINDINGS[name] for name in self.conditions if name in FINDINGS]
        self.labels = self._read_labels() if self.plus and self.findings else None
        self.patients = self._read_patients()
        self.facts["uncertain"] = settings.uncertain or "zeros"
        self.spellings: dict[str, Counter[str]] = {}
        self.without_row = self.without_labels = 0

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of every table; the split that a table's name says stands in the column ``""``."""
        columns = self.columns
        required = [columns.path, columns.sex, columns.age, columns.direction, columns.projection, *columns.others]
        for table in self.tables:
            split = LABEL_TABLES.get(table.name.lower())
            if split is not None:
                yield from self._label_rows(table, split)
                continue
            for place, row in self.reader.rows(table, required if self.plus else [*required, *self.findings]):
                said = "" if isinstance(row, BadRow) else row.get("split", "") if self.plus else TABLES[table.name.lower()]
                yield place, row if isinstance(row, BadRow) else {**row, "": said}

    def _label_rows(self, table: Path, split: str) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of a table of labels alone: of its patients nothing is known but the view, which the file's name says."""
        by_study = "Study" in self.reader.columns(table)
        column = "Study" if by_study else self.columns.path
        for place, row in self.reader.rows(table, [column, *self.findings]):
            if isinstance(row, BadRow):
                yield place, row
                continue
            for path in self._study(row[column]) if by_study else [row[column]]:
                view = "Lateral" if "lateral" in PurePosixPath(path).name.lower() else "Frontal"
                blank = {self.columns.sex: "", self.columns.age: "", self.columns.direction: view, self.columns.projection: ""}
                yield place, {**blank, **row, self.columns.path: path, "": split}

    def _study(self, study: str) -> list[str]:
        """The images of one study; where there is none, the first that it should have."""
        inner = _without_prefix(tidy(study))
        for folder in ("", *self.folders):
            names = self.lookup.names(f"{folder}/{inner}".lstrip("/"))
            if names:
                return [f"{inner}/{name}" for name in names]
        return [f"{inner}/view1_frontal.jpg"]

    def record(self, row: Row) -> Record:
        """One radiograph of a patient."""
        path = tidy(cell(row, self.columns.path))
        view = self._view(row)
        labels = self._labels(path, row)
        conditions = {name: view if name == "view" else self._finding(name, labels) for name in self.conditions}
        image = self._find(path)
        subject = patient_id(row.get("deid_patient_id") or path)
        values = {
            "sex": translate(self.columns.sex, cell(row, self.columns.sex), SEXES),
            "age_group": age_group(cell(row, self.columns.age)),
            **self._race_and_ethnicity(subject, row),
        }
        return Record(
            image=image,
            image_id=_inner(path),
            subject_id=subject,
            attributes={name: values[name] for name in self.attributes},
            conditions=conditions,
            split=_published_split(row[""]),
        )

    def notes(self) -> list[str]:
        """Spellings of race and ethnicity that are not known, and images without labels or demographics."""
        notes = []
        for column, found in self.spellings.items():
            named = ", ".join(f"{spelling!r} ({number})" for spelling, number in found.most_common(MAX_SPELLINGS))
            more = f" and {len(found) - MAX_SPELLINGS} spellings more" if len(found) > MAX_SPELLINGS else ""
            notes.append(f"{column}: {found.total()} rows with spellings that are not known count as unknown: {named}{more}")
        if self.without_row:
            notes.append(f"race, ethnicity: {self.without_row} rows of patients that {self.facts['demographics']} lacks are unknown")
        if not self.plus and self.patients is None and not {"race", "ethnicity"}.isdisjoint(self.attributes):
            notes.append(f"race, ethnicity: unknown, since the data folder has no {WORKBOOK}; name it with --demographics")
        if self.without_labels:
            notes.append(f"{self.without_labels} rows have no line in {self.facts['labels']}: their findings are unknown")
        return notes

    def _view(self, row: Row) -> str:
        direction = translate(self.columns.direction, cell(row, self.columns.direction), DIRECTIONS)
        if direction == "lateral":
            if "view" not in self.conditions:
                raise LeftOut(LATERAL)
            return direction
        return translate(self.columns.projection, cell(row, self.columns.projection), PROJECTIONS)

    def _labels(self, path: str, row: Row) -> dict[str, str] | None:
        """The labels that are asked for; None where the file of labels lacks the image."""
        if self.labels is None:
            return {finding: cell(row, finding) for finding in self.findings}
        values = self.labels.get(_inner(path))
        self.without_labels += values is None
        return None if values is None else dict(zip(self.findings, values, strict=True))

    def _finding(self, name: str, labels: dict[str, str] | None) -> str:
        """``none`` or the condition's other value."""
        if labels is None:
            return UNKNOWN
        column, (absent, present) = FINDINGS[name], self.conditions[name]
        positive = self._is_positive(column, labels[column])
        return absent if positive == (name == "finding") else present  # "No Finding" is the absence of any

    def _is_positive(self, column: str, value: str) -> bool:
        if value in ("-1", "-1.0"):
            if self.settings.uncertain == "drop":
                raise LeftOut(f"uncertain {column} (--uncertain drop)")
            return self.settings.uncertain == "ones"
        if is_missing(value):
            return False
        if value not in LABELS:
            raise BadRow(f"{column} {value!r} is no label; there is: 1, 0, -1 or empty")
        return LABELS[value]

    def _find(self, path: str) -> str:
        """The image's path inside the raw folder, whatever prefix the table gives it."""
        if not path:
            raise BadRow(f"empty {self.columns.path}")
        plain = _without_prefix(path)
        ending = PurePosixPath(plain).suffix
        prefix = path[: len(path) - len(plain)].rstrip("/")
        folders = dict.fromkeys([*([prefix] if (self.raw / prefix).is_dir() and prefix else []), *self.folders])
        name, endings = plain.removesuffix(ending), list(dict.fromkeys([ending, *ENDINGS]))
        of_batch = re.sub(r"^(?:train|valid|test)/(?=patient)", "", name, flags=re.IGNORECASE)
        without = self.batches if of_batch != name else []  # most images of the download lie there
        found = self.lookup.seek(of_batch, without, endings) if without else None
        found = found or self.lookup.seek(name, list(folders), endings)
        if found is None and of_batch != name:  # the data set unpacked without its folder train/
            found = self.lookup.seek(of_batch, list(folders), endings)
        return found or self.find(name, list(folders), endings)

    def _race_and_ethnicity(self, subject: str, row: Row) -> dict[str, str]:
        patient: Patient | None
        if self.patients is not None:
            patient = self.patients.get(subject)
            self.without_row += patient is None
        else:
            patient = Patient(cell(row, "race"), cell(row, "ethnicity")) if self.plus else None
        if patient is None:
            return {"race": UNKNOWN, "ethnicity": UNKNOWN}
        groups, strange = patient.groups()
        for column, spelling in strange:
            if column in self.attributes:
                self.spellings.setdefault(column, Counter())[spelling[:80]] += 1
        return groups

    def _read_patients(self) -> dict[str, Patient] | None:
        """The demographics that were named or lie in the raw folder; None where there are none, or none are asked for."""
        path = self.settings.demographics
        if {"race", "ethnicity"}.isdisjoint(self.attributes):
            return None
        if path is None and not self.plus:
            above = [self.base.parent] if self.base != self.raw else []
            demo = [folder for place in (self.raw, *above) for folder in subfolders(place, "chexpertdemo")]
            folders = dict.fromkeys([self.base, *above, self.raw, *demo])
            pattern = re.compile(r"chexpert[ _-]?demo\.xlsx", flags=re.IGNORECASE)
            path = next((file for folder in folders for file in sorted(folder.iterdir()) if pattern.fullmatch(file.name)), None)
        if path is None:
            return None
        self.facts["demographics"] = path.name
        return read_demographics(path, self.reader)

    def _read_labels(self) -> dict[str, tuple[str, ...]]:
        """The labels that are asked for, by image; the file's lines are in no order."""
        places = [self.base / folder / name for name in LABEL_FILES for folder in LABEL_FOLDERS]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f"{self.base}: no labels ({', '.join(LABEL_FILES)}); put the one that is wanted beside {PLUS_TABLE}")
        self.facts["labels"] = path.name
        labels: dict[str, tuple[str, ...]] = {}
        for place, row in self.reader.good_rows(path, ("path_to_image", *self.findings)):
            try:
                key, values = _inner(tidy(cell(row, "path_to_image"))), tuple(cell(row, finding) for finding in self.findings)
            except BadRow as fault:
                raise UserError(f"{path.parent / place}: {fault}") from None
            if labels.setdefault(key, values) != values:
                raise UserError(f"{path.parent / place}: {key!r} stands in an earlier row with other labels; keep one of the two")
        return labels


def _find_tables(raw: Path) -> list[Path]:
    """The tables in ``raw``, in the data set's own folder in it, or in one of that one's parts; or the one table of CheXpert Plus."""
    wanted = f"{next(iter(TABLES))} or {PLUS_TABLE}"
    if not raw.is_dir():
        raise UserError(f"{raw}: not a folder; name the folder that holds {wanted}")
    below = subfolders(raw, "chexpert")
    folders = [raw, *below, *(folder for path in below for folder in subfolders(path, "chexpert"))]
    found: dict[str, Path] = {}
    for name, split in {**TABLES, **LABEL_TABLES}.items():
        places = [path for folder in folders if (path := file_in(folder, name))]
        if len(places) > 1 and places[0].parent != raw:
            raise UserError(f"{raw}: tables in {' and in '.join(path.parent.name for path in places)}; name one of these folders")
        if places:
            found.setdefault(split, places[0])
    if found:
        return list(found.values())
    places = [path for folder in folders if (path := file_in(folder, PLUS_TABLE))]
    if not places:
        raise UserError(f"{raw}: no {next(iter(TABLES))} (or CheXpert Plus' {PLUS_TABLE}); name the folder that holds it")
    return places[:1]


def _image_folders(raw: Path, base: Path) -> list[str]:
    """Where images may lie, relative to ``raw``: beside the tables, in the data set's folder and its parts, in an unpacked ``PNG.zip``."""
    folders = [base]
    for parent in dict.fromkeys([base, raw, base.parent if base != raw else raw]):
        for folder in subfolders(parent, "chexpert", "png"):
            folders += [folder, *subfolders(folder, "chexpert", "png")]
    return [path.relative_to(raw).as_posix() for path in dict.fromkeys(folders) if path != raw]


def _without_prefix(path: str) -> str:
    """The path inside the data set: without ``CheXpert-v1.0-small/`` or the like."""
    return re.sub(r"^chexpert[^/]*/", "", path, flags=re.IGNORECASE)


def _inner(path: str) -> str:
    """One name for an image, whatever its prefix and ending."""
    return re.sub(r"\.(jpe?g|png|dcm)$", "", _without_prefix(path), flags=re.IGNORECASE)


def _published_split(value: str) -> str | None:
    """``val`` and ``test`` as published; None for the training patients, who are split here."""
    if is_missing(value):
        return None
    try:
        split = parse_split(value)
    except UserError as error:
        raise BadRow(str(error)) from None
    return None if split == "train" else split
