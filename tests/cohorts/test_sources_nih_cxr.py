"""ChestX-ray14: the broken header, ages in years, joined findings, several folders."""

import numpy as np
import pytest
from cohorts.raw_data import NIH_ROWS, real_data, write_nih
from PIL import Image

from evenhand.cohorts.checking import check_cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks
from evenhand.core.errors import UserError


@pytest.mark.parametrize("folder", ["images", "images_001/images", "images_002"])
def test_layouts(tmp_path, folder) -> None:
    cohort = import_cohort("nih-cxr", write_nih(tmp_path / "raw", folder=folder), tmp_path / "out")
    assert list(cohort.table["image_id"]) == ["00000001_000", "00000001_001", "00000002_000", "00000003_000"]
    assert list(cohort.table["subject_id"]) == ["1", "1", "2", "3"]
    assert list(cohort.table["sex"]) == ["male", "male", "female", "female"]
    assert list(cohort.table["age_group"]) == ["<60", ">=60", ">=60", "unknown"]  # nobody is 412 years old
    assert list(cohort.table["effusion"]) == ["none", "effusion", "none", "effusion"]
    assert list(cohort.table["prompt"])[1:3] == [
        "Chest Radiography image of a male >=60 patient diagnosed with Pleural Effusion",
        "Chest Radiography image of a female >=60 patient diagnosed with non Pleural Effusion",
    ]
    assert cohort.schema.image_mode == "L" and cohort.pixels().shape == (4, 24, 24)
    assert leaks(cohort.table) == [] and check_cohort(cohort.root).faults == []


def test_other_conditions_on_request(tmp_path) -> None:
    settings = ImportSettings(conditions=["finding", "view"])
    cohort = import_cohort("nih-cxr", write_nih(tmp_path / "raw"), tmp_path / "out", settings)
    assert list(cohort.table["finding"]) == ["any", "any", "none", "any"]
    assert list(cohort.table["view"]) == ["PA", "AP", "PA", "PA"]
    assert "effusion" not in cohort.table
    assert list(cohort.table["prompt"])[1:3] == [
        "Chest Radiography image of a male >=60 patient diagnosed with abnormal findings, AP view",
        "Chest Radiography image of a female >=60 patient diagnosed with No Finding, PA view",
    ]


def test_images_with_an_alpha_channel_become_grayscale(tmp_path) -> None:
    raw = write_nih(tmp_path / "raw", NIH_ROWS[:1])
    Image.fromarray(np.full((24, 24, 4), (90, 90, 90, 255), np.uint8)).save(raw / "images" / "00000001_000.png")
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out")
    assert cohort.pixels() == pytest.approx(np.full((1, 24, 24), 90 / 255))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            "00000009_000.png,Efusion,0,9,050Y,M,PA,1,1,1,1,",
            "Finding Labels 'Efusion' is no known finding; there is: No Finding, Atelectasis, Cardiomegaly, Consolidation, Edema, "
            "Effusion, Emphysema, Fibrosis, Hernia, Infiltration, Mass, Nodule, Pleural_Thickening, Pneumonia, Pneumothorax",
        ),
        ("00000009_000.png,No Finding,0,9,fifty,M,PA,1,1,1,1,", "age 'fifty' is not a number of years"),
        (
            "00000009_000.png,No Finding,0,9,050Y,X,PA,1,1,1,1,",
            "Patient Gender 'X' is no known group; There is: f, m, female, male",
        ),
        ("00000009_000.png,No Finding,0,9", "no value in column 'Patient Gender'; the row is cut short"),
    ],
)
def test_bad_rows(tmp_path, row, fault) -> None:
    raw = write_nih(tmp_path / "raw", [*NIH_ROWS, row])
    with pytest.raises(UserError) as error:
        import_cohort("nih-cxr", raw, tmp_path / "out")
    assert str(error.value) == f"Data_Entry_2017.csv row 6: {fault}; mend the data or pass --skip-bad 1"


def test_no_label_is_unknown_not_healthy(tmp_path) -> None:
    raw = write_nih(tmp_path / "raw", ["00000009_000.png,,0,9,050Y,,,1,1,1,1,"])
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out")
    assert (cohort.table["effusion"][0], cohort.table["sex"][0]) == ("unknown", "unknown")
    assert cohort.table["prompt"][0] == "Chest Radiography image of a <60 patient"


def test_real_images(tmp_path) -> None:
    cohort = import_cohort("nih-cxr", real_data("nih_cxr"), tmp_path / "out", ImportSettings(limit=80))
    assert cohort.pixels().shape == (80, 64, 64)
    assert set(cohort.table["sex"]) == {"female", "male"} and leaks(cohort.table) == []
    assert check_cohort(cohort.root).faults == []
