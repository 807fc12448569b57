"""Where an alignment stands: what a held-out guide reads in images of fixed seeds, drawn with the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evenhand.alignment.checking import FinalCheck
from evenhand.alignment.correction import Correction
from evenhand.alignment.drawing import Drawing
from evenhand.alignment.guides import Guides, in_colour
from evenhand.alignment.targets import total_variation
from evenhand.cohorts.cohort import to_image
from evenhand.core.artifacts import write_atomically
from evenhand.models.encoders import Encoder
from evenhand.models.tensors import to_array

PARTED = 0.1  # total variation between guide and held-out guide, beyond which: the guide is being fooled
_SHOWN = 12
COMPARED = 500  # images whose nearness to the untuned model's is told


@dataclass(frozen=True)
class Standing:
    """Shares (C K,) of joint groups among drawn images, by the guides and by the held-out ones, and nearness to the untuned model."""

    guide: np.ndarray
    held_out: np.ndarray
    consistency: float | None  # mean cosine to the untuned model's images of the same seeds; None without encoders

    @property
    def parted(self) -> bool:
        """Whether guide and held-out guide read different mixes."""
        return bool(total_variation(self.guide, self.held_out) > PARTED)


@dataclass(frozen=True)
class Validation:
    """Images of fixed seeds, and how the untuned model's look to the encoders."""

    drawing: Drawing
    target: np.ndarray  # (C K,)
    guides: Guides
    held_out: Guides
    corrections: Sequence[Correction]  # of both
    encoders: list[Encoder]
    untuned: torch.Tensor  # (n, d) embeddings, on the CPU
    folder: Path

    @classmethod
    @torch.no_grad()
    def prepare(
        cls, drawing: Drawing, target: np.ndarray, guides: Guides, held_out: Guides, corrections: Sequence[Correction],
        encoders: list[Encoder], untuned: torch.nn.Module, folder: Path,
    ) -> Validation:  # fmt: skip
        """Draw the untuned model's images once."""
        n = min(drawing.settings.validation_images, COMPARED)
        features = torch.zeros(n, 0)
        if encoders:
            drawn = drawing.images(untuned, "validation", n)
            features = drawing.whole([(places, embed(encoders, pixels)) for places, _, pixels in drawn], n)
        return cls(drawing, target, guides, held_out, corrections, encoders, features, folder)

    @torch.no_grad()
    def standing(self, unet: torch.nn.Module, sheet: str) -> Standing:
        """Draw, read, and keep a sheet of the first images under this name."""
        n = self.drawing.settings.validation_images
        found: list[tuple[np.ndarray, torch.Tensor]] = []
        for places, classes, pixels in self.drawing.images(unet, "validation", n):
            if places[0] == 0:
                write_sheet(self.folder / f"{sheet}.png", pixels[:_SHOWN])
            read = [self._votes(guides, pixels, classes) for guides in (self.guides, self.held_out)]
            found.append((places, torch.cat([*read, self._nearness(places, pixels)[:, None]], dim=1)))
        rows, k = self.drawing.whole(found, n).double().numpy(), len(self.target)
        votes = rows[:, :k], rows[:, k:-1]
        guide, held_out = (self._settled(found.shares(own.mean(0))) for found, own in zip(self.corrections, votes, strict=True))
        return Standing(guide, held_out, float(rows[: len(self.untuned), -1].mean()) if self.encoders else None)

    @torch.no_grad()
    def checked(self, unet: torch.nn.Module, judges: Guides, correction: Correction, n: int) -> FinalCheck:
        """Shares among ``n`` images of seeds that no step and no validation has seen, by the judges."""
        read = [(rows, self._votes(judges, pixels, classes)) for rows, classes, pixels in self.drawing.images(unet, "final check", n)]
        votes = self.drawing.whole(read, n).double().numpy()
        shares = self._settled(correction.shares(votes.mean(0)))
        low, high = correction.interval(votes, self._settled, self.drawing.settings.seed)
        return FinalCheck(shares, np.minimum(low, shares), np.maximum(high, shares), n)

    def _nearness(self, places: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        """Cosine (b,) to the untuned model's images of these places; 0 of those that are not compared."""
        found, rows = pixels.new_zeros(len(places)), np.flatnonzero(places < len(self.untuned))
        if self.encoders and len(rows):
            found[rows] = F.cosine_similarity(embed(self.encoders, pixels[rows]), self.untuned[places[rows]].to(pixels.device))
        return found

    def _votes(self, guides: Guides, pixels: torch.Tensor, classes: np.ndarray) -> torch.Tensor:
        """Votes (b, C K) of guides for the joint group of each image."""
        return self.drawing.classes.joint(guides.votes(pixels), classes)

    def _settled(self, shares: np.ndarray) -> np.ndarray:
        return self.drawing.classes.settled(shares, self.target)


def embed(encoders: list[Encoder], pixels: torch.Tensor) -> torch.Tensor:
    """Embeddings of all encoders side by side, each of unit length: the mean of their cosines is the cosine of the whole."""
    colour = in_colour(pixels)
    return torch.cat([F.normalize(encoder.embed(colour), dim=1) for encoder in encoders], dim=1)


def write_sheet(path: Path, pixels: torch.Tensor) -> None:
    """Images (n, channels, H, W) in [0, 1] side by side: the same seeds in every sheet of a run."""
    path.parent.mkdir(exist_ok=True)
    strip = np.concatenate(list(to_array(pixels)), axis=1)
    image: Image.Image = to_image(strip)
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
