"""The memorisation chapter: which generated images are copies of training images, by subgroup, and which are the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evenhand.audit.frame import SubgroupFrame
from evenhand.audit.intervals import FeatureError, equal_shares_p
from evenhand.audit.matching import LARGEST_SIDE, as_pictures
from evenhand.audit.memorization import CopyScores, authenticity, authenticity_by_group, copy_rate_by_group, nearest_ratio, score_copies
from evenhand.audit.readings import Reading, image_ids
from evenhand.audit.result import Cell, CopyPair, CopyTable, Memorization, number
from evenhand.audit.tables import Resampling, gap_of, group_rows
from evenhand.cohorts.cohort import Cohort

TRAIN_AT_MOST = 20_000
_SHOWN, _AT_ONCE = 6, 256


@dataclass(frozen=True)
class Features:
    """Features (n, d) of one encoder: of training images, of held-out ones and of generated ones."""

    train: np.ndarray
    heldout: np.ndarray
    synthetic: np.ndarray


def memorization_chapter(
    train: Cohort, heldout: Cohort, synthetic: Cohort, readings: Sequence[Reading], features: Features, how: Resampling
) -> Memorization | str:
    """Copies among the generated images, or why they cannot be told.

    Args:
        train, heldout: real images that a model may have seen, and those that it has not.
        readings: groups of the held-out and the generated images.
    """
    try:
        scores = score_copies(
            *(_brightness(cohort) for cohort in (train, heldout, synthetic)),
            heldout_subjects=heldout.table["subject_id"].astype(object).to_numpy(),
            ids=[image_ids(cohort) for cohort in (train, heldout, synthetic)],
        )
        subjects, ids = synthetic.table["subject_id"].astype(object).to_numpy(), image_ids(synthetic)
        beside = [table for reading in readings if len(reading.by) == 1 for table in _beside(reading, features, subjects, ids, how)]
        authentic = authenticity(features.train, features.synthetic, subjects=subjects)
    except FeatureError as error:
        return str(error)
    return Memorization(
        n_train=len(train), n_heldout=int(np.isfinite(scores.heldout_score).sum()), leaked=scores.leaked, sensitivity=scores.sensitivity,
        authenticity=Cell.of(authentic),
        tables=[_copies(reading, scores, subjects, how) for reading in readings],
        beside=beside,
        worst=[
            CopyPair(
                image=str(synthetic.table["image"].iloc[place]), train_image=str(train.table["image"].iloc[scores.train_index[place]]),
                score=float(scores.score[place]), transform=str(scores.transform[place]),
            )
            for place in scores.worst(_SHOWN)
        ],
    )  # fmt: skip


def _brightness(cohort: Cohort) -> np.ndarray:
    """Images (n, S, S) no larger than they are compared at, read some at a time: full-size ones would not fit into memory."""
    side = min(LARGEST_SIDE, cohort.schema.image_size)
    blocks = (range(start, min(start + _AT_ONCE, len(cohort))) for start in range(0, len(cohort), _AT_ONCE))
    return np.concatenate([as_pictures(cohort.pixels(block), side, cohort.schema.name) for block in blocks])


def _copies(reading: Reading, scores: CopyScores, subjects: np.ndarray, how: Resampling) -> CopyTable:
    frame = copy_rate_by_group(scores, reading.synthetic, subjects, heldout_groups=reading.real, min_n=how.min_n)
    return _table(reading, frame, "copy rate", scores.reason)


def _beside(reading: Reading, features: Features, subjects: np.ndarray, ids: np.ndarray, how: Resampling) -> list[CopyTable]:
    ratio = nearest_ratio(
        features.train, features.heldout, features.synthetic, reading.synthetic, subjects=subjects, ids=ids, n_boot=how.n_boot,
        seed=how.seed, min_n=how.min_n,
    )  # fmt: skip
    share = authenticity_by_group(features.train, features.synthetic, reading.synthetic, subjects=subjects, min_n=how.min_n)
    return [_table(reading, ratio, "nearest ratio"), _table(reading, share, "authenticity")]


def _table(reading: Reading, frame: SubgroupFrame, metric: Any, fault: str = "") -> CopyTable:
    return CopyTable(
        question=f"memorization:{reading.question}", by=list(reading.by), basis=reading.basis, metric=metric,
        direction="lower" if metric == "copy rate" else "higher", overall=Cell.of(frame.overall, fault),
        rows=group_rows(frame, {}, reading), **gap_of(frame), p_value=number(equal_shares_p(frame)),
        worst=None if frame.worst is None else str(frame.worst),
    )  # fmt: skip
