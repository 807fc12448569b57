"""Any table with an image path a row: CSV, Parquet, JSON lines, or the hub's ``imagefolder`` layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from evenhand.cohorts.lookup import NoFile, is_junk
from evenhand.cohorts.sources.base import MAX_GROUPS, ImportSettings, Record, Source, too_many_groups
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import ENDINGS, KINDS, Row, require_columns, table_ending
from evenhand.cohorts.textfile import UNREADABLE
from evenhand.cohorts.values import BadRow, Spellings, cell, counted, identity, is_missing
from evenhand.core.errors import UserError
from evenhand.core.groups import UNKNOWN, UNSPECIFIED
from evenhand.core.names import sense, tidy

BESIDES = (".txt", ".txt.gz", ".json", ".json.gz")  # what also lies beside a table; such a file is the table where there is no other
IMAGE_COLUMNS = ("image", "file_name", "image_path", "path", "filename", "file")
PROMPT_COLUMNS = ("prompt", "text", "caption")
SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


class Table(Source):
    """``raw`` is the table, or the folder that holds it; image paths are relative to the table's folder.

    A folder of ``train/``, ``validation/`` and ``test/`` with one ``metadata`` table each is read too, the folders being the splits.
    Groups come from the data. Without a subject column every image is a subject of its own.
    """

    name = "table"

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        self.tables = _find_tables(raw)
        self.folder = self.images
        first = self.tables[0]
        names = self.reader.columns(first)
        self.image_column = settings.image_column or next((name for name in IMAGE_COLUMNS if name in names), IMAGE_COLUMNS[0])
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
        for table in self.tables:
            require_columns(table, self.reader.columns(table), self.required)
        self.spellings = {name: Spellings(finding=name in self.conditions) for name in (*self.attributes, *self.conditions)}
        self.missing = {name: Counter[str]() for name in optional if name}  # cells that name no subject, split or prompt
        self.subjects: dict[str, str] = {}  # sense -> the first id of it
        self.alike: dict[str, str] = {}  # an id -> an earlier one that is written otherwise

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows of every table; those of a split folder say so in the column ``""``, which no header can name."""
        for table in self.tables:
            inner = "" if table.parent == self.folder else table.parent.name
            for place, row in self.reader.rows(table, self.required):
                yield (f"{inner}/{place}" if inner else place), row if isinstance(row, BadRow) else {**row, "": inner}

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
        """Which spellings were joined, what was read as missing, and which subject ids look alike."""
        notes = [f"{column}: spellings of one value: {line}" for column, found in self.spellings.items() for line in found.joined()]
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
        return notes

    def record(self, row: Row) -> Record:
        """One image with the groups of the columns that were named."""
        name = cell(row, self.image_column)
        if not name:
            raise BadRow(f"empty image path in column {self.image_column!r}")
        path = self._find(name, row[""])
        subject, split = self.settings.subject_column, self._split(row)
        return Record(
            image=path,
            image_id=path,
            subject_id=(identity(cell(row, subject)) if subject else "") or path,
            attributes={column: self._group(column, row) for column in self.attributes},
            conditions={column: self._group(column, row) for column in self.conditions},
            split=split,
            prompt=self._prompt(row),
        )

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


def _find_tables(raw: Path) -> list[Path]:
    if raw.is_file():
        if table_ending(raw) not in ENDINGS and raw.suffix.lower() not in UNREADABLE:
            raise UserError(f"{raw}: not a table; name a file that ends in {KINDS}")
        return [raw]  # a kind that is not read is refused by the reader, with its remedy
    for folders in ([raw], [raw / name for name in SPLIT_FOLDERS]):
        metadata = [path for folder in folders for ending in ENDINGS if (path := folder / f"metadata{ending}").is_file()]
        if metadata and (len(metadata) == 1 or len(folders) > 1):
            return metadata
    files = sorted(path for path in raw.iterdir() if path.is_file() and not is_junk(path.name))
    tables = [path for path in files if table_ending(path) in ENDINGS]
    tables = [path for path in tables if table_ending(path) not in BESIDES] or tables
    tables = tables or [path for path in files if path.suffix.lower() in UNREADABLE][:1]
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "none"
        raise UserError(f"{raw}: one table is wanted ({KINDS}), found {found}; name the table itself")
    return tables
