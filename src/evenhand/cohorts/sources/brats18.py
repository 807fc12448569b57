"""BraTS 2018: MR volumes of 285 patients with glioma, tumours outlined (Menze et al. 2015, doi 10.1109/TMI.2014.2377694)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from evenhand.cohorts.ages import age_group
from evenhand.cohorts.images import BadImage
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.sources.sex_tables import SexTable, read_clinical, read_sex_table
from evenhand.cohorts.tables import Row
from evenhand.cohorts.values import BadRow, cell
from evenhand.cohorts.volumes import read_volume
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN

SEQUENCES = ("flair", "t1", "t1ce", "t2")
GRADES = ("HGG", "LGG")
LABELS = (0, 1, 2, 4)  # background; necrotic core; oedema; enhancing tumour
SURVIVAL = "survival_data.csv"
ENDINGS = (".nii.gz", ".nii")
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

    Of each subject at most ``slices_per_subject`` slices are taken, the middles of as many equal runs of those that ``slices`` allows:
    ``tumour``: where the segmentation outlines any; ``brain``: where the section of the brain is at least a quarter of the subject's
    largest; ``all``. The window is the subject's own, from the brain of the whole volume. BraTS has no sex: a table gives it.
    """

    name = "brats18"
    modality = "brain"
    mode = "L"
    citation = "BraTS 2018 (Menze et al. 2015, doi 10.1109/TMI.2014.2377694; Bakas et al. 2017, doi 10.1038/sdata.2017.117)"
    licence = "BraTS 2018 data use agreement (registration with CBICA, University of Pennsylvania)"
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"tumour": ["none", "tumour"], "grade": ["LGG", "HGG"]}
    default_conditions: ClassVar[tuple[str, ...] | None] = ("tumour",)

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.sequence = settings.modality or SEQUENCES[0]
        if self.sequence not in SEQUENCES:
            raise UserError(f"--modality: no MR sequence {self.sequence!r}; {did_you_mean(self.sequence, SEQUENCES)}")
        self.allowed = settings.slices or "brain"
        self.number = settings.slices_per_subject or SLICES_PER_SUBJECT
        self.facts |= {"sequence": self.sequence, "slices": self.allowed, "slices_per_subject": str(self.number)}
        self.folders = _subjects(raw)
        self.ages = self._read_ages()
        self.sexes = self._read_sexes()
        self.scans: dict[str, Scan | str] = {}  # or why there is none
        self.volume: tuple[str, np.ndarray] | None = None  # the one that is in memory
        self.known: dict[str, dict[str, str]] = {}  # subject -> its grade and groups

    def rows(self) -> Iterator[tuple[str, Row]]:
        """A row a chosen slice, counted from the lowest of the volume, which is 1; a subject that cannot be read is one row."""
        for subject, folder in self.folders.items():
            if subject not in self.scans:
                self.scans[subject] = self._scan(folder)
            scan = self.scans[subject]
            row = {"subject": subject, "folder": folder, "grade": folder.split("/")[-2]}
            if isinstance(scan, str):
                yield folder, {**row, "fault": scan}
                continue
            for index in scan.chosen:
                yield f"{folder} slice {index + 1}", {**row, "slice": str(index)}

    def record(self, row: Row) -> Record:
        """One slice: tumour by the segmentation, the groups by subject."""
        if "fault" in row:
            raise BadRow(row["fault"])
        subject, index, scan = row["subject"], int(row["slice"]), self.scans[row["subject"]]
        assert isinstance(scan, Scan)
        values = {
            "sex": self.sexes.get(subject) if self.sexes else UNKNOWN,
            "age_group": self.ages.get(subject, UNKNOWN),
            "tumour": "tumour" if index in scan.with_tumour else "none",
            "grade": row["grade"],
        }
        self.known[subject] = values
        extras = {"sequence": self.sequence, "slice": str(index + 1), "grade": row["grade"]}
        return Record(
            image=f"{row['folder']} {self.sequence} slice {index + 1}",
            image_id=f"{subject}_{self.sequence}_{index + 1:03d}",
            subject_id=subject,
            attributes={name: values[name] for name in self.attributes},
            conditions={name: values[name] for name in self.conditions},
            extras={name: value for name, value in extras.items() if name not in self.conditions},
        )

    def open(self, record: Record) -> Image.Image:
        """One slice, windowed to 8 bit; the volume stays in memory until another subject's is wanted."""
        subject = record.subject_id
        if self.volume is None or self.volume[0] != subject:
            self.volume = None  # before the next is read: one at a time
            self.volume = (subject, read_volume(self.raw, self._file(self.folders[subject], self.sequence)))
        scan = self.scans[subject]
        assert isinstance(scan, Scan)
        low, high = scan.window
        plane = self.volume[1][:, :, int(record.extras["slice"]) - 1].T.astype(np.float32)  # (posterior, left): rows from front to back
        grey = np.where(plane == 0, 0, np.clip((plane - low) / (high - low), 0, 1))  # what is not brain stays black
        return Image.fromarray(np.round(255 * grey).astype(np.uint8))

    def notes(self) -> list[str]:
        """Of how many subjects sex and age are known, by grade; what in the tables was not understood."""
        notes = [self._coverage(name) for name in self.attributes]
        if self.sexes is None:
            notes.append("sex: BraTS 2018 has none; give --sex-table, or --name-mapping and --clinical")
            return notes
        if self.sexes.spellings:
            named = ", ".join(f"{spelling!r} ({number})" for spelling, number in self.sexes.spellings.most_common(MAX_SPELLINGS))
            more = f" and {len(self.sexes.spellings) - MAX_SPELLINGS} more" if len(self.sexes.spellings) > MAX_SPELLINGS else ""
            notes.append(f"sex: {self.sexes.spellings.total()} rows with spellings that are not known count as unknown: {named}{more}")
        if self.sexes.contradicted:
            notes.append(
                f"sex: {len(self.sexes.contradicted)} subjects have two, and count as unknown, such as {min(self.sexes.contradicted)}"
            )
        strangers = set(self.sexes.sexes) - set(self.folders)
        if strangers:
            notes.append(f"sex: {len(strangers)} subjects of the table have no folder, such as {min(strangers)}")
        return notes

    def _coverage(self, name: str) -> str:
        def of(grades: tuple[str, ...]) -> str:
            found = [values[name] for values in self.known.values() if values["grade"] in grades]
            return f"{sum(value != UNKNOWN for value in found)} of {len(found)}"

        by_grade = ", ".join(f"{of((grade,))} {grade}" for grade in GRADES)
        return f"{name}: known of {of(GRADES)} subjects ({by_grade})"

    def _scan(self, folder: str) -> Scan | str:
        """The slices of one subject, from its two volumes; or what is wrong with them."""
        try:
            name = self._file(folder, "seg")
            labels = read_volume(self.raw, name)
            strange = sorted(set(np.unique(labels).tolist()) - set(LABELS))
            if strange:
                return f"{name}: label {strange[0]:g} is none of {', '.join(map(str, LABELS))}; restore the file"
            tumour = np.asarray((labels > 0).any(axis=(0, 1)))  # (superior)
            shape = labels.shape
            del labels
            name = self._file(folder, self.sequence)
            voxels = read_volume(self.raw, name)
        except BadImage as fault:
            return f"{name}: {fault}"
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

    def _file(self, folder: str, kind: str) -> str:
        """The volume of one kind in a subject's folder, packed or not."""
        subject = folder.rsplit("/", maxsplit=1)[-1]
        return self.find(f"{folder}/{subject}_{kind}", (), ENDINGS)

    def _read_ages(self) -> dict[str, str]:
        """Subject -> age group, from the table that has patients of high grade alone; ``NA`` is unknown."""
        path = next((path for path in (self.raw / SURVIVAL, *sorted(self.raw.glob(f"*/{SURVIVAL}"))) if path.is_file()), None)
        if path is None or "age_group" not in self.attributes:
            return {}
        ages: dict[str, str] = {}
        for place, row in self.reader.good_rows(path, ("BraTS18ID", "Age")):
            try:
                subject, age = cell(row, "BraTS18ID"), age_group(cell(row, "Age"))
            except BadRow as fault:
                raise UserError(f"{path.parent / place}: {fault}; mend the row or write NA") from None
            if ages.setdefault(subject, age) != age:
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


def _subjects(raw: Path) -> dict[str, str]:
    """Subject -> its folder below ``raw``, which may hold the folders of grades or one folder that does."""
    if not raw.is_dir():
        raise UserError(f"{raw}: not a folder; name the folder that holds HGG/ and LGG/")
    bases = [raw, *(path for path in sorted(raw.iterdir()) if path.is_dir())]
    base = next((path for path in bases if any((path / grade).is_dir() for grade in GRADES)), None)
    if base is None:
        raise UserError(f"{raw}: no HGG/ and no LGG/; name the folder that holds them")
    found: dict[str, str] = {}
    for grade in GRADES:
        for path in sorted((base / grade).iterdir()) if (base / grade).is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
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
