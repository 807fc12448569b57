"""Guides made less certain, and what they then read where the mix is the target.

The gradient of a probability p is p (1 - p) times that of its logit: a classifier that is certain of every image cannot say where to go.
So its logits are divided by a temperature, at which its mean certainty of the untuned model's images is what is asked for.
What it then reads is drawn towards equal shares, and so is the target that its reading is held against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.special import softmax

from evenhand.alignment.drawing import Drawing
from evenhand.alignment.guides import Guides, in_colour

IMAGES = 200
_LARGEST = 1e4  # temperature
_FEW = 5  # images of a group: fewer do not say what is read from it


def soften(guides: Guides, target: np.ndarray, drawing: Drawing, untuned: torch.nn.Module, confidence: float) -> tuple[Guides, np.ndarray]:
    """Guides of a mean certainty of at most ``confidence`` on untuned images, and the target (C K,) as they read it."""
    temperatures, readings = {}, [np.eye(len(drawing.classes.names))]  # of which class an image is, is known
    for attribute, logits in _logits(guides, drawing, untuned).items():
        temperatures[attribute] = temperature_for(logits, confidence)
        readings.append(reading_by_group(logits, temperatures[attribute], confidence))
    return replace(guides, temperatures=temperatures), seen_through(target, readings)


def _logits(guides: Guides, drawing: Drawing, untuned: torch.nn.Module) -> dict[str, np.ndarray]:
    """Attribute -> logits (guides, n, G) of the untuned model's images."""
    found: dict[str, list[tuple[np.ndarray, torch.Tensor]]] = {attribute: [] for attribute in guides.by_attribute}
    for places, _, pixels in drawing.images(untuned, "softening", IMAGES):
        for attribute, pieces in found.items():
            with torch.no_grad():
                pieces.append((places, guides.logits(attribute, in_colour(pixels)).permute(1, 0, 2).flatten(1)))
    shapes = {attribute: (IMAGES, len(members), len(guides.groups[attribute])) for attribute, members in guides.by_attribute.items()}
    return {
        attribute: drawing.whole(pieces, IMAGES).double().numpy().reshape(shapes[attribute]).transpose(1, 0, 2)
        for attribute, pieces in found.items()
    }


def temperature_for(logits: np.ndarray, confidence: float) -> float:
    """The least temperature, from 1, at which the mean of the largest probability is at most ``confidence``; logits (guides, n, G)."""
    low, high = 0.0, math.log(_LARGEST)
    if _mean_probabilities(logits, 1.0).max(1).mean() <= confidence:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        sure = _mean_probabilities(logits, math.exp(middle)).max(1).mean() > confidence
        low, high = (middle, high) if sure else (low, middle)
    return math.exp(high)


def reading_by_group(logits: np.ndarray, temperature: float, confidence: float) -> np.ndarray:
    """What is read at that temperature, on average, from images of each group: (G, G), rows sum to 1."""
    shown, soft = _mean_probabilities(logits, 1.0).argmax(1), _mean_probabilities(logits, temperature)
    k = soft.shape[1]
    rows = []
    for group in range(k):
        own = soft[shown == group]
        usual = np.where(np.arange(k) == group, confidence, (1 - confidence) / (k - 1))
        rows.append(own.mean(0) if len(own) >= _FEW else usual)
    return np.stack(rows)


def seen_through(target: np.ndarray, readings: Sequence[np.ndarray]) -> np.ndarray:
    """The joint mix (K,) as read by guides of each attribute that read group g as row g of their (G, G) says."""
    joint = target.reshape([len(reading) for reading in readings])
    for axis, reading in enumerate(readings):
        joint = np.moveaxis(np.tensordot(joint, reading, axes=(axis, 0)), -1, axis)
    return joint.reshape(-1)


def _mean_probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(n, G), averaged over guides."""
    return np.asarray(softmax(logits / temperature, axis=-1).mean(axis=0))
