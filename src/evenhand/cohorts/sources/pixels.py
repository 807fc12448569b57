"""Pixels of an import: one size, one mode and one intensity window for all its images, and what was done to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from evenhand.cohorts.decoding import BAD_EXIF, CMYK, FRAMES, INVISIBLE, LAB, PALETTE, TRANSPARENT, BadImage, Raster
from evenhand.cohorts.images import Picture
from evenhand.cohorts.sources.base import ImportSettings
from evenhand.cohorts.windows import Levels, Window, as_text, choose_window

MAX_SIZE = 512  # where no option gives one
DARK, DARK_SHARE = 64, 0.999  # of 255; of the pixels: an image is dark where so many are darker
_REMARKS = {
    PALETTE: "{n} with a palette, which was converted to the colours that it stands for",
    CMYK: "{n} in CMYK, converted to RGB without a colour profile",
    LAB: "{n} in CIELAB, converted to RGB",
    TRANSPARENT: "{n} with transparent pixels, which lie on black now",
    INVISIBLE: "{n} that {are} wholly transparent; the transparency was ignored",
    FRAMES: "{n} with several pages or frames, of which the first was taken",
    BAD_EXIF: "{n} with a damaged EXIF block; the orientation was left as it is",
}


@dataclass(frozen=True)
class Prepared:
    """One image as it is written, and what was done to it."""

    image: Image.Image
    side: int  # of the part of the original that it shows
    lost: float  # share that was cut off, or of black that was added
    remarks: frozenset[str]
    deep: bool = False
    pixels: int = 0
    clipped: int = 0


class PixelRules:
    """What is done to every image of an import.

    Size and mode are those of the settings, else of the first image. Images of more than 8 bits share one window: the settings', else
    the one that ``survey`` finds in all of them, which is called when the first such image is met.
    """

    def __init__(self, settings: ImportSettings, mode: Literal["L", "RGB"] | None, survey: Callable[[], Levels]) -> None:
        self.settings, self.survey = settings, survey
        self.fixed_mode = settings.mode or mode
        self.size: int | None = settings.size
        self.mode: Literal["L", "RGB"] | None = self.fixed_mode
        self.window = Window(*settings.window, "as --window says") if settings.window else None
        # a window of other images does not mean those of 8 bits
        self.for_8_bits = settings.window is not None and settings.window[0] >= 0 and settings.window[1] <= 255
        self.window_is_deep: bool | None = None
        self.images = self.deep = self.cut = self.enlarged = self.larger = self.dark = self.pixels = self.clipped = self.clipped_images = 0
        self.most_lost = self.factor = 0.0
        self.smallest: int | None = None
        self.largest = 0
        self.remarks: Counter[str] = Counter()
        self.takes_window = True  # a source that decodes its images itself has a rule of its own

    def prepare(self, opened: Picture | Image.Image) -> Prepared:
        """The image as it will be written: square, 8 bits a channel.

        Raises:
            BadImage: truncated, damaged, or colour where the first image is gray.
        """
        self.takes_window = isinstance(opened, Picture)
        raster = opened.decode() if isinstance(opened, Picture) else Raster(opened)
        self._check_window(raster)
        if self.size is None:
            self.size = min(MAX_SIZE, *raster.size) if self.settings.fit == "crop" else min(MAX_SIZE, max(raster.size))
        if self.mode is None:
            self.mode = raster.mode
        image, clipped, pixels = self._shown(raster)
        if self.mode == "L" and self.fixed_mode is None and _is_coloured(image):
            raise BadImage("colour image in a grayscale cohort; set mode to RGB to keep colour, or to L to drop it")
        image = image.convert(self.mode)
        side = min(image.size) if self.settings.fit == "crop" else max(image.size)
        lost = 1 - min(image.size) / max(image.size)
        done = _cropped(image, self.size) if self.settings.fit == "crop" else _padded(image, self.size)
        return Prepared(done, side, lost, raster.remarks, raster.levels is not None, pixels, clipped)

    def _check_window(self, raster: Raster) -> None:
        """A window within 0 to 255 is taken by images of 8 bits too, so it must not mean others as well."""
        if self.for_8_bits:
            deep = raster.levels is not None
            if self.window_is_deep not in (None, deep):
                raise BadImage("images of 8 bits and of more in one import, and --window within 0 to 255 fits one kind; import them apart")
            self.window_is_deep = deep

    def _shown(self, raster: Raster) -> tuple[Image.Image, int, int]:
        """The 8-bit image that a window shows, with the number of clipped pixels of how many."""
        if raster.image is not None:
            if not self.for_8_bits or self.window is None:
                return raster.image, 0, 0
            levels = np.asarray(raster.image)
            return _to_image(self.window.scale(levels)), self.window.outside(levels), levels.size
        assert raster.levels is not None
        if self.window is None:
            self.window = choose_window(self.survey())
        scaled = self.window.scale(raster.levels)
        if raster.inverted:
            scaled = 1 - scaled
        if raster.alpha is not None:
            scaled = scaled * (raster.alpha if scaled.ndim == 2 else raster.alpha[..., None])
        return _to_image(scaled), self.window.outside(raster.visible), raster.visible.size

    def count(self, prepared: Prepared) -> None:
        """Remember what was done to an image that is imported."""
        assert self.size is not None
        self.images += 1
        self.deep += prepared.deep
        self.pixels, self.clipped = self.pixels + prepared.pixels, self.clipped + prepared.clipped
        self.clipped_images += prepared.clipped > 0
        self.remarks.update(prepared.remarks)
        self.cut += prepared.lost > 0
        self.most_lost = max(self.most_lost, prepared.lost)
        self.enlarged += prepared.side < self.size
        self.factor = max(self.factor, self.size / prepared.side)
        self.larger += prepared.side > self.size
        self.largest = max(self.largest, prepared.side)
        self.smallest = min(self.smallest or prepared.side, prepared.side)
        grays = np.cumsum(prepared.image.convert("L").histogram())
        self.dark += int(np.searchsorted(grays, DARK_SHARE * grays[-1])) < DARK

    def facts(self) -> dict[str, object]:
        """What ``cohort.json`` keeps: the window, and ``notes``."""
        window = {"window": [self.window.low, self.window.high]} if self.window else {}
        return {**window, "pixels": self.notes()}

    def notes(self) -> list[str]:
        """What a reader should know of the pixels, a line each."""
        notes = [*self._window_notes(), *self._size_notes()]
        notes += [f"images: {words.format(n=self.remarks[name], are='are')}" for name, words in _REMARKS.items() if self.remarks[name]]
        if 2 * self.dark > self.images:
            notes.append(
                f"images are dark: in {self.dark} of {self.images} the {DARK_SHARE:.1%} quantile lies below {DARK} of 255; "
                f"look at them{', and give --window LOW,HIGH if their contrast is wrong' if self.takes_window else ''}"
            )
        return notes

    def _window_notes(self) -> list[str]:
        if self.window is None:
            return []
        if not self.deep and not self.for_8_bits:
            return ["--window was not used: no image has more than 8 bits, whose values are 0 to 255"]
        window = f"{as_text(self.window.low)} to {as_text(self.window.high)} ({self.window.rule})"
        which = f"{_images(self.deep)} with more than 8 bits" if self.deep else _images(self.images)
        notes = [f"{which}: window {window} scaled to 0..255; --window LOW,HIGH sets another"]
        if self.clipped:
            where = f"outside of the window, in {_images(self.clipped_images)}; they are black or white"
            notes.append(f"{self.clipped:,} of {self.pixels:,} pixels lie {where}")
        if 0 < self.deep < self.images:
            notes.append(f"{_images(self.images - self.deep)} with 8 bits among those with more: no window, they stay as they are")
        return notes

    def _size_notes(self) -> list[str]:
        notes = []
        if self.cut and self.settings.fit == "crop":
            notes.append(
                f"{self.cut} of {self.images} images are not square: the centre was cut out, and up to {self.most_lost:.0%} of an image is "
                "lost; --fit pad keeps all of it"
            )
        elif self.cut:
            share = f"up to {self.most_lost:.0%} of the square"
            notes.append(f"{self.cut} of {self.images} images are not square: black was added on two sides, {share}")
        if self.enlarged:
            notes.append(
                f"{self.enlarged} of {self.images} images were enlarged to {self.size} px, the smallest ({self.smallest} px) "
                f"{self.factor:.1f} times; that adds no detail"
            )
        if self.settings.size is None and self.larger and self.size is not None and self.size < MAX_SIZE:
            notes.append(
                f"size {self.size} px is the first image's: {self.larger} of {self.images} images are larger (up to {self.largest} px) "
                "and were reduced; give --size to keep more"
            )
        return notes


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _to_image(scaled: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(scaled * 255).astype(np.uint8))


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """The largest square around the centre, ``size`` pixels wide."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if image.size != (side, side):
        image = image.crop((left, top, left + side, top + side))
    return _resized(image, size, size)


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The whole image in a square of ``size`` pixels, black where it ends. Never larger than either: a line may be very long."""
    side = max(image.size)
    image = _resized(image, *(max(1, round(size * length / side)) for length in image.size))
    if image.size == (size, size):
        return image
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return square


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def _is_coloured(image: Image.Image) -> bool:
    """Whether channels differ by more than JPEG's rounding; a grayscale image saved as RGB has no colour."""
    if image.mode == "L":
        return False
    pixels = np.asarray(image, dtype=np.int16)
    return bool((pixels.max(axis=-1) - pixels.min(axis=-1)).max() > 8)
