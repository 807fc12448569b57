"""Pixels of single files: every depth, sign, byte order, orientation and kind of colour against literals worked by hand."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from cohorts.image_files import (
    BITS,
    EXTRA,
    MAX_SAMPLE,
    MIN_SAMPLE,
    ORIENTATION,
    PHOTOMETRIC,
    S_MAX,
    S_MIN,
    exif,
    png,
    tiff,
)
from PIL import Image

from evenhand.cohorts.cohort import read_image
from evenhand.cohorts.decoding import BadImage, Raster, brief
from evenhand.cohorts.images import open_picture
from evenhand.core.errors import UserError


def decoded(data: bytes) -> Raster:
    return open_picture(data).decode()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


SAMPLES = {
    "uint8": [[0, 1, 127], [128, 254, 255]],
    "int8": [[-128, -1, 0], [1, 100, 127]],
    "uint16": [[0, 1, 255], [256, 4095, 65535]],
    "int16": [[-32768, -1024, 0], [1, 256, 32767]],
    "uint32": [[0, 1, 65536], [70000, 2**31, 2**32 - 1]],
    "int32": [[-(2**31), -1, 0], [1, 70000, 2**31 - 1]],
    "float32": [[-1.5, 0, 0.25], [1, 4095, 1e9]],
    "float64": [[-1.5, 0, 0.25], [1, 4095, 1e9]],
}


@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_every_gray_tiff_keeps_its_values(kind, order, deflate, white_is_zero) -> None:
    samples = np.array(SAMPLES[kind], dtype=kind)
    raster = decoded(tiff(samples, {PHOTOMETRIC: (3, [0 if white_is_zero else 1])}, order, deflate))
    if kind == "uint8":
        assert raster.mode == "L"
        expected = 255 - samples if white_is_zero else samples
        np.testing.assert_array_equal(np.asarray(raster.image), expected)
        return
    assert raster.image is None and raster.mode == "L" and raster.inverted == white_is_zero
    np.testing.assert_array_equal(raster.levels, samples)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_twelve_packed_bits(order, deflate, photometric) -> None:
    packed = bytes([0x00, 0x0F, 0xFF, 0x80, 0x01, 0x23])  # 000 fff, 800 123: high nibbles first in both byte orders
    data = tiff(np.zeros((2, 2), np.uint16), {BITS: (3, [12]), PHOTOMETRIC: (3, [photometric])}, order, deflate, packed)
    raster = decoded(data)
    np.testing.assert_array_equal(raster.levels, [[0, 4095], [2048, 291]])
    assert raster.declared == (0, 4095) and raster.inverted == (photometric == 0)


@pytest.mark.parametrize(("photometric", "expected"), [(0, [[255, 0, 255], [0, 0, 255]]), (1, [[0, 255, 0], [255, 255, 0]])])
def test_one_bit_tiff(photometric, expected) -> None:
    packed = bytes([0b01000000, 0b11000000])
    data = tiff(np.zeros((2, 3), np.uint8), {BITS: (3, [1]), PHOTOMETRIC: (3, [photometric])}, packed=packed)
    np.testing.assert_array_equal(np.asarray(decoded(data).image), expected)


@pytest.mark.parametrize(
    ("tags", "declared"),
    [
        ({}, None),
        ({MAX_SAMPLE: (3, [4095])}, (0, 4095)),
        ({MIN_SAMPLE: (3, [100]), MAX_SAMPLE: (3, [1023])}, (100, 1023)),
        ({S_MIN: (3, [5]), S_MAX: (3, [16383])}, (5, 16383)),
        ({MIN_SAMPLE: (3, [0]), MAX_SAMPLE: (3, [65535])}, None),  # what 16 bits have anyway
        ({MIN_SAMPLE: (3, [9]), MAX_SAMPLE: (3, [9])}, None),
    ],
)
def test_declared_range_of_a_tiff(tags, declared) -> None:
    assert decoded(tiff(np.zeros((2, 2), np.uint16), tags)).declared == declared


def test_declared_range_of_a_signed_tiff() -> None:
    samples = np.zeros((2, 2), np.int16)
    assert decoded(tiff(samples, {S_MIN: (8, [-1024]), S_MAX: (8, [3071])})).declared == (-1024, 3071)
    assert decoded(tiff(samples, {S_MIN: (8, [-32768]), S_MAX: (8, [32767])})).declared is None


@pytest.mark.parametrize(
    ("shape", "bits", "expected"),
    [((2, 2), b"\x0c", 4095), ((2, 2, 2), b"\x0a\x10", 1023), ((2, 2, 3), b"\x0a\x0c\x0a", 4095), ((2, 2, 4), b"\x09\x09\x09\x10", 511)],
)
def test_significant_bits_of_a_png(shape, bits, expected) -> None:
    assert decoded(png(np.ones(shape), 16, [(b"sBIT", bits)])).declared == (0, expected)
    assert decoded(png(np.ones(shape), 16, [(b"gAMA", bytes(4))])).declared is None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_both_bytes(channels) -> None:
    samples = (np.arange(6 * channels).reshape(2, 3, channels) * 2621 % 65536).astype(np.uint16)
    samples[..., -1] = 65535 if channels in (2, 4) else samples[..., -1]
    raster = decoded(png(samples[..., 0] if channels == 1 else samples, 16))
    expected = samples[..., 0] if channels < 3 else samples[..., :3]
    np.testing.assert_array_equal(raster.levels, expected)
    assert raster.mode == ("L" if channels < 3 else "RGB") and not raster.remarks


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_colour_tiff_of_16_bits_keeps_both_bytes(order, deflate, extra) -> None:
    channels = 3 if extra is None else 4
    samples = (np.arange(6 * channels).reshape(2, 3, channels) * 2621 % 65536).astype(np.uint16)
    samples[..., 3:] = 32768
    raster = decoded(tiff(samples, {} if extra is None else {EXTRA: (3, [extra])}, order, deflate))
    np.testing.assert_array_equal(raster.levels, samples[..., :3])
    assert (raster.alpha is not None) == (extra == 2)  # an unspecified channel is none; premultiplied values lie on black already
    if extra == 2:
        np.testing.assert_allclose(raster.alpha, 32768 / 65535)


def test_16_bit_transparency() -> None:
    gray = np.array([[[1000, 65535], [9, 0]]], np.uint16)
    raster = decoded(png(gray, 16))
    np.testing.assert_array_equal(raster.levels, [[1000, 9]])
    np.testing.assert_array_equal(raster.alpha, [[1, 0]])
    assert raster.visible.tolist() == [1000] and raster.remarks == {"transparency"}
    raster = decoded(png(np.array([[7, 300]]), 16, [(b"tRNS", b"\x01\x2c")]))
    np.testing.assert_array_equal(raster.alpha, [[1, 0]])
    raster = decoded(png(np.array([[[7, 8, 300], [7, 8, 301]]]), 16, [(b"tRNS", b"\0\x07\0\x08\x01\x2c")]))
    np.testing.assert_array_equal(raster.alpha, [[0, 1]])


UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
# how UPRIGHT is stored under each orientation, written out by hand (EXIF 2.3: what row 0 and column 0 of the stored image are)
STORED = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[30, 60], [20, 50], [10, 40]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[40, 10], [50, 20], [60, 30]],
}


def rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def xmp(orientation: int) -> list[tuple[bytes, bytes]]:
    text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode())]


def blocks(gray: np.ndarray) -> Image.Image:
    """Each pixel as one block of JPEG."""
    return Image.fromarray(np.kron(gray, np.ones((16, 16), np.uint8)))


# a file of each format and depth from the stored pixels, the same 100 times brighter with 16 bits, and the orientation
FILES = {
    "png8": lambda low, deep, o: png(low, 8, [(b"eXIf", exif(o))]),
    "png16": lambda low, deep, o: png(deep, 16, [(b"eXIf", exif(o, "II"))]),
    "png16 colour": lambda low, deep, o: png(rgb(deep), 16, [(b"eXIf", exif(o))]),
    "png palette": lambda low, deep, o: saved(Image.fromarray(low).convert("P"), "PNG", exif=exif(o, "II")),
    "png xmp": lambda low, deep, o: png(low, 8, xmp(o)),
    "tiff8": lambda low, deep, o: tiff(low, {ORIENTATION: (3, [o])}),
    "tiff16": lambda low, deep, o: tiff(deep, {ORIENTATION: (3, [o])}, "MM"),
    "tiff16 deflate": lambda low, deep, o: tiff(deep.astype(np.int16), {ORIENTATION: (3, [o])}, deflate=True),
    "tiff16 colour": lambda low, deep, o: tiff(rgb(deep), {ORIENTATION: (3, [o])}),
    "tiff float": lambda low, deep, o: tiff(deep.astype(np.float32), {ORIENTATION: (3, [o])}),
    "tiff lzw": lambda low, deep, o: saved(Image.fromarray(low), "TIFF", compression="tiff_lzw", tiffinfo={ORIENTATION: o}),
    "webp": lambda low, deep, o: saved(Image.fromarray(rgb(low)), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(o)),
    "jpeg": lambda low, deep, o: saved(blocks(low), "JPEG", quality=100, exif=b"Exif\0\0" + exif(o)),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("in_memory", [True, False])  # Pillow reads plain TIFF in another way from a file
def test_orientation_is_obeyed_once_in_every_format(kind, orientation, in_memory, tmp_path) -> None:
    stored = np.array(STORED[orientation], np.uint8)
    data = FILES[kind](stored, stored.astype(np.uint16) * 100, orientation)
    (tmp_path / "file").write_bytes(data)
    raster = decoded(data) if in_memory else open_picture(tmp_path / "file").decode()
    pixels = np.asarray(raster.image) if raster.image is not None else raster.levels // 100
    if kind == "jpeg":
        pixels = pixels[8::16, 8::16]
    np.testing.assert_array_equal(pixels[..., 0] if pixels.ndim == 3 else pixels, UPRIGHT)
    assert raster.size == ((3, 2) if kind != "jpeg" else (48, 32))


@pytest.mark.parametrize("block", [b"MM\0*", b"no exif at all", exif(6)[:-8], b"MM\0*" + b"\xff" * 60, b""])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_no_traceback(kind, block) -> None:
    image = Image.fromarray(np.full((8, 8), 77, np.uint8))
    data = png(np.full((8, 8), 77), 8, [(b"eXIf", block)]) if kind == "PNG" else saved(image, kind, exif=b"Exif\0\0" + block, quality=100)
    pixels = np.asarray(decoded(data).image)
    assert abs(int(pixels.flat[0]) - 77) <= 2


def test_transparency_lies_on_black() -> None:
    rgba = np.array([[[200, 100, 50, 255], [255, 255, 255, 0], [200, 100, 50, 128]]], np.uint8)
    raster = decoded(png(rgba))
    np.testing.assert_array_equal(np.asarray(raster.image), [[[200, 100, 50], [0, 0, 0], [100, 50, 25]]])
    assert raster.remarks == {"transparency"}
    raster = decoded(png(np.array([[[200, 255], [255, 0], [200, 128]]], np.uint8)))
    assert raster.mode == "L"  # gray with alpha is gray
    np.testing.assert_array_equal(np.asarray(raster.image), [[200, 0, 100]])
    premultiplied = tiff(np.array([[[100, 50, 25, 128], [0, 0, 0, 0]]], np.uint8), {EXTRA: (3, [1])})
    np.testing.assert_allclose(np.asarray(decoded(premultiplied).image).astype(int), [[[100, 50, 25], [0, 0, 0]]], atol=1)
    gray = tiff(np.array([[[100, 128], [0, 0]]], np.uint8), {EXTRA: (3, [1])})
    np.testing.assert_allclose(np.asarray(decoded(gray).image).astype(int), [[100, 0]], atol=1)


def test_transparent_gray_values_and_colours() -> None:
    raster = decoded(png(np.array([[7, 200]]), 8, [(b"tRNS", b"\0\xc8")]))
    np.testing.assert_array_equal(np.asarray(raster.image), [[7, 0]])
    raster = decoded(png(np.array([[[9, 8, 7], [200, 8, 7]]]), 8, [(b"tRNS", b"\0\xc8\0\x08\0\x07")]))
    np.testing.assert_array_equal(np.asarray(raster.image), [[[9, 8, 7], [0, 0, 0]]])
    assert raster.image.info == {}
    one_bit = saved(Image.fromarray(np.array([[True, False]])), "PNG", transparency=1)
    np.testing.assert_array_equal(np.asarray(decoded(one_bit).image), [[0, 0]])
    two_bits = png(np.array([[0b00011011]]), 2, [(b"tRNS", b"\0\x02")], width=4)
    np.testing.assert_array_equal(np.asarray(decoded(two_bits).image), [[0, 85, 0, 255]])


def test_an_alpha_channel_that_was_never_filled_is_ignored() -> None:
    rgba = np.array([[[200, 100, 50, 0], [9, 9, 9, 0]]], np.uint8)
    raster = decoded(png(rgba))
    np.testing.assert_array_equal(np.asarray(raster.image), rgba[..., :3])
    assert raster.remarks == {"wholly transparent"}
    raster = decoded(png(rgba.astype(np.uint16) * 257, 16))
    np.testing.assert_array_equal(raster.levels, rgba[..., :3].astype(int) * 257)
    assert raster.alpha is None and raster.remarks == {"wholly transparent"}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palettes(kind) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None)
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255] + [0] * 759)
    raster = decoded(saved(image, kind))
    np.testing.assert_array_equal(np.asarray(raster.image), [[[10, 20, 30], [200, 100, 50], [0, 0, 255]]])
    assert raster.mode == "RGB" and raster.remarks == {"palette"}
    image.putpalette([10, 10, 10, 200, 200, 200, 7, 7, 7] + [0] * 759)
    raster = decoded(saved(image, kind))
    assert raster.mode == "L"  # a palette of grays
    np.testing.assert_array_equal(np.asarray(raster.image), [[10, 200, 7]])


def test_palette_with_transparency() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    raster = decoded(saved(image, "PNG", transparency=1))
    np.testing.assert_array_equal(np.asarray(raster.image), [[[10, 20, 30], [0, 0, 0]]])
    assert raster.remarks == {"palette", "transparency"} and raster.image.info == {}
    raster = decoded(saved(image, "PNG", transparency=bytes([255, 51])))
    np.testing.assert_array_equal(np.asarray(raster.image), [[[10, 20, 30], [40, 20, 10]]])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind) -> None:
    """JPEG stores it inverted, as Adobe does, TIFF as it is: no ink is white in both."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[8:] = [0, 255, 255, 0]  # magenta and yellow: red
    image = Image.frombytes("CMYK", (16, 16), pixels.tobytes())
    raster = decoded(saved(image, kind, **({"quality": 100} if kind == "JPEG" else {})))
    seen = np.asarray(raster.image).astype(int)
    np.testing.assert_allclose(seen[2, 2], [255, 255, 255], atol=3)
    np.testing.assert_allclose(seen[13, 2], [255, 0, 0], atol=3)
    assert raster.remarks == {"CMYK"}


