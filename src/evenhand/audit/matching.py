"""Laying one image over another: which picture of a gallery explains a picture best, were it mirrored, cropped, shifted or retoned."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from evenhand.audit.intervals import FeatureError
from evenhand.audit.neighbours import Matches
from evenhand.core.randomness import generator

LARGEST_SIDE, _INNER = 64, 0.9  # pixels of a picture; the part of a generated picture that is compared: a shift leaves no hole in it
_COARSE, _PARTS, _FINE = 16, 128, 32  # grid of the search and its components; grid of the comparison
_CANDIDATES, _STEPS = 6, 3
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Views of a picture: scale and shift of y, then of x, in half widths. Crops of up to 6 % a side, and shifts without a crop.
_GRIDS = ((1.0, 0.09), (0.97, 0.03), (0.91, 0.03))
_CROPS = [(zoom, y, zoom, x) for zoom, step in _GRIDS for y, x in itertools.product((0.0, -step, step), repeat=2)]
_SHIFTS = [(1.0, y, 1.0, x) for y, x in itertools.product((-0.045, 0.045), repeat=2)]
_VIEWS = np.array([*_CROPS, *_SHIFTS]) * [_INNER, 1, _INNER, 1]
_STILL = np.array([[_INNER, 0, _INNER, 0]])
_LEAST_VIEW, _MOST_VIEW = (np.array([zoom * _INNER, step, zoom * _INNER, step]) for zoom, step in ((0.84, -0.14), (1.06, 0.14)))
_BLOCK, _PAIRS = 256, 128  # images, and pairs of pictures, held at once


def as_images(images: Any, name: str) -> np.ndarray:
    """Images (n, H, W) or (n, H, W, 3), as they came."""
    try:
        stack = np.asarray(images)
    except ValueError:  # images of different sizes
        stack = np.empty(0, dtype=object)
    if stack.ndim == 4 and stack.shape[3] == 1:
        stack = stack[..., 0]
    if stack.dtype.kind not in "fiub" or stack.ndim not in (3, 4) or stack.shape[3:] not in ((), (3,)) or 0 in stack.shape:
        raise FeatureError(f"{name} images have shape {stack.shape}, type {stack.dtype}; give numbers (n, H, W) or (n, H, W, 3), n > 0")
    return stack


def as_float(images: np.ndarray, name: str) -> np.ndarray:
    """float32 in [0, 1]; whole numbers are of 0..255."""
    part = images.astype(np.float32)
    if images.dtype.kind in "iu":
        part /= 255
    if not (np.isfinite(part).all() and part.min() >= -0.01 and part.max() <= 1.01):
        raise FeatureError(f"{name} images hold {part.min():g} to {part.max():g}; give finite numbers in [0, 1], or whole ones to 255")
    return part


def as_pictures(images: np.ndarray, side: int, name: str) -> np.ndarray:
    """Brightness (n, S, S), averaged over areas."""
    down, across = (_areas(side, size) for size in images.shape[1:3])
    made = []
    for start in range(0, len(images), _BLOCK):
        part = as_float(images[start : start + _BLOCK], name)
        made.append(down @ (part @ _LUMA if part.ndim == 4 else part) @ across.T)
    return np.concatenate(made)


def _areas(out: int, size: int) -> np.ndarray:
    """Weights (out, size) of a mean over the pixels that each of ``out`` equal parts covers."""
    edges = np.arange(out + 1) * (size / out)
    cells = np.arange(size)
    weights = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    return (weights * (out / size)).astype(np.float32)


def not_blank(pictures: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Rows of pictures that are not blank, in a random order that their ranks by id decide."""
    flat = pictures.reshape(len(pictures), -1)
    order = np.argsort(ranks, kind="stable")[generator(0, "memorization/order").permutation(len(flat))]
    return order[flat[order].std(axis=1) > 1 / 255]


