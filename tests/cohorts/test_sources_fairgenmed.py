"""FairGenMed: both layouts, archives that are never unpickled, and what each value means."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cohorts.raw_data import FAIRGENMED_HEADER, FAIRGENMED_ROWS, FAIRGENMED_VALUES, picture, write_fairgenmed
from PIL import Image

from evenhand.cohorts.arrays import BadArray, array_image
from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks
from evenhand.core.errors import UserError

PROMPTS = [
    "SLO fundus image of a black female non-hispanic patient with the following conditions: "
    "glaucoma, mild vision loss, borderline cup-disc ratio, myopia",
    "SLO fundus image of a asian male non-hispanic patient with the following conditions: "
    "non-glaucoma, normal vision, normal cup-disc ratio, hyperopia",
    "SLO fundus image of a white female non-hispanic patient with the following conditions: "
    "glaucoma, severe vision loss, abnormal cup-disc ratio, emmetropia",
]
END = "; mend the data or pass --skip-bad 1"
ONE = {"rows": FAIRGENMED_ROWS[:1], "values": FAIRGENMED_VALUES[:1]}


class Canary:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def changed(**values: object) -> dict[str, object]:
    """The first subject's archive with other values; None leaves a key out."""
    return {key: value for key, value in {**FAIRGENMED_VALUES[0], **values}.items() if value is not None}


def row(**values: str) -> list[str]:
    """The first subject's row with other values."""
    return [values.get(name, value) for name, value in zip(FAIRGENMED_HEADER, FAIRGENMED_ROWS[0], strict=True)]


def refusal(raw: Path, settings: ImportSettings | None = None) -> str:
    with pytest.raises(UserError) as error:
        import_cohort("fairgenmed", raw, raw.parent / "out", settings)
    assert "\n" not in str(error.value) and not (raw.parent / "out").exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("table", "folders"),
    [
        ("data_summary.csv", ("train", "val", "test")),
        ("ReadMe/data_summary.csv", ("Dataset/Training", "Dataset/Validation", "Dataset/Test")),
        ("README/Data_Summary.CSV", ("dataset/training", "dataset/VALIDATION", "dataset/test")),
        ("ReadMe/data_summary.csv", ("Dataset/Training/Training", "Dataset/Validation/Validation", "Dataset/Test/Test")),
    ],
)
def test_layouts(tmp_path, table, folders) -> None:
    cohort = import_cohort("fairgenmed", write_fairgenmed(tmp_path / "raw", table=table, folders=folders), tmp_path / "out")
    assert list(cohort.table["subject_id"]) == ["data_00001", "data_00002", "data_00003"]
    assert list(cohort.table["split"]) == ["train", "val", "test"]
    assert list(cohort.table["race"]) == ["black", "asian", "white"]
    assert list(cohort.table["gender"]) == ["female", "male", "female"]
    assert list(cohort.table["glaucoma"]) == ["glaucoma", "non-glaucoma", "glaucoma"]
    assert list(cohort.table["md_severity"]) == ["mild", "normal", "severe"]
    assert list(cohort.table["cup_disc_ratio"]) == ["borderline", "normal", "abnormal"]
    assert list(cohort.table["refraction"]) == ["myopia", "hyperopia", "emmetropia"]
    assert list(cohort.table["prompt"]) == PROMPTS
    assert (cohort.schema.modality, cohort.schema.image_mode, cohort.schema.image_size) == ("fundus", "RGB", 20)
    assert cohort.schema.licence == "CC BY-NC-ND 4.0"
    np.testing.assert_allclose(cohort.pixels([1])[0] * 255, np.asarray(picture(1, (20, 20))), atol=0.01)
    assert leaks(cohort.table) == [] and check_cohort(cohort.root).faults == []


@pytest.mark.parametrize("change", [lambda name: f"train\\{name}", str.upper, lambda name: f"./{name.removesuffix('.npz')}"])
def test_names_as_other_systems_write_them(tmp_path, change) -> None:
    rows = [(change(found[0]), *found[1:]) for found in FAIRGENMED_ROWS]
    raw = write_fairgenmed(tmp_path / "raw")
    text = (raw / "data_summary.csv").read_text()
    for new, old in zip(rows, FAIRGENMED_ROWS, strict=True):
        text = text.replace(old[0], new[0])
    (raw / "data_summary.csv").write_text(text)
    (raw / "train" / "._data_00001.npz").write_bytes(b"\0\5\x16\7")
    cohort = import_cohort("fairgenmed", raw, tmp_path / "out")
    assert list(cohort.table["split"]) == ["train", "val", "test"] and list(cohort.table["prompt"]) == PROMPTS
    assert not any("have no row" in note for note in notes_on(cohort))


