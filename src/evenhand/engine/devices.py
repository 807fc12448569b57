"""The processes that share the work, the device that each runs on, and the precision it computes in."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from evenhand.models.devices import on_cpu, processes

__all__ = ["accelerator", "mixed_precision", "processes"]  # the last one is models', which train classifiers on a device too


def mixed_precision(wanted: str) -> str:
    """``auto`` takes bf16 where the GPU has it, else fp16; a CPU computes in float32."""
    if wanted != "auto":
        return wanted
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def accelerator(precision: str) -> Accelerator:
    """An accelerator of that precision; accelerate itself refuses a second one that differs within one process."""
    precision = mixed_precision(precision)
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, cpu=on_cpu())
