"""Nearest images: by the features of an encoder, mirrored or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

_BLOCK = 256  # queries held at once
_ROUNDING = 1e-10  # squared distances below this share of the largest squared norm are float32's: the rows are the same

_TIED = 1e-9  # squared distances that differ by less are the same on some processor


class Matches(NamedTuple):
    """The nearest image of a gallery for each query: how far, which, and whether it had to be mirrored or moved."""

    distance: np.ndarray
    which: np.ndarray
    flipped: np.ndarray
    moved: np.ndarray


class Finder(Protocol):
    """How the nearest image is found."""

    def gallery(self, part: np.ndarray) -> Any: ...

    def nearest(self, queries: np.ndarray, gallery: Any, subjects: np.ndarray | None = None) -> Matches: ...


class NearestFeatures:
    """The nearest rows of a gallery (N, 2, d), which are not mirrored, to queries (n, 2, d), which may be."""

    def gallery(self, part: np.ndarray) -> np.ndarray:
        return part[:, 0]

    def nearest(self, queries: np.ndarray, gallery: np.ndarray, subjects: np.ndarray | None = None) -> Matches:
        plain, mirrored = (nearest_rows(queries[:, mirror], gallery, subjects) for mirror in (0, 1))
        flipped = mirrored[0] < plain[0]
        distance, which = (np.where(flipped, there, here) for here, there in zip(plain, mirrored, strict=True))
        return Matches(distance, which, flipped, np.zeros(len(flipped), dtype=bool))


def nearest_rows(queries: np.ndarray, gallery: np.ndarray, subjects: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest row, and which; rows of the query's own subject are left out where queries are the gallery."""
    distance, which = np.empty(len(queries)), np.empty(len(queries), dtype=int)
    for rows, squares in _squares(queries, gallery):
        if subjects is not None:
            squares[subjects[rows, None] == subjects] = np.inf
        which[rows] = squares.argmin(axis=1)
        distance[rows] = np.linalg.norm(queries[rows] - gallery[which[rows]], axis=1)  # by difference: exactly 0 for a copy
    return distance, which


def largest_of_nearest(queries: np.ndarray, gallery: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest row, and the largest of ``values`` (N,) among the rows that are nearest but for rounding."""
    distance, largest = np.empty(len(queries)), np.empty(len(queries))
    for rows, squares in _squares(queries, gallery):
        which = squares.argmin(axis=1)
        distance[rows] = np.linalg.norm(queries[rows] - gallery[which], axis=1)
        nearest = squares <= squares.min(axis=1, keepdims=True) * (1 + _TIED)
        largest[rows] = np.where(nearest, values, -np.inf).max(axis=1)
    return distance, largest


def nearest_other(rows: np.ndarray) -> np.ndarray:
    """Distance (n,) of each row to the nearest one that differs from it by more than rounding; infinite where none does."""
    distance, which = np.full(len(rows), np.inf), np.zeros(len(rows), dtype=int)
    same = _ROUNDING * ((rows - rows.mean(axis=0)) ** 2).sum(axis=1).max()
    for part, squares in _squares(rows, rows):
        squares[squares <= same] = np.inf
        which[part], distance[part] = squares.argmin(axis=1), squares.min(axis=1)
    there = np.isfinite(distance)
    distance[there] = np.linalg.norm(rows[there] - rows[which[there]], axis=1)
    return distance


def _squares(queries: np.ndarray, gallery: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of some queries at a time to all of the gallery. The mean is taken off first: an offset costs no digits."""
    centre = gallery.mean(axis=0)
    rows = gallery - centre
    sizes = (rows**2).sum(axis=1)
    for start in range(0, len(queries), _BLOCK):
        part = queries[start : start + _BLOCK] - centre
        squares = (part**2).sum(axis=1)[:, None] + sizes - 2 * part @ rows.T
        squares[squares < 1e-12 * sizes] = 0  # rounding alone
        yield slice(start, start + _BLOCK), squares


def expected_nearest(queries: np.ndarray, gallery: np.ndarray, size: int) -> np.ndarray:
    """Mean distance to the nearest of ``size`` rows drawn from a gallery without replacement, over all such draws."""
    if size == len(gallery):
        return nearest_rows(queries, gallery)[0]
    left = len(gallery) - np.arange(len(gallery) - size)
    share = np.cumprod(np.r_[size / len(gallery), (left - size) / (left - 1)])  # of draws in which the k-th nearest comes first
    return np.concatenate([np.sqrt(np.sort(squares, axis=1)[:, : len(share)]) @ share for _, squares in _squares(queries, gallery)])
