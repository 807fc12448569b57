"""Parquet as datasets writes it: image structs, class labels, shards and splits, in the table source."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cohorts.raw_data import picture, picture_bytes, png_bomb
from PIL import Image

from evenhand.cohorts.checking import check_cohort, notes_on
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.hub import StoredImages, read_features
from evenhand.cohorts.lookup import Lookup
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.errors import UserError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SEX = {"_type": "ClassLabel", "names": ["female", "male"]}


def struct(number: int, path: str | None = None) -> dict[str, Any]:
    return {"bytes": picture_bytes(number), "path": path}


def write(path: Path, columns: dict[str, Sequence[Any]], features: dict[str, Any] | None = None, kind: pa.DataType = IMAGE) -> Path:
    """A Parquet file with small row groups; columns of dicts are image structs, and ``features`` are what datasets states of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array(found, kind if isinstance(found[0], dict) else None) for name, found in columns.items()}
    table = pa.table(arrays)
    if features is not None:
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    pq.write_table(table, path, row_group_size=3)
    return path


def imported(raw: Path, **settings) -> Cohort:
    return import_cohort("table", raw, raw.parent / f"out_{raw.name}", ImportSettings(**settings))


def refusal(raw: Path, **settings) -> str:
    out = raw.parent / "refused"
    with pytest.raises(UserError) as error:
        import_cohort("table", raw, out, ImportSettings(**settings))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400 and not out.exists()
    return str(error.value)


@pytest.mark.parametrize("column", ["image", "img", "picture", "scan"])
@pytest.mark.parametrize("stated", [True, False])
def test_image_structs(tmp_path, column, stated) -> None:
    columns = {column: [struct(i) for i in range(8)], "text": [f"film {i}" for i in range(8)], "sex": ["female", "male"] * 4}
    features = {column: {"_type": "Image"}, "text": {"_type": "Value", "dtype": "string"}} if stated else None
    raw = write(tmp_path / "some.parquet", columns, features)
    cohort = imported(raw, attributes=["sex"])
    assert list(cohort.table["image_id"]) == [f"some_{i}" for i in range(1, 9)] and list(cohort.table["prompt"])[7] == "film 7"
    assert list(cohort.table["sex"]) == ["female", "male"] * 4 and check_cohort(cohort.root).faults == []
    decoded = [np.asarray(Image.open(io.BytesIO(picture_bytes(i)))) / 255 for i in range(8)]
    np.testing.assert_allclose(cohort.pixels(), decoded, atol=1e-6)  # each row has its own image


