"""Text files of unknown origin: other kinds of file are named, the encoding is found, and packed text unpacks within bounds."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from evenhand.core.errors import UserError

MAX_LINE = 32_000_000  # characters
MIN_UNPACKED = 32_000_000  # bytes that any .gz file may unpack to
MAX_RATIO = 50  # above them: so many times its size; tables pack 5 to 20 times
_CHUNK = 1 << 20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]")
_NOT_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x19\x1c-\x1f]")

_UNPACK = "unpack it first"
_SAVE = "save its table as CSV, Excel (.xlsx) or Parquet"
# ending -> what it is, and the remedy
UNREADABLE = {
    ".xls": ("an old Excel workbook", "open it and save it as .xlsx or CSV"),
    ".xlsb": ("a binary Excel workbook", "open it and save it as .xlsx or CSV"),
    ".ods": ("an OpenDocument table", "save it as .xlsx or CSV"),
    ".numbers": ("a Numbers table", "export it as CSV"),
    ".sav": ("an SPSS file", "save it as CSV from SPSS or with pandas.read_spss"),
    ".dta": ("a Stata file", "save it as CSV from Stata or with pandas.read_stata"),
    ".sas7bdat": ("a SAS file", "save it as CSV from SAS or with pandas.read_sas"),
    ".rds": ("an R file", "save it in R with write.csv"),
    ".rdata": ("an R file", "save it in R with write.csv"),
    ".mat": ("a MATLAB file", "save its table as CSV with writetable"),
    ".feather": ("a Feather file", "save it as Parquet, with pandas.read_feather(...).to_parquet(...)"),
    ".arrow": ("an Arrow file", "save it as Parquet"),
    ".h5": ("an HDF5 file", _SAVE),
    ".hdf5": ("an HDF5 file", _SAVE),
    ".sqlite": ("a database", _SAVE),
    ".db": ("a database", _SAVE),
    ".pkl": ("a pickle, which is never opened since it can run code", _SAVE),
    ".pickle": ("a pickle, which is never opened since it can run code", _SAVE),
    ".pt": ("a pickle, which is never opened since it can run code", _SAVE),
    ".zip": ("a zip archive", _UNPACK),
    ".tar": ("an archive", _UNPACK),
    ".tgz": ("an archive", _UNPACK),
    ".bz2": ("packed with bzip2", "unpack it, or pack it with gzip"),
    ".xz": ("packed with xz", "unpack it, or pack it with gzip"),
    ".zst": ("packed with zstd", "unpack it, or pack it with gzip"),
    ".7z": ("an archive", _UNPACK),
    ".rar": ("an archive", _UNPACK),
    ".docx": ("a text document", _SAVE),
    ".doc": ("a text document", _SAVE),
    ".pdf": ("a PDF document", _SAVE),
    ".html": ("a web page", _SAVE),
    ".xml": ("an XML file", _SAVE),
}
# how other kinds of file begin, whatever their names say
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive", "rename a workbook to .xlsx, unpack an archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook, or one with a password", "save it as .xlsx without a password, or as CSV"),
    (b"PAR1", "a Parquet file", "rename it to .parquet"),
    (b"\x1f\x8b", "packed with gzip", "rename it so that it ends in .csv.gz, or unpack it"),
    (b"BZh", "packed with bzip2", "unpack it, or pack it with gzip"),
    (b"\xfd7zXZ", "packed with xz", "unpack it, or pack it with gzip"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it, or pack it with gzip"),
    (b"ARROW1", "an Arrow or Feather file", "save it as Parquet"),
    (b"FEA1", "a Feather file", "save it as Parquet"),
    (b"$FL2", "an SPSS file", "save it as CSV from SPSS or with pandas.read_spss"),
    (b"<stata_dta>", "a Stata file", "save it as CSV from Stata or with pandas.read_stata"),
    (b"\x89HDF", "an HDF5 file", _SAVE),
    (b"SQLite format 3", "a database", _SAVE),
    (b"\x80\x04", "a pickle, which is never opened since it can run code", _SAVE),
    (b"\x80\x05", "a pickle, which is never opened since it can run code", _SAVE),
    (b"\x93NUMPY", "a NumPy array", _SAVE),
    (b"%PDF", "a PDF document", _SAVE),
    (b"{\\rtf", "a text document", _SAVE),
    (b"\x89PNG", "an image", "name the table"),
    (b"\xff\xd8\xff", "an image", "name the table"),
    (b"<!doctype html", "a web page, such as a login or an error page", "download the table again"),
    (b"<html", "a web page, such as a login or an error page", "download the table again"),
    (b"<?xml", "an XML file", _SAVE),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with 'git lfs pull'"),
)


@dataclass(frozen=True)
class TextFile:
    """A text file whose encoding is known; ``note`` tells where it was guessed."""

    path: Path
    codec: str
    note: str = ""

    @contextmanager
    def open(self, newline: str = "") -> Iterator[io.TextIOWrapper]:
        """The text with its line ends as they are; ``newline`` is the only one that ends a line, by default any."""
        with _opened(self.path) as raw, io.TextIOWrapper(raw, encoding=self.codec, newline=newline) as text:
            yield text


def open_text(path: Path, encoding: str | None = None, remedy: str = "save it as UTF-8") -> TextFile:
    """Find how a text file is encoded: as ``encoding`` says, else by its first bytes, as UTF-8, or as cp1252 or latin-1 with a note.

    Args:
        remedy: what to do about a wrong guess, as it stands in notes and errors.

    Raises:
        UserError: another kind of file, damaged, or not text in the encoding that was named.
    """
    with _opened(path) as raw:
        head = raw.read(65_536)
    refuse_other_kinds(path, head)
    if not head:
        raise UserError(f"{path}: the file is empty; restore it or name another table")
    bom = next((codec for start, codec in _BOMS if head.startswith(start)), None)
    if encoding:
        codec = bom if bom and codecs.lookup(encoding).name.replace("_", "-").startswith(bom[:5]) else encoding
        return _checked(TextFile(path, codec), encoding, "name its real encoding with --encoding")
    if bom:
        return _checked(TextFile(path, bom), bom.removesuffix("-sig").upper(), remedy)
    if b"\0" in head:
        return _checked(_wide(path, head), "UTF-16", remedy)
    return _guessed(path, remedy)


def is_encoding(name: str) -> bool:
    """Whether Python knows a text encoding of this name."""
    try:
        "".encode(name)
    except (LookupError, ValueError):  # UnicodeError is a ValueError
        return False
    return True


def refuse_other_kinds(path: Path, head: bytes) -> None:
    """Raise ``UserError`` for a file that begins as something else than text does, with the remedy."""
    start = head[:64].lstrip().lower()
    for magic, kind, remedy in _MAGIC:
        if head.startswith(magic) or (magic.isascii() and magic[:1] == b"<" and start.startswith(magic)):
            raise UserError(f"{path}: {kind}, not text; {remedy}")


def _wide(path: Path, head: bytes) -> TextFile:
    """Two bytes a character without a mark: where the NUL bytes are tells which comes first."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    for codec, many, few in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if many > 0.3 * half and few < 0.05 * half:
            return TextFile(path, codec, f"{path.name}: read as {codec.upper()}, which it does not say itself")
    line = head[: head.index(0)].count(b"\n") + 1
    raise UserError(f"{path}: NUL bytes (the first in line {line}): no text, or a damaged file; restore it")


