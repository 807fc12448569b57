"""How far to go along the way that was learnt: literals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenhand.alignment.scaling import between, likely_scale
from evenhand.alignment.settings import LARGEST_SCALE

HALF = np.array([0.5, 0.5])


def male(share: float) -> np.ndarray:
    return np.array([share, 1 - share])


@pytest.mark.parametrize(
    ("shown", "scale"),
    [
        ({0.0: male(0.8), 1.0: male(0.5)}, 1.0),
        ({0.0: male(0.8), 1.0: male(0.4)}, 0.75),  # it went past the target
        ({0.0: male(0.8), 1.0: male(0.55)}, 1.2),  # it fell short of it
        ({0.0: male(0.8), 1.0: male(0.7)}, LARGEST_SCALE),
        ({0.0: male(0.8), 0.75: male(0.56), 1.0: male(0.4)}, 0.84),  # .75 + .25 * .06 / .16 = .844
        ({0.0: male(0.8), 1.0: male(0.8)}, 1.0),  # nothing moves: the tuned weights
        ({0.0: male(0.5), 1.0: male(0.3)}, 0.0),
    ],
)
def test_the_scale_at_which_lines_between_mixes_meet_the_target(shown: dict[float, np.ndarray], scale: float) -> None:
    assert likely_scale(shown, HALF) == pytest.approx(scale)


def test_four_groups_are_met_where_the_total_variation_is_least() -> None:
    before, after = np.array([0.4, 0.4, 0.1, 0.1]), np.array([0.2, 0.2, 0.3, 0.3])
    assert likely_scale({0.0: before, 1.0: after}, np.full(4, 0.25)) == pytest.approx(0.75)
    absent = np.array([0.5, 0.5, 0.0, 0.0])  # groups that nobody draws
    assert likely_scale({0.0: absent, 1.0: absent}, np.full(4, 0.25)) == 1.0


def test_weights_lie_on_the_line_and_its_end_is_exact() -> None:
    untuned, tuned = {"w": torch.tensor([0.1, 1.0]), "frozen": torch.ones(2)}, {"w": torch.tensor([0.3, 0.7])}
    assert torch.equal(between(untuned, tuned, 1.0)["w"], tuned["w"])
    assert list(between(untuned, tuned, 0.5)) == ["w"]
    torch.testing.assert_close(between(untuned, tuned, 0.5)["w"], torch.tensor([0.2, 0.85]))
    torch.testing.assert_close(between(untuned, tuned, 1.25)["w"], torch.tensor([0.35, 0.625]))
