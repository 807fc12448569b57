"""The cohort: what is written is what is read, by us and by others."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from cohorts.raw_data import write_ham
from PIL import Image

from evenhand.cohorts.cohort import Cohort, CohortSchema, read_image, to_image
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.cohorts.writing import cohort_writer
from evenhand.core.errors import UserError

SCHEMA = CohortSchema(
    name="t",
    modality="brain",
    attributes={"sex": ["male", "female"]},
    conditions={"tumour": ["none", "tumour"]},
    image_size=4,
    image_mode="L",
)


def row(**values: object) -> dict[str, object]:
    return {"subject_id": "s", "split": "train", "prompt": "p", "sex": "male", "tumour": "none", **values}


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    return import_cohort("ham10000", write_ham(tmp_path / "raw"), tmp_path / "cohort")


def test_round_trip(cohort, tmp_path) -> None:
    cohort.save(tmp_path / "copy")
    copy = Cohort.load(tmp_path / "copy")
    assert copy.schema == cohort.schema and len(copy) == 6
    pd.testing.assert_frame_equal(copy.table, cohort.table)
    assert (copy.pixels() == cohort.pixels()).all()
    with pytest.raises(UserError, match="copy: exists already; choose another output folder or remove it"):
        cohort.save(tmp_path / "copy")
    (cohort.root / "images" / "ISIC_0000002.png").unlink()
    with pytest.raises(UserError, match=r"ISIC_0000002.png: missing image; run 'evenhand cohort check"):
        cohort.save(tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_pixels_split_and_subset(cohort) -> None:
    assert cohort.pixels([2, 0]).shape == (2, 24, 24, 3) and cohort.pixels().dtype == np.float32
    assert (cohort.pixels([2])[0] == cohort.pixels()[2]).all()
    parts = [cohort.split(name) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == 6 and len(cohort.split("train", "val", "test")) == 6
    old = cohort.subset(cohort.table["age_group"] == ">=60")
    assert list(old.table.index) == [0, 1] and (old.pixels()[0] == cohort.pixels()[2]).all()
    assert len(cohort.subset(np.zeros(6, bool))) == 0


def test_hashes_come_from_the_table_or_else_from_the_files(cohort) -> None:
    recorded = cohort.image_hashes()
    assert recorded.tolist() == cohort.table["sha256"].tolist()
    bare = dataclasses.replace(cohort, table=cohort.table.drop(columns="sha256"))
    assert bare.image_hashes().tolist() == recorded.tolist()
    (cohort.root / cohort.table["image"].iloc[0]).unlink()
    with pytest.raises(UserError, match="is missing; restore it, or drop its row"):
        bare.image_hashes()


def test_columns(cohort) -> None:
    assert cohort.require_column("malignancy") == ["benign", "malignant"]
    with pytest.raises(UserError) as error:
        cohort.require_column("age")
    assert str(error.value) == f"{cohort.root}: no attribute or condition 'age'; There is: sex, age_group, malignancy"


def test_a_name_that_leads_out_is_not_read(cohort) -> None:
    with pytest.raises(UserError) as error:
        cohort.image_path("../raw/x.jpg")
    table = cohort.root / "cohort.parquet"
    assert str(error.value) == f"{table}: image '../raw/x.jpg' leads out of the cohort; import the data again"


def test_an_image_as_pixels_and_back(tmp_path) -> None:
    pixels = np.array([[0.0, 1.0], [0.5, 2.0]])
    to_image(pixels).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", "L") == pytest.approx(np.array([[0, 1], [128 / 255, 1]]))
    (tmp_path / "x.png").write_bytes(b"words")
    with pytest.raises(UserError, match=r"x.png: unreadable image \(.*\); run 'evenhand cohort check' on its cohort"):
        read_image(tmp_path / "x.png", "L")
    with pytest.raises(UserError, match=r"y.png: missing image; run 'evenhand cohort check' on its cohort"):
        read_image(tmp_path / "y.png", "L")


def test_others_can_open_the_table(cohort, tmp_path) -> None:
    import datasets

    found = datasets.load_dataset("parquet", data_files=str(cohort.root / "cohort.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert found.num_rows == 6 and found[2]["sex"] == "female"
    assert set(found.column_names) == set(pd.read_parquet(cohort.root / "cohort.parquet").columns)


def test_schema_is_plain_json(cohort) -> None:
    content = json.loads((cohort.root / "cohort.json").read_text())
    assert content["attributes"] == {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    assert content["licence"] == "CC BY-NC 4.0" and content["made"]["importer"] == "ham10000"
    content["colour"] = "blue"
    (cohort.root / "cohort.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"cohort.json: colour: Extra inputs are not permitted; restore the file or import again"):
        Cohort.load(cohort.root)


def test_writer_keeps_column_types_over_many_rows(tmp_path) -> None:
    with cohort_writer(tmp_path / "out", SCHEMA) as writer:
        for i in range(1030):  # more than one row group
            image = Image.new("L", (4, 4), i % 256)
            writer.add(image, row(subject_id=str(i), seed=i, guidance_scale=None if i else 2.5), name=f"{i:06d}")
    cohort = Cohort.load(tmp_path / "out")
    assert len(cohort) == 1030 and cohort.table["seed"].tolist() == list(range(1030))
    assert cohort.table["guidance_scale"][0] == 2.5 and cohort.table["guidance_scale"].isna().sum() == 1029
    assert cohort.pixels([255])[0, 0, 0] == 1


def test_empty_cohort_and_interrupted_writer(tmp_path) -> None:
    with cohort_writer(tmp_path / "empty", SCHEMA):
        pass
    assert len(Cohort.load(tmp_path / "empty")) == 0

    def write_and_fail() -> None:
        with cohort_writer(tmp_path / "broken", SCHEMA) as writer:
            writer.add(Image.new("L", (4, 4)), row(), name="0")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]
