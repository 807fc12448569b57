"""Learning rates where none is given: by whether a LoRA, all weights, or a small model of ``model init`` is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evenhand.models.pipelines import model_provenance

WARMUP = 100  # steps; not a part of a run's steps, so that a run may go on with more of them and stay the same to the bit


@dataclass(frozen=True)
class Rate:
    """A learning rate and its warm-up in steps."""

    learning_rate: float
    warmup: int

    @classmethod
    def of(cls, model: str, *, lora: bool) -> Rate:
        """What suits ``model``: diffusers' own examples train LoRA at 1e-4 and Stable Diffusion in full at 1e-5."""
        if is_small(model_provenance(model)):
            return cls(1e-3, 0)
        if lora:
            return cls(1e-4, 0)
        return cls(1e-5, WARMUP)


def is_small(provenance: dict[str, Any]) -> bool:
    """Whether a model, by its ``evenhand.json``, or one that it was made of began with ``model init``."""
    while isinstance(provenance, dict):
        if provenance.get("small"):
            return True
        provenance = provenance.get("model_provenance") or None  # type: ignore[assignment]
    return False
