"""Pixels of an image file as they are meant: upright, black as 0, transparent ones black, no channel cut to 8 bits."""

from __future__ import annotations

import io
import struct
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

# remarks on an image, as the notes of an import say them
PALETTE, TRANSPARENT, INVISIBLE, CMYK, LAB = "palette", "transparency", "wholly transparent", "CMYK", "CIELAB"
FRAMES, BAD_EXIF = "frames", "damaged EXIF"
# What Pillow's parsers raise on damaged files besides OSError; MemoryError where a part claims to be gigabytes long.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError, MemoryError)
_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation -> what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags
_HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 257, 258, 262, 277, 284, 339
_LEAST, _LARGEST, _S_LEAST, _S_LARGEST = 280, 281, 340, 341
_UNSIGNED, _SIGNED = 1, 2
_LITTLE = sys.byteorder == "little"
# Pillow keeps the upper byte of 16-bit colour; raw modes that read the lower one instead
_LOWER = {"16B": "16L", "16L": "16B", "16N": "16B" if _LITTLE else "16L"}
# libtiff hands over numbers in the machine's order, whatever the file's is
_NATIVE = {"I;16BS": "I;16NS", "I;16S": "I;16NS", "I;32BS": "I;32NS", "I;32S": "I;32NS", "F;32BF": "F;32NF", "F;32F": "F;32NF"}
_NATIVE |= {"F;64BF": "F;64NF", "F;64F": "F;64NF"}


class BadImage(Exception):
    """Why a file is not taken as an image, in a few words and without the file's name."""


def _know_more_tiffs() -> None:
    """Gray TIFFs that Pillow can unpack but does not list: white as zero, big-endian of 12 and 32 bits, signed."""
    for order, big in ((b"II", False), (b"MM", True)):
        for photometric in (0, 1):
            kinds: dict[tuple[int, int], tuple[str, str]] = {
                (_UNSIGNED, 12): ("I;16", "I;12"),
                (_UNSIGNED, 16): ("I;16B", "I;16B") if big else ("I;16", "I;16"),
                (_SIGNED, 16): ("I", "I;16BS" if big else "I;16S"),
                (_UNSIGNED, 32): ("I", "I;32BS" if big else "I;32S"),
                (_SIGNED, 32): ("I", "I;32BS" if big else "I;32S"),
                (3, 64): ("F", "F;64BF" if big else "F;64F"),
                (_SIGNED, 8): ("L", "L"),
            }
            for (sample_format, bits), modes in kinds.items():
                TiffImagePlugin.OPEN_INFO.setdefault((order, photometric, (sample_format,), 1, (bits,), ()), modes)


_know_more_tiffs()


@dataclass(frozen=True)
class Raster:
    """One decoded image, upright: an 8-bit image (mode L or RGB), or grey values that a window has yet to bring to 8 bits."""

    image: Image.Image | None
    levels: np.ndarray | None = None  # (H, W) or (H, W, 3), as stored
    alpha: np.ndarray | None = None  # (H, W) in [0, 1], of ``levels``
    inverted: bool = False  # ``levels`` count from white
    declared: tuple[float, float] | None = None  # the range of ``levels`` that the file declares
    remarks: frozenset[str] = frozenset()

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """One channel where the file has no colour."""
        if self.image is not None:
            return "L" if self.image.mode == "L" else "RGB"
        assert self.levels is not None
        return "L" if self.levels.ndim == 2 else "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        if self.image is not None:
            return self.image.size
        assert self.levels is not None
        return self.levels.shape[1], self.levels.shape[0]

    @property
    def visible(self) -> np.ndarray:
        """The grey values of pixels that are not transparent."""
        assert self.levels is not None
        return self.levels if self.alpha is None else self.levels[self.alpha > 0]


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether an opened image has more than 8 bits a channel, or signed values, from its header alone."""
    if image.mode.startswith("I") or image.mode == "F" or _deep_raw_mode(image):
        return True
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_FORMAT, (_UNSIGNED,))[0] == _SIGNED


def decode(image: ImageFile.ImageFile, file: Path | bytes) -> Raster:
    """Decode an image whose header was read and checked.

    Raises:
        BadImage: truncated, damaged, or of a kind that is not read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on damaged EXIF
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                image.filename = ""  # else Pillow maps the file into memory, with width for height where it is turned
                _check_tiff(image, image.tag_v2)
            remarks = {FRAMES} if getattr(image, "is_animated", False) and image.format != "MPO" else set()
            return _deep(image, file, remarks) if is_deep(image) else _plain(image, remarks)
    except Image.DecompressionBombError:
        raise BadImage("unpacks to more pixels than its header claims; not decoded") from None
    except (*DECODE_ERRORS, ImageCms.PyCMSError) as error:
        raise BadImage(f"truncated or damaged ({brief(error)})") from None


