"""What every phantom modality is: columns, a generator of images with known truth, and an oracle that reads them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr

from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import Factor, Mix, parse_mix
from evenhand.core.randomness import generator

BLOCK = 64  # images drawn together: bounds memory and keys the generators, so that image i does not depend on n
MIN_SIZE = 24
_ANATOMY_DRAWS = 32
_CLIP = 2.5  # nuisance is a normal cut at 2.5 sd: no freak that leaves its group
_ORACLE_CHUNK = 256

Harder = Mapping[str, float] | str


@dataclass(frozen=True)
class Phantoms:
    """Images, float32 in [0, 1], (n, H, W) or (n, H, W, 3), and what each of them shows."""

    images: np.ndarray
    table: pd.DataFrame


@dataclass
class Nuisance:
    """The random draws of one block of images. A drawer asks for them in a fixed order, whatever the groups are."""

    seed: int
    purpose: str
    block: int
    anatomy: np.ndarray  # (n, draws) standard normal, one row per image, equal for images of one subject
    spread: np.ndarray  # (n,) factor on every standard deviation
    _column: int = field(default=0, init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = generator(self.seed, f"{self.purpose}/image", self.block)

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None]

    def _next(self) -> np.ndarray:
        values = self.anatomy[:, self._column]
        self._column += 1
        return values

    def subject(self, mean: float, sd: float) -> np.ndarray:
        """A trait of the subject, (n, 1, 1): equal on all of a subject's images."""
        return self._shaped(mean + sd * self.spread * np.clip(self._next(), -_CLIP, _CLIP))

    def place(self, low: float, high: float) -> np.ndarray:
        """A uniform trait of the subject, (n, 1, 1), that a harder group does not widen (such as a lesion's place)."""
        return self._shaped(low + (high - low) * ndtr(self._next()))

    def image(self, mean: float, sd: float) -> np.ndarray:
        """A trait of one image, (n, 1, 1): pose, contrast."""
        drawn = self._rng.standard_normal(BLOCK)[: len(self.spread)]
        return self._shaped(mean + sd * self.spread * np.clip(drawn, -_CLIP, _CLIP))

    def lattice(self, cells: int, sd: float) -> np.ndarray:
        """White knots (n, cells, cells) of one image for ``drawing.smooth_field``."""
        drawn = self._rng.standard_normal((BLOCK, cells, cells), dtype=np.float32)[: len(self.spread)]
        return np.clip(drawn, -_CLIP, _CLIP) * self._shaped(sd * self.spread)

    def noise(self, sd: float, *shape: int) -> np.ndarray:
        """White pixel noise (n, *shape)."""
        rng = generator(self.seed, f"{self.purpose}/noise", self.block, *shape)
        drawn = rng.standard_normal((BLOCK, *shape), dtype=np.float32)[: len(self.spread)]
        return drawn * (sd * self.spread).astype(np.float32).reshape(-1, *[1] * len(shape))


