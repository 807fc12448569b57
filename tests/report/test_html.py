"""The page: what it says, that names in it do no harm, that it needs nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report.conftest import facts, result_of

from evenhand.audit.comparison import Comparison
from evenhand.audit.decisions import LevellingDown
from evenhand.audit.result import AuditResult
from evenhand.cohorts.cohort import CohortSchema, to_image
from evenhand.cohorts.writing import cohort_writer
from evenhand.core.errors import UserError
from evenhand.report.figures import Line, Mark, Panel, bars, dots
from evenhand.report.html import stands_out, write_report
from evenhand.report.sheet import same_noise


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


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


def test_the_error_of_the_draws_is_stated(audit: Path) -> None:
    page = " ".join(write_report([audit], audit.with_name("report.html")).read_text(encoding="utf-8").split())
    assert "in 95 % of repeats a value would move by less than 0.02 of its interval's half width, a bootstrap bound by less" in page
    assert "and a p-value near .05 by less than 0.002." in page


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


def test_a_target_that_speaks_of_one_column_of_a_pair_is_said_to(audit: Path) -> None:
    result = AuditResult.load(audit)
    table = result.presence[0].model_copy(update={"by": ["sex", "age_group"], "stated": ["sex"], "sensitivity": 0.02})
    result.model_copy(update={"presence": [table]}).save(audit)
    text = " ".join(page(audit)[0].split())
    assert "The target: sex as stated, the rest as among real images of the same sex. Total variation distance: 3.0 points. Did" in text
    assert '<th class="number">target</th>' in text and '<th class="number">real cohort</th>' not in text


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


def test_the_same_noise_before_and_after(tmp_path):
    """Two cohorts that share two of three requests: those are shown in one order, the third is not; equal cohorts show nothing."""
    results = []
    for name, seeds, shade in (("first", [1, 2, 3], 0.2), ("second", [2, 3, 4], 0.8)):
        schema = CohortSchema(name=name, modality="brain", attributes={}, conditions={}, image_size=16, image_mode="L", synthetic=True)
        with cohort_writer(tmp_path / name, schema) as writer:
            for seed in seeds:
                row = {"subject_id": str(seed), "split": "test", "prompt": "a brain", "seed": seed}
                writer.add(to_image(np.full((16, 16), shade)), row, name=f"{seed:03d}")
        result = result_of(tmp_path)
        results.append(result.model_copy(update={"synthetic": facts(tmp_path / name, 3).model_copy(update={"sha256": name})}))
    strips = same_noise(*results)
    assert [(strip.side, strip.count) for strip in strips] == [("before", 2), ("after", 2)] and strips[0].uri != strips[1].uri
    assert same_noise(results[0], results[0]) == []
    assert same_noise(result_of(tmp_path), results[0]) == []  # its cohort is not there


def test_only_a_clear_levelling_down_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What noise could have made is said too, in plain type."""
    told = [
        LevellingDown(flagged=True, clear=clear, text=text, gap_before=0.2, gap_after=0.1)
        for clear, text in ((True, "the best group fell"), (False, "the best group may have fallen"))
    ]
    monkeypatch.setattr("evenhand.report.html._before_after", lambda chapters: Comparison([], told, ""))
    paths = [tmp_path / "first.json", tmp_path / "second.json"]
    for path in paths:
        path.write_text(result_of(tmp_path).model_dump_json())
    text = write_report(paths, tmp_path / "report.html").read_text()
    assert "<p><strong>the best group fell</strong></p>" in text and "<p>the best group may have fallen</p>" in text
