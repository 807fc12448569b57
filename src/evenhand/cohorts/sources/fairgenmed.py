"""FairGenMed: SLO fundus images of 10,000 subjects with glaucoma labels (Luo et al. 2024, arXiv 2412.20374)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from evenhand.cohorts.arrays import BadArray, PickledArray, array_image, array_shape, read_array, read_value
from evenhand.cohorts.images import BadImage, Picture, inside
from evenhand.cohorts.lookup import is_junk, tidy
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, cell, is_missing, translate
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN

TABLE = "data_summary.csv"
PICTURES = (".jpg", ".jpeg", ".png")
PIXELS = "slo_fundus"  # the archive's key, and how the sibling image's name begins


@dataclass(frozen=True)
class Field:
    """Where one column of the cohort comes from: a key of the archive first, then a column of the table."""

    key: str | None
    columns: tuple[str, ...]
    groups: Mapping[str, str]


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


FIELDS = {
    "race": Field(
        "race",
        ("race",),
        {
            **{"0": "asian", "1": "black", "2": "white"},
            **_same("asian", "black", "white"),
            **{"black or african american": "black", "white or caucasian": "white"},
        },
    ),
    "gender": Field("male", ("gender",), {"0": "female", "1": "male", "f": "female", "m": "male", **_same("female", "male")}),
    "ethnicity": Field(
        "hispanic",
        ("ethnicity",),
        {
            **{"0": "non-hispanic", "1": "hispanic"},
            **_same("non-hispanic", "hispanic"),
            **{"not hispanic or latino": "non-hispanic", "hispanic or latino": "hispanic"},
        },
    ),
    "glaucoma": Field(
        "glaucoma",
        ("glaucoma",),
        {"0": "non-glaucoma", "1": "glaucoma", "no": "non-glaucoma", "yes": "glaucoma", **_same("non-glaucoma", "glaucoma")},
    ),
    "md_severity": Field(None, ("md_severity",), _same("normal", "mild", "moderate", "severe")),
    "cup_disc_ratio": Field(None, ("cdr_status",), _same("normal", "borderline", "abnormal")),
    "refraction": Field(
        None,
        ("near_vision_refraction_stage", "se_status"),
        {
            **{"positive": "hyperopia", "neutral": "emmetropia", "negative": "myopia"},  # the sign of the spherical equivalent
            **_same("hyperopia", "emmetropia", "myopia"),
        },
    ),
}


class FairGenMed(Source):
    """``data_summary.csv`` with an ``.npz`` file and an image a subject, in folders that are the splits.

    Both layouts are read: ``{train,val,test}/`` beside the table, and ``ReadMe/`` with ``Dataset/{Training,Validation,Test}/``.
    Where archive and table both say something of a subject, the archive counts. Its ``slo_fundus`` is the image; without one it is
    ``slo_fundus_00001.jpg``. Archives are never unpickled: a value that is a Python object is taken from the table.
    """

    name = "fairgenmed"
    modality = "fundus"
    citation = "FairGenMed (Luo et al. 2024, arXiv 2412.20374), Harvard Ophthalmology AI Lab"
    licence = "CC BY-NC-ND 4.0"
    attributes: dict[str, list[str]] = {
        "race": ["asian", "black", "white"],
        "gender": ["female", "male"],
        "ethnicity": ["non-hispanic", "hispanic"],
    }
    conditions: dict[str, list[str]] = {
        "glaucoma": ["non-glaucoma", "glaucoma"],
        "md_severity": ["normal", "mild", "moderate", "severe"],
        "cup_disc_ratio": ["normal", "borderline", "abnormal"],
        "refraction": ["hyperopia", "emmetropia", "myopia"],
    }

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        if not raw.is_dir():
            raise UserError(f"{raw}: not a folder; name the folder that holds {TABLE} or ReadMe/{TABLE}")
        self.table = _find_table(raw)
        header = self.reader.columns(self.table)
        self.columns = {name: _column(self.table, name, header) for name in (*self.attributes, *self.conditions)}
        self.files = _index(raw)
        self.used: set[str] = set()
        self.disagreements: Counter[str] = Counter()

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of the summary, with their place."""
        return self.reader.rows(self.table, ("filename",))

    def record(self, row: Row) -> Record:
        """One subject: its archive and image, found by name in the folder of its split."""
        name = cell(row, "filename")
        if not name:
            raise BadRow("empty filename")
        try:
            inside(self.raw, name)
        except BadImage as fault:
            raise BadRow(f"{name}: {fault}") from None
        stem = re.sub(r"\.npz$", "", PurePosixPath(tidy(name)).name, flags=re.IGNORECASE)
        picture_stem = re.sub("^data", PIXELS, stem, flags=re.IGNORECASE)
        said = _split(row.get("use", ""))
        folder, archive = self._file(stem, (".npz",), said)
        beside, picture = self._file(picture_stem, PICTURES, said or folder)
        if archive is None and picture is None:
            raise BadRow(f"{stem}.npz: no such file in {self._places()}, nor {picture_stem}{PICTURES[0]}")
        values = {column: self._value(column, row, archive) for column in self.columns}
        return Record(
            image=self._image(archive, picture, picture_stem),
            image_id=stem,
            subject_id=stem,
            attributes={column: values[column] for column in self.attributes},
            conditions={column: values[column] for column in self.conditions},
            split=said or folder or beside,
        )

    def open(self, record: Record) -> Picture | Image.Image:
        """The pixels of the archive, or the image file.

        Raises:
            BadImage: unreadable, too large, or no image.
        """
        if not record.image.lower().endswith(".npz"):
            return super().open(record)
        try:
            pixels = read_array(inside(self.raw, record.image), PIXELS)
            if pixels is None:
                raise BadImage(f"no array {PIXELS!r}")
            return array_image(pixels)
        except BadArray as fault:
            raise BadImage(str(fault)) from None

    def notes(self) -> list[str]:
        """Archives without a row, and rows where archive and table disagree."""
        notes = [
            f"{column}: {number} rows where {self.table.name} and the archive disagree; the archive counts"
            for column, number in self.disagreements.items()
        ]
        left = {name for name in self.files if name.endswith(".npz")} - self.used
        if left and self.settings.limit is None:
            notes.append(f"{len(left)} archives have no row in {self.table.name} and were not imported, such as {min(left)}")
        return notes

    def _file(self, stem: str, endings: tuple[str, ...], split: str | None) -> tuple[str | None, str | None]:
        """Split and path of the one file of this name; None and None where there is none."""
        name = next((name for ending in endings if (name := f"{stem}{ending}".lower()) in self.files), "")
        self.used.add(name)
        found = self.files.get(name, [])
        if len(found) > 1:
            found = [place for place in found if place[0] == split] or found
        if len(found) > 1:
            raise BadRow(f"{found[0][1]} and {found[1][1]} have one name; keep one of the two, or name its split in column 'use'")
        if not found:
            return None, None
        folder, path = found[0]
        if split and folder and folder != split:
            raise BadRow(f"{path} lies in the folder of {folder!r}, but belongs to {split!r}; move it")
        try:
            inside(self.raw, path)
        except BadImage as fault:
            raise BadRow(f"{path}: {fault}") from None
        return folder, path

    def _places(self) -> str:
        folders = {str(PurePosixPath(path).parent) for places in self.files.values() for _, path in places}
        return ", ".join(sorted(folders)[:6]) or "the data folder"

    def _value(self, column: str, row: Row, archive: str | None) -> str:
        """The group that the archive says, else the table's."""
        source, header = FIELDS[column], self.columns[column]
        said = _plain(cell(row, header)) if header else ""
        stored = self._stored(source.key, archive, said, source.columns[0]) if source.key and archive else None
        if stored is None:
            return translate(header or column, said, source.groups)
        group = translate(str(source.key), stored, source.groups)
        other = source.groups.get(said.lower(), UNKNOWN)
        if group != other and UNKNOWN not in (group, other):
            self.disagreements[column] += 1
        return group

    def _stored(self, key: str, archive: str, said: str, header: str) -> str | None:
        """A value of the archive as text; None where it lacks the key, or where only the table's can be read safely."""
        try:
            value = read_value(inside(self.raw, archive), key)
        except PickledArray as fault:
            if said and not is_missing(said):
                return None
            raise BadRow(f"{archive}: {fault}, or fill column {header!r} of {self.table.name}") from None
        except BadArray as fault:
            raise BadRow(f"{archive}: {fault}") from None
        return None if value is None else _plain(value)

    def _image(self, archive: str | None, picture: str | None, stem: str) -> str:
        """The archive where it has pixels, else the image beside it."""
        try:
            shape = array_shape(inside(self.raw, archive), PIXELS) if archive else None
        except BadArray as fault:
            if picture is None or not isinstance(fault, PickledArray):
                raise BadRow(f"{archive}: {fault}") from None
            shape = None
        if archive and shape is not None and 0 not in shape:
            return archive
        if picture is None:
            raise BadRow(f"{archive}: no array {PIXELS!r}, and no {stem}{PICTURES[0]} beside it")
        return picture