def test_groups_without_a_subject_stay_visible(tmp_path) -> None:
    cohort = import_cohort("fairgenmed", write_fairgenmed(tmp_path / "raw"), tmp_path / "out")
    assert cohort.schema.attributes["ethnicity"] == ["non-hispanic", "hispanic"]
    counts = group_counts(cohort).set_index(["column", "group"])["images"]
    assert counts["ethnicity", "hispanic"] == 0 and counts["ethnicity", "non-hispanic"] == 3
    assert "ethnicity: one group only (non-hispanic); no gap between its groups can be told" in notes_on(cohort)


def test_split_without_folders_is_the_tables(tmp_path) -> None:
    cohort = import_cohort("fairgenmed", write_fairgenmed(tmp_path / "raw", folders=(".",)), tmp_path / "out")
    assert list(cohort.table["split"]) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("state", "patient"),
    [
        (["race"], "a black patient"),
        (["gender"], "a female patient"),
        (["ethnicity"], "a non-hispanic patient"),
        (["gender", "race"], "a black female patient"),
        (["none"], "a patient"),
    ],
)
def test_prompts_state_what_is_asked(tmp_path, state, patient) -> None:
    settings = ImportSettings(prompt_attributes=state, conditions=["glaucoma", "refraction"])
    cohort = import_cohort("fairgenmed", write_fairgenmed(tmp_path / "raw", **ONE), tmp_path / "out", settings)
    assert cohort.table["prompt"][0] == f"SLO fundus image of {patient} with the following conditions: glaucoma, myopia"


@pytest.mark.parametrize(
    ("values", "summary", "expected"),
    [
        ({"race": 0}, {}, {"race": "asian"}),
        ({"race": 2.0}, {}, {"race": "white"}),
        ({"race": np.array([1])}, {}, {"race": "black"}),
        ({"race": b"Black or African American"}, {}, {"race": "black"}),
        ({"male": True, "hispanic": np.int8(1)}, {}, {"gender": "male", "ethnicity": "hispanic"}),
        ({"race": -1, "male": float("nan"), "hispanic": ""}, {}, {"race": "unknown", "gender": "unknown", "ethnicity": "unknown"}),
        ({"glaucoma": -1}, {}, {"glaucoma": "unknown"}),
        ({"race": None, "male": None, "hispanic": None}, {}, {"race": "black", "gender": "female", "ethnicity": "non-hispanic"}),
        ({"race": None}, {"race": ""}, {"race": "unknown"}),
        ({"glaucoma": None}, {"glaucoma": "0.0"}, {"glaucoma": "non-glaucoma"}),
        ({}, {"md_severity": "-1", "cdr_status": "NaN", "near_vision_refraction_stage": ""}, {"md_severity": "unknown"}),
        ({}, {"near_vision_refraction_stage": "Myopia"}, {"refraction": "myopia"}),
    ],
)
def test_values(tmp_path, values, summary, expected) -> None:
    raw = write_fairgenmed(tmp_path / "raw", [row(**summary)], [changed(**values)])
    table = import_cohort("fairgenmed", raw, tmp_path / "out").table
    assert {name: table[name][0] for name in expected} == expected


def test_unknown_values_are_left_out_of_the_prompt(tmp_path) -> None:
    summary = [row(md_severity="-1", cdr_status="NaN", near_vision_refraction_stage="")]
    raw = write_fairgenmed(tmp_path / "raw", summary, [changed(race=-1)])
    cohort = import_cohort("fairgenmed", raw, tmp_path / "out")
    assert cohort.table["prompt"][0] == "SLO fundus image of a female non-hispanic patient with the following conditions: glaucoma"


def test_the_card_s_name_of_the_refraction_column(tmp_path) -> None:
    header = [name.replace("near_vision_refraction_stage", "se_status") for name in FAIRGENMED_HEADER]
    cohort = import_cohort("fairgenmed", write_fairgenmed(tmp_path / "raw", header=header), tmp_path / "out")
    assert list(cohort.table["refraction"]) == ["myopia", "hyperopia", "emmetropia"]


