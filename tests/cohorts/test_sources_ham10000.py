"""HAM10000: both layouts, what a row means, and the real images."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cohorts.raw_data import HAM_HEADER, HAM_ROWS, picture, real_data, write_ham
from PIL import Image

from evenhand.cohorts.checking import check_cohort, group_counts
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks
from evenhand.core.errors import UserError


@pytest.mark.parametrize("table", ["HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab"])
def test_layouts(tmp_path, table) -> None:
    cohort = import_cohort("ham10000", write_ham(tmp_path / "raw", table=table), tmp_path / "out")
    assert list(cohort.table["image"]) == [f"images/{row[1]}.png" for row in HAM_ROWS]
    assert list(cohort.table["subject_id"]) == [row[0] for row in HAM_ROWS]
    assert list(cohort.table["sex"]) == ["male", "male", "female", "female", "unknown", "male"]
    assert list(cohort.table["age_group"]) == ["<60", "<60", ">=60", "unknown", ">=60", "<60"]
    assert list(cohort.table["malignancy"]) == ["benign", "benign", "malignant", "malignant", "benign", "malignant"]
    assert list(cohort.table["dx"]) == [row[2] for row in HAM_ROWS]
    assert cohort.table["prompt"][2] == "Dermoscopic image of a female >=60 patient with the following diagnostic category: malignant"
    assert cohort.table["prompt"][4] == "Dermoscopic image of a >=60 patient with the following diagnostic category: benign"
    assert (cohort.schema.modality, cohort.schema.image_mode, cohort.schema.image_size) == ("dermoscopy", "RGB", 24)
    assert leaks(cohort.table) == [] and check_cohort(cohort.root).faults == []


ONE_HOT = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def write_isic(raw: Path, part: str, rows: Sequence[str], header: str = ONE_HOT, *, nested: bool = True) -> None:
    """One part of ISIC 2018, task 3: a table, in a folder of its own or not, and a folder of images."""
    name = f"ISIC2018_Task3_{part}"
    table = raw / (f"{name}_GroundTruth" if nested else "") / f"{name}_GroundTruth.csv"
    images = raw / f"{name}_Input"
    for folder in (table.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    table.write_text("\n".join([header, *rows]) + "\n")
    column = header.split(",").index("image" if "image" in header.split(",") else "image_id")
    for number, row in enumerate(rows):
        picture(zlib.crc32(part.encode()) + number).save(images / f"{row.split(',')[column]}.jpg")


@pytest.mark.parametrize("nested", [True, False])
def test_one_hot_tables_of_isic(tmp_path, nested) -> None:
    raw = tmp_path / "raw"
    training = [f"ISIC_{number:07d},{'1.0,0.0' if number % 2 else '0.0,1.0'},0.0,0.0,0.0,0.0,0.0" for number in range(40)]
    write_isic(raw, "Training", training, nested=nested)
    write_isic(raw, "Validation", ["ISIC_0034000,0.0,0.0,1.0,0.0,0.0,0.0,0.0"], nested=nested)
    write_isic(raw, "Test", ["ISIC_0034524,0,0,0,0,0,1,0", "ISIC_0034525,0,0,0,0,1,1,0"], nested=nested)
    groupings = [f"ISIC_{number:07d},HAM_{number // 4},histopathology" for number in range(40)]
    text = "\n".join(["image,lesion_id,diagnosis_confirm_type", *groupings]) + "\n"
    (raw / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(text)
    cohort = import_cohort("ham10000", raw, tmp_path / "out", ImportSettings(skip_bad=1, size=8))
    assert "of MEL, NV, BCC, AKIEC, BKL, DF, VASC are 1; one diagnosis is wanted" in cohort.schema.made["skipped"][0]
    table = cohort.table.set_index("image_id")
    assert list(table["dx"][:2]) == ["nv", "mel"] and table["dx"]["ISIC_0034524"] == "df"
    assert (table["split"]["ISIC_0034000"], table["split"]["ISIC_0034524"]) == ("val", "test")
    assert table["subject_id"].iloc[:40].nunique() == 10 and leaks(cohort.table) == []
    assert set(table["sex"]) == set(table["age_group"]) == {"unknown"}
    assert "2 images have no lesion_id" in " ".join(cohort.schema.made["notes"])


@pytest.mark.parametrize("ending", ["csv", "tab"])
def test_the_published_test_set_beside_the_metadata(tmp_path, ending) -> None:
    raw = write_ham(tmp_path / "raw")
    (raw / "ISIC2018_Task3_Test_Images").mkdir()
    picture(90).save(raw / "ISIC2018_Task3_Test_Images" / "ISIC_0034524.jpg")
    rows = [(*HAM_HEADER, "dataset"), ("HAM_0009", "ISIC_0034524", "nv", "follow_up", "70", "female", "back", "rosendahl")]
    mark = "," if ending == "csv" else "\t"
    (raw / f"ISIC2018_Task3_Test_GroundTruth.{ending}").write_text("".join(mark.join(row) + "\n" for row in rows))
    found = import_cohort("ham10000", raw, tmp_path / "out").table.set_index("image_id").loc["ISIC_0034524"]
    assert (found["split"], found["sex"], found["age_group"]) == ("test", "female", ">=60")
    (raw / f"ISIC2018_Task3_Test_GroundTruth.{ending}").unlink()
    with (raw / "HAM10000_metadata.csv").open("a") as file:  # one table of all images: the folder says which are held out
        file.write(",".join(rows[1][:-1]) + "\n")
    assert import_cohort("ham10000", raw, tmp_path / "one").table.set_index("image_id")["split"]["ISIC_0034524"] == "test"


def test_a_lesion_never_crosses_splits(tmp_path) -> None:
    rows = [(f"HAM_{i // 2}", f"ISIC_{i}", "nv", "histo", "50", "male", "back") for i in range(60)]
    cohort = import_cohort("ham10000", write_ham(tmp_path / "raw", rows), tmp_path / "out", ImportSettings(size=8))
    assert cohort.table["split"].nunique() == 3 and leaks(cohort.table) == []


@pytest.mark.parametrize(
    ("state", "patient"),
    [
        (None, "a female >=60 patient"),
        (["sex", "age_group"], "a female >=60 patient"),
        (["sex"], "a female patient"),
        (["age_group"], "a >=60 patient"),
        (["none"], "a patient"),
    ],
)
def test_prompts_state_what_is_asked(tmp_path, state, patient) -> None:
    cohort = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "out", ImportSettings(prompt_attributes=state))
    assert cohort.table["prompt"][2] == f"Dermoscopic image of {patient} with the following diagnostic category: malignant"


def test_every_diagnosis_is_benign_or_malignant(tmp_path) -> None:
    expected = {"akiec": "malignant", "bcc": "malignant", "mel": "malignant"}
    expected |= dict.fromkeys(("bkl", "df", "nv", "vasc"), "benign")
    rows = [(f"HAM_{dx}", f"ISIC_{dx}", dx, "histo", "50", "male", "back") for dx in expected]
    table = import_cohort("ham10000", write_ham(tmp_path / "raw", rows), tmp_path / "out").table
    assert dict(zip(table["dx"], table["malignancy"], strict=True)) == expected
    assert list(table["prompt"]) == [
        f"Dermoscopic image of a male <60 patient with the following diagnostic category: {value}" for value in expected.values()
    ]


def test_settings(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw")
    settings = ImportSettings(size=16, limit=5, unknown="drop", prompt_attributes=["age_group"], mode="L")
    cohort = import_cohort("ham10000", raw, tmp_path / "out", settings)
    assert list(cohort.table["image_id"]) == ["ISIC_0000001", "ISIC_0000002", "ISIC_0000003"]
    assert cohort.schema.made["dropped_unknown"] == 2 and cohort.pixels().shape == (3, 16, 16)
    assert cohort.table["prompt"][0] == "Dermoscopic image of a <60 patient with the following diagnostic category: benign"
    counts = group_counts(cohort).set_index(["column", "group"])["images"]
    assert counts["sex", "female"] == 1 and counts["sex", "male"] == 2 and ("sex", "unknown") not in counts


def test_images_are_cut_square_from_the_centre(tmp_path) -> None:
    raw = write_ham(tmp_path / "raw", HAM_ROWS[:1])
    file = raw / "HAM10000_images_part_1" / "ISIC_0000001.jpg"
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, 8:32] = 200  # the middle 24 columns; the margins are black
    Image.fromarray(pixels).save(file, quality=100, subsampling=0)
    cohort = import_cohort("ham10000", raw, tmp_path / "out")
    assert cohort.pixels() == pytest.approx(np.full((1, 24, 24, 3), 200 / 255), abs=0.02)


def test_no_table_and_options_of_another_source(tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError) as error:
        import_cohort("ham10000", tmp_path / "raw", tmp_path / "out")
    found = "no HAM10000_metadata.csv (or Dataverse's HAM10000_metadata, HAM10000_metadata.tab); name the folder that holds it"
    assert str(error.value) == f"{tmp_path / 'raw'}: {found}"
    with pytest.raises(UserError) as error:
        import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "out", ImportSettings(image_column="x"))
    assert str(error.value) == "--image-column is an option of the source 'table', not of 'ham10000'"
    with pytest.raises(UserError) as error:
        import_cohort("ham10000", tmp_path / "raw", tmp_path / "out", ImportSettings(attributes=["age"]))
    assert str(error.value) == "--attributes: no 'age' in this source; There is: sex, age_group"
    assert not (tmp_path / "out").exists()


def test_real_images(tmp_path) -> None:
    cohort = import_cohort("ham10000", real_data("ham10000"), tmp_path / "out", ImportSettings(size=32, limit=60))
    assert len(cohort) == 60 and cohort.pixels([0, 1]).shape == (2, 32, 32, 3)
    assert set(cohort.table["malignancy"]) == {"benign", "malignant"}
    assert check_cohort(cohort.root).faults == [] and len(Cohort.load(tmp_path / "out")) == 60
