"""A guide that is certain is made less so, and the target is what it then reads there."""

from __future__ import annotations

import numpy as np
import pytest

from evenhand.alignment.softening import reading_by_group, seen_through, temperature_for


def logits(margins: list[float], guides: int = 1) -> np.ndarray:
    """Two groups; the second leads by the margin."""
    return np.tile(np.stack([np.zeros(len(margins)), np.array(margins)], axis=1), (guides, 1, 1))


def test_the_temperature_gives_the_certainty_that_is_asked_for() -> None:
    """A margin of 20 at certainty .9 wants 20 / ln 9."""
    assert temperature_for(logits([20.0, -20.0, 20.0]), 0.9) == pytest.approx(20 / np.log(9), rel=1e-6)
    assert temperature_for(logits([20.0, -20.0], guides=3), 0.9) == pytest.approx(20 / np.log(9), rel=1e-6)
    assert temperature_for(logits([1.0, -1.0]), 0.9) == 1.0  # e / (1 + e) = .73: less certain already
    assert temperature_for(logits([20.0]), 1.0) == 1.0


def test_what_is_read_from_each_group() -> None:
    """Ten of each: a margin of 2 ln 9 at temperature 2 reads .9; a group that is never shown reads as certain as was asked for."""
    margin = 2 * np.log(9)
    both = reading_by_group(logits([margin] * 10 + [-margin] * 10), 2.0, 0.8)
    np.testing.assert_allclose(both, [[0.9, 0.1], [0.1, 0.9]])
    np.testing.assert_allclose(reading_by_group(logits([margin] * 10), 2.0, 0.8), [[0.8, 0.2], [0.1, 0.9]])


def test_the_target_as_softened_guides_read_it() -> None:
    """.3/.7 through .9 is .3 x .9 + .7 x .1 = .34; jointly, each attribute is read by itself."""
    first, second = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[0.8, 0.2], [0.4, 0.6]])
    np.testing.assert_allclose(seen_through(np.array([0.3, 0.7]), [first]), [0.34, 0.66])
    joint = np.array([[0.5, 0.0], [0.2, 0.3]])
    np.testing.assert_allclose(seen_through(joint.reshape(-1), [first, second]), (first.T @ joint @ second).reshape(-1))
