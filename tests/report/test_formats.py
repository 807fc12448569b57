"""The audit as a table, as Markdown, as cards, and along guidance scales."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from evenhand.audit.result import AuditResult
from evenhand.core.errors import UserError
from evenhand.report.html import FORMATS, write_report

BAD = '=cmd()|"x"!A1'


def made(audit: Path, format: str) -> str:
    return write_report([audit], audit.parent / f"out.{format}", format).read_text()


def spoilt(audit: Path) -> Path:
    result = AuditResult.load(audit)
    result.presence[0].rows[0].group = BAD
    result.save(audit)
    return audit


def test_a_spreadsheet_gets_data_and_no_formula(audit: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(made(spoilt(audit), "csv"))))
    presence = [row for row in rows if row["metric"] == "share"]
    assert presence[0]["group"] == f"'{BAD}" and float(presence[0]["value"]) == 0.83 and float(presence[0]["beside"]) == 0.8
    assert all(not str(cell).startswith(("=", "@")) for row in rows for cell in row.values())
    undefined = next(row for row in rows if row["metric"] == "kid" and row["reason"])
    assert undefined["value"] == "" and undefined["reason"] == "no synthetic images"
    assert {row["group"] for row in rows if row["metric"] == "auc"} >= {"overall", "male"}


def test_json_holds_the_same_records(audit: Path) -> None:
    found = json.loads(made(audit, "json"))["audits"][0]
    assert len(found["records"]) == len(list(csv.DictReader(io.StringIO(made(audit, "csv")))))
    assert found["records"][0]["value"] == 0.83 and found["findings"][0]["kind"] == "presence"


def test_markdown_escapes_names_and_keeps_tables_whole(audit: Path) -> None:
    text = made(spoilt(audit), "markdown")
    assert "<script" not in text and "&lt;script" in text and '=cmd()\\|"x"!A1' in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables and all(line.replace("\\|", "").count("|") == 5 for line in tables)
    assert "83 % [75 %, 91 %]" in text and "## What limits this audit" in text


def test_a_refused_share_is_in_no_format(audit: Path) -> None:
    result = AuditResult.load(audit)
    result.presence[0] = result.presence[0].model_copy(update={"identifiable": False, "refusal": "scores fit no mixture", "gap": None})
    result.save(audit)
    for format in FORMATS:
        text = made(audit, format)
        assert "0.747" not in text
        assert format == "model-card" or "not identifiable" in text
    assert made(audit, "html").count("not identifiable") >= 3


@pytest.mark.parametrize(("format", "task"), [("model-card", "pipeline_tag"), ("data-card", "task_categories")])
def test_cards_begin_with_the_hubs_metadata(audit: Path, format: str, task: str) -> None:
    text = made(audit, format)
    _, block, body = text.split("---\n", 2)
    metadata = yaml.safe_load(block)
    assert "text-to-image" in metadata[task] and "evenhand" in metadata["tags"]
    assert "## Findings" in body and "## Limits" in body and "<script" not in body
    if format == "model-card":
        assert metadata["model-index"][0]["results"][0]["metrics"][0] == {"type": "kid", "name": "Kernel distance (KID)", "value": 0.05}
    with pytest.raises(UserError, match="a card is of one audit; 2 are given"):
        write_report([audit, audit], audit.parent / "x.md", format)


def test_an_unknown_format_names_the_known(audit: Path) -> None:
    with pytest.raises(UserError, match=r"unknown format 'pdf'.*html, json, csv, markdown"):
        made(audit, "pdf")


def test_several_guidance_scales_are_drawn_along_the_scale(audit: Path) -> None:
    paths = []
    for scale in (3.0, 1.0):
        result = AuditResult.load(audit)
        result.synthetic = result.synthetic.model_copy(update={"guidance_scale": scale})
        paths.append(audit.parent / f"scale{scale:g}.json")
        result.save(paths[-1])
    text = write_report(paths, audit.parent / "sweep.html").read_text()
    assert "Against guidance scale" in text and "male at guidance scale 1: 0.83" in text
    assert text.index("male at guidance scale 1:") < text.index("male at guidance scale 3:")
    assert "Against guidance scale" not in write_report([audit, audit], audit.parent / "two.html").read_text()
