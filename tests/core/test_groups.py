"""Mixes: read, written, drawn, counted; groups known and unknown."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evenhand.core.errors import UserError
from evenhand.core.groups import Factor, Mix, intersection, known, observed_mix, parse_mix
from evenhand.core.names import joint_label

SCHEMA = {"sex": ["male", "female"], "age_group": ["young", "old"], "tumour": ["none", "tumour"]}
INDEPENDENT = "sex=male:0.8,female:0.2;age_group=young:0.5,old:0.5"
JOINT = "sex*tumour=male/tumour:0.3,male/none:0.5,female/tumour:0.2"


def test_one_attribute() -> None:
    mix = parse_mix(" sex = male : 0.25 , female : 0.75 ", SCHEMA)
    assert mix.names == ("sex",) and mix.joint() == {("male",): 0.25, ("female",): 0.75}


def test_independent_factors_multiply() -> None:
    mix = parse_mix(INDEPENDENT, SCHEMA)
    expected = {("male", "young"): 0.4, ("male", "old"): 0.4, ("female", "young"): 0.1, ("female", "old"): 0.1}
    assert mix.joint() == pytest.approx(expected)
    assert mix.joint(["sex"]) == pytest.approx({("male",): 0.8, ("female",): 0.2})
    assert mix.joint([]) == pytest.approx({(): 1})


def test_joint_factor() -> None:
    mix = parse_mix(JOINT, SCHEMA)
    assert mix.joint() == {("male", "tumour"): 0.3, ("male", "none"): 0.5, ("female", "tumour"): 0.2}
    assert mix.joint(["sex"]) == pytest.approx({("male",): 0.8, ("female",): 0.2})
    assert mix.joint(["tumour"]) == pytest.approx({("tumour",): 0.5, ("none",): 0.5})
    assert mix.joint(["tumour", "sex"]) == {("tumour", "male"): 0.3, ("none", "male"): 0.5, ("tumour", "female"): 0.2}
    with pytest.raises(UserError) as error:
        mix.joint(["sx"])
    assert str(error.value) == "the mix says nothing of 'sx'; did you mean 'sex'? There is: sex, tumour"


@pytest.mark.parametrize("text", [INDEPENDENT, JOINT, "sex=male:1", "grade=2:0.5,3:0.5", "ratio=a:b:0.5,c:0.5"])
def test_text_and_back(text) -> None:
    mix = parse_mix(text)
    assert parse_mix(str(mix)) == mix and str(parse_mix(str(mix))) == str(mix)


ODD = [
    *("Black/African American", "a,b", "x:y", "a;b", ">=60", 'a "b" c'),
    *('"', "\\", '\\"', "a\\", " padded ", "a*b", "a=b", "a|b", "Ünal 男", "x", "a x b", "'s"),
]


def test_quoted_names() -> None:
    mix = parse_mix('race="Black/African American":0.2,White:0.8')
    assert mix.joint() == {("Black/African American",): 0.2, ("White",): 0.8}
    assert str(mix) == 'race="Black/African American":0.2,White:0.8'
    joint = parse_mix('sex*race = male / "Black/African American" : 0.3 , "fe,male"/White:0.7')
    assert joint.joint() == {("male", "Black/African American"): 0.3, ("fe,male", "White"): 0.7}
    assert parse_mix("age_group=>=60:0.25,<60:0.75").joint() == {(">=60",): 0.25, ("<60",): 0.75}
    assert parse_mix("height=5\"2:0.5,6\":0.5").joint() == {('5"2',): 0.5, ('6"',): 0.5}  # a quote inside of a name is a character
    assert parse_mix('"Sex (M/F); at = birth"*b="M:F"/c:1').names == ("Sex (M/F); at = birth", "b")


def test_a_name_that_must_be_quoted_is_shown_in_quotes() -> None:
    with pytest.raises(UserError) as error:
        parse_mix("race=Black African American:0.5,White:0.5", {"race": ["White", "Black/African American", ">=60"]})
    assert str(error.value) == (
        "mix: race has no group 'Black African American'; did you mean '\"Black/African American\"'? "
        'There is: White, "Black/African American", >=60'
    )


def test_every_name_is_written_so_that_it_is_read_back() -> None:
    rng = np.random.default_rng(0)
    signs = list(',;:/*="\\|<> x\'aé男\t')
    drawn = {"".join(rng.choice(signs, size=rng.integers(1, 7))) for _ in range(300)}
    names = sorted({*ODD, *drawn})
    for start in range(0, len(names) - 6, 3):
        columns, groups = tuple(names[start : start + 2]), names[start + 2 : start + 6]
        shares = rng.dirichlet(np.ones(4))
        shares[-1] = 1 - shares[:-1].sum()
        joint = Factor(columns, {(a, b): float(share) for a, b, share in zip(groups, reversed(groups), shares, strict=True)})
        mix = Mix((joint, Factor((names[start] + "2",), {(names[start],): 0.25, (names[start + 1],): 0.75})))
        assert parse_mix(str(mix)) == mix


def test_joint_labels_are_never_alike() -> None:
    parts = ["a", "x", "a x b", "x b", "b x", "a x", '"a x b"', '"', "b", '"x"', "\\", "a x b x a"]
    pairs = [(one, other) for one in parts for other in parts] + [(one, "a", other) for one in parts for other in parts]
    labels = [joint_label(pair) for pair in pairs]
    assert len(set(labels)) == len(labels)
    assert joint_label(["male", "old"]) == "male x old" and joint_label(["a x b", "c"]) == '"a x b" x c'
    assert joint_label(["a x b"]) == "a x b"
    table = pd.DataFrame({"one": ["a x b", "a", "a"], "two": ["c", "b x c", None]})
    assert intersection(table, ["one", "two"]).tolist() == ['"a x b" x c', 'a x "b x c"', "unknown"]


def test_shares_that_nearly_sum_to_one_are_scaled() -> None:
    assert sum(parse_mix("a=x:0.333,y:0.333,z:0.333").joint().values()) == pytest.approx(1, abs=1e-12)


FORM = "write for example 'sex=male:0.5,female:0.5'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"mix '': nothing is stated; {FORM}"),
        ("male:0.5", f"mix 'male:0.5': no attribute before '='; {FORM}"),
        ("=male:1", f"mix '=male:1': no attribute before '='; {FORM}"),
        ("sex=male:1;sex=male:1", f"mix 'sex=male:1;sex=male:1': 'sex' stands twice; {FORM}"),
        ("sex=male", "mix 'sex=male': cannot read 'male'; each item is GROUP:SHARE, such as 'male:0.5'"),
        (
            "sex*tumour=male:1",
            "mix 'sex*tumour=male:1': cannot read 'male:1'; each item is GROUP/GROUP:SHARE, with a group each of sex, tumour",
        ),
        ("sex=male:0.5,male:0.5", "mix 'sex=male:0.5,male:0.5': 'male' stands twice; name each group once"),
        ("sex=male:0.5,female:0.6", "mix 'sex=male:0.5,female:0.6': shares sum to 1.1, not 1; change them so that they do"),
        ("sex=male:x", "mix 'sex=male:x': share 'x' is not a number between 0 and 1"),
        ("sex=male:-0.5,female:1.5", "mix 'sex=male:-0.5,female:1.5': share '-0.5' is not a number between 0 and 1"),
        ("sex=male:nan,female:1", "mix 'sex=male:nan,female:1': share 'nan' is not a number between 0 and 1"),
        (
            "race=Black, non-Hispanic:0.5,White:0.5",
            "mix 'race=Black, non-Hispanic:0.5,White:0.5': cannot read 'Black'; each item is GROUP:SHARE, such as 'male:0.5'; "
            'a name with , ; : or / stands in double quotes: "Black/African American":0.2',
        ),
        (
            "sex*race=male/Black/African American:1",
            "mix 'sex*race=male/Black/African American:1': cannot read 'male/Black/African American:1'; each item is GROUP/GROUP:SHARE, "
            "with a group each of sex, race; a name with , ; : or / stands in double quotes: \"Black/African American\":0.2",
        ),
        (
            'race="Black:0.5',
            "mix 'race=\"Black:0.5': no closing quote in \"Black:0.5; write for example race=\"Black/African American\":0.2,White:0.8",
        ),
        ('race="":1', "mix 'race=\"\":1': a group without a name; write for example 'sex=male:0.5,female:0.5'"),
        (
            'race="a"b:1',
            "mix 'race=\"a\"b:1': text behind the closing quote in \"a\"b; write for example race=\"Black/African American\":0.2,White:0.8",
        ),
        ("sex=MALE:1", "mix: sex has no group 'MALE'; did you mean 'male'? There is: male, female"),
        ("sxe=male:1", "mix: unknown attribute 'sxe'; did you mean 'sex'? There is: sex, age_group, tumour"),
        ("sex=mael:1", "mix: sex has no group 'mael'; did you mean 'male' or 'female'? There is: male, female"),
    ],
)
def test_mistakes(text, message) -> None:
    with pytest.raises(UserError) as error:
        parse_mix(text, SCHEMA)
    assert str(error.value) == message


def test_counts_add_up_and_are_the_nearest() -> None:
    assert parse_mix("g=a:0.5,b:0.3,c:0.2").counts(10) == {("a",): 5, ("b",): 3, ("c",): 2}
    thirds = Mix(parse_mix("g=a:0.334,b:0.333,c:0.333").factors).counts(10)
    assert thirds == {("a",): 4, ("b",): 3, ("c",): 3}
    for n in (0, 1, 7, 1001):
        counts = parse_mix(INDEPENDENT).counts(n)
        assert sum(counts.values()) == n
        assert all(
            abs(count - n * share) < 1 for count, share in zip(counts.values(), parse_mix(INDEPENDENT).joint().values(), strict=True)
        )


def test_an_absent_group_gets_nothing() -> None:
    mix = parse_mix("sex=male:1,female:0", SCHEMA)
    assert mix.counts(5) == {("male",): 5, ("female",): 0}
    assert set(mix.sample(50, np.random.default_rng(0))["sex"]) == {"male"}


def test_samples_follow_the_mix() -> None:
    mix = parse_mix(JOINT, SCHEMA)
    drawn = mix.sample(4000, np.random.default_rng(7))
    found = drawn.value_counts()
    observed = [found[values] for values in mix.joint()]
    assert stats.chisquare(observed, [4000 * share for share in mix.joint().values()]).pvalue > 1e-4
    pd.testing.assert_frame_equal(drawn, mix.sample(4000, np.random.default_rng(7)))


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sex": ["male", "male", "female", "unknown", None, "male"],
            "age_group": ["old", "young", "old", "old", "old", "unspecified"],
        }
    )


def test_known_and_intersection(table) -> None:
    assert known(table, ["sex"]).tolist() == [True, True, True, False, False, True]
    assert known(table, ["sex", "age_group"]).tolist() == [True, True, True, False, False, False]
    assert intersection(table, ["sex", "age_group"]).tolist() == [
        "male x old",
        "male x young",
        "female x old",
        "unknown",
        "unknown",
        "unknown",
    ]
    assert intersection(table, ["age_group"]).tolist() == ["old", "young", "old", "old", "old", "unknown"]


def test_observed_mix(table) -> None:
    assert observed_mix(table, ["sex"]).joint() == pytest.approx({("male",): 0.75, ("female",): 0.25})
    joint = observed_mix(table, ["sex", "age_group"]).joint()
    assert joint == pytest.approx({("male", "old"): 1 / 3, ("male", "young"): 1 / 3, ("female", "old"): 1 / 3})
    with pytest.raises(UserError) as error:
        observed_mix(table.iloc[3:5], ["sex"])
    assert str(error.value) == "no row has a known value of sex; give a mix in words instead"