def test_column_names_with_capitals_and_blanks(tmp_path) -> None:
    raw = write(tmp_path / "t.parquet", {" Image ": [struct(0), struct(1)], "sex ": [1, 0]}, {"sex ": SEX})
    assert list(imported(raw, attributes=["sex"]).table["sex"]) == ["male", "female"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_images_too(tmp_path, kind) -> None:
    table = pa.table({"jpg": pa.array([picture_bytes(i) for i in range(3)], kind), "caption": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert list(imported(tmp_path / "t.parquet", image_column="jpg").table["prompt"]) == ["a", "b", "c"]


def test_bytes_that_are_text_are_paths(tmp_path) -> None:
    picture(1).save(tmp_path / "1.png")
    pq.write_table(pa.table({"image": pa.array([b"1.png"], pa.binary())}), tmp_path / "t.parquet")
    assert list(imported(tmp_path / "t.parquet").table["image_id"]) == ["1.png"]


def test_structs_that_name_files(tmp_path) -> None:
    for name in ("a/0.png", "1.PNG"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(5).save(tmp_path / "raw" / name) if name[0] == "a" else picture(6).save(tmp_path / "raw" / name)
    rows = [{"bytes": None, "path": "a\\0.png"}, {"bytes": None, "path": "1.png"}, struct(7, "a/0.png")]
    raw = write(tmp_path / "raw" / "t.parquet", {"image": rows})
    assert list(imported(raw).table["image_id"]) == ["a/0.png", "1.PNG", "t_3"]
    only = pa.struct([("bytes", pa.null()), ("path", pa.string())])
    raw = write(tmp_path / "raw" / "u.parquet", {"image": rows[:2]}, kind=only)
    assert list(imported(raw).table["image_id"]) == ["a/0.png", "1.PNG"]


def test_rows_that_hold_an_image_alone_are_rows(tmp_path) -> None:
    raw = write(tmp_path / "alone.parquet", {"image": [struct(i) for i in range(7)]})
    assert len(imported(raw)) == 7
    raw = write(tmp_path / "blank.parquet", {"image": [struct(i) for i in range(3)], "sex": [None, "male", None]})
    assert list(imported(raw, attributes=["sex"]).table["sex"]) == ["unknown", "male", "unknown"]


def test_bad_structs_are_rows_of_their_own(tmp_path) -> None:
    rows = [struct(0), None, {"bytes": b"", "path": None}, {"bytes": b"words", "path": "x.png"}, {"bytes": None, "path": "../x.png"}]
    rows += [{"bytes": png_bomb(tmp_path / "bomb.png").read_bytes(), "path": None}, {"bytes": None, "path": "gone.png"}, struct(1)]
    raw = write(tmp_path / "raw" / "t.parquet", {"image": rows})
    cohort = imported(raw, skip_bad=6)
    assert list(cohort.table["image_id"]) == ["t_1", "t_8"]
    faults = cohort.schema.made["skipped"]
    for number, (fault, said) in enumerate(
        zip(faults, ["no image in", "no image in", "t.parquet#4: not an image", "leads out", "not decoded", "no such file"], strict=True), 2
    ):
        assert fault.startswith(f"t.parquet row {number}: ") and said in fault and len(fault) < 200


def test_class_labels_become_their_names(tmp_path) -> None:
    columns = {"image": [struct(i) for i in range(4)], "sex": [0, 1, None, -1], "grade": [2, 0, 1, 1]}
    features = {"image": {"_type": "Image"}, "sex": SEX, "grade": {"_type": "ClassLabel", "names": ["none", "mild", "severe"]}}
    raw = write(tmp_path / "t.parquet", columns, features)
    table = imported(raw, attributes=["sex"], conditions=["grade"]).table
    assert list(table["sex"]) == ["female", "male", "unknown", "unknown"] and list(table["grade"]) == ["severe", "none", "mild", "mild"]
    raw = write(tmp_path / "named.parquet", {**columns, "sex": ["male", "female", None, "male"]}, features)
    assert list(imported(raw, attributes=["sex"]).table["sex"]) == ["male", "female", "unknown", "male"]
    raw = write(tmp_path / "bad.parquet", {**columns, "sex": [0, 1, 2, 0]}, features)
    assert "bad.parquet row 3: sex '2' is the number of no class; there are 2, counted from 0" in refusal(raw, attributes=["sex"])


@pytest.mark.parametrize(
    "names",
    [
        {"data/train-00000-of-00002": "train", "data/train-00001-of-00002": "train", "data/test-00000-of-00001": "test"},
        {"train-00000-of-00002-0123456789abcdef": "train", "train-00001-of-00002-fedcba9876543210": "train", "validation": "val"},
        {"train/0000": "train", "train/0001": "train", "test/0000": "test"},
        {"default/train/0000": "train", "default/train/0001": "train", "default/validation/0000": "val"},
    ],
)
def test_shards_and_their_splits(tmp_path, names) -> None:
    raw = tmp_path / "raw"
    for number, name in enumerate(names):
        write(raw / f"{name}.parquet", {"image": [struct(10 * number + i) for i in range(4)], "sex": ["f", "m"] * 2})
    (raw / "README.md").write_text("---\n")
    (raw / "dataset_infos.json").write_text("{}")
    (raw / "data").mkdir(exist_ok=True)
    (raw / "data" / "._train-00000-of-00002.parquet").write_bytes(b"\0\5\x16\7")
    cohort = imported(raw, attributes=["sex"])
    assert list(cohort.table["split"]) == [split for split in names.values() for _ in range(4)]  # train before val before test
    assert cohort.table["image_id"].is_unique and check_cohort(cohort.root).faults == []


def test_a_training_split_alone_is_drawn_and_missing_shards_are_told(tmp_path) -> None:
    raw = tmp_path / "raw"
    write(raw / "data" / "train-00001-of-00003.parquet", {"image": [struct(i) for i in range(24)]})
    cohort = imported(raw, size=8)
    assert cohort.table["split"].nunique() > 1
    assert "split 'train': 1 of 3 shards are there; the rows of the others are missing" in notes_on(cohort)


def test_what_is_refused_in_a_line(tmp_path) -> None:
    raw = write(tmp_path / "two" / "t.parquet", {"left": [struct(0)], "right": [struct(1)]})
    assert refusal(raw) == f"{raw}: columns 'left' and 'right' hold images; name one with --image-column"
    assert len(imported(raw, image_column="right")) == 1
    pq.write_table(pa.table({"image": pa.array([[struct(0)]], pa.list_(IMAGE))}), raw)
    assert refusal(raw) == f"{raw}: column 'image' holds lists of images; write one row per image"
    for name in ("en", "de"):
        write(tmp_path / "configurations" / name / "train-00000-of-00001.parquet", {"image": [struct(0)]})
    assert "several configurations, de, en; name the folder of one" in refusal(tmp_path / "configurations")
    (tmp_path / "disk" / "train").mkdir(parents=True)
    (tmp_path / "disk" / "train" / "data-00000-of-00001.arrow").write_bytes(b"")
    (tmp_path / "disk" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert "saved with save_to_disk of datasets; export it with to_parquet" in refusal(tmp_path / "disk")


def test_tables_named_by_their_splits(tmp_path) -> None:
    for number, name in enumerate(("train", "valid", "test")):
        picture(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{name}.csv").write_text(f"image,sex\n{number}.png,male\n")
    splits = dict(imported(tmp_path, attributes=["sex"]).table[["image_id", "split"]].values)
    assert splits == {"0.png": "train", "1.png": "val", "2.png": "test"}


def test_a_few_images_are_in_memory_at_once(tmp_path, monkeypatch) -> None:
    """Images are read in batches of rows, in order, and the reader of the text columns never touches them."""
    raw = write(tmp_path / "t.parquet", {"image": [struct(i) for i in range(40)], "sex": ["f", "m"] * 20})
    asked: list[tuple[int, tuple[str, ...]]] = []
    original = pq.ParquetFile.iter_batches

    def counted(self, batch_size=65536, **options):
        asked.append((batch_size, tuple(options["columns"])))
        return original(self, batch_size=batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    imported(raw, attributes=["sex"], size=8)
    assert {columns for size, columns in asked if size > 16} == {("sex",)}
    assert {columns for size, columns in asked if size <= 16} == {("image",)}


def test_rows_may_be_asked_for_in_any_order(tmp_path) -> None:
    path = write(tmp_path / "t.parquet", {"image": [struct(i) for i in range(20)]})
    stored = StoredImages(path, "image", Lookup(tmp_path))
    assert [stored.open(number).file for number in range(1, 21)] == [picture_bytes(i) for i in range(20)]
    assert [stored.open(number).file for number in (20, 3, 3, 11, 1)] == [picture_bytes(i) for i in (19, 2, 2, 10, 0)]
    assert read_features(path).images == ("image",)
