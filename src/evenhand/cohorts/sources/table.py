"""Any table with one image path per row: CSV, Parquet, JSON lines, or the hub's ``imagefolder`` layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from evenhand.cohorts.header import clean
from evenhand.cohorts.hub import StoredImages, find_arrow, find_shards, in_order, missing_shards, read_features, split_of_name
from evenhand.cohorts.images import Picture
from evenhand.cohorts.lookup import NoFile, file_in, is_junk, subfolders
from evenhand.cohorts.sources.base import MAX_GROUPS, ImportSettings, Record, Source, too_many_groups
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import ENDINGS, KINDS, Row, require_columns, table_ending
from evenhand.cohorts.textfile import UNREADABLE
from evenhand.cohorts.values import BadRow, Spellings, cell, counted, identity, is_missing
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN, UNSPECIFIED
from evenhand.core.names import same_name, sense, tidy

BESIDES = (".txt", ".txt.gz", ".json", ".json.gz")  # what also lies beside a table; such a file is the table where there is no other
IMAGE_COLUMNS = ("image", "img", "picture", "file_name", "image_path", "path", "filename", "file")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


PART, NUMBER = "\0part", "\0number"  # further columns of a row, which no header can name: its table and its place in that


@dataclass(frozen=True)
class Part:
    """One table of a data set."""

    path: Path
    prefix: str  # of its folder, relative to the data folder
    split: str  # that its folder or its name says; empty where none is said
    labels: dict[str, list[str]]  # columns of class numbers -> the names of the classes
    images: StoredImages | None  # where the table itself holds them


class Table(Source):
    """``raw`` is the table, or the folder that holds it; image paths are relative to the table's folder.

    A folder of ``train/``, ``validation/`` and ``test/`` with one ``metadata`` table each is read too, the folders being the splits;
    so are the Parquet files of a data set on the hub, ``data/train-00000-of-00002.parquet``, with their images inside. Groups come
    from the data. Without a subject column every image is a subject of its own.
    """

    name = "table"

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.folder = self.images
        found_tables = _find_tables(raw)
        first = found_tables[0][0]
        names = self.names = self.reader.columns(first)
        self.image_column = settings.image_column or _image_column(first, names)
        own_words = settings.prompt_attributes is None
        found = next((name for name in PROMPT_COLUMNS if name in names), None) if own_words else None
        self.prompt_column = settings.prompt_column or found
        if settings.prompt_column and not own_words:
            raise UserError("--prompt-column and --prompt-attributes exclude each other: prompts come from the table or from a template")
        self.modality = settings.modality or "image"
        self.synthetic, self.licence, self.citation = settings.synthetic, settings.licence or "", str(first.name)
        self.attributes = {name: [] for name in settings.attributes or ()}
        self.conditions = {name: [] for name in settings.conditions or ()}
        for name in self.attributes:
            if name in self.conditions:
                raise UserError(f"column {name!r} is named as attribute and as condition; choose one")
        optional = (settings.subject_column, settings.split_column, self.prompt_column)
        self.required = [self.image_column, *self.attributes, *self.conditions, *(name for name in optional if name)]
        for path, _ in found_tables:
            require_columns(path, self.reader.columns(path), self.required)
        self.parts = [self._part(path, split) for path, split in found_tables]
        self.stored = {part.images.table.relative_to(self.folder).as_posix(): part.images for part in self.parts if part.images}
        self.shards = missing_shards(found_tables)
        self.spellings = {name: Spellings(finding=name in self.conditions) for name in (*self.attributes, *self.conditions)}
        self.missing = {name: Counter[str]() for name in optional if name}  # cells that name no subject, split or prompt
        self.subjects: dict[str, str] = {}  # sense -> the first id of it
        self.alike: dict[str, str] = {}  # an id -> an earlier one that is written otherwise

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of every table; the split that the table says stands in the column ``""``, which no header can name."""
        for index, part in enumerate(self.parts):
            required = [name for name in self.required if not (part.images and name == self.image_column)]
            for number, row in self.reader.numbered(part.path, required):
                place = f"{part.path.relative_to(self.folder).as_posix()} row {number}"
                more = {"": part.split, PART: str(index), NUMBER: str(number)}
                yield place, row if isinstance(row, BadRow) else _with_names({**row, **more}, part.labels)

    def survey(self, row: Row) -> None:
        """Count the spellings of every group, over all tables of the import, and the cells that are missing."""
        for column, spellings in self.spellings.items():
            spellings.add(row.get(column, ""))
            if len(spellings.known) > MAX_GROUPS:
                raise too_many_groups(column)
        for column, found in self.missing.items():
            if is_missing(row.get(column, "")):
                found[tidy(row.get(column, ""))] += 1
        if self.settings.subject_column and (subject := identity(row.get(self.settings.subject_column, ""))):
            first = self.subjects.setdefault(sense(subject), subject)
            if first != subject:
                self.alike[subject] = first

    def notes(self) -> list[str]:
        """Which spellings were joined, what was read as missing, and which subject ids look alike; shards that are missing."""
        notes = [note for column, found in self.spellings.items() for note in found.notes(column)]
        for column in self.spellings:
            if twins := same_name(column, self.names):
                notes.append(f"{column}: the table has a column {twins[0]!r} too, which is not read")
        notes += [f"{column}: read as missing: {counted(words)}" for column, found in self.spellings.items() if (words := found.words())]
        then = {
            self.settings.subject_column: "each of these images is a subject of its own",
            self.settings.split_column: "no split is taken from them",
            self.prompt_column: "a template wrote these prompts",
        }
        for column, found in self.missing.items():
            if found:
                notes.append(f"{column}: {found.total()} cells are missing ({counted(found)}); {then[column]}")
        if self.alike:
            one, other = next(iter(self.alike.items()))
            notes.append(
                f"{self.settings.subject_column}: ids that differ in spelling alone are different subjects here, such as {other!r} and "
                f"{one!r} ({len(self.alike)} in all); write them alike where they are one"
            )
        return [*notes, *self.shards]

    def record(self, row: Row) -> Record:
        """One image with the groups of the columns that were named."""
        path, image_id = self._image(row)
        subject, split = self.settings.subject_column, self._split(row)
        return Record(
            image=path,
            image_id=image_id,
            subject_id=(identity(cell(row, subject)) if subject else "") or image_id,
            attributes={column: self._group(column, row) for column in self.attributes},
            conditions={column: self._group(column, row) for column in self.conditions},
            split=split,
            prompt=self._prompt(row),
        )

    def open(self, record: Record) -> Picture | Image.Image:
        """The image of a file, or of a row of a table that holds its images.

        Raises:
            BadImage: unreadable.
        """
        table, _, number = record.image.rpartition("#")
        return self.stored[table].open(int(number)) if table in self.stored else super().open(record)

    def _part(self, path: Path, split: str) -> Part:
        prefix = path.parent.relative_to(self.folder).as_posix().removeprefix(".")
        if path.suffix.lower() != ".parquet":
            return Part(path, prefix, split, {}, None)
        features = read_features(path)
        column = next((name for name in features.names if clean(name) == self.image_column), self.image_column)  # as the file has it
        if column in features.lists:
            raise UserError(f"{path}: column {self.image_column!r} holds lists of images; write one row per image")
        labels = {clean(name): classes for name, classes in features.labels.items()}
        if column not in (*features.images, *features.binaries):
            return Part(path, prefix, split, labels, None)
        self.reader.leave_out(path, column)
        return Part(path, prefix, split, labels, StoredImages(path, column, self.lookup, [prefix] if prefix else []))

    def _image(self, row: Row) -> tuple[str, str]:
        """Where the image of a row is, and its id: the path of its file, or the row of the table that holds it."""
        part = self.parts[int(row[PART])]
        if part.images is None:
            name = cell(row, self.image_column)
            if not name:
                raise BadRow(f"empty image path in column {self.image_column!r}")
            path = self._find(name, part.prefix)
            return path, path
        number = int(row[NUMBER])
        if not part.images.holds(number):
            raise BadRow(f"no image in column {self.image_column!r}")
        file = part.images.path(number)
        if file is not None:
            return file, file
        table = part.path.relative_to(self.folder)
        return f"{table.as_posix()}#{number}", f"{table.with_suffix('').as_posix()}_{number}"

    def _find(self, name: str, inner: str) -> str:
        """The image that a cell names: relative to its table's folder, else to the folder of all tables."""
        if not inner:
            return self.lookup.find(name, anywhere=True)
        try:
            return self.lookup.find(f"{inner}/{name}")
        except NoFile:
            return self.lookup.find(name)

    def _split(self, row: Row) -> str | None:
        value = cell(row, self.settings.split_column) if self.settings.split_column else row[""]
        if not is_missing(value):
            try:
                return parse_split(value)
            except UserError as error:
                raise BadRow(str(error)) from None
        return "test" if self.synthetic else None

    def _group(self, column: str, row: Row) -> str:
        """A group's name as the table has it, in its most frequent spelling; missing stays an explicit group."""
        return self.spellings[column].name(cell(row, column)) or (UNSPECIFIED if self.synthetic else UNKNOWN)

    def _prompt(self, row: Row) -> str | None:
        text = cell(row, self.prompt_column) if self.prompt_column else ""
        return None if is_missing(text) else " ".join(text.split())