def _guessed(path: Path, remedy: str) -> TextFile:
    decoder = codecs.getincrementaldecoder("utf-8")()
    valid, letters, high, cp1252, lines, where = True, 0, 0, True, 1, 0
    with _opened(path) as raw:
        while chunk := raw.read(_CHUNK):
            if 0 in chunk:
                line = lines + chunk[: chunk.index(0)].count(b"\n")
                raise UserError(f"{path}: NUL bytes (the first in line {line}): no text, or a damaged file; restore it")
            if valid:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    valid, where = False, lines + chunk[: max(0, error.start)].count(b"\n")
            lines += chunk.count(b"\n")
            if chunk.isascii() and valid:
                continue
            letters += len(_UTF8_LETTER.findall(chunk))
            high += len(_HIGH.findall(_UTF8_LETTER.sub(b"", chunk)))
            cp1252 = cp1252 and not _NOT_CP1252.search(chunk)
            if not valid and _CONTROL.search(chunk):
                raise UserError(f"{path}: control characters among its bytes: no text, or a damaged file; restore it")
    if valid and not decoder.getstate()[0]:
        return TextFile(path, "utf-8")
    if letters >= max(high, 1):
        raise UserError(f"{path}: UTF-8, but for some bytes (the first in line {where or lines}); mend them, or {remedy}")
    codec = "cp1252" if cp1252 else "latin-1"
    return TextFile(path, codec, f"{path.name}: not UTF-8, read as {codec}; where letters are wrong, {remedy}")


def _checked(text: TextFile, name: str, remedy: str) -> TextFile:
    """The same, once all of it is known to decode."""
    line = 1
    try:
        with text.open() as file:
            while chunk := file.read(_CHUNK):
                if "\0" in chunk:
                    line += chunk[: chunk.index("\0")].count("\n")
                    raise UserError(f"{text.path}: NUL characters (the first in line {line}): no text, or a damaged file; {remedy}")
                line += chunk.count("\n")
    except UnicodeError as error:  # some codecs raise no UnicodeDecodeError
        why = getattr(error, "reason", "") or str(error)
        raise UserError(f"{text.path}: not {name} text ({why[:60]}, near line {line}); {remedy}") from None
    return text


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            raise UserError(f"{path}: not packed with gzip, as its name says; take .gz off its name, or restore it")
    with gzip.open(path) as packed, io.BufferedReader(_Bounded(packed, path)) as file:
        yield file


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to, up to a bound that no table reaches."""

    def __init__(self, packed: gzip.GzipFile, path: Path) -> None:
        self.packed, self.path, self.read_so_far = packed, path, 0
        self.limit = max(MIN_UNPACKED, MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        """Always: this is what BufferedReader asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill ``buffer``, or refuse to unpack any further."""
        data = self.packed.read(len(buffer))
        self.read_so_far += len(data)
        if self.read_so_far > self.limit:
            raise UserError(f"{self.path}: unpacks to more than {self.limit:,} bytes; unpack it yourself if it is a table")
        buffer[: len(data)] = data
        return len(data)
