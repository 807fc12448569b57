"""Pixels through a whole import: one window, size and mode for all images, and a note on whatever was done to them."""

from pathlib import Path

import numpy as np
import pytest
from cohorts.image_files import MAX_SAMPLE, PHOTOMETRIC, png, tiff
from cohorts.raw_data import brats_volume, write_brats_subject, write_nifti
from PIL import Image, ImageFile

from evenhand.cohorts.checking import check_cohort, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.sources.pixels import PixelRules
from evenhand.cohorts.windows import Levels
from evenhand.core.errors import UserError

RAMP = np.tile(np.linspace(0, 4095, 64).astype(np.uint16), (64, 1))


def imported(folder: Path, files: dict[str, bytes | Image.Image], rows: str = "", **settings: object) -> Cohort:
    """A cohort of these files, through the source ``table``; ``rows`` is the table where its only column is not the image."""
    raw = folder / "raw"
    raw.mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (raw / name).write_bytes(content)
        else:
            content.save(raw / name)
    (raw / "t.csv").write_text(rows or "image\n" + "".join(f"{name}\n" for name in files))
    return import_cohort("table", raw, folder / "out", ImportSettings(**settings))


def gray(cohort: Cohort, row: int = 0) -> np.ndarray:
    """The 8-bit values of one image as written."""
    with Image.open(cohort.root / cohort.table["image"][row]) as image:
        return np.asarray(image)


def note(cohort: Cohort, beginning: str) -> str:
    found = [line for line in notes_on(cohort) if line.startswith(beginning)]
    assert len(found) == 1, notes_on(cohort)
    return found[0]


def noise(seed: int, side: int = 24, colour: bool = False) -> Image.Image:
    shape = (side, side, 3) if colour else (side, side)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


TWO = np.tile([[0, 4095]], (8, 4))  # columns of black and white


