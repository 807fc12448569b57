"""Fair Bayesian Perturbation as published, on hand-worked numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from training.weighting.worlds import Replayed, codes, draws, method

from evenhand.training.weighting import METHODS, bayesian_perturbation, perturbation
from evenhand.training.weighting.gaussian_process import propose_ucb

ONE = {"sex": ["f", "m"]}


def test_weights_by_hand() -> None:
    weighting = method("random_perturbation")
    weighting.sigma = np.array([0.5, 0.25, 1.0, 0.0, 0.75])  # type: ignore[attr-defined]  # f m | a b c
    groups = codes([0, 1, -1, 0], [0, 1, 2, -1])
    z = torch.Generator().manual_seed(9)
    sex, race = torch.randn(4, generator=z), torch.randn(4, generator=z)
    expected = [1 + 0.5 * sex[0] + race[0], 1 + 0.25 * sex[1], 1 + 0.75 * race[2], 1 + 0.5 * sex[3]]
    assert weighting.weights(groups, 0, draws(9)).tolist() == pytest.approx([float(value) for value in expected], rel=1e-6)


def test_negative_weights_are_counted() -> None:
    weighting = METHODS["random_perturbation"](ONE)
    groups = {"sex": torch.zeros(20_000, dtype=torch.int64)}
    weighting.weights(groups, 0, draws())
    report = weighting.report()
    assert report["negative_weights"] == pytest.approx(0.1587, abs=0.01)  # P(z < -1)
    assert weighting.report()["negative_weights"] is None


def test_the_gap_by_hand_and_an_absent_group_adds_nothing() -> None:
    weighting = method("bayesian_perturbation", form="reference")
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 99.0])
    # sex: f (1 + 2) / 2, m (4 + 8) / 2: 4.5. race: a 1, b (2 + 4) / 2 = 3, c 8: 7. The unknown sample counts nowhere.
    weighting.observe(losses, torch.zeros(5), codes([0, 0, 1, 1, -1], [0, 1, 1, 2, -1]))
    weighting.observe(losses, torch.zeros(5), codes([0, 0, 1, 1, -1], [0, 1, 1, 1, -1]))  # no c: sex alone
    assert weighting.state_dict()["gave"] == [-11.5, -4.5]
    assert weighting.report()["batches_without_a_group"] == 0.5


def test_sigma_wanders_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbation, "generator", Replayed([0.0, 0.5], [1.0, 0.25]))
    weighting = METHODS["random_perturbation"](ONE, exploitation=0.9)
    groups, losses = {"sex": torch.tensor([0, 1])}, torch.ones(2)
    weighting.observe(losses, torch.zeros(2), groups)
    assert weighting.report()["sigma"] == pytest.approx({"sex: f": 0.9, "sex: m": 0.95})
    weighting.observe(losses, torch.zeros(2), groups)
    assert weighting.report()["sigma"] == pytest.approx({"sex: f": 0.91, "sex: m": 0.88})


def test_the_window_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process sees sigma before each step's walk; the first window has W + 1 steps, later ones W; then sigma wanders at once."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def proposal(x: np.ndarray, y: np.ndarray, *, beta: float, seed: int) -> np.ndarray:
        assert beta == 0.1
        seen.append((x, y))
        return np.array([0.2, 0.4])

    half = [[0.5, 0.5]] * 7
    monkeypatch.setattr(perturbation, "generator", Replayed(*half))
    monkeypatch.setattr(bayesian_perturbation, "propose_ucb", proposal)
    weighting = METHODS["bayesian_perturbation"](ONE, form="reference", window=3, exploitation=0.5)
    groups = {"sex": torch.tensor([0, 1])}
    for step in range(7):
        weighting.observe(torch.tensor([1.0, 2.0 + step]), torch.zeros(2), groups)
        if step == 3:
            assert weighting.state_dict() == {"sigma": [0.35, 0.45], "observed": 4, "tried": [], "gave": [], "failed": 0}
    (x, y), (later, gave) = seen
    assert x[:, 0].tolist() == [1.0, 0.75, 0.625, 0.5625] and y.tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert later[:, 1].tolist() == pytest.approx([0.45, 0.475, 0.4875]) and gave.tolist() == [-5.0, -6.0, -7.0]
    assert weighting.state_dict()["sigma"] == pytest.approx([0.35, 0.45])


def test_thirty_steps_is_the_window_unless_told() -> None:
    weighting, groups = METHODS["bayesian_perturbation"](ONE, form="reference", seed=1), {"sex": torch.tensor([0, 1])}
    for step in range(31):
        assert len(weighting.state_dict()["tried"]) == step
        weighting.observe(torch.rand(2, generator=draws(step)), torch.zeros(2), groups)
    assert weighting.state_dict()["tried"] == [] and all(0 <= value <= 1 for value in weighting.state_dict()["sigma"])


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_proposal_maximises_the_bound(dims: int, seed: int) -> None:
    """Against a fine grid under the same process, fitted here anew."""
    from botorch.acquisition import UpperConfidenceBound
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    rng = np.random.default_rng(seed)
    x = rng.random((30, dims))
    y = -((x - 0.37) ** 2).sum(axis=1) + 0.02 * rng.normal(size=30)
    model = SingleTaskGP(torch.tensor(x), torch.tensor(y)[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    bound, line = UpperConfidenceBound(model, beta=0.1), np.linspace(0, 1, 1001 if dims == 1 else 101)
    grid = torch.tensor(list(itertools.product(*[line] * dims)))[:, None, :]
    proposed = propose_ucb(x, y, seed=seed)
    with torch.no_grad():
        best = max(float(bound(part).max()) for part in grid.split(500))
        assert float(bound(torch.tensor(proposed)[None, None, :])) >= best - 1e-3
    assert proposed == pytest.approx([0.37] * dims, abs=0.1)


def test_a_proposal_leaves_the_global_state_alone() -> None:
    x = np.random.default_rng(0).random((8, 2))
    before = torch.random.get_rng_state()
    first = propose_ucb(x, x.sum(axis=1), seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(123)
    assert np.array_equal(first, propose_ucb(x, x.sum(axis=1), seed=4))
    torch.random.set_rng_state(before)


def test_forms_are_named() -> None:
    with pytest.raises(ValueError, match="no form 'robst'; did you mean 'robust'"):
        METHODS["bayesian_perturbation"](ONE, counts={"f": 1, "m": 2}, form="robst")
