"""Splits by subject: all images of one subject go the same way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from evenhand.cohorts.cohort import SPLITS
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.randomness import generator

FRACTIONS = (0.70, 0.15, 0.15)  # of subjects, in the order of SPLITS
_SPELLINGS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development", "tune", "tuning"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "heldout", "held out", "holdout", "hold out"), "test"),
}


def split_of(subject: str, seed: int, fractions: Sequence[float] = FRACTIONS) -> str:
    """The split of one subject: it depends on the seed and the subject's id only.

    So a subject stays where it is when others join or leave, and a cohort imported with ``--limit`` is split as the whole one.
    The shares are therefore those of a draw, near ``fractions`` for many subjects.
    """
    draw = generator(seed, "split", subject).random()
    if draw < fractions[0]:
        return SPLITS[0]
    return SPLITS[1] if draw < fractions[0] + fractions[1] else SPLITS[2]


def assign_splits(subjects: Iterable[str], seed: int, fractions: Sequence[float] = FRACTIONS) -> list[str]:
    """``split_of`` for every row.

    Raises:
        UserError: three shares that are not positive numbers with sum 1.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split fractions {list(fractions)}: give three shares (train, val, test) that sum to 1")
    ids = [str(subject) for subject in subjects]
    found = {subject: split_of(subject, seed, fractions) for subject in set(ids)}
    return [found[subject] for subject in ids]


def parse_split(value: str) -> str:
    """A source's own name of a split as ``train``, ``val`` or ``test``.

    Raises:
        UserError: a name that means none of them.
    """
    words = " ".join(re.sub(r"[-_]", " ", value.lower()).split())
    name = _SPELLINGS.get(re.sub(r" (?:set|split|data)$", "", words))
    if name is None:
        raise UserError(f"split {value!r} is unknown; {did_you_mean(value, SPLITS)}")
    return name


def leaks(table: pd.DataFrame) -> list[str]:
    """Subjects with images in more than one split, sorted."""
    splits = table.groupby("subject_id")["split"].nunique()
    return sorted(map(str, splits.index[splits > 1]))
