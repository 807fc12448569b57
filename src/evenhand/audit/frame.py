"""What an audit answers with: an estimate with its interval and n, and a frame of estimates by subgroup."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from evenhand.core.errors import UserError
from evenhand.core.groups import NOT_GROUPS


class FeatureError(UserError):
    """Features, scores or labels that no metric can be computed from."""


COLUMNS = ("n", "value", "low", "high", "reason")


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval and the number of images behind it; NaN where it is not defined."""

    value: float
    low: float
    high: float
    n: int

    @property
    def defined(self) -> bool:
        """Whether there is a value at all."""
        return math.isfinite(self.value)


UNDEFINED = Estimate(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class SubgroupFrame:
    """Estimates overall and by group.

    ``by_group`` is indexed by group, with the columns n, value, low, high and reason. A group that has no value stays, as NaN
    with the reason why; ``reason`` is empty where there is a value.

    >>> frame = SubgroupFrame.of({"a": (Estimate(0.9, 0.8, 1.0, 50), ""), "b": (UNDEFINED, "no images")}, UNDEFINED, True)
    >>> frame.gap
    nan
    >>> frame.worst
    'a'
    """

    overall: Estimate
    by_group: pd.DataFrame
    higher_is_better: bool

    @classmethod
    def of(cls, cells: dict[Any, tuple[Estimate, str]], overall: Estimate, higher_is_better: bool, **more: list[Any]) -> SubgroupFrame:
        """Build a frame from group -> (estimate, reason); ``more`` are further columns, one value per group."""
        rows = [(cell.n, cell.value, cell.low, cell.high, reason) for cell, reason in cells.values()]
        index = pd.Index(list(cells), name="group")
        frame = pd.DataFrame(rows, index=index, columns=list(COLUMNS)).astype({"n": int, "value": float, "low": float, "high": float})
        return cls(overall, frame.assign(**more), higher_is_better)

    def clipped(self, least: float, most: float) -> SubgroupFrame:
        """The same with intervals that end where the metric does."""
        low, high = np.clip([self.overall.low, self.overall.high], least, most).tolist()
        bounds = self.by_group[["low", "high"]].clip(least, most)
        table = self.by_group.assign(low=bounds["low"], high=bounds["high"])
        return replace(self, overall=replace(self.overall, low=low, high=high), by_group=table)

    @property
    def defined(self) -> pd.DataFrame:
        """The groups that have a value."""
        return self.by_group[np.isfinite(self.by_group["value"])]

    @property
    def gap(self) -> float:
        """Largest minus smallest value over the defined groups; NaN where fewer than two are."""
        values = self.defined["value"]
        return float(values.max() - values.min()) if len(values) > 1 else math.nan

    @property
    def worst(self) -> Hashable | None:
        """The defined group with the worst value by the metric's direction; None where no group is defined."""
        values = self.defined["value"]
        if values.empty:
            return None
        return values.idxmin() if self.higher_is_better else values.idxmax()


def is_group(label: Any) -> bool:
    """Whether a label names a group: not missing, not -1, not empty, not ``unknown`` or ``unspecified``."""
    if label is None or label is pd.NaT or label is pd.NA:
        return False
    if isinstance(label, str | bytes):
        return str(label).strip().lower() not in ("", "-1", "nan", *NOT_GROUPS)
    return not (isinstance(label, int | float | np.number) and (math.isnan(label) or label == -1))


def as_labels(labels: Any) -> tuple[np.ndarray, list[Any]]:
    """Codes (n,) and the names they point to; -1 where the label is no group.

    Names are sorted; categories of a pandas categorical keep their order and stay even where no row has them.
    """
    series = labels if isinstance(labels, pd.Series) else pd.Series(_one_dimensional(labels))
    if isinstance(series.dtype, pd.CategoricalDtype):
        names = [name for name in series.cat.categories if is_group(name)]
        series = series.astype(object)
    else:
        series = series.astype(object)
        names = sorted({_plain(label) for label in series if is_group(label)}, key=lambda name: (isinstance(name, str), name))
    place = {name: code for code, name in enumerate(names)}
    codes = [place[_plain(label)] if is_group(label) else -1 for label in series]
    return np.array(codes, dtype=int), names


def _one_dimensional(labels: Any) -> Any:
    """Labels as they came, or an error: one label per image, not a row of them."""
    try:
        shape = np.shape(labels)
    except ValueError:
        shape = (len(labels), -1)
    if len(shape) != 1 and not isinstance(labels, pd.Categorical):
        raise FeatureError(f"labels have shape {shape}; give one per image, joined for an intersection ('female x old')")
    return labels


def _plain(label: Any) -> Any:
    """NumPy scalars as Python's, whole floats as integers: a column with a NaN in it must not rename its groups."""
    value = label.item() if isinstance(label, np.generic) else label
    return int(value) if isinstance(value, float) and value.is_integer() else value