def _image_column(table: Path, names: list[str]) -> str:
    """The column of images that no option names: by its own name, else the one that holds images."""
    stored = tuple(map(clean, read_features(table).images)) if table.suffix.lower() == ".parquet" else ()
    there = [name for wanted in IMAGE_COLUMNS for name in (wanted, *names) if name.lower() == wanted and name in names]
    named = next((name for name in there if name in stored or not stored), None)
    if named is None and len(stored) > 1:
        raise UserError(f"{table}: columns {' and '.join(map(repr, stored))} hold images; name one with --image-column")
    if named or stored:
        return named or stored[0]
    try:
        require_columns(table, names, IMAGE_COLUMNS[:1])
    except UserError as fault:
        raise UserError(f"{fault}; name the column of images with --image-column") from None
    return IMAGE_COLUMNS[0]


def _with_names(row: Row, labels: dict[str, list[str]]) -> Row | BadRow:
    """A row with the names of its classes instead of their numbers."""
    for column, names in labels.items():
        number = row.get(column, "")
        if is_missing(number) or number in names:  # a missing class is -1; some writers store the name itself
            continue
        if not number.isdecimal() or int(number) >= len(names):
            return BadRow(f"{column} {number!r} is the number of no class; there are {len(names)}, counted from 0")
        row[column] = names[int(number)]
    return row


