"""What the tables say, in plain sentences: headlines first, then what limits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from evenhand.audit.identifiability import MIN_AUC
from evenhand.audit.result import (
    CohortFacts,
    CopyTable,
    Decision,
    EncoderFacts,
    Finding,
    GroupRow,
    JudgeFacts,
    Memorization,
    PresenceTable,
    QualityTable,
    SemanticRow,
    SemanticTable,
    UtilityTable,
)

_Asked = TypeVar("_Asked", SemanticTable, UtilityTable)
_WHITENED = ", seen once features are whitened"
_BASIS = {"requested": "as requested", "judge": "by the judge, corrected", "mixed": "as requested, else by the judge, corrected"}


def headline_findings(
    tables: Sequence[object], decisions: Sequence[Decision] = (), memorization: Memorization | None = None
) -> list[Finding]:
    """One sentence a question about single columns, and about intersections where a gap stands; all else is in the tables."""
    verdicts = {decision.question: decision for decision in decisions}
    found = [presence_finding(table) for table in tables if isinstance(table, PresenceTable) and len(table.by) == 1]
    for table in tables:
        if isinstance(table, QualityTable) and table.metric == "kid" and table.primary:
            verdict = verdicts.get(table.question)
            if len(table.by) == 1 or (verdict is not None and verdict.flagged):
                found.append(quality_finding(table, verdict))
    found += [semantic_finding(part) for part in _by_condition([table for table in tables if isinstance(table, SemanticTable)])]
    found += [utility_finding(part) for part in _by_condition([table for table in tables if isinstance(table, UtilityTable)])]
    return found + ([copy_finding(memorization)] if memorization and memorization.tables else [])


def _by_condition(tables: list[_Asked]) -> list[list[_Asked]]:
    """Tables of single columns, those of one condition and value together."""
    single = [table for table in tables if len(table.by) == 1]
    asked = dict.fromkeys((table.condition, table.value) for table in single)
    return [[table for table in single if (table.condition, table.value) == key] for key in asked]


def presence_finding(table: PresenceTable) -> Finding:
    """``83 % male [80, 86], target 50 %: gap 33 points``, or why that cannot be known."""
    name = table.by[0]
    shown = [row for row in table.rows if row.value is not None and row.target is not None]
    if table.identifiable is False:
        text = f"Presence by {name}: not identifiable, so no share is given: {table.refusal}."
        return Finding(question=table.question, kind="presence", text=text)
    if not shown or table.gap is None:
        reason = next((row.reason for row in table.rows if row.reason), "no shares")
        return Finding(question=table.question, kind="presence", text=f"Presence by {name}: undefined ({reason}).")
    row = max(shown, key=lambda row: (round(abs((row.value or 0) - (row.target or 0)), 9), row.target or 0))
    assert row.value is not None and row.target is not None
    name_and_bounds = share_span(row).replace(" %", f" % {row.group}", 1)
    wanted = "target" if table.n_real == 0 else "real cohort"
    text = (
        f"Presence by {name}: {name_and_bounds} {_BASIS[table.basis]}"
        f"{', with labels of a hand' if table.method == 'labelled' else ''}, {wanted} {percent(row.target)}: gap {points(table.gap)}."
    )
    return Finding(question=table.question, kind="presence", text=text)


def quality_finding(table: QualityTable, verdict: Decision | None) -> Finding:
    """Which group lies furthest from its own real images, and whether the test can tell."""
    name = " x ".join(table.by)
    shown = [row for row in table.rows if row.value is not None]
    if len(shown) < 2 or verdict is None or verdict.p_adjusted is None:
        reason = table.untested or next((f"{row.group}: {row.reason}" for row in table.rows if row.reason), "too few images")
        text = f"Quality by {name}: fewer than two groups can be {'measured' if len(shown) < 2 else 'tested'} ({reason})."
        return Finding(question=table.question, kind="quality", text=text)
    tested = f"{'declared test' if verdict.primary else 'adjusted'} p = {probability(verdict.p_adjusted)}"
    cells = ", ".join(f"{row.group} {interval(row)}" for row in shown[:4])
    told = {group: value for group, value in table.tested.items() if value is not None}
    if verdict.flagged and table.worst in told:
        best = min(told, key=lambda group: told[group])
        text = (
            f"Quality by {name}: images of {table.worst} lie further from real ones than those of {best} ({figure(told[table.worst])} "
            f"against {figure(told[best])} in units of the real images' own spread{_WHITENED if table.view == 'whitened' else ''}); "
            f"{tested} (KID {cells})."
        )
    else:
        text = f"Quality by {name}: no gap is shown, {tested} (KID {cells})."
    return Finding(question=table.question, kind="quality", text=text)


def semantic_finding(tables: list[SemanticTable]) -> Finding:
    """How well images show one condition that was asked for, and in which group of each column they fall most behind real images."""
    first = tables[0]
    label = f"{first.condition} = {first.value}"
    if first.overall.value is None:
        text = f"Condition {label}: undefined ({first.overall.reason})."
        return Finding(question=first.question, kind="semantics", text=text)
    text = f"Condition {label}: the judge finds it where it was asked for with AUC {auc(first.overall)}"
    for table in tables:
        worst = _outstanding(table)
        if worst is not None and isinstance(worst, SemanticRow) and worst.reference is not None:
            text += f"; by {table.by[0]} lowest against real images for {worst.group} ({auc(worst)}, real {auc(worst.reference)})"
        elif table.gap is not None:
            text += f"; by {table.by[0]} the same difference to real images in all groups"
    return Finding(question=first.question, kind="semantics", text=text + ".")


def utility_finding(tables: list[UtilityTable]) -> Finding:
    """What a classifier loses by training on generated images instead of real ones, and which group loses most."""
    first = tables[0]
    label = f"{first.condition} = {first.value}"
    if first.overall.value is None:
        return Finding(question=first.question, kind="utility", text=f"Utility for {label}: undefined ({first.overall.reason}).")
    text = (
        f"Utility for {label}: trained on {first.n_train_synthetic} generated instead of {first.n_train_real} real images, a classifier's "
        f"AUC on held-out real images differs by {signed(first.overall)}"
    )
    for table in tables:
        worst = _outstanding(table)
        text += f"; by {table.by[0]} worst for {worst.group} ({signed(worst)})" if worst else ""
    return Finding(question=first.question, kind="utility", text=text + ".")


def copy_finding(memorization: Memorization) -> Finding:
    """Which share of the images are copies of training images, and in which group most."""
    first = memorization.tables[0]
    overall = first.overall
    if overall.value is None:
        return Finding(question=first.question, kind="memorization", text=f"Copies of training images: undefined ({overall.reason}).")
    text = f"Copies of training images: {share_span(overall)} of the generated images, beyond what chance explains"
    for table in (table for table in memorization.tables if len(table.by) == 1):
        worst = _outstanding(table)
        text += f"; by {table.by[0]} most for {worst.group} ({share_span(worst)})" if worst else ""
    return Finding(question=first.question, kind="memorization", text=text + ".")


def _outstanding(table: SemanticTable | UtilityTable | CopyTable) -> GroupRow | None:
    """The worst group, where groups differ by more than the digits shown."""
    if table.gap is None or table.gap < 0.005:
        return None
    return next((row for row in table.rows if row.group == table.worst), None)


def share_span(cell: object) -> str:
    """``83 % [80, 86]``, with a decimal where whole percents would say ``0 % [0, 0]``."""
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    if low is None or high is None:
        return percent(value)
    places = 1 if high < 0.01 or low > 0.99 else 0
    return f"{100 * value:.{places}f} % [{100 * low:.{places}f}, {100 * high:.{places}f}]"


def caveats(
    real: CohortFacts,
    synthetic: CohortFacts,
    real_rows: str,
    n_real: int,
    judges: Sequence[JudgeFacts],
    encoders: Sequence[EncoderFacts],
    presence: Sequence[PresenceTable],
    unjudged: dict[str, str],
    refused: Sequence[str] = (),
) -> list[Finding]:
    """What limits this audit, each where it applies."""
    notes = []
    if any(table.basis in ("judge", "mixed") for table in presence):
        notes.append(
            "Presence by a judge is corrected for its errors on held-out real images. That holds as far as images of a group look alike "
            "on both sides: scores and features are tested for it, yet a difference that moves neither cannot be seen."
        )
    for judge in judges:
        if judge.guided:
            notes.append(f"The judge of {judge.target} guided the model's alignment (--force-judge): what it reads here is no evidence.")
        if judge.auc is None:
            notes.append(f"The judge of {judge.target} has no held-out AUC: how well it reads real images is not known.")
        elif judge.auc < MIN_AUC:
            seen = f"reaches AUC {judge.auc:.2f} on held-out real images"
            notes.append(f"The judge of {judge.target} {seen}: pixels hardly tell what it reads.")
    notes += [f"{column}: {reason}." for column, reason in unjudged.items()]
    notes += [f"{text[0].upper()}{text[1:]}." for text in refused]
    if real_rows == "all":
        notes.append(
            f"Too few real images are held out: all {n_real} were compared, those that trained the judges among them. "
            "Distances and AUC on real images are flattered."
        )
    notes.append(
        "The Fréchet distance grows as n falls: by group it is shown at one common n, and only there do groups compare. "
        "The kernel distance (KID) does not, and is the primary measure."
    )
    if len(encoders) == 1:
        notes.append(f"One encoder ({encoders[0].name}) made all distances; another may rank groups otherwise.")
    if real.image_size != synthetic.image_size:
        notes.append(f"Image sizes differ (real {real.image_size}, generated {synthetic.image_size}): resizing may enter the distances.")
    if not synthetic.synthetic:
        notes.append(f"The cohort {synthetic.name} does not call itself synthetic: two real cohorts may have been compared.")
    notes.append(
        "Intervals hold one question at a time. Decisions count all that were asked: questions declared beforehand (--primary) are "
        "adjusted by Holm among themselves, the others by Benjamini-Hochberg."
    )
    return [Finding(question="caveat", kind="caveat", text=note) for note in notes]


def interval(cell: object) -> str:
    """``0.012 [0.010, 0.015]``."""
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{figure(value)} [{figure(low)}, {figure(high)}]" if low is not None and high is not None else figure(value)


def auc(cell: object) -> str:
    """``0.91 [0.88, 0.94]``."""
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    places = 3 if 0.99 <= value < 1 else 2  # 0.998 is not 1.00
    if low is None or high is None:
        return f"{value:.{places}f}"
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def signed(cell: object) -> str:
    """``-0.04 [-0.08, +0.01]``."""
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def figure(value: float) -> str:
    """Two or three digits, no more than five decimals."""
    size = abs(value)
    if 0.00005 <= size < 0.01:
        return f"{value:.2g}"
    text = f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 0.1 else f"{value:.3f}"
    return text.replace("-0.000", "0.000")


def probability(p: float | None) -> str:
    """``0.03``, ``0.004``, ``below 0.001``."""
    if p is None:
        return "not tested"
    return "below 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.01 else f"{p:.2f}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def points(gap: float) -> str:
    """A difference of shares in percentage points; below 10 with a decimal, so that it agrees with rounded shares."""
    return f"{100 * gap:.0f} points" if gap >= 0.0995 else f"{100 * gap:.1f} points"


def _value(row: GroupRow) -> float:
    return row.value if row.value is not None else 0.0
