"""Named random generators: every draw is keyed on (seed, purpose, step or sample id), never on global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *ids: int | str) -> int:
    """A 63-bit seed that depends on every part of its name, and on nothing else."""
    name = "\x1f".join([str(int(seed)), purpose, *map(str, ids)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *ids: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose, and optionally one step or one sample."""
    return np.random.default_rng(derive_seed(seed, purpose, *ids))


def torch_generator(seed: int, purpose: str, *ids: int | str) -> torch.Generator:
    """A CPU torch generator; drawing on the CPU keeps draws equal on every device."""
    import torch

    return torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, *ids))