class NearestPictures:
    """Finds, for each picture, the picture of a gallery that explains it best.

    Whitened low-resolution views of the gallery (crops and shifts) give candidates, for either mirror image; Gauss-Newton then lays
    each candidate over the picture. Whitening gives the anatomy that all images share no more say than an image's own texture.
    """

    def __init__(self, pictures: np.ndarray) -> None:
        n = 1000
        drawn = pictures[np.arange(n) % len(pictures)]
        drawn[::2] = drawn[::2, :, ::-1]
        # Crops among what it is fitted on keep the whitening from blowing up what a crop changes: shared edges, a little moved.
        low, high, left, right = generator(0, "memorization/search").uniform(-0.02, 0.06, (4, n))
        views = np.stack([1 - low - high, low - high, 1 - left - right, left - right], axis=1) * [_INNER, 1, _INNER, 1]
        pieces = [slice(start, start + _PAIRS) for start in range(0, n, _PAIRS)]
        seen = np.concatenate([_unit(_view(drawn[piece], views[piece], _COARSE)) for piece in pieces])
        self._mean = seen.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(seen.T, dtype=np.float64))
        self._turn = (vectors / np.sqrt(np.clip(values, 0, None) + 3e-5 * max(values[-1], 1e-12)))[:, -_PARTS:].astype(np.float32)

    def _describe(self, seen: np.ndarray) -> np.ndarray:
        return _unit((_unit(seen) - self._mean) @ self._turn, centred=False)

    def gallery(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pictures (N, S, S), and what the search sees of them (views, N, parts)."""
        blocks = [pictures[i : i + _PAIRS] for i in range(0, len(pictures), _PAIRS)]
        seen = [np.stack([self._describe(_view(part, view[None], _COARSE)) for view in _VIEWS]) for part in blocks]
        return pictures, np.concatenate(seen, axis=1)

    def nearest(self, queries: np.ndarray, gallery: tuple[np.ndarray, np.ndarray], subjects: np.ndarray | None = None) -> Matches:
        """The best match of each picture; where queries are the gallery, those of its own subject are left out."""
        parts = [Matches(np.empty(0), np.empty(0, dtype=int), np.empty(0, dtype=bool), np.empty(0, dtype=bool))]
        for start in range(0, len(queries), _BLOCK):
            block = queries[start : start + _BLOCK]
            own = None if subjects is None else subjects[start : start + _BLOCK, None] == subjects
            best, which = self._likeness(np.stack([block, block[:, :, ::-1]]), gallery[1])
            best[slice(0, 0) if own is None else own] = -np.inf
            top = np.argpartition(-best, min(_CANDIDATES, best.shape[1]) - 1, axis=1)[:, :_CANDIDATES]
            which = np.take_along_axis(which, top, axis=1)
            far, view = _overlay(block, gallery[0], top, which >= len(_VIEWS), _VIEWS[which % len(_VIEWS)])
            if own is not None:
                far[np.take_along_axis(own, top, axis=1)] = np.inf  # there were no candidates of others left
            first = (np.arange(len(block)), far.argmin(axis=1))
            moved = (np.abs(view[first] - _STILL) > 0.015).any(axis=1)
            parts.append(Matches(far[first], top[first], which[first] >= len(_VIEWS), moved))
        return Matches(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _likeness(self, both: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best cosine of b pictures with each of the gallery (b, N), and in which view; mirrored ones count on."""
        best = np.full((both.shape[1], seen.shape[1]), -np.inf, dtype=np.float32)
        which = np.zeros(best.shape, dtype=np.int16)
        for mirror, pictures in enumerate(both):
            asked = self._describe(_view(pictures, _STILL, _COARSE))
            for view, part in enumerate(seen):
                cosine = asked @ part.T
                better = cosine > best
                np.copyto(best, cosine, where=better)
                which[better] = view + mirror * len(seen)
        return best, which


def _overlay(pictures: np.ndarray, gallery: np.ndarray, top: np.ndarray, flipped: np.ndarray, view: np.ndarray) -> tuple[Any, np.ndarray]:
    """How much of each picture its candidates (b, k) leave unexplained, and the view of the candidate that fits best (b, k, 4)."""
    seen = _view(pictures, _STILL, _FINE)
    both = np.stack([seen, _view(pictures[:, :, ::-1], _STILL, _FINE)])
    row, mirror, which, start = np.repeat(np.arange(len(top)), top.shape[1]), flipped.ravel().astype(int), top.ravel(), view.reshape(-1, 4)
    pieces = [slice(i, i + _PAIRS) for i in range(0, len(row), _PAIRS)]
    found = [_lay_over(both[mirror[piece], row[piece]], gallery[which[piece]], start[piece]) for piece in pieces]
    far, view = (np.concatenate(part) for part in zip(*found, strict=True))
    return far.reshape(top.shape), view.reshape(*top.shape, 4)


def _lay_over(target: np.ndarray, pictures: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Newton over the view: root of the share of ``target`` (p, o, o) that a picture, recoloured and blurred, leaves."""
    wanted = target.reshape(len(target), -1) - target.mean(axis=(1, 2))[:, None]
    total = np.maximum((wanted**2).sum(axis=1), 1e-12)
    least, best = np.full(len(target), np.inf), view
    for step in range(_STEPS + 1):
        terms = _terms(_view(pictures, view, target.shape[1]))
        gram, side = (terms @ terms.transpose(0, 2, 1)).astype(np.float64), (terms @ wanted[..., None]).astype(np.float64)
        tone = _solved(gram[:, :3, :3], side[:, :3], 1e-7)
        rest = wanted - (tone[:, None].astype(np.float32) @ terms[:, :3])[:, 0]
        left = np.where(tone[:, 0] > 0, np.minimum((rest**2).sum(axis=1) / total, 1), 1)  # a negative is no copy
        best = np.where((left < least)[:, None], view, best)
        least = np.minimum(left, least)
        if step < _STEPS:
            change = _solved(gram, side, 1e-4)
            shift_y, zoom_y, shift_x, zoom_x = np.clip(change[:, 3:] / np.maximum(change[:, :1], 0.2), -0.08, 0.08).T
            scale_y, scale_x = view[:, 0], view[:, 2]
            view = view + np.stack([scale_y * zoom_y, scale_y * shift_y, scale_x * zoom_x, scale_x * shift_x], axis=1)
            view = np.clip(view, _LEAST_VIEW, _MOST_VIEW)
    return np.sqrt(least), best


def _terms(seen: np.ndarray) -> np.ndarray:
    """What may be fitted (p, 7, pixels): the picture, its Laplacian (blur), its square (tone), and a shift and zoom of y and of x."""
    size = seen.shape[1]
    line = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    around = np.pad(seen, ((0, 0), (1, 1), (1, 1)), mode="edge")
    up, down, left, right = around[:, :-2, 1:-1], around[:, 2:, 1:-1], around[:, 1:-1, :-2], around[:, 1:-1, 2:]
    centred = seen - seen.mean(axis=(1, 2), keepdims=True)
    y, x = (down - up) * (size / 4), (right - left) * (size / 4)
    terms = np.stack([centred, up + down + left + right - 4 * seen, centred**2, y, y * line[:, None], x, x * line], axis=1)
    terms = terms.reshape(len(seen), 7, -1)
    return terms - terms.mean(axis=2, keepdims=True)


def _solved(gram: np.ndarray, side: np.ndarray, damping: float) -> np.ndarray:
    ridge = damping * np.einsum("pii->pi", gram) + 1e-12
    return np.linalg.solve(gram + ridge[:, None] * np.eye(gram.shape[1]), side)[..., 0]


def _view(pictures: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """Pictures (p, S, S) seen through views (p or 1, 4) on a grid (p, size, size), smoothly sampled."""
    side = pictures.shape[1]
    return _sampling(size, side, view[:, :1], view[:, 1:2]) @ pictures @ _sampling(size, side, view[:, 2:3], view[:, 3:]).transpose(0, 2, 1)


def _sampling(size: int, side: int, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Gaussian weights (p, size, side). What lies outside the view has none, even at its edge: a crop never saw it."""
    at, scale, shift = ((np.arange(side) + 0.5) / side * 2 - 1).astype(np.float32), scale.astype(np.float32), shift.astype(np.float32)
    low, high = np.maximum(shift - scale, -1), np.minimum(shift + scale, 1)
    seen = np.clip((np.minimum(at + 1 / side, high) - np.maximum(at - 1 / side, low)) * (side / 2), 1e-6, 1)
    points = np.clip(scale * ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32) + shift, low, high)
    width = max(0.6 * side / size, 0.8) * 2 / side
    weights = np.exp(-0.5 * ((points[:, :, None] - at) / np.float32(width)) ** 2) * seen[:, None]
    return weights / weights.sum(axis=2, keepdims=True)


def _unit(values: np.ndarray, centred: bool = True) -> np.ndarray:
    """Rows of length 1, about their mean."""
    rows = values.reshape(len(values), -1)
    rows = rows - rows.mean(axis=1, keepdims=True) if centred else rows
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
