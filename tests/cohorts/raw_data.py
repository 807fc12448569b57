"""Raw data sets in their exact layouts, small; and files that only claim to be images."""

import csv
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
