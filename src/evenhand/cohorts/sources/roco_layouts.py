"""Where the editions of ROCO keep captions, images, concepts and licences; each gives rows of the same columns.

Columns of a row: ``id``, ``caption``, ``split`` (the published one), ``kind``, ``article``, ``licence``, ``cuis``, ``semtypes``,
``keywords``, ``place`` (where its image may lie). A line that cannot be read is a ``BadRow``.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from evenhand.cohorts.arrays import BOUNDED
from evenhand.cohorts.hub import StoredImages, batches, read_features
from evenhand.cohorts.images import BadImage, Picture, inside, open_picture
from evenhand.cohorts.lookup import Lookup, NoFile, fold, is_junk, subfolders
from evenhand.cohorts.splits import parse_split
from evenhand.cohorts.tables import Row, TableReader
from evenhand.cohorts.values import BadRow, LeftOut
from evenhand.core.errors import UserError, did_you_mean

RADIOLOGY, OTHER = "radiology", "non-radiology"
SPLITS = ("train", "training", "validation", "valid", "val", "test")
ENDINGS = (".jpg", ".jpeg", ".png")
MAX_MEMBER_BYTES = 200_000_000  # of one image in an archive, unpacked
MISSING = "no image file"
_ARTICLE = re.compile(r"PMC\d+")
# what zipfile raises on damaged archives; NotImplementedError is its word for an unknown compression
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError, ValueError)


class Layout(ABC):
    """One edition's files below ``raw``."""

    licence = ""  # what the edition says of all its images
    has_articles = True

    def __init__(self, raw: Path, reader: TableReader) -> None:
        self.raw, self.reader = raw, reader
        self.lookup = Lookup(raw)

    @abstractmethod
    def rows(self, kinds: Iterable[str]) -> Iterator[tuple[str, Row | BadRow]]:
        """Rows with their place (file and row)."""

    @abstractmethod
    def licences(self) -> set[str]:
        """Every licence that an image has; empty where none is told."""

    def articles(self) -> Iterator[tuple[str, str]]:
        """Article and published split of every image, imported or not."""
        return iter(())

    def find(self, row: Row) -> str:
        """Where the image of a row is.

        Raises:
            LeftOut: it is not there, as happens to many images of ROCO.
            BadRow: its path leads out of the raw folder.
        """
        found = self.lookup.seek(row["id"], [row["place"]], ENDINGS)
        if found is None:
            raise LeftOut(MISSING)
        return found

    def open(self, place: str) -> Picture:
        """The pixels of an image that ``find`` has found."""
        return open_picture(inside(self.raw, place))


class TextLayout(Layout):
    """ROCO v1: ``data/{train,validation,test}/{radiology,non-radiology}/`` with text files that are joined by id, never by order."""

    def __init__(self, raw: Path, reader: TableReader, base: Path) -> None:
        super().__init__(raw, reader)
        self.folders = {
            (parse_split(split.name), kind): split / kind
            for split in sorted((path for path in base.iterdir() if path.name in SPLITS), key=lambda path: SPLITS.index(path.name))
            for kind in (RADIOLOGY, OTHER)
            if (split / kind / "captions.txt").is_file()
        }

    @staticmethod
    def base(raw: Path) -> Path | None:
        """The folder of the splits in ``raw``, in its ``data`` folder, or one folder further down."""
        below = subfolders(raw)
        folders = [raw, raw / "data", *below, *(path / "data" for path in below)]
        files = [f"{split}/{kind}/captions.txt" for split in SPLITS for kind in (RADIOLOGY, OTHER)]
        return next((folder for folder in folders if any((folder / name).is_file() for name in files)), None)

    def rows(self, kinds: Iterable[str]) -> Iterator[tuple[str, Row | BadRow]]:
        """Captions of the kinds that are asked for, with what the other files say of the same id."""
        for (split, kind), folder in self.folders.items():
            if kind not in kinds:
                continue
            name = folder.relative_to(self.raw).as_posix()
            licences, links = self._licences(folder), _pairs(self.reader, folder / "dlinks.txt")
            more = {column: _pairs(self.reader, folder / f"{column}.txt") for column in ("cuis", "semtypes", "keywords")}
            for number, line in enumerate(self.reader.lines(folder / "captions.txt"), start=1):
                if not line.strip():
                    continue
                key, tab, caption = line.partition("\t")
                key = key.strip()
                place = f"{name}/captions.txt row {number}"
                if not tab or not key:
                    yield place, BadRow(f"{line[:60]!r} is not an id, a tab and a caption")
                    continue
                licence, file = licences.get(key, ("", ""))
                yield (
                    place,
                    {
                        **{"id": key, "caption": caption, "split": split, "kind": kind, "place": f"{name}/images"},
                        **{"licence": licence, "article": _article(file, links.get(key, ""))},
                        "cuis": _codes(more["cuis"].get(key, "")),
                        "semtypes": ";".join(more["semtypes"].get(key, "").split("\t")[::2]),  # code, name, code, name, ...
                        "keywords": _codes(more["keywords"].get(key, "")),
                    },
                )

    def licences(self) -> set[str]:
        """Every licence of ``licences.txt``."""
        return {licence for folder in self.folders.values() for licence, _ in self._licences(folder).values() if licence}

    def articles(self) -> Iterator[tuple[str, str]]:
        """From ``licences.txt``, or where that has none from the links."""
        for (split, _), folder in self.folders.items():
            licences, links = self._licences(folder), _pairs(self.reader, folder / "dlinks.txt")
            for key in {**licences, **links}:
                yield _article(licences.get(key, ("", ""))[1], links.get(key, "")), split

    def _licences(self, folder: Path) -> dict[str, tuple[str, str]]:
        """Id -> licence, and the file in its article's package."""
        path = folder / "licences.txt"
        if not path.is_file():
            return {}
        rows = self.reader.good_rows(path, ("ROCO_ID", "PMC_ID", "CC"))
        return {row["ROCO_ID"]: (row["CC"], row["PMC_ID"]) for _, row in rows}