def test_a_missing_column_matters_only_where_it_is_asked_for(tmp_path) -> None:
    header = [name.replace("cdr_status", "cdr") for name in FAIRGENMED_HEADER]
    raw = write_fairgenmed(tmp_path / "raw", header=header)
    assert refusal(raw) == (
        f"{raw / 'data_summary.csv'}: no column 'cdr_status' for 'cup_disc_ratio'; "
        f"did you mean 'rnflt_status'? There is: {', '.join(header)}"
    )
    assert len(import_cohort("fairgenmed", raw, tmp_path / "out", ImportSettings(conditions=["glaucoma"]))) == 3


def test_archive_counts_where_the_table_disagrees(tmp_path) -> None:
    cohort = import_cohort(
        "fairgenmed", write_fairgenmed(tmp_path / "raw", values=(changed(race=0), *FAIRGENMED_VALUES[1:])), tmp_path / "o"
    )
    assert cohort.table["race"][0] == "asian"
    assert "race: 1 rows where data_summary.csv and the archive disagree; the archive counts" in notes_on(cohort)


def test_archives_without_a_row_are_told(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw")
    np.savez(raw / "train" / "data_00009.npz", race=1)
    note = "1 archives have no row in data_summary.csv and were not imported, such as data_00009.npz"
    assert note in notes_on(import_cohort("fairgenmed", raw, tmp_path / "out"))
    assert note not in notes_on(import_cohort("fairgenmed", raw, tmp_path / "few", ImportSettings(limit=2)))


@pytest.mark.parametrize("inner", ["none", "empty", "pickled", "no archive"])
def test_image_beside_the_archive(tmp_path, inner) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE, pixels=False, pictures=True)
    archive = raw / "train" / "data_00001.npz"
    if inner == "empty":
        np.savez(archive, **FAIRGENMED_VALUES[0], slo_fundus=np.zeros((0,), np.uint8))
    elif inner == "pickled":
        np.savez(archive, **FAIRGENMED_VALUES[0], slo_fundus=np.array([Canary(tmp_path / "canary")], dtype=object))
    elif inner == "no archive":
        archive.unlink()
    cohort = import_cohort("fairgenmed", raw, tmp_path / "out", ImportSettings(size=16))
    assert list(cohort.table["prompt"]) == PROMPTS[:1] and list(cohort.table["split"]) == ["train"]
    beside = Image.open(raw / "train" / "slo_fundus_00001.jpg").crop((4, 0, 36, 32)).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(cohort.pixels()[0] * 255, np.asarray(beside), atol=0.01)
    assert not (tmp_path / "canary").exists()


def test_no_image_anywhere(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE, pixels=False)
    assert refusal(raw) == (
        f"data_summary.csv row 2: train/data_00001.npz: no array 'slo_fundus', and no slo_fundus_00001.jpg beside it{END}"
    )
    (raw / "train" / "data_00001.npz").unlink()
    np.savez(raw / "train" / "data_00002.npz", race=1)
    assert refusal(raw) == f"data_summary.csv row 2: data_00001.npz: no such file in train, nor slo_fundus_00001.jpg{END}"


def test_pickled_values_never_run_and_come_from_the_table(tmp_path) -> None:
    """The archive is a real one: reading it with ``allow_pickle`` makes the canary's file."""
    canary = tmp_path / "canary"
    bomb = np.array(Canary(canary), dtype=object)
    raw = write_fairgenmed(tmp_path / "raw", FAIRGENMED_ROWS[:1], [changed(race=bomb)])
    cohort = import_cohort("fairgenmed", raw, tmp_path / "out")
    assert cohort.table["race"][0] == "black" and not canary.exists()
    with np.load(raw / "train" / "data_00001.npz", allow_pickle=True) as archive:
        archive["race"]
    assert canary.exists()


def test_pickled_values_that_nothing_replaces_are_refused(tmp_path) -> None:
    canary = tmp_path / "canary"
    raw = write_fairgenmed(tmp_path / "raw", [row(race="")], [changed(race=np.array(Canary(canary), dtype=object))])
    assert refusal(raw) == (
        "data_summary.csv row 2: train/data_00001.npz: array 'race' holds pickled Python objects and is not read; "
        f"save it as plain text or numbers, or fill column 'race' of data_summary.csv{END}"
    )
    np.savez(raw / "train" / "data_00001.npz", **FAIRGENMED_VALUES[0], slo_fundus=np.array([Canary(canary)], dtype=object))
    assert refusal(raw) == (
        "data_summary.csv row 2: train/data_00001.npz: array 'slo_fundus' holds pickled Python objects and is not read; "
        f"save it as plain text or numbers{END}"
    )
    assert not canary.exists()


