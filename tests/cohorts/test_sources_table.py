"""Tables: CSV, Parquet, JSON lines, the imagefolder layout, somebody else's generated images."""

import json

import numpy as np
import pandas as pd
import pytest
from cohorts.raw_data import picture, write_table
from PIL import Image

from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.errors import UserError

ROWS = [
    {"image": "a/1.png", "patient": "p1", "fold": "training", "race": "White, non-Hispanic", "grade": "2"},
    {"image": "b/1.png", "patient": "p2", "fold": "valid", "race": "Asian", "grade": "-1"},
    {"image": "2.png", "patient": "p3", "fold": "test", "race": "nan", "grade": "3"},
]
COLUMNS = {"subject_column": "patient", "split_column": "fold", "attributes": ["race"], "conditions": ["grade"]}


def test_columns_by_option(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", ROWS)
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(**COLUMNS, modality="knee", name="knees", licence="mine"))
    assert cohort.schema.attributes == {"race": ["Asian", "White, non-Hispanic"]}  # as written, signs and all
    assert cohort.schema.conditions == {"grade": ["2", "3"]}  # -1 and nan are no groups
    assert list(cohort.table["race"]) == ["White, non-Hispanic", "Asian", "unknown"]
    assert list(cohort.table["grade"]) == ["2", "unknown", "3"]
    assert list(cohort.table["split"]) == ["train", "val", "test"]
    assert list(cohort.table["image"]) == ["images/a_1.png", "images/b_1.png", "images/2.png"]
    assert list(cohort.table["subject_id"]) == ["p1", "p2", "p3"]
    assert cohort.table["prompt"][0] == "Knee image of a White, non-Hispanic patient, grade 2"
    assert (cohort.schema.name, cohort.schema.licence, cohort.schema.modality) == ("knees", "mine", "knee")
    assert check_cohort(cohort.root).faults == []


def test_prompts_follow_what_findings_mean(tmp_path) -> None:
    values = ["No Tumour", "0.0", "meningioma", "yes"]
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "tumour": value} for i, value in enumerate(values)])
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(conditions=["tumour"], modality="brain"))
    ends = [" without tumour", " without tumour", ", meningioma", " with tumour"]
    assert list(cohort.table["prompt"]) == ["Brain MR slice of a patient" + end for end in ends]


def test_a_code_of_a_finding_that_nobody_knows_is_a_fault_of_its_row(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "glaucoma": value} for i, value in enumerate(["1", "2", "1"])])
    settings = {"conditions": ["glaucoma"], "modality": "fundus"}
    with pytest.raises(UserError, match=r"^labels\.csv row 3: glaucoma '2': of numbers only 0 \(absent\) and 1 \(present\) are known"):
        import_cohort("table", raw, tmp_path / "out", ImportSettings(**settings))
    assert len(import_cohort("table", raw, tmp_path / "out", ImportSettings(**settings, skip_bad=1))) == 2


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "tsv"])
def test_other_formats_give_the_same_cohort(tmp_path, kind) -> None:
    raw = write_table(tmp_path / "raw", ROWS)
    expected = import_cohort("table", raw / "labels.csv", tmp_path / "csv", ImportSettings(**COLUMNS)).table
    table = pd.DataFrame(ROWS)
    if kind == "parquet":
        table.to_parquet(raw / "other.parquet")
    elif kind == "tsv":
        table.to_csv(raw / "other.tsv", sep="\t", index=False)
    else:
        (raw / "other.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    cohort = import_cohort("table", raw / f"other.{kind}", tmp_path / "out", ImportSettings(**COLUMNS))
    pd.testing.assert_frame_equal(cohort.table, expected)


def test_null_and_number_cells(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(3)])
    (raw / "labels.csv").unlink()
    table = pd.DataFrame({"image": ["0.png", "1.png", "2.png"], "sex": ["f", None, "m"], "stage": [1.0, np.nan, -1.0]})
    table.to_parquet(raw / "t.parquet")
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], conditions=["stage"]))
    assert list(cohort.table["sex"]) == ["f", "unknown", "m"]
    assert list(cohort.table["stage"]) == ["1", "unknown", "unknown"]  # whole numbers, floats only because one is missing


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_imagefolder(tmp_path, name) -> None:
    raw = write_table(tmp_path / "raw", [{"file_name": f"{i}.png", "text": f"image  {i}"} for i in range(3)], "metadata.csv")
    if name.endswith("jsonl"):
        (raw / "metadata.csv").unlink()
        (raw / name).write_text("\n".join(json.dumps({"file_name": f"{i}.png", "text": f"image  {i}"}) for i in range(3)))
    cohort = import_cohort("table", raw, tmp_path / "out")
    assert list(cohort.table["prompt"]) == ["image 0", "image 1", "image 2"]
    assert cohort.schema.attributes == {} and list(cohort.table["subject_id"]) == ["0.png", "1.png", "2.png"]


