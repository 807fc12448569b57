"""A cascade behind the same command: a seed an image, whatever is drawn beside it, and what is missing drawn again to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evenhand.cohorts.checking import check_cohort
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import sha256_file
from evenhand.core.randomness import torch_generator
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.pipelines import load_pipeline


def _generate(model: Path, like: Path, out: Path, **changes: object) -> Cohort:
    return generate(GenerateSettings(**{"model": str(model), "like": like, "out": out, "n": 6, "steps": 2, "batch_size": 4, **changes}))


def test_images_depend_on_their_seed_and_come_back_to_the_bit(imagen: Path, brain: Path, tmp_path: Path) -> None:
    cohort = _generate(imagen, brain, tmp_path / "cohort")
    assert check_cohort(cohort.root).faults == []
    assert (cohort.schema.image_size, cohort.schema.image_mode) == (32, "L")
    images = cohort.pixels()
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6
    one_by_one = _generate(imagen, brain, tmp_path / "single", batch_size=1)
    assert np.abs(one_by_one.pixels() - images).max() <= 2 / 255  # sums in another order
    before = [sha256_file(cohort.image_path(name)) for name in cohort.table["image"]]
    for name in cohort.table["image"][[1, 5]]:
        cohort.image_path(name).unlink()
    (cohort.root / "cohort.json").unlink()
    again = _generate(imagen, brain, tmp_path / "cohort", resume=True)
    assert [sha256_file(again.image_path(name)) for name in again.table["image"]] == before


def test_the_command_draws_what_the_pipeline_draws(imagen: Path, brain: Path, tmp_path: Path) -> None:
    cohort = _generate(imagen, brain, tmp_path / "cohort", n=2, sampler="model", guidance_scale=2.0)
    draws = [torch_generator(int(seed), "noise") for seed in cohort.table["seed"]]
    pipeline = load_pipeline(imagen)
    images = pipeline(cohort.table["prompt"].tolist(), num_inference_steps=2, guidance_scale=2.0, generator=draws, output_type="np").images
    assert isinstance(draws[0], torch.Generator)
    np.testing.assert_allclose(cohort.pixels(), images, atol=0.5 / 255 + 1e-3)
