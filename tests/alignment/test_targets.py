"""Targets by hand, by enumeration and by finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multinomial

from evenhand.alignment.exemplars import tell_weights
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.targets import Assignment, assign, assignment_loss, joint_probabilities, mix_divergence, tilted_weights


def test_divergence_is_zero_at_the_target_and_by_hand_elsewhere() -> None:
    batch = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    assert mix_divergence(batch, torch.tensor([0.5, 0.5], dtype=torch.float64)).item() == pytest.approx(0, abs=1e-15)
    sure = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert mix_divergence(sure, torch.tensor([0.5, 0.5], dtype=torch.float64)).item() == pytest.approx(np.log(2))
    left_out = mix_divergence(batch, torch.tensor([1.0, 0.0], dtype=torch.float64)).item()
    assert np.isfinite(left_out) and left_out > 5


def test_divergence_gradient_matches_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    past = torch.tensor([0.4, 0.1, 0.25, 0.25], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mix_divergence(x.softmax(1), target, past, 0.3), logits, eps=1e-6, atol=1e-8)


def test_the_past_steadies_the_mean() -> None:
    batch, target = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    past = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert mix_divergence(batch, target, past, 0.5).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(
    ("share", "groups", "confidence"),
    [
        # of two images, 2, 1 or 0 show the second group with chance 1/4, 1/2, 1/4: the likelier one in 3/4, the other in 1/4
        (0.5, [1, 0], [0.75, 0.75]),
        # with chance .09, .42, .49: the likelier one in .51, the other in .09
        (0.3, [1, 0], [0.51, 0.91]),
        (0.0, [0, 0], [1.0, 1.0]),
        (1.0, [1, 1], [1.0, 1.0]),
    ],
)
def test_two_groups_by_hand(share: float, groups: list[int], confidence: list[float]) -> None:
    found = assign(np.array([[0.4, 0.6], [0.7, 0.3]]), np.array([1 - share, share]))
    assert found.groups.tolist() == groups and found.confidence == pytest.approx(confidence)


def test_two_groups_of_four_images_at_three_tenths() -> None:
    """P(Binomial(4, .3) >= 1, 2, 3, 4) = .7599, .3483, .0837, .0081."""
    found = assign(np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.6, 0.4]]), np.array([0.7, 0.3]))
    assert found.groups.tolist() == [0, 1, 0, 0]
    assert found.confidence == pytest.approx([1 - 0.0081, 0.7599, 1 - 0.3483, 1 - 0.0837])


def test_images_that_are_all_certain_still_rank() -> None:
    """The second one is the least sure of the second group, whose probabilities all round to 1: it alone shows the first."""
    certain = np.array([[1e-30, 1.0], [1e-20, 1.0], [1e-25, 1.0]])
    assert assign(certain, np.array([0.3, 0.7])).groups.tolist() == [1, 0, 1]
    assert assign(certain[:, ::-1], np.array([0.7, 0.3])).groups.tolist() == [0, 1, 0]


def enumerated(probabilities: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Chance (B, K) of every group over all counts, the best of all permutations of each."""
    n, k = probabilities.shape
    shares = np.zeros((n, k))
    for counts in itertools.product(range(n + 1), repeat=k):
        if sum(counts) == n:
            slots = np.repeat(np.arange(k), counts)
            best = max(set(itertools.permutations(slots)), key=lambda places: sum(probabilities[i, g] for i, g in enumerate(places)))
            for image, group in enumerate(best):
                shares[image, group] += multinomial.pmf(counts, n, target)
    return shares


def test_a_joint_of_two_attributes() -> None:
    """2 x 2 joint groups, four images that are each surest of another group: a uniform target leaves each where it is most often."""
    sex = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    age = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
    joint = joint_probabilities([sex, age])
    assert joint[0].tolist() == pytest.approx([0.81, 0.09, 0.09, 0.01]) and joint.sum(1).tolist() == pytest.approx([1] * 4)
    found = assign(joint.numpy(), np.full(4, 0.25), draws=4000)
    assert found.groups.tolist() == [0, 1, 2, 3]
    for target in (np.full(4, 0.25), np.array([0.1, 0.2, 0.3, 0.4])):
        expected, found = enumerated(joint.numpy(), target), assign(joint.numpy(), target, draws=4000)
        assert found.confidence == pytest.approx(expected.max(1), abs=0.03)  # four standard errors of 4,000 draws
        sure = np.sort(expected, 1)[:, -1] - np.sort(expected, 1)[:, -2] > 0.05
        assert (found.groups == expected.argmax(1))[sure].all()


def test_a_group_that_the_target_leaves_out_is_assigned_to_nobody() -> None:
    rng = np.random.default_rng(0)
    found = assign(rng.dirichlet(np.ones(3), 16), np.array([0.5, 0.0, 0.5]))
    assert set(found.groups) == {0, 2}