def brief(error: Exception) -> str:
    """An error's message in one short line."""
    text = "".join(character if character.isprintable() else " " for character in str(error))  # parsers quote the file's bytes
    return " ".join(text.split())[:100] or type(error).__name__


def _plain(file: ImageFile.ImageFile, remarks: set[str]) -> Raster:
    """Images of up to 8 bits a channel, as gray or RGB; transparent pixels lie on black."""
    key = _transparent_value(file)
    file.load()
    turn = _turn(file, remarks)
    image = _without_palette(file, remarks)
    if image.mode == "CMYK":
        remarks.add(CMYK)
    if image.mode == "LAB":
        remarks.add(LAB)
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, to_rgb) or image
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    gray = image.mode in ("1", "L", "LA")
    pixels = image.convert("L" if gray else "RGB")
    if key is not None:
        samples = np.asarray(pixels).reshape(pixels.height, pixels.width, -1)
        alpha = Image.fromarray(np.where((samples == np.array(key)).all(axis=-1), 0, 255).astype(np.uint8))
    if alpha is not None and alpha.getextrema()[0] != 255:
        if alpha.getextrema()[1] == 0:  # such a channel was never filled: programs show the image
            remarks.add(INVISIBLE)
        else:
            remarks.add(TRANSPARENT)
            pixels = Image.composite(pixels, Image.new(pixels.mode, pixels.size), alpha)
    if turn is not None:
        pixels = pixels.transpose(turn)
    pixels.info = {}  # such as a transparent colour, which would be written out again
    return Raster(pixels, remarks=frozenset(remarks))


def _without_palette(image: Image.Image, remarks: set[str]) -> Image.Image:
    """The colours that a palette stands for; gray where all that are used are gray."""
    if image.mode not in ("P", "PA"):
        return image
    remarks.add(PALETTE)
    has_alpha = image.mode == "PA" or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB")
    colours = np.asarray(image)[..., :3]
    if (colours == colours[..., :1]).all():
        image = image.convert("LA" if has_alpha else "L")
    return image


def _transparent_value(image: ImageFile.ImageFile) -> tuple[int, ...] | None:
    """The one gray value or colour that a PNG declares as transparent, as its decoded channels have it."""
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None or image.mode not in ("1", "L", "RGB", "I;16", "I"):
        return None
    scale = {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)  # Pillow stretches the samples, but not this value
    return tuple(int(number) * scale for number in (value if isinstance(value, tuple) else (value,)))


def _deep(image: ImageFile.ImageFile, file: Path | bytes, remarks: set[str]) -> Raster:
    """Images of more than 8 bits a channel, their values as stored."""
    key = _transparent_value(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    if tags is not None and image.tile[0].codec_name == "libtiff":
        _read_as(image, _NATIVE.get(_raw_mode(image), _raw_mode(image)))
    declared = _tiff_range(tags) if tags is not None else _png_range(file) if image.format == "PNG" else None
    inverted = tags is not None and tags.get(_PHOTOMETRIC) == 0
    premultiplied = _raw_mode(image).startswith("RGBa")
    levels = _colours(image, file) if _deep_raw_mode(image) else _grays(image, tags)
    turn = _turn(image, remarks)
    alpha = None
    if levels.ndim == 3 and levels.shape[-1] in (2, 4):
        alpha, levels = levels[..., -1] / np.float32(65535), levels[..., :-1]
    if levels.ndim == 3 and levels.shape[-1] == 1:
        levels = levels[..., 0]
    if key is not None:
        alpha = np.where((levels.reshape(*levels.shape[:2], -1) == np.array(key)).all(axis=-1), 0, 1).astype(np.float32)
    if alpha is not None and not alpha.any():
        remarks.add(INVISIBLE)
        alpha = None
    elif alpha is not None and alpha.min() < 1:
        remarks.add(TRANSPARENT)
        alpha = None if premultiplied else alpha  # on black, premultiplied values are what is seen
    if turn is not None:
        levels, alpha = _turned(levels, turn), None if alpha is None else _turned(alpha, turn)
    return Raster(None, levels, alpha, inverted, declared, frozenset(remarks))


def _check_tiff(image: ImageFile.ImageFile, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    rows = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if rows < tags.get(_HEIGHT, 0):  # Pillow leaves the others black
        raise BadImage(f"truncated or damaged (strips of {rows:,} of {tags[_HEIGHT]:,} rows)")
    if max(tags.get(_BITS, (1,))) > 8 and tags.get(_SAMPLES, 1) > 1 and tags.get(_PLANAR, 1) == 2:
        raise BadImage("TIFF of 16 bits with separate planes; save it with interleaved channels, or as PNG")
    if tags.get(_SAMPLES, 1) == 1 and _PHOTOMETRIC not in tags:
        raise BadImage("TIFF that does not tell whether 0 is black or white (PhotometricInterpretation); save it again")


def _grays(image: ImageFile.ImageFile, tags: TiffImagePlugin.ImageFileDirectory_v2 | None) -> np.ndarray:
    """Values (H, W) of one channel, in the type that the file means."""
    levels = np.asarray(image)
    if levels.dtype.kind == "f":
        if not np.isfinite(levels).all():
            raise BadImage("pixels that are not finite (NaN or infinite); replace them, or save the image with 16 bits")
        return levels
    if levels.dtype.byteorder == ">":
        levels = levels.astype(levels.dtype.newbyteorder("="))
    if tags is None:
        return levels
    kind = (tags.get(_FORMAT, (_UNSIGNED,))[0], tags.get(_BITS, (1,))[0])
    if kind == (_SIGNED, 8):
        return levels.view(np.int8)
    return levels.view(np.uint32) if kind == (_UNSIGNED, 32) else levels


def _colours(image: ImageFile.ImageFile, file: Path | bytes) -> np.ndarray:
    """Values (H, W, channels) of 16 bits, from two readings: Pillow decodes one byte of each."""
    raw_mode = _raw_mode(image)
    if raw_mode == "LA;16B":  # four bytes a pixel, as RGBA
        _read_as(image, "RGBA")
        four = np.asarray(image).astype(np.uint16)
        return four[..., 0::2] * np.uint16(256) + four[..., 1::2]
    upper_mode = raw_mode.replace("RGBa", "RGBA")
    base, _, order = upper_mode.partition(";")
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=[str(image.format)]) as second:
        _read_as(second, f"{base};{_LOWER[order]}")
        lower = np.asarray(second).astype(np.uint16)
    _read_as(image, upper_mode)
    return np.asarray(image).astype(np.uint16) * np.uint16(256) + lower


def _read_as(image: ImageFile.ImageFile, raw_mode: str) -> None:
    image.tile = [
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode) for tile in image.tile
    ]


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file's bytes make up a pixel, in Pillow's words."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _deep_raw_mode(image: ImageFile.ImageFile) -> bool:
    return image.mode in ("RGB", "RGBA") and ";16" in _raw_mode(image)


