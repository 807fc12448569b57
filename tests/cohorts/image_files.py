"""Image files made by hand, byte by byte, so that what they mean does not depend on the library that reads them."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f"}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP, ORIENTATION, SAMPLES, ROWS, STRIP_BYTES = 273, 274, 277, 278, 279
MIN_SAMPLE, MAX_SAMPLE, EXTRA, SAMPLE_FORMAT, S_MIN, S_MAX = 280, 281, 338, 339, 340, 341

Tags = Mapping[int, tuple[int, Sequence[float]]]


def png(samples: np.ndarray, bits: int = 8, chunks: Sequence[tuple[bytes, bytes]] = (), width: int | None = None) -> bytes:
    """PNG of (H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB or (H, W, 4) RGBA samples, without filters.

    With ``width`` the samples are the bytes of rows of less than 8 bits a pixel.
    """
    height, columns = samples.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if samples.ndim == 2 else samples.shape[2]]
    rows = samples.reshape(height, -1).astype(">u2" if bits == 16 else np.uint8)
    header = struct.pack(">IIBBBBB", width or columns, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in ((b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(orientation: int, order: str = "MM") -> bytes:
    """An EXIF block (a TIFF directory) with nothing but the orientation."""
    sign = ">" if order == "MM" else "<"
    start = b"MM\0*" if order == "MM" else b"II*\0"
    return start + struct.pack(f"{sign}IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def tiff(samples: np.ndarray, tags: Tags | None = None, order: str = "II", deflate: bool = False, packed: bytes | None = None) -> bytes:
    """TIFF of one strip, (H, W) or (H, W, channels); ``tags`` (type, values) are added to or replace what the samples say.

    ``packed`` are the strip's bytes where they are no whole bytes a sample, such as 12 bits.
    """
    sign, channels = ("<" if order == "II" else ">"), 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.astype(samples.dtype.newbyteorder(sign)).tobytes() if packed is None else packed
    data = zlib.compress(data) if deflate else data
    entries: dict[int, tuple[int, Sequence[float]]] = {
        WIDTH: (3, [samples.shape[1]]),
        HEIGHT: (3, [samples.shape[0]]),
        BITS: (3, [8 * samples.dtype.itemsize] * channels),
        COMPRESSION: (3, [8 if deflate else 1]),
        PHOTOMETRIC: (3, [1 if channels < 3 else 2]),
        STRIP: (4, [8]),
        SAMPLES: (3, [channels]),
        ROWS: (3, [samples.shape[0]]),
        STRIP_BYTES: (4, [len(data)]),
        SAMPLE_FORMAT: (3, [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * channels),
        **(tags or {}),
    }
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(f"{sign}H", len(entries))
    further, offset = b"", 8 + len(data) + 2 + 12 * len(entries) + 4
    for tag, (kind, values) in sorted(entries.items()):
        raw = struct.pack(f"{sign}{len(values)}{TYPES[kind]}", *values)
        if len(raw) > 4:
            further, raw = further + raw + b"\0" * (len(raw) % 2), struct.pack(f"{sign}I", offset + len(further))
        directory += struct.pack(f"{sign}HHI", tag, kind, len(values)) + raw.ljust(4, b"\0")
    start = b"II*\0" if order == "II" else b"MM\0*"
    return start + struct.pack(f"{sign}I", 8 + len(data)) + data + directory + struct.pack(f"{sign}I", 0) + further
