"""CheXpert and CheXpert Plus: path prefixes, uncertain labels, the workbook's spellings, labels joined by key."""

import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cohorts.raw_data import (
    CHEXPERT_DEMO,
    CHEXPERT_FINDINGS,
    chexpert_row,
    write_chexpert,
    write_json_lines,
    write_radiograph,
    write_workbook,
)

from evenhand import cli
from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.demographics import Patient
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks, split_of
from evenhand.core.errors import UserError

END = "; mend the data or pass --skip-bad 1"
FRONTAL = "train/patient{:05d}/study1/view1_frontal.jpg"
TRAIN = (
    chexpert_row(FRONTAL.format(1), Pleural_Effusion="1.0", Edema="-1.0"),
    chexpert_row(FRONTAL.format(2), "Male", "87", "Frontal,PA", Pleural_Effusion="0.0", No_Finding="1.0"),
    chexpert_row("train/patient00002/study2/view1_frontal.jpg", "Male", "87", "Frontal,AP", Pleural_Effusion="-1.0"),
    chexpert_row("train/patient00002/study2/view2_lateral.jpg", "Male", "87", "Lateral,", Pleural_Effusion="1.0"),
    chexpert_row(FRONTAL.format(3), "Unknown", "41", "Frontal,LL", Lung_Opacity="1.0"),
)
VALID = (chexpert_row("valid/patient64541/study1/view1_frontal.jpg", "Male", "73", Pleural_Effusion="1.0"),)
PLUS_HEADER = (
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "age", "sex"),
    *("race", "ethnicity", "interpreter_needed", "split", "report", "section_findings", "section_impression"),
)


def written(tmp_path: Path, rows: Sequence[str] = TRAIN, demo: Any = CHEXPERT_DEMO, prefix: str = "") -> Path:
    """A raw folder of ``train.csv`` and ``valid.csv`` whose paths begin with ``prefix``."""
    tables = {"train.csv": [prefix + row for row in rows], "valid.csv": [prefix + row for row in VALID]}
    return write_chexpert(tmp_path / "raw", tables, demo)


def plus_row(path: str, patient: str, race: str = "White", ethnicity: str = "Non-Hispanic/Non-Latino", split: str = "train") -> dict:
    """One row of the table of CheXpert Plus; its report has lines of its own."""
    values = {"path_to_image": path, "frontal_lateral": "Frontal", "ap_pa": "AP", "deid_patient_id": patient, "age": "61", "sex": "Male"}
    return {**values, "race": race, "ethnicity": ethnicity, "split": split, "report": 'NARRATIVE:\nUPRIGHT, "AP"\n\nIMPRESSION: none'}


def write_plus(raw: Path, rows: Sequence[dict], labels: dict[str, Sequence[dict]], ending: str = ".png") -> Path:
    """``df_chexpert_plus_240401.csv``, images under ``PNG/``, label files by their path."""
    raw.mkdir(parents=True, exist_ok=True)
    lines = [",".join('"' + row.get(name, "").replace('"', '""') + '"' for name in PLUS_HEADER) for row in rows]
    (raw / "df_chexpert_plus_240401.csv").write_text("\n".join([",".join(PLUS_HEADER), *lines]) + "\n")
    for row in rows:
        write_radiograph(raw / "PNG", row["path_to_image"], ending)
    for name, found in labels.items():
        write_json_lines(raw / name, [{**dict.fromkeys(CHEXPERT_FINDINGS), **line} for line in found])
    return raw


