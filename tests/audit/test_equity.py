"""Equity scaling: both forms by hand, what is undefined, and each known fault of the reference form, shown."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from evenhand.audit.equity import MACRO_WARNINGS, WARNINGS, equity_scaled
from evenhand.audit.frame import UNDEFINED, Estimate, SubgroupFrame
from evenhand.audit.intervals import FeatureError
from evenhand.audit.semantics import group_auc


def frame(values: dict[str, float], *, higher_is_better: bool = True) -> SubgroupFrame:
    cells = {name: (Estimate(value, value, value, 50), "" if np.isfinite(value) else "no images") for name, value in values.items()}
    return SubgroupFrame.of(cells, UNDEFINED, higher_is_better)


def test_both_forms_by_hand() -> None:
    assert equity_scaled(0.8, [0.9, 0.6], higher_is_better=True, form="reference") == pytest.approx(0.8 / (1 + 0.1 + 0.2), abs=1e-15)
    # mean 0.75, D = 0.15 / 0.75 = 0.2
    assert equity_scaled(0.8, [0.9, 0.6], higher_is_better=True, form="macro") == pytest.approx(0.75 / 1.2, abs=1e-15)
    # mean 30, D = (20 + 10 + 10) / 3 / 30 = 4 / 9
    assert equity_scaled(0, [50, 20, 20], higher_is_better=False, form="macro") == pytest.approx(30 * 13 / 9, abs=1e-12)
    for form in ("reference", "macro"):
        assert equity_scaled(0.7, [0.7, 0.7, 0.7], higher_is_better=True, form=form) == pytest.approx(0.7, abs=1e-15)


def test_groups_come_as_mapping_sequence_series_or_frame() -> None:
    values = {"a": 0.9, "b": 0.6}
    told = [values, [0.9, 0.6], (0.6, 0.9), np.array([0.9, 0.6]), pd.Series(values), frame(values)]
    for form in ("reference", "macro"):
        assert len({equity_scaled(0.8, groups, higher_is_better=True, form=form) for groups in told}) == 1
    with_others = {**values, "unknown": 0.1, -1: 0.2, None: 0.3}
    estimates = {name: Estimate(value, 0, 1, 9) for name, value in values.items()}
    for groups in (with_others, pd.Series(with_others), estimates):
        found = equity_scaled(Estimate(0.8, 0.7, 0.9, 60), groups, higher_is_better=True)
        assert found == pytest.approx(0.8 / 1.3, abs=1e-15)


def test_undefined_is_nan_never_a_value() -> None:
    """One group only is not perfect; an absent group is not left out in silence; the caller can drop it by name."""
    for form in ("reference", "macro"):
        for groups in ([0.9], [], {"a": 0.9, "unknown": 0.1}, [0.9, np.nan], [0.9, None], [0.9, np.inf], frame({"a": 0.9, "b": np.nan})):
            assert np.isnan(equity_scaled(0.9, groups, higher_is_better=True, form=form))
    assert np.isnan(equity_scaled(np.nan, [0.9, 0.8], higher_is_better=True, form="reference"))
    assert equity_scaled(np.nan, frame({"a": 0.9, "b": 0.6, "c": np.nan}).defined["value"], higher_is_better=True, form="macro") > 0


def test_a_mean_distance_at_or_below_0_has_no_ratio() -> None:
    assert np.isnan(equity_scaled(0, [-0.002, 0.001], higher_is_better=False, form="macro"))
    assert np.isnan(equity_scaled(0, [-0.001, 0.001], higher_is_better=False, form="macro"))
    assert equity_scaled(0, [-0.001, 0.003], higher_is_better=False, form="macro") == pytest.approx(0.001 + 0.002, abs=1e-15)


def test_misuse_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="reward unfairness; use form='macro'"):
        equity_scaled(20, [10, 30], higher_is_better=False, form="reference")
    with pytest.raises(ValueError, match="did you mean 'macro'"):
        equity_scaled(20, [10, 30], higher_is_better=False, form="macros")
    with pytest.raises(ValueError, match="the frame says False"):
        equity_scaled(20, frame({"a": 10, "b": 30}, higher_is_better=False), higher_is_better=True)
    with pytest.raises(FeatureError, match="group 1 is 'x', not a number"):
        equity_scaled(0.5, [0.4, "x"], higher_is_better=True)


def test_fault_reference_falls_with_the_number_of_groups() -> None:
    two, eight = [0.9, 0.7], [0.9, 0.7] * 4
    assert equity_scaled(0.8, eight, higher_is_better=True) == pytest.approx(0.8 / 1.8)
    assert equity_scaled(0.8, two, higher_is_better=True) == pytest.approx(0.8 / 1.2)
    scores = [equity_scaled(0.8, groups, higher_is_better=True, form="macro") for groups in (two, eight)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-15)


def test_fault_reference_takes_noise_for_unfairness() -> None:
    """Six groups of 60 of one law, AUC .760: the reference form says about .595 (metrics.md); the macro form loses less."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        labels = np.tile([0, 1], 180)
        scores = rng.normal(size=360) + labels * np.sqrt(2) * ndtri(0.76)
        auc = group_auc(scores, labels, np.repeat(list("abcdef"), 60), n_boot=2)
        overall = auc.overall.value
        found.append([overall, *(equity_scaled(overall, auc, higher_is_better=True, form=form) for form in ("reference", "macro"))])
    overall, reference, macro = np.mean(found, axis=0)
    assert overall == pytest.approx(0.76, abs=0.01) and reference == pytest.approx(0.595, abs=0.02)
    assert macro > 0.7


def test_fault_reference_rewards_levelling_down() -> None:
    """The best of two equal-sized groups is served worse, nobody better: the reference form goes up, the macro form does not."""
    before, after = [0.9, 0.7], [0.7, 0.7]
    assert equity_scaled(0.7, after, higher_is_better=True) > equity_scaled(0.8, before, higher_is_better=True)
    assert equity_scaled(0.7, after, higher_is_better=True, form="macro") < equity_scaled(0.8, before, higher_is_better=True, form="macro")


def test_fault_macro_may_too_with_three_groups() -> None:
    before, after = ([0.9, 0.8, 0.8], [0.8, 0.8, 0.8])
    assert equity_scaled(0, after, higher_is_better=True, form="macro") > equity_scaled(0, before, higher_is_better=True, form="macro")


def test_fault_dividing_a_distance_would_reward_unfairness() -> None:
    fair, unfair = [20, 20], [10, 30]
    divided = [20 / (1 + sum(abs(20 - value) for value in groups)) for groups in (fair, unfair)]
    assert divided[1] < divided[0]  # lower is better: so the unfair one would win
    macro = [equity_scaled(20, groups, higher_is_better=False, form="macro") for groups in (fair, unfair)]
    assert macro == pytest.approx([20, 30])


def test_warnings_name_every_fault() -> None:
    text = " ".join(WARNINGS)
    assert all(word in text for word in ("published", "over more groups", "noise", "levelling down", "lower is better", "worst group"))
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in (*WARNINGS, *MACRO_WARNINGS))
