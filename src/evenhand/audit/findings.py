"""What the tables say, in plain sentences: headlines first, then what limits them."""

from __future__ import annotations

from collections.abc import Sequence

from evenhand.audit.result import (
    CohortFacts,
    EncoderFacts,
    Finding,
    GroupRow,
    JudgeFacts,
    PresenceTable,
    QualityTable,
    SemanticTable,
)

VISIBLE_AUC = 0.7
_BASIS = {"requested": "as requested", "judge": "by the judge's count", "mixed": "as requested, else by the judge's count"}


def headline_findings(presence: list[PresenceTable], quality: list[QualityTable], semantics: list[SemanticTable]) -> list[Finding]:
    """One sentence a question about single columns; intersections speak only where they are the worst."""
    found = [presence_finding(table) for table in presence if len(table.by) == 1]
    found += [quality_finding(table) for table in quality if len(table.by) == 1 and table.metric == "kid" and table.primary]
    found += [semantic_finding(table) for table in semantics if len(table.by) == 1]
    return found


def presence_finding(table: PresenceTable) -> Finding:
    """``83 % male [80, 86], real cohort 80 %: gap 3 points``."""
    name = table.by[0]
    shown = [row for row in table.rows if row.raw is not None and row.target is not None]
    if not shown or table.gap is None:
        reason = next((row.reason for row in table.rows if row.reason), "no shares")
        return Finding(question=table.question, kind="presence", text=f"Presence by {name}: undefined ({reason}).")
    row = max(shown, key=lambda row: (round(abs((row.raw or 0) - (row.target or 0)), 9), row.target or 0))
    assert row.raw is not None and row.low is not None and row.high is not None and row.target is not None
    text = (
        f"Presence by {name}: {percent(row.raw)} {row.group} [{100 * row.low:.0f}, {100 * row.high:.0f}] {_BASIS[table.basis]}, "
        f"real cohort {percent(row.target)}: gap {points(table.gap)}."
    )
    return Finding(question=table.question, kind="presence", text=text)


def quality_finding(table: QualityTable) -> Finding:
    """Which group lies furthest from its own real images, and whether the intervals can tell."""
    name = table.by[0]
    shown = [row for row in table.rows if row.value is not None]
    if len(shown) < 2:
        reason = next((f"{row.group}: {row.reason}" for row in table.rows if row.reason), "fewer than two groups")
        text = f"Quality by {name}: fewer than two groups can be measured ({reason})."
        return Finding(question=table.question, kind="quality", text=text)
    worst, best = max(shown, key=_value), min(shown, key=_value)
    apart = worst.low is not None and best.high is not None and worst.low > best.high
    verdict = "their 95 % intervals do not overlap" if apart else "their 95 % intervals overlap, so no gap is shown"
    text = (
        f"Quality by {name}: {worst.group} lies furthest from its real images (KID {interval(worst)}), {best.group} nearest "
        f"({interval(best)}); {verdict}."
    )
    return Finding(question=table.question, kind="quality", text=text)


def semantic_finding(table: SemanticTable) -> Finding:
    """How well images show the condition asked for, and for whom least."""
    label = f"{table.condition} = {table.value}"
    if table.overall.value is None:
        text = f"Condition {label}, by {table.by[0]}: undefined ({table.overall.reason})."
        return Finding(question=table.question, kind="semantics", text=text)
    text = f"Condition {label}: the judge finds the requested condition with AUC {interval(table.overall)}"
    shown = [row for row in table.rows if row.value is not None]
    if len(shown) > 1:
        worst = min(shown, key=_value)
        text += f"; by {table.by[0]} least for {worst.group} ({interval(worst)}), gap {table.gap:.2f}"
    return Finding(question=table.question, kind="semantics", text=text + ".")


def caveats(
    real: CohortFacts,
    synthetic: CohortFacts,
    real_rows: str,
    n_real: int,
    judges: Sequence[JudgeFacts],
    encoders: Sequence[EncoderFacts],
    presence: Sequence[PresenceTable],
    unjudged: dict[str, str],
) -> list[Finding]:
    """What limits this audit, each where it applies."""
    notes = []
    if any(table.basis in ("judge", "mixed") for table in presence):
        notes.append(
            "Presence by a judge is a raw count: its errors are not corrected, and pull shares towards the groups it confuses. "
            "A judge sees generated images it was not made for."
        )
    for judge in judges:
        if judge.auc is None:
            notes.append(f"The judge of {judge.target} has no held-out AUC: how well it reads real images is not known.")
        elif judge.auc < VISIBLE_AUC:
            seen = f"reaches AUC {judge.auc:.2f} on held-out real images"
            notes.append(f"The judge of {judge.target} {seen}: pixels hardly tell what it reads.")
    notes += [f"{column}: {reason}." for column, reason in unjudged.items()]
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
    notes.append("Intervals hold one question at a time; of many groups, some will stand out by chance.")
    return [Finding(question="caveat", kind="caveat", text=note) for note in notes]


def interval(cell: object) -> str:
    """``0.0123 [0.0101, 0.0150]``."""
    value, low, high = (getattr(cell, name) for name in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{figure(value)} [{figure(low)}, {figure(high)}]" if low is not None and high is not None else figure(value)


def figure(value: float) -> str:
    """Three significant digits, no exponent where none is needed."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.2f}" if 0.095 <= abs(value) < 1 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def points(gap: float) -> str:
    """A difference of shares in percentage points."""
    whole = f"{100 * gap:.0f}"
    return f"{whole} point" if whole == "1" else f"{whole} points"


def _value(row: GroupRow) -> float:
    return row.value if row.value is not None else 0.0
