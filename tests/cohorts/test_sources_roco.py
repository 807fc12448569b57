"""ROCO: both versions and all three layouts, missing images, licences, articles in several splits, archives that lead out."""

import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohorts.raw_data import ROCO_CAPTIONS, picture_bytes, png_bomb, real_data, write_roco, write_roco2
from PIL import Image

from evenhand import cli
from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks
from evenhand.core.errors import UserError

END = "; mend the data or pass --skip-bad 1"
ROWS2 = (
    ("ROCOv2_2023_train_000001", 'CT, "axial", of a 45-year-old woman', "C0040405;C0041618"),
    ("ROCOv2_2023_train_000002", "Radiograph of the knee", "C1306645"),
)


def imported(raw: Path, **settings) -> Cohort:
    return import_cohort("roco", raw, raw.parent / "out", ImportSettings(size=16, **settings))


def refusal(raw: Path, **settings) -> str:
    out = raw.parent / "refused"
    with pytest.raises(UserError) as error:
        import_cohort("roco", raw, out, ImportSettings(size=16, **settings))
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


@pytest.mark.parametrize("base", ["data", "", "roco-dataset/data"])
def test_version_1(tmp_path, base) -> None:
    cohort = imported(write_roco(tmp_path / "raw", folder=f"{base}/train/radiology".strip("/")))
    table = cohort.table
    assert list(table["image_id"]) == [row[0] for row in ROCO_CAPTIONS]
    assert list(table["prompt"]) == [row[1].strip() for row in ROCO_CAPTIONS]
    assert list(table["sex"]) == ["female", "male", "unknown", "male"]
    assert list(table["age_group"]) == ["<60", "<60", "unknown", ">=60"]
    assert list(table["age"]) == ["45Y", "3M", "", "72Y"]
    assert list(table["subject_id"]) == ["PMC1000001", "PMC1000002", "PMC1000001", "ROCO_00004"]
    assert list(table["licence"]) == ["CC BY", "CC BY-NC", "CC BY", "unknown"]
    assert list(table["cuis"])[1:3] == ["C0040405;C00002", "C0040405;C00003"]  # the file has them in another order
    assert list(table["semtypes"])[:1] == ["T060;T033"] and list(table["keywords"])[:1] == ["axial;mass"]
    assert set(table["split"]) == {"train"}
    assert cohort.schema.licence == "column 'licence': CC BY (2), CC BY-NC (1), unknown (1)"
    assert cohort.schema.conditions == {} and cohort.schema.modality == "radiology"
    notes = notes_on(cohort)
    assert "sex: named by 3 of 4 captions; unknown elsewhere" in notes
    assert "age_group: named by 3 of 4 captions; unknown elsewhere" in notes
    assert leaks(table) == [] and check_cohort(cohort.root).faults == []


def test_missing_images_are_left_out_and_counted(tmp_path) -> None:
    cohort = imported(write_roco(tmp_path / "raw", missing=["ROCO_00001", "ROCO_00003"]))
    assert list(cohort.table["image_id"]) == ["ROCO_00002", "ROCO_00004"]
    assert "2 rows were left out at import: no image file" in notes_on(cohort)
    assert "sex: no image of group 'female'" not in notes_on(cohort)
    assert "sex: one group only (male); no gap between its groups can be told" in notes_on(cohort)
    counts = group_counts(cohort).set_index(["column", "group"])["images"]
    assert counts["sex", "female"] == 0 and counts["sex", "male"] == 2  # an absent group stays visible


