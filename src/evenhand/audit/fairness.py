"""The judge's answers by subgroup: are its probabilities true in every group, and does it predict alike in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evenhand.audit.frame import Estimate
from evenhand.audit.readings import Reading
from evenhand.audit.reliability import brier_score, expected_calibration_error
from evenhand.audit.result import Cell, FairnessRow, FairnessTable, number
from evenhand.audit.semantics import odds_difference, parity_difference
from evenhand.audit.tables import Resampling


@dataclass(frozen=True)
class Answers:
    """What a judge said of n images: probabilities (n, K), the stated condition (missing where none), the subjects, and image ids."""

    probabilities: np.ndarray
    stated: pd.Series
    subjects: np.ndarray
    ids: np.ndarray | None = None


def fairness_table(
    reading: Reading, condition: str, classes: Sequence[str], real: Answers, synthetic: Answers, how: Resampling
) -> FairnessTable:
    """Calibration by group on both sides (generated images against what was asked), and the differences between groups."""
    sides = [(real, reading.real), (synthetic, reading.synthetic)]
    (parity_real, odds_real), (parity, odds) = (_differences(answers, classes, groups, how) for answers, groups in sides)
    ece_real, ece = (_calibration(answers, classes, groups, how) for answers, groups in sides)
    brier_real, brier = (_brier(answers, classes, groups, how) for answers, groups in sides)
    names = [str(name) for name in reading.real.cat.categories]
    return FairnessTable(
        question=f"fairness:{condition}:{reading.question}", condition=condition, by=list(reading.by), basis=reading.basis,
        parity=number(parity), odds=number(odds), parity_real=number(parity_real), odds_real=number(odds_real),
        rows=[
            FairnessRow(group=name, ece=ece[name], ece_real=ece_real[name], brier=brier[name], brier_real=brier_real[name])
            for name in names
        ],
    )  # fmt: skip


def _differences(answers: Answers, classes: Sequence[str], groups: pd.Series, how: Resampling) -> tuple[float, float]:
    """Parity and odds among groups of enough images: a rate of two images would make any difference."""
    predicted = pd.Series(np.asarray(classes, dtype=object)[answers.probabilities.argmax(axis=1)])
    large = groups.value_counts().loc[lambda counts: counts >= how.min_n].index
    there = groups.where(groups.isin(large)).cat.remove_unused_categories()
    return parity_difference(answers.stated, predicted, there), odds_difference(answers.stated, predicted, there)


def _calibration(answers: Answers, classes: Sequence[str], groups: pd.Series, how: Resampling) -> dict[str, Cell]:
    frame = expected_calibration_error(
        *_given(answers, classes), groups, classes=None if len(classes) == 2 else classes,
        n_boot=how.n_boot, seed=how.seed, subjects=answers.subjects, ids=answers.ids, min_n=how.min_n,
    )  # fmt: skip
    return {str(name): _cell(row, "corrected") for name, row in frame.by_group.iterrows()}


def _brier(answers: Answers, classes: Sequence[str], groups: pd.Series, how: Resampling) -> dict[str, Cell]:
    frame = brier_score(
        *_given(answers, classes), groups, classes=None if len(classes) == 2 else classes,
        n_boot=how.n_boot, seed=how.seed, subjects=answers.subjects, ids=answers.ids, min_n=how.min_n,
    )  # fmt: skip
    return {str(name): _cell(row, "value") for name, row in frame.by_group.iterrows()}


def _given(answers: Answers, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of two classes the second's probability and 0, 1 or NaN; else all probabilities and the classes' names."""
    if len(classes) > 2:
        return answers.probabilities, answers.stated.where(answers.stated.isin(list(classes)), None).to_numpy(dtype=object)
    truth = answers.stated.map({classes[0]: 0.0, classes[1]: 1.0}).to_numpy(dtype=float)
    return answers.probabilities[:, 1], truth


def _cell(row: pd.Series, column: str) -> Cell:
    value = float(row[column]) if row["reason"] == "" else math.nan
    return Cell.of(Estimate(value, float(row["low"]), float(row["high"]), int(row["n"])), str(row["reason"]))