def test_imagefolder_with_split_folders(tmp_path) -> None:
    for split in ("train", "validation", "test"):
        write_table(tmp_path / "raw" / split, [{"file_name": "1.png", "text": f"of {split}"}], "metadata.csv")
    cohort = import_cohort("table", tmp_path / "raw", tmp_path / "out")
    assert dict(zip(cohort.table["split"], cohort.table["prompt"], strict=True)) == {
        "train": "of train",
        "val": "of validation",
        "test": "of test",
    }
    assert sorted(cohort.table["image"]) == ["images/test_1.png", "images/train_1.png", "images/validation_1.png"]


def test_names_that_meet_after_cleaning_stay_apart(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": name} for name in ("a/1.png", "a_1.png", "A_1.PNG")])
    cohort = import_cohort("table", raw, tmp_path / "out")
    assert list(cohort.table["image"]) == ["images/a_1.png", "images/a_1_2.png", "images/A_1_3.png"]
    assert check_cohort(cohort.root).faults == []


def test_synthetic_images_of_another_generator(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png", "sex": "male"}, {"image": "2.png", "sex": ""}])
    settings = ImportSettings(synthetic=True, attributes=["sex"], modality="brain", name="theirs")
    cohort = import_cohort("table", raw, tmp_path / "out", settings)
    assert cohort.schema.synthetic and list(cohort.table["sex"]) == ["male", "unspecified"]
    assert list(cohort.table["split"]) == ["test", "test"] and list(cohort.table["model"]) == ["theirs", "theirs"]
    assert cohort.table[["seed", "guidance_scale", "steps"]].isna().all(axis=None)
    assert cohort.table["prompt"][1] == "Brain MR slice of a patient"


def test_grayscale_and_16_bit_images(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png"}, {"image": "2.png"}])
    Image.fromarray(np.full((16, 16), 512, np.uint16)).save(raw / "1.png")
    Image.fromarray(np.full((20, 16, 3), 40, np.uint8)).save(raw / "2.png")  # grayscale saved with three channels
    cohort = import_cohort("table", raw, tmp_path / "out")
    assert cohort.schema.image_mode == "L"
    assert cohort.pixels()[0] == pytest.approx(np.full((16, 16), 128 / 255)) and cohort.pixels()[1, 0, 0] == pytest.approx(40 / 255)


def test_colour_is_not_dropped_silently(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": "1.png"}, {"image": "2.png"}])
    picture(5, mode="L").save(raw / "1.png")
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "out")
    remedy = "set mode to RGB to keep colour, or to L to drop it; mend the data or pass --skip-bad 1"
    assert str(error.value) == f"labels.csv row 3: 2.png: colour image in a grayscale cohort; {remedy}"
    assert import_cohort("table", raw, tmp_path / "gray", ImportSettings(mode="L")).pixels().shape == (2, 24, 24)
    assert import_cohort("table", raw, tmp_path / "rgb", ImportSettings(mode="RGB")).pixels().shape == (2, 24, 24, 3)


def test_a_group_that_is_empty_or_alone_is_said(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "sex": "male", "fold": "train"} for i in range(3)])
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], split_column="fold"))
    assert notes_on(cohort) == [
        "sex: one group only (male); no gap between its groups can be told",
        "split 'val' is empty",
        "split 'test' is empty",
    ]
    assert group_counts(cohort).to_dict("records") == [
        {"column": "sex", "group": "male", "images": 3, "subjects": 3, "train": 3, "val": 0, "test": 0}
    ]


