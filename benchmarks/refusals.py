"""Section ``refusals`` of audit_calibration.py: is a share refused where images differ in more than their mix?

The worlds are those of alignment.py, in whose work folder every case leaves a note, so that a run goes on where it stopped. A case has
500 images with a share of men of its own, and the judge of one of three worlds. Four sets:

- ``mix``: phantoms of which only the mix differs.
- ``blurred``: phantoms, blurred by .5 to 2.5 px.
- ``generator``: images of another generator, anew for each case: Gaussians fitted to the principal components of one sex's images, of
  pixels or of the latents of the world's autoencoder. Their truth is the sex that they were drawn as.
- ``gradient``: images of the world's model after a short alignment of the case's own, in which gradients of guides pass through drawing.
  Their truth is what the phantoms' oracle reads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from alignment import prepare
from alignment_measures import classifier_folder
from diffusers import AutoencoderKL
from scipy.ndimage import gaussian_filter

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.audit.intervals import share_interval
from evenhand.audit.representation import estimate_mix
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.core.artifacts import claim, read_json, write_json
from evenhand.core.randomness import generator
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder

WORLDS, IMAGES, SIDE = 3, 500, 32
SETS = ("mix", "blurred", "generator", "gradient")
_FITTED, _STEPS = 600, 10  # phantoms that a generator is fitted to; solver steps
# of short alignments, in turn: what passes gradients, where, and with which guides
_ALIGNMENTS: tuple[dict[str, Any], ...] = (
    {"form": "kl"}, {"form": "transport"}, {"form": "kl", "path": "truncated", "carrying": "last:2"}, {"form": "kl", "consistency": 0.0},
)  # fmt: skip


class Case(NamedTuple):
    """Images (n, S, S), and the share of men among them."""

    images: np.ndarray
    truth: float


def refusals(cases: int, work: Path, sets: tuple[str, ...] = SETS) -> dict[str, Any]:
    """Of each set: how often the share is refused, how often its interval misses the truth, and how many of those are refused."""
    found = {}
    for name in sets:
        notes = [_note(work, name, number) for number in range(cases)]
        refused, missed = (np.array([note[key] for note in notes], dtype=bool) for key in ("refused", "missed"))
        found[name] = {"cases": cases, "refused": _share(refused), "missed": _share(missed), "refused_of_missed": _share(refused[missed])}
    return found


def _share(hits: np.ndarray) -> dict[str, float] | None:
    return dict(zip(("share", "low", "high"), share_interval(hits, np.arange(len(hits))), strict=True)) if len(hits) else None


def _note(work: Path, name: str, number: int) -> dict[str, Any]:
    """What one case came to, unless it is known."""
    path = work / "refusals" / name / f"{number}.json"
    if not path.exists():
        world = work / f"seed-{number % WORLDS}"
        world.mkdir(parents=True, exist_ok=True)
        with claim(world / "base", wait=True):
            prepare(world, number % WORLDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        make = {"mix": _mix, "blurred": _blurred, "generator": _generator, "gradient": _gradient}[name]
        write_json(path, _judged(world, make(world, number)))
    return dict(read_json(path))


def _judged(world: Path, case: Case) -> dict[str, Any]:
    judge, encoder = (kind.load(classifier_folder(world, "judge", "sex")) for kind in (Classifier, Encoder))
    held = Cohort.load(world / "cohorts" / "judge").split("val", "test")
    labels = held.table["sex"].map({group: code for code, group in enumerate(judge.groups)}).to_numpy()
    (probs, features), (known, there) = (_read(judge, encoder, images) for images in (case.images, held.pixels()))
    found = estimate_mix(probs, known, labels, features=features, calibration_features=there)
    male = judge.groups.index("male")
    return {
        "truth": case.truth, "value": float(found.values[male]), "low": float(found.low[male]), "high": float(found.high[male]),
        "refused": not found.identifiable, "reason": found.reason, "missed": not found.low[male] <= case.truth <= found.high[male],
    }  # fmt: skip


def _read(judge: Classifier, encoder: Encoder, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and penultimate features."""
    parts = [np.ascontiguousarray(images[start : start + 100], dtype=np.float32) for start in range(0, len(images), 100)]
    return np.concatenate([judge.predict(part) for part in parts]), np.concatenate([encoder.features(part) for part in parts])


