"""BraTS 2018: which slices of which volumes, orientation and window, ages with NA, sex by a table or by TCGA's clinical one."""

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohorts.raw_data import BRATS_SHAPE, SURVIVAL_ROWS, brats_volume, write_brats, write_brats_subject, write_nifti

from evenhand import cli
from evenhand.cohorts.checking import check_cohort, group_counts, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.splits import leaks, split_of
from evenhand.cohorts.volumes import MAX_VOXELS
from evenhand.core.errors import UserError

END = "; mend the data or pass --skip-bad 1"
ONE, TWO, LOW = "Brats18_TCIA01_460_1", "Brats18_CBICA_AAB_1", "Brats18_TCIA09_141_1"
MAPPING = (
    "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID",
    f"HGG,Brats17_TCIA_460_1,{ONE},TCGA-02-0006,BraTS19_TCIA01_460_1,BraTS20_Training_001",
    f"HGG,Brats17_CBICA_AAB_1,{TWO},NA,BraTS19_CBICA_AAB_1,BraTS20_Training_002",
    f"LGG,Brats17_TCIA_141_1,{LOW},TCGA-CS-4941,BraTS19_TCIA09_141_1,BraTS20_Training_003",
    "HGG,NA,NA,TCGA-02-9999,BraTS19_X,BraTS20_Training_004",
)


def imported(raw: Path, **settings) -> Cohort:
    return import_cohort("brats18", raw, raw.parent / "out", ImportSettings(**settings))


def refusal(raw: Path, **settings) -> str:
    out = raw.parent / "refused"
    with pytest.raises(UserError) as error:
        import_cohort("brats18", raw, out, ImportSettings(**settings))
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("folder", ["", "MICCAI_BraTS_2018_Data_Training"])
def test_layout(tmp_path, folder) -> None:
    write_brats(tmp_path / "raw" / folder)
    cohort = imported(tmp_path / "raw", sex_table=text(tmp_path / "sex.csv", "subject_id,sex", f"{ONE},F", f"{LOW},male"))
    table = cohort.table
    first = table[table["subject_id"] == ONE]
    # slices 2 to 9 are brain (counted from 0): the middles of five equal runs of these eight
    assert list(first["slice"]) == ["3", "5", "7", "8", "10"]
    assert list(first["tumour"]) == ["none", "tumour", "tumour", "none", "none"]
    assert first["image_id"].iloc[0] == f"{ONE}_flair_003"
    assert list(first["prompt"])[:2] == [
        "Brain MR slice of a female >=60 patient without tumour",
        "Brain MR slice of a female >=60 patient with tumour",
    ]
    by_subject = table.groupby("subject_id")[["sex", "age_group", "grade", "split"]].first()
    assert dict(by_subject["sex"]) == {ONE: "female", TWO: "unknown", LOW: "male"}
    assert dict(by_subject["age_group"]) == {ONE: ">=60", TWO: "unknown", LOW: "unknown"}  # NA; and no low grade is listed
    assert dict(by_subject["grade"]) == {ONE: "HGG", TWO: "HGG", LOW: "LGG"}
    assert dict(by_subject["split"]) == {name: split_of(name, 0) for name in (ONE, TWO, LOW)}
    assert set(table["sequence"]) == {"flair"} and len(table) == 15
    assert cohort.schema.modality == "brain" and cohort.schema.image_mode == "L" and cohort.schema.image_size == 18
    notes = notes_on(cohort)
    assert "sex: known of 2 of 3 subjects (1 of 2 HGG, 1 of 1 LGG)" in notes
    assert "age_group: known of 1 of 3 subjects (1 of 2 HGG, 0 of 1 LGG)" in notes
    counts = group_counts(cohort).set_index(["column", "group"])["images"]
    assert counts["age_group", "<60"] == 0 and counts["age_group", "unknown"] == 10  # an absent group stays visible
    assert leaks(table) == [] and check_cohort(cohort.root).faults == []


@pytest.mark.parametrize(
    ("slices", "number", "expected"),
    [
        ("tumour", 5, [5, 6, 7]),
        ("tumour", 1, [6]),
        ("tumour", 2, [5, 7]),
        ("brain", 1, [7]),
        ("brain", 8, [3, 4, 5, 6, 7, 8, 9, 10]),
        ("brain", 155, [3, 4, 5, 6, 7, 8, 9, 10]),
        ("all", 155, list(range(1, 13))),
        ("all", 3, [3, 7, 11]),
    ],
)
def test_which_slices(tmp_path, slices, number, expected) -> None:
    write_brats_subject(tmp_path / "raw", "HGG", ONE)
    # slices that are empty look alike, so they are counted from the table alone
    table = imported(tmp_path / "raw", slices=slices, slices_per_subject=number).table
    assert list(table["slice"].astype(int)) == expected


