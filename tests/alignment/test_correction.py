from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evenhand.alignment.correction import Correction
from evenhand.alignment.guides import Guides

SEX = [[0.8, 0.2], [0.35, 0.65]]  # rows: men, women; columns: read as man, as woman


def guide(attribute: str, groups: list[str], read_as: Any, subjects: list[int], trained_on: str = "some") -> Any:
    facts = {"read_as": read_as, "test_subjects": subjects}
    return SimpleNamespace(path=Path("guide"), target=attribute, groups=groups, facts=facts, subjects_sha256=trained_on)


def of(*guides: Any, classes: int = 1) -> Correction:
    by_attribute: dict[str, list[Any]] = {}
    for one in guides:
        by_attribute.setdefault(one.target, []).append(one)
    return Correction.of(Guides(by_attribute), classes)


def settled(shares: np.ndarray) -> np.ndarray:
    return shares


def test_shares_are_what_votes_speak_for() -> None:
    """Three men to a woman are read as .75 x .8 + .25 x .35 = .6875 men."""
    found = of(guide("sex", ["male", "female"], SEX, [30, 30]))
    np.testing.assert_allclose(found.shares(np.array([0.6875, 0.3125])), [0.75, 0.25], atol=1e-9)
    assert found.unknown == []


def test_votes_that_no_mix_would_give_speak_for_the_nearest() -> None:
    found = of(guide("sex", ["male", "female"], SEX, [30, 30]))
    np.testing.assert_allclose(found.shares(np.array([0.95, 0.05])), [1, 0], atol=1e-9)


def test_guides_of_another_order_are_turned_and_averaged() -> None:
    second = guide("sex", ["female", "male"], [[0.9, 0.1], [0.3, 0.7]], [20, 20], "others")  # rows: women, men
    found = of(guide("sex", ["male", "female"], SEX, [30, 30]), second)
    np.testing.assert_allclose(found.matrix(), [[0.75, 0.225], [0.25, 0.775]])


def test_attributes_and_classes_of_prompts_are_joint() -> None:
    """Shares of 2 classes x 2 sexes x 2 ages come back from the votes that they give, class by class."""
    age = [[0.9, 0.1], [0.2, 0.8]]
    found = of(guide("sex", ["male", "female"], SEX, [30, 30]), guide("age", ["young", "old"], age, [30, 30]), classes=2)
    wanted = np.array([0.1, 0.2, 0.05, 0.15, 0.0, 0.3, 0.15, 0.05])
    votes = np.einsum("csa,sr,at->crt", wanted.reshape(2, 2, 2), SEX, age).reshape(-1)
    np.testing.assert_allclose(found.shares(votes), wanted, atol=1e-9)


def test_a_class_keeps_what_its_prompts_gave_it() -> None:
    """Votes of the first class are beyond reach, the second is half and half, the third was not drawn."""
    found = of(guide("sex", ["male", "female"], SEX, [30, 30]), classes=3)
    votes = np.concatenate([0.9 * np.array([0.95, 0.05]), 0.1 * np.array([0.575, 0.425]), [0, 0]])
    np.testing.assert_allclose(found.shares(votes), [0.9, 0, 0.05, 0.05, 0, 0], atol=1e-9)
    assert not found.shares(votes)[4:].any()


def test_an_interval_is_that_of_the_images_and_of_the_subjects_who_told() -> None:
    """Errors known from many: half a width of 1.96 sqrt(p (1 - p) / n) / (.8 - .35). From few: wider."""
    votes = np.eye(2)[np.repeat([0, 1], [1375, 625])]
    low, high = of(guide("sex", ["male", "female"], SEX, [10**6, 10**6])).interval(votes, settled, seed=0)
    half = 1.96 * (0.6875 * 0.3125 / 2000) ** 0.5 / 0.45
    np.testing.assert_allclose([low[0], high[0]], [0.75 - half, 0.75 + half], atol=0.01)
    wide_low, wide_high = of(guide("sex", ["male", "female"], SEX, [12, 12])).interval(votes, settled, seed=0)
    assert wide_low[0] < low[0] - 0.05 and wide_high[0] > high[0] + 0.05


def test_guides_of_the_same_subjects_are_one_witness() -> None:
    """Two of them leave as much open as one, two of other subjects less; all leave something open where all images are read alike."""
    votes = np.eye(2)[np.repeat([0, 1], [550, 450])]

    def width(*trained_on: str) -> float:
        low, high = of(*(guide("sex", ["male", "female"], SEX, [20, 20], one) for one in trained_on)).interval(votes, settled, seed=0)
        return float(high[0] - low[0])

    assert width("one", "one") == pytest.approx(width("one"))
    assert width("one", "two") < 0.85 * width("one")
    low, high = of(guide("sex", ["male", "female"], [[1.0, 0.0], [0.0, 1.0]], [30, 30])).interval(np.eye(2)[[0] * 20], settled, seed=0)
    assert 0.75 < low[0] < 0.95 and high[0] > 0.99


def test_an_interval_of_classes_and_three_groups_holds_its_shares() -> None:
    age = [[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]]
    found = of(guide("age", ["young", "middle", "old"], age, [50, 50, 50]), classes=2)
    wanted = np.array([0.1, 0.2, 0.2, 0.3, 0.1, 0.1])
    cells = np.round(1000 * (wanted.reshape(2, 3) @ np.array(age)).reshape(-1)).astype(int)
    low, high = found.interval(np.eye(6)[np.repeat(np.arange(6), cells)], settled, seed=0)
    assert (low < wanted).all() and (wanted < high).all() and (high - low < 0.3).all()


def test_the_same_few_subjects_do_not_become_many() -> None:
    """Two guides of one cohort have six test subjects a group together; two of different cohorts have twelve."""
    perfect = [[1.0, 0.0], [0.0, 1.0]]
    same, other = (of(*(guide("sex", ["male", "female"], perfect, [6, 6], name) for name in names)) for names in (("a", "a"), ("a", "b")))
    assert len(same.unknown) == 1 and "only 6 test subjects are male" in same.unknown[0] and other.unknown == []


@pytest.mark.parametrize(
    ("read_as", "subjects", "said"),
    [
        (None, [9, 9], "does not say how"),
        ([[1.0, 0.0], None], [30, 0], "none of its test subjects is female"),
        ([[1.0, 0.0], [0.0, 1.0]], [30, 9], "only 9 test subjects are female"),
        ([[0.9, 0.1], [0.8, 0.2]], [30, 30], "male, female too much alike"),
    ],
)
def test_errors_that_cannot_be_undone_are_told_and_left(read_as: Any, subjects: Any, said: str) -> None:
    found = of(guide("sex", ["male", "female"], read_as, subjects))
    votes = np.array([0.7, 0.3])
    np.testing.assert_allclose(found.shares(votes), votes, atol=1e-9)
    assert len(found.unknown) == 1 and said in found.unknown[0] and found.unknown[0].startswith("guide: ")