def test_a_pickle_named_npz_never_runs(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    (raw / "train" / "data_00001.npz").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    assert refusal(raw) == f"data_summary.csv row 2: train/data_00001.npz: no readable NumPy archive (File is not a zip file){END}"
    assert not (tmp_path / "canary").exists()


def npy(shape: str, dtype: str = "|u1", body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An ``.npy`` file that claims ``shape``."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + body


def replace_member(archive: Path, key: str, content: bytes) -> None:
    """Put ``content`` in the place of one array."""
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()} | {f"{key}.npy": content}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            npy("(1000000, 1000000, 3)", body=bytes(100)),
            "array 'slo_fundus' claims shape (1000000, 1000000, 3) and 3,000,000,000,000 bytes, more than 150,000,000; not read",
        ),
        (
            npy("(20, 20, 3)", body=bytes(1199)),
            "array 'slo_fundus' claims shape (20, 20, 3) and 1,200 bytes, but holds 1,199; restore the file",
        ),
        (npy("(-1, 20, 3)", body=bytes(60)), "array 'slo_fundus' claims shape (-1, 20, 3) and -60 bytes, more than 150,000,000; not read"),
        (npy("(1, 1)", body=b"1", version=b"\x07\x00"), "array 'slo_fundus' is of format 7.0; save it again with numpy.savez"),
        (npy("(20, 20, 7)", body=bytes(2800)), "an array of shape (20, 20, 7) is no image"),
        (npy("(20,)", body=bytes(20)), "an array of shape (20,) is no image"),
        (npy("(2, 2)", "<U4", bytes(64)), "an array of type <U4 is no image"),
        (npy("(2, 2)", "<f4", struct.pack("<4f", 0, 1, float("nan"), 1)), "pixels from nan to nan; 0 to 255 is wanted"),
        (npy("(2, 2)", "<i2", struct.pack("<4h", 0, 1, 300, 1)), "pixels from 0 to 300; 0 to 255 is wanted"),
    ],
)
def test_arrays_that_are_not_what_they_claim(tmp_path, content, fault) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    replace_member(raw / "train" / "data_00001.npz", "slo_fundus", content)
    assert refusal(raw) == f"data_summary.csv row 2: train/data_00001.npz: {fault}{END}"