def test_grade_on_request(tmp_path) -> None:
    raw = write_brats(tmp_path / "raw")
    cohort = imported(raw, conditions=["tumour", "grade"], slices="tumour", slices_per_subject=1)
    assert list(cohort.table["grade"]) == ["HGG", "HGG", "LGG"]
    assert list(cohort.table["prompt"])[1:] == [
        "Brain MR slice of a >=60 patient with tumour, high-grade glioma",
        "Brain MR slice of a patient with tumour, low-grade glioma",
    ]
    assert "tumour: one group only (tumour); no gap between its groups can be told" in notes_on(cohort)


def test_sequences(tmp_path) -> None:
    write_brats_subject(tmp_path / "raw", "LGG", LOW, kinds=("flair", "t1", "t1ce", "t2"))
    write_nifti(tmp_path / "raw" / "LGG" / LOW / f"{LOW}_t1ce.nii.gz", brats_volume() // 2)
    cohort = imported(tmp_path / "raw", modality="t1ce")
    assert set(cohort.table["sequence"]) == {"t1ce"} and cohort.schema.made["sequence"] == "t1ce"
    assert refusal(tmp_path / "raw", modality="t1c") == (
        "--modality: no MR sequence 't1c'; did you mean 't1ce' or 't1'? There is: flair, t1, t1ce, t2"
    )


@pytest.mark.parametrize("axes", [(-1, -1, 1), (1, 1, 1), (1, -1, -1)])
def test_orientation_and_window(tmp_path, axes) -> None:
    """The bright corner is the patient's left front: right and top of the image, however the file runs."""
    folder = write_brats_subject(tmp_path / "raw", "HGG", ONE)
    turns = tuple(slice(None, None, -1 if sign != usual else 1) for sign, usual in zip(axes, (-1, -1, 1), strict=True))
    for kind in ("flair", "seg"):
        write_nifti(folder / f"{ONE}_{kind}.nii.gz", np.ascontiguousarray(brats_volume(kind)[turns]), axes)
    cohort = imported(tmp_path / "raw", slices="tumour", slices_per_subject=3)
    assert list(cohort.table["slice"]) == ["5", "6", "7"]
    pixels = cohort.pixels()[1] * 255
    volume = brats_volume()
    low, high = np.percentile(volume[volume != 0], (1, 99))
    plane = volume[:, :, 5].T
    wanted = np.where(plane == 0, 0, np.clip((plane - low) / (high - low), 0, 1))[:, 1:19] * 255  # cut square from the centre
    np.testing.assert_allclose(pixels, wanted, atol=0.51)
    assert pixels[4, 14] > 230 and pixels[4, 4] < 30 and pixels[12, 14] < 30 and pixels[0, 0] == 0


def test_window_is_the_whole_subjects(tmp_path) -> None:
    """A slice that is darker than the subject's others stays darker."""
    folder = write_brats_subject(tmp_path / "raw", "HGG", ONE)
    voxels = brats_volume()
    voxels[..., 3] //= 2
    write_nifti(folder / f"{ONE}_flair.nii.gz", voxels)
    pixels = imported(tmp_path / "raw", slices_per_subject=8).pixels()
    assert pixels[1].max() < 0.5 < pixels[0].max()


def test_one_volume_in_memory_at_a_time(tmp_path, monkeypatch) -> None:
    raw = write_brats(tmp_path / "raw")
    order: list[str] = []
    read = nib.Nifti1Image.from_filename
    monkeypatch.setattr(nib.Nifti1Image, "from_filename", lambda path: (order.append(Path(path).name.split(".")[0]), read(path))[1])
    imported(raw)
    flair = [name for name in order if name.endswith("flair")]
    assert sorted(flair) == sorted(2 * [f"{name}_flair" for name in (ONE, TWO, LOW)])  # to choose the slices, and to take them
    assert order[6:] == flair[3:]


@pytest.mark.parametrize(
    ("rows", "remedy"),
    [
        ((*SURVIVAL_ROWS, f"{LOW},old,1,GTR"), f"row 4: age 'old' is not a number of years{'; mend the row or write NA'}"),
        ((*SURVIVAL_ROWS, f"{ONE},30,1,GTR"), f"row 4: {ONE!r} stands in an earlier row with another age; keep one of the two"),
        (("BraTS18ID,Years", f"{ONE},30"), None),
    ],
)
def test_bad_ages(tmp_path, rows, remedy) -> None:
    raw = write_brats(tmp_path / "raw", rows)
    path = raw / "survival_data.csv"
    assert refusal(raw) == (f"{path} {remedy}" if remedy else f"{path}: no column 'Age'; There is: BraTS18ID, Years")


def test_without_ages_and_sexes(tmp_path) -> None:
    cohort = imported(write_brats(tmp_path / "raw", None))
    assert set(cohort.table["age_group"]) == set(cohort.table["sex"]) == {"unknown"}
    notes = notes_on(cohort)
    assert "sex: BraTS 2018 has none; give --sex-table, or --name-mapping and --clinical" in notes
    assert "age_group: known of 0 of 3 subjects (0 of 2 HGG, 0 of 1 LGG)" in notes
    assert refusal(write_brats(tmp_path / "b", None), unknown="drop").endswith(
        f"{tmp_path / 'b'}: no image to import (0 bad, 15 with an unknown group)"
    )


def test_sex_table_with_odd_spellings(tmp_path) -> None:
    path = text(
        tmp_path / "sex.csv",
        *(
            "subject_id,sex,site",
            f"{ONE},Female,1",
            f"{TWO},weiblich,2",
            f"{LOW},M,3",
            f"{LOW},f,3",
            "Brats18_X_1,male,4",
            "Brats18_Y_1,NA,5",
        ),
    )
    cohort = imported(write_brats(tmp_path / "raw"), sex_table=path)
    assert dict(cohort.table.groupby("subject_id")["sex"].first()) == {ONE: "female", TWO: "unknown", LOW: "unknown"}
    notes = notes_on(cohort)
    assert "sex: 1 rows with spellings that are not known count as unknown: 'weiblich' (1)" in notes
    assert f"sex: 1 subjects have two, and count as unknown, such as {LOW}" in notes
    assert "sex: 1 subjects of the table have no folder, such as Brats18_X_1" in notes
    assert cohort.schema.made["settings"]["sex_table"] == "sex.csv"  # no folder of this machine


@pytest.mark.parametrize(
    "clinical",
    [
        ("bcr_patient_barcode,gender,race", "TCGA-02-0006,FEMALE,x", "TCGA-CS-4941,MALE,x", "TCGA-02-0006,FEMALE,x"),
        ("case_submitter_id\tgender", "TCGA-02-0006\tfemale", "TCGA-CS-4941\tmale", "TCGA-XX-0000\t'--"),
        ("Patient ID\tSex", "TCGA-02-0006\tFemale", "TCGA-CS-4941\tMale"),
        (  # three headers, as TCGA's own tables have
            *("bcr_patient_barcode\tgender", "bcr_patient_barcode\tgender", "CDE_ID:2673794\tCDE_ID:2200604"),
            *("TCGA-02-0006\tFEMALE", "TCGA-CS-4941-01\tMALE"),
        ),
    ],
)
def test_sex_from_clinical_tables(tmp_path, clinical) -> None:
    options = {"name_mapping": text(tmp_path / "name_mapping.csv", *MAPPING), "clinical": text(tmp_path / "clinical.tsv", *clinical)}
    cohort = imported(write_brats(tmp_path / "raw"), **options)
    assert dict(cohort.table.groupby("subject_id")["sex"].first()) == {ONE: "female", TWO: "unknown", LOW: "male"}
    assert "sex: known of 2 of 3 subjects (1 of 2 HGG, 1 of 1 LGG)" in notes_on(cohort)
    assert not any("spellings" in note for note in notes_on(cohort))


def test_clinical_tables_that_do_not_fit(tmp_path) -> None:
    raw = write_brats(tmp_path / "raw")
    mapping = text(tmp_path / "name_mapping.csv", *MAPPING)
    clinical = text(tmp_path / "clinical.csv", "bcr_patient_barcode,gender", "TCGA-02-0006,[Not Available]", "TCGA-CS-4941,mle")
    notes = notes_on(imported(raw, name_mapping=mapping, clinical=clinical))
    assert "sex: known of 0 of 3 subjects (0 of 2 HGG, 0 of 1 LGG)" in notes
    assert "sex: 1 rows with spellings that are not known count as unknown: 'mle' (1)" in notes
    assert refusal(raw, name_mapping=mapping) == "--name-mapping needs --clinical: BraTS subjects are joined with TCGA's patients by both"
    assert refusal(raw, clinical=clinical) == "--clinical needs --name-mapping: BraTS subjects are joined with TCGA's patients by both"
    assert refusal(raw, sex_table=clinical, clinical=clinical) == (
        "--sex-table excludes --name-mapping and --clinical: sex comes from one of the two"
    )
    assert refusal(raw, sex_table=clinical) == f"{clinical}: no column 'subject_id'; There is: bcr_patient_barcode, gender"
    text(clinical, "patient,sexe", "TCGA-02-0006,F")
    assert refusal(raw, name_mapping=mapping, clinical=clinical).startswith(f"{clinical}: no column 'gender' or ")
    text(mapping, MAPPING[0], f"HGG,x,{ONE},02-0006,y,z")
    text(clinical, "patient,sex", "TCGA-02-0006,F")
    assert refusal(raw, name_mapping=mapping, clinical=clinical) == (
        f"{mapping} row 2: TCGA_TCIA_subject_ID '02-0006' holds no TCGA-XX-XXXX; mend the row or empty it"
    )


def test_truncated_volume(tmp_path) -> None:
    raw = write_brats(tmp_path / "raw")
    path = raw / "HGG" / ONE / f"{ONE}_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    said = refusal(raw)
    assert said.startswith(f"HGG/{ONE}: HGG/{ONE}/{ONE}_flair.nii.gz: truncated or damaged NIfTI (") and said.endswith(END)
    assert set(imported(raw, skip_bad=1).table["subject_id"]) == {TWO, LOW}  # one fault a subject, not one a slice
    path.write_bytes(gzip.compress(gzip.decompress((raw / "LGG" / LOW / f"{LOW}_flair.nii.gz").read_bytes())[:900]))
    assert "truncated or damaged NIfTI (" in refusal(raw)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("missing", "{name}: no such file in the data folder"),
        ("text", "{file}: truncated or damaged NIfTI ("),
        ("four", "{file}: shape (20, 18, 12, 2) is no volume of three dimensions"),
        ("shape", "{file}: shape (20, 18, 11), but the segmentation has (20, 18, 12); restore one of the two"),
        ("empty", "{file}: every voxel is 0; restore the file"),
        ("flat", "{file}: all of the brain has one grey value (7); restore the file"),
        ("nan", "{file}: voxels that are not finite"),
        ("complex", "{file}: voxels of type complex64 are no grey values"),
        ("link", "path leads out of the data folder through a link; copy the file into it"),
    ],
)
def test_bad_volumes(tmp_path, spoil, fault) -> None:
    folder = write_brats_subject(tmp_path / "raw", "HGG", ONE)
    path = folder / f"{ONE}_flair.nii.gz"
    path.unlink()
    made = {
        "four": lambda: np.zeros((*BRATS_SHAPE, 2), np.int16),
        "shape": lambda: brats_volume()[..., :11],
        "empty": lambda: np.zeros(BRATS_SHAPE, np.int16),
        "flat": lambda: np.full(BRATS_SHAPE, 7, np.int16),
        "nan": lambda: np.where(brats_volume() == 100, np.nan, 1.0).astype(np.float32),
        "complex": lambda: brats_volume().astype(np.complex64),
    }
    if spoil in made:
        write_nifti(path, made[spoil]())
    elif spoil == "text":
        path.write_bytes(gzip.compress(b"no volume"))
    elif spoil == "link":
        path.symlink_to(write_nifti(tmp_path / "outside.nii.gz", brats_volume()))
    said = refusal(tmp_path / "raw")
    assert fault.format(name=f"HGG/{ONE}/{ONE}_flair.nii.gz", file=f"HGG/{ONE}/{ONE}_flair.nii.gz") in said and said.endswith(END)


