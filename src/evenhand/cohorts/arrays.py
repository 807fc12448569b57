"""NumPy archives of unknown origin: one array at a time, refused from its header where it is not what it claims, never unpickled."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from evenhand.cohorts.images import MAX_PIXELS

MAX_BYTES = 3 * MAX_PIXELS
VALUE_BYTES = 65_536  # of an array that holds one value
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks these piece by piece, others as far as they go
_HEADER_BYTES = 16_384  # NumPy itself reads headers of at most 10,000 bytes
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# what zipfile, its decompressors and NumPy's header parser raise on damaged files; encryption and deep nesting are RuntimeErrors
_PARSE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError, TypeError),
    *(SyntaxError, RuntimeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, tokenize.TokenError),
)


class BadArray(Exception):
    """Why an array is not read, in a few words and without the file's name."""


class PickledArray(BadArray):
    """An array of Python objects: to read it is to run what it holds."""


def array_shape(archive: Path, key: str, max_bytes: int = MAX_BYTES) -> tuple[int, ...] | None:
    """The shape of one array of an ``.npz`` file, from its header; None where there is no such key.

    Raises:
        PickledArray: an array of Python objects.
        BadArray: no NumPy archive, damaged, truncated, or larger than ``max_bytes``.
    """
    with _opened(archive) as file:
        return _checked_shape(file, key, max_bytes)


def read_array(archive: Path, key: str, max_bytes: int = MAX_BYTES) -> np.ndarray | None:
    """One array of an ``.npz`` file; None where there is no such key.

    Raises:
        PickledArray, BadArray: as ``array_shape``.
    """
    with _opened(archive) as file:
        if _checked_shape(file, key, max_bytes) is None:
            return None
        with file.open(f"{key}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def read_value(archive: Path, key: str) -> str | None:
    """An array of one value, such as a 0-d array, as text; None where there is no such key.

    Raises:
        PickledArray, BadArray: as ``array_shape``; or several values.
    """
    array = read_array(archive, key, VALUE_BYTES)
    if array is None:
        return None
    if array.size != 1:
        raise BadArray(f"array {key!r} has shape {array.shape}; one value is wanted")
    value = array.reshape(-1)[0].item()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    return str(int(value) if isinstance(value, bool) else value).strip()


def array_image(array: np.ndarray) -> Image.Image:
    """Pixels (H, W), (H, W, C) or (C, H, W), with 1 or 3 channels, as an 8-bit image. Floats up to 1 are scaled by 255.

    Raises:
        BadArray: another shape, no numbers, or values outside 0..255.
    """
    pixels = array
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)  # (C, H, W) -> (H, W, C)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] != 3) or not pixels.size:
        raise BadArray(f"an array of shape {array.shape} is no image")
    if pixels.dtype.kind not in "uif":
        raise BadArray(f"an array of type {pixels.dtype} is no image")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise BadArray(f"{pixels.shape[1]:,} x {pixels.shape[0]:,} pixels, more than {MAX_PIXELS:,}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 255):  # NaN too
        raise BadArray(f"pixels from {low:g} to {high:g}; 0 to 255 is wanted")
    scale = 255 if pixels.dtype.kind == "f" and high <= 1 else 1
    return Image.fromarray(np.ascontiguousarray(np.round(pixels * scale) if pixels.dtype.kind == "f" else pixels).astype(np.uint8))


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except _PARSE_ERRORS as error:
        raise BadArray(f"no readable NumPy archive ({' '.join(str(error).split())[:100] or type(error).__name__})") from None


def _checked_shape(file: zipfile.ZipFile, key: str, max_bytes: int) -> tuple[int, ...] | None:
    """The shape that the header claims, once it is known to hold plain values that are all there."""
    member = f"{key}.npy"
    if member not in file.namelist():
        return None
    if file.getinfo(member).compress_type not in BOUNDED:
        raise BadArray(f"array {key!r} is compressed in a way that numpy.savez never uses; not read")
    stored = file.getinfo(member).file_size  # zipfile unpacks no more than this
    if stored > max_bytes + _HEADER_BYTES:
        raise BadArray(f"array {key!r} unpacks to {stored:,} bytes, more than {max_bytes:,}; not read")
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise BadArray(f"array {key!r} is of format {version[0]}.{version[1]}; save it again with numpy.savez")
        shape, _, dtype = _HEADERS[version](stream)
        held = stored - stream.tell()
    if dtype.hasobject:
        raise PickledArray(f"array {key!r} holds pickled Python objects and is not read; save it as plain text or numbers")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size > max_bytes:
        raise BadArray(f"array {key!r} claims shape {shape} and {size:,} bytes, more than {max_bytes:,}; not read")
    if size > held:
        raise BadArray(f"array {key!r} claims shape {shape} and {size:,} bytes, but holds {held:,}; restore the file")
    return shape
