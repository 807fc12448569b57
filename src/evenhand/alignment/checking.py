"""The final check of an alignment: an equivalence test by classifiers that neither guided nor selected, on seeds that nothing has seen.

That a target is not rejected says little: a small sample rejects nothing. So a target counts as reached only where the 95 % interval of
every group's share lies inside target +- tolerance (two one-sided tests; Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.correction import Correction
from evenhand.alignment.guides import Guides
from evenhand.audit.intervals import Z95
from evenhand.core.errors import UserError, did_you_mean

LEAST_IMAGES = 200
_PART = 0.5  # of the tolerance that the interval's half width may take; the estimate has the other half to be off by


@dataclass(frozen=True)
class FinalCheck:
    """Shares (C K,) of joint groups among ``images`` images, by the judges, corrected for their errors, and 95 % bounds."""

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: int

    def shows(self, target: np.ndarray, tolerance: float) -> bool:
        """Whether every group's interval lies inside the target (C K,) give or take the tolerance."""
        return bool(((target - tolerance <= self.low) & (self.high <= target + tolerance)).all())

    def facts(self, groups: Sequence[str], reached: bool) -> dict[str, Any]:
        """For ``evenhand.json``."""
        bounds = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return {
            "images": self.images, "shares": dict(zip(groups, self.shares.tolist(), strict=True)),
            "intervals": {group: list(pair) for group, pair in zip(groups, bounds, strict=True)}, "reached": reached,
        }  # fmt: skip


def load_judges(paths: Sequence[Any], guides: Guides, held_out: Guides, earlier: set[str]) -> Guides | None:
    """Judges of the guides' attributes, with groups in their order; None where none is given.

    Args:
        earlier: hashes of the classifiers that guided earlier alignments of the model.

    Raises:
        UserError: one that guided or selected, an attribute without a judge, or other groups than the guides'.
    """
    if not paths:
        return None
    judges = Guides.load(paths)
    taken = {classifier.sha256 for found in (guides, held_out) for classifier in found.all} | earlier
    for judge in judges.all:
        if judge.sha256 in taken:
            raise UserError(
                f"--judge {judge.path}: it guides this alignment, or selects its weights, or did so before; a tuned model fools its "
                "guides, so give a classifier that took no part, of other subjects"
            )
        if judge.target not in guides.by_attribute:
            raise UserError(f"--judge {judge.path}: no guide reads {judge.target!r}; {did_you_mean(judge.target, guides.by_attribute)}")
        if set(judge.groups) != set(groups := guides.groups[judge.target]):
            raise UserError(
                f"--judge {judge.path}: its groups of {judge.target} are {', '.join(judge.groups)}, those of the guides "
                f"{', '.join(groups)}; train both on cohorts of one schema"
            )
    if lacking := [attribute for attribute in guides.by_attribute if attribute not in judges.by_attribute]:
        raise UserError(f"--judge: none reads {lacking[0]}; give one for each attribute of the guides, or none at all")
    return Guides({attribute: judges.by_attribute[attribute] for attribute in guides.by_attribute}, order=guides.groups)


def images_needed(target: np.ndarray, tolerance: float, correction: Correction, left_open: float = 0.0) -> int:
    """How many images show a target (C K,) that is met, in 19 of 20 checks, as far as their number decides.

    The half width of a share's interval is then half of the tolerance, of which ``left_open`` is what no number of images changes; for
    their own part images have a quarter of the tolerance at least. Correcting the judges' errors multiplies the noise of a share by up to
    the inverse of their matrix' least singular value.
    """
    slope = float(np.linalg.svd(correction.matrix(), compute_uv=False)[-1])
    widest = float((target * (1 - target)).max())
    half = math.sqrt(max((_PART * tolerance) ** 2 - left_open**2, (_PART * tolerance / 2) ** 2))
    return max(LEAST_IMAGES, math.ceil(widest * (Z95 / (half * max(slope, 1e-6))) ** 2))


def judges_leave_open(target: np.ndarray, correction: Correction, classes: PromptClasses, seed: int) -> float:
    """Half width of the widest interval that any number of images would have: what few test subjects leave open of judges' errors."""
    votes = target.reshape(correction.classes, -1) @ correction.matrix().T
    many = np.round(votes.reshape(-1) * 10_000_000)
    low, high = correction.interval(many[None], lambda shares: classes.settled(shares, target), seed)
    return float(((high - low) / 2).max())
