"""Axial brain MR slice (T1-like, after contrast): scalp, skull, cortex, white matter, lateral ventricles, perhaps a tumour.

Group and condition to appearance: sex is head size, age group is ventricle size relative to the head, a tumour is an enhancing
mass beside the ventricles. Nuisance: pose, aspect, gyral pattern, bias field, contrast, noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evenhand.cohorts.phantoms.drawing import (
    binomial_blur,
    blend,
    ellipse,
    fill,
    grid,
    local_frame,
    mean_in,
    moments_ellipse,
    overlap,
    reduce_to_32,
    smooth_field,
    soft_step,
)
from evenhand.cohorts.phantoms.phantom import Labels, Modality, Nuisance, choose, per_group

HEAD_RADIUS = {"male": 0.82, "female": 0.66}
VENTRICLE_SCALE = {"young": 0.72, "old": 1.42}  # linear; the area goes with the square
HEAD_SPLIT, VENTRICLE_SPLIT, BRIGHT_SPLIT = 0.78, 0.0185, 0.0022
_RINGS = (0.62, 0.68, 0.74, 0.80, 0.86, 0.92)
_SCALP, _SKULL, _GRAY, _WHITE, _CSF, _TUMOUR = 0.70, 0.04, 0.40, 0.56, 0.08, 0.97


def draw(labels: Labels, nuisance: Nuisance, size: int) -> np.ndarray:
    """Brain slices (n, S, S) for the given groups."""
    x, y = grid(size)
    edge = max(0.035, 1.0 / size)
    radius = per_group(labels["sex"], HEAD_RADIUS) * nuisance.subject(1, 0.013)
    aspect = np.sqrt(nuisance.subject(1.17, 0.02))
    a, b = radius / aspect, radius * aspect
    cx, cy, angle = nuisance.image(0, 0.012), nuisance.image(0, 0.012), nuisance.image(0, 0.05)
    u, v = local_frame(x, y, cx, cy, a, b, angle)
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    edge_u = edge / radius

    image = soft_step(1 - rho, edge_u) * _SCALP
    image = blend(image, _SKULL, soft_step(0.88 - rho, edge_u))
    image = blend(image, _GRAY, soft_step(0.76 - rho, edge_u))
    image = _white_matter(image, u, v, rho, theta, nuisance, edge_u)
    scale = per_group(labels["age_group"], VENTRICLE_SCALE) * nuisance.subject(1, 0.03)
    image = _ventricles(image, u, v, scale, nuisance, edge_u)
    image = _tumour(image, x, y, (cx, cy, a, b, angle), labels, nuisance, edge)

    texture = smooth_field(nuisance.lattice(20, 0.016), size) * soft_step(0.76 - rho, edge_u)
    bias = 1 + smooth_field(nuisance.lattice(3, 0.025), size)
    image = (image + texture) * bias * nuisance.image(1, 0.025)
    return np.abs(image + nuisance.noise(0.010, size, size))


def _white_matter(
    image: np.ndarray, u: np.ndarray, v: np.ndarray, rho: np.ndarray, theta: np.ndarray, nuisance: Nuisance, edge: np.ndarray
) -> np.ndarray:
    """White matter with a folded rim, deep gray nuclei and the fissure between the hemispheres."""
    folds = 0.035 * np.cos(11 * theta + nuisance.subject(0, 1.5)) + 0.025 * np.cos(17 * theta + nuisance.subject(0, 1.5))
    image = blend(image, _WHITE, soft_step(0.64 + folds - rho, edge))
    for side in (-1, 1):
        image = blend(image, 0.48, ellipse(u, v, side * 0.30, 0.1, 0.09, 0.17, side * 0.3, edge))
    fissure = np.exp(-0.5 * (u / 0.03) ** 2) * soft_step(np.abs(v) - 0.5, 0.08) * soft_step(0.76 - rho, edge)
    return blend(image, 0.18, 0.8 * fissure)


def _ventricles(image: np.ndarray, u: np.ndarray, v: np.ndarray, scale: np.ndarray, nuisance: Nuisance, edge: np.ndarray) -> np.ndarray:
    """Two lateral ventricles, a butterfly: frontal and occipital horns that lean outwards."""
    stretch = nuisance.subject(1, 0.05)
    for side in (-1, 1):
        cx = side * (0.03 + 0.07 * scale)
        bend = side * 0.35 * v**2 / (0.2 * scale + 0.1)  # horns bend away from the midline
        image = blend(image, _CSF, ellipse(u - bend, v, cx, -0.03, 0.085 * scale / stretch, 0.27 * scale * stretch, 0.0, edge))
    return image


def _tumour(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, head: tuple[np.ndarray, ...], labels: Labels, nuisance: Nuisance, edge: float
) -> np.ndarray:
    """An enhancing mass in one hemisphere, off the ventricles; its place is drawn for everyone, so that nothing else changes."""
    cx, cy, a, b, angle = head
    side = np.where(nuisance.place(-1, 1) > 0, 1.0, -1.0).astype(np.float32)
    turn = nuisance.place(-0.62, 0.62)
    u0, v0 = side * 0.50 * np.cos(turn), 0.50 * np.sin(turn)
    tx = cx + a * u0 * np.cos(angle) - b * v0 * np.sin(angle)
    ty = cy + a * u0 * np.sin(angle) + b * v0 * np.cos(angle)
    radius, stretch = nuisance.subject(0.15, 0.010), nuisance.subject(1, 0.08)
    present = (labels["tumour"] == "tumour").astype(np.float32)[:, None, None]
    tilt = nuisance.place(0, np.pi)
    oedema = ellipse(x, y, tx, ty, radius * 1.5, radius * 1.5, tilt, edge)
    image = blend(image, 0.46, 0.6 * present * oedema)
    return blend(image, _TUMOUR, present * ellipse(x, y, tx, ty, radius * stretch, radius / stretch, tilt, edge))


def measure(images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Head radius, dark area at the centre and bright area in the brain, in units that the image's own levels set."""
    m = measures(images)
    return {
        "sex": choose(m["head_radius"] > HEAD_SPLIT, "male", "female"),
        "age_group": choose(m["ventricles"] > VENTRICLE_SPLIT, "old", "young"),
        "tumour": choose(m["bright"] > BRIGHT_SPLIT, "tumour", "none"),
        "valid": m["valid"],
    }