def _men(name: str, number: int) -> int:
    """How many of a case's images are of men."""
    return round(IMAGES * float(generator(number, "refusals", name).choice([0.2, 0.4, 0.5, 0.6, 0.9])))


def _phantoms(men: int, seed: int) -> np.ndarray:
    """Images (n, S, S) of so many men and, for the rest, women, whom no cohort of the worlds has."""
    parts = [
        MODALITIES["brain"].generate(n, mix=f"sex={sex}:1", size=SIDE, seed=100_000 + seed).images
        for n, sex in ((men, "male"), (IMAGES - men, "female"))
    ]
    return np.concatenate(parts)


def _mix(world: Path, number: int) -> Case:
    men = _men("mix", number)
    return Case(_phantoms(men, number), men / IMAGES)


def _blurred(world: Path, number: int) -> Case:
    men, sd = _men("blurred", number), float(generator(number, "refusals", "blur").uniform(0.5, 2.5))
    return Case(gaussian_filter(_phantoms(men, 10_000 + number), (0, sd, sd)), men / IMAGES)


def _generator(world: Path, number: int) -> Case:
    men, rng = _men("generator", number), generator(number, "refusals", "generator")
    model = AutoencoderKL.from_pretrained(world / "base" / "run" / "model", subfolder="vae") if number % 2 else None
    components, made = int(rng.choice([16, 32, 64])), []
    for sex, n in (("male", men), ("female", IMAGES - men)):
        images = MODALITIES["brain"].generate(_FITTED, mix=f"sex={sex}:1", size=SIDE, seed=200_000 + number).images
        codes = (_encoded(model, images) if model else images).reshape(_FITTED, -1)
        mean = codes.mean(axis=0)
        _, scales, axes = np.linalg.svd(codes - mean, full_matrices=False)
        drawn = rng.standard_normal((n, components)) * scales[:components] / np.sqrt(_FITTED - 1)
        made.append(mean + drawn @ axes[:components])
    drawn = np.concatenate(made)
    return Case((_decoded(model, drawn) if model else drawn.reshape(-1, SIDE, SIDE)).clip(0, 1), men / IMAGES)


@torch.no_grad()
def _encoded(model: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(images.astype(np.float32))[:, None].repeat(1, model.config["in_channels"], 1, 1) * 2 - 1
    return torch.cat([model.encode(part).latent_dist.mean for part in pixels.split(100)]).numpy()


@torch.no_grad()
def _decoded(model: AutoencoderKL, codes: np.ndarray) -> np.ndarray:
    channels = model.config["latent_channels"]
    side = round((codes.shape[1] / channels) ** 0.5)
    latents = torch.from_numpy(codes.astype(np.float32)).reshape(-1, channels, side, side)
    return np.asarray(torch.cat([model.decode(part).sample.mean(dim=1) for part in latents.split(100)]).numpy() / 2 + 0.5)


def _gradient(world: Path, number: int) -> Case:
    folder = world / "refusals" / str(number)
    run = folder / "run"
    settings = AlignSettings(
        model=str(world / "base" / "run"), guide=[classifier_folder(world, f"guide-{place}", "sex") for place in (0, 1)],
        held_out_guide=[classifier_folder(world, "held-out", "sex")], target="sex=male:0.5,female:0.5",
        prompts=str(world / "cohorts" / "source"), out=run, solver_steps=_STEPS, guidance_scale=1.0, iterations=12, validate_every=12,
        learning_rate=float(generator(number, "refusals", "rate").choice([5e-5, 1e-4])), warmup=1, validation_images=100, ema=0.0,
        seed=3000 + number, resume=(run / "config.yaml").exists(), **_ALIGNMENTS[number // WORLDS % len(_ALIGNMENTS)],
    )  # fmt: skip
    if align(settings).interrupted:
        raise SystemExit("interrupted and saved; the same command goes on")
    made = generate(
        GenerateSettings(
            model=str(run), out=folder / "drawn", like=world / "cohorts" / "source", n=IMAGES, prompt_attributes=["none"],
            guidance_scale=1.0, steps=_STEPS, seed=4000 + number, resume=(folder / "drawn").exists(),
        )
    )  # fmt: skip
    images = made.pixels()
    seen = MODALITIES["brain"].oracle(images)
    shutil.rmtree(folder)
    return Case(images, float((seen["sex"][seen["valid"].to_numpy(dtype=bool)] == "male").mean()))