def test_cielab() -> None:
    lab = np.array([[[255, 0, 0], [0, 0, 0], [138, 81, 70]]], np.uint8)  # white, black, and L* 54, a* 81, b* 70: red
    raster = decoded(tiff(lab, {PHOTOMETRIC: (3, [8])}))
    np.testing.assert_allclose(np.asarray(raster.image).astype(int), [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], atol=6)
    assert raster.remarks == {"CIELAB"}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(kind) -> None:
    first, second = (Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200))
    raster = decoded(saved(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {})))
    assert np.unique(np.asarray(raster.image)).tolist() == [10] and raster.remarks == {"frames"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_pixels_that_are_not_finite(value, order) -> None:
    with pytest.raises(BadImage, match=r"^pixels that are not finite \(NaN or infinite\); replace them, or save the image with 16 bits$"):
        decoded(tiff(np.array([[1, value]], np.float32), order=order))


def test_kinds_that_are_not_read_say_what_to_do(tmp_path) -> None:
    with pytest.raises(BadImage, match=r"this kind of TIFF is not read, or it is damaged; save it as PNG, or as TIFF of 8 or 16 bits"):
        decoded(tiff(np.zeros((2, 2), np.uint16), {BITS: (3, [10])}, packed=bytes(6)))
    with pytest.raises(BadImage, match=r"save it with interleaved channels, or as PNG"):
        decoded(tiff(np.zeros((2, 2, 3), np.uint16), {284: (3, [2]), 273: (4, [8, 8, 8]), 279: (4, [8, 8, 8])}))
    dicom = bytes(128) + b"DICM" + bytes(64)
    (tmp_path / "scan.dcm").write_bytes(b"no preamble")
    for file in (dicom, tmp_path / "scan.dcm"):
        with pytest.raises(BadImage, match=r"^DICOM is not read; convert it to 16-bit PNG \(DCMTK: dcmj2pnm --write-16-bit-png\)"):
            open_picture(file)


@pytest.mark.parametrize(("error", "expected"), [(ValueError("a\x1b[31m\nb\0c"), "a [31m b c"), (KeyError(), "KeyError")])
def test_messages_are_one_printable_line(error, expected) -> None:
    assert brief(error) == expected


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_without_its_last_strips_is_damaged(kind) -> None:
    with pytest.raises(BadImage, match=r"^truncated or damaged \(strips of 8 of 32 rows\)$"):
        decoded(tiff(np.zeros((8, 4), kind), {257: (3, [32])}))


def a_chunk_of_two_gigabytes() -> bytes:
    """A PNG whose pixel data are followed by a chunk of them that claims to be as long."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    end = whole.index(b"IEND") - 4
    return whole[:end] + struct.pack(">I", 2**31 - 1) + b"IDAT" + whole[end:]


@pytest.mark.parametrize("library", ["PngImagePlugin.PngImageFile.load_end", "ImageFile.ImageFile.load"])
def test_a_file_that_asks_for_more_memory_than_there_is_is_damaged(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(a_chunk_of_two_gigabytes())

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"PIL.{library}", exhausted)
    with pytest.raises(BadImage, match=r"^truncated or damaged \(MemoryError\)$"):
        open_picture(path).decode()
    with pytest.raises(UserError, match=r"a\.png: unreadable image \(MemoryError\); run 'evenhand cohort check'"):
        read_image(path, "L")


def test_an_image_that_is_no_image_any_more_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(a_chunk_of_two_gigabytes().replace(b"IHDR", b"IHDX"))
    with pytest.raises(UserError, match=r"a\.png: unreadable image \(.+\); run 'evenhand cohort check' on its cohort$"):
        read_image(path, "L")


@pytest.mark.parametrize("size", [40, 90, 120, 200])
def test_truncated_deep_images(size) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (32, 32, 3), dtype=np.uint16)
    for data in (png(samples, 16), png(samples[..., 0], 16), png(samples[..., :2], 16)):
        with pytest.raises(BadImage):
            decoded(data[:-size])
