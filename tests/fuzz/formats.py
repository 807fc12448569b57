"""Writers of odd image files: every mode and depth, damaged ones, and files that are no images."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIDE = 24


class File(NamedTuple):
    """An image file: its ending, its bytes, and whether it must arrive, be refused, or may be either."""

    ending: str
    data: bytes
    fate: str = "arrive"
    like: float = 0.9  # least correlation with the picture that it shows; -1: unchecked
    deep: str = ""  # its kind of more than 8 bits; images of two such kinds share no window


def picture(seed: int) -> np.ndarray:
    """A picture that no turn, flip or negative leaves as it is: (SIDE, SIDE) uint8."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    values = 60 + 120 * x * (0.3 + 0.7 * y)
    values[2:9, 3:8] = 250
    values[15:20, 2:6] = 10 + seed % 16
    return values.round().clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, *, white_is_zero: bool = False, signed: bool = False, big: bool = False, significant: int = 0) -> bytes:
    """A TIFF of one uncompressed strip, with tags that Pillow does not write."""
    order, bits = (">", pixels.dtype.itemsize * 8) if big else ("<", pixels.dtype.itemsize * 8)
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    sample = {"f": 3, "i": 2}.get(pixels.dtype.kind, 2 if signed else 1)
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(body)), (339, 3, sample)]
    if significant:
        tags.append((281, 3, 2**significant - 1))  # MaxSampleValue
    entries = [
        struct.pack(f"{order}HHI", tag, kind, 1) + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, value in sorted(tags)
    ]
    head = (b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return png[:33] + chunk(kind, body) + png[33:]


_INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def _turned(draw: random.Random, image: Image.Image) -> File:
    """Stored turned, with the tag that says so."""
    kind, tag = draw.choice(["PNG", "JPEG", "WEBP", "TIFF"]), draw.choice(sorted(_INVERSE))
    stored = image.transpose(_INVERSE[tag])
    if kind == "TIFF":
        info = ImageFileDirectory_v2()
        info[274] = tag
        return File(".tif", saved(stored, kind, tiffinfo=info))
    exif = Image.Exif()
    exif[274] = tag
    return File(f".{kind.lower()}", saved(stored, kind, exif=exif, **({"quality": 95} if kind != "PNG" else {})))


def _odd_exif(draw: random.Random, image: Image.Image) -> File:
    exif = draw.choice(
        [
            b"Exif\x00\x00",
            b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
            b"Exif\x00\x00" + bytes(40),
            b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff",
        ]
    )
    if draw.random() < 0.5:
        return File(".jpg", saved(image, "JPEG", exif=exif, quality=95))
    return File(".png", with_chunk(saved(image, "PNG"), b"eXIf", exif[6:]))


def _deep(draw: random.Random, image: Image.Image) -> File:
    """More than 8 bits."""
    values = np.asarray(image).astype(np.uint32)
    ways: dict[str, Callable[[], tuple[str, bytes]]] = {
        "16": lambda: (".png", saved(Image.fromarray((values * 257).astype(np.uint16)), "PNG")),
        "12": lambda: (".png", saved(Image.fromarray((values * 16).astype(np.uint16)), "PNG")),
        "10 stated": lambda: (".png", with_chunk(saved(Image.fromarray((values * 4).astype(np.uint16)), "PNG"), b"sBIT", b"\x0a")),
        "12 in TIFF": lambda: (".tif", tiff((values * 16).astype(np.uint16), big=draw.random() < 0.5)),
        "12 stated": lambda: (".tif", tiff((values * 16).astype(np.uint16), significant=12)),
        "signed": lambda: (".tif", tiff((values.astype(np.int32) * 16 - 1024).astype(np.int16))),
        "white is zero": lambda: (".tif", tiff((65535 - values * 257).astype(np.uint16), white_is_zero=True)),
        "16 in TIFF": lambda: (
            ".tiff",
            saved(
                Image.fromarray((values * 257).astype(np.uint16)),
                "TIFF",
                compression=draw.choice(["raw", "tiff_lzw", "tiff_adobe_deflate"]),
            ),
        ),
    }
    name = draw.choice(sorted(ways))
    ending, data = ways[name]()
    return File(ending, data, deep=name)


def _strange_depth(draw: random.Random, image: Image.Image) -> File:
    """Depths that may be refused, but not drawn as black."""
    values = np.asarray(image).astype(np.int64)
    ways = [tiff((values / 255).astype(np.float32)), tiff((values * 1000).astype(np.int32)), tiff((values * 2**24).astype(np.uint32))]
    ways += [tiff(values.astype(np.float64)), tiff(np.full((SIDE, SIDE), np.nan, np.float32)), tiff((values - 128).astype(np.int8))]
    return File(".tif", draw.choice(ways), "either", -1, deep="strange")


def _mode(draw: random.Random, image: Image.Image) -> File:
    """Usual files in every mode."""
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", image.size, 255))
    palette = image.quantize(64)
    bits = image.point(lambda value: 255 if value > 128 else 0).convert("1")
    quality = {"quality": 92}
    ways: list[Callable[[], File]] = [
        lambda: File(".png", saved(image, "PNG")),
        lambda: File(".png", saved(bits, "PNG"), like=0.6),
        lambda: File(".png", saved(image.convert("LA"), "PNG")),
        lambda: File(".png", saved(palette, "PNG", bits=8)),
        lambda: File(".png", saved(image.quantize(16), "PNG", bits=4), like=0.8),
        lambda: File(".png", saved(palette, "PNG", transparency=draw.choice([0, bytes([255] * 64)])), like=-1),
        lambda: File(".png", saved(clear, "PNG")),
        lambda: File(".png", saved(image, "PNG", transparency=255), like=-1),
        lambda: File(".jpg", saved(image, "JPEG", **quality)),
        lambda: File(".jpg", saved(image.convert("RGB"), "JPEG", progressive=True, **quality)),
        lambda: File(".jpg", saved(image.convert("RGB").convert("CMYK"), "JPEG", **quality)),
        lambda: File(".tif", saved(image.convert("RGB").convert("CMYK"), "TIFF")),
        lambda: File(".tif", saved(image.convert("RGB").convert("YCbCr"), "TIFF")),
        lambda: File(".tif", saved(image, "TIFF", compression=draw.choice(["raw", "packbits", "tiff_lzw", "tiff_deflate"]))),
        lambda: File(".tif", saved(bits, "TIFF", compression=draw.choice(["group4", "raw"])), like=0.6),
        lambda: File(".tif", tiff(255 - np.asarray(image), white_is_zero=True)),
        lambda: File(".tif", saved(palette, "TIFF")),
        lambda: File(".tif", saved(image, "TIFF", save_all=True, append_images=[Image.new("L", image.size, 90)]), "either"),
        lambda: File(".tif", saved(image.convert("RGB").convert("LAB"), "TIFF"), "either", -1),
        lambda: File(".bmp", saved(image.convert(draw.choice(["L", "RGB"])), "BMP")),
        lambda: File(".bmp", saved(bits, "BMP"), like=0.6),
        lambda: File(".bmp", saved(clear, "BMP"), like=-1),
        lambda: File(".webp", saved(image.convert("RGB"), "WEBP", lossless=draw.random() < 0.5, **quality)),
        lambda: File(".webp", saved(clear, "WEBP", lossless=True)),
        lambda: File(".webp", saved(image.convert("RGB"), "WEBP", save_all=True, append_images=[image.convert("RGB")]), "either", -1),
        lambda: File(".png", saved(image, "PNG", save_all=True, append_images=[image]), "either", -1),
        lambda: File(".png", saved(image, "PNG") + b"junk behind the end"),
        lambda: File(".png", saved(image, "PNG", icc_profile=b"no profile")),
        lambda: File(".png", with_chunk(saved(image, "PNG"), b"zTXt", b"a\x00\x00" + zlib.compress(bytes(30_000_000))), "either"),
        lambda: File(".png", with_chunk(saved(image, "PNG"), b"gAMA", struct.pack(">I", draw.choice([0, 45455, 2**31 - 1])))),
        lambda: File(draw.choice([".png", ".bmp", ".tif", ".webp"]), saved(image, "JPEG", **quality)),
        lambda: File(".png", saved(image.resize((1, 1)), "PNG"), like=-1),
        lambda: File(".png", saved(image.resize((90, 2)), "PNG"), like=-1),
        lambda: File(".jpg", saved(image.resize((7, 200)), "JPEG"), like=-1),
        lambda: File(".png", saved(image.resize((SIDE * 3, SIDE * 3)), "PNG")),
    ]
    return draw.choice(ways)()


def _no_image(draw: random.Random, image: Image.Image) -> File:
    """Files that must be refused."""
    header = struct.pack(">IIBBBBB", *draw.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (0, 0)]), 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    wide = bytearray(saved(image, "BMP"))
    wide[18:26] = struct.pack("<ii", 1 << 20, 1 << 20)
    huge = bytearray(tiff(np.asarray(image)))
    place = huge.index(struct.pack("<HHIHH", 256, 3, 1, SIDE, 0))
    huge[place : place + 24] = struct.pack("<HHII", 256, 4, 1, 1 << 30) + struct.pack("<HHII", 257, 4, 1, 1 << 30)
    ways = [bomb, bytes(wide), bytes(huge), b"", b"text", b"<html>404</html>", bytes(500), saved(image, "GIF"), saved(image, "PPM")]
    ways += [
        bytes(128) + b"DICM" + bytes(100),
        b"\x1f\x8b\x08" + bytes(30),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"II*\x00\x08\x00\x00\x00",
        b"RIFF",
    ]
    ways += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"BM", b"version https://git-lfs.github.com/spec/v1\n"]
    return File(draw.choice([".png", ".jpg", ".tif", ".bmp"]), draw.choice(ways), "refuse", -1)


