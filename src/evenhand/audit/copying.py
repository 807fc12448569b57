"""The memorisation chapter: which generated images are copies of training images, by subgroup, and which are the worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evenhand.audit.intervals import FeatureError
from evenhand.audit.memorization import CopyScores, authenticity, copy_rate_by_group, score_copies
from evenhand.audit.readings import Reading
from evenhand.audit.result import Cell, CopyPair, CopyTable, GroupRow, Memorization, number
from evenhand.cohorts.cohort import Cohort

TRAIN_AT_MOST = 20_000
_SHOWN = 6


def memorization_chapter(
    train: Cohort, heldout: Cohort, synthetic: Cohort, readings: Sequence[Reading], features: tuple[np.ndarray, np.ndarray]
) -> Memorization | str:
    """Copies among the generated images, or why they cannot be told.

    Args:
        train, heldout: real images that a model may have seen, and those that it has not.
        readings: groups of the held-out and the generated images.
        features: (n_train, d) and (m, d) of one encoder, for authenticity.
    """
    try:
        scores = score_copies(
            train.pixels(), heldout.pixels(), synthetic.pixels(), heldout_subjects=heldout.table["subject_id"].astype(object).to_numpy()
        )
    except FeatureError as error:
        return str(error)
    subjects = synthetic.table["subject_id"].astype(object).to_numpy()
    return Memorization(
        n_train=len(train), n_heldout=int(np.isfinite(scores.heldout_score).sum()), leaked=scores.leaked, sensitivity=scores.sensitivity,
        authenticity=Cell.of(authenticity(*features, subjects=subjects)),
        tables=[_table(reading, scores, subjects) for reading in readings],
        worst=[
            CopyPair(
                image=str(synthetic.table["image"].iloc[place]), train_image=str(train.table["image"].iloc[scores.train_index[place]]),
                score=float(scores.score[place]), transform=str(scores.transform[place]),
            )
            for place in scores.worst(_SHOWN)
        ],
    )  # fmt: skip


def _table(reading: Reading, scores: CopyScores, subjects: np.ndarray) -> CopyTable:
    frame = copy_rate_by_group(scores, reading.synthetic, subjects, heldout_groups=reading.real)
    real, synthetic = reading.real.value_counts(), reading.synthetic.value_counts()
    rows = [
        GroupRow(
            group=str(name), n=int(row["n"]), value=number(row["value"]), low=number(row["low"]), high=number(row["high"]),
            reason=str(row["reason"]), n_real=int(real.get(name, 0)), n_synthetic=int(synthetic.get(name, 0)),
        )
        for name, row in frame.by_group.iterrows()
    ]  # fmt: skip
    return CopyTable(
        question=f"memorization:{reading.question}", by=list(reading.by), basis=reading.basis,
        overall=Cell.of(frame.overall, scores.reason), rows=rows, gap=number(frame.gap),
        worst=None if frame.worst is None else str(frame.worst),
    )  # fmt: skip
