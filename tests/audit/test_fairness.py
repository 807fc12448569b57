"""Calibration and differences between groups, from a judge's answers; and utility on classifiers that are really trained."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from evenhand.audit.downstream import downstream_tables, train_pair
from evenhand.audit.fairness import Answers, fairness_table
from evenhand.audit.judges import Recipe
from evenhand.audit.readings import Reading, read_column
from evenhand.audit.tables import Resampling
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms.cohort import write_phantoms

HOW = Resampling(repeats=2, n_boot=100, min_n=5, seed=0)
NAMES = ["male", "female", "other"]


def answers(rng: np.random.Generator, n: int, sure: float) -> tuple[Answers, pd.Series]:
    """A judge whose log-odds for the truth are ``sure`` times what they should be, and each image's group."""
    truth = rng.random(n) < 0.5
    logits = sure * 2 * (2 * truth - 1 + rng.normal(size=n))
    p = 1 / (1 + np.exp(-logits))
    stated = pd.Series(np.where(truth, "tumour", "none"), dtype=object)
    stated[::20] = None
    groups = pd.Series(pd.Categorical(np.where(np.arange(n) % 3 == 0, "female", "male"), categories=NAMES))
    return Answers(np.column_stack([1 - p, p]), stated, np.arange(n)), groups


def test_calibration_parity_and_odds_by_group() -> None:
    rng = np.random.default_rng(0)
    (real, real_groups), (made, groups) = answers(rng, 900, 1.0), answers(rng, 900, 3.0)
    table = fairness_table(Reading(("sex",), real_groups, groups, "requested"), "tumour", ["none", "tumour"], real, made, HOW)
    assert table.question == "fairness:tumour:sex" and [row.group for row in table.rows] == NAMES
    male, _, other = table.rows
    assert male.ece.value is not None and male.ece_real.value is not None and male.ece.value > 0.08 and male.ece_real.value < 0.04
    known = made.stated.notna() & (groups == "male")
    truth = (made.stated[known] == "tumour").to_numpy()
    assert male.brier.value == pytest.approx(np.mean((made.probabilities[known, 1] - truth) ** 2)) and male.brier.n == known.sum()
    assert other.ece.value is None and other.brier.value is None and other.ece.reason
    guess, known = made.probabilities[:, 1] > 0.5, made.stated.notna()
    assert table.parity == pytest.approx(demographic_parity_difference(guess, guess, sensitive_features=groups.astype(str)))
    assert table.odds == pytest.approx(
        equalized_odds_difference(made.stated[known] == "tumour", guess[known], sensitive_features=groups[known].astype(str))
    )


def test_three_classes_and_one_group_only() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet([1, 1, 1], size=200)
    stated = pd.Series([["x", "y", "z"][rng.choice(3, p=row)] for row in p], dtype=object)
    groups = pd.Series(pd.Categorical(["male"] * 200, categories=["male", "female"]))
    side = Answers(p, stated, np.arange(200))
    table = fairness_table(Reading(("sex",), groups, groups, "requested"), "kind", ["x", "y", "z"], side, side, HOW)
    onehot = np.eye(3)[stated.map({"x": 0, "y": 1, "z": 2}).to_numpy()]
    assert table.rows[0].brier.value == pytest.approx(((p - onehot) ** 2).sum(axis=1).mean())
    assert table.parity is None and table.odds is None and table.rows[1].ece.reason  # one group only is undefined, not perfect


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("utility")
    write_phantoms("brain", root / "real", n=300, size=32, seed=0)
    made = write_phantoms("brain", root / "shuffled", n=150, size=32, seed=1)
    table = made.table.assign(tumour=np.random.default_rng(0).permutation(made.table["tumour"]), split="test")
    Cohort(made.schema, table, made.root).save(root / "nonsense")
    Cohort(made.schema, made.table.assign(split="test"), made.root).save(root / "faithful")
    return root


def test_labels_that_images_do_not_show_cost_utility(worlds: Path) -> None:
    real, found = Cohort.load(worlds / "real"), {}
    test = real.split("val", "test")
    recipe = Recipe("resnet", 6, 0)
    for name in ("faithful", "nonsense"):
        made = Cohort.load(worlds / name)
        pair = train_pair(real, made, "tumour", worlds / f"{name}-classifiers", recipe)
        assert not isinstance(pair, str) and pair[1].auc is None and pair[1].facts["n"] == {"train": 150, "val": 0, "test": 0}
        (table,) = downstream_tables(pair, test, [read_column(test, made, "sex", None)], HOW, 64)
        found[name] = table
    faithful, nonsense = found["faithful"].overall.value, found["nonsense"].overall.value
    assert faithful is not None and nonsense is not None and nonsense < -0.2 and nonsense < faithful - 0.15
    row = found["nonsense"].rows[0]
    assert row.value == pytest.approx((row.synthetic_trained or 0) - (row.real_trained or 0))
    assert found["faithful"].question == "utility:tumour=tumour:sex" and found["faithful"].n_train_synthetic == 150


def test_a_condition_of_one_value_trains_nothing(worlds: Path) -> None:
    real = Cohort.load(worlds / "real")
    healthy = real.subset((real.table["tumour"] == "none").to_numpy())
    assert "fewer than two values in the generated images" in str(
        train_pair(real, healthy, "tumour", worlds / "none", Recipe("resnet", 1, 0))
    )