@pytest.mark.parametrize(
    ("data", "expected", "window"),
    [
        (png(TWO, 16), [0, 255], "0 to 4095"),
        (png(TWO // 4, 16), [0, 255], "0 to 1023"),
        (png(TWO * 4, 16), [0, 255], "0 to 16383"),
        (png(TWO // 2, 16, [(b"sBIT", b"\x0c")]), [0, 127], "0 to 4095"),
        (png(TWO * 16, 16, [(b"sBIT", b"\x0c")]), [0, 255], "0 to 65535"),  # scaled to all bits, as the standard says
        (tiff(TWO.astype(np.uint16), {PHOTOMETRIC: (3, [0])}), [255, 0], "0 to 4095"),
        (tiff(TWO.astype(np.uint16), {PHOTOMETRIC: (3, [0])}, "MM", deflate=True), [255, 0], "0 to 4095"),
        (tiff(TWO.astype(np.uint16) // 3, {MAX_SAMPLE: (3, [4095])}), [0, 85], "0 to 4095"),
        (tiff((TWO - 1024).astype(np.int16)), [0, 255], "-1024 to 3071"),
        (tiff((TWO - 1024).astype(np.int16), {PHOTOMETRIC: (3, [0])}, "MM", deflate=True), [255, 0], "-1024 to 3071"),
        (tiff((TWO // 16 - 128).astype(np.int8)), [0, 255], "-128 to 127"),
        (tiff((TWO - 1024).astype(np.int32), order="MM"), [0, 255], "-1024 to 3071"),
        (tiff(TWO.astype(np.uint32) * 2**20), [0, 255], "0 to 4294967295"),
        (tiff((TWO / 4095).astype(np.float32)), [0, 255], "0 to 1"),
        (tiff((TWO / 4095 - 0.5).astype(np.float64)), [0, 255], "-0.5 to 0.5"),
        (png(np.repeat(TWO[..., None], 3, -1), 16), [0, 255], "0 to 4095"),
        (png(np.stack([TWO, np.full_like(TWO, 65535)], -1), 16), [0, 255], "0 to 4095"),
    ],
)
def test_deep_images_can_be_seen(tmp_path, data, expected, window) -> None:
    cohort = imported(tmp_path, {"a.tif": data, "b.tif": data})
    pixels = gray(cohort, 1)
    assert np.unique(pixels[:, 0]).tolist() == [expected[0]] and np.unique(pixels[:, 1]).tolist() == [expected[1]]
    assert note(cohort, "2 images with more than 8 bits").startswith(f"2 images with more than 8 bits: window {window} (")
    assert cohort.schema.made["window"] == [float(word) for word in window.split(" to ")]
    assert check_cohort(cohort.root).faults[1:] == []  # the first: both images are one


def test_relative_intensities_stay_whichever_image_comes_first(tmp_path) -> None:
    files = {"a.png": png(RAMP // 64, 16), "b.png": png(RAMP, 16), "c.png": png(RAMP // 2, 16)}
    cohort = imported(tmp_path, files)
    assert [int(gray(cohort, row).max()) for row in range(3)] == [4, 255, 127]


@pytest.mark.parametrize(
    "deep", [tiff((RAMP / 4095).astype(np.float32)), tiff((RAMP // 16 - 128).astype(np.int8)), tiff((RAMP // 40).astype(np.int16))]
)
def test_a_window_that_was_found_leaves_8_bits_alone(tmp_path, deep) -> None:
    plain = noise(1, 64)
    cohort = imported(tmp_path, {"a.png": plain, "b.tif": deep, "c.png": plain.rotate(90)})
    np.testing.assert_array_equal(gray(cohort), np.asarray(plain))
    np.testing.assert_array_equal(gray(cohort, 2), np.asarray(plain.rotate(90)))
    assert note(cohort, "2 images with 8 bits among those with more")


def test_one_hot_pixel_is_clipped_and_counted(tmp_path) -> None:
    hot = RAMP.copy()
    hot[3, 3] = 65535
    cohort = imported(tmp_path, {"a.png": png(hot, 16), "b.png": png(RAMP, 16)})
    np.testing.assert_array_equal(np.delete(gray(cohort), 3, axis=0), np.delete(gray(cohort, 1), 3, axis=0))
    assert int(gray(cohort, 1).max()) == 255
    said = "1 of 8,192 pixels lie outside of the window, in 1 image; they are black or white"
    assert note(cohort, "1 of 8,192 pixels") == said


def test_a_window_of_ones_own(tmp_path) -> None:
    files = {"a.tif": tiff(RAMP.astype(np.int16) - 1024), "b.png": noise(1, 64)}
    cohort = imported(tmp_path, files, window="-160,240")
    values = np.round(np.clip((RAMP[0].astype(float) - 1024 + 160) / 400, 0, 1) * 255)
    np.testing.assert_array_equal(gray(cohort)[0], values)
    assert note(cohort, "1 image with more than 8 bits: window -160 to 240 (as --window says)")
    assert "lie outside of the window" in " ".join(notes_on(cohort))


def test_a_window_for_dark_images_of_8_bits(tmp_path) -> None:
    dark = {f"{i}.png": Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (16, 1)) + np.uint8(i)) for i in range(3)}
    cohort = imported(tmp_path, dark)
    remedy = "look at them, and give --window LOW,HIGH if their contrast is wrong"
    assert note(cohort, "images are dark") == f"images are dark: in 3 of 3 the 99.9% quantile lies below 64 of 255; {remedy}"
    (tmp_path / "two").mkdir()
    cohort = imported(tmp_path / "two", dark, window=[0, 17])
    assert gray(cohort, 2)[0].tolist() == [round(255 * (i + 2) / 17) for i in range(16)]
    assert note(cohort, "3 images: window 0 to 17")
    assert not [line for line in notes_on(cohort) if "dark" in line]
    (tmp_path / "three").mkdir()
    cohort = imported(tmp_path / "three", dark, window=[0, 4095])
    assert note(cohort, "--window was not used") and gray(cohort)[0].tolist() == list(range(16))


@pytest.mark.parametrize("order", [1, -1])
def test_a_window_of_fractions_is_not_used_on_images_of_8_bits(tmp_path, order) -> None:
    files = dict([("a.tif", tiff((RAMP / 4095).astype(np.float32))), ("b.png", noise(1, 64))][::order])
    with pytest.raises(UserError, match="images of 8 bits and of more in one import, and --window within 0 to 255 fits one kind"):
        imported(tmp_path, files, window=[0, 1])


@pytest.mark.parametrize(("dark", "said"), [(1, False), (2, False), (3, True)])
def test_dark_images_are_a_note_where_they_are_the_larger_part(tmp_path, dark, said) -> None:
    files = {f"{i}.png": Image.fromarray(np.full((8, 8), 63 if i < dark else 64, np.uint8)) for i in range(4)}
    assert any(line.startswith("images are dark") for line in notes_on(imported(tmp_path, files))) == said


@pytest.mark.parametrize("window", ["5", "1,2,3", "a,b", "7,7", "9,3", "0,inf", "nan,3"])
def test_windows_that_are_none(window) -> None:
    with pytest.raises(UserError, match=r"^--window: (two numbers are wanted, LOW,HIGH|LOW must be below HIGH), such as 0,4095"):
        ImportSettings.resolve(None, window=window)


def test_images_of_8_bits_stay_as_they_are_among_deep_ones(tmp_path) -> None:
    eight = noise(1, 64)
    cohort = imported(tmp_path, {"a.png": eight, "b.png": png(RAMP, 16)})
    np.testing.assert_array_equal(gray(cohort), np.asarray(eight))
    assert "1 image with 8 bits among those with more: no window, they stay as they are" in notes_on(cohort)


def test_only_deep_images_are_decoded_twice(tmp_path, monkeypatch) -> None:
    names: list[str] = []
    load = ImageFile.ImageFile.load

    def counted(image):
        if image.tile:  # not yet loaded
            names.append(Path(image.filename).name)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    imported(tmp_path, {"a.png": noise(1), "b.png": png(RAMP, 16), "c.png": noise(2), "d.png": png(RAMP, 16)}, size=24)
    assert sorted(names) == ["a.png", "b.png", "b.png", "c.png", "d.png", "d.png"]
    names.clear()
    (tmp_path / "two").mkdir()
    imported(tmp_path / "two", {"b.png": png(RAMP, 16), "d.png": png(RAMP, 16)}, window=(0, 4095))
    assert sorted(names) == ["b.png", "d.png"]


def test_the_window_is_of_the_images_that_are_imported(tmp_path) -> None:
    files = {"a.png": png(RAMP, 16), "b.png": png(RAMP * 16, 16), "c.png": png(RAMP * 16, 16)[:-90], "d.png": png(RAMP * 8, 16)}
    rows = "image,sex\na.png,female\nb.png,\nc.png,male\nd.png,male\n"
    cohort = imported(tmp_path, files, rows, attributes=["sex"], unknown="drop", skip_bad=1, limit=3)
    assert cohort.schema.made["window"] == [0, 4095] and len(cohort) == 1


def test_transparent_deep_pixels_do_not_count(tmp_path) -> None:
    samples = np.stack([RAMP, np.full_like(RAMP, 65535)], -1)
    samples[:8] = [60000, 0]  # invisible garbage
    cohort = imported(tmp_path, {"a.png": png(samples, 16)})
    assert cohort.schema.made["window"] == [0, 4095]
    assert np.unique(gray(cohort)[:8]).tolist() == [0] and int(gray(cohort)[9].max()) == 255
    assert note(cohort, "images: 1 with transparent pixels") == "images: 1 with transparent pixels, which lie on black now"


def test_a_float_image_that_is_not_finite_is_one_bad_row(tmp_path) -> None:
    bad = RAMP.astype(np.float32)
    bad[0, 0] = np.nan
    with pytest.raises(UserError) as error:
        imported(tmp_path, {"a.tif": tiff(RAMP.astype(np.float32)), "b.tif": tiff(bad)})
    fault = "pixels that are not finite (NaN or infinite); replace them, or save the image with 16 bits"
    assert str(error.value) == f"t.csv row 3: b.tif: {fault}; mend the data or pass --skip-bad 1"


@pytest.mark.parametrize(
    ("fit", "expected", "said"),
    [
        ("crop", [[20, 30], [60, 70]], "the centre was cut out, and up to 50% of an image is lost; --fit pad keeps all of it"),
        ("pad", [[0] * 4, [10, 20, 30, 40], [50, 60, 70, 80], [0] * 4], "black was added on two sides, up to 50% of the square"),
    ],
)
def test_images_that_are_not_square(tmp_path, fit, expected, said) -> None:
    wide = Image.fromarray(np.array([[10, 20, 30, 40], [50, 60, 70, 80]], np.uint8))
    square = Image.fromarray(np.arange(len(expected) ** 2, dtype=np.uint8).reshape(len(expected), -1))
    cohort = imported(tmp_path, {"a.png": wide, "b.png": square, "c.png": wide.transpose(Image.Transpose.ROTATE_90)}, fit=fit)
    assert gray(cohort).tolist() == expected
    assert note(cohort, "2 of 3 images are not square") == f"2 of 3 images are not square: {said}"


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_very_long_line_is_padded_without_a_very_large_square(tmp_path, size) -> None:
    line = Image.new("L", size, 200)
    cohort = imported(tmp_path, {"a.png": line}, fit="pad", size=16)  # the square of the line would have 3.6 billion pixels
    pixels = gray(cohort)
    assert pixels.shape == (16, 16) and pixels.sum() == 16 * 200


def test_enlarged_images(tmp_path) -> None:
    cohort = imported(tmp_path, {"a.png": noise(1, 16), "b.png": noise(2, 10), "c.png": noise(3, 64)}, size=48)
    said = "2 of 3 images were enlarged to 48 px, the smallest (10 px) 4.8 times; that adds no detail"
    assert note(cohort, "2 of 3 images were enlarged") == said
    (tmp_path / "two").mkdir()
    assert not [line for line in notes_on(imported(tmp_path / "two", {"a.png": noise(1, 48)}, size=48)) if "px" in line]


def test_a_thumbnail_that_decides_the_size(tmp_path) -> None:
    cohort = imported(tmp_path, {"a.png": noise(1, 12), "b.png": noise(2, 40), "c.png": noise(3, 96)})
    said = "size 12 px is the first image's: 2 of 3 images are larger (up to 96 px) and were reduced; give --size to keep more"
    assert note(cohort, "size 12 px") == said


@pytest.mark.parametrize(("first", "second"), [("png", "png"), ("png", "bmp"), ("tif", "webp")])
def test_one_image_in_two_splits_is_a_leak(tmp_path, first, second) -> None:
    options = {"lossless": True} if second == "webp" else {}
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(1).save(raw / f"a.{first}")
    noise(1).convert("RGB" if second == "webp" else "L").save(raw / f"b.{second}", **options)
    noise(2).save(raw / "c.png")
    noise(2).save(raw / "d.png")
    (raw / "t.csv").write_text(f"image,fold\na.{first},train\nb.{second},test\nc.png,train\nd.png,train\n")
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(split_column="fold"))
    pair = "images/a.png (train) and images/b.png (test)"
    remedy = "the splits leak; keep one of each, or give both one subject (--subject-column)"
    assert note(cohort, "identical images") == f"identical images in two splits: 1, such as {pair}; {remedy}"


def test_notes_name_no_option_that_the_source_lacks(tmp_path) -> None:
    rules = PixelRules(ImportSettings(), None, Levels)
    rules.count(rules.prepare(Image.new("L", (24, 24), 9)))  # as a source that decodes volumes hands it over
    assert rules.notes() == ["images are dark: in 1 of 1 the 99.9% quantile lies below 64 of 255; look at them"]
    files = {name: noise(1) for name in ("a.png", "b.png")}
    cohort = imported(tmp_path, files)
    cohort.table["split"] = ["train", "test"]
    cohort.schema.made["importer"] = "roco"
    assert note(cohort, "identical images").endswith("the splits leak; keep one of each, or give both one subject")


def test_what_was_converted_is_counted(tmp_path) -> None:
    palette = noise(1, colour=True).quantize(16)
    rgba = np.dstack([np.asarray(noise(2, colour=True)), np.full((24, 24), 128, np.uint8)])
    files: dict[str, bytes | Image.Image] = {
        "a.png": palette,
        "b.bmp": noise(6, colour=True).quantize(16),
        "c.png": Image.fromarray(rgba),
        "d.jpg": noise(3, colour=True).convert("CMYK"),
        "e.png": Image.fromarray(np.dstack([rgba[..., :3], np.zeros((24, 24), np.uint8)])),
    }
    raw = tmp_path / "raw"
    raw.mkdir()
    noise(4, colour=True).save(raw / "f.tif", save_all=True, append_images=[noise(5, colour=True)])
    (tmp_path / "raw2").mkdir()
    files["f.tif"] = (raw / "f.tif").read_bytes()
    cohort = imported(tmp_path / "raw2", files)
    assert [line for line in notes_on(cohort) if line.startswith("images: ")] == [
        "images: 2 with a palette, which was converted to the colours that it stands for",
        "images: 1 in CMYK, converted to RGB without a colour profile",
        "images: 1 with transparent pixels, which lie on black now",
        "images: 1 that are wholly transparent; the transparency was ignored",
        "images: 1 with several pages or frames, of which the first was taken",
    ]
    assert check_cohort(cohort.root).faults == []


def test_gray_images_with_alpha_make_a_gray_cohort(tmp_path) -> None:
    cohort = imported(tmp_path, {"a.png": noise(1).convert("LA"), "b.png": noise(2).convert("P")})
    assert cohort.schema.image_mode == "L"
    np.testing.assert_array_equal(gray(cohort), np.asarray(noise(1)))


def test_a_dicom_file_gets_its_remedy(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        imported(tmp_path, {"a.png": noise(1), "b.dcm": bytes(128) + b"DICM" + bytes(99)})
    remedy = "DICOM is not read; convert it to 16-bit PNG (DCMTK: dcmj2pnm --write-16-bit-png) and name the PNG in the table"
    assert str(error.value) == f"t.csv row 3: b.dcm: {remedy}; mend the data or pass --skip-bad 1"


def test_window_and_fit_are_options_of_the_command(tmp_path) -> None:
    from typer.testing import CliRunner

    from evenhand.cli import app

    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.png").write_bytes(png(RAMP[:32], 16))
    (raw / "t.csv").write_text("image\na.png\n")
    done = CliRunner().invoke(app, ["cohort", "import", "table", str(raw), str(tmp_path / "out"), "--window", "-10,4095", "--fit", "pad"])
    assert done.exit_code == 0, done.output
    cohort = Cohort.load(tmp_path / "out")
    assert gray(cohort).shape == (64, 64) and cohort.schema.made["settings"]["window"] == [-10, 4095]


@pytest.mark.parametrize(
    ("scale", "offset", "kind"),
    [(1 / 97, -2.5, "float32"), (1, -1000, "int16"), (1e300, 0, "float64"), (1 / 255, 1e7, "float64")],
)
def test_volumes_look_alike_whatever_their_unit(tmp_path, scale, offset, kind) -> None:
    """The window goes by percentiles of the brain, and 0 outside of it stays black: signed and huge values are no exception."""
    plain = write_brats_subject(tmp_path / "plain", "HGG", "Brats18_A_1_1").parents[1]
    other = write_brats_subject(tmp_path / "other", "HGG", "Brats18_A_1_1") / "Brats18_A_1_1_flair.nii.gz"
    voxels = brats_volume("flair").astype(float)
    write_nifti(other, np.where(voxels != 0, voxels * scale + offset, 0).astype(kind))
    expected = import_cohort("brats18", plain, tmp_path / "a").pixels()
    found = import_cohort("brats18", other.parents[2], tmp_path / "b").pixels()
    assert expected.max() == 1 and abs(found - expected).max() <= 1.5 / 255
