"""Fundus photograph centred on the optic disc: disc with cup, four vascular arcades, the edge of the macula.

Group and condition to appearance: race is disc size and pigment of the background, ethnicity is the vessels' tortuosity, and sex
has no appearance at all (it exists to test that nobody claims to read it). The cup-disc ratio is the cup's radius by the disc's;
the mark of glaucoma is a wedge of lost nerve fibres below the macula. Nuisance: pose, disc shape, hue, vessel phase, illumination,
noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from evenhand.cohorts.phantoms.drawing import (
    blend,
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

PIGMENT = {"asian": (0.68, 0.35, 0.17), "black": (0.47, 0.21, 0.10), "white": (0.88, 0.50, 0.29)}
DISC_RADIUS = {"asian": 0.330, "black": 0.385, "white": 0.280}
TORTUOSITY = {"hispanic": 0.075, "non-hispanic": 0.0}
CUP_RATIO = {"normal": 0.36, "borderline": 0.58, "abnormal": 0.80}
WEDGE = {"glaucoma": 0.36, "non-glaucoma": 0.0}
WAVELENGTH = 0.40
_RIM, _CUP = np.array([0.94, 0.80, 0.40], dtype=np.float32), np.array([0.97, 0.84, 0.80], dtype=np.float32)
# Arcades: angle at the disc and at radius 1 (degrees, y downwards, the macula to the right), relative width.
_ARCADES = ((-88, -48, 1.0), (88, 48, 1.0), (-98, -138, 0.9), (98, 138, 0.9))
_TWIGS = ((170, 160, 0.45), (-165, -172, 0.4))
_WEDGE_ANGLE, _WEDGE_HALF = float(np.radians(20)), float(np.radians(11))

TORTUOSITY_SPLIT, WEDGE_SPLIT = 0.036, 0.15
CUP_SPLITS = (0.25, 0.50)
_RACE_CENTRES: dict[str, tuple[float, float]] = {"asian": (0.43, 0.323), "black": (0.27, 0.380), "white": (0.61, 0.270)}


def draw(labels: Labels, nuisance: Nuisance, size: int) -> np.ndarray:
    """Fundus photographs (n, S, S, 3) for the given groups; ``labels["sex"]`` is not looked at."""
    x, y = grid(size)
    edge = max(0.03, 1.0 / size)
    cx, cy, turn = nuisance.image(0, 0.018), nuisance.image(0, 0.018), nuisance.image(0, 0.025)
    radius = per_group(labels["race"], DISC_RADIUS) * nuisance.subject(1, 0.012)
    aspect = nuisance.subject(1.04, 0.012)
    u, v = local_frame(x, y, cx, cy, 1, 1, turn)
    r, phi = np.hypot(u, v), np.arctan2(v, u)

    hue = np.concatenate([nuisance.subject(1, sd) for sd in (0.010, 0.012, 0.016)], axis=2)[:, :, None]
    pigment = np.array([PIGMENT[label] for label in labels["race"]], dtype=np.float32)[:, None, None, :] * hue
    shade = 1 + smooth_field(nuisance.lattice(10, 0.016), size)
    shade = shade * (1 - 0.22 * np.exp(-0.5 * ((u - 0.80) ** 2 + v**2) / 0.13**2))  # macula
    shade = shade * (1 - _wedge(r, phi, radius, labels, nuisance))
    vessels = _vessels(r, phi, radius, labels, nuisance, size)
    image = pigment * shade[..., None]
    image = blend(image, image * np.array([0.60, 0.42, 0.45], dtype=np.float32), np.clip(vessels, 0, 1))
    image = _disc(image, u, v, radius, aspect, labels, nuisance, vessels, edge)

    field = soft_step(1.06 - np.hypot(x, y), edge)
    light = (1 + 0.03 * (nuisance.image(0, 1) * x + nuisance.image(0, 1) * y)) * nuisance.image(1, 0.02) * field
    return image * light[..., None] + nuisance.noise(0.010, size, size, 3)


def _wedge(r: np.ndarray, phi: np.ndarray, radius: np.ndarray, labels: Labels, nuisance: Nuisance) -> np.ndarray:
    """Darkening by a nerve-fibre defect: a sector that starts at the disc."""
    depth = per_group(labels["glaucoma"], WEDGE) * nuisance.subject(1, 0.05)
    across = _WEDGE_HALF - np.abs(phi - _WEDGE_ANGLE)
    return depth * soft_step(across, 0.10) * soft_step(r - 0.8 * radius, 0.05)


def _vessels(r: np.ndarray, phi: np.ndarray, radius: np.ndarray, labels: Labels, nuisance: Nuisance, size: int) -> np.ndarray:
    """Darkness of all vessels. Tortuous ones swing to either side of their course by ``TORTUOSITY``."""
    swing = per_group(labels["ethnicity"], TORTUOSITY) * nuisance.subject(1, 0.04)
    total = np.zeros(1, dtype=np.float32)
    for number, (_, _, width) in enumerate((*_ARCADES, *_TWIGS)):
        course = _course(number, r) + nuisance.subject(0, 0.02)
        phase = 2 * np.pi * r / WAVELENGTH + nuisance.place(0, 6.28)
        slope = swing * 2 * np.pi / WAVELENGTH * np.cos(phase)
        offset = (r * _wrap(phi - course) - swing * np.sin(phase)) / np.sqrt(1 + slope**2)
        sd = max(0.030 * width**0.5, 0.85 / size)
        calibre = 1.0 if width > 0.5 else 0.6
        near_side = np.cos(phi - course) > 0
        total = total + calibre * np.exp(-0.5 * (offset / sd) ** 2) * near_side * soft_step(r - 0.75 * radius, 0.05)
    return total


def _course(number: int, r: np.ndarray) -> np.ndarray:
    """Angle of a vessel's course at distance ``r`` from the disc's centre."""
    start, end, _ = (*_ARCADES, *_TWIGS)[number]
    return float(np.radians(start)) + float(np.radians(end - start)) * np.clip(r - 0.25, 0, 1.2) / 0.75


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _disc(
    image: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    radius: np.ndarray,
    aspect: np.ndarray,
    labels: Labels,
    nuisance: Nuisance,
    vessels: np.ndarray,
    edge: float,
) -> np.ndarray:
    """Disc (rim) and cup. Rim and cup differ in the blue channel only, so that disc and cup can be measured apart."""
    rho = np.hypot(u * np.sqrt(aspect), v / np.sqrt(aspect))
    image = blend(image, _RIM, soft_step(radius - rho, edge))
    ratio = per_group(labels["cup_disc_ratio"], CUP_RATIO) * nuisance.subject(1, 0.015)
    image = blend(image, _CUP, soft_step(radius * ratio - rho, edge))
    return image * (1 - 0.10 * np.clip(vessels, 0, 1) * (rho < radius))[..., None]


def measure(images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Disc and cup area, background level, swing of the vessels, darkness of the wedge."""
    m = measures(images)
    centres = np.array(list(_RACE_CENTRES.values()))
    reading = np.stack([m["background"], m["disc_radius"]], axis=1)
    distance = (((reading[:, None] - centres[None]) / np.array([0.08, 0.03])) ** 2).sum(axis=2)
    cup = np.digitize(m["cup_share"], CUP_SPLITS)
    return {
        "race": np.array(list(_RACE_CENTRES), dtype=object)[distance.argmin(axis=1)],
        "ethnicity": choose(m["swing"] > TORTUOSITY_SPLIT, "hispanic", "non-hispanic"),
        "cup_disc_ratio": np.array(list(CUP_RATIO), dtype=object)[cup],
        "glaucoma": choose(m["wedge"] > WEDGE_SPLIT, "glaucoma", "non-glaucoma"),
        "valid": m["valid"],
    }


