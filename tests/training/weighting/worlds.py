"""Worlds small enough to be worked by hand."""

from __future__ import annotations

import numpy as np
import torch

from evenhand.training.weighting import METHODS, WeightingMethod

GROUPS = {"sex": ["f", "m"], "race": ["a", "b", "c"]}
COUNTS = {"f x a": 40, "m x a": 40, "f x b": 10, "m x b": 9, "m x c": 1, "unknown": 5}  # nobody is f x c


def method(name: str, **given: object) -> WeightingMethod:
    """A method over ``GROUPS`` and ``COUNTS``."""
    return METHODS[name](GROUPS, counts=COUNTS, **given)  # type: ignore[arg-type]


def codes(sex: list[int], race: list[int]) -> dict[str, torch.Tensor]:
    """Codes of a batch, -1 for unknown."""
    return {"sex": torch.tensor(sex), "race": torch.tensor(race)}


def draws(seed: int = 0) -> torch.Generator:
    """A generator of the batch's own."""
    return torch.Generator().manual_seed(seed)


class Replayed:
    """Stands for ``randomness.generator``: hands out numbers that a test has written down."""

    def __init__(self, *rows: list[float]) -> None:
        self._rows = list(rows)

    def __call__(self, *name: object) -> Replayed:
        return self

    def random(self, n: int) -> np.ndarray:
        row = self._rows.pop(0)
        assert len(row) == n
        return np.array(row)
