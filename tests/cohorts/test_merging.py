"""Merging: schemas joined, absent columns explicit, nothing collides."""

import pytest
from cohorts.raw_data import HAM_ROWS, write_ham, write_nih, write_table

from evenhand.cohorts.checking import check_cohort, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.merging import merge_cohorts
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks
from evenhand.core.errors import UserError


def table_cohort(path, name="other", **settings) -> Cohort:
    raw = write_table(
        path / f"raw-{name}", [{"image": f"{i}.png", "race": race, "sex": "other"} for i, race in enumerate(("Asian", "Black"))]
    )
    return import_cohort(
        "table", raw, path / name, ImportSettings(**{"name": name, "attributes": ["race"], "modality": "skin", **settings})
    )


def test_two_modalities_become_mixed(tmp_path) -> None:
    ham = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "ham")
    nih = import_cohort("nih-cxr", write_nih(tmp_path / "nihraw"), tmp_path / "nih", ImportSettings(mode="RGB"))
    merged = merge_cohorts(ham.root, nih.root, tmp_path / "out")
    assert merged.schema.modality == "mixed" and list(merged.table["modality"]) == ["dermoscopy"] * 6 + ["chest"] * 4
    assert merged.schema.attributes == {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    assert merged.schema.conditions == {"malignancy": ["benign", "malignant"], "effusion": ["none", "effusion"]}
    assert list(merged.table["effusion"]) == ["unknown"] * 6 + list(nih.table["effusion"])
    assert list(merged.table["malignancy"]) == [*ham.table["malignancy"], *["unknown"] * 4]
    assert list(merged.table["prompt"]) == [*ham.table["prompt"], *nih.table["prompt"]]
    assert list(merged.table["split"]) == [*ham.table["split"], *nih.table["split"]]
    assert merged.table["subject_id"][0] == "ham10000:HAM_0000001" and merged.table["subject_id"][6] == "nih-cxr:1"
    assert merged.table["image"][6] == "images/nih-cxr/00000001_000.png"
    assert (merged.pixels()[6] == nih.pixels()[0]).all() and (merged.pixels()[0] == ham.pixels()[0]).all()
    assert check_cohort(merged.root).faults == [] and leaks(merged.table) == []
    third = merge_cohorts(merged.root, ham.root, tmp_path / "again")
    assert list(third.table["modality"].unique()) == ["dermoscopy", "chest"] and third.schema.made["duplicates"] == 6


def test_groups_are_joined_and_new_attributes_unknown(tmp_path) -> None:
    ham = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "ham")
    other = table_cohort(tmp_path, modality="dermoscopy", attributes=["race", "sex"])
    merged = merge_cohorts(ham.root, other.root, tmp_path / "out")
    assert merged.schema.modality == "dermoscopy" and "modality" not in merged.table
    assert merged.schema.attributes == {
        "sex": ["female", "male", "other"],
        "age_group": ["<60", ">=60"],
        "race": ["Asian", "Black"],
    }
    assert list(merged.table["race"]) == ["unknown"] * 6 + ["Asian", "Black"]
    assert list(merged.table["age_group"])[6:] == ["unknown", "unknown"]


def test_a_column_that_is_no_attribute_on_one_side_stays_unknown_there(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png", "dx": "nv"}])
    ham = import_cohort("ham10000", write_ham(tmp_path / "hamraw"), tmp_path / "ham")  # keeps dx as a further column
    other = import_cohort("table", raw, tmp_path / "other", ImportSettings(conditions=["dx"], modality="dermoscopy"))
    merged = merge_cohorts(ham.root, other.root, tmp_path / "out")
    assert list(merged.table["dx"]) == ["unknown"] * 6 + ["nv"] and check_cohort(merged.root).faults == []


def test_synthetic_sides_are_unspecified(tmp_path) -> None:
    one = table_cohort(tmp_path, "one", synthetic=True)
    two = table_cohort(tmp_path, "two", synthetic=True, attributes=["sex"])
    merged = merge_cohorts(one.root, two.root, tmp_path / "out")
    assert list(merged.table["sex"]) == ["unspecified", "unspecified", "other", "other"]
    assert list(merged.table["race"]) == ["Asian", "Black", "unspecified", "unspecified"]
    assert list(merged.table["model"]) == ["one", "one", "two", "two"] and merged.schema.synthetic


def test_same_ids_stay_apart_and_same_images_are_counted(tmp_path) -> None:
    one = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "a")
    two = import_cohort("ham10000", write_ham(tmp_path / "raw2", HAM_ROWS[:3]), tmp_path / "b")
    merged = merge_cohorts(one.root, two.root, tmp_path / "out")
    assert merged.table["image"].is_unique and len(merged) == 9
    assert merged.table["subject_id"].nunique() == 5 + 2
    assert merged.schema.made["duplicates"] == 3
    assert [fault.partition(": same")[2] for fault in check_cohort(merged.root).faults] == [f" image as in row {n}" for n in (1, 2, 3)]


