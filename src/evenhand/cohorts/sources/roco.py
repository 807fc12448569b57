"""ROCO: figures of open-access articles with their captions (Pelka et al. 2018, doi 10.1007/978-3-030-01364-6_20); ROCOv2 (2024)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from evenhand.cohorts.cohort import SPLITS
from evenhand.cohorts.hub import find_shards, missing_shards
from evenhand.cohorts.images import Picture
from evenhand.cohorts.sources.base import ImportSettings, Record, Source
from evenhand.cohorts.sources.captions import mine
from evenhand.cohorts.sources.roco_layouts import OTHER, RADIOLOGY, ArchiveLayout, Layout, ParquetLayout, TextLayout
from evenhand.cohorts.tables import Row, TableReader
from evenhand.cohorts.values import BadRow, LeftOut
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import UNKNOWN

CITATION = "ROCO (Pelka et al. 2018, doi 10.1007/978-3-030-01364-6_20)"
CITATION_2 = "ROCOv2 (Rückert et al. 2024, doi 10.1038/s41597-024-03496-6)"


class Roco(Source):
    """Captions are the prompts; sex and age group are those that a caption names, see ``captions``. Subjects are articles.

    An article's images are often of one patient, and the published splits part them. So an article whose images lie in several splits
    goes whole into the one that is held out most strictly: test before val before train. Images that are not there are left out and
    counted. Figures that are no radiology are taken where the condition ``kind`` is asked for.
    """

    name = "roco"
    modality = "radiology"
    mode = "RGB"
    citation = CITATION
    attributes: dict[str, list[str]] = {"sex": ["female", "male"], "age_group": ["<60", ">=60"]}
    conditions: dict[str, list[str]] = {"kind": [RADIOLOGY, OTHER]}
    default_conditions: ClassVar[tuple[str, ...] | None] = ()

    def __init__(self, raw: Path, settings: ImportSettings) -> None:
        super().__init__(raw, settings)
        if settings.prompt_attributes is not None:
            raise UserError("--prompt-attributes: the prompts of 'roco' are its captions; leave the option out")
        self.layout = _layout(raw, self.reader)
        self.facts["layout"] = type(self.layout).__name__.removesuffix("Layout").lower()
        self.lookup = self.layout.lookup
        if isinstance(self.layout, ArchiveLayout) or (isinstance(self.layout, ParquetLayout) and self.layout.has_concepts):
            self.citation = CITATION_2
        self.kinds = (RADIOLOGY, OTHER) if "kind" in self.conditions else (RADIOLOGY,)
        self.wanted = self._wanted_licences()
        self.licence = self.layout.licence
        self.splits = _splits_by_article(self.layout)
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def rows(self) -> Iterator[tuple[str, Row | BadRow]]:
        """Captions, with their place."""
        return self.layout.rows(self.kinds)

    def record(self, row: Row) -> Record:
        """One figure with what its caption says of the patient."""
        if self.wanted is not None and _plain(row["licence"]) not in self.wanted:
            raise LeftOut(f"licence {row['licence'] or 'not told'} (--licence)")
        caption = " ".join(row["caption"].split())
        if not caption:
            raise LeftOut("no caption")
        image = self.layout.find(row)
        found = mine(caption)
        values = {"sex": found.sex, "age_group": found.age_group}
        split = self.splits.get(row["article"], row["split"])
        self._count(values, found.refused, split != row["split"])
        return Record(
            image=image,
            image_id=row["id"],
            subject_id=row["article"] or row["id"],
            attributes={name: values[name] for name in self.attributes},
            conditions={name: row[name] for name in self.conditions},
            split=split,
            prompt=caption,
            licence=row["licence"] or UNKNOWN,
            extras={"age": found.age, **{name: row[name] for name in ("cuis", "semtypes", "keywords")}},
        )

    def open(self, record: Record) -> Picture:
        """The pixels, from a file, an archive or a table."""
        return self.layout.open(record.image)

    def notes(self) -> list[str]:
        """How many captions name a group, why some were passed over, and what was done to the splits."""
        total = self.counts["captions"]
        notes = [f"{name}: named by {self.counts[name]} of {total} captions; unknown elsewhere" for name in self.attributes]
        for why, number in self.refused.most_common():
            notes.append(f"{number} captions name a sex or an age that is not taken: {why}")
        if self.counts["moved"]:
            notes.append(f"{self.counts['moved']} images are in another split than published, since their article has held-out images")
        if isinstance(self.layout, ParquetLayout):
            notes += missing_shards(self.layout.shards)
        if not self.layout.has_articles:
            notes.append("articles are not told: every image is a subject of its own, and images of one article may lie in several splits")
        return notes

    def _count(self, values: dict[str, str], refused: str, moved: bool) -> None:
        self.counts["captions"] += 1
        self.counts["moved"] += moved
        for name, value in values.items():
            self.counts[name] += value != UNKNOWN
        if refused:
            self.refused[refused] += 1

    def _wanted_licences(self) -> set[str] | None:
        """The licences of ``--licence``; None takes all."""
        asked = self.settings.licence
        if asked is None:
            return None
        there = self.layout.licences()
        if not there:
            raise UserError(f"--licence {asked!r}: {self.raw} tells no image's licence; leave the option out")
        for name in asked.split(","):
            if _plain(name) not in map(_plain, there):
                raise UserError(f"--licence: no image has the licence {name.strip()!r}; {did_you_mean(name.strip(), sorted(there))}")
        return {_plain(name) for name in asked.split(",")}


def _layout(raw: Path, reader: TableReader) -> Layout:
    if not raw.is_dir():
        raise UserError(f"{raw}: not a folder; name the folder that holds data/train/radiology/captions.txt, or ROCOv2's files")
    base = TextLayout.base(raw)
    if base is not None:
        return TextLayout(raw, reader, base)
    shards = find_shards(raw)
    if shards:
        return ParquetLayout(raw, reader, shards)
    archives = ArchiveLayout(raw, reader)
    if archives.tables:
        return archives
    wanted = "data/train/radiology/captions.txt, data/train-*.parquet or train_captions.csv"
    raise UserError(f"{raw}: none of {wanted}; name the folder that holds ROCO")


def _splits_by_article(layout: Layout) -> dict[str, str]:
    """Article -> the split that all its images go to: the last of train, val, test that any of them is published in."""
    splits: dict[str, str] = {}
    for article, split in layout.articles():
        if article:
            splits[article] = max(splits.get(article, split), split, key=SPLITS.index)
    return splits


def _plain(licence: str) -> str:
    """One spelling for ``CC BY-NC``, ``cc-by-nc`` and ``CC_BY_NC``."""
    return " ".join(licence.lower().replace("-", " ").replace("_", " ").split())
