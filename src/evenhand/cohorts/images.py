"""Images of unknown origin: refused from their header where they are not what they claim, decoded only then."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # a chest radiograph has about 10 million; a bomb of a few kB unfolds to billions
EMPTY = "empty file (0 bytes)"
# what Pillow's parsers raise on damaged files besides OSError
_PARSE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError)


class BadImage(Exception):
    """Why a file is not taken as an image, in a few words and without the file's name."""


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


def open_verified(path: Path) -> Image.Image:
    """Decode one image after its header was checked for format and size.

    Raises:
        BadImage: missing, empty, of no known format, too large, truncated or damaged.
    """
    if not path.is_file():
        raise BadImage("no such file")
    if path.stat().st_size == 0:
        raise BadImage(EMPTY)
    return _decoded(path)


def decode_verified(data: bytes) -> Image.Image:
    """As ``open_verified``, for an image that lies in an archive or a table.

    Raises:
        BadImage: see ``open_verified``.
    """
    if not data:
        raise BadImage(EMPTY)
    return _decoded(io.BytesIO(data))


def _decoded(file: Path | IO[bytes]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(file, formats=FORMATS)  # reads the header only
    except Image.DecompressionBombError:
        raise BadImage(f"header claims more than {MAX_PIXELS:,} pixels; not decoded") from None
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image ({', '.join(FORMATS)} are read)") from None
    except _PARSE_ERRORS as error:
        raise BadImage(f"unreadable header ({_brief(error)})") from None
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"header claims {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}; not decoded")
        try:
            image.load()
        except _PARSE_ERRORS as error:
            raise BadImage(f"truncated or damaged ({_brief(error)})") from None
        return ImageOps.exif_transpose(image) if image.format == "JPEG" else image.copy()


def image_mode(image: Image.Image) -> Literal["L", "RGB"]:
    """How a cohort that begins with this image keeps its images: one channel where there is no colour."""
    return "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB"


def default_size(image: Image.Image) -> int:
    """The shorter side, at most 512 pixels."""
    return min(512, *image.size)


def prepare(image: Image.Image, size: int, mode: Literal["L", "RGB"], *, drop_colour: bool = True) -> Image.Image:
    """Square from the centre, ``size`` pixels wide, 8 bit a channel in ``mode``.

    Raises:
        BadImage: floating-point pixels; colour where ``mode`` is grayscale and ``drop_colour`` is False.
    """
    if image.mode == "F":
        raise BadImage("floating-point pixels; convert the image to 8 or 16 bit")
    if image.mode.startswith("I"):  # Pillow clips 16 bit at 255 instead of scaling it
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if mode == "L" and not drop_colour and _is_coloured(image):
        raise BadImage("colour image in a grayscale cohort; set mode to RGB to keep colour, or to L to drop it")
    image = image.convert(mode)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def _is_coloured(image: Image.Image) -> bool:
    """Whether channels differ by more than JPEG's rounding; a grayscale image saved as RGB has no colour."""
    if image_mode(image) == "L":
        return False
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool((pixels.max(axis=-1) - pixels.min(axis=-1)).max() > 8)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
