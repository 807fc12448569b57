"""Checking a cohort: every kind of fault, each with its row."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cohorts.raw_data import picture, png_bomb, write_ham

from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.cohort import SCHEMA_FILE, TABLE_FILE, Cohort, write_table
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import write_json


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Six dermoscopic images of 24 pixels; two of them show one lesion."""
    return import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "cohort")


def rewrite(cohort: Cohort, row: int, **values: object) -> None:
    table = cohort.table.copy()
    for column, value in values.items():
        table.loc[row - 1, column] = value
    table.to_parquet(cohort.root / "cohort.parquet", index=False)


def faults(cohort: Cohort) -> list[str]:
    return check_cohort(cohort.root).faults


def test_sound(cohort) -> None:
    report = check_cohort(cohort.root)
    assert report.faults == []
    assert set(report.counts["column"]) == {"sex", "age_group", "malignancy"} and report.counts["images"].sum() == 18


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file"),
        (b"", "empty file (0 bytes)"),
        (b"words", "not an image (PNG, JPEG, BMP, TIFF, WEBP are read)"),
    ],
)
def test_image_missing_or_none(cohort, content, fault) -> None:
    file = cohort.root / "images" / "ISIC_0000002.png"
    file.unlink() if content is None else file.write_bytes(content)
    assert faults(cohort) == [f"cohort.parquet row 2: images/ISIC_0000002.png: {fault}"]


def test_image_damaged_or_a_bomb(cohort) -> None:
    file = cohort.root / "images" / "ISIC_0000002.png"
    file.write_bytes(file.read_bytes()[:300])
    png_bomb(cohort.root / "images" / "ISIC_0000003.png")
    first, second = faults(cohort)
    assert first.startswith("cohort.parquet row 2: images/ISIC_0000002.png: truncated or damaged (")
    assert second == "cohort.parquet row 3: images/ISIC_0000003.png: header claims more than 50,000,000 pixels; not decoded"


def test_image_changed_size_and_mode(cohort) -> None:
    picture(99, (20, 24), "L").save(cohort.root / "images" / "ISIC_0000001.png")
    assert faults(cohort) == [
        "cohort.parquet row 1: images/ISIC_0000001.png: 20 x 24 pixels, not 24 x 24",
        "cohort.parquet row 1: images/ISIC_0000001.png: mode L, not RGB",
        "cohort.parquet row 1: images/ISIC_0000001.png: SHA-256 differs from the table; the file was changed after import",
    ]


def test_same_image_twice(cohort) -> None:
    shutil.copyfile(cohort.root / "images" / "ISIC_0000001.png", cohort.root / "images" / "ISIC_0000006.png")
    rewrite(cohort, 6, sha256=cohort.table["sha256"][0])
    assert faults(cohort) == ["cohort.parquet row 6: images/ISIC_0000006.png: same image as in row 1"]
    rewrite(cohort, 6, image="images/ISIC_0000001.png")
    assert faults(cohort) == ["cohort.parquet row 6: images/ISIC_0000001.png stands in row 1 already"]


def test_unknown_groups_split_and_empty_cells(cohort) -> None:
    rewrite(cohort, 2, sex="mael", prompt=None)
    assert faults(cohort) == [
        "cohort.parquet row 2: sex 'mael' is no group of cohort.json; did you mean 'male' or 'female'? There is: female, male",
        "cohort.parquet row 2: empty prompt",
    ]
    rewrite(cohort, 3, age_group=None, split="holdout", subject_id=None)
    found = faults(cohort)
    assert (
        len(found) == 3 and found[0].startswith("cohort.parquet row 3: age_group ") and found[2] == "cohort.parquet row 3: empty subject_id"
    )
    assert found[1] == "cohort.parquet row 3: split 'holdout' is no group of cohort.json; There is: train, val, test"
    rewrite(cohort, 3, sex="unspecified")
    assert faults(cohort) == []


def test_subject_in_two_splits(cohort) -> None:
    here = "val" if cohort.table["split"][0] == "test" else "test"
    rewrite(cohort, 2, split=here)
    there = cohort.table["split"][0]
    assert faults(cohort) == [f"cohort.parquet row 2: subject 'HAM_0000001' is in split '{here}' here and in '{there}' in row 1"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../raw/HAM10000_images_part_1/ISIC_0000002.jpg", "path leads out of the data folder ('..'); put the file inside it"),
        ("/etc/hostname", "absolute path; write it relative to the data folder"),
        ("images/link.png", "path leads out of the data folder through a link; copy the file into it"),
    ],
)
def test_path_that_leads_out(cohort, tmp_path, name, fault) -> None:
    (cohort.root / "images" / "link.png").symlink_to(tmp_path / "raw" / "HAM10000_images_part_1" / "ISIC_0000002.jpg")
    rewrite(cohort, 2, image=name)
    assert faults(cohort) == [f"cohort.parquet row 2: {name}: {fault}"]


