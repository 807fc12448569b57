"""Raw data set -> cohort, one image at a time: read a row, open and verify its image, resize, write."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from evenhand.cohorts.cohort import RESERVED, Cohort, CohortSchema
from evenhand.cohorts.images import BadImage, Picture
from evenhand.cohorts.prompts import check_state, write_prompt
from evenhand.cohorts.sources import SOURCES, ImportSettings, Record, Source
from evenhand.cohorts.sources.base import MAX_GROUPS, too_many_groups
from evenhand.cohorts.sources.pixels import PixelRules, Prepared
from evenhand.cohorts.splits import split_of
from evenhand.cohorts.values import BadRow, LeftOut, is_missing
from evenhand.cohorts.windows import Levels
from evenhand.cohorts.writing import CohortWriter, cohort_writer
from evenhand.core.artifacts import is_disk_full, provenance, require_free, write_text
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import NOT_GROUPS
from evenhand.core.progress import console, track


@dataclass
class _Import:
    """What one import has seen so far: ids and counts, never pixels."""

    source: Source
    settings: ImportSettings
    state: list[str] | None
    writer: CohortWriter
    pixels: PixelRules
    faults: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)  # image id -> the row that had it first
    splits: dict[str, tuple[str, str]] = field(default_factory=dict)  # subject -> its split, and the row that said so
    values: dict[str, Counter[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    dropped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> rows
    licences: Counter[str] = field(default_factory=Counter)  # where images have their own

    @property
    def failed(self) -> bool:
        return len(self.faults) > self.settings.skip_bad

    def take(self, place: str, row: dict[str, str] | BadRow) -> None:
        """Import one row, or note why not. Once too much is bad, rows are still read to name every fault."""
        try:
            if isinstance(row, BadRow):
                raise row
            record = self.source.record(row)
            self._check_identity(record, place)
            if self.settings.unknown == "drop" and any(value in NOT_GROUPS for value in record.attributes.values()):
                self.dropped += 1
                return
            prompt = self._prompt(record)
            image = self._open(record)
            split = self._split(record, place)
        except LeftOut as reason:
            self.left_out[str(reason)] += 1
            return
        except BadRow as fault:
            self.faults.append(f"{place}: {fault}")
            return
        if not self.failed:
            self._write(record, split, prompt, image)

    def _check_identity(self, record: Record, place: str) -> None:
        first = self.places.setdefault(record.image_id, place)
        if first != place:
            raise BadRow(f"image id {record.image_id!r} stands in {first} already; keep one of the two rows")

    def _prompt(self, record: Record) -> str:
        if record.prompt and not is_missing(record.prompt):
            return record.prompt
        try:
            return write_prompt(self.source.modality, record.attributes, record.conditions, self.state)
        except UserError as fault:
            raise BadRow(str(fault)) from None

    def _open(self, record: Record) -> Prepared:
        try:
            return self.pixels.prepare(self.source.open(record))
        except BadImage as fault:
            raise BadRow(f"{record.image}: {fault}") from None

    def _split(self, record: Record, place: str) -> str:
        split = record.split or split_of(record.subject_id, self.settings.seed)
        known, where = self.splits.setdefault(record.subject_id, (split, place))
        if split != known:
            raise BadRow(f"subject {record.subject_id!r} is in split {split!r} here and in {known!r} in {where}; put it into one")
        return split

    def _write(self, record: Record, split: str, prompt: str, image: Prepared) -> None:
        columns = {**record.attributes, **record.conditions}
        for name, value in columns.items():
            seen = self.values.setdefault(name, Counter())
            seen[value] += 1
            if len(seen) > MAX_GROUPS:
                raise too_many_groups(name)
        row: dict[str, Any] = {"subject_id": record.subject_id, "split": split, "prompt": prompt, **columns}
        row |= {"image_id": record.image_id, **record.extras}
        if record.licence is not None:
            row["licence"] = record.licence
            self.licences[record.licence] += 1
        if self.source.synthetic:  # how somebody else's generator ran is not known
            row |= {"seed": None, "guidance_scale": None, "steps": None, "model": self.writer.schema.name}
        self.pixels.count(image)
        self.writer.add(image.image, row, name=self._file_name(record.image_id))

    def _file_name(self, image_id: str) -> str:
        """The image id as a safe file name, unlike any other of this cohort even where case does not count."""
        stem = re.sub(r"\.(png|jpe?g|bmp|tiff?|webp)$", "", image_id, flags=re.IGNORECASE)
        base = name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[-120:] or "image"
        number = 1
        while name.lower() in self.names:
            number += 1
            name = f"{base}_{number}"
        self.names.add(name.lower())
        return name

    def schema(self) -> CohortSchema:
        """The schema once all rows are known: groups of a table come from its data."""

        def filled(columns: dict[str, list[str]]) -> dict[str, list[str]]:
            return {name: groups or sorted(set(self.values.get(name, ())) - set(NOT_GROUPS)) for name, groups in columns.items()}

        licence = self.source.licence
        if self.licences:
            found = ", ".join(f"{name} ({number})" for name, number in self.licences.most_common())
            licence = f"{licence}; column 'licence': {found}".removeprefix("; ")
        notes = [*self.source.notes(), *self.source.lookup.notes(), *self.source.reader.notes()]
        seen = {"skipped": self.faults, "dropped_unknown": self.dropped, "left_out": dict(self.left_out), "notes": notes}
        return self.writer.schema.model_copy(
            update={
                "attributes": filled(self.source.attributes),
                "conditions": filled(self.source.conditions),
                "image_size": self.pixels.size,
                "image_mode": self.pixels.mode,
                "licence": licence,
                "made": {**self.writer.schema.made, **seen, **self.pixels.facts()},
            }
        )


def import_cohort(source: str, raw: Path, out: Path, settings: ImportSettings | None = None) -> Cohort:
    """Import a raw data set as a new cohort; memory does not grow with the number of images.

    Args:
        source: a key of ``SOURCES``.
        raw: the raw data set's folder (or table).
        out: the new cohort's folder.
        settings: see ``ImportSettings``.

    Returns:
        The cohort; ``group_counts(cohort)`` is its summary, ``notes_on(cohort)`` what a reader should know of it.

    Raises:
        UserError: wrong options, a missing column, no disk space, or more than ``skip_bad`` bad rows. With several bad rows the
            message has the first, and ``OUT.faults.txt`` lists them all. Nothing stays under ``out``.
    """
    settings, raw, out = settings or ImportSettings(), Path(raw), Path(out)
    if source not in SOURCES:
        raise UserError(f"unknown source {source!r}; {did_you_mean(source, SOURCES)}")
    require_free(out)
    reader = SOURCES[source](raw, settings)
    for column in (*reader.attributes, *reader.conditions):
        if column in RESERVED:
            remedy = f"rename it in the raw table, such as 'patient_{column}'"
            raise UserError(f"column {column!r} cannot be an attribute or a condition: cohorts have one of that name; {remedy}")
    state = check_state(settings.prompt_attributes, reader.attributes)
    if state is None and reader.stated is not None:
        state = [name for name in reader.stated if name in reader.attributes]
    made = provenance(importer=source, raw=raw.name, settings=settings.model_dump(mode="json"), **reader.facts)
    start = CohortSchema(
        name=settings.name or (out.name if source == "table" else source),
        modality=reader.modality,
        attributes=reader.attributes,
        conditions=reader.conditions,
        image_size=settings.size or 0,
        image_mode="RGB",
        synthetic=reader.synthetic,
        source=reader.citation,
        licence=reader.licence,
        made=made,
    )
    try:
        with cohort_writer(out, start) as writer:
            pixels = PixelRules(settings, reader.mode, lambda: _deep_levels(SOURCES[source](raw, settings), settings))
            run = _Import(reader, settings, state, writer, pixels)
            _take_all(run)
            _require_good(run, out)
            writer.schema = run.schema()
    except OSError as error:
        if is_disk_full(error):
            raise UserError(f"{out}: no space left on the device; free some, or choose another output folder") from None
        raise
    return Cohort.load(out)


def _take_all(run: _Import) -> None:
    limit = run.settings.limit
    total = 0
    for _, row in islice(run.source.rows(), limit):  # once without images: how many there are, and how their groups are spelt
        if not isinstance(row, BadRow):
            run.source.survey(row)
        total += 1
    with track(f"import {run.source.name}", total) as bar:
        for place, row in islice(run.source.rows(), limit):
            run.take(place, row)
            bar.advance()


def _deep_levels(source: Source, settings: ImportSettings) -> Levels:
    """The grey values of all images of more than 8 bits; of others the header alone is read. ``source`` has seen no row yet."""
    console.print(f"import {source.name}: images of more than 8 bits; a first pass finds the range of their grey values", highlight=False)
    levels = Levels()
    seen: set[str] = set()
    for _, row in islice(source.rows(), settings.limit):
        if isinstance(row, BadRow):
            continue
        try:
            record = source.record(row)
            unwanted = settings.unknown == "drop" and any(value in NOT_GROUPS for value in record.attributes.values())
            if unwanted or record.image_id in seen:
                continue
            seen.add(record.image_id)
            picture = source.open(record)
            if isinstance(picture, Picture) and picture.deep:
                raster = picture.decode()
                levels.add(raster.visible, raster.declared)
        except (BadImage, BadRow, LeftOut):
            continue  # the import itself says what is wrong with it
    return levels


def _require_good(run: _Import, out: Path) -> None:
    """Refuse an import with too many faults, or with nothing in it; the full list goes beside ``out``."""
    listing = out.with_name(f"{out.name}.faults.txt")
    if not run.failed and run.writer.written:
        listing.unlink(missing_ok=True)
        return
    first, more = next(iter(run.faults), ""), ""
    if len(run.faults) > 1:
        write_text(listing, "\n".join(run.faults) + "\n")
        more = f" and {len(run.faults) - 1} more, all listed in {listing}"
    if run.failed:
        raise UserError(f"{first}{more}; mend the data or pass --skip-bad {len(run.faults)}")
    left_out = "".join(f", {number} left out: {reason}" for reason, number in run.left_out.items())
    counts = f"({len(run.faults)} bad, {run.dropped} with an unknown group{left_out})"
    raise UserError(f"{run.source.raw}: no image to import {counts}{': ' if first else ''}{first}{more}")
