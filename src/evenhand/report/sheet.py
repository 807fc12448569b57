"""Contact sheets: generated images beside real ones, group by group, as small PNGs inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from evenhand.audit.result import AuditResult
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
    sheet = Image.new(
        cohort.schema.image_mode, (columns * (_TILE + _GAP) - _GAP, _TILE), 255 if cohort.schema.image_mode == "L" else (255,) * 3
    )
    try:
        for place, index in enumerate(chosen):
            tile = to_image(read_image(cohort.image_path(names[index]), cohort.schema.image_mode))
            sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.LANCZOS), (place * (_TILE + _GAP), 0))
    except UserError as error:
        return Strip(side, "", str(error), 0)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return Strip(side, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), "", len(chosen))