def measures(images: np.ndarray) -> dict[str, np.ndarray]:
    """The continuous readings behind the oracle, one array (n,) each."""
    images = reduce_to_32(images)
    size = images.shape[1]
    smooth = binomial_blur(images)
    bright = np.quantile(smooth.reshape(len(images), -1), 0.80, axis=1)[:, None, None]
    head = fill(smooth > 0.42 * bright)
    head_radius = np.sqrt(head.sum(axis=(1, 2)) * 4 / size**2 / np.pi)
    *_, rho = moments_ellipse(head)
    white = _white_level(images, rho)[:, None, None]
    head_px = np.maximum(head.sum(axis=(1, 2)), 1)
    # Integrals of darkness and brightness, beyond a dead zone that noise does not leave: blur moves them little.
    black = mean_in(smooth, ~head & (rho > 1.1))[:, None, None]
    dark = np.clip((white - images) / np.maximum(white - black, 0.05) - 0.2, 0, None)
    ventricles = (dark * (rho < 0.48)).sum(axis=(1, 2)) / head_px
    light = np.clip(images / np.maximum(white, 0.05) - 1.25, 0, None)
    # Dark skull inside bright scalp. Blur moves the outline, so each is looked for over a range of rings.
    rings = np.stack([mean_in(images, (rho > low) & (rho < low + 0.06)) for low in _RINGS], axis=1)
    readings = {
        "head_radius": head_radius,
        "ventricles": ventricles,
        "bright": (light * (rho < 0.72)).sum(axis=(1, 2)) / size**2,
        "outline": overlap(head, rho < 1),
        "background": black[:, 0, 0],
        "white": white[:, 0, 0],
        "brain": mean_in(images, (rho > 0.45) & (rho < 0.68)),
        "skull": rings[:, :4].min(axis=1),
        "scalp": rings[:, 3:].max(axis=1),
    }
    return {**readings, "valid": _is_brain(readings)}


def _white_level(images: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Upper-middle level of the zone of white matter: neither ventricles nor a tumour reach it."""
    zone = np.where((rho > 0.15) & (rho < 0.62), images, np.nan).reshape(len(images), -1)
    ordered = np.sort(zone, axis=1)  # NaN last
    count = (~np.isnan(zone)).sum(axis=1)
    place = np.clip((0.55 * count).astype(int), 0, zone.shape[1] - 1)
    return np.nan_to_num(ordered[np.arange(len(images)), place])


def _is_brain(m: Mapping[str, np.ndarray]) -> np.ndarray:
    return (
        (m["head_radius"] > 0.55)
        & (m["head_radius"] < 0.93)
        & (m["outline"] > 0.88)
        & (m["white"] > 0.3)
        & (m["background"] < 0.35 * m["white"])
        & (m["skull"] < 0.85 * m["brain"])
        & (m["skull"] < 0.95 * m["scalp"])
        & (m["ventricles"] > 0.0015)
    )


BRAIN = Modality(
    name="brain",
    attributes={"sex": ["male", "female"], "age_group": ["young", "old"]},
    conditions={"tumour": ["none", "tumour"]},
    image_mode="L",
    oracle_columns=["sex", "age_group", "tumour"],
    draw=draw,
    measure=measure,
)
