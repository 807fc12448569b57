"""Which of how many processes this is, and the device that it computes on."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """Which of how many processes this is, and its device, for work that needs no precision."""
    return PartialState(cpu=on_cpu())


def on_cpu() -> bool:
    """Several processes without an accelerator find each other only where accelerate is told that the CPU is meant."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
