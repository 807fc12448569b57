"""Bad raw data: each fault in one line with file and row, all faults listed, and nothing left behind."""

import errno
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cohorts.raw_data import HAM_HEADER, HAM_ROWS, picture, png_bomb, write_ham, write_nih, write_table
from PIL import Image, ImageFile

from evenhand.cohorts.checking import check_cohort, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import claim
from evenhand.core.errors import UserError

SEX = ImportSettings(attributes=["sex"])
FORMATS = "PNG, JPEG, BMP, TIFF, WEBP"


def message(source: str, raw: Path, out: Path, settings: ImportSettings | None = None) -> str:
    """The one line that an import fails with; it leaves nothing under its final name, nor half-made beside it."""
    before = set(out.parent.iterdir())
    with pytest.raises(UserError) as error:
        import_cohort(source, raw, out, settings)
    assert "\n" not in str(error.value)
    assert {path.name for path in set(out.parent.iterdir()) - before} <= {f"{out.name}.faults.txt"}
    return str(error.value)


def one_bad(tmp_path: Path, name: str = "bad.png") -> Path:
    """A table of one good image and one that the test spoils."""
    return write_table(tmp_path / "raw", [{"image": "good.png", "sex": "male"}, {"image": name, "sex": "female"}])


def test_missing_column(tmp_path) -> None:
    raw = one_bad(tmp_path)
    assert message("table", raw, tmp_path / "out", ImportSettings(attributes=["sxe"])) == (
        f"{raw / 'labels.csv'}: no column 'sxe'; did you mean 'sex'? There is: image, sex"
    )
    (raw / "labels.csv").write_text("scan,sex\n")
    remedy = "name the column of images with --image-column"
    assert message("table", raw, tmp_path / "out", SEX) == f"{raw / 'labels.csv'}: no column 'image'; There is: scan, sex; {remedy}"
    ham = write_ham(tmp_path / "ham")
    table = ham / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace("lesion_id", "lesion"))
    assert message("ham10000", ham, tmp_path / "out") == (
        f"{table}: no column 'lesion_id'; did you mean 'lesion'? There is: lesion, {', '.join(HAM_HEADER[1:])}"
    )
    nih = write_nih(tmp_path / "nih")
    table = nih / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Patient Gender", "Gender"))
    assert message("nih-cxr", nih, tmp_path / "out").startswith(f"{table}: no column 'Patient Gender'; did you mean 'Patient Age'")


def test_unknown_group(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", [HAM_ROWS[0], ("L", "ISIC_9", "nv", "histo", "50", "femal", "back")])
    assert message("ham10000", raw, tmp_path / "out") == (
        "HAM10000_metadata.csv row 3: sex 'femal' is no known group; did you mean 'female' or 'male'? There is: female, male; "
        "mend the data or pass --skip-bad 1"
    )


def test_empty_age_is_a_group_of_its_own(tmp_path) -> None:
    cohort = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "out")
    assert cohort.table["age_group"][3] == "unknown"
    assert cohort.table["prompt"][3] == "Dermoscopic image of a female patient with the following diagnostic category: malignant"
    assert cohort.schema.attributes["age_group"] == ["<60", ">=60"]


def test_duplicate_image_id(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", [*HAM_ROWS, HAM_ROWS[1]])
    assert message("ham10000", raw, tmp_path / "out") == (
        "HAM10000_metadata.csv row 8: image id 'ISIC_0000002' stands in HAM10000_metadata.csv row 3 already; keep one of the two rows; "
        "mend the data or pass --skip-bad 1"
    )


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("../secret.png", "path leads out of the data folder ('..'); put the file inside it"),
        ("a/../../secret.png", "path leads out of the data folder ('..'); put the file inside it"),
        ("..\\secret.png", "path leads out of the data folder ('..'); put the file inside it"),
        ("{absolute}", "absolute path; write it relative to the data folder"),
        ("C:\\secret.png", "absolute path; write it relative to the data folder"),
        ("link.png", "path leads out of the data folder through a link; copy the file into it"),
        ("linked/secret.png", "path leads out of the data folder through a link; copy the file into it"),
    ],
)
def test_paths_that_lead_out(tmp_path, path, fault) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(1).save(outside / "secret.png")
    picture(1).save(tmp_path / "secret.png")
    path = path.format(absolute=tmp_path / "secret.png")
    raw = tmp_path / "raw"
    write_table(raw, [{"image": "good.png", "sex": "male"}])
    (raw / "link.png").symlink_to(tmp_path / "secret.png")
    (raw / "linked").symlink_to(outside)
    (raw / "labels.csv").write_text(f"image,sex\ngood.png,male\n{path},female\n")
    assert message("table", raw, tmp_path / "out", SEX) == f"labels.csv row 3: {path}: {fault}; mend the data or pass --skip-bad 1"


