"""Our differentiable preprocessing beside transformers' own image processors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from evenhand.core.errors import UserError
from evenhand.models.preprocessing import Preprocessing
from evenhand.models.tensors import to_array, to_tensor

_NORMAL = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
_CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "do_resize": True, "crop_pct": 0.875, "resample": 3}
CONFIGS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 24, "width": 24}, "resample": 2},
    "nearest": {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 90, "width": 120}, "resample": 0},
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 32},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "do_convert_rgb": True,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 37},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
    },
    "padded": {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 71, "width": 33},
        "size": {"shortest_edge": 32},
    },
    "convnext": {**_CONVNEXT, "size": {"shortest_edge": 28}},
    "convnext-large": {**_CONVNEXT, "size": {"shortest_edge": 384}},
}


def _smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / 12
    return np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 0.4 + 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_it_does_what_the_folders_own_processor_does(name: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CONFIGS[name], **_NORMAL}))
    pixels = np.round(_smooth(45, 60) * 255).astype(np.uint8)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(pixels), return_tensors="pt").pixel_values
    ours = Preprocessing.load(tmp_path)(to_tensor(pixels[None].astype(np.float32) / 255, 3))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 0.04 and (ours - theirs).abs().mean() < 0.01  # PIL rounds to 1/255, here divided by 0.27


def test_gradients_pass(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    Preprocessing((16, 16), (12, 12), (0.5,) * 3, (0.5,) * 3)(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    written = Preprocessing((64, 48), None, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bicubic")
    written.save(tmp_path)
    assert Preprocessing.load(tmp_path) == written
    plain = {"size": 20, "do_center_crop": True, "crop_size": 16, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(plain))
    assert Preprocessing.load(tmp_path) == Preprocessing(20, (16, 16), (0.0,) * 3, (1.0,) * 3)


def test_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    with pytest.raises(UserError) as error:
        Preprocessing.load(tmp_path)
    assert str(error.value) == f"{path}: missing; save the model's image processor beside it, features depend on it"
    path.write_text(json.dumps({"size": {"longest_edge": 9}, **_NORMAL}))
    with pytest.raises(UserError) as error:
        Preprocessing.load(tmp_path)
    assert str(error.value) == f"{path}: size {{'longest_edge': 9}} is not understood; give height and width, or shortest_edge"
    path.write_text(json.dumps({"size": 9, "resample": 1, **_NORMAL}))
    with pytest.raises(UserError) as error:
        Preprocessing.load(tmp_path)
    assert str(error.value) == f"{path}: resample 1 is not supported; give 0 (nearest), 2 (bilinear) or 3 (bicubic)"


def test_arrays_and_tensors() -> None:
    gray, colour = np.arange(8, dtype=np.float32).reshape(2, 2, 2), np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    assert to_tensor(gray, 3).shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(to_array(to_tensor(gray, 1)), gray)
    np.testing.assert_array_equal(to_array(to_tensor(colour, 3)), colour)
    with pytest.raises(ValueError, match="images have 3 channels, the model wants 1"):
        to_tensor(colour, 1)
