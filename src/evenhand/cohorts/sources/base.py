"""What every importer shares: its settings, a record, and the facts of a source."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from PIL import Image
from pydantic import Field, PlainSerializer, field_validator

from evenhand.cohorts.images import Picture, inside, open_picture
from evenhand.cohorts.lookup import Lookup
from evenhand.cohorts.tables import Row, TableReader
from evenhand.cohorts.textfile import is_encoding
from evenhand.cohorts.values import BadRow
from evenhand.core.config import Settings
from evenhand.core.errors import UserError, did_you_mean

MAX_GROUPS = 50  # a column with more values is a measurement, not an attribute
File = Annotated[Path, PlainSerializer(lambda path: path.name, when_used="json")]  # a cohort names no folders


class ImportSettings(Settings):
    """Options of ``evenhand cohort import``."""

    size: int | None = Field(default=None, ge=8, le=4096)  # None: the shorter side of the first image, at most 512
    mode: Literal["L", "RGB"] | None = None  # None: as the source, or the first image, has it
    fit: Literal["crop", "pad"] = "crop"  # how images become square: cut from the centre, or black added
    window: tuple[float, float] | None = None  # grey values that become black and white; None: see cohorts/windows.py
    limit: int | None = Field(default=None, ge=1)  # take the first rows only
    skip_bad: int = Field(default=0, ge=0)  # how many bad rows or images are left out before the import fails
    unknown: Literal["keep", "drop"] = "keep"  # rows with an unknown attribute
    prompt_attributes: list[str] | None = None  # None: prompts state all; ["none"]: none
    seed: int = 0
    name: str | None = None
    encoding: str | None = None  # of all text tables; None: UTF-8 or UTF-16, else cp1252 or latin-1 with a note
    attributes: list[str] | None = None  # which columns; None: the source's own choice
    conditions: list[str] | None = None
    modality: str | None = None  # table: what the images are; brats18: which MR sequence
    licence: str | None = None  # table: of its images; roco: which licences are taken, by commas
    # the table source only
    image_column: str | None = None
    subject_column: str | None = None
    split_column: str | None = None
    prompt_column: str | None = None
    synthetic: bool = False  # images of somebody's generator: attributes are what was requested
    # the chexpert source only
    uncertain: Literal["zeros", "ones", "drop"] | None = None  # what the label -1 counts as; None: zeros
    demographics: File | None = None
    # the brats18 source only
    slices: Literal["tumour", "brain", "all"] | None = None  # which slices may be taken; None: brain
    slices_per_subject: int | None = Field(default=None, ge=1)  # so many at most, evenly spaced; None: 5
    sex_table: File | None = None
    name_mapping: File | None = None
    clinical: File | None = None

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        if name is not None and not is_encoding(name):
            raise ValueError("no text encoding of this name; name one such as utf-8, utf-16, cp1252, latin-1, shift-jis or gb18030")
        return name

    @field_validator("window", mode="before")
    @classmethod
    def _read_window(cls, value: object) -> object:
        """``LOW,HIGH`` of the command line as two numbers."""
        parts = value.split(",") if isinstance(value, str) else value
        try:
            low, high = map(float, parts)  # type: ignore[arg-type,call-overload]
        except (TypeError, ValueError):
            if value is None:
                return None
            raise ValueError("two numbers are wanted, LOW,HIGH, such as 0,4095") from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError("LOW must be below HIGH, such as 0,4095")
        return low, high


ONLY: dict[str, tuple[str, ...]] = {  # options that mean something to some sources alone
    **dict.fromkeys(("image_column", "subject_column", "split_column", "prompt_column", "synthetic"), ("table",)),
    **dict.fromkeys(("uncertain", "demographics"), ("chexpert",)),
    **dict.fromkeys(("slices", "slices_per_subject", "sex_table", "name_mapping", "clinical"), ("brats18",)),
    "modality": ("brats18", "table"),
    "licence": ("roco", "table"),
    "window": ("chexpert", "fairgenmed", "ham10000", "nih-cxr", "roco", "table"),  # brats18 has a window for each subject
}


@dataclass(frozen=True)
class Record:
    """One image of a raw data set, before it is opened."""

    image: str  # path inside the source's image folder
    image_id: str
    subject_id: str
    attributes: dict[str, str]
    conditions: dict[str, str]
    split: str | None = None  # the source's own, where it has one
    prompt: str | None = None
    licence: str | None = None  # of this image, where each has its own
    extras: dict[str, str] = field(default_factory=dict)  # further columns to keep


class Source(ABC):
    """One raw layout: where its table and images are, and what a row means."""

    name: ClassVar[str]
    modality: str
    mode: Literal["L", "RGB"] | None = None
    synthetic = False
    citation: str = ""
    licence: str = ""
    attributes: dict[str, list[str]]  # column -> groups; an empty list is filled from the data
    conditions: dict[str, list[str]]
    default_conditions: ClassVar[tuple[str, ...] | None] = None  # None: all
    stated: ClassVar[tuple[str, ...] | None] = None  # attributes that prompts state where no option says; None: all

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        if not raw.exists():
            raise UserError(f"{raw}: no such file or folder; name the raw data of {self.name}")
        self.raw, self.settings = raw, settings
        self.lookup = Lookup(self.images)
        self.reader = TableReader(settings.encoding)
        self.facts: dict[str, str] = {}  # choices made while reading, for cohort.json
        for option, owners in ONLY.items():
            if self.name not in owners and getattr(settings, option):
                whose = " and of ".join(map(repr, owners))
                raise UserError(f"--{option.replace('_', '-')} is an option of the source {whose}, not of {self.name!r}")
        if self.name != "table":
            self.attributes = _choose("attributes", self.attributes, settings.attributes, None)
            self.conditions = _choose("conditions", self.conditions, settings.conditions, self.default_conditions)

    @property
    def images(self) -> Path:
        """The folder that no image path may leave."""
        return self.raw if self.raw.is_dir() else self.raw.parent

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of the raw table, or what is wrong with a row, with their place (file and row)."""

    def survey(self, row: Row) -> None:  # noqa: B027 (most sources have nothing to learn)
        """See one row before any is imported; a source whose groups come from its data learns their spellings here."""

    @abstractmethod
    def record(self, row: Row) -> Record:
        """What one row means.

        Raises:
            BadRow: a value that cannot be read.
            LeftOut: a row that the settings leave out.
        """

    def open(self, record: Record) -> Picture | Image.Image:
        """The image of one record; a source whose pixels are no image files overrides this, and returns them as 8 bits.

        Raises:
            BadImage: see ``open_picture``.
        """
        return open_picture(inside(self.images, record.image))

    def notes(self) -> list[str]:
        """What a reader of the cohort should know, once every row has been seen."""
        return []

    def find(self, image_id: str, folders: Sequence[str], endings: Sequence[str] = ("",)) -> str:
        """The path of an image inside ``raw``, looked for in ``folders`` in turn; see ``Lookup.find``.

        Raises:
            BadRow: there is none, several fit, or the path leads out of the raw folder.
        """
        return self.lookup.find(image_id, folders, endings)


def too_many_groups(column: str) -> UserError:
    """A column that is a measurement."""
    return UserError(f"column {column!r} has more than {MAX_GROUPS} values; sort them into groups first, such as '<60' and '>=60'")


def _choose(what: str, offered: dict[str, list[str]], asked: Sequence[str] | None, default: Sequence[str] | None) -> dict[str, list[str]]:
    names = asked if asked is not None else default if default is not None else list(offered)
    for name in names:
        if name not in offered:
            raise UserError(f"--{what}: no {name!r} in this source; {did_you_mean(name, offered)}")
    return {name: list(offered[name]) for name in names}
