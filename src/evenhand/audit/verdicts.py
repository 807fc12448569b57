"""From tables to decisions: which gaps stand after adjustment, and whether a bound that was set beforehand is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evenhand.audit.decisions import Question, Rule, benjamini_hochberg, holm, parse_question
from evenhand.audit.result import (
    CopyTable,
    Decision,
    PresenceTable,
    QualityTable,
    RuleOutcome,
    SemanticTable,
    UtilityTable,
    number,
)

ALPHA = 0.05
Table = PresenceTable | QualityTable | SemanticTable | UtilityTable | CopyTable


def decide(tables: Sequence[Table], primary: Sequence[Question]) -> list[Decision]:
    """One decision a question that can be tested: declared ones adjusted by Holm among themselves, the rest by Benjamini-Hochberg.

    Presence is tested against its target, quality by ``quality_gap``, prompt fidelity by ``fidelity_gap``, utility and memorisation for
    equal values in all groups.
    """
    asked = decisive(tables)
    p_values = np.array([math.nan if table.p_value is None else table.p_value for table in asked])
    declared = np.array([any(question.matches(parse_question(table.question)) for question in primary) for table in asked], dtype=bool)
    adjusted = np.full(len(asked), math.nan)
    adjusted[declared] = holm(p_values[declared])
    adjusted[~declared] = benjamini_hochberg(p_values[~declared])
    found = [
        Decision(
            question=table.question, primary=bool(first), gap=table.gap, effect=getattr(table, "effect", None), p_value=number(p),
            p_adjusted=number(q), adjustment="holm" if first else "benjamini-hochberg", flagged=bool(q < ALPHA),
        )
        for table, first, p, q in zip(asked, declared, p_values, adjusted, strict=True)
        if first or math.isfinite(p)
    ]  # fmt: skip
    # What was declared is answered, if only by saying that it cannot be tested.
    missing = [question for question in primary if not any(question.matches(parse_question(table.question)) for table in asked)]
    return found + [
        Decision(
            question=str(question), primary=True, gap=None, effect=None, p_value=None, p_adjusted=None, adjustment="holm", flagged=False
        )
        for question in missing
    ]


def decisive(tables: Sequence[Table]) -> list[Table]:
    """The tables that answer questions, one a question: the primary of several metrics and encoders, and of a presence that was
    requested and also judged the judge's, since what was asked for is not yet shown.
    """
    judged = {table.question for table in tables if isinstance(table, PresenceTable) and table.shown}

    def answers(table: Table) -> bool:
        if isinstance(table, PresenceTable):
            return table.shown or table.question not in judged
        return table.primary and table.metric == "kid" if isinstance(table, QualityTable) else True

    return [table for table in tables if answers(table)]


def check_rules(rules: Sequence[Rule], tables: Sequence[Table]) -> list[RuleOutcome]:
    """Whether an audit breaks each rule; a gap, or a bound of it, that is not known breaks it too, and the text says why."""
    found = []
    for rule in rules:
        table = _widest([table for table in decisive(tables) if rule.question.matches(parse_question(table.question))], rule)
        bounds = (None,) * 3 if table is None else (table.gap, table.gap_low, table.gap_high)
        broken = rule.fails(*bounds)
        if table is None:
            text = f"{rule}: this audit has no answer to {rule.question}"
        elif table.gap is None:
            why = table.refusal if isinstance(table, PresenceTable) and table.refusal else "fewer than two groups have a value"
            text = f"{rule}: the gap is not known ({why})"
        elif broken is None:
            text = f"{rule}: the gap is {table.gap:.4g}, and too few images tell how sure that is"
        else:
            span = "" if table.gap_low is None or table.gap_high is None else f" [{table.gap_low:.4g}, {table.gap_high:.4g}]"
            text = f"{rule}: the gap is {table.gap:.4g}{span}, {_what_counts(rule)}"
        found.append(
            RuleOutcome(rule=str(rule), gap=bounds[0], gap_low=bounds[1], gap_high=bounds[2], failed=broken is not False, text=text)
        )
    return found


def _what_counts(rule: Rule) -> str:
    return "and the estimate counts" if rule.point else f"and the {'upper' if rule.passes_if_small else 'lower'} bound counts"


def _widest(tables: list[Table], rule: Rule) -> Table | None:
    """Of the tables that a rule speaks of the one furthest on its failing side; one that is not known first, as it does not hold."""

    def size(table: Table) -> float:
        found = table.gap if rule.point else table.gap_high if rule.passes_if_small else table.gap_low
        return math.inf if found is None else found

    return max(tables, key=size, default=None)
