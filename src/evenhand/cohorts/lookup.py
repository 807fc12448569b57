"""The file that a table means: file names as different systems and people write them, matched to the names on the disk.

The exact name counts first. Beyond it a name may differ in its separators (``scans\\1.png``), in quotes and blanks around it, in a leading
``./`` or ``/``, in its Unicode form (composed or decomposed), in upper and lower case, and in its ending; then exactly one file must fit.
Each folder is listed once, when the first such name asks for it, and names alone are kept.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from evenhand.cohorts.images import BadImage, inside
from evenhand.cohorts.values import BadRow

PICTURES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp")
UNREAD_PICTURES = (".dcm", ".dicom", ".gif", ".jp2")  # taken where no other fits, so that opening them says why they are not read
VOLUMES = (".nii.gz", ".nii")
MAX_NAME = 1024  # longer cells hold images or prose; no system has such paths in practice
MAX_SHOWN = 100
MAX_SUGGESTIONS = 50  # misses for which near names are looked for: a data set without its images has as many as rows
MAX_NEAR = 500  # names that are compared for one suggestion
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters and bytes that are no text come into no message
_JUNK = frozenset((".ds_store", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"))


class NoFile(BadRow):
    """No file fits what a table names."""


def is_junk(name: str) -> bool:
    """Whether a file or folder is an operating system's own (``._x``, ``.DS_Store``, ``__MACOSX``) or hidden: never data."""
    return name.startswith(".") or name.lower() in _JUNK


def file_in(folder: Path, *names: str) -> Path | None:
    """The file in ``folder`` with the first of ``names`` that is there: as written, else the only one in another case or Unicode form."""
    return _child([path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else [], names)


def folder_in(folder: Path, *names: str) -> Path | None:
    """As ``file_in``, of folders."""
    return _child(subfolders(folder), names)


def _child(entries: Sequence[Path], names: Sequence[str]) -> Path | None:
    for name in names:
        exact = [path for path in entries if path.name == name]
        found = exact or [path for path in entries if fold(path.name) == fold(name) and not is_junk(path.name)]
        if len(found) == 1:
            return found[0]
    return None


def subfolders(folder: Path, *starts: str) -> list[Path]:
    """The folders in ``folder``, hidden ones left out, whose names begin with one of ``starts`` in lower case."""
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.iterdir()) if path.is_dir() and not is_junk(path.name))
    return [path for path in found if not starts or path.name.lower().startswith(starts)]


def fold(name: str) -> str:
    """One form of names that differ in case, in Unicode form or in blanks around them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def split_ending(name: str) -> tuple[str, str]:
    """Stem and ending, where the name ends as an image or a volume does: ``1.2.840`` is an id without an ending."""
    lower = name.lower()
    ending = next((ending for ending in (*VOLUMES, *PICTURES, *UNREAD_PICTURES) if lower.endswith(ending)), "")
    return (name[: len(name) - len(ending)], name[len(name) - len(ending) :]) if len(ending) < len(name) else (name, "")


def tidy(written: str) -> str:
    """A path as this library writes it: ``/`` between its parts, no quotes, blanks, ``./`` or ``//``; a leading ``/`` stays."""
    text = written.strip().strip("\"'").strip().replace("\\", "/")
    return ("/" if text.startswith("/") else "") + "/".join(part for part in text.split("/") if part not in ("", "."))


def shown(written: str) -> str:
    """A cell as a message shows it: in one line, cut where it is long."""
    text = " ".join(written.split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(written):,} characters)"


@dataclass
class _Listing:
    """The names in one folder by their folded form."""

    files: dict[str, list[str]] = field(default_factory=dict)  # of the stem
    folders: dict[str, list[str]] = field(default_factory=dict)
    numbers: dict[tuple[str, ...], list[str]] = field(default_factory=dict)  # files by the numbers in their names

    def alike(self, numbers: tuple[str, ...]) -> list[str]:
        """Files whose names have these numbers, however many zeros are in front of them."""
        if not self.numbers:
            for names in self.files.values():
                for name in names:
                    self.numbers.setdefault(_numbers(split_ending(name)[0]), []).append(name)
        return self.numbers.get(numbers, [])


