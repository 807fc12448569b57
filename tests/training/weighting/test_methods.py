"""Every method: what holds for all of them, and the plain ones on hand-worked numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from training.weighting.worlds import COUNTS, GROUPS, codes, draws, method

from evenhand.training.weighting import METHODS
from evenhand.training.weighting.joint import JointGroups


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_finite_weights_and_takes_its_state_back(name: str) -> None:
    first, second = method(name, seed=3), method(name, seed=3)
    groups = codes([0, 1, -1, 1, 0], [0, 2, 1, -1, 1])
    for step in range(4):
        weights = first.weights(groups, step, draws(step))
        assert weights.dtype == torch.float32 and weights.shape in {(5,), (1,)} and weights.isfinite().all()
        first.observe(torch.tensor([0.5, 1.0, 0.25, 2.0, 0.125]), torch.tensor([0, 999, 500, 3, 600]), groups)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    for step in range(4, 8):
        assert torch.equal(first.weights(groups, step, draws(step)), second.weights(groups, step, draws(step)))
        for one in (first, second):
            one.observe(torch.rand(5, generator=draws(step)), torch.tensor([0, 999, 500, 3, 600]), groups)
    assert second.state_dict() == first.state_dict()
    json.dumps(first.report())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_bears_a_batch_without_a_known_group(name: str) -> None:
    weighting = method(name)
    groups = codes([-1, -1], [0, -1])
    before = weighting.weights(groups, 0, draws()).clone()
    weighting.observe(torch.tensor([1.0, 3.0]), torch.tensor([10, 900]), groups)
    assert before.isfinite().all() and weighting.weights(groups, 1, draws()).isfinite().all()


@pytest.mark.parametrize(("name", "wrong"), [("uniform", "eta"), ("group_dro", "etta"), ("bayesian_perturbation", "dampign")])
def test_an_option_that_a_method_lacks_is_named(name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"no option '{wrong}'"):
        method(name, **{wrong: 1})
    if name != "uniform":
        with pytest.raises(ValueError, match="did you mean"):
            METHODS[name].check_options({wrong: 1})


def test_joint_codes_follow_the_names() -> None:
    joint = JointGroups(GROUPS)
    assert joint.names == ["f x a", "f x b", "f x c", "m x a", "m x b", "m x c"]
    assert joint.codes(codes([0, 1, 1, -1, 0], [0, 0, 2, 1, -1])).tolist() == [0, 3, 5, -1, -1]


def test_inverse_frequency_by_hand() -> None:
    # 1/share of the largest: 1, 4, 1, 40/9, and 40 capped at 20 for the one m x c; unknown and empty groups weigh 1
    inverse = np.array([1, 4, 1, 1, 40 / 9, 20])
    scale = 100 / (40 + 4 * 10 + 40 + 40 / 9 * 9 + 20)  # the hundred images of known group have mean weight 1
    weights = method("inverse_frequency").weights(codes([0, 0, 0, 1, 1, 1, -1], [0, 1, 2, 0, 1, 2, 0]), 0, draws())
    expected = inverse * scale
    expected[2] = 1
    assert weights.tolist() == pytest.approx([*expected, 1.0], rel=1e-6)
    of_images = sum(float(w) * COUNTS.get(name, 0) for name, w in zip(JointGroups(GROUPS).names, weights, strict=False))
    assert of_images == pytest.approx(100)
    with pytest.raises(ValueError, match="needs counts"):
        METHODS["inverse_frequency"](GROUPS)
    balanced = METHODS["inverse_frequency"]({"sex": ["f", "m"]}, counts={"f": 10, "m": 90}, odds={"f": 9.0, "m": 1.0})
    assert balanced.weights({"sex": torch.tensor([0, 1])}, 0, draws()).tolist() == pytest.approx([1, 1])  # drawn alike already


def test_group_dro_by_hand() -> None:
    weighting = METHODS["group_dro"]({"sex": ["f", "m"]}, counts={"f": 25, "m": 75}, eta=0.5)
    groups = {"sex": torch.tensor([0, 0, 1, 1])}
    assert weighting.weights(groups, 0, draws()).tolist() == pytest.approx([1, 1, 1, 1])  # q begins at the shares
    # timesteps 0 and 999: bin means (1 + 3) / 2 = 2 and (10 + 10) / 2 = 10; relative losses f: .5 and 1, m: 1.5 and 1
    weighting.observe(torch.tensor([1.0, 10.0, 3.0, 10.0]), torch.tensor([0, 999, 0, 999]), groups)
    q = np.array([0.25 * np.exp(0.5 * -0.25), 0.75 * np.exp(0.5 * 0.25)])
    q /= q.sum()
    assert weighting.weights(groups, 1, draws()).tolist() == pytest.approx([q[0] / 0.25] * 2 + [q[1] / 0.75] * 2, rel=1e-6)
    # only f in the next batch: m's q changes by normalisation alone; bin 0 is 0.99 * 2 + 0.01 * 4 = 2.02
    weighting.observe(torch.tensor([4.0]), torch.tensor([5]), {"sex": torch.tensor([0])})
    after = np.array([q[0] * np.exp(0.5 * (4 / 2.02 - 1)), q[1]])
    assert weighting.report()["q"] == pytest.approx(dict(zip("fm", after / after.sum(), strict=True)))


def test_group_dro_raises_the_harder_group_though_timesteps_hide_it() -> None:
    """Losses span a factor of 100 over timesteps, the harder group's are a fifth higher, and it happens to see easy ones more often."""
    weighting, rng = METHODS["group_dro"]({"sex": ["f", "m"]}, counts={"f": 20, "m": 80}, eta=0.05), np.random.default_rng(0)
    for _ in range(300):
        sex = rng.random(64) < 0.8
        late = rng.random(64) < np.where(sex, 0.6, 0.4)
        times = np.where(late, 50, 950)
        losses = np.where(late, 1.0, 0.01) * np.where(sex, 1.0, 1.2) * rng.gamma(20, 1 / 20, 64)
        weighting.observe(torch.tensor(losses), torch.tensor(times), {"sex": torch.tensor(sex.astype(int))})
    assert weighting.report()["q"]["f"] > 0.5


def test_group_dro_leaves_groups_of_equal_loss_alone_though_the_rare_one_is_often_absent() -> None:
    weighting, rng = METHODS["group_dro"]({"sex": ["f", "m"]}, counts={"f": 5, "m": 95}), np.random.default_rng(0)
    for _ in range(1500):
        sex = (rng.random(8) < 0.95).astype(int)
        weighting.observe(torch.tensor(rng.gamma(20, 1 / 20, 8)), torch.full((8,), 500), {"sex": torch.tensor(sex)})
    assert weighting.report()["q"]["f"] == pytest.approx(0.05, abs=0.02)


def test_group_dro_accounts_for_balanced_sampling() -> None:
    weighting = METHODS["group_dro"]({"sex": ["f", "m"]}, counts={"f": 10, "m": 90}, odds={"f": 9.0, "m": 1.0})
    assert weighting.report()["q"] == pytest.approx({"f": 0.5, "m": 0.5})