def _child(folder: Path, name: str) -> Path | None:
    """The entry of this name, in whatever case it is written."""
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name), None)


def _find_table(raw: Path) -> Path:
    for folder in (raw, _child(raw, "readme")):
        table = _child(folder, TABLE) if folder and folder.is_dir() else None
        if table and table.is_file():
            return table
    raise UserError(f"{raw}: no {TABLE} and no ReadMe/{TABLE}; name the folder that holds it")


def _column(table: Path, name: str, header: list[str]) -> str | None:
    """The table's column for ``name``; None where the archive may have it instead."""
    source = FIELDS[name]
    found = next((column for column in source.columns if column in header), None)
    if found is None and source.key is None:
        wanted = " or ".join(map(repr, source.columns))
        raise UserError(f"{table}: no column {wanted} for {name!r}; {did_you_mean(source.columns[0], header)}")
    return found


def _index(raw: Path) -> dict[str, list[tuple[str | None, str]]]:
    """Every archive and image by its name in lower case: split of its folder, path inside ``raw``."""
    files: dict[str, list[tuple[str | None, str]]] = defaultdict(list)
    for base in filter(None, (raw, _child(raw, "dataset"))):
        if not base.is_dir():
            continue
        for entry in sorted(base.iterdir()):
            split = _folder_split(entry)
            for path in sorted(entry.rglob("*")) if split else [entry]:
                if path.suffix.lower() in (".npz", *PICTURES) and not is_junk(path.name):
                    files[path.name.lower()].append((split, path.relative_to(raw).as_posix()))
    return files


def _folder_split(path: Path) -> str | None:
    try:
        return parse_split(path.name) if path.is_dir() else None
    except UserError:
        return None


def _split(value: str) -> str | None:
    try:
        return None if is_missing(value) else parse_split(value)
    except UserError as error:
        raise BadRow(f"use: {error}") from None


def _plain(value: str) -> str:
    """A code without the zeros that a column of floats has: ``2.0`` is ``2``."""
    return re.sub(r"^(-?\d+)\.0*$", r"\1", value.strip())
