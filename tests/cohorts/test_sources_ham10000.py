"""HAM10000: both layouts, what a row means, and the real images."""

import numpy as np
import pytest
from cohorts.raw_data import HAM_ROWS, real_data, write_ham
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