def refusal(raw: Path, settings: ImportSettings | None = None) -> str:
    out = raw.parent / "refused"
    with pytest.raises(UserError) as error:
        import_cohort("chexpert", raw, out, settings)
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0-small/", "CheXpert-v1.0/", ""])
@pytest.mark.parametrize("folder", ["", "CheXpert-v1.0-small", "CheXpert-v1.0"])
def test_layouts(tmp_path, prefix, folder) -> None:
    tables = {"train.csv": [prefix + row for row in TRAIN], "valid.csv": [prefix + row for row in VALID]}
    write_chexpert(tmp_path / "raw" / folder, tables)
    cohort = import_cohort("chexpert", tmp_path / "raw", tmp_path / "out")
    table = cohort.table
    assert list(table["subject_id"]) == ["patient00001", "patient00002", "patient00002", "patient00003", "patient64541"]
    assert table["image_id"][0] == "train/patient00001/study1/view1_frontal"
    assert list(table["sex"]) == ["female", "male", "male", "unknown", "male"]
    assert list(table["race"]) == ["white", "black", "black", "asian", "other"]
    assert list(table["ethnicity"]) == ["non-hispanic", "non-hispanic", "non-hispanic", "hispanic", "unknown"]
    assert list(table["age_group"]) == [">=60", ">=60", ">=60", "<60", ">=60"]
    assert list(table["effusion"]) == ["effusion", "none", "none", "none", "effusion"]
    assert list(table["prompt"]) == [
        "Chest Radiography image of a female white patient diagnosed with Pleural Effusion",
        "Chest Radiography image of a male black patient diagnosed with non Pleural Effusion",
        "Chest Radiography image of a male black patient diagnosed with non Pleural Effusion",
        "Chest Radiography image of a asian patient diagnosed with non Pleural Effusion",
        "Chest Radiography image of a male other race patient diagnosed with Pleural Effusion",
    ]
    assert cohort.schema.attributes["race"] == ["asian", "black", "white", "other"]
    assert cohort.schema.image_mode == "L" and cohort.pixels().shape == (5, 24, 24)
    assert "1 rows were left out at import: lateral views; --conditions with 'view' keeps them" in notes_on(cohort)
    assert leaks(table) == [] and check_cohort(cohort.root).faults == []


def test_tables_in_the_parent_of_the_images(tmp_path) -> None:
    raw = written(tmp_path, prefix="CheXpert-v1.0-small/")
    (raw / "CheXpert-v1.0-small").mkdir()
    for name in ("train", "valid"):
        (raw / name).rename(raw / "CheXpert-v1.0-small" / name)
    assert len(import_cohort("chexpert", raw, tmp_path / "out")) == 5


@pytest.mark.parametrize("above", ["", "chexpertchestxrays-u20210408"])
@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "CheXpert-v1.0\\", ""])
def test_the_four_batches_of_the_download(tmp_path, above, prefix) -> None:
    """Training images lie in three folders without ``train/``, tables and validation images in a fourth."""
    parts = {1: "1 (validate & csv)", 2: "2 (train 1)", 3: "3 (train 2)", 4: "4 (train 3)"}
    folders = {number: tmp_path / "raw" / above / f"CheXpert-v1.0 batch {name}" for number, name in parts.items()}
    rows = [chexpert_row(FRONTAL.format(number), Pleural_Effusion="1") for number in (1, 21514, 43018)]
    write_chexpert(folders[1], {"train.csv": rows, "valid.csv": VALID})
    for number, patient in ((2, "patient00001"), (3, "patient21514"), (4, "patient43018")):
        folders[number].mkdir()
        (folders[1] / "train" / patient).rename(folders[number] / patient)
    (folders[1] / "CHEXPERT DEMO.xlsx").rename(folders[1].parent / "CHEXPERT DEMO.xlsx")
    for table in (folders[1] / "train.csv", folders[1] / "valid.csv"):
        table.write_text(re.sub(r"^(train|valid)/", lambda match: prefix + match[0], table.read_text(), flags=re.MULTILINE))
    table = import_cohort("chexpert", tmp_path / "raw", tmp_path / "out").table
    assert list(table["image_id"]) == [FRONTAL.format(number)[:-4] for number in (1, 21514, 43018)] + [VALID[0].split(",")[0][:-4]]
    assert table["split"][3] == "val" and table["race"][0] == "white"


TEST_ROW = ",".join(["{}", *("0.0" for _ in CHEXPERT_FINDINGS)]) + "\n"
TEST_IMAGE = "test/patient64741/study1/view1_frontal.jpg"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("test_labels.csv", "Path", f"CheXpert-v1.0/{TEST_IMAGE}"),
        ("test_labels.csv", "Path", TEST_IMAGE),
        ("groundtruth.csv", "Study", "CheXpert-v1.0/test/patient64741/study1"),
    ],
)
def test_the_test_set_that_was_handed_out_later(tmp_path, table, column, value) -> None:
    raw = written(tmp_path, demo=None)
    for name in (TEST_IMAGE, TEST_IMAGE.replace("view1_frontal", "view2_lateral")):
        write_radiograph(raw, name)
    (raw / table).write_text(",".join([column, *CHEXPERT_FINDINGS]) + "\n" + TEST_ROW.format(value))
    cohort = import_cohort("chexpert", raw, tmp_path / "out")
    found = cohort.table[cohort.table["subject_id"] == "patient64741"]
    assert found[["image_id", "split", "sex", "age_group", "effusion"]].values.tolist() == [
        [TEST_IMAGE[:-4], "test", "unknown", "unknown", "none"]
    ]
    views = import_cohort("chexpert", raw, tmp_path / "views", ImportSettings(conditions=["view"])).table
    lateral = views[views["subject_id"] == "patient64741"]["view"]
    assert list(lateral) == (["unknown", "lateral"] if column == "Study" else ["unknown"])


