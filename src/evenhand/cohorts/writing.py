"""Writing a cohort image by image: memory does not grow with the number of images."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from evenhand.cohorts.cohort import BASE_COLUMNS, IMAGE_FOLDER, SCHEMA_FILE, TABLE_FILE, CohortSchema
from evenhand.core.artifacts import new_folder, write_json

_ROWS_A_GROUP = 1024


class CohortWriter:
    """Takes images one at a time. ``schema`` may still be changed until the writer closes."""

    def __init__(self, folder: Path, schema: CohortSchema) -> None:
        self.folder, self.schema = folder, schema
        self.written = 0
        self._rows: list[dict[str, Any]] = []
        self._parquet: pq.ParquetWriter | None = None
        (folder / IMAGE_FOLDER).mkdir()

    def add(self, image: Image.Image, row: Mapping[str, Any], *, name: str) -> None:
        """Write ``image`` as ``images/<name>.png`` and remember ``row`` (every column but image and sha256)."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        path = f"{IMAGE_FOLDER}/{name}.png"
        (self.folder / path).write_bytes(buffer.getvalue())  # the folder has no final name yet: new_folder flushes it as a whole
        self._rows.append({"image": path, **row, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()})
        self.written += 1
        if len(self._rows) >= _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self.folder / TABLE_FILE, self._arrow_schema(self._rows[0]))
        self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._parquet.schema))
        self._rows = []

    def _arrow_schema(self, row: Mapping[str, Any]) -> pa.Schema:
        """Text everywhere but where the first row holds a number: a later null must not change a column's type."""
        text = {*BASE_COLUMNS, *self.schema.columns, "sha256"}
        fields = []
        for name, value in row.items():
            kind = pa.string() if name in text or isinstance(value, str) else pa.int64() if isinstance(value, int) else pa.float64()
            fields.append(pa.field(name, kind))
        return pa.schema(fields)

    def close(self) -> None:
        """Flush the table and write the schema."""
        self._flush()
        if self._parquet is None:
            columns = (*BASE_COLUMNS, *self.schema.columns, "sha256")
            self._parquet = pq.ParquetWriter(self.folder / TABLE_FILE, pa.schema([(name, pa.string()) for name in columns]))
        self._parquet.close()
        write_json(self.folder / SCHEMA_FILE, self.schema.model_dump())


@contextmanager
def cohort_writer(path: Path, schema: CohortSchema) -> Iterator[CohortWriter]:
    """A writer whose cohort appears as ``path`` only when whole.

    Raises:
        UserError: ``path`` exists and is not empty, or another process is writing it.
    """
    with new_folder(path) as folder:
        writer = CohortWriter(folder, schema)
        yield writer
        writer.close()
