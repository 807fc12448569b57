"""BraTS 2017 to 2024: MR volumes of patients with tumours of the brain, outlined (Menze et al. 2015, doi 10.1109/TMI.2014.2377694)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.images import BadImage
from evenhand.cohorts.lookup import NoFile, file_in, fold, subfolders
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.sources.sex_tables import SexTable, read_clinical, read_sex_table
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, LeftOut, cell, is_missing
from evenhand.cohorts.volumes import read_volume
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN

GRADES = ("HGG", "LGG")


@dataclass(frozen=True)
class Edition:
    """How one year names its subjects, and which labels its segmentations have."""

    year: str
    folder: re.Pattern[str]  # of a scan; the group is the patient, where patients have several scans
    labels: tuple[int, ...]  # background; necrotic core; oedema; enhancing tumour; since 2024 resection cavity


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


EDITIONS = (
    Edition("2017", _named(r"brats17_.+"), (0, 1, 2, 4)),
    Edition("2018", _named(r"brats18_.+"), (0, 1, 2, 4)),
    Edition("2019", _named(r"brats19_.+"), (0, 1, 2, 4)),
    Edition("2020", _named(r"brats20_(?:training|validation)_\d+"), (0, 1, 2, 4)),
    Edition("2021", _named(r"brats2021_\d+"), (0, 1, 2, 4)),
    Edition("2023", _named(r"(brats-[a-z]+-\d+)-\d+"), (0, 1, 2, 3, 4)),  # 2024 too: the same names, and label 4
)
OTHER = EDITIONS[1]  # folders in HGG/ and LGG/ may have any names
# our word for a volume -> how the years call it: since 2023 t1n, t1c, t2w, t2f; subject 355 of 2020 has a Segm
SEQUENCES = {"flair": ("flair", "t2f"), "t1": ("t1", "t1n"), "t1ce": ("t1ce", "t1c"), "t2": ("t2", "t2w")}
SEGMENTATION = ("seg", "segm")
SURVIVAL = ("survival_data.csv", "survival_info.csv")  # with BraTS18ID, BraTS19ID or Brats20ID, and Age
MAPPING = "name_mapping.csv"  # of 2019 and 2020, with Grade
ENDINGS = (".nii.gz", ".nii")
SUBJECT_COLUMN = _named(r"brats_?(?:20)?\d\d_subject_id")
AGE_COLUMN = _named(r"brats_?(?:20)?\d\d_?id")
VALIDATION = "subjects of a validation set, which has no segmentations"
WINDOW = (1.0, 99.0)  # percentiles of the brain's voxels that become black and white
BRAIN_SHARE = 0.25  # of the subject's largest section: smaller ones are the top of the skull and the neck
SLICES_PER_SUBJECT = 5
MAX_SPELLINGS = 20


@dataclass(frozen=True)
class Scan:
    """What of one subject's volumes is kept while its slices are taken: numbers, never voxels."""

    chosen: tuple[int, ...]  # slices from below, counted from 0
    with_tumour: frozenset[int]
    window: tuple[float, float]  # grey values that become black and white