Labels = Mapping[str, np.ndarray]
Draw = Callable[[Labels, Nuisance, int], np.ndarray]
Measure = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Modality:
    """One kind of synthetic anatomy: which groups and conditions it has, how it is drawn, how pixels tell them."""

    name: str
    attributes: dict[str, list[str]]
    conditions: dict[str, list[str]]
    image_mode: Literal["L", "RGB"]
    oracle_columns: list[str]
    draw: Draw = field(repr=False)
    measure: Measure = field(repr=False)

    @property
    def columns(self) -> dict[str, list[str]]:
        """Attributes and conditions together: column -> values."""
        return {**self.attributes, **self.conditions}

    def generate(self, n: int, *, mix: str | Mix | None = None, size: int = 32, seed: int = 0, harder: Harder | None = None) -> Phantoms:
        """Draw ``n`` images of independent subjects.

        Groups are a random sample of ``mix``; columns that it leaves out have equal shares. Image i depends on the seed and on i,
        not on ``n``; with the same seed a different mix or size keeps the nuisance.

        Args:
            harder: ``"sex=female:4"`` or ``{"sex=female": 4}`` multiplies the nuisance variance of that group by 4.

        Raises:
            UserError: ``n`` below 1, ``size`` below 24, a mix or ``harder`` that names an unknown column or group.
        """
        blocks = list(self.blocks(n, mix=mix, size=size, seed=seed, harder=harder))
        tables = pd.concat([block.table for block in blocks], ignore_index=True)
        return Phantoms(np.concatenate([block.images for block in blocks]), tables)

    def blocks(
        self,
        n: int,
        *,
        mix: str | Mix | None = None,
        size: int = 32,
        seed: int = 0,
        harder: Harder | None = None,
        images_a_subject: int = 1,
    ) -> Iterator[Phantoms]:
        """The same images a few at a time, so that memory does not grow with the size of an image set."""
        for name, value, least in (("n", n, 1), ("size", size, MIN_SIZE), ("images_a_subject", images_a_subject, 1)):
            if value < least:
                raise UserError(f"phantom {self.name}: {name} is {value}; give at least {least}")
        purpose = f"phantom/{self.name}"
        subjects = -(-n // images_a_subject)
        table = self._labels(self.complete(mix), subjects, generator(seed, f"{purpose}/labels"))
        anatomy = generator(seed, f"{purpose}/subject").standard_normal((subjects, _ANATOMY_DRAWS), dtype=np.float32)
        spread = self._spread(table, harder)
        return self._draw_blocks(table, anatomy, spread, np.arange(n) // images_a_subject, size, seed)

    def _draw_blocks(
        self, table: pd.DataFrame, anatomy: np.ndarray, spread: np.ndarray, subject: np.ndarray, size: int, seed: int
    ) -> Iterator[Phantoms]:
        for block, start in enumerate(range(0, len(subject), BLOCK)):
            rows = subject[start : start + BLOCK]
            part = table.iloc[rows].reset_index(drop=True)
            labels = {name: part[name].to_numpy(dtype=object) for name in self.columns}
            nuisance = Nuisance(seed, f"phantom/{self.name}", block, anatomy[rows], spread[rows])
            yield Phantoms(np.clip(self.draw(labels, nuisance, size), 0, 1).astype(np.float32), part)

    def complete(self, mix: str | Mix | None) -> Mix:
        """``mix`` as a checked Mix over every column; what it leaves out has equal shares."""
        given = parse_mix(mix, self.columns) if isinstance(mix, str) else mix or Mix(())
        given.check(self.columns)
        rest = [name for name in self.columns if name not in given.names]
        equal = tuple(Factor((name,), {(v,): 1 / len(self.columns[name]) for v in self.columns[name]}) for name in rest)
        return Mix((*given.factors, *equal))

    def _labels(self, mix: Mix, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """One row a subject. A factor is drawn from its first column's uniform, so that other columns keep theirs."""
        uniform = rng.random((n, len(self.columns)))
        places = list(self.columns)
        drawn: dict[str, np.ndarray] = {}
        for factor in mix.factors:
            values, shares = list(factor.shares), np.array(list(factor.shares.values()))
            edges = np.cumsum(shares)
            cell = np.searchsorted(edges / edges[-1], uniform[:, places.index(factor.names[0])], side="right")
            for place, name in enumerate(factor.names):
                drawn[name] = np.array([value[place] for value in values], dtype=object)[cell]
        table = pd.DataFrame({"subject_id": [f"{self.name}-{i:06d}" for i in range(n)], **{c: drawn[c] for c in places}})
        return table.astype("str")

    def _spread(self, table: pd.DataFrame, harder: Harder | None) -> np.ndarray:
        """The factor on nuisance standard deviations, one a subject: the root of the variance factor."""
        spread = np.ones(len(table))
        for key, factor in parse_harder(harder).items():
            name, _, group = key.partition("=")
            if name not in self.columns:
                raise UserError(f"harder {key!r}: unknown attribute {name!r}; {did_you_mean(name, self.columns)}")
            if group not in self.columns[name]:
                raise UserError(f"harder {key!r}: {name} has no group {group!r}; {did_you_mean(group, self.columns[name])}")
            spread[(table[name] == group).to_numpy()] *= np.sqrt(factor)
        return spread

    def oracle(self, images: np.ndarray) -> pd.DataFrame:
        """Read groups and conditions from pixels alone.

        Args:
            images: (n, S, S) or (n, S, S, 3), float in [0, 1], S at least 24; made for 32 and 64 px and multiples.

        Returns:
            One row per image: ``oracle_columns`` and ``valid`` (is it such an anatomy at all).

        Raises:
            ValueError: another shape.
        """
        images = np.asarray(images)
        shape = images.shape
        if images.ndim not in (3, 4) or shape[1] != shape[2] or shape[1] < MIN_SIZE or shape[3:] not in ((), (3,)):
            raise ValueError(f"images have shape {shape}; the oracle reads (n, S, S) or (n, S, S, 3) with S at least {MIN_SIZE}")
        if not len(images):
            return self.oracle(np.zeros((1, *shape[1:]))).iloc[:0]
        parts = []
        for start in range(0, len(images), _ORACLE_CHUNK):
            chunk = images[start : start + _ORACLE_CHUNK].astype(np.float32)
            finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            readings = dict(self.measure(self._in_mode(np.clip(np.nan_to_num(chunk), 0, 1))))
            parts.append(pd.DataFrame({**readings, "valid": readings["valid"] & finite}))
        return pd.concat(parts, ignore_index=True)[[*self.oracle_columns, "valid"]]

    def _in_mode(self, images: np.ndarray) -> np.ndarray:
        if self.image_mode == "L":
            return images.mean(axis=3) if images.ndim == 4 else images
        return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)


def parse_harder(harder: Harder | None) -> dict[str, float]:
    """``"sex=female:4;age_group=old:2"`` as ``{"sex=female": 4.0, "age_group=old": 2.0}``.

    Raises:
        UserError: malformed, or a factor that is not positive.
    """
    if isinstance(harder, str):
        items = [(key.strip(), value) for key, _, value in (part.rpartition(":") for part in harder.split(";"))]
    else:
        items = [(str(key), str(value)) for key, value in (harder or {}).items()]
    found: dict[str, float] = {}
    for key, value in items:
        try:
            factor = float(value)
        except ValueError:
            factor = -1.0
        if "=" not in key or not 0 < factor < np.inf:
            raise UserError(f"harder {harder!r}: cannot read {key!r} with factor {value!r}; write for example 'sex=female:4'")
        found[key] = factor
    return found


def choose(condition: np.ndarray, yes: str, no: str) -> np.ndarray:
    """``yes`` where the condition holds, else ``no``."""
    return np.where(condition, yes, no).astype(object)


def per_group(labels: np.ndarray, values: Mapping[str, float]) -> np.ndarray:
    """The value of each image's group, (n, 1, 1)."""
    return np.array([values[label] for label in labels], dtype=np.float32).reshape(-1, 1, 1)
