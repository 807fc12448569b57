"""One self-contained page from one or several audits: findings first, then evidence, then method and caveats."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from evenhand.audit.comparison import Comparison, compare
from evenhand.audit.equity import MACRO_WARNINGS, WARNINGS
from evenhand.audit.findings import auc, figure, interval, percent, points, probability, share_span, signed
from evenhand.audit.result import AuditResult, Cell, PresenceTable, QualityTable, SemanticTable, UtilityTable
from evenhand.core.artifacts import write_text
from evenhand.core.errors import UserError, did_you_mean
from evenhand.report.cards import data_card, model_card
from evenhand.report.figures import Curve, Line, Mark, Panel, bars, curves, dots
from evenhand.report.formats import as_csv, as_json, as_markdown
from evenhand.report.sheet import PairStrip, SheetGroup, contact_sheet, copy_pairs, same_noise

TEXT_FORMATS = {"json": as_json, "csv": as_csv, "markdown": as_markdown}
CARDS = {"model-card": model_card, "data-card": data_card}
FORMATS = ("html", *TEXT_FORMATS, *CARDS)
BASIS = {
    "requested": "groups as requested in the prompts",
    "judge": "groups as read by the judge",
    "mixed": "groups as requested, else as read by the judge",
    "none": "no groups: neither requested nor judged",
}


@dataclass(frozen=True)
class Chapter:
    """What the template shows of one audit."""

    name: str
    result: AuditResult
    figures: dict[str, str]
    sheets: dict[str, list[SheetGroup]]
    sheet_note: str
    copies: list[PairStrip]
    images: pd.DataFrame | None  # the audit's per-image table, where it lies beside audit.json


def write_report(audits: list[Path], out: Path, format: str = "html") -> Path:
    """Write the report of one or several audits; several are set side by side.

    Raises:
        UserError: no audit given, one that cannot be read, or an unknown format.
    """
    if format not in FORMATS:
        raise UserError(f"--format: unknown format {format!r}; {did_you_mean(format, FORMATS)}")
    if not audits:
        raise UserError("nothing to report; name an audit.json")
    results = [AuditResult.load(path) for path in audits]
    out = Path(out)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name a file in it, such as report.html")
    if format in CARDS and len(results) > 1:
        raise UserError(f"--format {format}: a card is of one audit; {len(results)} are given")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, _text(format, [Path(path) for path in audits], results))
    return out


def _text(format: str, paths: list[Path], results: list[AuditResult]) -> str:
    if format in TEXT_FORMATS:
        return TEXT_FORMATS[format](results)
    if format in CARDS:
        return CARDS[format](results[0])
    return render([_chapter(path, result) for path, result in zip(paths, results, strict=True)])


def render(chapters: list[Chapter]) -> str:
    """The page. Every name and text passes the template's escaping; only our own SVG is taken as it is."""
    folder = resources.files("evenhand.report") / "templates"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "interval": interval,
        "auc": auc,
        "figure": figure,
        "percent": percent,
        "points": points,
        "probability": probability,
        "signed": signed,
        "span": share_span,
        "stands_out": stands_out,
    }
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        chapters=chapters, style=(folder / "report.css").read_text(encoding="utf-8"), basis=BASIS, compared=_compared(chapters),
        equity_warnings=[*WARNINGS, *MACRO_WARNINGS], sweep=_sweep([chapter.result for chapter in chapters]),
        before_after=_before_after(chapters), twins=same_noise(chapters[0].result, chapters[1].result) if len(chapters) == 2 else [],
    )  # fmt: skip


def stands_out(table: QualityTable | SemanticTable | UtilityTable) -> bool:
    """Whether the worst group's interval lies wholly on the wrong side of another group's."""
    shown = [row for row in table.rows if row.low is not None and row.high is not None]
    worst = next((row for row in shown if row.group == table.worst), None)
    if worst is None or worst.low is None or worst.high is None:
        return False
    if table.direction == "higher":
        return any(row.low is not None and row.low > worst.high for row in shown)
    return any(row.high is not None and row.high < worst.low for row in shown)


def _chapter(path: Path, result: AuditResult) -> Chapter:
    sheets, note, images = {}, "", None
    scores = path.with_suffix(".parquet")
    if scores.is_file():
        images = pd.read_parquet(scores)
        single = [table.by[0] for table in result.quality if len(table.by) == 1 and table.metric == "kid" and table.primary]
        sheets = {column: contact_sheet(result, images, column) for column in single}
    else:
        note = f"There is no {scores.name} beside {path.name}, so no images can be shown."
    name = result.synthetic.name
    return Chapter(name, result, _figures(name, result), sheets, note, copy_pairs(result), images)


def _figures(name: str, result: AuditResult) -> dict[str, str]:
    """The figures that have something to show, by section."""
    drawn = {}
    if result.presence:
        drawn["presence"] = bars(
            [_presence_panel(table) for table in result.presence],
            title=f"{name}: presence by group", axis="share of images", found="generated, 95 % interval", reference="target",
        )  # fmt: skip
    quality = [table for table in result.quality if table.metric == "kid" and table.primary]
    if quality:
        drawn["quality"] = dots(
            [Panel("all images", [Line("overall", _mark(quality[0].overall), _mark(quality[0].overall_reference))])]
            + [_group_panel(table) for table in quality],
            title=f"{name}: kernel distance by group", axis="KID, lower is better",
            found="generated against real", reference="real against real (floor)",
        )  # fmt: skip
    semantics = result.semantics
    if semantics:
        drawn["semantics"] = dots(
            [
                panel
                for place, table in enumerate(semantics)
                for panel in _semantic_panels(table, place == 0 or _asked(semantics[place - 1]) != _asked(table))
            ],
            title=f"{name}: AUC of the requested condition by group", axis="AUC, higher is better",
            found="generated images", reference="real images", limits=_auc_limits(semantics),
        )  # fmt: skip
    return drawn


