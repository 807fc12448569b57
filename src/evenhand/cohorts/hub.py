"""Parquet as the ``datasets`` library writes it: images as structs of bytes and path, class labels as numbers, tables in shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evenhand.cohorts.cohort import SPLITS
from evenhand.cohorts.images import BadImage, Picture, inside, open_picture
from evenhand.cohorts.lookup import Lookup, is_junk, subfolders
from evenhand.cohorts.splits import parse_split
from evenhand.core.errors import UserError, did_you_mean

BATCH = 16  # images that are in memory at once
_SHARD = re.compile(r"([a-z]+)(?:[-_.]\d+(?:-of-(\d+))?(?:-[0-9a-f]{8,})?)?", re.IGNORECASE)


@dataclass(frozen=True)
class Features:
    """What the schema of a Parquet file says of its columns."""

    names: tuple[str, ...]  # of all columns
    images: tuple[str, ...]  # structs of bytes and path
    binaries: tuple[str, ...]  # plain bytes that are no text
    lists: tuple[str, ...]  # several structs in one cell
    labels: dict[str, list[str]]  # columns of class numbers -> the names of the classes


def read_features(path: Path) -> Features:
    """The columns of images and of class labels, from Arrow's types and from what ``datasets`` writes beside them.

    Raises:
        UserError: not a readable Parquet file.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    stated = _stated_features(schema.metadata or {})
    typed = {name: feature.get("_type") for name, feature in stated.items() if isinstance(feature, dict)}
    images = tuple(field.name for field in schema if _is_struct_of_bytes(field.type) or typed.get(field.name) == "Image")
    bare = [field.name for field in schema if _is_binary(field.type) and field.name not in images]
    binaries = tuple(name for name in bare if not _begins_with_text(path, name))
    lists = tuple(field.name for field in schema if _is_list(field.type) and _is_struct_of_bytes(field.type.value_type))
    names = {name: stated[name].get("names") for name, kind in typed.items() if kind == "ClassLabel"}
    labels = {name: list(map(str, found)) for name, found in names.items() if isinstance(found, list)}
    return Features(tuple(schema.names), images, binaries, lists, labels)


class StoredImages:
    """The images of one column of a Parquet file. Asked for in the order of the rows, each is read once, a few at a time."""

    def __init__(self, table: Path, column: str, lookup: Lookup, folders: Sequence[str] = ()) -> None:
        self.table, self.column, self.lookup, self.folders = table, column, lookup, folders
        self.number = 0  # of the row that was read last
        self.last: dict[str, Any] = {}
        self.rest: Iterator[dict[str, Any]] = iter(())

    def holds(self, number: int) -> bool:
        """Whether the row, counted from 1, has an image at all."""
        found = self._row(number)
        return bool(found.get("bytes") or found.get("path"))

    def path(self, number: int) -> str | None:
        """The file below the data folder that a row without bytes names; None where the row holds the bytes.

        Raises:
            NoFile, BadRow: see ``Lookup.find``.
        """
        found = self._row(number)
        return None if found.get("bytes") else self.lookup.find(str(found.get("path") or ""), self.folders)

    def open(self, number: int) -> Picture:
        """The image of one row.

        Raises:
            BadImage: none there, or unreadable.
        """
        if not self.holds(number):
            raise BadImage(f"no image in column {self.column!r}")
        path = self.path(number)
        return open_picture(self._row(number)["bytes"] if path is None else inside(self.lookup.root, path))

    def _row(self, number: int) -> dict[str, Any]:
        if self.number == 0 or number < self.number:
            self.number, self.rest = 0, batches(self.table, (self.column,), BATCH)
        while self.number < number:
            value = next(self.rest)[self.column]
            self.last = {"bytes": value} if isinstance(value, bytes) else value if isinstance(value, dict) else {}
            self.number += 1
        return self.last


def batches(table: Path, columns: Sequence[str], size: int) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as Python values, some at a time.

    Raises:
        UserError: unreadable, or a column is missing.
    """
    try:
        with pq.ParquetFile(table) as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise UserError(f"{table}: no column {column!r}; {did_you_mean(column, names)}")
            for batch in file.iter_batches(batch_size=size, columns=list(columns)):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(table, error) from None


def find_shards(raw: Path) -> list[tuple[Path, str]]:
    """The Parquet files of a data set as the hub keeps it, and the split that each belongs to; none where ``raw`` holds no such files.

    Read are ``train-00000-of-00002.parquet`` and ``train.parquet`` in ``raw`` or its folder ``data/``, and ``train/0000.parquet`` in
    ``raw``; one further folder, a configuration, may lie above them.

    Raises:
        UserError: several configurations.
    """
    found = _shards_in(raw)
    if found:
        return in_order(found)
    below = {folder: shards for folder in subfolders(raw) if (shards := _shards_in(folder))}
    if len(below) > 1:
        raise UserError(f"{raw}: several configurations, {', '.join(folder.name for folder in below)}; name the folder of one")
    return in_order(next(iter(below.values()), []))


def in_order(tables: Sequence[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Tables with their splits: train before val before test, and by name."""
    return sorted(tables, key=lambda table: (SPLITS.index(table[1]), table[0]))


def missing_shards(shards: Sequence[tuple[Path, str]]) -> list[str]:
    """What to say of splits of which not every shard is there."""
    notes: list[str] = []
    totals: dict[str, list[int]] = {}
    for path, _ in shards:
        match, split = _SHARD.fullmatch(path.stem), split_of_name(path.stem)
        if match and match[2] and split:
            totals.setdefault(split, []).append(int(match[2]))
    for split, counts in totals.items():
        if len(counts) < max(counts):
            notes.append(f"split {split!r}: {len(counts)} of {max(counts)} shards are there; the rows of the others are missing")
    return notes


def _shards_in(folder: Path) -> list[tuple[Path, str]]:
    for base in (folder, folder / "data"):
        files = _parquet_files(base)
        found = [(path, split) for path in files if (split := split_of_name(path.stem))]
        if found:
            return found
    return [(path, split) for base in subfolders(folder) if (split := split_of_name(base.name)) for path in _parquet_files(base)]


def _parquet_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".parquet" and path.is_file() and not is_junk(path.name))


def find_arrow(raw: Path) -> bool:
    """Whether a folder is one of ``save_to_disk``: Arrow files, in it or in the folders of its splits."""
    return any(path.suffix.lower() == ".arrow" for folder in (raw, *subfolders(raw)) for path in folder.iterdir())


def split_of_name(name: str) -> str | None:
    """The split that a file's stem or a folder's name says, such as ``train-00000-of-00002``; None where it says none."""
    match = _SHARD.fullmatch(name)
    try:
        return parse_split(match[1]) if match else None
    except UserError:
        return None


def _stated_features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The features that ``datasets`` states in a file's metadata; none where that is missing or damaged."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct_of_bytes(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    held = kind.field("bytes").type  # null where every row names a file instead
    return _is_binary(held) or bool(pa.types.is_null(held) and kind.get_field_index("path") >= 0)


def _begins_with_text(path: Path, column: str) -> bool:
    """Whether the first values of a column of bytes are text, such as paths, as some writers store it."""
    for found in islice(batches(path, (column,), BATCH), BATCH):
        try:
            (found[column] or b"").decode()
        except UnicodeDecodeError:
            return False
    return True


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _unreadable(table: Path, error: Exception) -> UserError:
    brief = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{table}: not a readable Parquet file ({brief}); download it again")
