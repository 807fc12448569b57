"""Presence: which share of images shows each subgroup, and how far that is from a target mix."""

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
        predicted: a label an image, requested or read by a judge.
        groups: every group there should be; None = those that occur.
        subjects: one id an image; None = every image its own subject.

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


def mix_gap(observed: Mapping[Any, float], target: Mapping[Any, float]) -> float:
    """Total variation distance between two mixes: half the sum of absolute differences, 0 to 1.

    A group that one side does not name has a share of 0 there. NaN where a share is.

    Raises:
        FeatureError: a side whose shares are negative or do not sum to 1.

    >>> round(mix_gap({"male": 0.8, "female": 0.2}, {"male": 0.5, "female": 0.5}), 12)
    0.3
    """
    for name, mix in (("observed", observed), ("target", target)):
        shares = [float(share) for share in mix.values()]
        if any(math.isnan(share) for share in shares):
            return math.nan
        if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-3:
            raise FeatureError(f"{name} mix: shares must be 0 or more and sum to 1, not to {sum(shares):g}")
    keys = [*observed, *(key for key in target if key not in observed)]
    return 0.5 * sum(abs(float(observed.get(key, 0.0)) - float(target.get(key, 0.0))) for key in keys)