class Lookup:
    """The files below ``root``, as a table's cells name them; nothing outside of ``root`` is ever found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listings: dict[str, _Listing] = {}
        self.found: dict[str, tuple[int, str, str]] = {}  # how a name differs -> how often, an example, its file
        self.suggestions = 0

    def find(self, written: str, folders: Sequence[str] = (), endings: Sequence[str] = ("",), *, anywhere: bool = False) -> str:
        """The path below ``root`` of the file that ``written`` means, in ``root`` itself or in one of ``folders``.

        Args:
            written: a cell: a path, or an id without an ending.
            folders: where to look, in turn, besides ``root``.
            endings: what may be added to ``written``, the likeliest first.
            anywhere: a bare name may lie in any one folder of ``root``.

        Raises:
            NoFile: there is none.
            BadRow: the path leads out of ``root``, or several files fit.
        """
        path = self.seek(written, folders, endings, anywhere=anywhere)
        if path is None:
            raise NoFile(self._missing(tidy(written).lstrip("/"), folders, endings))
        return path

    def seek(self, written: str, folders: Sequence[str] = (), endings: Sequence[str] = ("",), *, anywhere: bool = False) -> str | None:
        """As ``find``, but None where no file fits.

        Raises:
            NoFile: the cell cannot be a path at all.
            BadRow: the path leads out of ``root``, or several files fit.
        """
        if (why := _no_path(written)) is not None:
            raise NoFile(f"{shown(written)}: {why}")
        try:
            path = self._exact(written, folders, endings)
        except BadRow:
            path = self._rooted(written, endings)
            if path is None:
                raise
        name = tidy(written).lstrip("/")
        path = path or self._loose(name, folders, endings)
        if path is None and anywhere and "/" not in name:
            path = self._loose(name, [folder.name for folder in subfolders(self.root)], endings, first=False)
            if path:
                self._note("without the folder that they lie in", name, path)
        if path is None and re.search(r"(?:^|/)\d+\.0$", name):  # an id that a table of numbers has made 12.0
            path = self.seek(name.removesuffix(".0"), folders, endings, anywhere=anywhere)
            self._note("as a number with a point" if path else None, name, str(path))
        if path and is_junk(path.rsplit("/", maxsplit=1)[-1]):
            raise BadRow(f"{shown(written)}: a hidden file, such as macOS writes beside others, is no image; remove the row")
        return path

    def notes(self) -> list[str]:
        """How often a file's name differs from the table's, with an example of each kind."""
        return [
            f"{number} images are named in the table {how}, such as {name!r} for {path!r}"
            for how, (number, name, path) in self.found.items()
        ]

    def names(self, folder: str) -> list[str]:
        """Names of the files in one folder below ``root``, hidden ones left out, sorted; none where there is no such folder."""
        return sorted(name for names in self._list(folder).files.values() for name in names)

    def _exact(self, written: str, folders: Sequence[str], endings: Sequence[str]) -> str | None:
        for folder in ("", *folders):  # the bare name first: an absolute one must not hide behind a folder
            for ending in endings:
                name = _join(folder, f"{written}{ending}")
                try:
                    if inside(self.root, name).is_file():
                        return PurePosixPath(name).as_posix()
                except BadImage as fault:
                    raise BadRow(f"{shown(name)}: {fault}") from None
                except OSError:  # a part too long for the file system
                    return None
        return None

    def _rooted(self, written: str, endings: Sequence[str]) -> str | None:
        """The file that a leading ``/`` means where that stands for the data folder; a path of this machine is none."""
        name = tidy(written)
        if not name.startswith("/") or PureWindowsPath(written).drive or ".." in name.split("/"):
            return None
        return self._loose(name.lstrip("/"), (), endings)

    def _loose(self, name: str, folders: Sequence[str], endings: Sequence[str], *, first: bool = True) -> str | None:
        """The file that fits beyond the exact name; one alone, of those that are nearest. None where nothing fits.

        ``first``: of files that have exactly the tidied name in several folders, the first counts.
        """
        stem, own = split_ending(name)
        wanted = [_join(folder, f"{name}{ending}") for folder in ("", *folders) for ending in dict.fromkeys((*endings, ""))]
        exact = [path for path in wanted if self._is_file(path)]
        if exact and first:
            return exact[0]
        family = VOLUMES if {own.lower(), *endings} & set(VOLUMES) else (*PICTURES, *UNREAD_PICTURES)
        paths = dict.fromkeys(path for folder in ("", *folders) for path in self._candidates(_join(folder, stem), family))
        same, alike = {_nfc(path) for path in wanted}, {fold(path) for path in wanted}
        ranks = {path: 0 if _nfc(path) in same else 1 if fold(path) in alike else 3 if _is_unread(path) else 2 for path in paths}
        fits = [path for path, rank in ranks.items() if rank == min(ranks.values())]
        if len(fits) > 1:
            raise BadRow(f"{shown(name)}: {fits[0]} and {fits[1]} both fit; write the one that is meant")
        if fits:
            self._note(_difference(name, fits[0]), name, fits[0])
            return fits[0]
        top, _, rest = name.partition("/")
        return self._loose(rest, folders, endings) if rest and fold(top) == fold(self.root.resolve().name) else None

    def _is_file(self, path: str) -> bool:
        try:
            return inside(self.root, path).is_file()
        except BadImage as fault:
            raise BadRow(f"{shown(path)}: {fault}") from None
        except OSError:
            return False

    def _candidates(self, stem: str, family: Sequence[str]) -> Iterator[str]:
        """Files with the stem's folded path, with any ending of the family."""
        *parts, last = stem.split("/")
        folders = [""]
        for part in parts:
            folders = [_join(folder, name) for folder in folders for name in self._list(folder).folders.get(fold(part), ())]
        for folder in folders:
            for name in self._list(folder).files.get(fold(last), ()):
                if split_ending(name)[1].lower() in family and self._is_file(path := _join(folder, name)):
                    yield path

    def _list(self, folder: str) -> _Listing:
        """The names in one folder below ``root``, read once."""
        if folder not in self.listings:
            listing = self.listings[folder] = _Listing()
            try:
                with os.scandir(inside(self.root, folder)) as entries:
                    found = sorted((entry.name, entry.is_dir()) for entry in entries if not is_junk(entry.name))
            except (OSError, BadImage):
                found = []
            for name, is_folder in found:
                if not _UNPRINTABLE.search(name):
                    key, kind = (fold(name), listing.folders) if is_folder else (fold(split_ending(name)[0]), listing.files)
                    kind.setdefault(key, []).append(name)
        return self.listings[folder]

    def _note(self, how: str | None, name: str, path: str) -> None:
        if how is not None:
            number, example, file = self.found.get(how, (0, shown(name), shown(path)))
            self.found[how] = (number + 1, example, file)

    def _missing(self, name: str, folders: Sequence[str], endings: Sequence[str]) -> str:
        """What to say of a file that is not there, with the nearest name that is."""
        near = self._near(name, folders) if self.suggestions < MAX_SUGGESTIONS else None
        self.suggestions += 1
        hint = f"; did you mean {near}?" if near else ""
        return f"{shown(name)}{endings[0]}: no such file in {', '.join(folders) or 'the data folder'}{hint}"

    def _near(self, name: str, folders: Sequence[str]) -> str | None:
        """A file with the same numbers and nearly the same letters, or with the same name in another folder."""
        stem = split_ending(name)[0]
        parent, _, last = stem.rpartition("/")
        places = [_join(folder, parent) for folder in ("", *folders)]
        for place in places:
            alike = self._list(place).alike(_numbers(last))[:MAX_NEAR]
            letters = {_letters(split_ending(other)[0]): other for other in alike}
            found = difflib.get_close_matches(_letters(last), letters, n=1, cutoff=0.7)
            if found:
                return _join(place, letters[found[0]])
        for folder in ("", *sorted(name for names in self._list("").folders.values() for name in names)[:MAX_SUGGESTIONS]):
            if there := self._list(folder).files.get(fold(last)):
                return _join(folder, there[0])
        return None