def test_no_image_at_all(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw", missing=[row[0] for row in ROCO_CAPTIONS])
    assert refusal(raw) == f"{raw}: no image to import (0 bad, 0 with an unknown group, 4 left out: no image file)"


@pytest.mark.parametrize("asked", ["CC BY,CC0", "cc-by", "CC BY"])
def test_licences_are_filtered(tmp_path, asked) -> None:
    raw = write_roco(tmp_path / "raw", [*ROCO_CAPTIONS, ("ROCO_00005", " A scan", "PMC9_x.jpg", "CC0")])
    cohort = imported(raw, licence=asked)
    wanted = {"CC BY", "CC0"} if "CC0" in asked else {"CC BY"}
    assert set(cohort.table["licence"]) == wanted
    notes = notes_on(cohort)
    assert "1 rows were left out at import: licence CC BY-NC (--licence)" in notes
    assert "1 rows were left out at import: licence not told (--licence)" in notes


def test_a_licence_that_no_image_has(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw")
    assert refusal(raw, licence="CC BY,CC BB") == (
        "--licence: no image has the licence 'CC BB'; did you mean 'CC BY' or 'CC BY-NC'? There is: CC BY, CC BY-NC"
    )
    raw = write_roco(tmp_path / "bare", licences=False)
    assert refusal(raw, licence="CC BY") == f"--licence 'CC BY': {raw} tells no image's licence; leave the option out"


def test_articles_come_from_the_links_where_licences_are_missing(tmp_path) -> None:
    cohort = imported(write_roco(tmp_path / "raw", licences=False, links=True))
    assert list(cohort.table["subject_id"]) == ["PMC1000001", "PMC1000002", "PMC1000001", "ROCO_00004"]
    assert set(cohort.table["licence"]) == {"unknown"}


def test_an_article_is_held_out_where_any_of_its_images_is(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw")
    write_roco(raw, [("ROCO_00006", " A scan of the liver", "PMC1000001_d.jpg", "CC BY")], "data/validation/radiology")
    write_roco(raw, [("ROCO_00007", " A photograph", "PMC1000002_e.jpg", "CC BY")], "data/test/non-radiology")
    table = imported(raw).table.set_index("image_id")
    assert dict(table["split"]) == {
        **{"ROCO_00001": "val", "ROCO_00002": "test", "ROCO_00003": "val", "ROCO_00004": "train"},
        "ROCO_00006": "val",
    }
    cohort = import_cohort("roco", raw, tmp_path / "all", ImportSettings(conditions=["kind"], size=16))
    assert list(cohort.table["kind"]) == ["radiology"] * 5 + ["non-radiology"]
    assert leaks(cohort.table) == []
    assert "3 images are in another split than published, since their article has held-out images" in notes_on(cohort)


def test_odd_captions(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw")
    captions = raw / "data/train/radiology/captions.txt"
    captions.write_text('ROCO_00001\t  A "quoted, 60-year-old" man\t\n\nROCO_00002\t \nno tab at all\nROCO_00003\tscan\r\n')
    assert refusal(raw) == f"data/train/radiology/captions.txt row 4: 'no tab at all' is not an id, a tab and a caption{END}"
    cohort = imported(raw, skip_bad=1)
    assert list(cohort.table["prompt"]) == ['A "quoted, 60-year-old" man', "scan"]
    assert "1 rows were left out at import: no caption" in notes_on(cohort)
    captions.write_bytes(b"ROCO_00001\t caf\xe9\n")
    latin = import_cohort("roco", raw, tmp_path / "latin", ImportSettings(size=16))
    assert list(latin.table["prompt"]) == ["café"]
    note = "captions.txt: not UTF-8, read as cp1252; where letters are wrong, name the encoding with --encoding"
    assert note in notes_on(latin)


def test_captions_that_are_passed_over_are_counted(tmp_path) -> None:
    rows = [
        ("ROCO_00001", " (a) a 45-year-old man, (b) a 50-year-old woman", "", ""),
        ("ROCO_00002", " a 4-year-old female dog", "", ""),
    ]
    cohort = imported(write_roco(tmp_path / "raw", rows))
    assert list(cohort.table["sex"]) == ["unknown", "unknown"]
    assert list(cohort.table["age_group"]) == ["<60", "unknown"]
    notes = notes_on(cohort)
    assert "1 captions name a sex or an age that is not taken: both sexes are named" in notes
    assert "1 captions name a sex or an age that is not taken: an animal or a phantom" in notes


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../secret", "path leads out of the data folder ('..'); put the file inside it"),
        ("{absolute}", "absolute path; write it relative to the data folder"),
    ],
)
def test_ids_that_lead_out(tmp_path, name, fault) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture_bytes(1))
    name = name.format(absolute=tmp_path / "secret")
    raw = write_roco(tmp_path / "raw", [(name, " scan", "", "")])
    assert refusal(raw) == f"data/train/radiology/captions.txt row 1: {name}.jpg: {fault}{END}"


def test_damaged_image(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw")
    (raw / "data/train/radiology/images/ROCO_00002.jpg").write_bytes(b"")
    said = refusal(raw)
    assert said == ("data/train/radiology/captions.txt row 2: data/train/radiology/images/ROCO_00002.jpg: empty file (0 bytes)" + END)


def test_version_2_archives(tmp_path) -> None:
    raw = write_roco2(tmp_path / "raw", "train", ROWS2)
    rows = [("ROCOv2_2023_valid_000001", "MRI of a 70-year-old man", "C0024485")]
    write_roco2(raw, "valid", rows, {"ROCOv2_2023_valid_000001.jpg": picture_bytes(9), "._ROCOv2_2023_valid_000001.jpg": b"macOS"})
    cohort = imported(raw)
    table = cohort.table
    assert list(table["prompt"])[:2] == [row[1] for row in ROWS2]
    assert list(table["sex"]) == ["female", "unknown", "male"] and list(table["split"]) == ["train", "train", "val"]
    assert list(table["cuis"]) == ["C0040405;C0041618", "C1306645", "C0024485"]
    assert cohort.schema.licence == "CC BY or CC BY-NC, by article; column 'licence': unknown (3)"
    assert cohort.schema.source.startswith("ROCOv2")
    assert [path.name for path in raw.iterdir() if path.is_dir()] == []  # nothing was unpacked
    assert "articles are not told: every image is a subject of its own, and images of one article may lie in several splits" in (
        notes_on(cohort)
    )
    assert check_cohort(cohort.root).faults == []


def test_unpacked_archives_and_their_terms(tmp_path) -> None:
    raw = write_roco2(tmp_path / "raw", "train", ROWS2)
    with zipfile.ZipFile(raw / "train_images.zip") as archive:
        archive.extractall(raw)
    (raw / "train_images.zip").unlink()
    (raw / "train" / f"{ROWS2[1][0]}.jpg").unlink()
    (raw / "license_information.csv").write_text(
        f"Image ID,License,Link\n{ROWS2[0][0]},CC BY-NC,https://www.ncbi.nlm.nih.gov/pmc/articles/PMC77/\n{ROWS2[1][0]}.jpg,CC BY,PMC78\n"
    )
    cohort = imported(raw, licence="CC BY-NC,CC BY")
    assert list(cohort.table["subject_id"]) == ["PMC77"] and list(cohort.table["licence"]) == ["CC BY-NC"]
    assert "1 rows were left out at import: no image file" in notes_on(cohort)
    (raw / "license_information.csv").write_text("a,b\n1,2\n")
    assert refusal(raw).startswith(f"{raw / 'license_information.csv'}: no column 'ID'; There is: a, b; rename it")


@pytest.mark.parametrize("member", ["../../{}.jpg", "/{}.jpg", "train\\..\\..\\{}.jpg", "C:{}.jpg"])
def test_archive_members_that_lead_out(tmp_path, member) -> None:
    key = ROWS2[0][0]
    name = member.format(key) if not member.startswith("C:") else f"C:/{key}.jpg"
    raw = write_roco2(tmp_path / "raw" / "deep", "train", ROWS2[:1], {name: picture_bytes(1)})
    assert refusal(raw) == f"train_captions.csv row 2: train_images.zip: member {name!r} leads out of the archive; it is not read{END}"
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == []


def test_bad_archives(tmp_path) -> None:
    key = ROWS2[0][0]
    raw = write_roco2(tmp_path / "raw", "train", ROWS2[:1], {f"a/{key}.jpg": picture_bytes(1), f"b/{key}.jpg": picture_bytes(2)})
    assert (
        refusal(raw) == f"train_captions.csv row 2: train_images.zip holds a/{key}.jpg and b/{key}.jpg for one id; keep one of the two{END}"
    )
    write_roco2(raw, "train", ROWS2[:1], {f"a/{key}.jpg": png_bomb(tmp_path / "bomb.png").read_bytes()})
    assert "header claims more than 50,000,000 pixels; not decoded" in refusal(raw)
    write_roco2(raw, "train", ROWS2[:1])
    packed = bytearray((raw / "train_images.zip").read_bytes())
    packed[120] ^= 255
    (raw / "train_images.zip").write_bytes(packed)
    assert f"train_images.zip:train/{key}.jpg: damaged in its archive (" in refusal(raw)
    (raw / "train_images.zip").write_bytes(b"PK no zip")
    assert refusal(raw).startswith(f"{raw / 'train_images.zip'}: not a readable zip file (")


def write_hub(raw: Path, images: list[dict | None], folder: str = "data") -> Path:
    """ROCOv2 as on the hub: two tables of a split, small row groups."""
    (raw / folder).mkdir(parents=True, exist_ok=True)
    for part in (0, 1):
        rows = [
            {
                "image": image,
                "image_id": f"ROCOv2_{part}_{number}",
                "caption": f"CT of a {30 + 10 * number}-year-old man",
                "cui": ["C1", "C2"],
            }
            for number, image in enumerate(images)
        ]
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema([("image", struct), ("image_id", pa.string()), ("caption", pa.string()), ("cui", pa.list_(pa.string()))])
        name = ("train-00000-of-00001", "validation-00000-of-00001")[part]
        pq.write_table(pa.Table.from_pylist(rows, schema), raw / folder / f"{name}.parquet", row_group_size=2)
    return raw


def test_version_2_of_the_hub(tmp_path) -> None:
    images = [{"bytes": picture_bytes(number), "path": f"{number}.jpg"} for number in range(20)]
    cohort = imported(write_hub(tmp_path / "raw", images))
    assert len(cohort) == 40 and list(cohort.table["split"]) == ["train"] * 20 + ["val"] * 20
    assert cohort.table["sha256"].nunique() == 20  # each row has the image of its own number
    assert list(cohort.table["sha256"])[:20] == list(cohort.table["sha256"])[20:]
    assert list(cohort.table["age_group"])[:4] == ["<60", "<60", "<60", ">=60"]
    assert set(cohort.table["cuis"]) == {"C1;C2"} and set(cohort.table["licence"]) == {"unknown"}


@pytest.mark.parametrize("folder", ["data", "", "default"])
def test_version_1_of_the_hub_has_no_concepts(tmp_path, folder) -> None:
    raw = write_hub(tmp_path / "raw", [{"bytes": picture_bytes(number), "path": None} for number in range(3)], folder)
    for path in raw.rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["cui"]), path)
    cohort = imported(raw)
    assert list(cohort.table["split"]) == ["train"] * 3 + ["val"] * 3 and set(cohort.table["cuis"]) == {""}
    assert cohort.schema.source.startswith("ROCO (Pelka") and cohort.table["prompt"][1] == "CT of a 40-year-old man"