class ArchiveLayout(Layout):
    """ROCOv2 as on Zenodo: ``{train,valid,test}_captions.csv``, ``_concepts.csv`` and ``_images.zip`` (or the unpacked folder).

    Archives are read where they are: nothing is unpacked, and a member whose path leads out is never taken.
    """

    licence = "CC BY or CC BY-NC, by article"

    def __init__(self, raw: Path, reader: TableReader) -> None:
        super().__init__(raw, reader)
        self.tables = {split: raw / f"{split}_captions.csv" for split in SPLITS if (raw / f"{split}_captions.csv").is_file()}
        self.archives: dict[str, zipfile.ZipFile] = {}
        self.members: dict[str, dict[str, list[str]]] = {}
        self.terms = self._read_terms()
        self.has_articles = any(article for article, _ in self.terms.values())

    def rows(self, kinds: Iterable[str]) -> Iterator[tuple[str, Row | BadRow]]:
        """Captions with their concepts, joined by id."""
        if RADIOLOGY not in kinds:
            return
        for split, table in self.tables.items():
            concepts = self._concepts(split)
            for place, row in self.reader.rows(table, ("ID", "Caption")):
                if isinstance(row, BadRow):
                    yield place, row
                    continue
                key = row.get("ID", "")
                article, licence = self.terms.get(key, ("", ""))
                if not key:
                    yield place, BadRow("empty ID")
                    continue
                yield (
                    place,
                    {
                        **{"id": key, "caption": row.get("Caption", ""), "split": parse_split(split), "kind": RADIOLOGY, "place": split},
                        **{"licence": licence, "article": article, "cuis": concepts.get(key, ""), "semtypes": "", "keywords": ""},
                    },
                )

    def licences(self) -> set[str]:
        """Every licence of ``license_information.csv``; without that file none is told."""
        return {licence for _, licence in self.terms.values() if licence}

    def articles(self) -> Iterator[tuple[str, str]]:
        """From ``license_information.csv``."""
        for split, table in self.tables.items():
            for _, row in self.reader.rows(table, ("ID",)):
                if isinstance(row, dict):  # a bad row is named when the captions are read
                    yield self.terms.get(row["ID"], ("", ""))[0], parse_split(split)

    def find(self, row: Row) -> str:
        """In the split's archive, else in a folder of that name."""
        split, key = row["place"], row["id"]
        name = f"{split}_images.zip"
        if (self.raw / name).is_file():
            members = self._members(name).get(fold(key), [])
            if len(members) > 1:
                raise BadRow(f"{name} holds {members[0]} and {members[1]} for one id; keep one of the two")
            if not members:
                raise LeftOut(MISSING)
            if _leads_out(members[0]):
                raise BadRow(f"{name}: member {members[0]!r} leads out of the archive; it is not read")
            return f"{name}:{members[0]}"
        for folder in (f"{split}_images", f"{split}_images/{split}", split, f"{split}/{split}_images", "images"):
            try:
                return super().find({**row, "place": folder})
            except LeftOut:
                continue
        raise LeftOut(MISSING)

    def open(self, place: str) -> Picture:
        """One member of an archive, held in memory alone; or a file."""
        name, colon, member = place.partition(".zip:")
        if not colon:
            return super().open(place)
        try:
            archive = self._archive(f"{name}.zip")
            info = archive.getinfo(member)
            if info.file_size > MAX_MEMBER_BYTES:
                raise BadImage(f"unpacks to {info.file_size:,} bytes, more than {MAX_MEMBER_BYTES:,}; not read")
            if info.compress_type not in BOUNDED:
                raise BadImage("compressed in a way that is not read; pack the archive again with deflate")
            return open_picture(archive.read(info))
        except _ZIP_ERRORS as error:
            raise BadImage(f"damaged in its archive ({_brief(error)}); download the archive again") from None

    def _archive(self, name: str) -> zipfile.ZipFile:
        if name not in self.archives:
            try:
                self.archives[name] = zipfile.ZipFile(inside(self.raw, name))
            except BadImage as fault:
                raise UserError(f"{self.raw / name}: {fault}") from None
            except _ZIP_ERRORS as error:
                raise UserError(f"{self.raw / name}: not a readable zip file ({_brief(error)}); download it again, or unzip it") from None
        return self.archives[name]

    def _members(self, name: str) -> dict[str, list[str]]:
        """Image members by the id that is their file's name."""
        if name not in self.members:
            found: dict[str, list[str]] = {}
            for member in self._archive(name).namelist():
                path = PurePosixPath(member.replace("\\", "/"))
                if path.suffix.lower() in ENDINGS and not is_junk(path.name):  # macOS packs ._name beside name
                    found.setdefault(fold(path.stem), []).append(member)
            self.members[name] = found
        return self.members[name]

    def _concepts(self, split: str) -> dict[str, str]:
        path = self.raw / f"{split}_concepts.csv"
        if not path.is_file():
            return {}
        return {row.get("ID", ""): _codes(row.get("CUIs", "")) for _, row in self.reader.good_rows(path, ("ID", "CUIs"))}

    def _read_terms(self) -> dict[str, tuple[str, str]]:
        """Id -> article and licence, where ``license_information.csv`` is there; its columns are found by what their names begin with."""
        path = self.raw / "license_information.csv"
        if not path.is_file():
            return {}
        names = self.reader.columns(path)
        key = next((name for name in names if re.match(r"(image[ _-]?)?id$|image$|file", name, re.IGNORECASE)), None)
        terms = next((name for name in names if re.match(r"licen[cs]e|cc$", name, re.IGNORECASE)), None)
        if key is None or terms is None:
            wanted = "ID" if key is None else "License"
            raise UserError(f"{path}: no column {wanted!r}; {did_you_mean(wanted, names)}; rename it, or move the file away")
        rows = self.reader.good_rows(path)
        return {PurePosixPath(row[key]).stem: (_article(" ".join(row.values())), row[terms]) for _, row in rows}