def test_a_measurement_is_no_attribute(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "age": str(i)} for i in range(60)])
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["age"], size=8))
    assert str(error.value) == "column 'age' has more than 50 values; sort them into groups first, such as '<60' and '>=60'"
    assert not (tmp_path / "out").exists()


def test_which_table(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", ROWS)
    (raw / "other.csv").write_text("x\n")
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "out")
    endings = ".csv, .tsv, .tab, .txt, .json, .jsonl, .ndjson, .parquet, .xlsx, .xlsm, or text packed as .gz"
    assert str(error.value) == f"{raw}: one table is wanted ({endings}), found labels.csv, other.csv; name the table itself"
    with pytest.raises(UserError) as error:
        import_cohort("table", raw / "2.png", tmp_path / "out")
    assert str(error.value) == f"{raw / '2.png'}: not a table; name a file that ends in {endings}"


def test_a_subject_in_two_source_splits(tmp_path) -> None:
    rows = [{"image": f"{i}.png", "patient": "p1", "fold": fold} for i, fold in enumerate(("train", "test"))]
    raw = write_table(tmp_path / "raw", rows)
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "out", ImportSettings(subject_column="patient", split_column="fold"))
    fault = "labels.csv row 3: subject 'p1' is in split 'test' here and in 'train' in labels.csv row 2; put it into one"
    assert str(error.value) == f"{fault}; mend the data or pass --skip-bad 1"


def table_of(folder, **columns):
    """A table with one small picture per row."""
    n = len(next(iter(columns.values())))
    rows = [{"image": f"{i}.png", **{name: values[i] for name, values in columns.items()}} for i in range(n)]
    return write_table(folder, rows)


ODD_NAMES = ["<60", ">=60", "> 60", "Black/African American", "a,b", "x:y", "a|b", "a*b", "a=b", 'he said "no"', "a;b", "Ünal", "[red]"]


def test_group_names_stay_as_they_are(tmp_path) -> None:
    raw = table_of(tmp_path / "raw", group=[f"  {name.replace(' ', '  ')} " for name in ODD_NAMES])
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["group"]))
    assert list(cohort.table["group"]) == ODD_NAMES and set(cohort.schema.attributes["group"]) == set(ODD_NAMES)
    assert check_cohort(cohort.root).faults == []


def test_spellings_of_one_value_become_the_most_frequent_one(tmp_path) -> None:
    sex = ["Male", "male", "MALE ", "male", "female", "Fe\u00admale", "ｆｅｍａｌｅ", "n/a"]
    grade = ["1", "1.0", "2", "2.00", "1", "none", "None", "-1"]
    raw = table_of(tmp_path / "raw", sex=sex, grade=grade)
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"], conditions=["grade"]))
    assert cohort.schema.attributes == {"sex": ["female", "male"]} and cohort.schema.conditions == {"grade": ["1", "2", "none"]}
    assert list(cohort.table["sex"]) == ["male"] * 4 + ["female"] * 3 + ["unknown"]
    assert list(cohort.table["grade"]) == ["1", "1", "2", "2", "1", "none", "none", "unknown"]  # a tie goes to the first that is seen
    notes = notes_on(cohort)
    assert "sex: spellings of one value: 'male' (2), 'Male' (1), 'MALE' (1) -> 'male'" in notes
    assert "grade: spellings of one value: '1' (2), '1.0' (1) -> '1'" in notes
    assert "sex: read as missing: 'n/a' (1)" in notes and "grade: read as missing: '-1' (1)" in notes