def measures(images: np.ndarray) -> dict[str, np.ndarray]:
    """The continuous readings behind the oracle, one array (n,) each."""
    images = reduce_to_32(images)
    size = images.shape[1]
    x, y = grid(size)
    green, blue = images[..., 1], images[..., 2]
    away = np.hypot(x, y)
    ring = ((away > 0.55) & (away < 0.9))[0]
    level = np.quantile(green[:, ring], 0.6, axis=1)[:, None, None]
    centre = np.broadcast_to(away < 0.16, green.shape)
    disc_level = mean_in(green, centre)[:, None, None]
    rise = np.maximum(disc_level - level, 0.05)
    share = np.clip((green - level) / rise * 1.6 - 0.3, 0, 1) * (away < 0.62)
    disc = (share > 0.5) & (away < 0.62)
    cx, cy, _, rho = moments_ellipse(disc)
    pixel = 4 / size**2
    disc_area = share.sum(axis=(1, 2)) * pixel
    cup = np.clip((blue / np.maximum(disc_level, 0.1) - 0.5) / 0.45, 0, 1.2) * (rho < 1.02)
    colour = np.stack([images[:, ring, k].mean(axis=1) for k in range(3)], axis=1)
    swing, darkness = _trace_vessels(green / np.maximum(level, 0.05), cx, cy)
    readings = {
        "background": level[:, 0, 0] / np.maximum(disc_level[:, 0, 0], 0.05),
        "disc_radius": np.sqrt(disc_area / np.pi),
        "cup_share": cup.sum(axis=(1, 2)) * pixel / np.maximum(disc_area, 0.01),
        "swing": swing,
        "vessels": darkness,
        "wedge": _wedge_contrast(images.mean(axis=3), cx, cy),
        "outline": overlap(disc, rho < 1),
        "off_centre": np.hypot(cx, cy),
        "corners": mean_in(green, np.broadcast_to(away > 1.2, green.shape)) / np.maximum(level[:, 0, 0], 0.05),
        "red_to_green": colour[:, 0] / np.maximum(colour[:, 1], 0.02),
        "green_to_blue": colour[:, 1] / np.maximum(colour[:, 2], 0.02),
    }
    return {**readings, "valid": _is_fundus(readings)}


