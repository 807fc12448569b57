"""Raw data sets in their exact layouts, small; and files that only claim to be images."""

import csv
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import openpyxl
import pytest
from PIL import Image

HAM_HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
HAM_ROWS = (
    ("HAM_0000001", "ISIC_0000001", "nv", "histo", "50.0", "male", "back"),
    ("HAM_0000001", "ISIC_0000002", "nv", "histo", "50.0", "male", "back"),
    ("HAM_0000002", "ISIC_0000003", "mel", "histo", "60.0", "female", "face"),
    ("HAM_0000003", "ISIC_0000004", "akiec", "histo", "", "female", "face"),
    ("HAM_0000004", "ISIC_0000005", "bkl", "consensus", "75.0", "unknown", "trunk"),
    ("HAM_0000005", "ISIC_0000006", "bcc", "confocal", "59.0", "male", "trunk"),
)
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
NIH_ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,",
    "00000001_001.png,Cardiomegaly|Effusion,1,1,060Y,M,AP,2894,2729,0.143,0.143,",
    "00000002_000.png,No Finding,0,2,081Y,F,PA,2500,2048,0.168,0.168,",
    "00000003_000.png,Effusion,0,3,412Y,F,PA,2500,2048,0.168,0.168,",
)

FAIRGENMED_HEADER = (
    *("filename", "age", "gender", "race", "ethnicity", "use", "glaucoma", "md", "md_severity", "cdr_status", "rnflt_status"),
    "near_vision_refraction_stage",
)
FAIRGENMED_ROWS = (
    ("data_00001.npz", "61.2", "Female", "Black", "Non-Hispanic", "training", "yes", "-4.1", "mild", "borderline", "low", "negative"),
    ("data_00002.npz", "44.0", "Male", "Asian", "Non-Hispanic", "validation", "no", "0.3", "normal", "normal", "high", "positive"),
    ("data_00003.npz", "70.9", "Female", "White", "Non-Hispanic", "test", "yes", "-14.0", "severe", "abnormal", "low", "neutral"),
)
FAIRGENMED_VALUES = (
    {"glaucoma": 1, "race": 1, "male": 0, "hispanic": 0, "maritalstatus": 0, "language": 0},
    {"glaucoma": 0, "race": "Asian", "male": 1, "hispanic": 0, "maritalstatus": -1, "language": 0},
    {"glaucoma": 1.0, "race": "White or Caucasian", "male": 0.0, "hispanic": 0.0, "maritalstatus": 1.0, "language": 2.0},
)
CHEXPERT_FINDINGS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
)
CHEXPERT_DEMO = (
    ("PATIENT", "PRIMARY_RACE", "GENDER", "AGE_AT_CXR", "ETHNICITY"),
    ("patient00001", "White, non-Hispanic", "Female", 68, None),
    ("patient00002", "Black or African American", "Male", 87, "Non-Hispanic/Non-Latino"),
    ("patient00003", "Asian", "Female", 41, "Hispanic/Latino"),
    ("patient64541", "Native Hawaiian or Other Pacific Islander", "Male", 73, "Patient Refused"),
)


