"""Raw presence and the gap between mixes."""

import math

import numpy as np
import pytest

from evenhand.audit.intervals import FeatureError, share_interval
from evenhand.audit.representation import mix_gap, raw_presence
from evenhand.core.errors import UserError


def test_mix_gap_is_half_the_sum_of_differences() -> None:
    assert mix_gap({"male": 0.83, "female": 0.17}, {"male": 0.5, "female": 0.5}) == pytest.approx(0.33)
    assert mix_gap({"a": 1.0}, {"b": 1.0}) == 1.0
    assert mix_gap({"a": 0.2, "b": 0.3, "c": 0.5}, {"c": 0.5, "a": 0.2, "b": 0.3}) == 0
    assert math.isnan(mix_gap({"a": math.nan, "b": 0.5}, {"a": 0.5, "b": 0.5}))
    with pytest.raises(FeatureError, match=r"sum to 1, not to 0\.9"):
        mix_gap({"a": 0.4, "b": 0.5}, {"a": 1.0})


def test_raw_presence_counts_groups_only_and_keeps_empty_ones() -> None:
    found = raw_presence(["m", "m", "m", "f", None, "unknown", "-1", np.nan], ["m", "f", "other"])
    assert found.n == 4 and found.by_group["raw"].tolist() == [0.75, 0.25, 0.0]
    assert found.mix == {"m": 0.75, "f": 0.25, "other": 0.0}
    # Wilson at 3 of 4 and 0 of 4, by hand: z = 1.959964
    assert found.by_group.loc["m", "low"] == pytest.approx(0.3006, abs=1e-4)
    assert found.by_group.loc["m", "high"] == pytest.approx(0.9544, abs=1e-4)
    assert found.by_group.loc["other", "low"] == 0 and found.by_group.loc["other", "high"] == pytest.approx(0.4899, abs=1e-4)


def test_presence_of_nothing_is_undefined_and_a_strange_label_is_an_error() -> None:
    nothing = raw_presence(["unknown", None], ["m", "f"])
    assert nothing.n == 0 and nothing.by_group["raw"].isna().all()
    assert (nothing.by_group["reason"] == "no image has a known label").all()
    with pytest.raises(UserError, match="label 'x' is not among the groups m, f"):
        raw_presence(["m", "x"], ["m", "f"])


def test_share_interval_counts_subjects() -> None:
    hits = np.repeat([True, True, True, False], 25)
    alone = share_interval(hits, np.arange(100))
    together = share_interval(hits, np.repeat(np.arange(4), 25))
    assert alone[0] == together[0] == 0.75
    assert together[2] - together[1] > 3 * (alone[2] - alone[1])
    assert share_interval(np.zeros(50, bool), np.repeat(np.arange(5), 10))[2] == pytest.approx(0.4345, abs=1e-3)  # 0 of 5 subjects


def test_share_interval_covers_when_a_subject_has_ten_images() -> None:
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        kind = rng.random(40) < 0.3
        labels = np.where(rng.random(400) < 0.9, np.repeat(kind, 10), rng.random(400) < 0.3)
        _, low, high = share_interval(labels, np.repeat(np.arange(40), 10))
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 300 <= 0.99
