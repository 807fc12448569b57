"""What guides' votes mean: shares of groups, corrected for how often each group is taken for another.

A guide that takes one woman in five for a man reads 60 % men where half are. What it does with real images of subjects whom it has not met
is known; if it does the same with drawn ones, the shares whose votes would come nearest to those that were given can be solved for
(adjusted count; Forman 2008, doi 10.1007/s10618-008-0097-y).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from evenhand.alignment.guides import Guides
from evenhand.audit.mixing import solve_shares
from evenhand.core.randomness import generator
from evenhand.models.classifiers import CALIBRATION_FILE, Classifier

_FEWEST = 10  # test subjects of a group, over all guides of its attribute: fewer do not say how it is read
_FLATTEST = 0.2  # least singular value of an attribute's matrix: noise in votes grows by its inverse
_BOOTSTRAPS = 500


class Rows(NamedTuple):
    """What the same test subjects tell of one guide or several."""

    read_as: np.ndarray  # (G, G) part of a group's images (row) that is read as each group
    subjects: np.ndarray  # (G,)
    guides: int


@dataclass(frozen=True)
class Correction:
    """How the guides of each attribute err, and of which attributes that is not known, so that votes are taken as they are."""

    classes: int
    by_attribute: list[list[Rows]]
    unknown: list[str]

    @classmethod
    def of(cls, guides: Guides, classes: int) -> Correction:
        """As the guides' own test subjects tell."""
        by_attribute, unknown = [], []
        for attribute, order in guides.groups.items():
            members = guides.by_attribute[attribute]
            if reason := _not_told(members, order):
                unknown.append(reason)
                by_attribute.append([Rows(np.eye(len(order)), np.full(len(order), np.inf), len(members))])
            else:
                by_attribute.append(_told(members, order))
        return cls(classes, by_attribute, unknown)

    def matrix(self, draws: np.random.Generator | None = None) -> np.ndarray:
        """Votes expected (rows) of each joint group (columns), (K, K); with ``draws``, as other test subjects might have told."""
        joint = np.eye(1)
        for rows in self.by_attribute:
            joint = np.kron(joint, _mean(rows if draws is None else [_redrawn(one, draws) for one in rows]))
        return joint.T

    def shares(self, votes: np.ndarray) -> np.ndarray:
        """Shares (C K,) that the mean vote (C K,) speaks for; a class keeps its mass, which its prompts gave it."""
        return self._solved(self.matrix(), votes)

    def interval(self, votes: np.ndarray, settled: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """95 % bounds (C K,) of the shares: other images might have been drawn, and other subjects have told how guides err.

        Votes are drawn under Jeffreys' prior, so that bounds have a width even where all images were read alike.

        Args:
            votes: (n, C K), one row per image.
            settled: what is done with shares before they are told.
        """
        draws = generator(seed, "final check")
        means = draws.dirichlet(votes.sum(0) + 0.5, size=_BOOTSTRAPS)
        low, high = np.percentile([settled(self._solved(self.matrix(draws), mean)) for mean in means], [2.5, 97.5], axis=0)
        return low, high

    def _solved(self, matrix: np.ndarray, votes: np.ndarray) -> np.ndarray:
        by_class = votes.reshape(self.classes, -1)
        found = [mass * solve_shares(matrix[None], own[None] / mass)[0] if (mass := own.sum()) else own for own in by_class]
        return np.concatenate(found)


def _not_told(guides: Sequence[Classifier], order: list[str]) -> str:
    """Why the errors of an attribute's guides cannot be undone; empty where they can."""
    silent = next((guide for guide in guides if guide.facts.get("read_as") is None), None)
    if silent is not None:
        return f"{silent.path}: {CALIBRATION_FILE} does not say how its test subjects were read; train it again"
    for group in order:
        absent = next((guide for guide in guides if guide.facts["read_as"][guide.groups.index(group)] is None), None)
        if absent is not None:
            return f"{absent.path}: none of its test subjects is {group}; train it on a cohort whose test split has all groups"
    told = _told(guides, order)
    for group, n in zip(order, np.sum([rows.subjects for rows in told], axis=0), strict=True):
        if n < _FEWEST:
            return f"{guides[0].path}: only {n:.0f} test subjects are {group}, fewer than {_FEWEST}; train it on a larger cohort"
    least = float(np.linalg.svd(_mean(told), compute_uv=False)[-1])
    if least < _FLATTEST:
        names = ", ".join(order)
        return f"{guides[0].path}: reads {names} too much alike (least singular value {least:.2f}, not {_FLATTEST}); train a better one"
    return ""


def _told(guides: Sequence[Classifier], order: list[str]) -> list[Rows]:
    """Guides that were trained on the same subjects were tested on the same: they are one witness."""
    found = []
    for _, same in groupby(sorted(guides, key=lambda guide: guide.subjects_sha256), key=lambda guide: guide.subjects_sha256):
        members = list(same)
        places = [[guide.groups.index(group) for group in order] for guide in members]
        read_as = np.mean([np.array(guide.facts["read_as"])[np.ix_(own, own)] for guide, own in zip(members, places, strict=True)], axis=0)
        found.append(Rows(read_as, np.array(members[0].facts["test_subjects"], dtype=float)[places[0]], len(members)))
    return found


def _mean(rows: list[Rows]) -> np.ndarray:
    return np.average([one.read_as for one in rows], axis=0, weights=[one.guides for one in rows])


def _redrawn(rows: Rows, draws: np.random.Generator) -> Rows:
    """Each row as its subjects leave it open: a Dirichlet draw under Jeffreys' prior, each subject worth one image."""
    if np.isinf(rows.subjects).any():
        return rows
    return rows._replace(read_as=np.stack([draws.dirichlet(n * row + 0.5) for row, n in zip(rows.read_as, rows.subjects, strict=True)]))
