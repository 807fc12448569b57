"""Look-up of files: names as other systems write them, one file that fits, near names where none does."""

import unicodedata
from pathlib import Path

import pytest
from cohorts.raw_data import HAM_ROWS, picture, write_ham, write_table

from evenhand.cohorts.checking import notes_on
from evenhand.cohorts.lookup import Lookup, NoFile, file_in, is_junk, split_ending
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.values import BadRow
from evenhand.core.errors import UserError

COMPOSED = unicodedata.normalize("NFC", "Röntgen/Schädel.png")
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def files(root: Path, *names: str) -> Lookup:
    """A folder of empty files: a look-up never opens one."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return Lookup(root)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("scans/1.png", "scans/1.png"),
        ("scans\\1.png", "scans/1.png"),
        (".\\scans\\1.png", "scans/1.png"),
        ("./scans//1.png", "scans/1.png"),
        ("/scans/1.png", "scans/1.png"),
        ("\\scans\\1.png", "scans/1.png"),
        (' "scans/1.png" ', "scans/1.png"),
        ("'scans/1.png'", "scans/1.png"),
        ("scans/1.png", "Scans/1.PNG"),
        ("SCANS/1.TIF", "scans/1.tif"),
        ("scans/1", "scans/1.JPEG"),
        ("scans/1.jpg", "scans/1.png"),
        ("1.2.840.113", "1.2.840.113.png"),
        ("scans/12.0", "scans/12.png"),  # an id that a table of numbers has made a float
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        (COMPOSED.upper(), DECOMPOSED),
        ("raw/scans/1.png", "scans/1.png"),  # the data folder's own name in front
        ("scans /1.png", "scans/1.png"),
        ("back\\slash.png", "back\\slash.png"),  # a name that really holds one
    ],
)
def test_a_file_is_found_whatever_system_wrote_its_name(tmp_path, written, there) -> None:
    lookup = files(tmp_path / "raw", there, "scans/2.png", "other/3.jpg")
    assert lookup.find(written) == there


def test_the_exact_name_counts_first_and_lists_no_folder(tmp_path) -> None:
    lookup = files(tmp_path, "a/1.png", "a/1.PNG", "A/1.png", "a/1.jpg")
    assert [lookup.find(name) for name in ("a/1.png", "a/1.PNG", "A/1.png", "a/1.jpg")] == ["a/1.png", "a/1.PNG", "A/1.png", "a/1.jpg"]
    assert lookup.listings == {} and lookup.notes() == []


@pytest.mark.parametrize(
    ("written", "there", "fits"),
    [
        ("1", ("1.png", "1.jpg"), "1.jpg and 1.png"),
        ("1.tif", ("1.png", "1.jpg"), "1.jpg and 1.png"),
        ("A.png", ("a.png", "a.PNG"), "a.PNG and a.png"),
        ("X/1.jpg", ("x/1.png", "X/1.bmp"), "X/1.bmp and x/1.png"),
    ],
)
def test_several_files_that_fit_are_refused(tmp_path, written, there, fits) -> None:
    lookup = files(tmp_path, *there)
    if len({name.lower() for name in there}) < len(there) and len(list(tmp_path.rglob("*.*"))) < len(there):
        pytest.skip("this file system does not tell cases apart")
    with pytest.raises(BadRow) as error:
        lookup.find(written)
    assert str(error.value).endswith("both fit; write the one that is meant")
    assert set(fits.split(" and ")) <= set(str(error.value).replace(":", "").split())


def test_a_nearer_name_wins(tmp_path) -> None:
    lookup = files(tmp_path, "1.PNG", "1.jpg", "2.dcm", "2.bmp", "3.dcm")
    assert lookup.find("1.png") == "1.PNG"
    assert lookup.find("2") == "2.bmp"  # DICOM is taken where nothing else fits, so that opening it says what it is
    assert lookup.find("3") == "3.dcm"


def test_volumes_and_images_do_not_stand_for_each_other(tmp_path) -> None:
    lookup = files(tmp_path, "S/S_flair.png", "T/T_FLAIR.NII.GZ", "U/u_flair.nii")
    with pytest.raises(NoFile):
        lookup.find("S/S_flair", endings=(".nii.gz", ".nii"))
    assert lookup.find("T/T_flair", endings=(".nii.gz", ".nii")) == "T/T_FLAIR.NII.GZ"
    assert lookup.find("U/U_flair.nii.gz", endings=("",)) == "U/u_flair.nii"
    assert split_ending("T_FLAIR.NII.GZ") == ("T_FLAIR", ".NII.GZ") and split_ending("1.2.840") == ("1.2.840", "")


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("images/0001.png", "images/001.png"),
        ("images/sacn-7.png", "images/scan_7.png"),
        ("pictures/scan_7.png", "images/scan_7.png"),
        ("scan_7.png", "images/scan_7.png"),
        ("images/scan_8.png", None),  # another number is another image
        ("images/0012.png", None),
        ("images/nothing like it.png", None),
    ],
)
def test_near_names(tmp_path, written, near) -> None:
    lookup = files(tmp_path, "images/001.png", "images/scan_7.png", "images/scan_9.png")
    with pytest.raises(NoFile) as error:
        lookup.find(written)
    assert str(error.value) == f"{written}: no such file in the data folder" + (f"; did you mean {near}?" if near else "")


def test_a_bare_name_in_one_folder(tmp_path) -> None:
    lookup = files(tmp_path, "images/1.png", "images/2.png", "thumbs/2.png", "images/deep/3.png")
    assert lookup.find("1.png", anywhere=True) == lookup.find("1", anywhere=True) == "images/1.png"
    assert "2 images are named in the table without the folder that they lie in, such as '1.png' for 'images/1.png'" in lookup.notes()
    with pytest.raises(BadRow, match=r"images/2.png and thumbs/2.png both fit"):
        lookup.find("2.png", anywhere=True)
    for name in ("3.png", "elsewhere/1.png"):
        with pytest.raises(NoFile):
            lookup.find(name, anywhere=True)


@pytest.mark.parametrize(
    ("written", "fault"),
    [
        ("a\\..\\..\\secret.png", "path leads out of the data folder ('..'); put the file inside it"),
        ("/../secret.png", "absolute path; write it relative to the data folder"),
        ("C:/raw/1.png", "absolute path; write it relative to the data folder"),
        ("\\\\server\\share\\1.png", "absolute path; write it relative to the data folder"),
        ("OUT/secret.png", "path leads out of the data folder through a link; copy the file into it"),
        ("out/secret", "no such file in the data folder"),  # folders behind a link are not listed
        ("LINK.png", "path leads out of the data folder through a link; copy the file into it"),
        ("._1.png", "a hidden file, such as macOS writes beside others, is no image; remove the row"),
        ("{'bytes': None, 'path': '1.png'}", "an image written as text, no file name; save images as files, or as image bytes in Parquet"),
        ("https://example.org/1.png", "a web address, no file; download the images and name the files"),
        ("a\nb.png", "not a file name; name the column of the image paths, or save images that stand in the table as files"),
        ("x" * 300 + ".png", "no such file in the data folder"),
        ("./", "no such file in the data folder"),
    ],
)
def test_what_is_never_found(tmp_path, written, fault) -> None:
    lookup = files(tmp_path / "raw", "1.png", "._1.png", "a/2.png")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.png").write_bytes(b"")
    (tmp_path / "secret.png").write_bytes(b"")
    (tmp_path / "raw" / "OUT").symlink_to(tmp_path / "outside")
    (tmp_path / "raw" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(BadRow) as error:
        lookup.find(written)
    assert str(error.value).endswith(fault) and len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "cell", ["{'bytes': b'" + "\\x89PNG" * 999 + "', 'path': None}", "iVBORw0KGgo" * 5000, "data:image/png;base64," + "A" * 5000]
)
def test_images_written_as_text_are_refused_in_a_short_line(tmp_path, cell) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png", "sex": "male"}])
    with (raw / "labels.csv").open("a") as file:
        file.write(f'"{cell}",female\n')
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))
    assert str(error.value).startswith(f"labels.csv row 3: {cell[:40]}") and len(str(error.value)) < 400


def test_operating_systems_own_files(tmp_path) -> None:
    assert all(map(is_junk, ("._t.csv", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"))) and not is_junk("t.csv")
    files(tmp_path, "._Train.csv", "Train.CSV", "other.csv", "Other.csv")
    assert file_in(tmp_path, "train.csv") == tmp_path / "Train.CSV" and file_in(tmp_path, "other.csv") == tmp_path / "other.csv"
    assert file_in(tmp_path, "valid.csv", "train.csv") == tmp_path / "Train.CSV" and file_in(tmp_path / "none", "x") is None


def test_what_differed_is_noted(tmp_path) -> None:
    rows = [{"image": f"{number}.jpg", "sex": sex} for number, sex in enumerate(("male", "female", "male"))]
    raw = write_table(tmp_path / "raw", rows)
    for number, name in enumerate(("0.png", "1.png", "2.JPG")):
        (raw / f"{number}.jpg").unlink()
        picture(number).save(raw / name)
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))
    assert list(cohort.table["image_id"]) == ["0.png", "1.png", "2.JPG"]
    notes = notes_on(cohort)
    assert "2 images are named in the table with another ending than on the disk, such as '0.jpg' for '0.png'" in notes
    assert "1 images are named in the table in another case than on the disk, such as '2.jpg' for '2.JPG'" in notes


def test_two_names_of_one_file_are_one_image(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png", "sex": "male"}])
    (raw / "labels.csv").write_text("image,sex\n1.png,male\n1,male\n")
    with pytest.raises(UserError, match=r"row 3: image id '1.png' stands in labels.csv row 2 already"):
        import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))


@pytest.mark.parametrize("change", [str.upper, str.lower])
def test_every_importer_looks_up_alike(tmp_path, change) -> None:
    raw = write_ham(tmp_path / "raw")
    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            path.rename(folder / change(path.name))
    (raw / "HAM10000_metadata.csv").rename(raw / "ham10000_METADATA.CSV")
    (raw / "._HAM10000_metadata.csv").write_bytes(b"\0\5\x16\7")
    cohort = import_cohort("ham10000", raw, tmp_path / "out")
    assert list(cohort.table["image_id"]) == [row[1] for row in HAM_ROWS]