def _wedge_contrast(gray: np.ndarray, cx: np.ndarray, cy: np.ndarray) -> np.ndarray:
    """Darkness of the sector below the macula relative to its mirror image above."""
    x, y = grid(gray.shape[1])
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    r, phi = np.hypot(dx, dy), np.arctan2(dy, dx)
    zone = (r > 0.46) & (r < 0.92)
    below = mean_in(gray, zone & (np.abs(phi - _WEDGE_ANGLE) < 0.8 * _WEDGE_HALF))
    above = mean_in(gray, zone & (np.abs(phi + _WEDGE_ANGLE) < 0.8 * _WEDGE_HALF))
    return 1 - below / np.maximum(above, 0.03)


@lru_cache(maxsize=1)
def _tracks() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sample points (4 arcades, radii, offsets) around the disc's centre, the offsets, and the fit of a swing to a track."""
    radii, offsets = np.linspace(0.46, 0.92, 16), np.linspace(-0.20, 0.20, 17)
    px, py = np.zeros((4, 16, 17)), np.zeros((4, 16, 17))
    for number in range(4):
        angle = _course(number, radii)[:, None] + offsets[None] / radii[:, None]
        px[number], py[number] = radii[:, None] * np.cos(angle), radii[:, None] * np.sin(angle)
    phase = 2 * np.pi * radii / WAVELENGTH
    design = np.stack([np.ones_like(radii), radii - 0.7, np.sin(phase), np.cos(phase)], axis=1)
    return px, py, offsets, np.linalg.pinv(design)[2:]  # (2, radii)


def _trace_vessels(relative: np.ndarray, cx: np.ndarray, cy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean amplitude of the arcades' swing at the known wavelength, and how dark the arcades are."""
    px, py, offsets, fit = _tracks()
    values = _sample(relative, px[None] + cx[:, None, None, None], py[None] + cy[:, None, None, None])
    base = np.quantile(values, 0.65, axis=3, keepdims=True)
    weight = np.clip(base - values - 0.04, 0, None) ** 2
    centre = (weight * offsets).sum(axis=3) / np.maximum(weight.sum(axis=3), 1e-6)  # (n, 4, radii)
    amplitude = np.linalg.norm(np.einsum("kr,nar->nak", fit, centre), axis=2)
    return np.median(amplitude, axis=1), np.median(base[..., 0] - values.min(axis=3), axis=(1, 2))


def _sample(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values of (n, S, S) images at points (n, ...) given in coordinates from -1 to 1."""
    size = images.shape[1]
    column = np.clip((x + 1) / 2 * size - 0.5, 0, size - 1.001)
    row = np.clip((y + 1) / 2 * size - 0.5, 0, size - 1.001)
    i, j = row.astype(int), column.astype(int)
    di, dj = row - i, column - j
    n = np.arange(len(images)).reshape(-1, *[1] * (x.ndim - 1))
    top = images[n, i, j] * (1 - dj) + images[n, i, j + 1] * dj
    bottom = images[n, i + 1, j] * (1 - dj) + images[n, i + 1, j + 1] * dj
    return top * (1 - di) + bottom * di


def _is_fundus(m: Mapping[str, np.ndarray]) -> np.ndarray:
    return (
        (m["disc_radius"] > 0.2)
        & (m["disc_radius"] < 0.48)
        & (m["outline"] > 0.75)
        & (m["off_centre"] < 0.15)
        & (m["corners"] < 0.6)
        & (m["background"] < 0.85)
        & (m["red_to_green"] > 1.2)
        & (m["green_to_blue"] > 1.15)
        & (m["vessels"] > 0.10)
    )


FUNDUS = Modality(
    name="fundus",
    attributes={"race": list(PIGMENT), "ethnicity": list(TORTUOSITY), "sex": ["male", "female"]},
    conditions={"cup_disc_ratio": list(CUP_RATIO), "glaucoma": list(WEDGE)},
    image_mode="RGB",
    oracle_columns=["race", "ethnicity", "cup_disc_ratio", "glaucoma"],
    draw=draw,
    measure=measure,
)
