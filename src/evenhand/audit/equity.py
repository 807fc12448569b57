"""Equity scaling: one number from a metric and how far subgroups lie apart. Print the worst group and the absolute gap beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from evenhand.audit.frame import SubgroupFrame, is_group
from evenhand.audit.intervals import FeatureError
from evenhand.core.errors import did_you_mean

Form = Literal["reference", "macro"]
FORMS = ("reference", "macro")

WARNINGS = (
    "The reference equity-scaled form is shown for comparison with published figures only; read the worst group and the gap beside it.",
    "It adds up the distances of all groups: the same spread over more groups gives a lower score, so two attributes do not compare.",
    "It takes noise for unfairness: groups that are all alike but small are scored as unequal.",
    "It rewards levelling down: a model that only serves its best group worse can score higher.",
    "It is not defined for a metric where lower is better: dividing it by the spread would reward unfairness.",
)
MACRO_WARNINGS = (
    "The macro equity-scaled form weighs every group alike and takes noise for unfairness where groups are small: compare groups at one n.",
    "With three groups or more it can still rise when only the best group gets worse; read the worst group and the gap beside it.",
)


def equity_scaled(overall: Any, by_group: Any, *, higher_is_better: bool, form: Form = "reference") -> float:
    """A metric scaled by how far groups lie apart.

    ``reference``: M / (1 + sum_g |M - M_g|), with M the metric overall (ES-AUC of Luo et al. 2023, "FairVision", arXiv
    2310.02492, as FairDiffusion uses it, arXiv 2412.20374). For comparison with the papers only, see ``WARNINGS``.
    ``macro``: with Mbar the mean over groups and D = mean_g |M_g - Mbar| / Mbar, it is Mbar / (1 + D) where higher is better and
    Mbar * (1 + D) where lower is. ``overall`` does not enter; the groups should be size-matched. See ``MACRO_WARNINGS``.

    Args:
        overall: the metric of all images, a number or an ``Estimate``.
        by_group: one value a group: a mapping, a sequence, a Series indexed by group or a ``SubgroupFrame``. Names that are no
            group (unknown, unspecified, NaN, -1) are left out.

    Returns:
        NaN where fewer than two groups are given, or where any group is undefined (NaN, None or infinite): a score over the others
        would praise a model for the group that could not be measured. Whoever means the others drops that group first. NaN also
        where the macro mean is 0 or less, as an unbiased kernel distance may be: there only differences mean something.

    Raises:
        ValueError: the reference form of a lower-is-better metric, an unknown form, or a frame of the other direction.
        FeatureError: a value that is not a number.

    >>> equity_scaled(0.8, {"a": 0.9, "b": 0.7}, higher_is_better=True, form="macro")
    0.7111111111111111
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r} of equity scaling; {did_you_mean(form, FORMS)}")
    if form == "reference" and not higher_is_better:
        raise ValueError(
            "the reference form of equity scaling divides by the spread: of a metric where lower is better it would reward unfairness; "
            "use form='macro'"
        )
    if isinstance(by_group, SubgroupFrame) and by_group.higher_is_better != higher_is_better:
        raise ValueError(f"higher_is_better={higher_is_better}, but the frame says {by_group.higher_is_better}; pass the frame's")
    values = _values(by_group)
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    if form == "reference":
        level = _number(overall, "overall")
        return float(level / (1 + np.abs(level - values).sum())) if math.isfinite(level) else math.nan
    mean = float(values.mean())
    if mean <= 0:
        return math.nan
    spread = float(np.abs(values - mean).mean()) / mean
    return mean / (1 + spread) if higher_is_better else mean * (1 + spread)


def _values(by_group: Any) -> np.ndarray:
    """Values of the groups, sorted, so that their order changes no digit."""
    if isinstance(by_group, SubgroupFrame):
        by_group = by_group.by_group["value"]
    if isinstance(by_group, Mapping | pd.Series):
        items = [(name, value) for name, value in by_group.items() if is_group(name)]
    else:
        items = list(enumerate(by_group))
    return np.sort(np.array([_number(value, f"group {name!r}") for name, value in items], dtype=np.float64))


def _number(value: Any, what: str) -> float:
    """A float; None, as JSON writes what is undefined, is NaN."""
    inner = getattr(value, "value", value)
    if inner is None or inner is pd.NA:
        return math.nan
    try:
        return float(inner)
    except (TypeError, ValueError):
        raise FeatureError(f"equity: the value of {what} is {inner!r}, not a number; give the metric's value") from None