class Brats18(Source):
    """``{HGG,LGG}/SUBJECT/SUBJECT_{flair,t1,t1ce,t2,seg}.nii.gz``; an image is one axial slice of one sequence.

    Later years have no folders of grades: their grade is that of ``name_mapping.csv``, else unknown. ``EDITIONS`` lists the years.
    Of each subject at most ``slices_per_subject`` slices are taken, the middles of as many equal runs of those that ``slices`` allows:
    ``tumour``: where the segmentation outlines any; ``brain``: where the section of the brain is at least a quarter of the subject's
    largest; ``all``. The window is the subject's own, from the brain of the whole volume. BraTS has no sex: a table gives it.
    """

    name = "brats18"
    modality = "brain"
    mode = "L"
    citation = "BraTS {} (Menze et al. 2015, doi 10.1109/TMI.2014.2377694; Bakas et al. 2017, doi 10.1038/sdata.2017.117)"
    licence = "BraTS {} data use agreement (registration with its organisers)"
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"tumour": ["none", "tumour"], "grade": ["LGG", "HGG"]}
    default_conditions: ClassVar[tuple[str, ...] | None] = ("tumour",)

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.sequence = settings.modality or next(iter(SEQUENCES))
        if self.sequence not in SEQUENCES:
            raise UserError(f"--modality: no MR sequence {self.sequence!r}; {did_you_mean(self.sequence, SEQUENCES)}")
        self.allowed = settings.slices or "brain"
        self.number = settings.slices_per_subject or SLICES_PER_SUBJECT
        self.facts |= {"sequence": self.sequence, "slices": self.allowed, "slices_per_subject": str(self.number)}
        self.folders = _subjects(raw)
        self.years = sorted({_edition(name).year for name in self.folders})
        self.citation, self.licence = (text.format(", ".join(self.years)) for text in (type(self).citation, type(self).licence))
        self.grades = self._read_grades()
        self.ages = self._read_ages()
        self.sexes = self._read_sexes()
        self.scans: dict[str, Scan | str] = {}  # or why there is none
        self.volume: tuple[str, np.ndarray] | None = None  # the one that is in memory
        self.known: dict[str, dict[str, str]] = {}  # subject -> its grade and groups

    def rows(self) -> Iterator[tuple[str, Row]]:
        """One row per chosen slice, counted from the lowest of the volume, which is 1; a scan that cannot be read is one row."""
        for subject, folder in self.folders.items():
            if subject not in self.scans:
                self.scans[subject] = self._scan(folder)
            scan = self.scans[subject]
            row = {"subject": subject, "folder": folder, "grade": self._grade(subject)}
            if isinstance(scan, str):
                yield folder, {**row, "fault": scan}
                continue
            for index in scan.chosen:
                yield f"{folder} slice {index + 1}", {**row, "slice": str(index)}

    def record(self, row: Row) -> Record:
        """One slice: tumour by the segmentation, the groups by subject."""
        if "fault" in row:
            raise LeftOut(VALIDATION) if row["fault"] == VALIDATION else BadRow(row["fault"])
        subject, index, scan = row["subject"], int(row["slice"]), self.scans[row["subject"]]
        assert isinstance(scan, Scan)
        values = {
            "sex": self._sex(subject),
            "age_group": self.ages.get(fold(subject), self.ages.get(fold(_patient(subject)), UNKNOWN)),
            "tumour": "tumour" if index in scan.with_tumour else "none",
            "grade": row["grade"],
        }
        self.known[_patient(subject)] = values
        extras = {"sequence": self.sequence, "slice": str(index + 1), "grade": row["grade"]}
        return Record(
            image=f"{row['folder']} {self.sequence} slice {index + 1}",
            image_id=f"{subject}_{self.sequence}_{index + 1:03d}",
            subject_id=_patient(subject),
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            extras={name: value for name, value in extras.items() if name not in self.conditions},
        )

    def open(self, record: Record) -> Image.Image:
        """One slice, windowed to 8 bit; the volume stays in memory until another subject's is wanted."""
        subject = record.image_id.rsplit("_", maxsplit=2)[0]
        if self.volume is None or self.volume[0] != subject:
            self.volume = None  # before the next is read: one at a time
            self.volume = (subject, read_volume(self.raw, self._file(self.folders[subject], SEQUENCES[self.sequence])))
        scan = self.scans[subject]
        assert isinstance(scan, Scan)
        low, high = scan.window
        plane = self.volume[1][:, :, int(record.extras["slice"]) - 1].T.astype(np.float64)  # (posterior, left): rows from front to back
        grey = np.where(plane == 0, 0, np.clip((plane - low) / (high - low), 0, 1))  # what is not brain stays black
        return Image.fromarray(np.round(255 * grey).astype(np.uint8))

    def notes(self) -> list[str]:
        """Of how many subjects sex and age are known, by grade; what in the tables was not understood."""
        notes = [self._coverage(name) for name in self.attributes]
        if self.sexes is None:
            notes.append(f"sex: BraTS {', '.join(self.years)} has none; give --sex-table, or --name-mapping and --clinical")
            return notes
        if self.sexes.spellings:
            named = ", ".join(f"{spelling!r} ({number})" for spelling, number in self.sexes.spellings.most_common(MAX_SPELLINGS))
            more = f" and {len(self.sexes.spellings) - MAX_SPELLINGS} more" if len(self.sexes.spellings) > MAX_SPELLINGS else ""
            notes.append(f"sex: {self.sexes.spellings.total()} rows with spellings that are not known count as unknown: {named}{more}")
        if self.sexes.contradicted:
            notes.append(
                f"sex: {len(self.sexes.contradicted)} subjects have two, and count as unknown, such as {min(self.sexes.contradicted)}"
            )
        here = {*self.folders, *map(_patient, self.folders)}
        strangers = {name for name in self.sexes.sexes if name not in here and _edition(name).year in self.years}  # mappings list all years
        if strangers:
            notes.append(f"sex: {len(strangers)} subjects of the table have no folder, such as {min(strangers)}")
        return notes

    def _coverage(self, name: str) -> str:
        def of(grades: tuple[str, ...]) -> str:
            found = [values[name] for values in self.known.values() if values["grade"] in grades]
            return f"{sum(value != UNKNOWN for value in found)} of {len(found)}"

        every = (*GRADES, UNKNOWN)
        there = {values["grade"] for values in self.known.values()}
        shown = [*GRADES] if there <= {*GRADES} else [grade for grade in every if grade in there]
        by_grade = ", ".join(f"{of((grade,))} {'of unknown grade' if grade == UNKNOWN else grade}" for grade in shown)
        return f"{name}: known of {of(every)} subjects ({by_grade})"

    def _sex(self, scan: str) -> str:
        if self.sexes is None:
            return UNKNOWN
        sex = self.sexes.get(scan)
        return self.sexes.get(_patient(scan)) if sex == UNKNOWN else sex

    def _grade(self, scan: str) -> str:
        """Of the folder HGG/ or LGG/, or of the mapping of names."""
        above = self.folders[scan].upper().split("/")[-2:-1]
        return above[0] if above and above[0] in GRADES else self.grades.get(fold(scan), UNKNOWN)

    def _scan(self, folder: str) -> Scan | str:
        """The slices of one subject, from its two volumes; or what is wrong with them."""
        labels = None
        try:
            name = self._file(folder, SEGMENTATION)
            labels = read_volume(self.raw, name)
            known = _edition(folder.rsplit("/", maxsplit=1)[-1]).labels
            strange = sorted(set(np.unique(labels).tolist()) - set(known))
            if strange:
                return f"{name}: label {strange[0]:g} is none of {', '.join(map(str, known))}; restore the file"
            tumour = np.asarray((labels > 0).any(axis=(0, 1)))  # (superior)
            shape = labels.shape
            labels = np.empty(0)  # freed before the next volume is read
            name = self._file(folder, SEQUENCES[self.sequence])
            voxels = read_volume(self.raw, name)
        except BadImage as fault:
            return f"{name}: {fault}"
        except NoFile as fault:
            return VALIDATION if labels is None and "validation" in f"{self.raw.name}/{folder}".lower() else str(fault)
        except BadRow as fault:
            return str(fault)
        if voxels.shape != shape:
            return f"{name}: shape {voxels.shape}, but the segmentation has {shape}; restore one of the two"
        return self._choice(name, voxels, tumour)

    def _choice(self, name: str, voxels: np.ndarray, tumour: np.ndarray) -> Scan | str:
        area = (voxels != 0).sum(axis=(0, 1))  # (superior): voxels of brain, since BraTS sets all else to 0
        if not area.any():
            return f"{name}: every voxel is 0; restore the file"
        low, high = np.percentile(voxels[voxels != 0], WINDOW)
        if not high > low:
            return f"{name}: all of the brain has one grey value ({low:g}); restore the file"
        allowed = {"tumour": tumour, "brain": area >= BRAIN_SHARE * area.max(), "all": np.ones_like(tumour)}[self.allowed]
        return Scan(_spread(np.flatnonzero(allowed), self.number), frozenset(np.flatnonzero(tumour).tolist()), (float(low), float(high)))

    def _file(self, folder: str, kinds: Sequence[str]) -> str:
        """The volume of one kind in a scan's folder, by the folder's own name and what the years call the kind."""
        scan = folder.rsplit("/", maxsplit=1)[-1]
        for kind in kinds:
            for joint in "_-":
                if found := self.lookup.seek(f"{folder}/{scan}{joint}{kind}", (), ENDINGS):
                    return found
        words = re.compile(rf".*[_-](?:{'|'.join(kinds)})(?:\.nii|\.nii\.gz)", re.IGNORECASE)
        others = [name for name in self.lookup.names(folder) if words.fullmatch(name)]
        if len(others) == 1:
            return f"{folder}/{others[0]}"
        return self.find(f"{folder}/{scan}_{kinds[0]}", (), ENDINGS)

    def _table(self, *names: str) -> Path | None:
        """A table in the data folder, or in a folder of it or of that one."""
        found = (path for folder in _folders(self.raw) if (path := file_in(folder, *names)))
        return next(found, None)

    def _read_grades(self) -> dict[str, str]:
        """Subject -> grade by the mapping of names that lies beside the data; none where the folders say it."""
        path = self._table(MAPPING)
        if path is None or "Grade" not in (names := self.reader.columns(path)):
            return {}
        columns = [name for name in names if SUBJECT_COLUMN.fullmatch(name)]
        grades: dict[str, str] = {}
        for _, row in self.reader.good_rows(path, ("Grade",)):
            if row["Grade"].upper() in GRADES:
                grades |= {fold(row[column]): row["Grade"].upper() for column in columns if not is_missing(row.get(column, ""))}
        return grades

    def _read_ages(self) -> dict[str, str]:
        """Subject -> age group, from the table of survival, which has not all subjects; ``NA`` is unknown."""
        path = self._table(*SURVIVAL)
        if path is None or "age_group" not in self.attributes:
            return {}
        key = next((name for name in self.reader.columns(path) if AGE_COLUMN.fullmatch(name)), "BraTS18ID")
        ages: dict[str, str] = {}
        for place, row in self.reader.good_rows(path, (key, "Age")):
            try:
                subject, age = cell(row, key), age_group(cell(row, "Age"))
            except BadRow as fault:
                raise UserError(f"{path.parent / place}: {fault}; mend the row or write NA") from None
            if ages.setdefault(fold(subject), age) != age:
                raise UserError(f"{path.parent / place}: {subject!r} stands in an earlier row with another age; keep one of the two")
        return ages

    def _read_sexes(self) -> SexTable | None:
        table, mapping, clinical = self.settings.sex_table, self.settings.name_mapping, self.settings.clinical
        if table and (mapping or clinical):
            raise UserError("--sex-table excludes --name-mapping and --clinical: sex comes from one of the two")
        if (mapping is None) != (clinical is None):
            given, missing = ("--name-mapping", "--clinical") if mapping else ("--clinical", "--name-mapping")
            raise UserError(f"{given} needs {missing}: BraTS subjects are joined with TCGA's patients by both")
        if table:
            return read_sex_table(table, self.reader)
        return read_clinical(mapping, clinical, self.reader) if mapping and clinical else None