def test_images_in_capitals_and_with_other_endings(tmp_path) -> None:
    raw = write_roco(tmp_path / "raw")
    images = sorted((raw / "data/train/radiology/images").iterdir())
    images[0].rename(images[0].with_suffix(".JPG"))
    Image.open(images[1]).save(images[1].with_suffix(".png"))
    images[1].unlink()
    (images[2].parent / f"._{images[2].name}").write_bytes(b"")
    images[2].unlink()
    assert len(imported(raw)) == 3


def test_rows_of_the_hub_without_bytes(tmp_path) -> None:
    images = [{"bytes": picture_bytes(0), "path": None}, None, {"bytes": None, "path": "one.jpg"}, {"bytes": None, "path": "gone.jpg"}]
    raw = write_hub(tmp_path / "raw", images)
    (raw / "one.jpg").write_bytes(picture_bytes(9))
    cohort = imported(raw)
    assert list(cohort.table["image_id"]) == ["ROCOv2_0_0", "ROCOv2_0_2", "ROCOv2_1_0", "ROCOv2_1_2"]
    assert "4 rows were left out at import: no image file" in notes_on(cohort)
    raw = write_hub(tmp_path / "bad", [{"bytes": None, "path": "../one.jpg"}])
    (tmp_path / "one.jpg").write_bytes(picture_bytes(9))
    assert refusal(raw).startswith("data/train-00000-of-00001.parquet row 1: ../one.jpg: path leads out of the data folder ('..')")


