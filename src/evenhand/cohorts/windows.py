"""Intensity windows: which grey values of images with more than 8 bits become black and white."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FEW = 0.001  # of the pixels: so many may lie outside of a window
FILLED = 0.25  # of a window: where the other pixels fill less, the window is theirs, else images are black
MIN_VALUES = 16  # fewer grey values are no range: a mask, a drawing
_AT_ONCE = 4_000_000
_EXACT = 65_536  # integers up to here are counted as they are, other values to 12 significant bits: their number is bounded


@dataclass(frozen=True)
class Window:
    """Grey values ``low`` (and below) become 0, ``high`` (and above) 255; ``rule`` says why these."""

    low: float
    high: float
    rule: str

    def scale(self, levels: np.ndarray) -> np.ndarray:
        """``levels`` of any shape as float32 in [0, 1]."""
        scaled = np.empty(levels.shape, dtype=np.float32)
        for part in _parts(levels):
            scaled[part] = np.clip((levels[part].astype(np.float64) - self.low) / (self.high - self.low), 0, 1)
        return scaled

    def outside(self, levels: np.ndarray) -> int:
        """How many values are clipped."""
        return int(((levels < self.low) | (levels > self.high)).sum())


class Levels:
    """How often each grey value occurs in the images of an import; memory does not grow with their number."""

    def __init__(self) -> None:
        self.values, self.counts = np.zeros(0), np.zeros(0, dtype=np.int64)  # ascending
        self.whole = True  # integers only
        self.declared: tuple[float, float] | None = None  # the union of what files declare
        self.all_declare = True
        self.images = 0

    def add(self, levels: np.ndarray, declared: tuple[float, float] | None) -> None:
        """Count one image: its grey values, any shape, and the range that its file declares."""
        self.images += 1
        if declared is None:
            self.all_declare = False
        else:
            known = self.declared or declared
            self.declared = (min(known[0], declared[0]), max(known[1], declared[1]))
        for part in _parts(levels):
            if levels[part].size:
                self._merge(*self._counted(levels[part]))

    def _counted(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if levels.dtype.kind == "f":
            self.whole = self.whole and bool((levels == np.floor(levels)).all())
        else:
            low, high = int(levels.min()), int(levels.max())
            if max(-low, high) <= _EXACT:
                counts = np.bincount((levels.astype(np.int64) - low).ravel())
                found = np.flatnonzero(counts)
                return found + float(low), counts[found]
        values, counts = np.unique(levels.astype(np.float64), return_counts=True)
        mantissa, exponent = np.frexp(values)
        rough = np.ldexp(np.round(mantissa * 4096), exponent - 12)
        rough[[0, -1]] = values[[0, -1]]  # the range itself stays exact
        return np.where((np.abs(values) <= _EXACT) & (values == np.floor(values)), values, rough), counts

    def _merge(self, values: np.ndarray, counts: np.ndarray) -> None:
        self.values, index = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        merged = np.zeros(len(self.values), dtype=np.int64)
        np.add.at(merged, index, np.concatenate([self.counts, counts]))
        self.counts = merged


def choose_window(levels: Levels) -> Window:
    """One window for all images of an import, so that their relative intensities stay.

    The range that every file declares, unless more than ``FEW`` of the pixels contradict it. Else the range of the data: 0 to the
    smallest 2^n - 1 that holds all (0 stays black, as unsigned images mean it); with negative values (CT) from the smallest to the
    largest; for fractions 0 to 1, or to the largest. A value that lies alone, further from the others than these spread (padding, a
    burned-in marker), does not count, and where all but ``FEW`` at each end fill less than a quarter of the window, it is narrowed
    to them. ``Window.outside`` counts what is clipped.
    """
    if not len(levels.values):
        return Window(0, 255, "no image has a pixel that can be seen")
    declared = levels.declared
    if declared and levels.all_declare and declared[1] > declared[0]:
        outside = (levels.values < declared[0]) | (levels.values > declared[1])
        if levels.counts[outside].sum() <= FEW * levels.counts.sum():
            return Window(*declared, "the range that the files declare")
    values, counts = _without_lonely(levels.values, levels.counts)
    low, high = _nominal(values[0], values[-1], levels.whole)
    rule = f"the range of the data, {as_text(values[0])} to {as_text(values[-1])}"
    few, most = _inner_range(values, counts)
    is_range = most - few >= MIN_VALUES - 1 if levels.whole else most > few
    if is_range and most - few < FILLED * (high - low):
        low, high = _narrowed(few, most, values, levels.whole)
        rule = f"the range of all but {FEW:.1%} of the pixels at each end, {as_text(few)} to {as_text(most)}"
    return Window(float(low), float(high), rule)


def as_text(value: float) -> str:
    """A grey value in a note: whole ones with all digits."""
    return f"{value:.0f}" if value == np.floor(value) and abs(value) < 1e12 else f"{value:.4g}"


def _parts(levels: np.ndarray) -> Iterator[slice]:
    """Runs of rows of a few million values, so that copies of higher precision stay small."""
    rows = max(1, _AT_ONCE * len(levels) // max(1, levels.size))
    return (slice(start, start + rows) for start in range(0, len(levels), rows))


def _without_lonely(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without an extreme value that lies further from the others than these spread."""
    if len(values) > MIN_VALUES and values[1] - values[0] > values[-1] - values[1]:
        values, counts = values[1:], counts[1:]
    if len(values) > MIN_VALUES and values[-1] - values[-2] > values[-2] - values[0]:
        values, counts = values[:-1], counts[:-1]
    return values, counts


def _nominal(least: float, largest: float, whole: bool) -> tuple[float, float]:
    if least < 0:
        return least, max(largest, least + 1)
    if not whole:
        return 0.0, 1.0 if largest <= 1 else largest
    return 0.0, float(2 ** max(1, int(largest).bit_length()) - 1)


def _narrowed(few: float, most: float, values: np.ndarray, whole: bool) -> tuple[float, float]:
    """0 stays black where that costs no more than it may; whole values that lie close to the rest are taken along."""
    low, high = _nominal(few, most, whole)
    if most - few < FILLED * (high - low):
        low, high = few, most
    span = most - few
    near = values[(values >= few - span) & (values <= most + span)]
    if low == few:
        low = float(near[0])
    if high == most:
        high = float(near[-1])
    return low, high


def _inner_range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The values between which all but ``FEW`` of the pixels at each end lie."""
    total = np.cumsum(counts)
    few = values[np.searchsorted(total, FEW * total[-1], side="right")]
    most = values[np.searchsorted(total, (1 - FEW) * total[-1])]
    return float(few), float(most)
