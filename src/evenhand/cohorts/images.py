"""Images of unknown origin: refused from their header where they are not what they claim, decoded only then."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image, ImageFile

from evenhand.cohorts.decoding import DECODE_ERRORS, BadImage, Raster, brief, decode, is_deep

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # a chest radiograph has about 10 million; a bomb of a few kB unfolds to billions
EMPTY = "empty file (0 bytes)"
DICOM = "DICOM is not read; convert it to 16-bit PNG (DCMTK: dcmj2pnm --write-16-bit-png) and name the PNG in the table"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

__all__ = ["BadImage", "Picture", "Raster", "inside", "open_picture", "open_verified"]


def inside(folder: Path, name: str) -> Path:
    """The file that ``name`` means below ``folder``.

    Raises:
        BadImage: an absolute path, a path with ``..``, or one that leads outside, through a link too.
    """
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
        raise BadImage("absolute path; write it relative to the data folder")
    if ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise BadImage("path leads out of the data folder ('..'); put the file inside it")
    if "\0" in name:
        raise BadImage("path holds a zero byte")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadImage("path leads out of the data folder through a link; copy the file into it")
    return path


@dataclass(frozen=True)
class Picture:
    """An image whose header was checked for format and size; its pixels are decoded on demand."""

    file: Path | bytes
    deep: bool  # more than 8 bits, or signed

    def decode(self) -> Raster:
        """The pixels, upright.

        Raises:
            BadImage: truncated or damaged, or of a kind that is not read.
        """
        with _opened(self.file) as image:
            return decode(image, self.file)


def open_picture(file: Path | bytes) -> Picture:
    """Check the header of one image; ``bytes`` is an image that lies in an archive or a table.

    Raises:
        BadImage: missing, empty, of no known format, or too large.
    """
    with _opened(file) as image:
        try:
            return Picture(file, is_deep(image))
        except DECODE_ERRORS as error:
            raise BadImage(f"unreadable header ({brief(error)})") from None


def open_verified(path: Path) -> Image.Image:
    """The pixels of one image as its file has them.

    Raises:
        BadImage: missing, empty, of no known format, too large, truncated or damaged.
    """
    with _opened(path) as image:
        try:
            image.load()
        except DECODE_ERRORS as error:
            raise BadImage(f"truncated or damaged ({brief(error)})") from None
        return image.copy()


def _opened(file: Path | bytes) -> ImageFile.ImageFile:
    """The image with its header read and checked, and no pixel decoded."""
    if isinstance(file, Path) and not file.is_file():
        raise BadImage("no such file")
    if (file.stat().st_size if isinstance(file, Path) else len(file)) == 0:
        raise BadImage(EMPTY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit of pixels is lower; damaged EXIF is no concern of the reader's
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"header claims more than {MAX_PIXELS:,} pixels; not decoded") from None
    except Image.UnidentifiedImageError:
        raise BadImage(_stranger(file)) from None
    except DECODE_ERRORS as error:
        raise BadImage(f"unreadable header ({brief(error)})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise BadImage(f"header claims {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}; not decoded")
    return image


def _stranger(file: Path | bytes) -> str:
    """What a file is that no format is known for, with what to do."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            start = stream.read(132)
    else:
        start = file[:132]
    if start[128:132] == b"DICM" or (isinstance(file, Path) and file.suffix.lower() in (".dcm", ".dicom")):
        return DICOM
    if start.startswith(_TIFF_STARTS):
        return "this kind of TIFF is not read, or it is damaged; save it as PNG, or as TIFF of 8 or 16 bits"
    return f"not an image ({', '.join(FORMATS)} are read)"