def test_one_table_alone_and_labels_of_the_validation_set(tmp_path) -> None:
    raw = write_chexpert(tmp_path / "raw" / "CheXpert", {"valid.csv": VALID}, None)
    assert list(import_cohort("chexpert", tmp_path / "raw", tmp_path / "out").table["split"]) == ["val"]
    (raw / "valid.csv").unlink()
    (raw / "val_labels.csv").write_text(",".join(["Path", *CHEXPERT_FINDINGS]) + "\n" + TEST_ROW.format(VALID[0].split(",")[0]))
    table = import_cohort("chexpert", tmp_path / "raw", tmp_path / "labels").table
    assert table[["split", "sex", "effusion"]].values.tolist() == [["val", "unknown", "none"]]


@pytest.mark.parametrize("folder", ["", "CheXpert-v1.0"])
def test_patients_without_the_folder_of_their_split(tmp_path, folder) -> None:
    raw = write_chexpert(tmp_path / "raw" / folder, {"train.csv": [f"CheXpert-v1.0/{row}" for row in TRAIN]}, None)
    for path in sorted((raw / "train").iterdir()):
        path.rename(raw / path.name)
    (raw / "train").rmdir()
    assert len(import_cohort("chexpert", tmp_path / "raw", tmp_path / "out")) == 4


def test_tables_in_capitals(tmp_path) -> None:
    raw = written(tmp_path)
    (raw / "train.csv").rename(raw / "TRAIN.CSV")
    (raw / "train").rename(raw / "Train")
    for path in list(raw.rglob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    assert len(import_cohort("chexpert", raw, tmp_path / "out")) == 5


def test_published_validation_patients_are_never_trained_on(tmp_path) -> None:
    rows = [chexpert_row(FRONTAL.format(number), Pleural_Effusion="1.0") for number in range(1, 41)]
    raw = written(tmp_path, rows)
    extra = chexpert_row("test/patient64741/study1/view1_frontal.jpg", Pleural_Effusion="0.0")
    write_chexpert(raw, {"test.csv": [extra]}, None)
    table = import_cohort("chexpert", raw, tmp_path / "out", ImportSettings(size=8)).table.set_index("subject_id")
    assert table["split"]["patient64541"] == "val" and table["split"]["patient64741"] == "test"
    trained = [f"patient{number:05d}" for number in range(1, 41)]
    assert [table["split"][name] for name in trained] == [split_of(name, 0) for name in trained]
    assert set(table.loc[trained, "split"]) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("uncertain", "effusion", "left_out"),
    [
        (None, ["effusion", "none", "none", "none", "effusion"], {}),
        ("zeros", ["effusion", "none", "none", "none", "effusion"], {}),
        ("ones", ["effusion", "none", "effusion", "none", "effusion"], {}),
        ("drop", ["effusion", "none", "none", "effusion"], {"uncertain Pleural Effusion (--uncertain drop)": 1}),
    ],
)
def test_uncertain_labels(tmp_path, uncertain, effusion, left_out) -> None:
    cohort = import_cohort("chexpert", written(tmp_path), tmp_path / "out", ImportSettings(uncertain=uncertain))
    assert list(cohort.table["effusion"]) == effusion  # patient 3 has a blank: not mentioned, so absent
    made = cohort.schema.made
    assert made["uncertain"] == (uncertain or "zeros")
    assert {reason: number for reason, number in made["left_out"].items() if "lateral" not in reason} == left_out


def test_other_conditions_on_request(tmp_path) -> None:
    settings = ImportSettings(conditions=["finding", "edema", "lung_opacity", "view"], uncertain="ones")
    cohort = import_cohort("chexpert", written(tmp_path), tmp_path / "out", settings)
    assert list(cohort.table["finding"]) == ["any", "none", "any", "any", "any", "any"]
    assert list(cohort.table["edema"]) == ["edema", "none", "none", "none", "none", "none"]
    assert list(cohort.table["lung_opacity"]) == ["none", "none", "none", "none", "lung_opacity", "none"]
    assert list(cohort.table["view"]) == ["AP", "PA", "AP", "lateral", "unknown", "AP"]
    assert list(cohort.table["prompt"])[:2] == [
        "Chest Radiography image of a female white patient diagnosed with abnormal findings, non Lung Opacity, Edema, AP view",
        "Chest Radiography image of a male black patient diagnosed with No Finding, non Lung Opacity, non Edema, PA view",
    ]