def test_all_missing_columns(cohort) -> None:
    cohort.table.drop(columns=["sex", "prompt"]).to_parquet(cohort.root / "cohort.parquet")
    found = faults(cohort)
    table = cohort.root / "cohort.parquet"
    assert [line.partition(";")[0] for line in found] == [f"{table}: no column 'prompt'", f"{table}: no column 'sex'"]


def test_no_cohort_and_broken_files(cohort, tmp_path) -> None:
    assert check_cohort(tmp_path / "raw").faults == [
        f"{tmp_path / 'raw'}: not a cohort (no cohort.json); make one with 'evenhand cohort import' or 'cohort phantom'"
    ]
    (cohort.root / "cohort.parquet").write_bytes(b"no table")
    (fault,) = faults(cohort)
    assert fault.startswith(f"{cohort.root / 'cohort.parquet'}: not a readable Parquet file (")
    (cohort.root / "cohort.json").write_text(json.dumps({"name": "x"}))
    (fault,) = faults(cohort)
    assert fault == f"{cohort.root / 'cohort.json'}: modality: Field required; restore the file or import again"


def test_all_faults_at_once(cohort) -> None:
    rewrite(cohort, 2, sex="mael", image="../x.png")
    (cohort.root / "images" / "ISIC_0000004.png").unlink()
    assert [fault.split(":")[0] for fault in faults(cohort)] == [f"cohort.parquet row {n}" for n in (2, 2, 4)]


def test_counts_keep_absent_groups(cohort) -> None:
    part = cohort.subset(cohort.table["sex"] != "female")
    counts = group_counts(part).set_index(["column", "group"])
    assert counts.loc[("sex", "female"), "images"] == 0
    assert counts.loc[("sex", "male"), ["images", "subjects"]].tolist() == [3, 2]
    assert counts.loc[("sex", "unknown"), "images"] == 1
    only_young = cohort.subset(cohort.table["age_group"] == "<60")
    assert "age_group: one group only (<60); no gap between its groups can be told" in notes_on(only_young)
    nobody = cohort.subset(cohort.table["age_group"] == "unknown")
    assert "age_group: no known group; no gap between its groups can be told" in notes_on(nobody)
    schema = cohort.schema.model_copy(update={"attributes": {"sex": ["female", "male", "other"], "age_group": ["<60", ">=60"]}})
    assert "sex: no image of group 'other'" in notes_on(Cohort(schema, cohort.table, cohort.root))
    assert isinstance(group_counts(part), pd.DataFrame)


def test_groups_that_are_one_value_or_none_are_faults(tmp_path) -> None:
    cohort = write_phantoms("brain", tmp_path / "brain", n=12, mix="sex=male:1,female:0", size=24)
    sex = ["male", "Male", "N/A", *["male"] * 9]
    tumour = ["none", "None", "1", "1.0", *["none"] * 8]
    table = cohort.table.assign(sex=sex, tumour=tumour, subject_id=["nan", "nan", *map(str, range(10))])
    table.loc[0, "prompt"] = " "
    schema = cohort.schema.model_copy(
        update={
            "attributes": {**cohort.schema.attributes, "sex": ["female", "male", "Male", "N/A"]},
            "conditions": {"tumour": ["none", "None", "1", "1.0"]},
        }
    )
    write_table(cohort.root / TABLE_FILE, table)
    write_json(cohort.root / SCHEMA_FILE, schema.model_dump())
    faults = [fault for fault in check_cohort(cohort.root).faults if "split" not in fault]
    assert faults == [
        "cohort.json: sex: 'male' (10), 'Male' (1) are spellings of one value, and stand as groups of their own",
        "cohort.json: sex: 'N/A' (1) means that nothing is known, and stands as a group",
        "cohort.json: tumour: 'none' (9), 'None' (1) are spellings of one value, and stand as groups of their own",
        "cohort.json: tumour: '1' (1), '1.0' (1) are spellings of one value, and stand as groups of their own",
        "cohort.parquet: subject_id 'nan' (2) means that the subject is not known, and stands as one subject",
        "cohort.parquet row 1: empty prompt",
    ]