def _edition(scan: str) -> Edition:
    return next((edition for edition in EDITIONS if edition.folder.fullmatch(scan)), OTHER)


def _patient(scan: str) -> str:
    """The subject of a scan: since 2023 a patient may have several, ``BraTS-GLI-00005-000`` and ``-001``."""
    found = _edition(scan).folder.fullmatch(scan)
    return found[1] if found and found.groups() else scan


def _folders(raw: Path) -> list[Path]:
    """``raw``, its folders and theirs: archives unpack into one or two folders of their own."""
    below = subfolders(raw)
    return [raw, *below, *(folder for path in below if _edition(path.name) is OTHER for folder in subfolders(path))]


def _of_grades(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if path.name.upper() in GRADES]


def _subjects(raw: Path) -> dict[str, str]:
    """Scan -> its folder below ``raw``: in folders of grades, or by the names of the years that have none."""
    if not raw.is_dir():
        raise UserError(f"{raw}: not a folder; name the folder that holds HGG/ and LGG/, or the folders of the subjects")
    places = _folders(raw)
    base = next((folder for folder in places if _of_grades(folder)), None)
    if base is not None:
        paths = [path for folder in _of_grades(base) for path in subfolders(folder)]
    else:
        named = {folder: None for folder in places[1:] if any(edition.folder.fullmatch(folder.name) for edition in EDITIONS)}
        deeper = [path for place in places[1:] if place not in named for path in subfolders(place)]
        named |= {path: None for path in deeper if any(edition.folder.fullmatch(path.name) for edition in EDITIONS)}
        paths = list(named)
        if not paths:
            wanted = "no HGG/, no LGG/ and no folder of a subject such as BraTS20_Training_001 or BraTS-GLI-00000-000"
            raise UserError(f"{raw}: {wanted}; name the folder that holds them")
    found: dict[str, str] = {}
    for path in paths:
        name = path.relative_to(raw).as_posix()
        if path.name in found:
            raise UserError(f"{raw}: {found[path.name]} and {name} are one subject; keep one of the two")
        found[path.name] = name
    if not found:
        raise UserError(f"{base}: HGG/ and LGG/ hold no subject; name the folder that holds the unpacked data")
    return found


def _spread(slices: np.ndarray, number: int) -> tuple[int, ...]:
    """The middles of ``number`` equal runs of ``slices``; all of them where they are fewer."""
    if len(slices) <= number:
        return tuple(slices.tolist())
    return tuple(int(slices[int((place + 0.5) * len(slices) / number)]) for place in range(number))
