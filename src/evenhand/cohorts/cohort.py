"""The cohort: a folder of images with one table, whoever made them.

``cohort.json`` is the schema, ``cohort.parquet`` has one row per image, ``images/`` holds the files. Real data sets are imported
into cohorts, phantoms are cohorts, and so is what a model generates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from evenhand.cohorts.decoding import DECODE_ERRORS, brief
from evenhand.core.artifacts import is_file, new_folder, read_json, sha256_file, write_atomically, write_json
from evenhand.core.errors import UserError, did_you_mean

SCHEMA_FILE, TABLE_FILE, IMAGE_FOLDER = "cohort.json", "cohort.parquet", "images"
SPLITS = ("train", "val", "test")
BASE_COLUMNS = ("image", "subject_id", "split", "prompt")
SYNTHETIC_COLUMNS = ("seed", "guidance_scale", "steps", "model")
# columns of a cohort's table, of a merged one's and of a generation's plan: no attribute or condition can have such a name
RESERVED = (*BASE_COLUMNS, *SYNTHETIC_COLUMNS, "sha256", "image_id", "licence", "modality", "sample_id", "n")


class CohortSchema(BaseModel):
    """What ``cohort.json`` says of a cohort."""

    model_config = ConfigDict(extra="forbid")

    name: str
    modality: str
    attributes: dict[str, list[str]]
    conditions: dict[str, list[str]]
    image_size: int
    image_mode: Literal["L", "RGB"]
    synthetic: bool = False
    source: str = ""
    licence: str = ""
    made: dict[str, Any] = {}

    @property
    def columns(self) -> dict[str, list[str]]:
        """Attributes and conditions together: column -> values."""
        return {**self.attributes, **self.conditions}


def is_cohort(path: Path | str) -> bool:
    """Whether it is a cohort's folder; any text may be asked about, as where a cohort or a mix in words is taken."""
    return is_file(Path(path) / SCHEMA_FILE)


@dataclass(frozen=True)
class Cohort:
    """A schema, a table with one row per image, and the folder that holds the images."""

    schema: CohortSchema
    table: pd.DataFrame
    root: Path

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a cohort folder.

        Raises:
            UserError: not a cohort, a damaged file, or a column that the schema names and the table lacks.
        """
        root = Path(path)
        if not is_cohort(root):
            raise UserError(f"{root}: not a cohort (no {SCHEMA_FILE}); make one with 'evenhand cohort import' or 'cohort phantom'")
        try:
            schema = CohortSchema(**read_json(root / SCHEMA_FILE))
        except (ValidationError, TypeError) as error:
            fault = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "not an object"}
            where = ".".join(map(str, fault["loc"]))
            raise UserError(f"{root / SCHEMA_FILE}: {where}: {fault['msg']}; restore the file or import again") from None
        return cls(schema, _read_table(root / TABLE_FILE, schema), root)

    def save(self, path: Path | str) -> None:
        """Write a copy of this cohort, images included, as a new folder.

        Raises:
            UserError: ``path`` exists already, or an image is missing.
        """
        with new_folder(Path(path)) as folder:
            for name in self.table["image"]:
                source, target = self.image_path(name), folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(source, target)
                except FileNotFoundError:
                    raise UserError(f"{source}: missing image; run 'evenhand cohort check {self.root}'") from None
            write_json(folder / SCHEMA_FILE, self.schema.model_dump())
            write_table(folder / TABLE_FILE, self.table)

    def __len__(self) -> int:
        return len(self.table)

    def subset(self, mask: pd.Series | np.ndarray) -> Cohort:
        """The rows where ``mask`` is true, over the same images."""
        return Cohort(self.schema, self.table.loc[np.asarray(mask)].reset_index(drop=True), self.root)

    def split(self, *names: str) -> Cohort:
        """The rows of one or several splits."""
        return self.subset(self.table["split"].isin(names))

    def image_path(self, name: str) -> Path:
        """The file of one table entry; a name that leads out of the cohort is refused."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise UserError(f"{self.root / TABLE_FILE}: image {name!r} leads out of the cohort; import the data again")
        return path

    def image_hashes(self) -> np.ndarray:
        """SHA-256 of every image file (n,), from the table; a file without one there is read."""
        recorded = self.table["sha256"] if "sha256" in self.table else pd.Series([None] * len(self), dtype=object)
        known, names = recorded.notna().to_numpy(), self.table["image"].astype(str).to_numpy()
        found = [str(hash_) if there else self._hash(name) for hash_, there, name in zip(recorded, known, names, strict=True)]
        return np.array(found, dtype=object)

    def _hash(self, name: str) -> str:
        try:
            return sha256_file(self.image_path(name))
        except FileNotFoundError:
            raise UserError(f"{self.root}: image {name!r} is missing; restore it, or drop its row") from None

    def pixels(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Images as float32 in [0, 1]: (n, H, W) for grayscale, (n, H, W, 3) for RGB."""
        names: Iterable[str] = self.table["image"] if rows is None else self.table["image"].iloc[np.asarray(rows)]
        return np.stack([read_image(self.image_path(name), self.schema.image_mode) for name in names])

    def require_column(self, name: str) -> list[str]:
        """The values of an attribute or condition; an unknown name answers with near ones."""
        if name not in self.schema.columns:
            raise UserError(f"{self.root}: no attribute or condition {name!r}; {did_you_mean(name, self.schema.columns)}")
        return self.schema.columns[name]


def read_image(path: Path, mode: str) -> np.ndarray:
    """One image as float32 in [0, 1], (H, W) or (H, W, 3)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode), dtype=np.float32) / 255
    except FileNotFoundError:
        raise UserError(f"{path}: missing image; run 'evenhand cohort check' on its cohort") from None
    except (*DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: unreadable image ({brief(error)}); run 'evenhand cohort check' on its cohort") from None


def to_image(pixels: np.ndarray) -> Image.Image:
    """A PIL image from float pixels in [0, 1], (H, W) or (H, W, 3)."""
    return Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a cohort's table atomically as Parquet."""
    write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False))


def _read_table(path: Path, schema: CohortSchema) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; import the data again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); import the data again") from None
    for column in (*BASE_COLUMNS, *schema.columns):
        if column not in table.columns:
            raise UserError(f"{path}: no column {column!r}; {did_you_mean(column, table.columns)}; import the data again")
    return table
