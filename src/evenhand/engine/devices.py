"""The processes that share the work, the device that each runs on, and the precision it computes in."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env


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
    return Accelerator(mixed_precision=precision, cpu=_cpu())


def processes() -> PartialState:
    """Which of how many processes this is, for work that needs no precision."""
    return PartialState(cpu=_cpu())


def _cpu() -> bool:
    """Several processes without an accelerator find each other only where accelerate is told that the CPU is meant."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
