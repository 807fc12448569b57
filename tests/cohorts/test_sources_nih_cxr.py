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
        ("00000009_000.png,No Finding,0,9", "4 of 11 cells: no value in column 'Patient Age'; the row is cut short"),
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


@pytest.mark.parametrize(
    ("table", "folder", "sex"),
    [
        ("Data_Entry_2017_v2020.csv", "images_001/images", "Patient Sex"),
        ("Data_Entry_2017.csv", "images", "Patient Sex"),
        ("sample_labels.csv", "sample/images", "Patient Gender"),
        ("sample_labels.csv", "images", "Patient Gender"),
        ("sample_labels.csv", "sample/sample/images", "Patient Gender"),
        ("Data_Entry_2017.csv", "images-224/images-224", "Patient Gender"),
        ("DATA_ENTRY_2017.CSV", "IMAGES", "Patient Gender"),
    ],
)
def test_published_variants(tmp_path, table, folder, sex) -> None:
    raw = write_nih(tmp_path / "raw", folder=folder)
    text = (raw / "Data_Entry_2017.csv").read_text().replace("Patient Gender", sex)
    (raw / "Data_Entry_2017.csv").unlink()
    (raw / table).write_text(text)
    (raw / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000001_001.png,Effusion,1,2,3,4,,,\n")
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out").table
    assert list(cohort["sex"]) == ["male", "male", "female", "female"]
    assert list(cohort["effusion"]) == ["none", "effusion", "none", "effusion"]


def _patients(raw, number: int):
    """One radiograph of each of so many patients, and their image names."""
    rows = [f"{i:08d}_000.png,No Finding,0,{i},050Y,M,PA,1,1,1,1," for i in range(number)]
    return write_nih(raw, rows), [row.split(",")[0] for row in rows]


@pytest.mark.parametrize(
    ("test", "rest"),
    [
        (lambda names: "\n".join(names[:10]), lambda names: "\n".join(names[10:]) + "\n"),
        (lambda names: "\r\n".join(f"images\\{name}" for name in names[:10]), lambda names: None),  # Windows, and one list alone
        (lambda names: None, lambda names: "\n".join(name.removesuffix(".png") for name in names[10:])),
        (lambda names: "\ufeff" + "\n\n".join(name.upper() for name in names[:10]), lambda names: "\n".join(names[10:])),
    ],
)
def test_published_test_images_are_held_out(tmp_path, test, rest) -> None:
    raw, names = _patients(tmp_path / "raw", 60)
    for name, text in (("test_list.txt", test(names)), ("Train_Val_List_NIH.txt", rest(names))):
        if text is not None:
            (raw / name).write_text(text, encoding="utf-8", newline="")
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out", ImportSettings(size=8))
    split = cohort.table.set_index("image_id")["split"]
    assert set(split[:10]) == {"test"} and set(split[10:]) == {"train", "val"}
    assert (split[10:] == "train").sum() > 30  # of 50, 14 in 17 are expected: 41
    assert "list.txt" in cohort.schema.made["published_splits"]


def test_lists_that_part_a_patient_or_name_an_image_twice(tmp_path) -> None:
    raw = write_nih(tmp_path / "raw", NIH_ROWS)
    (raw / "test_list.txt").write_text("00000001_000.png\n00000002_000.png\n")
    (raw / "train_val_list.txt").write_text("00000001_001.png\n00000002_000.png\n")
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out", ImportSettings(skip_bad=2))
    parted, twice = cohort.schema.made["skipped"]
    assert parted.startswith("Data_Entry_2017.csv row 3: subject '1' is in split '")
    assert parted.endswith("' here and in 'test' in Data_Entry_2017.csv row 2; put it into one")
    fault = "00000002_000.png is in test_list.txt and in train_val_list.txt; remove it from one of the two"
    assert twice == f"Data_Entry_2017.csv row 4: {fault}"
    assert "1 images are in neither test_list.txt nor train_val_list.txt: they are train or val" in cohort.schema.made["notes"]


def test_a_list_of_other_images_is_told(tmp_path) -> None:
    raw, _ = _patients(tmp_path / "raw", 4)
    (raw / "test_list.txt").write_text("00099999_000.png\n")
    cohort = import_cohort("nih-cxr", raw, tmp_path / "out")
    assert "no image is in test_list.txt: the split 'test' is empty" in cohort.schema.made["notes"]


def test_real_images(tmp_path) -> None:
    cohort = import_cohort("nih-cxr", real_data("nih_cxr"), tmp_path / "out", ImportSettings(limit=80))
    assert cohort.pixels().shape == (80, 64, 64)
    assert set(cohort.table["sex"]) == {"female", "male"} and leaks(cohort.table) == []
    assert check_cohort(cohort.root).faults == []
