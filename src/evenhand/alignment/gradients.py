"""How the gradient of a loss on generated images reaches the denoiser that drew them.

A trajectory is first drawn without gradient; what the denoiser was given and what it answered is kept (latents only, no
activations). The loss's gradient at the final latents then goes back by one of two paths:

- ``chained``: backpropagation through the solver and through every carrying step's denoiser, one step's activations at a time. All
  steps: full backpropagation. The last K alone: DRaFT-K (Clark et al. 2024, arXiv 2309.17400).
- ``adjusted`` (Shen et al. 2024, arXiv 2311.07604, sec. 4.3): every carrying step's answer gets its gradient through the solver alone,
  which is linear, and all of them with the same weight. No chain, so steps are replayed one by one.

Steps are numbered as they are drawn, 0 is the first. What they do not carry they leave constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch.utils.checkpoint import checkpoint

from evenhand.models.denoise import solve

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # scaled latents (B, C, H, W), timestep -> what the denoiser predicts


@dataclass(frozen=True)
class Drawn:
    """A trajectory: latents that each step's denoiser saw, (B, C, H, W), what it answered, and where it ended."""

    noise: torch.Tensor
    inputs: list[torch.Tensor]
    predictions: list[torch.Tensor]
    final: torch.Tensor

    @property
    def steps(self) -> int:
        """Solver steps."""
        return len(self.predictions)


@torch.no_grad()
def draw(predict: Predict, scheduler: SchedulerMixin, noise: torch.Tensor, steps: int) -> Drawn:
    """The trajectory from unit noise (B, C, H, W), without gradient. The solver must draw no noise of its own."""
    inputs: list[torch.Tensor] = []
    predictions: list[torch.Tensor] = []

    def answer(place: int, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        inputs.append(latents)
        predictions.append(predict(latents, timestep))
        return predictions[-1]

    final = solve(scheduler, noise, steps, answer)
    return Drawn(noise, inputs, predictions, final)


def chained(predict: Predict, scheduler: SchedulerMixin, drawn: Drawn, gradient: torch.Tensor, carrying: Collection[int]) -> None:
    """Backpropagate ``gradient`` at the final latents through solver and denoiser; adds to the parameters' gradients."""

    def answer(place: int, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        if place not in carrying:
            return drawn.predictions[place]
        found: torch.Tensor = checkpoint(predict, latents, timestep, use_reentrant=False)
        return found

    with torch.enable_grad():
        solve(scheduler, drawn.noise, drawn.steps, answer).backward(gradient)


def adjusted(predict: Predict, scheduler: SchedulerMixin, drawn: Drawn, gradient: torch.Tensor, carrying: Collection[int]) -> None:
    """Give every carrying step's answer the gradient that the solver hands it, all at one weight; adds to the parameters' gradients."""
    weights = adjusted_weights(scheduler, drawn.steps, carrying)
    timesteps = scheduler.timesteps  # set by adjusted_weights
    for place in sorted(carrying):
        with torch.enable_grad():
            predict(drawn.inputs[place], timesteps[place]).backward(weights[place] * gradient)


def adjusted_weights(scheduler: SchedulerMixin, steps: int, carrying: Collection[int]) -> dict[int, float]:
    """Weight of each carrying step: the solver's own sign, and the geometric mean of the solver's weights.

    Shen et al. reach equal weights by a factor A_t that undoes the solver's weight for noise prediction with DDPM steps; this
    undoes it for any linear solver and prediction. One carrying step keeps the weight that it has.
    """
    own = solver_weights(scheduler, steps)
    mean = float(np.exp(np.mean([np.log(abs(own[place])) for place in carrying])))
    return {place: float(np.sign(own[place])) * mean for place in carrying}


def solver_weights(scheduler: SchedulerMixin, steps: int) -> np.ndarray:
    """By how much each step's answer moves the final latents when no later answer changes: (steps,) float64."""
    answers = [torch.zeros(1, 1, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(steps)]
    with torch.enable_grad():
        solve(
            scheduler, torch.zeros(1, 1, 1, 1, dtype=torch.float64), steps, lambda place, latents, timestep: answers[place]
        ).sum().backward()
    return np.array([0.0 if answer.grad is None else answer.grad.item() for answer in answers])
