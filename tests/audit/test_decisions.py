"""Adjusted p-values, paired tests by simulation, levelling down, and what a question or a rule may say."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from evenhand.audit.decisions import (
    Question,
    benjamini_hochberg,
    bootstrap_p_value,
    expanded_interval,
    holm,
    levelling_down,
    paired_bootstrap,
    parse_question,
    parse_rule,
)
from evenhand.audit.frame import UNDEFINED, Estimate, SubgroupFrame
from evenhand.audit.intervals import FeatureError
from evenhand.core.errors import UserError


def two_models(n: int, seed: int, better: float = 0.0, copies: int = 1) -> tuple[dict, dict, np.ndarray]:
    """Records of two models on the same images, whose AUCs differ by ``better`` in d'; a subject's images are near copies."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, n // copies), copies)
    shared, first, second = (np.repeat(rng.normal(size=n // copies), copies) + 0.3 * rng.normal(size=n) for _ in range(3))
    before, after = (shared + own + (1.2 + extra) * labels for own, extra in ((first, 0), (second, better)))
    return {"score": before, "label": labels}, {"score": after, "label": labels}, np.repeat(np.arange(n // copies), copies)


def delong_p_value(before: dict, after: dict) -> float:
    """Two-sided p-value of equal AUCs on the same images (DeLong, DeLong and Clarke-Pearson 1988)."""
    parts = []
    for records in (before, after):
        up, down = (records["score"][records["label"] == side] for side in (1, 0))
        wins = (up[:, None] > down) + 0.5 * (up[:, None] == down)
        parts.append((wins.mean(1), wins.mean(0)))
    up, down = (parts[1][side] - parts[0][side] for side in (0, 1))
    return float(2 * stats.norm.sf(abs(up.mean()) / np.sqrt(up.var(ddof=1) / len(up) + down.var(ddof=1) / len(down))))


def test_adjusted_p_values_by_hand() -> None:
    # sorted .01 .03 .04 times 3 2 1 = .03 .06 .04, never falling: .03 .06 .06
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06], atol=1e-15)
    # times 3/1 3/2 3/3 = .03 .045 .04, from the end never rising: .03 .04 .04
    np.testing.assert_allclose(benjamini_hochberg([0.01, 0.04, 0.03]), [0.03, 0.04, 0.04], atol=1e-15)
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).shape == benjamini_hochberg([]).shape == (0,)


def test_undefined_p_values_stay_and_do_not_count() -> None:
    for adjust in (holm, benjamini_hochberg):
        found = adjust([0.01, np.nan, 0.04, None, 0.03])
        assert np.isnan(found[[1, 3]]).all()
        np.testing.assert_allclose(found[[0, 2, 4]], adjust([0.01, 0.04, 0.03]), atol=1e-15)
        assert np.isnan(adjust([np.nan, np.nan])).all()
        for bad in ([0.1, 1.2], [-0.1], [[0.1]], ["x"], 0.1):
            with pytest.raises(FeatureError, match=r"p-value"):
                adjust(bad)


def test_adjusted_p_values_against_oracles() -> None:
    """Benjamini-Hochberg is scipy's; Holm is the closed test over every set of hypotheses by Bonferroni."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = np.round(rng.random(6) ** 2, 2)  # rounded: with ties
        np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), atol=1e-15)
        sets = [list(chosen) for size in range(1, 7) for chosen in itertools.combinations(range(6), size)]
        closed = [max(min(1, len(chosen) * p[chosen].min()) for chosen in sets if place in chosen) for place in range(6)]
        np.testing.assert_allclose(holm(p), closed, atol=1e-15)


def test_holm_holds_the_family_of_40_true_nulls() -> None:
    rng = np.random.default_rng(1)
    families = rng.random((2000, 40))
    assert np.mean([holm(p).min() <= 0.05 for p in families]) <= 0.065
    assert np.mean(families.min(axis=1) <= 0.05) > 0.8  # what nobody adjusted would claim


def test_40_paired_tests_of_equal_models_after_holm() -> None:
    """Ten worlds of 40 true nulls on the same images; unadjusted, some 9 of the 10 would find something."""
    flagged, raw = 0, 0
    for world in range(10):
        p = []
        for metric in range(40):
            before, after, _ = two_models(60, 1000 * world + metric)
            p.append(paired_bootstrap("auc", before, after, n_boot=120, seed=metric).p_value)
        flagged += holm(p).min() <= 0.05
        raw += min(p) <= 0.05
    assert flagged <= 2 and raw >= 6


def test_equal_models_are_called_different_no_more_often_with_more_draws() -> None:
    """Clustered images too. To draw the models apart and t-test the replicates fails here: most equal models differ."""
    calls = {(copies, n_boot): 0 for copies in (1, 3) for n_boot in (200, 800)}
    trap = 0
    for seed in range(50):
        for copies, n_boot in calls:
            before, after, subjects = two_models(80 * copies, seed, copies=copies)
            found = paired_bootstrap("auc", before, after, subjects=subjects, n_boot=n_boot, seed=seed)
            calls[copies, n_boot] += found.p_value <= 0.05
        before, after, _ = two_models(80, seed)
        replicates = [apart_replicates(records, seed, place) for place, records in enumerate((before, after))]
        trap += stats.ttest_ind(*replicates).pvalue <= 0.05
    assert max(calls.values()) <= 6, calls  # of 50: 97.5 % of tests at level .05 (500 of each size called .03 to .04)
    assert trap > 30


def apart_replicates(records: dict, seed: int, place: int) -> np.ndarray:
    """AUCs of 200 bootstrap samples of one model alone."""
    rng = np.random.default_rng([seed, place])
    up, down = (records["score"][records["label"] == side] for side in (1, 0))
    wins = (up[:, None] > down).astype(float)
    draws = [rng.multinomial(len(side), np.full(len(side), 1 / len(side)), size=200) for side in (up, down)]
    return ((draws[0] @ wins) * draws[1]).sum(axis=1) / wins.size


def test_paired_auc_is_near_delong() -> None:
    for seed, better in ((0, 0.0), (1, 0.3), (2, 0.6)):
        before, after, _ = two_models(300, seed, better)
        found = paired_bootstrap("auc", before, after, n_boot=2000)
        expected = delong_p_value(before, after)
        values = [roc_auc_score(records["label"], records["score"]) for records in (before, after)]
        assert (found.before, found.after) == pytest.approx(values, abs=1e-12)
        assert found.estimate.value == pytest.approx(values[1] - values[0], abs=1e-12) and found.estimate.n == 300
        assert stats.norm.isf(found.p_value / 2) == pytest.approx(stats.norm.isf(expected / 2), abs=0.25)
        assert (found.estimate.low > 0 or found.estimate.high < 0) == (found.p_value < 0.05)


def test_a_function_of_the_records_is_the_same_test() -> None:
    before, after, subjects = two_models(60, 4, 1.0, copies=2)
    named = paired_bootstrap("auc", before, after, subjects=subjects, n_boot=60)
    plain = paired_bootstrap(lambda table: roc_auc_score(table["label"], table["score"]), before, after, subjects=subjects, n_boot=60)
    assert plain.estimate.value == pytest.approx(named.estimate.value, abs=1e-12)
    # the same draws; of a function it is not known that the rarer class has fewer subjects
    assert plain.estimate.low == pytest.approx(named.estimate.low, abs=0.03) and plain.p_value <= named.p_value


def test_gap_of_two_models_by_group() -> None:
    """The second model loses group b: its gap is larger, by as much as scikit-learn's AUCs say; group c has no AUC and no say."""
    rng = np.random.default_rng(2)
    groups = rng.choice(["a", "b", "unknown"], 300)
    labels = rng.integers(0, 2, 300)
    shared = rng.normal(size=300)
    groups[:5], labels[:5] = "c", 1
    scores = [shared + rng.normal(size=300) * 0.3 + (2 - loss * (groups == "b")) * labels for loss in (0, 1.5)]
    tables = [pd.DataFrame({"score": score, "label": labels, "group": groups}) for score in scores]
    aucs = [{g: roc_auc_score(t[t.group == g].label, t[t.group == g].score) for g in "ab"} for t in tables]
    gaps = [max(values.values()) - min(values.values()) for values in aucs]
    found = paired_bootstrap("auc_gap", *tables, n_boot=300)
    assert (found.before, found.after) == pytest.approx(gaps, abs=1e-12)
    assert found.estimate.low > 0 and found.p_value < 0.01
    same = paired_bootstrap("auc_gap", tables[0], tables[0], n_boot=100)
    assert (same.estimate.value, same.p_value) == (0, 1)
    one_group = [table.assign(group="a") for table in tables]
    alone = paired_bootstrap("auc_gap", *one_group, n_boot=50)
    assert np.isnan([alone.estimate.value, alone.estimate.low, alone.p_value]).all()


def test_interval_is_by_subject() -> None:
    before, after, _ = two_models(100, 7, 0.5)
    once = paired_bootstrap("auc", before, after, n_boot=400).estimate
    copies = [{name: np.repeat(column, 6) for name, column in records.items()} for records in (before, after)]
    by_subject = paired_bootstrap("auc", *copies, subjects=np.repeat(np.arange(100), 6), n_boot=400).estimate
    by_image = paired_bootstrap("auc", *copies, n_boot=400).estimate
    assert by_subject.high - by_subject.low == pytest.approx(once.high - once.low, rel=0.15)
    assert by_image.high - by_image.low < 0.6 * (once.high - once.low)


def test_p_value_does_not_grow_sharper_with_draws_and_goes_below_their_number() -> None:
    """A normal statistic 3.5 standard errors from 0: two-sided p is .00047, less than 1000 draws can count."""
    rng = np.random.default_rng(3)
    true = 2 * stats.norm.sf(3.5)
    for n_boot in (200, 1000, 50_000):
        z = [stats.norm.isf(bootstrap_p_value(rng.normal(size=n_boot) + 3.5, 10**6) / 2) for _ in range(10)]
        assert np.mean(z) == pytest.approx(3.5, abs=0.3)
    assert bootstrap_p_value(rng.normal(size=1000) + 3.5, 10**6) < 2 / 1001
    assert bootstrap_p_value(rng.normal(size=20_000) + 2, 10**6) == pytest.approx(2 * stats.norm.sf(2), rel=0.1)
    assert bootstrap_p_value(rng.normal(size=20_000) + 3.5, 6) > 20 * true  # six subjects cannot be so sure: t with 5 degrees
    assert bootstrap_p_value(-rng.normal(size=20_000) - 2, 50) == pytest.approx(bootstrap_p_value(rng.normal(size=20_000) + 2, 50), rel=0.1)


def test_interval_of_few_subjects_is_as_wide_as_students() -> None:
    draws = np.random.default_rng(4).normal(size=400_000) * np.sqrt(9 / 10)  # a bootstrap's spread is that of n - 1
    assert expanded_interval(draws, 10) == pytest.approx((-2.262, 2.262), abs=0.05)
    assert np.isnan([*expanded_interval(draws, 1), bootstrap_p_value(draws, 1)]).all()
    mostly_undefined = np.where(np.arange(400) % 3 == 0, 1.0, np.nan)
    assert np.isnan([*expanded_interval(mostly_undefined, 9), bootstrap_p_value(mostly_undefined, 9)]).all()


def test_undefined_statistics_are_nan() -> None:
    score, nan = [0.1, 0.2, 0.3, 0.4], np.nan
    for labels in ([1, 1, 1, 1], [-1, nan, -1, nan], [0, 0, -1, nan]):
        records = {"score": score, "label": labels}
        found = paired_bootstrap("auc", records, records, n_boot=50)
        assert np.isnan([found.estimate.value, found.estimate.low, found.estimate.high, found.p_value]).all()
    records = {"score": score, "label": [1, 0, 1, 0]}
    one_subject = paired_bootstrap("auc", records, records, subjects=["s"] * 4, n_boot=50)
    assert one_subject.estimate.value == 0 and np.isnan([one_subject.estimate.low, one_subject.p_value]).all()
    one_image = paired_bootstrap(lambda table: table["score"].mean(), {"score": [1.0]}, {"score": [2.0]}, n_boot=50)
    assert one_image.estimate.value == 1 and np.isnan(one_image.p_value)


def test_row_order_changes_nothing() -> None:
    before, after, subjects = two_models(90, 8, 0.4, copies=3)
    order = np.random.default_rng(5).permutation(90)
    tables = [pd.DataFrame({**records, "image": [f"{i}.png" for i in range(90)]}) for records in (before, after)]
    moved, ids = [table.iloc[order].reset_index(drop=True) for table in tables], tables[0]["image"].to_numpy()
    for statistic in ("auc", lambda table: table["score"].mean()):
        first = paired_bootstrap(statistic, *tables, subjects=subjects, ids=ids, n_boot=100)
        again = paired_bootstrap(statistic, *moved, subjects=subjects[order], ids=ids[order], n_boot=100)
        for name in ("value", "low", "high"):
            assert getattr(first.estimate, name) == pytest.approx(getattr(again.estimate, name), abs=1e-10)
        assert first.p_value == pytest.approx(again.p_value, abs=1e-10)


GOOD = {"score": [0.1, 0.2], "label": [0, 1]}


@pytest.mark.parametrize(
    ("statistic", "before", "after", "says"),
    [
        ("auc", GOOD, {"score": [0.1], "label": [0]}, "before has 2 records, after 1"),
        ("auc", {"score": [], "label": []}, {"score": [], "label": []}, "before has 0 records"),
        ("auc", GOOD, {"score": [0.1, 0.2], "label": [1, 1]}, "label differs in row 0"),
        ("auc", pd.DataFrame(GOOD), pd.DataFrame(GOOD, index=[1, 0]), "indexes differ"),
        ("auc", GOOD, {"score": [0.1, np.nan], "label": [0, 1]}, "NaN, Inf or text"),
        ("auc", GOOD, {"score": [0.1, "high"], "label": [0, 1]}, "NaN, Inf or text"),
        ("auc", {"score": [1, 2, 3], "label": [0, 1, 2]}, {"score": [1, 2, 3], "label": [0, 1, 2]}, "3 values"),
        ("auc_gap", GOOD, GOOD, "no column 'group'"),
        ("acu", GOOD, GOOD, "did you mean 'auc'"),
        ("auc", [1, 2], [1, 2], "not a table"),
        ("auc", {"score": [1, 2], "label": [1]}, GOOD, "not a table"),
    ],
)
def test_records_that_do_not_pair_are_one_line_errors(statistic: str, before: object, after: object, says: str) -> None:
    with pytest.raises(FeatureError, match=says):
        paired_bootstrap(statistic, before, after, n_boot=20)


def test_labels_pair_by_meaning_not_by_type() -> None:
    typed = {"score": [0.1, 0.2, 0.3], "label": [0.0, 1.0, np.nan]}
    found = paired_bootstrap("auc", {"score": [0.1, 0.2, 0.3], "label": [0, 1, -1]}, typed, n_boot=20)
    assert found.estimate.value == 0


def frame(values: dict[str, float], half: float = 0.02, *, higher_is_better: bool = True) -> SubgroupFrame:
    cells = {name: (Estimate(value, value - half, value + half, 50), "") for name, value in values.items()}
    return SubgroupFrame.of(cells, UNDEFINED, higher_is_better)


def test_levelling_down_is_flagged_with_a_sentence() -> None:
    found = levelling_down(frame({"a": 0.9, "b": 0.7}), frame({"a": 0.8, "b": 0.7}), higher_is_better=True)
    assert found.flagged and found.clear
    assert (found.gap_before, found.gap_after) == pytest.approx((0.2, 0.1))
    assert found.text == (
        "Levelling down: the gap shrank from 0.2 to 0.1 because the best group got worse (a 0.9, now a 0.8) "
        "and the worst did not gain (b 0.7, now b 0.7)."
    )
    distances = [frame({"a": 0.1, "b": 0.3}, higher_is_better=False), frame({"a": 0.25, "b": 0.31}, higher_is_better=False)]
    assert levelling_down(*distances, higher_is_better=False).flagged  # both worse, the best more so
    swapped = levelling_down(frame({"a": 0.9, "b": 0.7}), frame({"a": 0.7, "b": 0.75}), higher_is_better=True)
    assert swapped.flagged and "now b 0.75" in swapped.text and "now a 0.7)" in swapped.text  # levels count, not names


@pytest.mark.parametrize(
    ("after", "half", "says"),
    [
        ({"a": 0.9, "b": 0.8}, 0.02, "the worst group gained"),
        ({"a": 0.85, "b": 0.76}, 0.02, "the worst group gained"),  # the best fell as well, yet the worst clearly rose
        ({"a": 0.89, "b": 0.72}, 0.2, "the worst group gained"),  # in the noise, but more than the best fell
        ({"a": 0.85, "b": 0.71}, np.nan, "the worst group gained"),  # no interval, so any rise counts
        ({"a": 0.9, "b": 0.6}, 0.02, "did not shrink"),
        ({"a": 0.95, "b": 0.7}, 0.02, "did not shrink"),
        ({"a": 0.9, "b": 0.7}, 0.02, "did not shrink"),
    ],
)
def test_what_is_not_levelling_down(after: dict[str, float], half: float, says: str) -> None:
    found = levelling_down(frame({"a": 0.9, "b": 0.7}, half), frame(after, half), higher_is_better=True)
    assert found.flagged is False and not found.clear and says in found.text


def test_levelling_down_within_the_noise_says_so() -> None:
    found = levelling_down(frame({"a": 0.9, "b": 0.7}, 0.1), frame({"a": 0.8, "b": 0.71}, 0.1), higher_is_better=True)
    assert found.flagged and not found.clear and found.text.endswith("Noise could do this: the fall is within the intervals.")
    assert "the worst gained less, within its noise (b 0.7, now b 0.71)" in found.text


def test_levelling_down_where_nothing_changed_is_seldom_clear() -> None:
    rng = np.random.default_rng(6)
    truth, error = np.array([0.9, 0.85, 0.7]), 0.03
    draws = [[dict(zip("abc", truth + error * rng.normal(size=3), strict=True)) for _ in range(2)] for _ in range(120)]
    found = [levelling_down(*(frame(values, 1.96 * error) for values in pair), higher_is_better=True) for pair in draws]
    assert np.mean([each.clear for each in found]) <= 0.06 and np.mean([each.flagged for each in found]) <= 0.35


def test_levelling_down_needs_groups_that_both_define() -> None:
    gone = frame({"a": 0.9, "b": 0.7, "c": np.nan})
    found = levelling_down(gone, frame({"a": 0.8, "b": 0.7, "d": 0.1}), higher_is_better=True)
    assert found.flagged and found.text.endswith("Left out, as not defined in both: c, d.")
    alone = levelling_down(gone, frame({"a": 0.8, "c": 0.7}), higher_is_better=True)
    assert alone.flagged is None and "cannot be told" in alone.text and np.isnan(alone.gap_after)
    with pytest.raises(ValueError, match="frames say otherwise"):
        levelling_down(gone, gone, higher_is_better=False)


def test_questions_are_read_and_written() -> None:
    assert parse_question("quality:race") == Question("quality", ("race",))
    assert parse_question(" presence : sex * age_group ") == Question("presence", ("sex", "age_group"))
    assert parse_question("semantics:tumour=yes:sex") == Question("semantics", ("sex",), "tumour", "yes")
    assert parse_question("semantics:stage=T1:a=b:sex") == Question("semantics", ("sex",), "stage", "T1:a=b")
    for text in ("quality:race", "presence:sex*age_group", "semantics:tumour=yes:sex", "utility:sex", "utility:tumour=yes:sex*race"):
        assert str(parse_question(text)) == text
    assert parse_question("quality:sex*race").matches(parse_question("quality:race*sex"))
    assert not parse_question("quality:sex*race").matches(parse_question("presence:race*sex"))
    assert not parse_question("quality:sex").matches(parse_question("quality:race*sex"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qualty:sex", "did you mean 'quality'"),
        ("memorisation:sex", "did you mean 'memorization'"),
        ("", "There is: presence, quality, semantics, memorization, utility"),
        ("quality", "no attribute at its end; write for example 'quality:sex'"),
        ("quality:", "no attribute at its end"),
        ("presence:sex*", "no attribute at its end"),
        ("presence:sex=male", "no attribute at its end"),
        ("quality:sex*sex", "stands twice"),
        ("quality:tumour=yes:sex", "quality has no condition 'tumour=yes'"),
        ("semantics:sex", "needs CONDITION=VALUE in its middle; write for example 'semantics:tumour=yes:sex'"),
        ("utility:tumour:sex", "needs CONDITION=VALUE"),
        ("quality:sexx", "did you mean 'sex'"),
        ("semantics:tumor=yes:sex", "did you mean 'tumour'"),
        ("semantics:tumour=yess:sex", "did you mean 'yes'"),
    ],
)
def test_a_wrong_question_is_one_line_that_says_what_is_possible(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_question(text, attributes=["sex", "race"], conditions={"tumour": ["yes", "no"]})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_rules_are_read_and_held_against_gaps() -> None:
    rule = parse_rule("presence:sex>0.05")
    assert (rule.question, rule.operator, rule.threshold) == (Question("presence", ("sex",)), ">", 0.05)
    assert str(rule) == "presence:sex>0.05" and str(parse_rule(" quality:race <= 1e-3 ")) == "quality:race<=0.001"
    assert rule.fails(0.3, 0.06, 0.5) is True and rule.fails(0.3, 0.05, 0.5) is False
    assert rule.fails(0.3, None, 0.5) is None and rule.fails(0.3, np.nan, 0.5) is None  # undefined: neither passed nor failed
    point = parse_rule("presence:sex>0.05!point")
    assert str(point) == "presence:sex>0.05!point" and point.fails(0.3, 0.0, None) is True and point.fails(None, 0.1, 0.5) is None
    broken = {sign: [parse_rule(f"presence:sex{sign}0.5").fails(9, gap, gap) for gap in (0.4, 0.5, 0.6)] for sign in (">", ">=", "<", "<=")}
    assert broken == {">": [False, False, True], ">=": [False, True, True], "<": [False, True, True], "<=": [False, False, True]}
    assert parse_rule('semantics:"a!point"=x:sex<=0.1').question.condition == "a!point"
    assert parse_rule("semantics:size=<2cm:sex>0.1").question.value == "<2cm"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("presence:sex", "in quotes (a shell reads >)"),
        ("presence:sex=0.05", "no >, >=, <, <="),
        (">0.05", "no >, >=, <, <="),
        ("presence:sex>", "'' is not a number"),
        ("presence:sex>5%", "'5%' is not a number"),
        ("presence:sex>0.05!points", "'0.05!points' is not a number"),
        ("presence:sex>nan", "'nan' is not a number"),
        ("presence:sexx>0.05", "did you mean 'sex'"),
        ("fairness:sex>0.05", "unknown kind 'fairness'"),
    ],
)
def test_a_wrong_rule_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rule(text, attributes=["sex"])
    assert says in str(caught.value) and "\n" not in str(caught.value)


ODD_NAMES = ["mass: solid", "a*b", "a=b", 'he said "x"', "a,b", ">=60", "x:y=z", "\\"]


@pytest.mark.parametrize("value", ODD_NAMES)
@pytest.mark.parametrize("column", ["sex", "race: own", "a*b", "Sex (M/F)", "a=b"])
def test_questions_and_rules_take_quoted_names(column: str, value: str) -> None:
    asked = Question("semantics", (column, "age"), column, value)
    assert parse_question(str(asked)) == asked
    rule = parse_rule(f"{asked}>=0.25")
    assert rule.question == asked and (rule.operator, rule.threshold) == (">=", 0.25)
    with pytest.raises(UserError) as error:
        parse_question('semantics:"tumour=yes:sex')
    assert "question 'semantics:\"tumour=yes:sex'" in str(error.value)