def picture(number: int, size: tuple[int, int] = (24, 24), mode: str = "RGB") -> Image.Image:
    """A noise image that no other number gives."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8))


def write_ham(raw: Path, rows: Sequence[Sequence[str]] = HAM_ROWS, table: str = "HAM10000_metadata.csv") -> Path:
    """Kaggle's layout: the second half of the images lies in part 2."""
    folders = [raw / "HAM10000_images_part_1", raw / "HAM10000_images_part_2"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    with (raw / table).open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if table.endswith(".tab") else ",")
        writer.writerows([HAM_HEADER, *rows])
    for number, row in enumerate(rows):
        picture(number, (30, 24)).save(folders[2 * number // len(rows)] / f"{row[1]}.jpg", quality=95)
    return raw


def write_nih(raw: Path, rows: Sequence[str] = NIH_ROWS, folder: str = "images") -> Path:
    """The original table: rows end with a comma, two columns of the header hold one."""
    (raw / folder).mkdir(parents=True)
    (raw / "Data_Entry_2017.csv").write_text("\n".join([NIH_HEADER, *rows]) + "\n")
    for number, row in enumerate(rows):
        picture(number, mode="L").save(raw / folder / row.split(",")[0])
    return raw


def write_table(raw: Path, rows: Sequence[dict[str, str]], name: str = "labels.csv") -> Path:
    """A CSV whose images are made where their path is a plain one inside the folder."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for number, row in enumerate(rows):
        path = row.get("image", row.get("file_name", ""))
        if path and not path.startswith(("/", "..")) and not (raw / path).exists():
            (raw / path).parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(raw / path)
    return raw


def write_fairgenmed(
    raw: Path,
    rows: Sequence[Sequence[str]] = FAIRGENMED_ROWS,
    values: Sequence[Mapping[str, Any]] = FAIRGENMED_VALUES,
    *,
    header: Sequence[str] = FAIRGENMED_HEADER,
    table: str = "data_summary.csv",
    folders: Sequence[str] = ("train", "val", "test"),
    pixels: bool = True,
    pictures: bool = False,
) -> Path:
    """One archive a row, all scalars 0-d arrays; ``pixels`` puts the image inside, ``pictures`` a larger JPEG beside."""
    (raw / table).parent.mkdir(parents=True, exist_ok=True)
    with (raw / table).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    for number, (row, scalars) in enumerate(zip(rows, values, strict=True)):
        folder = raw / folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        inside = {"slo_fundus": np.asarray(picture(number, (20, 20)))} if pixels else {}
        scans = {"oct_bscans": np.zeros((2, 4, 4), np.uint8)}
        np.savez_compressed(folder / row[0], **{key: np.array(value) for key, value in scalars.items()}, **scans, **inside)
        if pictures:
            name = row[0].replace("data", "slo_fundus").replace(".npz", ".jpg")
            picture(100 + number, (40, 32)).save(folder / name, quality=95)
    return raw


def chexpert_row(path: str, sex: str = "Female", age: str = "68", view: str = "Frontal,AP", **labels: str) -> str:
    """A line of ``train.csv``; labels by column, with ``_`` for blanks, all others empty as the data set leaves them."""
    assert {name.replace("_", " ") for name in labels} <= set(CHEXPERT_FINDINGS)
    return ",".join([path, sex, age, view, *(labels.get(name.replace(" ", "_"), "") for name in CHEXPERT_FINDINGS)])


def write_chexpert(base: Path, tables: Mapping[str, Sequence[str]], demo: Sequence[Sequence[Any]] | None = CHEXPERT_DEMO) -> Path:
    """Tables as published, and an image where a row's path is a plain one; paths lose the prefix that is the folder's own name."""
    base.mkdir(parents=True, exist_ok=True)
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS])
    for name, rows in tables.items():
        (base / name).write_text("\n".join([header, *rows]) + "\n")
        for row in rows:
            write_radiograph(base, row.split(",")[0])
    if demo is not None:
        write_workbook(base / "CHEXPERT DEMO.xlsx", demo)
    return base


def write_radiograph(base: Path, path: str, ending: str = ".jpg") -> None:
    """The image of one row, where its path leads nowhere else."""
    inner = path.split("/", 1)[1] if path.lower().startswith("chexpert") else path
    if inner and not inner.startswith("/") and ".." not in inner:
        file = (base / inner).with_suffix(ending)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(zlib.crc32(inner.encode()), (26, 24), "L").save(file)


def write_workbook(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """An Excel file of one sheet."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def png_bomb(path: Path, width: int = 60_000, height: int = 60_000) -> Path:
    """A valid PNG header that claims 3.6 billion pixels, in a file of less than 200 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    return path


def real_data(name: str) -> Path:
    """A folder of real images, where ``EVENHAND_DATA`` names one."""
    base = os.environ.get("EVENHAND_DATA")
    if not base:
        pytest.skip("EVENHAND_DATA is not set: no real images here")
    return Path(base) / name


ROCO_CAPTIONS = (
    ("ROCO_00001", " Axial CT of a 45-year-old woman with a renal mass.", "PMC1000001_a.jpg", "CC BY"),
    ("ROCO_00002", " Chest radiograph of a 3 month-old male infant", "PMC1000002_b.jpg", "CC BY-NC"),
    ("ROCO_00003", " Lateral view of the knee.", "PMC1000001_c.jpg", "CC BY"),
    ("ROCO_00004", " Pelvic MRI (M/72).", "", ""),
)


def write_roco(
    raw: Path,
    rows: Sequence[Sequence[str]] = ROCO_CAPTIONS,
    folder: str = "data/train/radiology",
    *,
    licences: bool = True,
    links: bool = False,
    missing: Sequence[str] = (),
) -> Path:
    """ROCO v1: captions with a leading blank, files of concepts in another order; rows are id, caption, file of the article, licence."""
    base = raw / folder
    (base / "images").mkdir(parents=True, exist_ok=True)
    (base / "captions.txt").write_text("".join(f"{row[0]}\t{row[1]}\n" for row in rows))
    (base / "cuis.txt").write_text("".join(f"{row[0]}\t\tC0040405\tC{row[0][-5:]}\n" for row in reversed(rows)))
    (base / "semtypes.txt").write_text("".join(f"{row[0]}\t\tT060\tDiagnostic Procedure\tT033\tFinding\n" for row in rows))
    (base / "keywords.txt").write_text("".join(f"{row[0]}\t\taxial\tmass\n" for row in rows))
    if licences:
        lines = [f"{row[0]},{row[2]},{row[3]}\n" for row in reversed(rows) if row[3]]
        (base / "licences.txt").write_text("".join(["ROCO_ID,PMC_ID,CC\n", *lines]))
    if links:
        link = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/1e/ed/{}.tar.gz -P /path/to/Dir"
        lines = [f"{row[0]}\t{link.format(row[2].split('_')[0])}\t{row[2]}\n" for row in rows if row[2]]
        (base / "dlinks.txt").write_text("".join(lines))
    for row in rows:
        if row[0] not in missing and not row[0].startswith(("/", "..")):
            picture(zlib.crc32(row[0].encode()), (28, 24), "L").save(base / "images" / f"{row[0]}.jpg")
    return raw


def picture_bytes(number: int) -> bytes:
    """A JPEG that no other number gives."""
    buffer = io.BytesIO()
    picture(number).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_roco2(raw: Path, split: str, rows: Sequence[tuple[str, str, str]], members: Mapping[str, bytes] | None = None) -> Path:
    """ROCOv2 as on Zenodo: captions, concepts in another order, and an archive of images; rows are id, caption, concepts."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / f"{split}_captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ID", "Caption"), *(row[:2] for row in rows)])
    with (raw / f"{split}_concepts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ID", "CUIs"), *((row[0], row[2]) for row in reversed(rows))])
    inside = {f"{split}/{row[0]}.jpg": picture_bytes(number) for number, row in enumerate(rows)} if members is None else members
    with zipfile.ZipFile(raw / f"{split}_images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in inside.items():
            archive.writestr(name, data)
    return raw


BRATS_SHAPE = (20, 18, 12)  # BraTS itself: 240, 240, 155


def brats_volume(kind: str = "flair", shape: tuple[int, int, int] = BRATS_SHAPE, tumour: Sequence[int] = (4, 5, 6)) -> np.ndarray:
    """A box of brain, bright on the patient's left front; slices 2 to 9 are large, 1 and 10 slivers, the rest empty."""
    voxels = np.zeros(shape, np.int16)
    if kind == "seg":
        for index in tumour:
            voxels[8:11, 8:11, index] = (1, 2, 4)
        return voxels
    voxels[3:17, 3:15, 2:10] = 100 + np.arange(8, dtype=np.int16)
    voxels[9:11, 8:10, [1, 10]] = 100
    voxels[12:17, 3:8, 2:10] += 300  # large first index: left; small second: front
    return voxels


def write_brats_subject(
    raw: Path, grade: str, subject: str, tumour: Sequence[int] = (4, 5, 6), kinds: Sequence[str] = ("flair",), mark: int = 0
) -> Path:
    """One subject's folder in BraTS 2018's layout, axes to the left, the back and upwards as there; ``mark`` tells subjects apart."""
    folder = raw / grade / subject
    folder.mkdir(parents=True)
    for kind in (*kinds, "seg"):
        voxels = brats_volume(kind, tumour=tumour)
        if mark and kind != "seg":
            voxels[3 + mark, 10, 2:10] += 150
        write_nifti(folder / f"{subject}_{kind}.nii.gz", voxels)
    return folder


def write_nifti(path: Path, voxels: np.ndarray, axes: Sequence[float] = (-1, -1, 1)) -> Path:
    """A NIfTI-1 file; ``axes`` are the signs and sizes of its voxels in millimetres."""
    nib.save(nib.Nifti1Image(voxels, np.diag([*axes, 1.0])), path)
    return path


BRATS_SUBJECTS = (("HGG", "Brats18_TCIA01_460_1"), ("HGG", "Brats18_CBICA_AAB_1"), ("LGG", "Brats18_TCIA09_141_1"))
SURVIVAL_ROWS = ("BraTS18ID,Age,Survival,ResectionStatus", "Brats18_TCIA01_460_1,60.463,289,GTR", "Brats18_CBICA_AAB_1,NA,NA,NA")


def write_brats(raw: Path, survival: Sequence[str] | None = SURVIVAL_ROWS) -> Path:
    """Two subjects of high and one of low grade; ages of high grade alone, one of them ``NA``."""
    for mark, (grade, subject) in enumerate(BRATS_SUBJECTS):
        write_brats_subject(raw, grade, subject, mark=mark)
    if survival is not None:
        (raw / "survival_data.csv").write_text("\n".join(survival) + "\n")
    return raw