def _cut(draw: random.Random, image: Image.Image) -> File:
    file = draw.choice([_mode, _deep, _turned])(draw, image)
    part = draw.uniform(0.1, 1)
    sure = part < 0.6 and file.ending != ".webp" and b"zTXt" not in file.data and b"junk" not in file.data and len(file.data) < 5000
    pages = file.fate != "arrive"
    return File(file.ending, file.data[: int(len(file.data) * part)], "refuse" if sure and not pages else "either", -1, file.deep)


def _flipped(draw: random.Random, image: Image.Image) -> File:
    file = draw.choice([_mode, _deep, _turned, _strange_depth])(draw, image)
    data = bytearray(file.data)
    for _ in range(draw.choice([1, 1, 3, 20])):
        data[draw.randrange(min(len(data), draw.choice([60, 10**6])))] ^= 1 << draw.randrange(8)
    return File(file.ending, bytes(data), "either", -1, "flipped")


def odd_file(draw: random.Random, seed: int) -> tuple[str, File]:
    """What an image is and its bytes."""
    name, make = draw.choice(_WAYS)
    return name, make(draw, Image.fromarray(picture(seed)))


_WAYS: list[tuple[str, Callable[[random.Random, Image.Image], File]]] = [
    ("mode", _mode), ("mode", _mode), ("deep", _deep), ("strange depth", _strange_depth), ("turned", _turned), ("odd EXIF", _odd_exif),
    ("no image", _no_image), ("cut", _cut), ("flipped", _flipped),
]  # fmt: skip
