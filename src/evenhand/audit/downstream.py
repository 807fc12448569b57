"""The utility chapter: classifiers trained on generated and on real images, tested on the same held-out real images by subgroup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evenhand.audit.auc_gaps import utility_gap_p
from evenhand.audit.judges import Recipe, trained_classifier
from evenhand.audit.readings import Reading, image_ids, stated
from evenhand.audit.result import Cell, UtilityRow, UtilityTable, number
from evenhand.audit.tables import Resampling, condition_labels, gap_of, group_rows, values_with_auc
from evenhand.audit.utility import utility_difference
from evenhand.cohorts.cohort import Cohort
from evenhand.core.names import condition_is
from evenhand.engine.features import cohort_predictions
from evenhand.models.classifiers import Classifier


def train_pair(real: Cohort, synthetic: Cohort, condition: str, folder: Path, recipe: Recipe) -> tuple[Classifier, Classifier] | str:
    """Two classifiers of one recipe, trained on the real training split and on all generated images, or why there are none."""
    for cohort, name in ((real.split("train"), "real training"), (synthetic, "generated")):
        if stated(cohort, condition).nunique() < 2:
            return f"{condition} takes fewer than two values in the {name} images, so no classifier can be trained"
    return trained_classifier(real, condition, folder, recipe), trained_classifier(synthetic, condition, folder, recipe, rows="all")


def downstream_tables(
    pair: tuple[Classifier, Classifier], test: Cohort, readings: Sequence[Reading], how: Resampling, batch_size: int
) -> list[UtilityTable]:
    """Tables of one condition, one a value and reading: AUC on real test images by group (real sides of ``readings``)."""
    condition, subjects, ids = pair[0].target, test.table["subject_id"].astype(object).to_numpy(), image_ids(test)
    scores = [cohort_predictions(classifier, test, batch_size=batch_size) for classifier in pair]
    true, sizes = stated(test, condition), [int(classifier.facts["n"]["train"]) for classifier in pair]
    tables = []
    for value in values_with_auc(pair[0].groups):
        real_trained, synthetic_trained = (scores_for(value, classifier, part) for classifier, part in zip(pair, scores, strict=True))
        labels, asked = condition_labels(true, value), condition_is(condition, value)
        for reading in readings:
            given = (labels, real_trained, synthetic_trained, reading.real)
            who = {"subjects": subjects, "ids": ids}
            found = utility_difference(*given, **who, n_boot=how.n_boot, seed=how.seed, min_n=how.min_n)
            p_value = utility_gap_p(*given, **who, seed=how.seed, min_n=how.min_n)
            rows = [
                UtilityRow(**row.model_dump(), real_trained=number(before), synthetic_trained=number(after))
                for row, before, after in zip(
                    group_rows(found, {}, reading), found.by_group["real_trained"], found.by_group["synthetic_trained"], strict=True
                )
            ]
            tables.append(
                UtilityTable(
                    question=f"utility:{asked}:{reading.question}", condition=condition, value=value, by=list(reading.by),
                    basis="requested", n_train_real=sizes[0], n_train_synthetic=sizes[1],
                    overall=Cell.of(found.overall, _why(found.overall)),
                    rows=rows, **gap_of(found), p_value=number(p_value),
                    worst=None if found.worst is None else str(found.worst),
                )
            )  # fmt: skip
    return tables


def scores_for(value: str, classifier: Classifier, probabilities: np.ndarray) -> np.ndarray:
    """The value's probabilities (n,); a classifier that never saw the value says the same of every image."""
    return probabilities[:, classifier.groups.index(value)] if value in classifier.groups else np.zeros(len(probabilities))


def _why(overall: object) -> str:
    return "" if getattr(overall, "defined", False) else "one class only or no labelled images"