def _presence_panel(table: PresenceTable) -> Panel:
    basis = {"requested": "requested", "judge": "judged", "mixed": "requested, else judged", "none": "not known"}[table.basis]
    if table.identifiable is False:
        return Panel(f"{' x '.join(table.by)} (not identifiable)", [Line(row.group, Mark(None), Mark(row.target)) for row in table.rows])
    lines = [Line(row.group, Mark(row.value, row.low, row.high), Mark(row.target)) for row in table.rows]
    return Panel(f"{' x '.join(table.by)} ({basis})", lines)


def _group_panel(table: QualityTable | SemanticTable) -> Panel:
    return Panel(" x ".join(table.by), [Line(row.group, _mark(row), _mark(row.reference)) for row in table.rows])


def _semantic_panels(table: SemanticTable, first: bool) -> list[Panel]:
    overall = Panel(f"{table.condition} = {table.value}", [Line("overall", _mark(table.overall), _mark(table.overall_reference))])
    return [overall, _group_panel(table)] if first else [_group_panel(table)]


def _asked(table: SemanticTable) -> tuple[str, str]:
    return table.condition, table.value


def _auc_limits(tables: list[SemanticTable]) -> tuple[float, float]:
    cells = [cell for table in tables for row in table.rows for cell in (row, row.reference) if cell is not None]
    lows = [cell.low for cell in cells if cell.low is not None]
    return (max(0.0, min([0.5, *lows]) - 0.02), 1.02)


def _mark(cell: Cell | None) -> Mark:
    return Mark(None) if cell is None else Mark(cell.value, cell.low, cell.high)


def _before_after(chapters: list[Chapter]) -> Comparison | None:
    """The paired comparison, where there are two audits and their per-image tables."""
    if len(chapters) != 2 or chapters[0].images is None or chapters[1].images is None:
        return None
    return compare(chapters[0].result, chapters[1].result, (chapters[0].images, chapters[1].images))


def _sweep(results: list[AuditResult]) -> list[str]:
    """Where audits are of several guidance scales: presence and quality along the scale."""
    scales = {result.synthetic.guidance_scale for result in results}
    if None in scales or len(scales) < 2:
        return []
    ordered = sorted(results, key=lambda result: result.synthetic.guidance_scale or 0)
    presence: dict[str, dict[str, Curve]] = {}
    quality: dict[str, dict[str, Curve]] = {}
    for result in ordered:
        scale = float(result.synthetic.guidance_scale or 0)
        for table in result.presence:
            if len(table.by) == 1 and table.basis == "judge":
                for row in table.rows:
                    mark = Mark(None) if table.identifiable is False else Mark(row.value, row.low, row.high)
                    _extend(presence, table.by[0], row.group, scale, mark, row.target)
        for part in result.quality:
            if len(part.by) == 1 and part.metric == "kid" and part.primary:
                for cell in part.rows:
                    _extend(quality, part.by[0], cell.group, scale, _mark(cell), None)
    drawn = [
        curves(list(rows.values()), title=f"Presence by {name} against guidance scale", across="guidance scale", up="share", share=True)
        for name, rows in presence.items()
    ]
    return drawn + [
        curves(list(rows.values()), title=f"Quality by {name} against guidance scale", across="guidance scale", up="KID, lower is better")
        for name, rows in quality.items()
    ]


def _extend(into: dict[str, dict[str, Curve]], column: str, group: str, scale: float, mark: Mark, target: float | None) -> None:
    rows = into.setdefault(column, {})
    rows[group] = Curve(group, [*(rows[group].points if group in rows else []), (scale, mark)], target)


def _compared(chapters: list[Chapter]) -> list[tuple[str, list[str]]]:
    """For several audits: one row a question, one column an audit."""
    if len(chapters) < 2:
        return []
    rows: dict[str, list[str]] = {}
    for place, chapter in enumerate(chapters):
        for label, text in _summary(chapter.result).items():
            rows.setdefault(label, ["not measured"] * len(chapters))[place] = text
    return list(rows.items())


def _summary(result: AuditResult) -> dict[str, str]:
    found = {}
    for table in result.presence:
        if len(table.by) == 1:
            text = "undefined" if table.gap is None else points(table.gap)
            found[f"Presence gap by {table.by[0]} ({table.basis})"] = text
    for quality in result.quality:
        if len(quality.by) == 1 and quality.metric == "kid" and quality.primary:
            found["KID of all images"] = interval(quality.overall)
            if quality.worst is not None:
                row = next(row for row in quality.rows if row.group == quality.worst)
                found[f"KID of the worst group by {quality.by[0]}"] = f"{row.group} {interval(row)}"
    for semantic in result.semantics:
        if len(semantic.by) == 1:
            found[f"AUC of {semantic.condition} = {semantic.value}"] = (
                "undefined" if semantic.overall.value is None else auc(semantic.overall)
            )
    return found
