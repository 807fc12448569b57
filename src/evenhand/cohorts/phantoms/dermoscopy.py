"""Dermoscopic image: a pigmented lesion on skin.

Group and condition to appearance: skin tone is the background, age group is the skin's texture (furrows), a malignant lesion has an
irregular, asymmetric border and uneven colour. Nuisance: place, size, aspect, hue, illumination, texture, noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evenhand.cohorts.phantoms.drawing import (
    binomial_blur,
    grid,
    mean_in,
    moments_ellipse,
    overlap,
    reduce_to_32,
    smooth_field,
    soft_step,
)
from evenhand.cohorts.phantoms.phantom import Labels, Modality, Nuisance, choose, per_group

SKIN = {"light": (0.87, 0.69, 0.60), "dark": (0.47, 0.31, 0.23)}
LESION = {"light": (0.47, 0.28, 0.19), "dark": (0.20, 0.115, 0.085)}
FURROWS = {"young": 0.02, "old": 0.24}
IRREGULARITY = {"benign": 0.02, "malignant": 0.26}
TONE_SPLIT, FURROW_SPLIT, SHAPE_SPLIT = 0.50, 0.032, 0.85


def draw(labels: Labels, nuisance: Nuisance, size: int) -> np.ndarray:
    """Dermoscopic images (n, S, S, 3) for the given groups."""
    x, y = grid(size)
    hue = np.concatenate([nuisance.subject(1, sd) for sd in (0.010, 0.012, 0.016)], axis=2)[:, :, None]  # (n, 1, 1, 3)
    skin = _colour(labels["skin_tone"], SKIN) * hue
    lesion = _colour(labels["skin_tone"], LESION) * hue
    mask, inside = _lesion(x, y, labels, nuisance, size)

    furrows = per_group(labels["age_group"], FURROWS) * nuisance.subject(1, 0.06) * _furrows(x, y, nuisance)
    mottle = smooth_field(nuisance.lattice(12, 0.016), size)
    shade = (1 - furrows * (1 - 0.7 * mask) + mottle)[..., None]
    image = (skin + (lesion - skin) * (mask * inside)[..., None]) * shade
    image = _colour_variegation(image, x, y, labels, nuisance, mask)

    vignette = 1 - 0.16 * np.clip(np.hypot(x, y) - 0.85, 0, None)
    light = vignette * (1 + 0.03 * (nuisance.image(0, 1) * x + nuisance.image(0, 1) * y)) * nuisance.image(1, 0.025)
    return image * light[..., None] + nuisance.noise(0.010, size, size, 3)


def _colour(tone: np.ndarray, colours: Mapping[str, tuple[float, float, float]]) -> np.ndarray:
    return np.array([colours[label] for label in tone], dtype=np.float32)[:, None, None, :]


def _lesion(x: np.ndarray, y: np.ndarray, labels: Labels, nuisance: Nuisance, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage 0..1 and depth of pigment. The border is an ellipse times lobes; benign ones fade out, malignant ones end sharply."""
    cx, cy, turn = nuisance.image(0, 0.03), nuisance.image(0, 0.03), nuisance.image(0, 1.2)
    dx, dy = x - cx, y - cy
    theta = np.arctan2(dy, dx) - turn
    radius = nuisance.subject(0.50, 0.022) / np.sqrt(1 + 0.10 * nuisance.subject(1, 0.3) * np.cos(2 * theta))
    weights = {k: nuisance.place(low, 1) for k, low in ((3, 0.4), (4, 0.2), (5, 0.2), (7, 0.2))}
    norm = np.sqrt(sum(weight**2 for weight in weights.values()))  # so that no outline is less irregular than another
    lobes = sum(weight / norm * np.cos(k * theta + nuisance.place(0, 6.28)) for k, weight in weights.items())
    irregular = per_group(labels["malignancy"], IRREGULARITY) * nuisance.subject(1, 0.05)
    border = radius * (1 + irregular * lobes)
    malignant = (labels["malignancy"] == "malignant").astype(np.float32)[:, None, None]
    edge = max(1.0 / size, 0.04) * (1.8 - 0.8 * malignant)
    depth = border - np.hypot(dx, dy)
    network = 0.05 * smooth_field(nuisance.lattice(14, 1.0), size)
    inside = 0.88 + 0.12 * np.clip(depth / 0.3, 0, 1) + network
    return soft_step(depth, edge), inside


