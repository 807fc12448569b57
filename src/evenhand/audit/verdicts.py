"""From tables to decisions: which gaps stand after adjustment, and whether a bound that was set beforehand is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr
from scipy.stats import chi2

from evenhand.audit.decisions import Question, Rule, benjamini_hochberg, holm, parse_question
from evenhand.audit.intervals import Z95
from evenhand.audit.result import (
    CopyTable,
    Decision,
    GroupRow,
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

    Presence is tested against its target, quality by ``quality_gap``, semantics, utility and memorisation for equal values in all groups.
    """
    asked = decisive(tables)
    p_values = np.array([math.nan if (p := p_value(table)) is None else p for table in asked])
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


def p_value(table: Table) -> float | None:
    """Probability of so large a gap were there none; None where it is not tested."""
    if isinstance(table, QualityTable):
        return table.p_value
    if isinstance(table, SemanticTable | UtilityTable | CopyTable):
        return equal_values_p(table.rows)
    return target_p(table)


def equal_values_p(rows: Sequence[GroupRow]) -> float | None:
    """Cochran's Q over groups' values, chi-square with G - 1 degrees of freedom; groups without an interval stay out.

    A value's standard error is that of its interval towards the common mean: one at the edge of what is possible has none beyond.
    """
    bounds = [(row.value, row.low, row.high) for row in rows if row.value is not None and row.low is not None and row.high is not None]
    found = np.array([bound for bound in bounds if bound[1] < bound[2]], dtype=float).reshape(-1, 3)
    if len(found) < 2:
        return None
    values, low, high = found.T
    errors = (high - low) / (2 * Z95)
    for _ in range(2):
        mean = (values / errors**2).sum() / (1 / errors**2).sum()
        towards = np.where(values > mean, values - low, high - values) / Z95
        errors = np.where(towards > 0, towards, (high - low) / (2 * Z95))
    mean = (values / errors**2).sum() / (1 / errors**2).sum()
    return float(chi2.sf((((values - mean) / errors) ** 2).sum(), len(values) - 1))


def target_p(table: PresenceTable) -> float | None:
    """Shares against their targets: the smallest two-sided p-value of a group, times the number of free shares (Bonferroni).

    A target that is a share of real images has an error of its own. What was requested is exact: it has no sampling error to test.
    """
    if table.gap is None or table.basis == "requested":
        return None
    smallest = 1.0
    for row in table.rows:
        if None in (row.value, row.low, row.high, row.target):
            continue
        assert row.value is not None and row.low is not None and row.high is not None and row.target is not None
        off = row.value - row.target
        side = row.value - row.low if off > 0 else row.high - row.value  # the bound towards the target
        error = math.hypot(side / Z95, math.sqrt(row.target * (1 - row.target) / table.n_target) if table.n_target else 0.0)
        smallest = min(smallest, float(2 * ndtr(-abs(off) / error)) if error > 0 else float(off == 0))
    return min(1.0, smallest * max(len(table.rows) - 1, 1))


def check_rules(rules: Sequence[Rule], tables: Sequence[Table]) -> list[RuleOutcome]:
    """Whether each rule's question has a gap on the failing side; a gap that is not known fails too, and says why."""
    found = []
    for rule in rules:
        table = _widest([table for table in decisive(tables) if rule.question.matches(parse_question(table.question))])
        gap = None if table is None else table.gap
        broken = rule.holds(gap)
        if table is None:
            text = f"{rule}: this audit has no answer to {rule.question}"
        elif broken is None:
            why = table.refusal if isinstance(table, PresenceTable) and table.refusal else "fewer than two groups have a value"
            text = f"{rule}: the gap is not known ({why})"
        else:
            text = f"{rule}: the gap is {gap:.4g}"
        found.append(RuleOutcome(rule=str(rule), gap=gap, failed=broken is not False, text=text))
    return found


def _widest(tables: list[Table]) -> Table | None:
    """Of the tables that a rule speaks of the one with the largest gap; one that has none first, as it is not known to hold."""
    return max(tables, key=lambda table: math.inf if table.gap is None else table.gap, default=None)