def test_unsure_images_count_nothing() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = assignment_loss(logits, Assignment(np.array([0, 1]), np.array([0.9, 0.7])))
    assert loss.item() == pytest.approx(np.log(2) / 2)
    loss.backward()
    assert logits.grad is not None and logits.grad[1].tolist() == [0, 0] and logits.grad[0].tolist() == pytest.approx([-0.25, 0.25])


def test_weights_of_certain_images_are_ratios_of_shares() -> None:
    """Three of four show the first group: for .3/.7 each of them weighs .1, the other .7."""
    weights = tilted_weights(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]), np.array([0.3, 0.7]))
    np.testing.assert_allclose(weights, [0.1, 0.1, 0.1, 0.7], atol=1e-5)


def test_weights_of_uncertain_images_meet_the_target_on_average() -> None:
    """Of three groups, against scipy's own minimiser of relative entropy under the constraint."""
    predictions = np.random.default_rng(0).dirichlet([1, 1, 1], size=12)
    target = np.array([0.2, 0.5, 0.3])
    weights = tilted_weights(predictions, target)
    np.testing.assert_allclose(weights @ predictions, target, atol=1e-4)
    free = minimize(
        lambda w: (w * np.log(12 * w)).sum(), np.full(12, 1 / 12), bounds=[(1e-9, 1)] * 12, method="SLSQP", options={"ftol": 1e-12},
        constraints=[{"type": "eq", "fun": lambda w: w @ predictions - target}],
    )  # fmt: skip
    np.testing.assert_allclose(weights, free.x, atol=2e-3)


def test_a_target_out_of_reach_is_approached() -> None:
    """No image is read as the second group with more than .6: all weight goes there."""
    weights = tilted_weights(np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), np.array([0.0, 1.0]))
    assert weights[2] > 0.99 and weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shares", "target", "cap", "mix"),
    [
        ([0.01, 0.99], [0.5, 0.5], 10, [0.1, 0.9]),  # 1 % of women, ten times as often
        ([0.01, 0.30, 0.69], [0.5, 0.25, 0.25], 10, [0.1, 0.45, 0.45]),  # what falls short goes to the others by their targets
        ([0.02, 0.28, 0.70], [0.5, 0.5, 0.0], 5, [0.1, 0.9, 0.0]),  # and none of it to one that is left out
        ([0.02, 0.98], [1.0, 0.0], 4, [0.08, 0.92]),  # unless nothing else is there
        ([0.20, 0.80], [0.5, 0.5], 10, [0.5, 0.5]),
    ],
)
def test_no_weight_is_above_the_cap_and_the_mix_comes_as_near_as_that_allows(
    shares: list[float], target: list[float], cap: float, mix: list[float]
) -> None:
    shown = np.eye(len(shares))[np.repeat(np.arange(len(shares)), [round(1000 * share) for share in shares])]
    weights = tilted_weights(shown, np.array(target), cap)
    np.testing.assert_allclose(weights @ shown, mix, atol=1e-3)
    assert weights.sum() == pytest.approx(1) and weights.max() * 1000 <= cap * (1 + 1e-6)


def test_capped_weights_of_uncertain_images_are_nearest_to_equal() -> None:
    """Against scipy's own minimiser of relative entropy under the constraints; the cap binds."""
    predictions = np.random.default_rng(1).dirichlet([0.3, 0.3, 0.3], size=12)
    target = np.array([0.2, 0.5, 0.3])
    cap = 0.8 * 12 * tilted_weights(predictions, target).max()
    weights = tilted_weights(predictions, target, cap)
    free = minimize(
        lambda w: (w * np.log(12 * w)).sum(), np.full(12, 1 / 12), bounds=[(1e-9, cap / 12)] * 12, method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
        constraints=[{"type": "eq", "fun": lambda w: w @ predictions - target}],
    )  # fmt: skip
    assert weights.max() * 12 == pytest.approx(cap, rel=1e-3)
    np.testing.assert_allclose(weights, free.x, atol=2e-3)


def test_the_mix_that_the_cap_allows_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    base = {"model": "m", "guide": ["g"], "target": "sex=male:1", "prompts": "p", "out": "o", "iterations": 10, "batch_size": 10}
    shown, target = np.eye(2)[np.repeat([0, 1], [2, 198])], np.array([0.5, 0.5])
    for cap, told in ((10, True), (60, False)):
        settings = AlignSettings(**base, weight_cap=cap)  # type: ignore[arg-type]
        tell_weights(tilted_weights(shown, target, cap), shown, target, ["female", "male"], settings)
        printed = " ".join(capfd.readouterr().err.split())
        assert ("allows the mix female 0.100 (target 0.500), male 0.900" in printed) == told
        assert f"female {min(cap, 50):g} times the uniform weight" in printed
