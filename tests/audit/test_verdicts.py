"""Decisions over all questions, and rules that fail an audit."""

import numpy as np
import pytest
from scipy.stats import norm

from evenhand.audit.decisions import parse_question, parse_rule
from evenhand.audit.result import Cell, GroupRow, PresenceRow, PresenceTable, QualityTable, SemanticTable
from evenhand.audit.verdicts import check_rules, decide, equal_values_p, target_p


def presence(share: float, target: float, half: float = 0.03, identifiable: bool | None = True, n_target: int = 0) -> PresenceTable:
    rows = [
        PresenceRow(group=name, n=500, value=v, low=v - half, high=v + half, raw=v, raw_low=None, raw_high=None, target=t)
        for name, v, t in (("male", share, target), ("female", 1 - share, 1 - target))
    ]
    known = identifiable is not False
    return PresenceTable(
        question="presence:sex", by=["sex"], basis="judge", method="emq", identifiable=identifiable, n=500,
        n_real=n_target, n_target=n_target,
        refusal="" if known else "scores fit no mixture", gap=abs(share - target) if known else None, raw_gap=None, rows=rows,
    )  # fmt: skip


def cell(name: str, value: float | None, half: float = 0.02) -> GroupRow:
    bounds = {} if value is None else {"value": value, "low": value - half, "high": value + half}
    return GroupRow(group=name, n=50, n_real=50, n_synthetic=50, reason="" if bounds else "no images", **bounds)


def quality(p: float | None, by: str = "race", primary: bool = True, metric: str = "kid") -> QualityTable:
    return QualityTable(
        question=f"quality:{by}", by=[by], basis="requested", metric=metric, primary=primary, encoder="net", n=50,
        overall=Cell(n=100), overall_reference=None, rows=[], gap=0.4, worst=None, p_value=p, effect=0.2,
    )  # fmt: skip


def semantic(*values: float | None) -> SemanticTable:
    return SemanticTable(
        question="semantics:tumour=yes:sex", condition="tumour", value="yes", by=["sex"], basis="requested", overall=Cell(n=100),
        overall_reference=None, rows=[cell(str(i), value) for i, value in enumerate(values)], gap=0.1, worst=None,
    )  # fmt: skip


def test_cochrans_q_by_hand() -> None:
    # two groups, standard error 0.02 / 1.96 each: z = 0.05 / (0.0102 * sqrt 2) = 3.465
    assert equal_values_p(semantic(0.9, 0.95).rows) == pytest.approx(2 * norm.sf(0.05 / (0.02 / 1.959964 * 2**0.5)), rel=1e-5)
    assert equal_values_p(semantic(0.9, 0.9).rows) == pytest.approx(1)
    assert equal_values_p(semantic(0.9, None).rows) is None


def test_cochrans_q_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    error = 0.02 / 1.959964
    p = [equal_values_p(semantic(*(0.9 + error * rng.normal(size=4))).rows) for _ in range(500)]
    assert 0.03 <= np.mean(np.array(p, dtype=float) < 0.05) <= 0.07


def test_shares_are_tested_against_their_target() -> None:
    far, near = target_p(presence(0.8, 0.5)), target_p(presence(0.51, 0.5))
    assert far is not None and far < 1e-6 and near is not None and near == pytest.approx(2 * norm.sf(0.01 * 1.959964 / 0.03), rel=1e-5)
    sampled = target_p(presence(0.6, 0.5, n_target=30))
    assert sampled is not None and sampled > 0.2  # thirty real images do not say that the target is one half
    assert target_p(presence(0.8, 0.5, identifiable=False)) is None


def test_a_presence_that_was_requested_and_judged_is_answered_by_the_judge() -> None:
    requested, shown = presence(0.5, 0.5).model_copy(update={"basis": "requested"}), presence(0.9, 0.5).model_copy(update={"shown": True})
    (decision,) = decide([requested, shown], [parse_question("presence:sex")])
    assert decision.primary and decision.gap == pytest.approx(0.4) and decision.flagged
    (outcome,) = check_rules([parse_rule("presence:sex>0.05")], [requested, shown])
    assert outcome.failed and outcome.gap == pytest.approx(0.4)
    (missing,) = decide([requested], [parse_question("quality:race")])[-1:]
    assert missing.question == "quality:race" and missing.p_value is None


def test_a_group_at_the_edge_or_without_a_spread_neither_hides_nor_makes_a_gap() -> None:
    edge = cell("edge", 1.0).model_copy(update={"low": 0.9, "high": 1.0})  # all its error lies below: 0.1 / 1.96
    low = cell("low", 0.8, 0.05)
    both = equal_values_p([edge, low])
    assert both == pytest.approx(2 * norm.sf(0.2 * 1.959964 / (0.1**2 + 0.05**2) ** 0.5), rel=0.05)
    still = cell("still", 0.5, 0.0)
    assert equal_values_p([edge, low, still]) == both and equal_values_p([low, still]) is None


def test_a_rule_may_leave_the_condition_open_and_the_first_of_two_values_means_the_second() -> None:
    conditions = {"tumour": ["no", "yes"]}
    assert str(parse_question("semantics:tumour=no:sex", conditions=conditions)) == "semantics:tumour=yes:sex"
    assert parse_question("utility:sex").matches(parse_question("utility:tumour=yes:sex"))
    assert not parse_question("utility:sex").matches(parse_question("utility:tumour=yes:age"))


def test_declared_questions_are_adjusted_apart_from_the_rest() -> None:
    tables = [presence(0.8, 0.5), quality(0.03), quality(0.04, "sex"), quality(0.001, primary=False), quality(None, "age"),
              quality(0.9, metric="fid"), semantic(0.9, 0.9)]  # fmt: skip
    found = {decision.question: decision for decision in decide(tables, [parse_question("quality:race")])}
    assert list(found) == ["presence:sex", "quality:race", "quality:sex", "semantics:tumour=yes:sex"]
    assert found["quality:race"].primary and found["quality:race"].p_adjusted == 0.03 and found["quality:race"].flagged
    (untested,) = decide([quality(None)], [parse_question("quality:race")])
    assert untested.primary and untested.p_value is None and not untested.flagged
    others = found["quality:sex"]
    assert others.adjustment == "benjamini-hochberg" and others.p_adjusted == pytest.approx(0.06) and not others.flagged


def test_rules_fail_on_a_gap_and_on_one_that_is_not_known() -> None:
    rules = [parse_rule(text) for text in ("presence:sex>0.05", "presence:sex>0.5", "quality:age>1")]
    broken, held, absent = check_rules(rules, [presence(0.8, 0.5)])
    assert broken.failed and broken.text == "presence:sex>0.05: the gap is 0.3" and not held.failed
    assert absent.failed and "no answer to quality:age" in absent.text
    (refused,) = check_rules(rules[:1], [presence(0.8, 0.5, identifiable=False)])
    assert refused.failed and refused.text == "presence:sex>0.05: the gap is not known (scores fit no mixture)"
