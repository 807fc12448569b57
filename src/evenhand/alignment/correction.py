"""What guides' votes mean: shares of groups, corrected for how often each group is taken for another.

A guide that takes one woman in five for a man reads 60 % men where half are. What it does with real images of subjects whom it has not met
is known; if it does the same with drawn ones, the shares that make its votes most likely to be what they are can be solved for (adjusted
count; Forman 2008, doi 10.1007/s10618-008-0097-y).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evenhand.alignment.guides import Guides
from evenhand.audit.mixing import solve_shares
from evenhand.core.randomness import generator
from evenhand.models.classifiers import Classifier

_FLATTEST = 0.2  # least singular value of a matrix that is inverted: noise grows by its inverse
_BOOTSTRAPS = 500


@dataclass(frozen=True)
class Correction:
    """Rows (G, G) of every guide by attribute: which part of a group's images it reads as which group, and from how many subjects (G,)."""

    classes: int
    by_attribute: list[list[tuple[np.ndarray, np.ndarray]]]
    unknown: list[str]  # attributes whose votes are taken as they are, and why

    @classmethod
    def of(cls, guides: Guides, classes: int) -> Correction:
        """As the guides' own held-out subjects tell. Errors that are not known, or too large to be undone, are taken to be none."""
        by_attribute, unknown = [], []
        for attribute, order in guides.groups.items():
            found = [_rows(guide, order) for guide in guides.by_attribute[attribute]]
            rows = [one for one in found if one is not None]
            if len(rows) < len(found):
                unknown.append(f"how often the held-out guides of {attribute} err is not in their calibration.json; train them again")
                rows = []
            elif np.linalg.svd(_mean(rows), compute_uv=False)[-1] < _FLATTEST:
                unknown.append(f"held-out guides of {attribute} read nearly the same from every group; train better ones")
                rows = []
            by_attribute.append(rows or [(np.eye(len(order)), np.full(len(order), np.inf))])
        return cls(classes, by_attribute, unknown)

    def matrix(self, draws: np.random.Generator | None = None) -> np.ndarray:
        """Votes expected (rows) of each joint group (columns), (C K, C K); with ``draws``, as other test subjects might have told."""
        joint = np.eye(self.classes)  # of which class an image is, its prompt says
        for guides in self.by_attribute:
            joint = np.kron(joint, _mean(guides if draws is None else [_redrawn(rows, n, draws) for rows, n in guides]))
        return joint.T

    def shares(self, votes: np.ndarray) -> np.ndarray:
        """Shares (C K,) that the mean vote (C K,) speaks for."""
        return solve_shares(self.matrix()[None], votes[None])[0]

    def interval(self, votes: np.ndarray, settled: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """95 % bounds (C K,) of the shares: other images might have been drawn, and other subjects have told how guides err.

        Args:
            votes: (n, C K), a row an image.
            settled: what is done with corrected shares before they are told.
        """
        draws, n = generator(seed, "certificate"), len(votes)
        means = draws.multinomial(n, np.full(n, 1 / n), size=_BOOTSTRAPS) @ votes / n
        shares = solve_shares(np.stack([self.matrix(draws) for _ in means]), means)
        low, high = np.percentile([settled(share) for share in shares], [2.5, 97.5], axis=0)
        return low, high


def _rows(guide: Classifier, order: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """What a guide's test subjects tell, its groups in this order."""
    read_as, subjects = guide.facts.get("read_as"), guide.facts.get("test_subjects")
    if not read_as or not subjects or None in read_as:
        return None
    places = [guide.groups.index(group) for group in order]
    return np.array(read_as)[np.ix_(places, places)], np.array(subjects, dtype=float)[places]


def _mean(guides: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return np.asarray(np.mean([rows for rows, _ in guides], axis=0))


def _redrawn(rows: np.ndarray, subjects: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each row as its subjects leave it open: a Dirichlet draw under Jeffreys' prior, each subject worth one image."""
    if np.isinf(subjects).any():
        return rows, subjects
    return np.stack([draws.dirichlet(n * row + 0.5) for row, n in zip(rows, subjects, strict=True)]), subjects
