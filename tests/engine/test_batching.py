"""Which samples a step sees: every sample once an epoch, the same after a resume, shares as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.core.errors import UserError
from evenhand.engine.batching import Batches, rank_batches, tempered_odds, warn_of_epochs


@pytest.mark.parametrize(("n", "size"), [(12, 4), (10, 4), (3, 8)])
def test_every_sample_comes_once_an_epoch(n: int, size: int) -> None:
    steps = n  # n steps of `size` are `size` whole epochs
    drawn = np.concatenate([Batches(n, size, seed=1).at(step) for step in range(steps)])
    for epoch in drawn.reshape(size, n):
        assert sorted(epoch) == list(range(n))


def test_batches_depend_on_seed_and_step_alone() -> None:
    a, b = Batches(50, 8, seed=3), Batches(50, 8, seed=3)
    forward = [a.at(step).tolist() for step in range(20)]
    assert [b.at(step).tolist() for step in reversed(range(20))] == forward[::-1]
    assert [Batches(50, 8, seed=4).at(step).tolist() for step in range(20)] != forward
    first, second = np.concatenate(forward)[:50], np.concatenate(forward)[50:100]
    assert first.tolist() != second.tolist()  # a new order each epoch


def test_balanced_odds_give_groups_the_same_share() -> None:
    groups = np.array(["a"] * 90 + ["b"] * 10)
    batches = Batches(100, 50, seed=0, groups=groups)
    odds = tempered_odds(groups, tau=1)
    assert odds == {"a": 1.0, "b": 9.0}
    drawn = np.concatenate([batches.at(step, odds) for step in range(100)])
    assert (groups[drawn] == "b").mean() == pytest.approx(0.5, abs=0.03)  # 4 standard deviations of 5000 draws
    assert batches.at(7, odds).tolist() == batches.at(7, odds).tolist()


def test_odds_are_tempered_and_capped() -> None:
    groups = np.array(["a"] * 100 + ["b"] * 4 + ["c"])
    assert tempered_odds(groups, tau=0) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert tempered_odds(groups, tau=0.5) == {"a": 1.0, "b": 5.0, "c": 10.0}
    assert tempered_odds(groups, tau=1) == {"a": 1.0, "b": 20.0, "c": 20.0}  # 25 and 100, capped


def test_samples_of_unknown_group_are_not_lifted() -> None:
    groups = np.array(["a"] * 8 + ["b"] * 4 + ["unknown"])
    assert tempered_odds(groups, tau=1) == {"a": 1.0, "b": 2.0, "unknown": 1.0}
    assert tempered_odds(np.array(["unknown"] * 3), tau=1) == {"unknown": 1.0}


def test_an_absent_group_is_no_obstacle() -> None:
    batches = Batches(4, 4, seed=0, groups=np.array(["a", "a", "b", "b"]))
    drawn = np.concatenate([batches.at(step, {"a": 1.0, "absent": 5.0}) for step in range(10)])
    assert set(drawn) == {0, 1}  # odds name no b, and no sample is absent's
    with pytest.raises(ValueError, match="no sample has positive odds"):
        batches.at(0, {"absent": 1.0})


def test_odds_need_groups_and_batches_need_samples() -> None:
    with pytest.raises(ValueError, match="odds need the groups"):
        Batches(4, 2, seed=0).at(0, {"a": 1.0})
    with pytest.raises(UserError, match="no images to train on; the cohort's training split is empty"):
        Batches(0, 2, seed=0)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 20])
def test_rank_batches_partition_and_do_not_depend_on_the_number_of_ranks(n: int, world: int) -> None:
    dealt = [tuple(batch) for rank in range(world) for batch in rank_batches(n, 4, rank, world)]
    assert sorted(dealt) == sorted(tuple(batch) for batch in rank_batches(n, 4, 0, 1))
    assert sorted(row for batch in dealt for row in batch) == list(range(n))


def test_images_that_are_learnt_again_and_again_are_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    warn_of_epochs(1000, np.array([1.0, 1, 1, 7]), "remedy")
    assert "some images are learnt 700 times (epochs)" in " ".join(capfd.readouterr().err.split())
    warn_of_epochs(1000, np.full(10, 0.1), "remedy")
    assert not capfd.readouterr().err