def test_what_cannot_be_joined(tmp_path) -> None:
    ham = import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "ham")
    small = import_cohort("ham10000", tmp_path / "raw", tmp_path / "small", ImportSettings(size=16))
    gray = import_cohort("ham10000", tmp_path / "raw", tmp_path / "gray", ImportSettings(mode="L"))
    made = table_cohort(tmp_path, "made", synthetic=True)
    turned = import_cohort("table", tmp_path / "raw-made", tmp_path / "turned", ImportSettings(conditions=["sex"], modality="dermoscopy"))
    for other, fault in (
        (small, f"{small.root}: images of 16 pixels, but {ham.root} has 24; import both with --size 16"),
        (gray, f"{gray.root}: images of mode L, but {ham.root} has RGB; import both with mode RGB"),
        (made, f"{made.root} is synthetic and {ham.root} is not; keep them apart: the audit takes one of each"),
        (turned, "column 'sex' is an attribute in one cohort and a condition in the other; import one of them again"),
    ):
        with pytest.raises(UserError) as error:
            merge_cohorts(ham.root, other.root, tmp_path / "out")
        assert str(error.value) == fault
    (ham.root / "images" / "ISIC_0000003.png").unlink()
    with pytest.raises(UserError) as error:
        merge_cohorts(ham.root, ham.root, tmp_path / "out")
    file = ham.root / "images" / "ISIC_0000003.png"
    assert str(error.value) == f"{file}: missing image; run 'evenhand cohort check' on its cohort"
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    with pytest.raises(UserError) as error:
        merge_cohorts(ham.root, small.root, ham.root)
    assert "images of 16 pixels" in str(error.value)
    with pytest.raises(UserError) as error:
        merge_cohorts(small.root, small.root, ham.root)
    assert str(error.value) == f"{ham.root}: exists already; choose another output folder or remove it"


def spelt(path, name, sex, stage, size=24, **settings) -> Cohort:
    rows = [{"image": f"{i}.png", "sex": s, "stage": t} for i, (s, t) in enumerate(zip(sex, stage, strict=True))]
    raw = write_table(path / f"raw-{name}", rows)
    options = {"name": name, "attributes": ["sex"], "conditions": ["stage"], **settings}
    return import_cohort("table", raw, path / name, ImportSettings(**options))


def test_spellings_of_one_value_are_joined_over_both_sides(tmp_path) -> None:
    one = spelt(tmp_path, "one", ["Male", "Female", "n/a", "Male"], ["1.0", "2.0", "none", "2.0"])
    two = spelt(tmp_path, "two", ["male", "male", "male", "female"], ["1", "1", "None", "3"])
    merged = merge_cohorts(one.root, two.root, tmp_path / "out")
    assert merged.schema.attributes == {"sex": ["Female", "male"]}  # of two that are as frequent the first side's
    assert merged.schema.conditions == {"stage": ["1", "2.0", "none", "3"]}
    assert list(merged.table["sex"]) == ["male", "Female", "unknown", "male", "male", "male", "male", "Female"]
    assert list(merged.table["stage"]) == ["1", "2.0", "none", "2.0", "1", "1", "none", "3"]
    assert merged.schema.made["notes"] == [
        "sex: spellings of one value: 'Female' (1), 'female' (1) -> 'Female'",
        "sex: spellings of one value: 'male' (3), 'Male' (2) -> 'male'",
        "stage: spellings of one value: '1' (2), '1.0' (1) -> '1'",
        "stage: spellings of one value: 'none' (1), 'None' (1) -> 'none'",
    ]
    assert notes_on(merged)[-4:] == merged.schema.made["notes"]
    assert [fault for fault in check_cohort(merged.root).faults if "same image" not in fault] == []


@pytest.mark.parametrize("state", [None, ["none"]])
def test_template_prompts_name_the_joined_groups_and_captions_stay(tmp_path, state) -> None:
    one = spelt(tmp_path, "one", ["MALE", "Female"], ["1", "2"], prompt_attributes=state)
    two = spelt(tmp_path, "two", ["male", "male", "Female"], ["1.0", "1.0", "x"], prompt_attributes=state)
    one.table.loc[1, "prompt"] = "A Female of 30 years"
    one.table.to_parquet(one.root / "cohort.parquet")
    merged = merge_cohorts(one.root, two.root, tmp_path / "out")
    male, female = ("a male patient", "a Female patient") if state is None else ("a patient", "a patient")
    wanted = [f"Image of {male}, stage 1.0", "A Female of 30 years", *[f"Image of {male}, stage 1.0"] * 2, f"Image of {female}, stage x"]
    assert [prompt.replace("Medical image", "Image") for prompt in merged.table["prompt"]] == wanted


def test_a_column_of_another_spelling_is_noted(tmp_path) -> None:
    one = spelt(tmp_path, "one", ["m"], ["1"])
    raw = write_table(tmp_path / "raw", [{"image": "0.png", "Sex": "m", "stage": "1"}])
    two = import_cohort("table", raw, tmp_path / "two", ImportSettings(name="two", attributes=["Sex"], conditions=["stage"]))
    merged = merge_cohorts(one.root, two.root, tmp_path / "out")
    assert merged.schema.made["notes"] == ["columns 'sex' and 'Sex' stand side by side; where they are one, rename it and import again"]
    assert list(merged.table["Sex"]) == ["unknown", "m"]
