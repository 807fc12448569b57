"""Consistency on embeddings of known angles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenhand.alignment.consistency import consistency_loss, consistency_weights


def test_it_is_the_weighted_mean_of_one_less_the_cosine() -> None:
    """The same way, at right angles, and opposite: 0, 1 and 2; lengths do not matter."""
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], requires_grad=True)
    frozen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    loss = consistency_loss(features, frozen, torch.tensor([1.0, 1.0, 0.2]))
    assert float(loss.detach()) == pytest.approx((0 + 1 + 0.2 * 2) / 3)
    (gradient,) = torch.autograd.grad(loss, features)
    assert gradient[1, 0] < 0 and gradient[0].abs().max() == 0  # turns towards the untuned model's image


def test_images_that_are_to_change_group_count_a_fifth() -> None:
    np.testing.assert_array_equal(consistency_weights(np.array([0, 1, 2]), np.array([0, 0, 2])), [1, 0.2, 1])
