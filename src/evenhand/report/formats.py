"""An audit as a flat table (CSV, JSON) and as Markdown, for spreadsheets, scripts and pull requests."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from evenhand.audit.findings import figure, percent
from evenhand.audit.result import AuditResult, Cell, CopyTable, FairnessTable, QualityTable, SemanticTable, UtilityTable

COLUMNS = (
    "audit", "question", "metric", "encoder", "basis", "direction", "group", "n", "n_real", "value", "low", "high", "beside", "beside_is",
    "reason",
)  # fmt: skip


BESIDE = {"kid": "real against real", "auc": "judge on real images", "log-is": "real images"}


def records(result: AuditResult) -> Iterator[dict[str, Any]]:
    """One flat record an estimate: every question, metric and group, and the overall values."""
    name = result.synthetic.name
    for table in result.presence:
        for row in table.rows:
            refused = table.identifiable is False
            yield {
                "audit": name, "question": table.question, "metric": "share", "encoder": "", "basis": table.basis, "direction": "match",
                "group": row.group, "n": row.n, "n_real": table.n_real, "value": None if refused else row.value,
                "low": None if refused else row.low, "high": None if refused else row.high, "beside": row.target, "beside_is": "target",
                "reason": f"not identifiable: {table.refusal}" if refused else row.reason,
            }  # fmt: skip
    copies = [*result.memorization.tables, *result.memorization.beside] if result.memorization else []
    parts: list[QualityTable | SemanticTable | UtilityTable | CopyTable] = [*result.quality, *result.semantics, *result.utility, *copies]
    for part in parts:
        encoder = getattr(part, "encoder", "")
        beside_is = BESIDE.get(part.metric, "")
        for group, cell, beside, n_real in [
            ("overall", part.overall, part.overall_reference, result.n["real_compared"]),
            *((row.group, row, row.reference, row.n_real) for row in part.rows),
        ]:
            yield {
                "audit": name, "question": part.question, "metric": part.metric, "encoder": encoder, "basis": part.basis,
                "direction": part.direction, "group": group, "n": cell.n, "n_real": n_real, "value": cell.value, "low": cell.low,
                "high": cell.high, "beside": _value(beside), "beside_is": beside_is, "reason": cell.reason,
            }  # fmt: skip

    for answers in result.fairness:
        yield from _fairness_records(name, answers)


def _fairness_records(name: str, table: FairnessTable) -> Iterator[dict[str, Any]]:
    """Differences between groups without an interval, then each group's calibration with the judge on real images beside it."""
    common = {"audit": name, "question": table.question, "encoder": "", "basis": table.basis, "direction": "lower", "n_real": None}
    for metric, value, beside in (("parity", table.parity, table.parity_real), ("odds", table.odds, table.odds_real)):
        reason = "" if value is not None else "a group lacks a rate, or there is one group only"
        yield common | {
            "metric": f"{metric} difference", "group": "overall", "n": None, "value": value, "low": None, "high": None, "beside": beside,
            "beside_is": "judge on real images", "reason": reason,
        }  # fmt: skip
    for row in table.rows:
        for metric, cell, real in (("ece", row.ece, row.ece_real), ("brier", row.brier, row.brier_real)):
            yield common | {
                "metric": metric, "group": row.group, "n": cell.n, "value": cell.value, "low": cell.low, "high": cell.high,
                "beside": real.value, "beside_is": "judge on real images", "reason": cell.reason,
            }  # fmt: skip


def _value(cell: Cell | None) -> float | None:
    return None if cell is None else cell.value


def as_csv(results: Sequence[AuditResult]) -> str:
    """Comma-separated records with a header. Undefined values are empty; text that a spreadsheet would run is quoted with '."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for record in records(result):
            writer.writerow({key: _harmless(value) for key, value in record.items()})
    return out.getvalue()


def _harmless(value: Any) -> Any:
    """Text that begins like a formula is data here: spreadsheets must not run a group's name (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def as_json(results: Sequence[AuditResult]) -> str:
    """The same records, with the findings, as JSON: {"audits": [{"name", "findings", "records"}]}."""
    audits = [
        {"name": result.synthetic.name, "findings": [finding.model_dump() for finding in result.findings], "records": list(records(result))}
        for result in results
    ]
    return json.dumps({"audits": audits}, indent=2, ensure_ascii=False) + "\n"


def as_markdown(results: Sequence[AuditResult]) -> str:
    """Findings as a list, then one table a question, then what limits the audit."""
    return "\n".join(line for result in results for line in _markdown(result)) + "\n"


def _markdown(result: AuditResult) -> Iterator[str]:
    yield f"# {inline(result.synthetic.name)} against {inline(result.real.name)}"
    yield ""
    yield f"{result.n['synthetic']} generated images, {result.n['real_compared']} real ones compared."
    yield ""
    yield from findings_as_markdown(result)
    question = None
    for record in records(result):
        heading = (record["question"], record["metric"], record["encoder"])
        if heading != question:
            question = heading
            title = f"{record['question']} ({record['metric']}{', ' + record['encoder'] if record['encoder'] else ''})"
            yield from ("", f"## {inline(title)}", "")
            yield from (f"| group | n | value [95 %] | {record['beside_is'] or 'beside'} |", "|---|---|---|---|")
        yield f"| {inline(record['group'])} | {record['n']} | {_span(record)} | {_plain(record['beside'], record['metric'])} |"
    yield from ("", "## What limits this audit", "")
    yield from (f"- {inline(finding.text)}" for finding in result.findings if finding.kind == "caveat")
    yield ""


def findings_as_markdown(result: AuditResult) -> Iterator[str]:
    """The headlines as a list."""
    yield from (f"- {inline(finding.text)}" for finding in result.findings if finding.kind != "caveat")


def _span(record: dict[str, Any]) -> str:
    if record["value"] is None:
        return f"undefined: {inline(record['reason'] or 'no value')}"
    value, low, high = (_plain(record[key], record["metric"]) for key in ("value", "low", "high"))
    return value if record["low"] is None or record["high"] is None else f"{value} [{low}, {high}]"


def _plain(value: float | None, metric: str) -> str:
    if value is None:
        return ""
    return percent(value) if metric in ("share", "copy rate", "authenticity") else figure(value)


def inline(text: str) -> str:
    """Text that stays text: no tag, no table cell, no link, no line of its own."""
    flat = " ".join(str(text).split())
    for sign, escaped in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        flat = flat.replace(sign, escaped)
    return flat