def _find_tables(raw: Path) -> list[tuple[Path, str]]:
    """The tables, each with the split that it says, or an empty one."""
    if raw.is_file():
        if table_ending(raw) not in ENDINGS and raw.suffix.lower() not in UNREADABLE:
            raise UserError(f"{raw}: not a table; name a file that ends in {KINDS}")
        return [(raw, "")]  # a kind that is not read is refused by the reader, with its remedy
    of_splits = [path for path in subfolders(raw) if path.name.lower() in SPLIT_FOLDERS]
    for folders in ([raw], sorted(of_splits, key=lambda path: SPLIT_FOLDERS.index(path.name.lower()))):
        names = [f"metadata{ending}" for ending in ENDINGS]
        metadata = [path for folder in folders for name in names if (path := file_in(folder, name))]
        if metadata and (len(metadata) == 1 or len(folders) > 1):
            return [(path, "" if path.parent == raw else path.parent.name) for path in metadata]
    files = sorted(path for path in raw.iterdir() if path.is_file() and not is_junk(path.name))
    tables = [path for path in files if table_ending(path) in ENDINGS]
    tables = [path for path in tables if table_ending(path) not in BESIDES] or tables
    shards = find_shards(raw)
    if shards and all(table_ending(path) in BESIDES or path in dict(shards) for path in tables):
        return _drawn_where_alone(shards)
    if find_arrow(raw):
        raise UserError(f"{raw}: saved with save_to_disk of datasets; export it with to_parquet('train.parquet'), and import that file")
    said = {path: split_of_name(path.name.split(".")[0]) for path in tables}
    if len(tables) > 1 and all(said.values()):
        return in_order([(path, str(split)) for path, split in said.items()])
    tables = tables or [path for path in files if path.suffix.lower() in UNREADABLE][:1]
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise UserError(f"{raw}: one table is wanted ({KINDS}), found {found}; name the table itself")
    return [(tables[0], "")]


def _drawn_where_alone(shards: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """A data set that has a training split alone is split by subject, as any table."""
    alone = {split for _, split in shards} == {"train"}
    return [(path, "" if alone else split) for path, split in shards]
