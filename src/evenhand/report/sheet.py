"""Contact sheets: generated images beside real ones, group by group, as small PNGs inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from evenhand.audit.result import AuditResult, CopyPair
from evenhand.cohorts.cohort import Cohort, read_image, to_image
from evenhand.core.errors import UserError
from evenhand.core.randomness import generator

_TILE, _GAP = 88, 4


@dataclass(frozen=True)
class Strip:
    """One row of images: a data URI, or the reason why there is none."""

    side: str
    uri: str
    note: str
    count: int


@dataclass(frozen=True)
class SheetGroup:
    """Generated and real images of one group."""

    group: str
    strips: tuple[Strip, ...]


def contact_sheet(result: AuditResult, images: pd.DataFrame, column: str, *, columns: int = 8) -> list[SheetGroup]:
    """Strips of up to ``columns`` randomly picked images a side for each group of ``column``.

    Args:
        images: the audit's per-image table; ``group.<column>`` says who is shown where.
    """
    cohorts = {side: _open(Path(getattr(result, side).path)) for side in ("synthetic", "real")}
    table = next(table for table in result.quality if table.by == [column])
    groups = []
    for row in table.rows:
        strips = []
        for side, cohort in cohorts.items():
            chosen = images[(images["side"] == side) & (images[f"group.{column}"] == row.group)].sort_values("image")
            strips.append(_strip(side, cohort, chosen["image"].tolist(), columns, f"{column}={row.group}"))
        groups.append(SheetGroup(row.group, tuple(strips)))
    return groups


def _open(path: Path) -> Cohort | str:
    try:
        return Cohort.load(path)
    except UserError:
        return f"the cohort is no longer at {path}"


def _strip(side: str, cohort: Cohort | str, names: list[str], columns: int, purpose: str) -> Strip:
    if isinstance(cohort, str):
        return Strip(side, "", cohort, 0)
    if not names:
        return Strip(side, "", "no images of this group", 0)
    chosen = sorted(generator(0, "contact-sheet", purpose).permutation(len(names))[:columns])
    try:
        uri = _row_of([(cohort, names[index]) for index in chosen], columns)
    except UserError as error:
        return Strip(side, "", str(error), 0)
    return Strip(side, uri, "", len(chosen))


def _row_of(tiles: list[tuple[Cohort, str]], columns: int) -> str:
    """Images side by side, as a data URI."""
    mode = "L" if all(cohort.schema.image_mode == "L" for cohort, _ in tiles) else "RGB"
    sheet = Image.new(mode, (columns * (_TILE + _GAP) - _GAP, _TILE), 255 if mode == "L" else (255,) * 3)
    for place, (cohort, name) in enumerate(tiles):
        tile = to_image(read_image(cohort.image_path(name), cohort.schema.image_mode)).convert(mode)
        sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (place * (_TILE + _GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def same_noise(before: AuditResult, after: AuditResult, *, columns: int = 8) -> list[Strip]:
    """What two models drew from the same prompts and seeds, picked at random; nothing where no two images are of one noise."""
    cohorts = [_open(Path(result.synthetic.path)) for result in (before, after)]
    if any(isinstance(cohort, str) or not {"prompt", "seed"} <= set(cohort.table) for cohort in cohorts):
        return []
    tables = [cohort.table.drop_duplicates(["prompt", "seed"]) for cohort in cohorts if isinstance(cohort, Cohort)]
    pairs = tables[0].merge(tables[1], on=["prompt", "seed"], suffixes=("_before", "_after")).sort_values("image_before")
    pairs = pairs.loc[pairs["seed"].notna()]
    if pairs.empty or before.synthetic.sha256 == after.synthetic.sha256:
        return []
    sides = zip(("before", "after"), cohorts, strict=True)
    return [_strip(side, cohort, pairs[f"image_{side}"].tolist(), columns, "same noise") for side, cohort in sides]


@dataclass(frozen=True)
class PairStrip:
    """A generated image beside the training image nearest to it."""

    pair: CopyPair
    uri: str


def copy_pairs(result: AuditResult) -> list[PairStrip]:
    """The worst copies beside their training images; nothing where the cohorts are no longer there."""
    synthetic, real = (_open(Path(facts.path)) for facts in (result.synthetic, result.real))
    if result.memorization is None or isinstance(synthetic, str) or isinstance(real, str):
        return []
    strips = []
    for pair in result.memorization.worst:
        try:
            strips.append(PairStrip(pair, _row_of([(synthetic, pair.image), (real, pair.train_image)], 2)))
        except UserError:
            continue  # the image has gone since; the table still names it
    return strips