def _furrows(x: np.ndarray, y: np.ndarray, nuisance: Nuisance) -> np.ndarray:
    """Wrinkles: wavy dark lines with a main direction, crossed by fainter ones, about 0 to 1."""
    total = np.zeros(1, dtype=np.float32)
    for angle, weight in ((0.5, 1.0), (-0.9, 0.55)):
        turn = angle + nuisance.subject(0, 0.25)
        across = y * np.cos(turn) - x * np.sin(turn)
        warp = smooth_field(nuisance.lattice(5, 0.8), x.shape[-1])
        wave = np.cos(2 * np.pi * across / 0.40 + nuisance.place(0, 6.28) + warp)
        total = total + weight * np.clip(wave, -0.2, 1)
    return total / 1.3


def _colour_variegation(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Labels, nuisance: Nuisance, mask: np.ndarray
) -> np.ndarray:
    """An off-centre blue-black blotch in malignant lesions."""
    turn = nuisance.place(0, 6.28)
    bx, by = 0.20 * np.cos(turn), 0.20 * np.sin(turn)
    blotch = np.exp(-0.5 * ((x - bx) ** 2 + (y - by) ** 2) / 0.15**2)
    malignant = (labels["malignancy"] == "malignant").astype(np.float32)[:, None, None]
    cover = (0.65 * malignant * blotch * mask)[..., None]
    return image + (np.array([0.13, 0.11, 0.14], dtype=np.float32) - image) * cover


def measure(images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Level of the skin, energy of its texture, likeness of the lesion's outline to an ellipse."""
    m = measures(images)
    return {
        "skin_tone": choose(m["skin"] > TONE_SPLIT, "light", "dark"),
        "age_group": choose(m["texture"] > FURROW_SPLIT, "old", "young"),
        "malignancy": choose(m["roundness"] > SHAPE_SPLIT, "benign", "malignant"),
        "valid": m["valid"],
    }


def measures(images: np.ndarray) -> dict[str, np.ndarray]:
    """The continuous readings behind the oracle, one array (n,) each."""
    images = reduce_to_32(images)
    x, y = grid(images.shape[1])
    gray = images.mean(axis=3)
    smooth = binomial_blur(gray)
    rim = np.broadcast_to(np.maximum(np.abs(x), np.abs(y)) > 0.86, gray.shape)
    skin = mean_in(gray, rim)[:, None, None]
    dark = np.quantile(smooth.reshape(len(gray), -1), 0.04, axis=1)[:, None, None]
    lesion = (smooth < 0.5 * (skin + dark)) & (np.hypot(x, y) < 0.95)
    cx, cy, _, rho = moments_ellipse(lesion)
    near = lesion
    for _ in range(3):
        near = binomial_blur(near.astype(np.float32)) > 0.02
    clear = ~near & (np.maximum(np.abs(x), np.abs(y)) < 0.97)
    fine = (smooth - _wide_blur(smooth)) / np.maximum(skin, 0.05)
    colour = np.stack([mean_in(images[..., k], rim) for k in range(3)], axis=1)
    readings = {
        "skin": skin[:, 0, 0],
        "texture": np.sqrt(mean_in(fine**2, clear)),
        "roundness": overlap(lesion, rho < 1),
        "area": lesion.mean(axis=(1, 2)),
        "off_centre": np.hypot(cx, cy),
        "touching": mean_in(lesion, np.broadcast_to(np.maximum(np.abs(x), np.abs(y)) > 0.9, gray.shape)),
        "depth": (dark / np.maximum(skin, 0.05))[:, 0, 0],
        "redness": (colour[:, 0] - colour[:, 2]) / np.maximum(colour.mean(axis=1), 0.05),
        "order": np.minimum(colour[:, 0] - colour[:, 1], colour[:, 1] - colour[:, 2]) / np.maximum(colour.mean(axis=1), 0.05),
        "rim_spread": np.sqrt(mean_in((smooth - skin) ** 2, rim)) / np.maximum(skin[:, 0, 0], 0.05),
    }
    return {**readings, "valid": _is_lesion(readings)}


def _wide_blur(images: np.ndarray) -> np.ndarray:
    for _ in range(6):
        images = binomial_blur(images)
    return images


def _is_lesion(m: Mapping[str, np.ndarray]) -> np.ndarray:
    return (
        (m["area"] > 0.09)
        & (m["area"] < 0.36)
        & (m["off_centre"] < 0.25)
        & (m["touching"] < 0.05)
        & (m["depth"] < 0.72)
        & (m["redness"] > 0.2)
        & (m["order"] > 0.03)
        & (m["roundness"] > 0.5)
        & (m["rim_spread"] < 0.3)
        & (m["skin"] > 0.18)
    )


DERMOSCOPY = Modality(
    name="dermoscopy",
    attributes={"skin_tone": ["light", "dark"], "age_group": ["young", "old"]},
    conditions={"malignancy": ["benign", "malignant"]},
    image_mode="RGB",
    oracle_columns=["skin_tone", "age_group", "malignancy"],
    draw=draw,
    measure=measure,
)
