"""Frontal chest radiograph: lungs, mediastinum with heart, diaphragm, ribs and clavicles, perhaps a pleural effusion.

Group and condition to appearance: sex is lung width and breast shadows, race is bone density, an effusion fills one costophrenic
angle with a meniscus. Nuisance: pose, inspiration, heart size, tissue texture, contrast, noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from evenhand.cohorts.phantoms.drawing import blend, ellipse, grid, mean_in, reduce_to_32, smooth_field, soft_step
from evenhand.cohorts.phantoms.phantom import Labels, Modality, Nuisance, choose, per_group

LUNG_WIDTH = {"male": 0.325, "female": 0.265}
BREAST = {"male": 0.0, "female": 0.24}
BONE = {"black": 0.21, "white": 0.04}
SEX_SPLIT, BONE_SPLIT, EFFUSION_SPLIT, LIKENESS = 0.185, 0.115, 0.33, 0.82
_AIR, _LUNG, _TISSUE, _HEART, _ABDOMEN = 0.02, 0.15, 0.52, 0.70, 0.76


def draw(labels: Labels, nuisance: Nuisance, size: int) -> np.ndarray:
    """Chest radiographs (n, S, S) for the given groups."""
    x, y = grid(size)
    edge = max(0.04, 1.2 / size)
    zoom, tilt = nuisance.image(1, 0.012), nuisance.image(0, 0.015)
    x, y = (x - nuisance.image(0, 0.012) + tilt * y) * zoom, (y - nuisance.image(0, 0.012) - tilt * x) * zoom
    side = np.abs(x)

    torso = soft_step(0.20 + 0.80 * soft_step(y + 0.80, 0.09) - 0.02 * y - side, edge)
    image = _AIR + (_TISSUE - _AIR) * torso
    lungs = _lungs(x, y, labels, nuisance, edge)
    image = blend(image, _ABDOMEN, torso * soft_step(y - 0.48 - 0.25 * (side - 0.4) ** 2, 0.06))
    image = blend(image, _LUNG, lungs)
    vessels = np.exp(-0.5 * ((side - 0.20) / 0.10) ** 2 - 0.5 * ((y + 0.05) / 0.25) ** 2)
    image = image + 0.12 * vessels * lungs
    image = _mediastinum(image, x, y, nuisance, edge)
    image = _breasts(image, x, y, labels, nuisance, torso)
    image = _effusion(image, x, y, labels, nuisance, lungs, edge)
    visible = 1 - np.clip((image - 0.5) / 0.3, 0, 0.85)  # bone hardly shows through the heart or fluid
    image = image + per_group(labels["race"], BONE) * nuisance.subject(1, 0.05) * visible * _bones(x, y, lungs, torso)

    texture = smooth_field(nuisance.lattice(18, 0.014), size) * torso
    bias = 1 + smooth_field(nuisance.lattice(3, 0.02), size)
    return (image + texture) * bias * nuisance.image(1, 0.025) + nuisance.noise(0.010, size, size)


def _lungs(x: np.ndarray, y: np.ndarray, labels: Labels, nuisance: Nuisance, edge: float) -> np.ndarray:
    """Two lung fields: rounded apex, nearly straight outer wall, a domed diaphragm that leaves a sharp outer angle."""
    width = per_group(labels["sex"], LUNG_WIDTH) * nuisance.subject(1, 0.02)
    floor = nuisance.subject(0.53, 0.012)
    inner = 0.13
    centre = inner + width
    half = width * (1 - 0.62 * np.clip((-0.25 - y) / 0.55, 0, 1) ** 2)
    outline = half - np.abs(np.abs(x) - centre + 0.10 * np.clip(-0.25 - y, 0, 1))
    dome = floor - 0.16 + 0.30 * np.clip((np.abs(x) - inner) / (2 * width), 0, 1.1) ** 2.2
    return soft_step(outline, edge) * soft_step(dome - y, edge) * soft_step(y + 0.78, edge)


def _mediastinum(image: np.ndarray, x: np.ndarray, y: np.ndarray, nuisance: Nuisance, edge: float) -> np.ndarray:
    """Spine and great vessels in the middle, the heart towards the patient's left (the image's right), a dark trachea."""
    image = blend(image, 0.66, soft_step(0.14 + 0.03 * y - np.abs(x), edge) * soft_step(y + 0.95, edge))
    image = blend(image, 0.66, ellipse(x, y, 0.12, -0.30, 0.10, 0.10, 0.0, edge))  # aortic knob
    heart = nuisance.subject(0.28, 0.008)
    image = blend(image, _HEART, ellipse(x, y, 0.13, 0.24, heart, heart * 0.92, 0.5, edge))
    trachea = soft_step(0.045 - np.abs(x), edge) * soft_step(-0.35 - y, 0.06)
    return blend(image, 0.42, 0.8 * trachea)


def _breasts(image: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Labels, nuisance: Nuisance, torso: np.ndarray) -> np.ndarray:
    """Soft shadows over the lower lung fields with a rounded lower border."""
    shift = nuisance.subject(0, 0.01)
    shadow = ellipse(np.abs(x), y, 0.45, 0.16 + shift, 0.30, 0.25, 0.0, 0.12)
    return image + per_group(labels["sex"], BREAST) * nuisance.subject(1, 0.05) * shadow * torso * (1 - np.exp(-((x / 0.27) ** 2)))


def _effusion(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Labels, nuisance: Nuisance, lungs: np.ndarray, edge: float
) -> np.ndarray:
    """Fluid in the lower part of one lung; its upper border rises towards the chest wall."""
    side = np.where(nuisance.place(-1, 1) > 0, 1.0, -1.0).astype(np.float32)
    present = (labels["effusion"] == "effusion").astype(np.float32)[:, None, None]
    level = nuisance.subject(0.29, 0.015) - 0.35 * np.clip(side * x - 0.35, 0, 1)
    # The lung's own outline, carried down to below the diaphragm, so that no rim of lung shows under the fluid.
    column = np.maximum.accumulate(lungs * (y < 0.7), axis=1)
    fluid = soft_step(y - level, 1.5 * edge) * column * soft_step(side * x, edge) * soft_step(0.75 - y, 0.1)
    return blend(image, 0.75, present * fluid)


def _bones(x: np.ndarray, y: np.ndarray, lungs: np.ndarray, torso: np.ndarray) -> np.ndarray:
    """Ribs, clavicles and vertebrae, 0 to 1."""
    side = np.abs(x)
    ribs = np.clip(np.cos(2 * np.pi * (y - 0.55 * (side - 0.25) + 0.08) / 0.27), 0, 1) ** 1.2
    cage = soft_step(0.82 - side, 0.05) * soft_step(y + 0.60, 0.08) * soft_step(0.40 - y, 0.08) * soft_step(side - 0.16, 0.05)
    clavicle = np.exp(-0.5 * ((y + 0.62 + 0.18 * (side - 0.35)) / 0.045) ** 2)
    clavicle = clavicle * soft_step(side - 0.1, 0.05) * soft_step(0.8 - side, 0.05)
    spine = (0.5 + 0.5 * np.cos(2 * np.pi * y / 0.25)) * soft_step(0.08 - side, 0.05)
    return np.clip(ribs * cage * (0.2 + 0.8 * lungs) + clavicle + 0.35 * spine, 0, 1) * torso


def measure(images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Shadow over the lower lungs, strength of the rib pattern, brightness of the costophrenic angles."""
    m = measures(images)
    return {
        "sex": choose(m["shadow"] > SEX_SPLIT, "female", "male"),
        "race": choose(m["bone"] > BONE_SPLIT, "black", "white"),
        "effusion": choose(m["angle"] > EFFUSION_SPLIT, "effusion", "none"),
        "valid": m["likeness"] > LIKENESS,
    }


