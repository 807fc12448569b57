"""Mixes of groups: shares as counted, and how far two mixes lie apart."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evenhand.audit.frame import as_labels
from evenhand.audit.intervals import FeatureError, share_interval, subject_codes
from evenhand.core.errors import UserError


@dataclass(frozen=True)
class RawPresence:
    """Shares as counted, not corrected for a classifier's errors.

    ``by_group`` is indexed by group with the columns n (images counted, of all groups), raw, low, high and reason.
    """

    by_group: pd.DataFrame
    n: int

    @property
    def mix(self) -> dict[Hashable, float]:
        """Group -> share."""
        return dict(self.by_group["raw"])


def raw_presence(predicted: Any, groups: Sequence[Any] | None = None, subjects: Any = None) -> RawPresence:
    """Share of each group among labels (n,), with Wilson's 95 % interval at the effective number of subjects.

    Labels that are no group (unknown, unspecified, NaN, -1) are not counted. A group that nobody has keeps its row: its share is a
    true 0. Where nothing can be counted at all the shares are NaN, with a reason.

    Args:
        predicted: one label per image, requested or read by a judge.
        groups: every group there should be; None = those that occur.
        subjects: one id per image; None = every image its own subject.

    Raises:
        UserError: a label that ``groups`` lacks.
    """
    series = predicted if groups is None else pd.Series(np.asarray(predicted, dtype=object))
    codes, found = as_labels(series)
    names = found if groups is None else list(groups)
    strange = [name for name in found if name not in names]
    if strange:
        raise UserError(f"presence: label {strange[0]!r} is not among the groups {', '.join(map(str, names))}; name every group")
    ids = subject_codes(subjects, len(codes))
    counted = codes >= 0
    n = int(counted.sum())
    rows = []
    for name in names:
        if n == 0:
            rows.append((0, math.nan, math.nan, math.nan, "no image has a known label"))
            continue
        hits = codes[counted] == (found.index(name) if name in found else -2)
        rows.append((n, *share_interval(hits, subject_codes(ids[counted], n)), ""))
    frame = pd.DataFrame(rows, index=pd.Index(names, name="group"), columns=["n", "raw", "low", "high", "reason"])
    return RawPresence(frame, n)


def mix_gap(observed: Any, target: Any) -> float:
    """Total variation distance between two mixes: half the sum of absolute differences, 0 to 1.

    Args:
        observed, target: group -> share (a mapping or a pandas Series), or both as shares (K,) in one order. A group that one mapping
            does not name has a share of 0 there. NaN where a share is.

    Raises:
        FeatureError: a side whose shares are negative or do not sum to 1, or arrays of different length.

    >>> round(mix_gap({"male": 0.8, "female": 0.2}, {"male": 0.5, "female": 0.5}), 12)
    0.3
    """
    sides = [_named_shares(name, mix) for name, mix in (("observed", observed), ("target", target))]
    named = [isinstance(mix, Mapping | pd.Series) for mix in (observed, target)]
    if named[0] != named[1] or (not named[0] and len(sides[0]) != len(sides[1])):
        raise FeatureError("the two mixes do not name the same groups; give two mappings, or two arrays of one length")
    if any(math.isnan(share) for side in sides for share in side.values()):
        return math.nan
    keys = [*sides[0], *(key for key in sides[1] if key not in sides[0])]
    apart = sum(abs(sides[0].get(key, 0.0) - sides[1].get(key, 0.0)) for key in keys)
    return min(1.0, 0.5 * apart)


def _named_shares(name: str, mix: Any) -> dict[Any, float]:
    items = mix.items() if isinstance(mix, Mapping | pd.Series) else enumerate(np.asarray(mix, dtype=object).ravel())
    try:
        shares = {key: math.nan if share is None else float(share) for key, share in items}
    except (TypeError, ValueError):
        raise FeatureError(f"{name} mix: a share is not a number") from None
    values = list(shares.values())
    if not any(math.isnan(share) for share in values) and (not values or min(values) < 0 or abs(sum(values) - 1) > 1e-3):
        raise FeatureError(f"{name} mix: shares must be 0 or more and sum to 1, not to {sum(values):g}")
    return shares