def test_what_is_no_roco(tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    wanted = "data/train/radiology/captions.txt, data/train-*.parquet or train_captions.csv"
    assert refusal(tmp_path / "raw") == f"{tmp_path / 'raw'}: none of {wanted}; name the folder that holds ROCO"
    raw = write_roco(tmp_path / "roco")
    assert refusal(raw, prompt_attributes=["none"]) == "--prompt-attributes: the prompts of 'roco' are its captions; leave the option out"
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train-0.parquet").write_bytes(b"PAR1 none")
    assert refusal(tmp_path / "hub").startswith(f"{tmp_path / 'hub/data/train-0.parquet'}: not a readable Parquet file (")


def test_real_captions(tmp_path) -> None:
    """The real text files, with drawn images in the place of those that are not at hand."""
    real = real_data("roco") / "data/validation/radiology"
    folder = tmp_path / "raw/data/validation/radiology"
    (folder / "images").mkdir(parents=True)
    for path in real.glob("*.txt"):
        (folder / path.name).symlink_to(path)
    for line in (real / "captions.txt").read_text().splitlines()[:150]:
        (folder / "images" / f"{line.split()[0]}.jpg").write_bytes(picture_bytes(1))
    cohort = imported(tmp_path / "raw", licence="CC BY,CC0")
    assert len(cohort) == 150 and set(cohort.table["split"]) == {"val"}
    assert set(cohort.table["licence"]) <= {"CC BY", "CC0"}
    assert cohort.table["subject_id"].str.fullmatch(r"PMC\d+").all()
    assert "3238 rows were left out at import: no image file" in notes_on(cohort)
    assert (cohort.table["sex"] != "unknown").sum() >= 2 and not cohort.table["prompt"].str.startswith(" ").any()


def test_command_line(tmp_path, monkeypatch, capsys) -> None:
    raw, out = write_roco(tmp_path / "raw"), tmp_path / "out"
    options = ["--licence", "CC BY", "--conditions", "kind", "--size", "16"]
    monkeypatch.setattr(sys, "argv", ["evenhand", "cohort", "import", "roco", str(raw), str(out), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "named by 1 of 2 captions" in " ".join(capsys.readouterr().err.split())
    assert list(Cohort.load(out).table["kind"]) == ["radiology", "radiology"]
