"""The page: what it says, that names in it do no harm, that it needs nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from evenhand.audit.result import (
    AuditResult,
    Cell,
    CohortFacts,
    EncoderFacts,
    Finding,
    GroupRow,
    JudgeFacts,
    PresenceRow,
    PresenceTable,
    QualityTable,
    SemanticTable,
)
from evenhand.cohorts.cohort import Cohort, CohortSchema, to_image
from evenhand.cohorts.writing import cohort_writer
from evenhand.core.errors import UserError
from evenhand.report.figures import Line, Mark, Panel, bars, dots
from evenhand.report.html import stands_out, write_report

EVIL = "<script>alert(1)</script>"
NAMES = ["male", EVIL, "=cmd()|' /C calc'!A0", "$x_1$ --> & \"quoted\""]


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def write_cohort(path: Path, n: int) -> Cohort:
    schema = CohortSchema(name=path.name, modality="brain", attributes={"sex": NAMES}, conditions={}, image_size=16, image_mode="L")
    with cohort_writer(path, schema) as writer:
        for i in range(n):
            row = {"subject_id": str(i), "split": "test", "prompt": "", "sex": NAMES[i % 2]}
            writer.add(to_image(np.full((16, 16), i / n)), row, name=f"{i:03d}")
    return Cohort.load(path)


def facts(path: Path, n: int) -> CohortFacts:
    return CohortFacts(
        path=str(path), name=path.name, modality="brain", n=n, subjects=n, sha256="0" * 64, synthetic=True, source=EVIL,
        licence="CC0", model_sha256=None, image_size=16, made_at=None,
    )  # fmt: skip


def group(name: str, value: float | None, reference: Cell | None = None) -> GroupRow:
    if value is None:
        return GroupRow(group=name, n=0, n_real=0, n_synthetic=0, reason="no synthetic images", reference=reference)
    return GroupRow(group=name, n=30, value=value, low=value - 0.01, high=value + 0.01, n_real=30, n_synthetic=30, reference=reference)


def result_of(root: Path) -> AuditResult:
    cell, floor = Cell(n=60, value=0.05, low=0.04, high=0.06), Cell(n=60, value=0.0, low=-0.01, high=0.01)
    shares = [(0.83, 0.8), (0.17, 0.2), (0.0, 0.0)]
    presence = PresenceTable(
        question="presence:sex", by=["sex"], basis="judge", n=60, n_real=60, gap=0.03, raw_gap=0.03,
        method="emq", identifiable=True, n_calibration=40,
        rows=[
            PresenceRow(
                group=g, n=60, value=a, low=a * 0.9, high=min(1, a * 1.1), raw=a, raw_low=a * 0.9, raw_high=min(1, a * 1.1), target=b
            )
            for g, (a, b) in zip(NAMES, shares, strict=False)
        ],
    )  # fmt: skip
    quality = QualityTable(
        question="quality:sex", by=["sex"], basis="judge", metric="kid", primary=True, encoder="net", n=30, overall=cell,
        overall_reference=floor, rows=[group("male", 0.02, floor), group(EVIL, 0.09, floor), group(NAMES[2], None)], gap=0.07, worst=EVIL,
    )  # fmt: skip
    semantic = SemanticTable(
        question="semantics:tumour=yes:sex", condition="tumour", value="yes", by=["sex"], basis="judge", overall=cell,
        overall_reference=None,
        rows=[group("male", 0.9, floor), group(NAMES[3], 0.895), group(EVIL, None)], gap=0.005, worst=NAMES[3],
    )  # fmt: skip
    return AuditResult(
        real=facts(root / "real", 10), synthetic=facts(root / "generated", 12), real_rows="all",
        n={"real": 10, "real_compared": 10, "synthetic": 12}, seeds={"audit": 0}, settings={"out": EVIL, "judge": None},
        judges=[JudgeFacts(path="p", target="sex", groups=NAMES, auc=None, sha256="a" * 64, subjects_sha256="b", trained_here=True)],
        encoders=[EncoderFacts(path="p", name=EVIL, dim=8, sha256="c" * 64, features_real=10, features_synthetic=12)],
        presence=[presence], semantics=[semantic],
        quality=[quality, quality.model_copy(update={"metric": "fid", "overall_reference": None})],
        findings=[Finding(question="presence:sex", kind="presence", text=f"Presence: 83 % {EVIL} [80, 86]"),
                  Finding(question="caveat", kind="caveat", text="A raw count.")],
        provenance={"made_at": "2026-01-01", "versions": {"torch": "2"}},
    )  # fmt: skip


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    tables = []
    for side, name, n in (("real", "real", 10), ("synthetic", "generated", 12)):
        table = write_cohort(tmp_path / name, n).table
        tables.append(pd.DataFrame({"side": side, "image": table["image"], "subject_id": table["subject_id"], "group.sex": table["sex"]}))
    pd.concat(tables, ignore_index=True).to_parquet(tmp_path / "audit.parquet")
    result_of(tmp_path).save(tmp_path / "audit.json")
    return tmp_path / "audit.json"


def page(audit: Path) -> tuple[str, Page]:
    text = write_report([audit], audit.parent / "report.html").read_text()
    return text, Page(text)


def test_findings_come_first_then_evidence_then_caveats(audit: Path) -> None:
    text, _ = page(audit)
    parts = ("Presence: 83 %", "Presence: who is", "Quality: how near", "Semantics:", "beside real", "A raw count.")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "83 % [75, 91]" in text and "+3 points" in text and "undefined: no synthetic images" in text
    assert "0.090 [0.080, 0.100]" in text and "not known" in text


def test_the_page_stands_alone(audit: Path) -> None:
    _, found = page(audit)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "base"}
    for tag, attributes in found.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/png;base64,", "#"))


def test_names_of_groups_do_no_harm(audit: Path) -> None:
    text, found = page(audit)
    assert "<script" not in text and "alert(1)" in text
    assert all(tag != "script" for tag, _ in found.tags)
    assert "=cmd()|" in text and "$x_1$" in text


def test_figures_have_text_alternatives_and_ids_of_their_own(audit: Path) -> None:
    text, found = page(audit)
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        spoken = [child.text for child in tree if child.tag.endswith(("title", "desc"))]
        assert tree.get("role") == "img" and len(spoken) == 2 and "generated" in spoken[1]
        names = {element.get("id") for element in tree.iter()}
        assert set(tree.get("aria-labelledby").split()) <= names
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")


def test_images_are_shown_by_group_and_their_loss_is_said(audit: Path) -> None:
    _, found = page(audit)
    assert sum(tag == "img" for tag, _ in found.tags) == 4  # two groups with images, two sides
    (audit.parent / "real" / "cohort.json").unlink()
    text, found = page(audit)
    assert sum(tag == "img" for tag, _ in found.tags) == 2 and "the cohort is no longer at" in text
    audit.with_suffix(".parquet").unlink()
    text, found = page(audit)
    assert sum(tag == "img" for tag, _ in found.tags) == 0 and "no images can be shown" in text


def test_several_audits_stand_side_by_side(audit: Path) -> None:
    text = write_report([audit, audit], audit.parent / "both.html").read_text()
    assert "2 generated cohorts side by side" in text and "Presence gap by sex (judge)" in text
    assert "3.0 points" in text and text.count("<h2>Findings</h2>") == 2


def test_the_page_is_the_same_every_time(audit: Path) -> None:
    assert page(audit)[0] == page(audit)[0]


def test_the_worst_group_is_marked_only_where_it_stands_out(audit: Path) -> None:
    result = AuditResult.load(audit)
    assert stands_out(result.quality[0]) and not stands_out(result.semantics[0])
    text, _ = page(audit)
    assert text.count('class="mark"') == 2  # KID and FID of the one group; not the AUC


def test_undefined_estimates_are_drawn_as_such() -> None:
    lines = [Line("a", Mark(0.4, 0.3, 0.5), Mark(0.5)), Line("b", Mark(None), Mark(None))]
    for drawing in (
        bars([Panel("sex", lines)], title="t", axis="share", found="generated", reference="real"),
        dots([Panel("sex", lines)], title="t", axis="KID", found="generated", reference="real"),
    ):
        assert "sex, b: generated undefined, real undefined." in drawing
        assert ">undefined</text>" in drawing


def test_wrong_requests_are_one_line_errors(audit: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'htm'; did you mean 'html'"):
        write_report([audit], audit.parent / "x.htm", format="htm")
    with pytest.raises(UserError, match=r"name an audit\.json"):
        write_report([], audit.parent / "x.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report([audit], audit.parent)
    with pytest.raises(UserError, match="no such file"):
        write_report([audit.parent / "gone.json"], audit.parent / "x.html")
