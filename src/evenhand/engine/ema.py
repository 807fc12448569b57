"""Exponential moving average (EMA) of the trained parameters: diffusers' EMAModel, with its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel


class Averages:
    """Averages of ``parameters``; the decay warms up as (1 + k) / (10 + k), as in diffusers. With decay 0 none are kept."""

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._ema = EMAModel(parameters, decay=decay, foreach=True) if decay else None

    @property
    def kept(self) -> bool:
        """Whether there are averages apart from the parameters."""
        return self._ema is not None

    def update(self) -> None:
        """Take in the parameters as they are now."""
        if self._ema is not None:
            self._ema.step(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; its own where none are kept."""
        if self._ema is None:
            yield
            return
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            yield
        finally:
            self._ema.restore(self._parameters)

    @property
    def updates(self) -> int:
        """How often the averages were updated; the decay depends on it."""
        return self._ema.optimization_step if self._ema is not None else 0

    def adopt(self, updates: int) -> None:
        """Take the parameters as they are now for the averages, as after ``updates`` updates."""
        if self._ema is None:
            return
        for shadow, parameter in zip(self._ema.shadow_params, self._parameters, strict=True):
            shadow.copy_(parameter.detach())
        self._ema.optimization_step = updates
