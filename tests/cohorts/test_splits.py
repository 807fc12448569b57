"""Splits: by subject, by seed, stable, and leaks found."""

import pandas as pd
import pytest

from evenhand.cohorts.splits import assign_splits, leaks, parse_split, split_of
from evenhand.core.errors import UserError


def test_a_subject_has_one_split_whoever_else_is_there() -> None:
    subjects = [f"p{i}" for i in range(400)]
    whole = dict(zip(subjects, assign_splits(subjects, 0), strict=True))
    part = assign_splits(["p7", "p7", "p3"], 0)
    assert part == [whole["p7"], whole["p7"], whole["p3"]]
    assert {split_of(subject, 0) for subject in subjects} == {"train", "val", "test"}


def test_shares_follow_the_fractions() -> None:
    subjects = [str(i) for i in range(4000)]
    shares = pd.Series(assign_splits(subjects, 5)).value_counts(normalize=True)
    # 4 standard errors of a share of 0.7 and of 0.15 with n = 4000
    assert shares["train"] == pytest.approx(0.70, abs=4 * (0.7 * 0.3 / 4000) ** 0.5)
    assert shares["val"] == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 4000) ** 0.5)
    assert shares["test"] == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / 4000) ** 0.5)


def test_the_seed_changes_the_split_and_repeats_it() -> None:
    subjects = [str(i) for i in range(100)]
    assert assign_splits(subjects, 1) == assign_splits(subjects, 1)
    assert assign_splits(subjects, 1) != assign_splits(subjects, 2)


def test_a_split_may_be_left_empty() -> None:
    assert set(assign_splits([str(i) for i in range(50)], 0, (0.5, 0.0, 0.5))) == {"train", "test"}


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, 0.1), (1.2, -0.1, -0.1)])
def test_wrong_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UserError) as error:
        assign_splits(["a"], 0, fractions)
    assert str(error.value) == f"split fractions {list(fractions)}: give three shares (train, val, test) that sum to 1"


def test_names_of_splits() -> None:
    assert [parse_split(name) for name in ("Training", "valid", "dev", " test ")] == ["train", "val", "val", "test"]
    assert [parse_split(name) for name in ("TRAIN set", "Training_Set", "validate", "Test-Split", "held-out", "hold_out")] == [
        *("train", "train", "val", "test", "test", "test")
    ]
    with pytest.raises(UserError) as error:
        parse_split("tran")
    assert str(error.value) == "split 'tran' is unknown; did you mean 'train'? There is: train, val, test"


def test_leaks() -> None:
    table = pd.DataFrame({"subject_id": ["b", "b", "a", "a", "c"], "split": ["train", "test", "val", "train", "val"]})
    assert leaks(table) == ["a", "b"]
    assert leaks(table.iloc[[0, 2, 4]]) == []