def _tiff_range(tags: TiffImagePlugin.ImageFileDirectory_v2) -> tuple[float, float] | None:
    """BitsPerSample below 16, or the least and largest sample value; those that the type has anyway declare nothing."""
    bits = max(tags.get(_BITS, (1,)))
    if 8 < bits < 16:
        return 0.0, float(2**bits - 1)
    for least, largest in ((_S_LEAST, _S_LARGEST), (_LEAST, _LARGEST)):
        if largest in tags:
            low, high = min(_numbers(tags.get(least, 0))), max(_numbers(tags[largest]))
            full = high >= 2**bits - 1 or (low <= -(2 ** (bits - 1)) and high >= 2 ** (bits - 1) - 1)
            if np.isfinite([low, high]).all() and high > low and not full:
                return low, high
    return None


def _numbers(value: Any) -> list[float]:
    return [float(number) for number in (value if isinstance(value, tuple) else (value,))]


def _png_range(file: Path | bytes) -> tuple[float, float] | None:
    """What the sBIT chunk declares, if values fill the lower bits; scaled to all 16 they contradict it, and it is not used."""
    with io.BytesIO(file) if isinstance(file, bytes) else file.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                found = stream.read(min(length, 4))
                bits = max(found[:-1] if len(found) in (2, 4) else found, default=16)  # the last of two or four is alpha's
                return (0.0, float(2**bits - 1)) if 0 < bits < 16 else None
            if kind == b"IDAT":
                return None
            stream.seek(length + 4, io.SEEK_CUR)
    return None


def _turn(image: ImageFile.ImageFile, remarks: set[str]) -> Image.Transpose | None:
    """What brings a loaded image upright; Pillow turns TIFF itself."""
    if image.format == "TIFF":
        return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except DECODE_ERRORS:
        remarks.add(BAD_EXIF)
        return None


def _turned(array: np.ndarray, turn: Image.Transpose) -> np.ndarray:
    """As ``Image.transpose``, for arrays (H, W) and (H, W, C)."""
    swapped = array.swapaxes(0, 1)
    return {
        Image.Transpose.FLIP_LEFT_RIGHT: array[:, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: array[::-1],
        Image.Transpose.ROTATE_180: array[::-1, ::-1],
        Image.Transpose.TRANSPOSE: swapped,
        Image.Transpose.TRANSVERSE: swapped[::-1, ::-1],
        Image.Transpose.ROTATE_90: swapped[::-1],
        Image.Transpose.ROTATE_270: swapped[:, ::-1],
    }[turn]