def measures(images: np.ndarray) -> dict[str, np.ndarray]:
    """The continuous readings behind the oracle, one array (n,) each."""
    images = reduce_to_32(images)
    x, y = grid(images.shape[1])
    side = np.abs(x)
    # The image's own scale: air-filled lung (0) to mediastinum (1).
    upper = (side > 0.26) & (side < 0.56) & (y > -0.45) & (y < -0.12)
    lung = mean_in(images, upper)
    scale = np.maximum(mean_in(images, (side < 0.12) & (y > 0.0) & (y < 0.4)) - lung, 0.05)

    def relative(region: np.ndarray) -> np.ndarray:
        return (mean_in(images, region) - lung) / scale

    base = (side > 0.34) & (side < 0.58) & (y > -0.03) & (y < 0.17)
    corner = (side > 0.45) & (side < 0.62) & (y > 0.30) & (y < 0.42)
    halves = (x < 0, x > 0)
    angles = [relative(corner & half) - relative(base & half) for half in halves]
    templates = _templates(images.shape[1])
    return {
        "shadow": np.minimum(*[relative(base & half) for half in halves]),
        "angle": np.maximum(*angles),
        "bone": _bone_strength(images, scale),
        "likeness": _likeness(images, templates),
    }


def _bone_strength(images: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Amplitude of the known rib and clavicle pattern over the lungs, the best of small vertical shifts."""
    pattern, window = _bone_pattern(images.shape[1])
    rows = np.pad(images, ((0, 0), (3, 3), (0, 0)), mode="edge")
    mean = sum(rows[:, k : k + images.shape[1]] for k in range(1, 6)) / 5
    detail = (images - mean)[:, 1:-1]
    found = [(detail * pattern[:, 1 + k : images.shape[1] - 1 + k] * window[:, 1:-1]).sum(axis=(1, 2)) for k in (-1, 0, 1)]
    return np.max(found, axis=0) / scale / (pattern**2 * window).sum()


@lru_cache(maxsize=4)
def _bone_pattern(size: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = grid(size)
    bones = _bones(x, y, np.ones_like(x * y), np.ones_like(x * y))
    rows = np.pad(bones, ((0, 0), (3, 3), (0, 0)), mode="edge")
    detail = bones - sum(rows[:, k : k + size] for k in range(1, 6)) / 5
    window = (np.abs(x) > 0.24) & (np.abs(x) < 0.62) & (y > -0.75) & (y < 0.15)
    return detail, window.astype(np.float32)


@lru_cache(maxsize=4)
def _templates(size: int) -> np.ndarray:
    """One image without nuisance for every combination of groups and for either side of the effusion."""
    rows = [(s, r, e, k) for s in LUNG_WIDTH for r in BONE for e in ("none", "effusion") for k in (-1.0, 1.0)]
    labels = {name: np.array([row[i] for row in rows], dtype=object) for i, name in enumerate(("sex", "race", "effusion"))}
    anatomy = np.zeros((len(rows), 32), dtype=np.float32) + np.array([[row[3]] for row in rows], dtype=np.float32)
    nuisance = Nuisance(0, "phantom/chest", 0, anatomy, np.zeros(len(rows)))
    return np.clip(draw(labels, nuisance, size), 0, 1)


def _likeness(images: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Highest correlation with any of the templates; 0 for a constant image."""
    flat = images.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    known = templates.reshape(len(templates), -1)
    known = known - known.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1)[:, None] * np.linalg.norm(known, axis=1)[None]
    return (flat @ known.T / np.maximum(norms, 1e-3)).max(axis=1)


CHEST = Modality(
    name="chest",
    attributes={"sex": ["male", "female"], "race": ["white", "black"]},
    conditions={"effusion": ["none", "effusion"]},
    image_mode="L",
    oracle_columns=["sex", "race", "effusion"],
    draw=draw,
    measure=measure,
)