def test_every_finding_of_the_data_set_is_a_condition(tmp_path) -> None:
    raw = written(tmp_path, [chexpert_row(FRONTAL.format(1), **{name.replace(" ", "_"): "1" for name in CHEXPERT_FINDINGS[1:]})])
    names = [name.lower().replace(" ", "_") for name in CHEXPERT_FINDINGS[1:] if name != "Pleural Effusion"] + ["effusion"]
    cohort = import_cohort("chexpert", raw, tmp_path / "out", ImportSettings(conditions=names))
    assert {name: cohort.table[name][0] for name in names} == {name: name for name in names}
    words = [name for name in CHEXPERT_FINDINGS[1:] if name != "Pleural Effusion"]
    assert cohort.table["prompt"][0].endswith(f"diagnosed with Pleural Effusion, {', '.join(words)}")


@pytest.mark.parametrize(
    ("state", "patient"),
    [
        (["sex"], "a female patient"),
        (["race"], "a white patient"),
        (["ethnicity"], "a non-hispanic patient"),
        (["age_group"], "a >=60 patient"),
        (["age_group", "ethnicity", "race", "sex"], "a female white >=60 non-hispanic patient"),
        (["none"], "a patient"),
    ],
)
def test_prompts_state_what_is_asked(tmp_path, state, patient) -> None:
    cohort = import_cohort("chexpert", written(tmp_path, TRAIN[:1]), tmp_path / "out", ImportSettings(prompt_attributes=state))
    assert cohort.table["prompt"][0] == f"Chest Radiography image of {patient} diagnosed with Pleural Effusion"


def test_fewer_attributes_need_no_workbook(tmp_path) -> None:
    raw = written(tmp_path, demo=None)
    (raw / "CHEXPERT DEMO.xlsx").write_bytes(b"is not read")
    cohort = import_cohort("chexpert", raw, tmp_path / "out", ImportSettings(attributes=["sex", "age_group"]))
    assert list(cohort.schema.attributes) == ["sex", "age_group"]
    assert cohort.table["prompt"][0] == "Chest Radiography image of a female patient diagnosed with Pleural Effusion"


def test_spellings_that_are_not_known_are_counted_and_listed(tmp_path) -> None:
    demo = [
        *CHEXPERT_DEMO[:1],
        ("patient00001", "Martian", "Female", 68, "Somewhat"),
        ("patient00002", "Venusian,  non-Hispanic", "Male", 87, None),
        ("patient00003", "Race and Ethnicity Unknown", "Female", 41, "Unknown"),
    ]
    cohort = import_cohort("chexpert", written(tmp_path, demo=demo), tmp_path / "out")
    assert set(cohort.table["race"]) == {"unknown"} and set(cohort.table["ethnicity"]) == {"unknown"}
    counts = group_counts(cohort).set_index(["column", "group"])["images"]
    assert counts["race", "unknown"] == 5 and counts["race", "white"] == 0
    assert notes_on(cohort)[-3:] == [
        "race: 3 rows with spellings that are not known count as unknown: 'Venusian,  non-Hispanic' (2), 'Martian' (1)",
        "ethnicity: 1 rows with spellings that are not known count as unknown: 'Somewhat' (1)",
        "race, ethnicity: 1 rows of patients that CHEXPERT DEMO.xlsx lacks are unknown",
    ]


@pytest.mark.parametrize(
    ("race", "ethnicity", "expected"),
    [
        ("White", "Non-Hispanic/Non-Latino", ("white", "non-hispanic")),
        ("White, non-Hispanic", "", ("white", "non-hispanic")),
        ("WHITE, HISPANIC", "Unknown", ("white", "hispanic")),
        ("White, Hispanic", "Non-Hispanic/Non-Latino", ("white", "non-hispanic")),
        ("Black or African American", "Hispanic/Latino", ("black", "hispanic")),
        ("Black, non-Hispanic", "Patient Refused", ("black", "non-hispanic")),
        ("Asian - Historical Conv", "Not Hispanic", ("asian", "non-hispanic")),
        ("Native Hawaiian or Other Pacific Islander ", "nan", ("other", "unknown")),
        ("Native American, Hispanic", "", ("other", "hispanic")),
        ("Other", "Unknown", ("other", "unknown")),
        ("Hispanic - Historical Conv", "", ("unknown", "hispanic")),
        ("Race and Ethnicity Unknown", "Declines to State", ("unknown", "unknown")),
        ("Patient Refused", "", ("unknown", "unknown")),
        ("", "", ("unknown", "unknown")),
    ],
)
def test_known_spellings(race, ethnicity, expected) -> None:
    groups, strange = Patient(race, ethnicity).groups()
    assert (groups["race"], groups["ethnicity"]) == expected and strange == []