@pytest.mark.parametrize("header", [b"(" * 9000, b"{'descr': __import__('os').system('true')}", b"\xff" * 40])
def test_headers_that_are_no_header(tmp_path, header) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    replace_member(raw / "train" / "data_00001.npz", "race", content)
    said = refusal(raw)
    assert said.startswith("data_summary.csv row 2: train/data_00001.npz: no readable NumPy archive (") and said.endswith(END)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path) -> None:
    """200 MB of zeros in an archive of 200 kB: the import has not the memory to unpack them."""
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    archive = raw / "train" / "data_00001.npz"
    size = 200_000_000
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("bomb.npy", "w") as member:
        member.write(npy(f"({size},)"))
        for _ in range(200):
            member.write(bytes(1_000_000))
    code = (
        "import sys, tracemalloc; from pathlib import Path; from evenhand.cohorts.arrays import BadArray, read_array, read_value\n"
        "tracemalloc.start()\n"
        "for read in (read_array, read_value):\n"
        "    try: read(Path(sys.argv[1]), 'bomb')\n"
        "    except BadArray as fault: print(fault)\n"
        "print(tracemalloc.get_traced_memory()[1] < 5_000_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(archive)], capture_output=True, text=True, check=True)
    stored = size + len(npy(f"({size},)"))
    assert archive.stat().st_size < 2_000_000
    assert done.stdout.splitlines() == [
        f"array 'bomb' unpacks to {stored:,} bytes, more than 150,000,000; not read",
        f"array 'bomb' unpacks to {stored:,} bytes, more than 65,536; not read",
        "True",
    ]
    assert len(import_cohort("fairgenmed", raw, tmp_path / "out")) == 1  # an array that nobody asks for is no fault


def test_compression_without_bounds_is_refused(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    archive = raw / "train" / "data_00001.npz"
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_BZIP2) as new:
        for name, data in members.items():
            new.writestr(name, data)
    fault = "array 'race' is compressed in a way that numpy.savez never uses; not read"
    assert refusal(raw) == f"data_summary.csv row 2: train/data_00001.npz: {fault}{END}"


def test_corrupt_archives(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    archive = raw / "train" / "data_00001.npz"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert refusal(raw).startswith("data_summary.csv row 2: train/data_00001.npz: no readable NumPy archive (")
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer) as file:
        start = file.getinfo("slo_fundus.npy").header_offset + 200
    archive.write_bytes(whole[:start] + bytes(100) + whole[start + 100 :])
    assert refusal(raw).startswith("data_summary.csv row 2: train/data_00001.npz: no readable NumPy archive (")
    archive.write_bytes(b"")
    assert refusal(raw) == f"data_summary.csv row 2: train/data_00001.npz: no readable NumPy archive (File is not a zip file){END}"


@pytest.mark.parametrize(
    ("values", "summary", "fault"),
    [
        (
            {"race": 7},
            {},
            "race '7' is no known group; There is: 0, 1, 2, asian, black, white, black or african american, white or caucasian",
        ),
        ({"race": np.array([1, 2])}, {}, "train/data_00001.npz: array 'race' has shape (2,); one value is wanted"),
        (
            {},
            {"md_severity": "sever"},
            "md_severity 'sever' is no known group; did you mean 'severe'? There is: normal, mild, moderate, severe",
        ),
        ({}, {"filename": ""}, "empty filename"),
        ({}, {"filename": "../data_00001.npz"}, "../data_00001.npz: path leads out of the data folder ('..'); put the file inside it"),
        ({}, {"filename": "/data_00001.npz"}, "/data_00001.npz: absolute path; write it relative to the data folder"),
        ({}, {"use": "test"}, "train/data_00001.npz lies in the folder of 'train', but belongs to 'test'; move it"),
        ({}, {"use": "later"}, "use: split 'later' is unknown; There is: train, val, test"),
    ],
)
def test_bad_rows(tmp_path, values, summary, fault) -> None:
    raw = write_fairgenmed(tmp_path / "raw", FAIRGENMED_ROWS[:1], [changed(**values)])
    (raw / "data_summary.csv").write_text(",".join(FAIRGENMED_HEADER) + "\n" + ",".join(row(**summary)) + "\n")
    assert refusal(raw) == f"data_summary.csv row 2: {fault}{END}"


def test_duplicates(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw")
    with (raw / "data_summary.csv").open("a") as file:
        file.write(",".join(FAIRGENMED_ROWS[0]) + "\n")
    assert refusal(raw) == (
        "data_summary.csv row 5: image id 'data_00001' stands in data_summary.csv row 2 already; keep one of the two rows" + END
    )
    raw = write_fairgenmed(tmp_path / "twice", [row(use="")], FAIRGENMED_VALUES[:1])
    (raw / "test").mkdir()
    (raw / "test" / "data_00001.npz").write_bytes((raw / "train" / "data_00001.npz").read_bytes())
    assert refusal(raw) == (
        "data_summary.csv row 2: test/data_00001.npz and train/data_00001.npz have one name; "
        f"keep one of the two, or name its split in column 'use'{END}"
    )


def test_a_link_out_of_the_folder_is_refused(tmp_path) -> None:
    raw = write_fairgenmed(tmp_path / "raw", **ONE)
    archive = raw / "train" / "data_00001.npz"
    archive.rename(tmp_path / "elsewhere.npz")
    archive.symlink_to(tmp_path / "elsewhere.npz")
    fault = "path leads out of the data folder through a link; copy the file into it"
    assert refusal(raw) == f"data_summary.csv row 2: train/data_00001.npz: {fault}{END}"


def test_no_table(tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    expected = "no data_summary.csv and no ReadMe/data_summary.csv; name the folder that holds it"
    assert refusal(tmp_path / "raw") == f"{tmp_path / 'raw'}: {expected}"
    table = write_fairgenmed(tmp_path / "whole") / "data_summary.csv"
    assert refusal(table) == f"{table}: not a folder; name the folder that holds data_summary.csv or ReadMe/data_summary.csv"


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5), (6, 5, 1), (3, 6, 5), (1, 6, 5)])
def test_shapes_of_pixels(shape) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = array_image(values)
    expected = np.moveaxis(values, 0, -1) if shape[0] < 4 else values
    np.testing.assert_array_equal(np.asarray(image), expected.squeeze())
    assert image.size == (5, 6)
    np.testing.assert_array_equal(np.asarray(array_image(values.astype(np.int64))), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(array_image(values / 255)), np.asarray(image))


def test_more_pixels_than_any_image_has() -> None:
    with pytest.raises(BadArray, match=r"^10,000 x 6,000 pixels, more than 50,000,000$"):
        array_image(np.broadcast_to(np.uint8(0), (6000, 10000)))
