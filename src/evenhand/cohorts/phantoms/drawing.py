"""Drawing and measuring helpers that every phantom shares; images are (n, S, S), coordinates run from -1 to 1, y downwards."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Array = np.ndarray


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Array, Array]:
    """x and y of the pixel centres, each (1, S, S)."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    y, x = np.meshgrid(line, line, indexing="ij")
    return x[None], y[None]


def soft_step(distance: Array, width: Array | float) -> Array:
    """0 to 1 across ``distance`` = 0, smooth over about ``width`` on either side."""
    return 1 / (1 + np.exp(np.clip(-2 * distance / width, -30, 30)))


def local_frame(x: Array, y: Array, cx: Array | float, cy: Array | float, a: Array | float, b: Array | float,
                angle: Array | float = 0.0) -> tuple[Array, Array]:  # fmt: skip
    """Coordinates along the axes of an ellipse, in units of its semi-axes: the rim is at radius 1."""
    angle = np.asarray(angle, dtype=np.float32)  # the cosine of a Python float would turn the image to float64
    cos, sin = np.cos(angle), np.sin(angle)
    return ((x - cx) * cos + (y - cy) * sin) / a, ((y - cy) * cos - (x - cx) * sin) / b


def ellipse(x: Array, y: Array, cx: Array | float, cy: Array | float, a: Array | float, b: Array | float,
            angle: Array | float = 0.0, edge: Array | float = 0.05) -> Array:  # fmt: skip
    """A filled ellipse with a soft edge ``edge`` wide, in the units of ``x``."""
    u, v = local_frame(x, y, cx, cy, a, b, angle)
    return soft_step(1 - np.hypot(u, v), edge / (a * b) ** 0.5)


def blend(image: Array, value: Array | float, mask: Array) -> Array:
    """Paint ``value`` over ``image`` where ``mask`` is 1; masks of (n, S, S) also paint RGB (n, S, S, 3)."""
    if image.ndim == mask.ndim + 1:
        mask = mask[..., None]
    return image + (value - image) * mask


@lru_cache(maxsize=32)
def _upsampling(cells: int, size: int) -> Array:
    """Weights (S, cells) of a smooth (Gaussian) interpolation from lattice knots, so that a unit lattice keeps unit variance."""
    at = (np.arange(size) + 0.5) / size * (cells - 1)
    weights = np.exp(-0.5 * ((at[:, None] - np.arange(cells)[None]) / 0.6) ** 2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


def smooth_field(lattice: Array, size: int) -> Array:
    """A smooth random field (n, S, S) of unit variance from white knots (n, cells, cells); the same pattern at every size."""
    weights = _upsampling(lattice.shape[-1], size)
    return weights @ lattice @ weights.T


def reduce_to_32(images: Array) -> Array:
    """Average blocks so that the side lies in 24..47: the oracles then measure 32 and 64 px alike."""
    factor = max(1, images.shape[1] // 32)
    if factor == 1:
        return images
    side = images.shape[1] // factor
    cut = images[:, : side * factor, : side * factor]
    blocks = cut.reshape(len(cut), side, factor, side, factor, *cut.shape[3:])
    return blocks.mean(axis=(2, 4))


def binomial_blur(images: Array) -> Array:
    """A light blur: [1 2 1] / 4 along both axes, edges repeated."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16


def fill(mask: Array) -> Array:
    """Pixels that have ``mask`` on all four sides: a filled outline of a convex body."""
    inside = np.ones_like(mask)
    for axis in (1, 2):
        inside &= np.logical_or.accumulate(mask, axis=axis)
        inside &= np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis)
    return inside


def mean_in(values: Array, mask: Array) -> Array:
    """Mean of ``values`` under ``mask`` (weights allowed), one number an image; 0 where the mask is empty."""
    weight = mask.sum(axis=(1, 2))
    return (values * mask).sum(axis=(1, 2)) / np.maximum(weight, 1e-6)


def moments_ellipse(mask: Array) -> tuple[Array, Array, Array, Array]:
    """Centre and the ellipse with the mask's second moments.

    Returns:
        cx, cy (n,), covariance (n, 2, 2) and the radius (n, S, S) of each pixel in units of that ellipse (rim at 1).
    """
    x, y = grid(mask.shape[1])
    weight = mask.astype(np.float32)
    total = np.maximum(weight.sum(axis=(1, 2)), 1e-6)
    cx, cy = (weight * x).sum(axis=(1, 2)) / total, (weight * y).sum(axis=(1, 2)) / total
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    tiny = 1e-5
    xx = (weight * dx * dx).sum(axis=(1, 2)) / total + tiny
    yy = (weight * dy * dy).sum(axis=(1, 2)) / total + tiny
    xy = (weight * dx * dy).sum(axis=(1, 2)) / total
    determinant = np.maximum(xx * yy - xy * xy, 1e-9)[:, None, None]
    # For a uniform ellipse the covariance is a quarter of the squared semi-axes.
    square = (yy[:, None, None] * dx * dx - 2 * xy[:, None, None] * dx * dy + xx[:, None, None] * dy * dy) / determinant / 4
    covariance = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
    return cx, cy, covariance, np.sqrt(square)


def overlap(a: Array, b: Array) -> Array:
    """Intersection over union of two boolean masks, one number an image."""
    union = (a | b).sum(axis=(1, 2))
    return (a & b).sum(axis=(1, 2)) / np.maximum(union, 1)