def test_two_rows_of_one_patient(tmp_path) -> None:
    demo = [
        *CHEXPERT_DEMO,
        ("patient00001", "White", "Female", 69, "Unknown"),  # says no more
        ("patient00002", "Asian", "Male", 88, "Non-Hispanic/Non-Latino"),  # says otherwise
        ("patient64541", "Patient Refused", "Male", 73, "Hispanic/Latino"),  # fills a gap
    ]
    cohort = import_cohort("chexpert", written(tmp_path, demo=demo), tmp_path / "out")
    assert list(cohort.table["race"]) == ["white", "unknown", "unknown", "asian", "other"]
    assert list(cohort.table["ethnicity"]) == ["non-hispanic", "non-hispanic", "non-hispanic", "hispanic", "hispanic"]
    assert notes_on(cohort)[-1] == (
        "race: 2 rows with spellings that are not known count as unknown: 'Black or African American / Asian' (2)"
    )


def test_no_workbook_is_told_and_another_place_can_be_named(tmp_path) -> None:
    raw = written(tmp_path, demo=None)
    cohort = import_cohort("chexpert", raw, tmp_path / "out")
    assert set(cohort.table["race"]) == {"unknown"}
    assert cohort.table["prompt"][0] == "Chest Radiography image of a female patient diagnosed with Pleural Effusion"
    note = "race, ethnicity: unknown, since the data folder has no CHEXPERT DEMO.xlsx; name it with --demographics"
    assert note in notes_on(cohort)
    book = write_workbook(tmp_path / "elsewhere.xlsx", CHEXPERT_DEMO)
    cohort = import_cohort("chexpert", raw, tmp_path / "named", ImportSettings(demographics=book))
    assert list(cohort.table["race"]) == ["white", "black", "black", "asian", "other"] and note not in notes_on(cohort)
    assert cohort.schema.made["demographics"] == cohort.schema.made["settings"]["demographics"] == "elsewhere.xlsx"
    text = "\n".join(",".join("" if value is None else f'"{value}"' for value in row) for row in CHEXPERT_DEMO)
    (tmp_path / "demo.csv").write_text(text)
    again = import_cohort("chexpert", raw, tmp_path / "csv", ImportSettings(demographics=tmp_path / "demo.csv"))
    assert list(again.table["race"]) == list(cohort.table["race"])
    (raw / "chexpertdemodata-2").mkdir()
    book.rename(raw / "chexpertdemodata-2" / "CHEXPERT DEMO.xlsx")
    assert list(import_cohort("chexpert", raw, tmp_path / "found").table["race"]) == list(cohort.table["race"])