def test_strange_labels(tmp_path) -> None:
    folder = write_brats_subject(tmp_path / "raw", "HGG", ONE)
    labels = brats_volume("seg")
    labels[0, 0, 0] = 3
    name = f"HGG/{ONE}/{ONE}_seg.nii.gz"
    write_nifti(folder / f"{ONE}_seg.nii.gz", labels)
    assert refusal(tmp_path / "raw") == f"HGG/{ONE}: {name}: label 3 is none of 0, 1, 2, 4; restore the file{END}"
    (folder / f"{ONE}_seg.nii.gz").unlink()
    assert f"{name}: no such file" in refusal(tmp_path / "raw")


def test_a_header_that_claims_too_much_is_not_read(tmp_path) -> None:
    folder = write_brats_subject(tmp_path / "raw", "HGG", ONE)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((30_000, 30_000, 4))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    (folder / f"{ONE}_seg.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    assert f"header claims {3_600_000_000:,} voxels, more than {MAX_VOXELS:,}; not read" in refusal(tmp_path / "raw")


def test_what_is_no_brats(tmp_path) -> None:
    (tmp_path / "raw").mkdir()
    assert refusal(tmp_path / "raw") == (
        f"{tmp_path / 'raw'}: no HGG/, no LGG/ and no folder of a subject such as BraTS20_Training_001 or BraTS-GLI-00000-000; "
        "name the folder that holds them"
    )
    (tmp_path / "raw" / "HGG").mkdir()
    assert "HGG/ and LGG/ hold no subject" in refusal(tmp_path / "raw")
    write_brats_subject(tmp_path / "raw", "HGG", ONE)
    write_brats_subject(tmp_path / "raw", "LGG", ONE)
    assert refusal(tmp_path / "raw") == f"{tmp_path / 'raw'}: HGG/{ONE} and LGG/{ONE} are one subject; keep one of the two"


def write_scan(folder: Path, kinds: dict[str, str], ending: str = ".nii.gz", joint: str = "_", enhancing: int = 4) -> None:
    """One scan in a later year's layout: our words for its volumes, and what that year calls them."""
    folder.mkdir(parents=True)
    for kind, name in kinds.items():
        voxels = brats_volume(kind)
        voxels[3, 3, 2] += sum(folder.name.encode()) if kind != "seg" else 0  # tells scans apart
        write_nifti(folder / f"{folder.name}{joint}{name}{ending}", np.where(voxels == 4, enhancing, voxels) if kind == "seg" else voxels)


CLASSIC_KINDS = {"flair": "flair", "seg": "seg"}
NEW_KINDS = {"flair": "t2f", "t1ce": "t1c", "seg": "seg"}


@pytest.mark.parametrize(
    ("year", "scans", "kinds", "options", "survival", "subjects"),
    [
        (
            *("2019", ("MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_CBICA_AAB_1", "MICCAI_BraTS_2019_Data_Training/LGG/BraTS19_2013_0_1")),
            *(CLASSIC_KINDS, {}, ("survival_data.csv", "BraTS19ID,Age,Survival,ResectionStatus", "BraTS19_CBICA_AAB_1,60.4,1,GTR")),
            {"BraTS19_2013_0_1": ("unknown", "LGG"), "BraTS19_CBICA_AAB_1": (">=60", "HGG")},
        ),
        (
            *("2020", ("BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData/BraTS20_Training_001", "BraTS20_Training_002")),
            *(CLASSIC_KINDS, {"ending": ".nii"}),
            ("survival_info.csv", "Brats20ID,Age,Survival_days,Extent_of_Resection", "BraTS20_Training_002,33.1,1,GTR"),
            {"BraTS20_Training_001": ("unknown", "HGG"), "BraTS20_Training_002": ("<60", "unknown")},
        ),
        ("2021", ("BraTS2021_00000", "BraTS2021_00002"), CLASSIC_KINDS, {"ending": ".NII.GZ"}, None, None),
        (
            *("2017", ("Hgg/Brats17_CBICA_AAB_1", "lgg/brats17_2013_2_1"), CLASSIC_KINDS, {}, None),
            {"Brats17_CBICA_AAB_1": ("unknown", "HGG"), "brats17_2013_2_1": ("unknown", "LGG")},
        ),
        (
            *("2023", ("TrainingData/BraTS-GLI-00000-000", "TrainingData/BraTS-GLI-00000-001", "TrainingData/BraTS-MET-00002-000")),
            *(NEW_KINDS, {"joint": "-", "enhancing": 3}, None, {"BraTS-GLI-00000": ("unknown",) * 2, "BraTS-MET-00002": ("unknown",) * 2}),
        ),
    ],
)
def test_other_years(tmp_path, year, scans, kinds, options, survival, subjects) -> None:
    raw = tmp_path / "raw"
    for name in scans:
        write_scan(raw / name, kinds, **options)
    if year == "2020":
        text(raw / "name_mapping.csv", "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID", "HGG,NA,BraTS20_Training_001")
    if survival:
        text(raw / survival[0], *survival[1:])
    cohort = imported(raw, conditions=["tumour", "grade"], slices_per_subject=4)
    table = cohort.table
    assert len(table) == 4 * len(scans) and set(table["tumour"]) == {"none", "tumour"}
    assert cohort.schema.source.startswith(f"BraTS {year} (")
    found = {name: (rows["age_group"].iloc[0], rows["grade"].iloc[0]) for name, rows in table.groupby("subject_id")}
    assert found == (subjects or dict.fromkeys(scans, ("unknown", "unknown")))
    assert leaks(table) == [] and f"sex: BraTS {year} has none; give --sex-table, or --name-mapping and --clinical" in notes_on(cohort)


def test_sequences_of_later_years_go_by_our_words(tmp_path) -> None:
    write_scan(tmp_path / "raw" / "BraTS-GLI-00001-000", NEW_KINDS, joint="-", enhancing=3)
    assert set(imported(tmp_path / "raw", modality="t1ce").table["sequence"]) == {"t1ce"}
    assert "BraTS-GLI-00001-000_t2.nii.gz: no such file" in refusal(tmp_path / "raw", modality="t2")


def test_a_volume_under_another_name(tmp_path) -> None:
    """Subject 355 of 2020 has its segmentation as W39_1998.09.19_Segm.nii; a folder that was renamed keeps its files' names."""
    folder = tmp_path / "raw" / "BraTS20_Training_355"
    write_scan(folder, CLASSIC_KINDS, ".nii")
    (folder / f"{folder.name}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (folder / f"{folder.name}_flair.nii").rename(folder / "Other_flair.nii")
    assert "tumour" in set(imported(tmp_path / "raw").table["tumour"])


def test_validation_sets_are_left_out(tmp_path) -> None:
    write_scan(tmp_path / "raw" / "BraTS20_Training_001", CLASSIC_KINDS)
    write_scan(tmp_path / "raw" / "Validation" / "BraTS20_Validation_001", {"flair": "flair"})
    cohort = imported(tmp_path / "raw")
    assert set(cohort.table["subject_id"]) == {"BraTS20_Training_001"}
    assert "1 rows were left out at import: subjects of a validation set, which has no segmentations" in notes_on(cohort)


def test_sex_of_later_years(tmp_path) -> None:
    names = ("BraTS20_Training_001", "BraTS20_Training_002")
    for name in names:
        write_scan(tmp_path / "raw" / name, CLASSIC_KINDS)
    header = "Grade,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID"
    mapping = text(tmp_path / "name_mapping.csv", header, f"HGG,{ONE},TCGA-02-0006,NA,{names[1]}", f"LGG,{TWO},NA,NA,{names[0]}")
    clinical = text(tmp_path / "clinical.csv", "bcr_patient_barcode,gender", "TCGA-02-0006,FEMALE")
    cohort = imported(tmp_path / "raw", name_mapping=mapping, clinical=clinical)
    assert dict(cohort.table.groupby("subject_id")["sex"].first()) == {names[0]: "unknown", names[1]: "female"}
    assert not any("have no folder" in note for note in notes_on(cohort))


def test_options_of_other_sources(tmp_path) -> None:
    with pytest.raises(UserError, match="--slices is an option of the source 'brats18', not of 'roco'"):
        import_cohort("roco", tmp_path, tmp_path / "out", ImportSettings(slices="all"))
    with pytest.raises(UserError, match="--modality is an option of the source 'brats18' and of 'table', not of 'roco'"):
        import_cohort("roco", tmp_path, tmp_path / "out", ImportSettings(modality="t1"))
    with pytest.raises(UserError, match="--licence is an option of the source 'roco' and of 'table', not of 'brats18'"):
        import_cohort("brats18", tmp_path, tmp_path / "out", ImportSettings(licence="CC BY"))


def test_command_line(tmp_path, monkeypatch, capsys) -> None:
    raw, out = write_brats(tmp_path / "raw"), tmp_path / "out"
    sexes = text(tmp_path / "sex.csv", "subject_id,sex", f"{ONE},F")
    options = ["--modality", "flair", "--slices", "tumour", "--slices-per-subject", "2", "--sex-table", str(sexes), "--size", "16"]
    monkeypatch.setattr(sys, "argv", ["evenhand", "cohort", "import", "brats18", str(raw), str(out), *options])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and "known of 1 of 3 subjects" in " ".join(capsys.readouterr().err.split())
    table = Cohort.load(out).table
    assert list(table["slice"]) == ["5", "7"] * 3 and set(table.loc[table["sex"] == "female", "subject_id"]) == {ONE}