def _no_path(written: str) -> str | None:
    """Why a cell cannot be a path at all; None where it can."""
    start = written.lstrip()[:12].lower()
    if "://" in start or start.startswith("www."):
        return "a web address, no file; download the images and name the files"
    if start.startswith(("{'", '{"', "data:")) or (start.startswith(("{", "[", "b'", 'b"')) and len(written) > MAX_SHOWN):
        return "an image written as text, no file name; save images as files, or as image bytes in Parquet"
    if len(written) > MAX_NAME or len(written.splitlines()) > 1:
        return "not a file name; name the column of the image paths, or save images that stand in the table as files"
    return None


def _difference(name: str, path: str) -> str | None:
    """How the name in the table differs from the file's, folders in front of it aside."""
    (stem, own), (there, ending) = split_ending(name), split_ending(path)
    if own and own.lower() != ending.lower():
        return "with another ending than on the disk"
    if not _nfc(there).endswith(_nfc(stem)) or (own and own != ending):
        return "in another case than on the disk"
    return None if there.endswith(stem) else "in another Unicode form than on the disk"


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_unread(path: str) -> bool:
    return split_ending(path)[1].lower() in UNREAD_PICTURES


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _numbers(stem: str) -> tuple[str, ...]:
    return tuple(number.lstrip("0") for number in re.findall(r"\d+", stem))


def _letters(stem: str) -> str:
    return re.sub(r"[\d\W_]+", "", fold(stem))