@pytest.mark.parametrize("image_id", ["../../secret", "{absolute}"])
def test_image_ids_that_lead_out(tmp_path, image_id) -> None:
    picture(1).save(tmp_path / "secret.jpg")
    image_id = image_id.format(absolute=tmp_path / "secret")
    raw = tmp_path / "raw"
    write_ham(raw, HAM_ROWS[:1])
    with (raw / "HAM10000_metadata.csv").open("a") as table:
        table.write(f"L,{image_id},nv,histo,50,male,back\n")
    fault = "path leads out of the data folder ('..'); put the file inside it"
    fault = "absolute path; write it relative to the data folder" if image_id.startswith("/") else fault
    assert message("ham10000", raw, tmp_path / "out") == (
        f"HAM10000_metadata.csv row 3: {image_id}.jpg: {fault}; mend the data or pass --skip-bad 1"
    )


def test_missing_image(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw")
    (raw / "HAM10000_images_part_2" / "ISIC_0000004.jpg").unlink()
    assert message("ham10000", raw, tmp_path / "out") == (
        "HAM10000_metadata.csv row 5: ISIC_0000004.jpg: no such file in HAM10000_images_part_1, HAM10000_images_part_2; "
        "mend the data or pass --skip-bad 1"
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif"])
def test_truncated_image(tmp_path, ending) -> None:
    raw = one_bad(tmp_path, f"bad.{ending}")
    file = raw / f"bad.{ending}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    said = message("table", raw, tmp_path / "out", SEX)
    assert said.startswith(f"labels.csv row 3: bad.{ending}: truncated or damaged (")
    assert said.endswith("); mend the data or pass --skip-bad 1")


def test_empty_file(tmp_path) -> None:
    raw = one_bad(tmp_path)
    (raw / "bad.png").write_bytes(b"")
    assert message("table", raw, tmp_path / "out", SEX) == (
        "labels.csv row 3: bad.png: empty file (0 bytes); mend the data or pass --skip-bad 1"
    )


@pytest.mark.parametrize("content", [b"only words\n", b"%PDF-1.7\n", b"GIF89a" + bytes(40), b"\x80\x04K\x01."])
def test_something_else_renamed_png(tmp_path, content) -> None:
    raw = one_bad(tmp_path)
    (raw / "bad.png").write_bytes(content)
    assert message("table", raw, tmp_path / "out", SEX) == (
        f"labels.csv row 3: bad.png: not an image ({FORMATS} are read); mend the data or pass --skip-bad 1"
    )


@pytest.mark.parametrize(
    ("side", "fault"),
    [
        (60_000, "header claims more than 50,000,000 pixels; not decoded"),
        (8_000, "header claims 8,000 x 8,000 pixels, more than 50,000,000; not decoded"),
    ],
)
def test_decompression_bomb_is_never_decoded(tmp_path, monkeypatch, side, fault) -> None:
    raw = one_bad(tmp_path)
    bomb = png_bomb(raw / "bad.png", side, side)
    assert bomb.stat().st_size < 200
    decoded: list[str] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (decoded.append(Path(image.filename).name), load(image))[1])
    said = message("table", raw, tmp_path / "out", SEX)
    assert said == f"labels.csv row 3: bad.png: {fault}; mend the data or pass --skip-bad 1"
    assert set(decoded) == {"good.png"}


def test_one_group_only(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", HAM_ROWS[:2])
    cohort = import_cohort("ham10000", raw, tmp_path / "out")
    assert len(cohort) == 2
    notes = notes_on(cohort)
    assert "sex: one group only (male); no gap between its groups can be told" in notes
    assert "malignancy: one group only (benign); no gap between its groups can be told" in notes


def test_every_fault_is_listed(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", [*HAM_ROWS[:5], ("L", "ISIC_6", "xx", "histo", "50", "male", "back")])
    (raw / "HAM10000_images_part_1" / "ISIC_0000002.jpg").write_bytes(b"")
    (raw / "HAM10000_images_part_2" / "ISIC_0000004.jpg").write_bytes(b"words")
    expected = [
        "HAM10000_metadata.csv row 3: HAM10000_images_part_1/ISIC_0000002.jpg: empty file (0 bytes)",
        f"HAM10000_metadata.csv row 5: HAM10000_images_part_2/ISIC_0000004.jpg: not an image ({FORMATS} are read)",
        "HAM10000_metadata.csv row 7: dx 'xx' is no known group; There is: akiec, bcc, mel, bkl, df, nv, vasc",
    ]
    listing = tmp_path / "out.faults.txt"
    for tolerated in (0, 2):
        said = message("ham10000", raw, tmp_path / "out", ImportSettings(skip_bad=tolerated))
        assert said == f"{expected[0]} and 2 more, all listed in {listing}; mend the data or pass --skip-bad 3"
        assert listing.read_text().splitlines() == expected
    cohort = import_cohort("ham10000", raw, tmp_path / "out", ImportSettings(skip_bad=3))
    assert list(cohort.table["image_id"]) == ["ISIC_0000001", "ISIC_0000003", "ISIC_0000005"]
    assert cohort.schema.made["skipped"] == expected and not listing.exists()
    assert "3 bad rows were left out at import; cohort.json lists them" in notes_on(cohort)


def test_nothing_to_import(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "a.png", "sex": "male"}])
    (raw / "a.png").write_bytes(b"")
    fault = "labels.csv row 2: a.png: empty file (0 bytes)"
    assert message("table", raw, tmp_path / "out", ImportSettings(skip_bad=1)) == (
        f"{raw}: no image to import (1 bad, 0 with an unknown group): {fault}"
    )
    (raw / "labels.csv").write_text("image,sex\na.png,male\nb.png,male\n")
    listing = tmp_path / "out.faults.txt"
    assert message("table", raw, tmp_path / "out", ImportSettings(skip_bad=9)) == (
        f"{raw}: no image to import (2 bad, 0 with an unknown group): {fault} and 1 more, all listed in {listing}"
    )
    assert [line.partition(": ")[0] for line in listing.read_text().splitlines()] == ["labels.csv row 2", "labels.csv row 3"]


def test_tables_that_are_none(tmp_path) -> None:
    raw = one_bad(tmp_path)
    (raw / "t.parquet").write_bytes(b"PAR1 is not all it takes")
    said = message("table", raw / "t.parquet", tmp_path / "out")
    assert said.startswith(f"{raw / 't.parquet'}: not a readable table (")
    (raw / "labels.csv").write_bytes(b"image,sex\ngood.png,m\xe4nnlich\n")
    said = message("table", raw / "labels.csv", tmp_path / "out", ImportSettings(attributes=["sex"], encoding="utf-8"))
    why = "not utf-8 text (invalid continuation byte, near line 1)"
    assert said == f"{raw / 'labels.csv'}: {why}; name its real encoding with --encoding"
    (raw / "t.jsonl").write_text('{"image": "good.png"}\n[1]\n')
    fault = "t.jsonl row 2: not a JSON object; each line is one image's columns"
    assert message("table", raw / "t.jsonl", tmp_path / "out") == f"{fault}; mend the data or pass --skip-bad 1"
    assert message("table", tmp_path / "no", tmp_path / "out") == f"{tmp_path / 'no'}: no such file or folder; name the raw data of table"
    known = "brats18, chexpert, fairgenmed, ham10000, nih-cxr, roco, table"
    assert message("tabel", raw, tmp_path / "out") == f"unknown source 'tabel'; did you mean 'table'? There is: {known}"


def test_output_folder_holds_something(tmp_path) -> None:
    raw, out = write_ham(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    assert message("ham10000", raw, out) == f"{out}: exists already; choose another output folder or remove it"
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_output_folder_in_use_by_another_process(tmp_path) -> None:
    raw, out = write_ham(tmp_path / "raw"), tmp_path / "out"
    partial = tmp_path / ".out.partial"
    with claim(partial):
        code = (
            "import sys; from pathlib import Path; from evenhand.cohorts.sources.importing import import_cohort\n"
            "from evenhand.core.errors import UserError\n"
            "try: import_cohort('ham10000', Path(sys.argv[1]), Path(sys.argv[2]))\n"
            "except UserError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(raw), str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{partial}: in use by process {os.getpid()}; wait for it or choose another output folder\n"
    assert len(import_cohort("ham10000", raw, out)) == len(HAM_ROWS)  # the lock is gone with its holder


class Disk:
    """Lets ``budget`` writes pass and answers every later one with ENOSPC, as a full disk does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
        self.left = budget
        for place, name in (
            (os, "fsync"),
            (os, "replace"),
            (Path, "write_bytes"),
            (Path, "mkdir"),
            (pq.ParquetWriter, "write_table"),
        ):
            monkeypatch.setattr(place, name, self._limited(getattr(place, name)))

    def _limited(self, write):
        def limited(*args, **options):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **options)

        return limited


def test_no_disk_space_at_any_write(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", HAM_ROWS[:3])
    failures = 0
    for budget in range(200):
        out = tmp_path / f"out{budget}"
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, budget)
            try:
                import_cohort("ham10000", raw, out)
                break
            except UserError as error:
                assert str(error) == f"{out}: no space left on the device; free some, or choose another output folder"
                failures += 1
        # the very last write flushes the parent folder: by then the whole cohort has its final name
        assert not out.exists() or check_cohort(out).faults == []
        assert not any(file.suffix in (".png", ".parquet", ".json", ".tmp") for file in tmp_path.glob(f".out{budget}*/**/*"))
    assert failures >= 12 and len(Cohort.load(out)) == 3
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]
    assert len(left) <= 2  # the one that succeeded, and the one that failed after its last write


def test_an_interrupted_import_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch) -> None:
    raw, out = write_ham(tmp_path / "raw"), tmp_path / "out"
    opened = Image.open
    seen = []

    def interrupted(*args, **options):
        seen.append(args)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return opened(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image, "open", interrupted)
        import_cohort("ham10000", raw, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert len(import_cohort("ham10000", raw, out)) == len(HAM_ROWS)


def test_memory_does_not_grow_with_images(tmp_path, monkeypatch) -> None:
    """No decoded image outlives its row: at most the one at hand and the one before it are alive."""
    rows = [(f"HAM_{i}", f"ISIC_{i}", "nv", "histo", "50", "male", "back") for i in range(40)]
    raw = write_ham(tmp_path / "raw", rows)
    decoded: list[weakref.ref] = []
    most = 0
    load = ImageFile.ImageFile.load

    def counted(image):
        nonlocal most
        if not any(seen() is image for seen in decoded):
            decoded.append(weakref.ref(image))
        most = max(most, sum(seen() is not None for seen in decoded))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    import_cohort("ham10000", raw, tmp_path / "out", ImportSettings(size=8))
    assert len(decoded) == 40 and most <= 2


@pytest.mark.parametrize(("delimiter", "end"), [("|", "|"), (";", ""), (",", ",,")])
def test_two_stray_quotes_swallow_no_rows(tmp_path, delimiter, end) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(6)])
    rows = [["image", "sex", "note"], *([f"{i}.png", "mf"[i % 2], "fine"] for i in range(6))]
    rows[2][2], rows[4][2] = '"halo', 'halo"'
    (raw / "labels.csv").write_text("".join(delimiter.join(row) + end + "\n" for row in rows))
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], skip_bad=9))
    assert len(cohort) + len(cohort.schema.made["skipped"]) == 6
    assert any("row 3" in fault for fault in cohort.schema.made["skipped"])
    assert dict(zip(cohort.table["image_id"], cohort.table["sex"], strict=True)).items() >= {("0.png", "m"), ("4.png", "m"), ("5.png", "f")}


def test_two_stray_quotes_in_the_first_column_swallow_no_rows(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(4)])
    rows = ['"halo;m;./0.png', "fine;f;1.png", "fine;m;./2.png", 'halo";f;./3.png', "fine;m;./0.png"]
    (raw / "labels.csv").write_text("note;sex;image\n" + "\n".join(rows) + "\n")
    assert "row 2" in message("table", raw, tmp_path / "out", SEX)


@pytest.mark.parametrize("spoilt", ['"halo', '"a "so called" node"'])
def test_one_bad_quote_in_a_quoted_tab_separated_file(tmp_path, spoilt) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(3)])
    (raw / "labels.csv").unlink()
    rows = [('"image"', '"sex"', '"note"'), *((f'"{i}.png"', '"f"', spoilt if i == 1 else '"fine"') for i in range(3))]
    (raw / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], skip_bad=9))
    assert list(cohort.table["image_id"]) == ["0.png", "2.png"] and "t.tsv row 3" in cohort.schema.made["skipped"][0]


@pytest.mark.parametrize("cell", [r"\ud800", r"film \udc00\ud800 2"])
def test_half_a_character_is_no_text(tmp_path, cell) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(2)])
    (raw / "labels.csv").unlink()
    (raw / "t.jsonl").write_text('{"image": "0.png", "sex": "f"}\n{"image": "1.png", "sex": "' + cell + '"}\n')
    fault = "column 'sex' holds half a character (a lone surrogate), which is no text; mend the cell"
    assert message("table", raw, tmp_path / "out", SEX) == f"t.jsonl row 2: {fault}; mend the data or pass --skip-bad 1"
    assert len(import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], skip_bad=1))) == 1
