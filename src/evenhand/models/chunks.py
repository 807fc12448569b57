"""How many images are computed at once, by their pixels and the memory of the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

PIXELS_AT_ONCE = 4 * 512 * 512  # an autoencoder of Stable Diffusion's size wants some hundred MB for each image of 512 px
_MEMORY_PER_PART = 10 * 2**30  # bytes of a GPU for each such part


def images_at_once(side: int, device: torch.device, most: int) -> int:
    """How many images of ``side`` px are computed at once, at least 1 and at most ``most``.

    It depends on side and device alone, not on what memory is free, so that the same images are computed together every time.
    """
    parts = 1
    if device.type == "cuda":
        parts = max(1, torch.cuda.get_device_properties(device).total_memory // _MEMORY_PER_PART)
    return max(1, min(most, parts * PIXELS_AT_ONCE // side**2))


def by_chunks(compute: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, size: int) -> torch.Tensor:
    """``compute`` of ``size`` rows of ``batch`` at a time, put together again."""
    if len(batch) <= size:
        return compute(batch)
    return torch.cat([compute(part) for part in batch.split(size)])
