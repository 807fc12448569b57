"""Gradient paths against plain autograd, on solvers of diffusers and a denoiser small enough to unroll."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from evenhand.alignment.gradients import adjusted, adjusted_weights, chained, draw, solver_weights
from evenhand.models.libraries import quiet_libraries

NOISE = {"v_prediction": "squaredcos_cap_v2", "epsilon": "scaled_linear"}  # a noise prediction says nothing where no signal is left
SOLVERS = {
    "dpm++": lambda kind: DPMSolverMultistepScheduler(
        beta_schedule=NOISE[kind], prediction_type=kind, timestep_spacing="trailing", steps_offset=1
    ),
    "ddim": lambda kind: DDIMScheduler(beta_schedule=NOISE[kind], prediction_type=kind, clip_sample=False),
}


class Toy(torch.nn.Module):
    """Not linear in the latents, and aware of the timestep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(latents) + timestep / 1000)


def loss(final: torch.Tensor) -> torch.Tensor:
    """Any loss of images."""
    return (final**3).mean() + final.mean()


def unrolled(toy: Toy, scheduler, noise: torch.Tensor, steps: int, live: set[int], through_latents: bool = True) -> dict[str, torch.Tensor]:
    """Gradients by plain autograd; steps that are not live give constants."""
    toy.zero_grad()
    with quiet_libraries():
        scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    for place, timestep in enumerate(scheduler.timesteps):
        seen = latents if through_latents else latents.detach()
        answer = toy(seen, timestep)
        latents = scheduler.step(answer if place in live else answer.detach(), timestep, latents, return_dict=False)[0]
    loss(latents).backward()
    return {name: parameter.grad.clone() for name, parameter in toy.named_parameters()}


def by(path, toy: Toy, scheduler, noise: torch.Tensor, steps: int, carrying: set[int]) -> dict[str, torch.Tensor]:
    """Gradients by one of our paths."""
    toy.zero_grad()
    drawn = draw(toy, scheduler, noise, steps)
    final = drawn.final.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(final), final)
    path(toy, scheduler, drawn, gradient, carrying)
    return {name: parameter.grad.clone() for name, parameter in toy.named_parameters()}


@pytest.fixture
def noise() -> torch.Tensor:
    """Unit noise of a batch of two."""
    return torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("carrying", [{0, 1, 2}, {2}, {0, 1}], ids=["full", "last", "first two"])
def test_chained_equals_autograd_through_the_unrolled_trajectory(solver: str, kind: str, carrying: set[int], noise: torch.Tensor) -> None:
    toy, scheduler = Toy(), SOLVERS[solver](kind)
    expected = unrolled(toy, scheduler, noise, 3, carrying)
    found = by(chained, toy, scheduler, noise, 3, carrying)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
        assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_adjusted_with_one_step_equals_truncated_to_the_last(solver: str, kind: str, noise: torch.Tensor) -> None:
    toy, scheduler = Toy(), SOLVERS[solver](kind)
    found, expected = (by(path, toy, scheduler, noise, 4, {3}) for path in (adjusted, chained))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_weights_are_those_of_autograd_along_the_linear_path(solver: str, noise: torch.Tensor) -> None:
    """With the solver's own weights instead of equal ones, the sum over steps is autograd with latents detached before the denoiser."""
    toy, scheduler = Toy(), SOLVERS[solver]("v_prediction")
    expected = unrolled(toy, scheduler, noise, 5, set(range(5)), through_latents=False)
    weights = solver_weights(scheduler, 5)
    toy.zero_grad()
    drawn = draw(toy, scheduler, noise, 5)
    final = drawn.final.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(final), final)
    for place, timestep in enumerate(scheduler.timesteps):
        toy(drawn.inputs[place], timestep).backward(weights[place] * gradient)
    for name, parameter in toy.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-9)  # DPM-Solver computes in float32


def test_adjusted_weights_are_equal_and_keep_their_mean() -> None:
    scheduler = SOLVERS["ddim"]("epsilon")
    own, weights = solver_weights(scheduler, 8), adjusted_weights(scheduler, 8, {0, 1, 2, 3})
    assert len({round(abs(weight), 12) for weight in weights.values()}) == 1
    assert abs(weights[0]) ** 4 == pytest.approx(abs(own[:4]).prod()) and own[:4].std() > 0
