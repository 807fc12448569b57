"""What a vision model wants done to its input, read from its ``preprocessor_config.json``; differentiable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from evenhand.core.artifacts import is_file, read_json, write_json
from evenhand.core.errors import UserError

PREPROCESSOR_FILE = "preprocessor_config.json"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise. Input is (n, 3, H, W) in [0, 1]."""

    resize: tuple[int, int] | int | None  # (height, width), or the shorter side
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str = "bilinear"

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """Read the folder's own settings, as its image processor would.

        Raises:
            UserError: the file is absent or its size is of an unknown form.
        """
        path = folder / PREPROCESSOR_FILE
        if not is_file(path):
            raise UserError(f"{path}: missing; save the model's image processor beside it, features depend on it")
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise UserError(f"{path}: not a table of settings; save the model's image processor again")
        resize = _size(settings.get("size"), path) if settings.get("do_resize", True) else None
        crop = _size(settings.get("crop_size"), path) if settings.get("do_center_crop") else None
        if "crop_pct" in settings and isinstance(resize, int):
            resize, crop = _convnext(resize, settings["crop_pct"], crop)
        normalize = settings.get("do_normalize", True)
        mean = _colours(settings, "image_mean", path) if normalize else (0.0,) * 3
        std = _colours(settings, "image_std", path) if normalize else (1.0,) * 3
        if not all(std):
            raise UserError(f"{path}: image_std holds 0, which nothing can be divided by; save the model's image processor again")
        crop = (crop, crop) if isinstance(crop, int) else crop
        resample = settings.get("resample", 2)
        if resample not in _RESAMPLE:
            raise UserError(f"{path}: resample {resample!r} is not supported; give 0 (nearest), 2 (bilinear) or 3 (bicubic)")
        return cls(resize, crop, mean, std, _RESAMPLE[resample])

    def save(self, folder: Path) -> None:
        """Write the settings in the form that transformers' ViTImageProcessor reads."""
        height, width = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        write_json(
            folder / PREPROCESSOR_FILE,
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": self.resize is not None,
                "size": {"height": height, "width": width},
                "resample": next(code for code, name in _RESAMPLE.items() if name == self.resample),
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": list(self.mean),
                "image_std": list(self.std),
            },
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.resize is not None:
            images = self._resized(images)
        if self.crop is not None:
            images = _centre_crop(images, self.crop)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if isinstance(self.resize, int):
            short = min(height, width)
            size = (self.resize * height // short, self.resize * width // short)  # rounded down, as transformers does
        else:
            assert self.resize is not None
            size = self.resize
        if size == (height, width):
            return images
        smooth = self.resample != "nearest"
        resized = F.interpolate(images, size, mode=self.resample, antialias=smooth, align_corners=False if smooth else None)
        return resized.clamp(0, 1)


def _colours(settings: dict[str, Any], name: str, path: Path) -> tuple[float, ...]:
    value = settings.get(name)
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(part, int | float) and math.isfinite(part) for part in value):
        raise UserError(f"{path}: {name} is {value!r}; it must be three numbers, one for each colour")
    return tuple(float(part) for part in value)


def _convnext(edge: int, crop_pct: float, crop: Any) -> tuple[tuple[int, int] | int, Any]:
    """ConvNeXt's own rule: small inputs are cut from a larger picture, from 384 px on the picture is warped."""
    return ((edge, edge), crop) if edge >= 384 else (int(edge / crop_pct), (edge, edge))


def _size(size: Any, path: Path) -> tuple[int, int] | int | None:
    match size:
        case None | int():
            return size
        case {"shortest_edge": int(edge)}:
            return edge
        case {"height": int(height), "width": int(width)}:
            return height, width
    raise UserError(f"{path}: size {size!r} is not understood; give height and width, or shortest_edge")


def _centre_crop(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    if top < 0 or left < 0:
        pad = [max(0, -left), max(0, size[1] - images.shape[-1] + left), max(0, -top), max(0, size[0] - images.shape[-2] + top)]
        images, top, left = F.pad(images, pad), max(top, 0), max(left, 0)
    return images[..., top : top + size[0], left : left + size[1]]
