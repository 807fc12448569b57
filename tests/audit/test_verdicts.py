"""Decisions over all questions, and rules that fail an audit."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from evenhand.audit.decisions import parse_question, parse_rule
from evenhand.audit.frame import UNDEFINED, Estimate, SubgroupFrame
from evenhand.audit.intervals import equal_shares_p, gap_interval
from evenhand.audit.presence import Target, target_p_value
from evenhand.audit.result import Cell, PresenceRow, PresenceTable, QualityTable, SemanticTable
from evenhand.audit.verdicts import check_rules, decide


def presence(
    share: float, target: float, half: float = 0.03, identifiable: bool | None = True, target_images: float = 0
) -> PresenceTable:
    rows = [
        PresenceRow(group=name, n=500, value=v, low=v - half, high=v + half, raw=v, raw_low=None, raw_high=None, target=t)
        for name, v, t in (("male", share, target), ("female", 1 - share, 1 - target))
    ]
    known = identifiable is not False
    gap = abs(share - target)
    bounds = {"gap_low": max(gap - half, 0.0), "gap_high": gap + half, "p_value": target_p_value(rows, Target({}, effective=target_images))}
    return PresenceTable(
        question="presence:sex", by=["sex"], basis="judge", method="emq", identifiable=identifiable, n=500,
        n_real=0, refusal="" if known else "scores fit no mixture", gap=gap if known else None, raw_gap=None, rows=rows,
        **(bounds if known else {}),
    )  # fmt: skip


def frame(*cells: tuple[float, float, float]) -> SubgroupFrame:
    """Groups by value, low and high; NaN for one without images."""
    return SubgroupFrame.of({str(i): (Estimate(*cell, 50), "") for i, cell in enumerate(cells)}, UNDEFINED, True)


def about(*values: float, half: float = 0.02) -> SubgroupFrame:
    return frame(*((value, value - half, value + half) for value in values))


def quality(p: float | None, by: str = "race", primary: bool = True, metric: str = "kid") -> QualityTable:
    return QualityTable(
        question=f"quality:{by}", by=[by], basis="requested", metric=metric, primary=primary, encoder="net", n=50,
        overall=Cell(n=100), overall_reference=None, rows=[], gap=0.4, worst=None, p_value=p, effect=0.2,
    )  # fmt: skip


def semantic(p: float | None = 1.0) -> SemanticTable:
    return SemanticTable(
        question="semantics:tumour=yes:sex", condition="tumour", value="yes", by=["sex"], basis="requested", overall=Cell(n=100),
        overall_reference=None, rows=[], gap=0.1, worst=None, p_value=p,
    )  # fmt: skip


def test_cochrans_q_by_hand() -> None:
    # two groups, standard error 0.02 / 1.96 each: z = 0.05 / (0.0102 * sqrt 2) = 3.465
    assert equal_shares_p(about(0.9, 0.95)) == pytest.approx(2 * norm.sf(0.05 / (0.02 / 1.959964 * 2**0.5)), rel=1e-5)
    assert equal_shares_p(about(0.9, 0.9)) == pytest.approx(1)
    assert math.isnan(equal_shares_p(about(0.9, math.nan)))


def test_cochrans_q_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    error = 0.02 / 1.959964
    p = np.array([equal_shares_p(about(*(0.9 + error * rng.normal(size=4)))) for _ in range(500)])
    assert 0.03 <= np.mean(p < 0.05) <= 0.07


def test_a_group_at_the_edge_or_without_a_spread_neither_hides_nor_makes_a_gap() -> None:
    edge, low, still = (1.0, 0.9, 1.0), (0.8, 0.75, 0.85), (0.5, 0.5, 0.5)  # all error of the edge lies below: 0.1 / 1.96
    both = equal_shares_p(frame(edge, low))
    assert both == pytest.approx(2 * norm.sf(0.2 * 1.959964 / (0.1**2 + 0.05**2) ** 0.5), rel=0.05)
    assert equal_shares_p(frame(edge, low, still)) == both and math.isnan(equal_shares_p(frame(low, still)))


def test_the_gap_of_equal_groups_is_rarely_shown_to_exceed_0_and_a_true_one_is_within_its_bounds() -> None:
    rng, error = np.random.default_rng(1), 0.02 / 1.959964
    parity = [gap_interval(about(*(0.9 + error * rng.normal(size=8)))) for _ in range(200)]
    assert 0.01 <= np.mean([low > 0 for low, _ in parity]) <= 0.1
    apart = [gap_interval(about(*(np.array([0.9, 0.9, 0.8]) + error * rng.normal(size=3)))) for _ in range(100)]
    assert np.mean([low <= 0.1 <= high for low, high in apart]) >= 0.9
    assert all(math.isnan(bound) for bound in gap_interval(about(0.9, math.nan)))


def test_shares_are_tested_against_their_target() -> None:
    far, near = (presence(share, 0.5).p_value for share in (0.8, 0.51))
    assert far is not None and far < 1e-6 and near is not None and near == pytest.approx(2 * norm.sf(0.01 * 1.959964 / 0.03), rel=1e-5)
    sampled = presence(0.6, 0.5, target_images=30).p_value
    assert sampled is not None and sampled > 0.2  # thirty real images do not say that the target is one half


def test_of_more_than_two_shares_every_one_is_a_test() -> None:
    """Bonferroni by hand: with three groups the smallest p-value is taken three times, with two, whose shares mirror each other, once."""
    rest = {"n": 300, "raw": None, "raw_low": None, "raw_high": None, "target": 1 / 3}
    three = [PresenceRow(group=f"{v}", value=v, low=v - 0.05, high=v + 0.05, **rest) for v in (0.4, 0.3, 0.29)]
    alone = 2 * norm.sf((0.4 - 1 / 3) / 0.05 * 1.959964)
    assert target_p_value(three, Target({})) == pytest.approx(3 * alone, rel=1e-5)
    assert target_p_value(presence(0.56, 0.5).rows, Target({})) == pytest.approx(2 * norm.sf(0.06 / 0.03 * 1.959964), rel=1e-5)


def test_a_presence_that_was_requested_and_judged_is_answered_by_the_judge() -> None:
    requested, shown = presence(0.5, 0.5).model_copy(update={"basis": "requested"}), presence(0.9, 0.5).model_copy(update={"shown": True})
    (decision,) = decide([requested, shown], [parse_question("presence:sex")])
    assert decision.primary and decision.gap == pytest.approx(0.4) and decision.flagged
    (outcome,) = check_rules([parse_rule("presence:sex>0.05")], [requested, shown])
    assert outcome.failed and outcome.gap == pytest.approx(0.4)
    (missing,) = decide([requested], [parse_question("quality:race")])[-1:]
    assert missing.question == "quality:race" and missing.p_value is None


def test_a_rule_may_leave_the_condition_open_and_the_first_of_two_values_means_the_second() -> None:
    conditions = {"tumour": ["no", "yes"]}
    assert str(parse_question("semantics:tumour=no:sex", conditions=conditions)) == "semantics:tumour=yes:sex"
    assert parse_question("utility:sex").matches(parse_question("utility:tumour=yes:sex"))
    assert not parse_question("utility:sex").matches(parse_question("utility:tumour=yes:age"))


def test_declared_questions_are_adjusted_apart_from_the_rest() -> None:
    tables = [presence(0.8, 0.5), quality(0.03), quality(0.04, "sex"), quality(0.001, primary=False), quality(None, "age"),
              quality(0.9, metric="fid"), semantic()]  # fmt: skip
    found = {decision.question: decision for decision in decide(tables, [parse_question("quality:race")])}
    assert list(found) == ["presence:sex", "quality:race", "quality:sex", "semantics:tumour=yes:sex"]
    assert found["quality:race"].primary and found["quality:race"].p_adjusted == 0.03 and found["quality:race"].flagged
    (untested,) = decide([quality(None)], [parse_question("quality:race")])
    assert untested.primary and untested.p_value is None and not untested.flagged
    others = found["quality:sex"]
    assert others.adjustment == "benjamini-hochberg" and others.p_adjusted == pytest.approx(0.06) and not others.flagged


def test_rules_go_by_the_bound_that_they_need() -> None:
    bounds = (">0.05", ">0.28", ">0.28!point", "<=0.32", "<=0.34")
    texts = [*(f"presence:sex{bound}" for bound in bounds), "quality:age>1"]
    outcomes = check_rules([parse_rule(text) for text in texts], [presence(0.8, 0.5)])
    assert [outcome.failed for outcome in outcomes] == [True, False, True, True, False, True]
    assert outcomes[0].text == "presence:sex>0.05: the gap is 0.3 [0.27, 0.33], and the lower bound counts"
    assert outcomes[2].text == "presence:sex>0.28!point: the gap is 0.3 [0.27, 0.33], and the estimate counts"
    assert "and the upper bound counts" in outcomes[3].text and "no answer to quality:age" in outcomes[-1].text
    for text in ("presence:sex>0.05", "presence:sex<=0.9", "presence:sex>0.05!point"):
        (refused,) = check_rules([parse_rule(text)], [presence(0.8, 0.5, identifiable=False)])
        assert refused.failed and refused.text.endswith("the gap is not known (scores fit no mixture)")


def test_a_small_audit_proves_neither_a_fault_nor_its_absence() -> None:
    small = presence(0.56, 0.5, half=0.2)
    fault, release = check_rules([parse_rule("presence:sex>0.05"), parse_rule("presence:sex<=0.05")], [small])
    assert not fault.failed and release.failed
    boundless = small.model_copy(update={"gap_low": None, "gap_high": None})
    for text, estimate in (("presence:sex>0.01", False), ("presence:sex<=0.9", False), ("presence:sex<=0.9!point", True)):
        (outcome,) = check_rules([parse_rule(text)], [boundless])
        assert outcome.failed is not estimate and (estimate or "too few images" in outcome.text)