def test_codes_that_are_whole_in_one_split_and_floats_in_the_other(tmp_path) -> None:
    raw = tmp_path / "raw"
    for split, codes in (("train", [0, 1, 1, 0]), ("test", [1.0, None, 0.0])):
        write_table(raw / split, [{"file_name": f"{i}.png"} for i in range(len(codes))], "metadata.csv")
        (raw / split / "metadata.csv").unlink()
        flags = [bool(code) for code in codes]
        table = pd.DataFrame({"file_name": [f"{i}.png" for i in range(len(codes))], "code": codes, "flag": flags})
        table.assign(flag=table["flag"].astype("category" if split == "test" else "bool")).to_parquet(raw / split / "metadata.parquet")
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["code"], conditions=["flag"]))
    assert cohort.schema.attributes == {"code": ["0", "1"]} and cohort.schema.conditions == {"flag": ["False", "True"]}
    assert list(cohort.table["code"]) == ["0", "1", "1", "0", "1", "unknown", "0"]


def test_a_column_of_nearly_the_same_name_and_a_group_that_nobody_has_are_told(tmp_path) -> None:
    raw = table_of(tmp_path / "raw", Sex=["male", "female"], sex=["", "n/a"])
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))
    notes = notes_on(cohort)
    assert "sex: no known group; no gap between its groups can be told" in notes
    assert "sex: the table has a column 'Sex' too, which is not read" in notes


def test_missing_subjects_splits_and_prompts(tmp_path) -> None:
    columns = {
        "patient": ["P1", "nan", "nan", "None", "01", "1", "P1"],
        "fold": ["train", "N/A", "test", "--", "val", "test", "train"],
        "text": ["one", "two", "nan", "<NA>", "normal chest", "six", ""],
    }
    raw = table_of(tmp_path / "raw", **columns)
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(subject_column="patient", split_column="fold", modality="chest"))
    assert list(cohort.table["subject_id"]) == ["P1", "1.png", "2.png", "3.png", "01", "1", "P1"]
    template = "Chest Radiography image of a patient"
    assert list(cohort.table["prompt"]) == ["one", "two", template, template, "normal chest", "six", template]
    assert [note for note in notes_on(cohort) if not note.startswith("split")] == [
        "patient: 3 cells are missing ('nan' (2), 'None' (1)); each of these images is a subject of its own",
        "fold: 2 cells are missing ('N/A' (1), '--' (1)); no split is taken from them",
        "text: 3 cells are missing ('nan' (1), '<NA>' (1), empty (1)); a template wrote these prompts",
        "patient: ids that differ in spelling alone are different subjects here, such as '01' and '1' (1 in all); "
        "write them alike where they are one",
    ]


def test_a_dash_beside_a_plus_is_a_value(tmp_path) -> None:
    raw = table_of(tmp_path / "raw", stain=["+", "-", "-", "n/a"], site=["-", "a", "b", "a"])
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(conditions=["stain"], attributes=["site"]))
    assert list(cohort.table["stain"]) == ["+", "-", "-", "unknown"] and list(cohort.table["site"]) == ["unknown", "a", "b", "a"]


@pytest.mark.parametrize("name", ["split", "prompt", "model", "n"])
def test_reserved_column_names_are_refused(tmp_path, name) -> None:
    raw = table_of(tmp_path / "raw", **{name: ["a", "b"]})
    for columns in ({"attributes": [name]}, {"conditions": [name]}):
        with pytest.raises(UserError) as error:
            import_cohort("table", raw, tmp_path / "out", ImportSettings(**columns))
        assert str(error.value) == (
            f"column {name!r} cannot be an attribute or a condition: cohorts have one of that name; "
            f"rename it in the raw table, such as 'patient_{name}'"
        )
    assert not (tmp_path / "out").exists()