class ParquetLayout(Layout):
    """ROCO as on the hub: ``data/{train,validation,test}-*.parquet`` with ``image``, ``image_id``, ``caption``, in v2 ``cui``."""

    has_articles = False

    def __init__(self, raw: Path, reader: TableReader, shards: list[tuple[Path, str]]) -> None:
        super().__init__(raw, reader)
        self.shards = shards
        self.has_concepts = "cui" in read_features(shards[0][0]).names
        self.licence = "CC BY or CC BY-NC, by article" if self.has_concepts else ""
        self.images = {path.relative_to(raw).as_posix(): StoredImages(path, "image", self.lookup) for path, _ in shards}

    def rows(self, kinds: Iterable[str]) -> Iterator[tuple[str, Row | BadRow]]:
        """Captions and concepts; the images stay on the disk."""
        if RADIOLOGY not in kinds:
            return
        columns = ("image_id", "caption", *(("cui",) if self.has_concepts else ()))
        for table, split in self.shards:
            name = table.relative_to(self.raw).as_posix()
            for number, found in enumerate(batches(table, columns, 1024), start=1):
                key = str(found["image_id"] or "").strip()
                if not key:
                    yield f"{name} row {number}", BadRow("empty image_id")
                    continue
                concepts = found.get("cui") or ""
                yield (
                    f"{name} row {number}",
                    {
                        **{"id": key, "caption": str(found["caption"] or ""), "split": split, "kind": RADIOLOGY},
                        **{"place": f"{name}#{number}", "licence": "", "article": ""},
                        "cuis": _codes(";".join(map(str, concepts)) if isinstance(concepts, list) else str(concepts)),
                        **{"semtypes": "", "keywords": ""},
                    },
                )

    def licences(self) -> set[str]:
        """None: the tables tell no licence."""
        return set()

    def find(self, row: Row) -> str:
        """The row itself, where it holds an image or names a file that is there."""
        images, number = self._stored(row["place"])
        try:
            if images.holds(number):
                images.path(number)
                return row["place"]
        except NoFile:
            pass
        raise LeftOut(MISSING)

    def open(self, place: str) -> Picture:
        """The bytes of the row, or the file below ``raw`` that it names."""
        images, number = self._stored(place)
        return images.open(number)

    def _stored(self, place: str) -> tuple[StoredImages, int]:
        name, _, number = place.rpartition("#")
        return self.images[name], int(number)


def _pairs(reader: TableReader, path: Path) -> dict[str, str]:
    """Id -> the rest of its line; empty where there is no such file."""
    if not path.is_file():
        return {}
    return {key.strip(): rest.strip() for key, _, rest in (line.partition("\t") for line in reader.lines(path))}


def _codes(text: str) -> str:
    """Codes or words joined by ``;``, whatever joins them in the file."""
    return ";".join(part.strip() for part in re.split(r"[\t;]", text) if part.strip())


def _article(*texts: str) -> str:
    return next((found[0] for text in texts if (found := _ARTICLE.search(text))), "")


def _leads_out(member: str) -> bool:
    path = PurePosixPath(member.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or bool(re.match(r"[A-Za-z]:", member))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