def test_workbooks_that_are_none(tmp_path) -> None:
    raw = written(tmp_path, demo=CHEXPERT_DEMO)
    book = raw / "CHEXPERT DEMO.xlsx"
    whole = book.read_bytes()
    book.write_bytes(b"PATIENT,PRIMARY_RACE\n")
    remedy = "save it as .xlsx without a password, or as CSV"
    assert refusal(raw) == f"{book}: not a readable workbook (File is not a zip file); {remedy}"
    book.write_bytes(whole[: len(whole) // 2])
    assert refusal(raw).startswith(f"{book}: not a readable workbook (")
    write_workbook(book, [("PATIENT", "RACE", "ETHNICITY"), ("patient00001", "White", "Unknown")])
    assert refusal(raw) == f"{book}: no column 'PRIMARY_RACE'; There is: PATIENT, RACE, ETHNICITY"
    write_workbook(book, [CHEXPERT_DEMO[0], *CHEXPERT_DEMO[1:], ("Mr Smith", "White", "Male", 3, "Unknown")])
    assert refusal(raw) == f"{book} row 6: no patient id such as 'patient00001' in 'Mr Smith'; mend the row or remove it"
    assert refusal(raw, ImportSettings(demographics=tmp_path / "no.xlsx")) == f"{tmp_path / 'no.xlsx'}: no such file; name the workbook"


def replace_part(book: Path, part: str, content: bytes) -> None:
    """Put ``content`` in the place of one part of a workbook."""
    with zipfile.ZipFile(book) as old:
        parts = {name: old.read(name) for name in old.namelist()} | {part: content}
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, data in parts.items():
            new.writestr(name, data)


def test_workbooks_that_unfold(tmp_path) -> None:
    raw = written(tmp_path)
    book = raw / "CHEXPERT DEMO.xlsx"
    with zipfile.ZipFile(book, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("xl/more.xml", "w") as part:
        for _ in range(100):
            part.write(bytes(1_000_000))
    with zipfile.ZipFile(book) as file:
        size = sum(part.file_size for part in file.infolist())
    assert book.stat().st_size < 1_000_000
    assert refusal(raw) == f"{book}: unpacks to {size:,} bytes, more than 100,000,000; save its table as CSV"
    write_workbook(book, CHEXPERT_DEMO)
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    with zipfile.ZipFile(book) as file:
        sheet = file.read("xl/worksheets/sheet1.xml").replace(b"patient00001", b"&a9;")
    head = f'<?xml version="1.0"?><!DOCTYPE worksheet [<!ENTITY a0 "lol">{entities}]>'
    replace_part(book, "xl/worksheets/sheet1.xml", head.encode() + sheet)
    assert refusal(raw).startswith(f"{book}: not a readable workbook (limit on input amplification")


def test_a_workbook_compressed_without_bounds_is_refused(tmp_path) -> None:
    raw = written(tmp_path)
    book = raw / "CHEXPERT DEMO.xlsx"
    with zipfile.ZipFile(book, "a", zipfile.ZIP_LZMA) as file:
        file.writestr("xl/more.xml", bytes(1000))
    assert refusal(raw).startswith(f"{book}: not a readable workbook (compressed in a way that Excel never uses); ")


def test_nothing_but_rows_that_are_left_out(tmp_path) -> None:
    raw = write_chexpert(tmp_path / "raw", {"train.csv": TRAIN[2:4]})
    assert refusal(raw, ImportSettings(uncertain="drop")) == (
        f"{raw}: no image to import (0 bad, 0 with an unknown group, 1 left out: uncertain Pleural Effusion (--uncertain drop), "
        "1 left out: lateral views; --conditions with 'view' keeps them)"
    )


def test_a_sheet_that_lies_about_its_size(tmp_path) -> None:
    raw = written(tmp_path)
    book = raw / "CHEXPERT DEMO.xlsx"
    with zipfile.ZipFile(book) as file:
        sheet = file.read("xl/worksheets/sheet1.xml")
    assert b'<dimension ref="A1:E5"/>' in sheet or b'<dimension ref="A1:E5" />' in sheet
    replace_part(book, "xl/worksheets/sheet1.xml", sheet.replace(b"A1:E5", b"A1:A1"))
    assert list(import_cohort("chexpert", raw, tmp_path / "out").table["race"]) == ["white", "black", "black", "asian", "other"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (
            chexpert_row("CheXpert-v1.0-small/../../train/patient00009/a.jpg"),
            "../../train/patient00009/a.jpg: path leads out of the data folder ('..'); put the file inside it",
        ),
        (
            chexpert_row("/train/patient00009/study1/view1_frontal.jpg"),
            "/train/patient00009/study1/view1_frontal.jpg: absolute path; write it relative to the data folder",
        ),
        (
            chexpert_row("CheXpert-v1.0//train/patient00009/a.jpg"),  # a doubled slash is one
            "train/patient00009/a.jpg: no such file in the data folder",
        ),
        (chexpert_row(FRONTAL.format(9)), f"{FRONTAL.format(9)}: no such file in the data folder"),
        (chexpert_row("train/p9/view1_frontal.jpg"), "no patient id such as 'patient00001' in 'train/p9/view1_frontal.jpg'"),
        (chexpert_row(""), "empty Path"),
        (
            chexpert_row(FRONTAL.format(1).replace("study1", "study9"), Pleural_Effusion="2"),
            "Pleural Effusion '2' is no label; there is: 1, 0, -1 or empty",
        ),
        (
            chexpert_row(FRONTAL.format(1).replace("study1", "study9"), "Womam"),
            "Sex 'Womam' is no known group; There is: female, male, f, m",
        ),
        (
            chexpert_row(FRONTAL.format(1).replace("study1", "study9"), view="Frnotal,AP"),
            "Frontal/Lateral 'Frnotal' is no known group; did you mean 'frontal'? There is: frontal, lateral",
        ),
        (
            "train/patient00001/study9/view1_frontal.jpg,Male,50,Frontal,AP",
            "5 of 19 cells: no value in column 'No Finding'; the row is cut short",
        ),
        (
            "CheXpert-v1.0/" + TRAIN[0],
            "image id 'train/patient00001/study1/view1_frontal' stands in train.csv row 2 already; keep one of the two rows",
        ),
    ],
)
def test_bad_rows(tmp_path, row, fault) -> None:
    raw = written(tmp_path)
    if "study9" in row or "/p9/" in row:
        write_radiograph(raw, row.split(",")[0])
    with (raw / "train.csv").open("a") as file:
        file.write(row + "\n")
    assert refusal(raw) == f"train.csv row 7: {fault}{END}"


def test_a_patient_in_both_tables_is_refused(tmp_path) -> None:
    path = "valid/patient00001/study1/view1_frontal.jpg"
    raw = write_chexpert(tmp_path / "raw", {"train.csv": TRAIN[:1], "valid.csv": [chexpert_row(path)]})
    settings = ImportSettings(seed=next(seed for seed in range(9) if split_of("patient00001", seed) == "train"))
    assert refusal(raw, settings) == (
        f"valid.csv row 2: subject 'patient00001' is in split 'val' here and in 'train' in train.csv row 2; put it into one{END}"
    )


def test_tables_that_are_missing_or_many(tmp_path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    assert refusal(raw) == f"{raw}: no train.csv (or CheXpert Plus' df_chexpert_plus_240401.csv); name the folder that holds it"
    for name in ("CheXpert-v1.0", "CheXpert-v1.0-small"):
        write_chexpert(raw / name, {"train.csv": TRAIN})
    assert refusal(raw) == f"{raw}: tables in CheXpert-v1.0 and in CheXpert-v1.0-small; name one of these folders"
    table = raw / "CheXpert-v1.0" / "train.csv"
    assert refusal(table) == f"{table}: not a folder; name the folder that holds train.csv or df_chexpert_plus_240401.csv"
    table.write_text(table.read_text().replace("Pleural Effusion", "Effusion"))
    assert refusal(table.parent).startswith(f"{table}: no column 'Pleural Effusion'; did you mean")


def test_options_belong_to_their_source(tmp_path) -> None:
    with pytest.raises(UserError) as error:
        import_cohort("ham10000", tmp_path, tmp_path / "out", ImportSettings(uncertain="ones"))
    assert str(error.value) == "--uncertain is an option of the source 'chexpert', not of 'ham10000'"
    with pytest.raises(UserError) as error:
        import_cohort("table", tmp_path, tmp_path / "out", ImportSettings(demographics=tmp_path / "a.xlsx"))
    assert str(error.value) == "--demographics is an option of the source 'chexpert', not of 'table'"
    assert refusal(written(tmp_path), ImportSettings(subject_column="x")) == (
        "--subject-column is an option of the source 'table', not of 'chexpert'"
    )


PLUS_ROWS = (
    plus_row(FRONTAL.format(1), "patient00001", "Asian"),
    plus_row(FRONTAL.format(2), "patient00002", "Black", "Unknown"),
    plus_row("valid/patient64541/study1/view1_frontal.jpg", "patient64541", "Klingon", split="valid"),
)
PLUS_LABELS = [  # in another order than the table's, and one more
    {"path_to_image": "valid/patient64541/study1/view1_frontal.jpg", "Pleural Effusion": -1.0},
    {"path_to_image": FRONTAL.format(7), "Pleural Effusion": 1.0},
    {"path_to_image": FRONTAL.format(2), "Pleural Effusion": 1.0},
    {"path_to_image": FRONTAL.format(1), "Pleural Effusion": None},
]


@pytest.mark.parametrize("ending", [".png", ".jpg"])
@pytest.mark.parametrize("place", ["impression_fixed.json", "chexbert_labels/report_fixed.json"])
def test_plus_labels_are_joined_by_key(tmp_path, ending, place) -> None:
    cohort = import_cohort("chexpert", write_plus(tmp_path / "raw", PLUS_ROWS, {place: PLUS_LABELS}, ending), tmp_path / "out")
    assert list(cohort.table["subject_id"]) == ["patient00001", "patient00002", "patient64541"]
    assert list(cohort.table["effusion"]) == ["none", "effusion", "none"]
    assert list(cohort.table["race"]) == ["asian", "black", "unknown"]
    assert list(cohort.table["ethnicity"]) == ["non-hispanic", "unknown", "non-hispanic"]
    assert cohort.table["split"][2] == "val" and cohort.table["split"][0] == split_of("patient00001", 0)
    assert cohort.table["prompt"][1] == "Chest Radiography image of a male black patient diagnosed with Pleural Effusion"
    assert cohort.schema.made["labels"] == Path(place).name and cohort.schema.source.startswith("CheXpert Plus ")
    assert notes_on(cohort)[-1] == "race: 1 rows with spellings that are not known count as unknown: 'Klingon' (1)"
    assert check_cohort(cohort.root).faults == []


def test_plus_takes_the_labels_of_the_impression_first(tmp_path) -> None:
    other = [{**line, "Pleural Effusion": 1.0} for line in PLUS_LABELS]
    files = {"report_fixed.json": other, "findings_fixed.json": other, "chexbert_labels/impression_fixed.json": PLUS_LABELS}
    cohort = import_cohort("chexpert", write_plus(tmp_path / "raw", PLUS_ROWS, files), tmp_path / "out")
    assert list(cohort.table["effusion"]) == ["none", "effusion", "none"]


def test_plus_images_without_a_line_are_unknown(tmp_path) -> None:
    raw = write_plus(tmp_path / "raw", PLUS_ROWS, {"impression_fixed.json": PLUS_LABELS[:3]})
    cohort = import_cohort("chexpert", raw, tmp_path / "out", ImportSettings(conditions=["effusion", "edema"]))
    assert list(cohort.table["effusion"]) == ["unknown", "effusion", "none"]
    assert cohort.table["prompt"][0] == "Chest Radiography image of a male asian patient"
    assert "1 rows have no line in impression_fixed.json: their findings are unknown" in notes_on(cohort)


def test_plus_labels_that_are_none(tmp_path) -> None:
    raw = write_plus(tmp_path / "raw", PLUS_ROWS, {})
    assert refusal(raw) == (
        f"{raw}: no labels (impression_fixed.json, report_fixed.json, findings_fixed.json); "
        "put the one that is wanted beside df_chexpert_plus_240401.csv"
    )
    assert len(import_cohort("chexpert", raw, tmp_path / "views", ImportSettings(conditions=["view"]))) == 3
    labels = raw / "impression_fixed.json"
    write_plus(raw, PLUS_ROWS, {labels.name: [*PLUS_LABELS, {**PLUS_LABELS[0], "Pleural Effusion": 0.0}]})
    assert refusal(raw) == (
        f"{labels} row 5: 'valid/patient64541/study1/view1_frontal' stands in an earlier row with other labels; keep one of the two"
    )
    write_json_lines(labels, [{"path_to_image": "a", "Effusion": 1}])
    assert refusal(raw).startswith(f"{labels}: no column 'Pleural Effusion'; did you mean 'Effusion'?")
    labels.write_text(labels.read_text().replace("Effusion", "Pleural Effusion") + '{"path_to_image": "b"}\n')
    assert len(import_cohort("chexpert", raw, tmp_path / "absent")) == 3  # a key that a line lacks is as missing as null
    for line in ('{"path_to_image": ' + "[" * 100_000, '{"path_to_image": ' + "9" * 5000 + "}", '{"path_to_image": "a"'):
        labels.write_text(line + "\n")
        assert refusal(raw).startswith(f"{labels}: neither JSON lines nor an array of objects; ")


def test_command_line(tmp_path, monkeypatch, capsys) -> None:
    raw, book = written(tmp_path, demo=None), write_workbook(tmp_path / "demo.xlsx", CHEXPERT_DEMO)
    command = ["evenhand", "cohort", "import", "chexpert", str(raw), str(tmp_path / "out"), "--demographics", str(book)]
    monkeypatch.setattr(sys, "argv", [*command, "--uncertain", "ones", "--conditions", "effusion,view", "--prompt-attributes", "race"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    cohort = Cohort.load(tmp_path / "out")
    assert list(cohort.table["effusion"]) == ["effusion", "none", "effusion", "effusion", "none", "effusion"]
    assert cohort.table["prompt"][2] == "Chest Radiography image of a black patient diagnosed with Pleural Effusion, AP view"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", [*command[:5], str(tmp_path / "again"), "--demographics", str(tmp_path / "no.xlsx")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.strip().endswith("no.xlsx: no such file; name the workbook")