def test_tables_of_every_kind_give_one_cohort(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", ROWS)
    expected = import_cohort("table", raw / "labels.csv", tmp_path / "csv", ImportSettings(**COLUMNS)).table
    table, text = pd.DataFrame(ROWS), (raw / "labels.csv").read_text()
    table.to_excel(raw / "t.xlsx", index=False)
    table.to_csv(raw / "indexed.csv.gz")
    table.to_csv(raw / "semicolon.csv", sep=";", index=False, encoding="utf-16")
    table.to_json(raw / "t.json", orient="records")
    (raw / "t.TXT").write_text(text.replace("\n", "\r\n"))
    for number, name in enumerate(("t.xlsx", "indexed.csv.gz", "semicolon.csv", "t.json", "t.TXT")):
        found = import_cohort("table", raw / name, tmp_path / f"out{number}", ImportSettings(**COLUMNS)).table
        pd.testing.assert_frame_equal(found, expected)


def test_bad_rows_of_a_table_are_listed_and_can_be_left_out(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "text": f"film {i}"} for i in range(6)])
    lines = (raw / "labels.csv").read_text().splitlines()
    lines[2], lines[4] = '1.png,"halo', "3.png,one, two"
    (raw / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"labels.csv row 3: a quote is opened and not closed: .* and 1 more, all listed in .*--skip-bad 2"):
        import_cohort("table", raw, tmp_path / "out", ImportSettings(skip_bad=1))
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(skip_bad=2))
    assert list(cohort.table["prompt"]) == ["film 0", "film 2", "film 4", "film 5"]
    assert [fault.split(":")[0] for fault in cohort.schema.made["skipped"]] == ["labels.csv row 3", "labels.csv row 5"]
    assert len(import_cohort("table", raw, tmp_path / "first", ImportSettings(limit=1))) == 1


def test_a_key_that_a_line_lacks_is_missing(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png"} for i in range(3)])
    (raw / "labels.csv").unlink()
    (raw / "t.jsonl").write_text('{"image": "0.png"}\n{"image": "1.png", "sex": "f", "boxes": [[1, 2]]}\n{"image": "2.png", "sex": null}\n')
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))
    assert list(cohort.table["sex"]) == ["unknown", "f", "unknown"]
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, tmp_path / "boxes", ImportSettings(attributes=["boxes"]))
    fault = "t.jsonl row 2: column 'boxes' holds nested values or bytes; write them as plain columns"
    assert str(error.value) == f"{fault}; mend the data or pass --skip-bad 1"


def test_the_encoding_is_noted_or_named(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", [{"image": f"{i}.png", "sex": "x"} for i in range(2)])
    (raw / "labels.csv").write_bytes("image,sex\n0.png,männlich\n1.png,weiblich\n".encode("cp1252"))
    cohort = import_cohort("table", raw, tmp_path / "out", ImportSettings(attributes=["sex"]))
    note = "labels.csv: not UTF-8, read as cp1252; where letters are wrong, name the encoding with --encoding"
    assert list(cohort.table["sex"]) == ["männlich", "weiblich"] and note in notes_on(cohort)
    (raw / "labels.csv").write_bytes("image,sex\n0.png,мужской\n1.png,женский\n".encode("cp1251"))
    cohort = import_cohort("table", raw, tmp_path / "named", ImportSettings(attributes=["sex"], encoding="cp1251"))
    assert list(cohort.table["sex"]) == ["мужской", "женский"] and not any("labels.csv" in note for note in notes_on(cohort))
    with pytest.raises(UserError, match="--encoding: no text encoding of this name; name one such as"):
        ImportSettings.resolve(encoding="klingon")


def test_what_lies_beside_a_table_is_no_table(tmp_path) -> None:
    raw = write_table(tmp_path / "raw", ROWS)
    (raw / "readme.txt").write_text("read me")
    (raw / "dataset_info.json").write_text("{}")
    assert len(import_cohort("table", raw, tmp_path / "out")) == 3
    (raw / "labels.csv").rename(raw / "labels.xls")
    for name in ("readme.txt", "dataset_info.json"):
        (raw / name).unlink()
    with pytest.raises(UserError, match=r"labels.xls: an old Excel workbook; open it and save it as .xlsx or CSV"):
        import_cohort("table", raw, tmp_path / "old")
