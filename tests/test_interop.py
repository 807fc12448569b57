"""What others made works here, and what is made here works with nothing but their libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from models.plain import plain_pipeline, write_plain
from training.runs import settings_for

from evenhand.cohorts.cohort import Cohort
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.training.loop import train

ONLY_DIFFUSERS = """
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
seeded = torch.Generator().manual_seed(0)
image = pipeline("Brain MR slice of a male old patient with tumour", num_inference_steps=3, generator=seeded).images[0]
assert not any(name.startswith("evenhand") for name in sys.modules)
print(type(pipeline).__name__, image.size)
"""


def test_a_script_with_diffusers_alone_generates_from_our_folder(tiny: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ONLY_DIFFUSERS, str(tiny)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "StableDiffusionPipeline (32, 32)"


@pytest.mark.parametrize("scheduler", ["pndm", "ddim"])
def test_a_folder_of_plain_diffusers_trains_and_generates_unchanged(scheduler: str, skin: Path, tmp_path: Path) -> None:
    model = write_plain(tmp_path / "plain", scheduler)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    result = train(settings_for(model, skin, tmp_path / "run", steps=2))
    assert result.steps == 2 and np.isfinite(result.loss)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    for sampler in ("dpm++", "model"):
        cohort = generate(GenerateSettings(model=str(tmp_path / "run"), like=skin, out=tmp_path / sampler, n=2, steps=2, sampler=sampler))
        assert cohort.pixels().shape == (2, 32, 32, 3)


def test_a_lora_trained_here_loads_with_diffusers(skin: Path, tmp_path: Path) -> None:
    train(settings_for(write_plain(tmp_path / "plain"), skin, tmp_path / "run", steps=2, lora=2))
    pipeline = plain_pipeline("pndm")
    pipeline.set_progress_bar_config(disable=True)
    before = pipeline("skin", num_inference_steps=2, output_type="latent", generator=_seeded()).images
    pipeline.load_lora_weights(tmp_path / "run" / "lora")
    assert list(pipeline.get_active_adapters()) == ["default_0"]
    after = pipeline("skin", num_inference_steps=2, output_type="latent", generator=_seeded()).images
    assert (before - after).abs().max() > 0


def _seeded():  # type: ignore[no-untyped-def]
    import torch

    return torch.Generator().manual_seed(0)


def test_a_cohort_opens_with_datasets_and_pandas(brain: Path, tmp_path: Path) -> None:
    import datasets

    cohort = Cohort.load(brain)
    opened = datasets.load_dataset(
        "parquet", data_files=str(brain / "cohort.parquet"), split="train", cache_dir=str(tmp_path), keep_in_memory=True
    )
    assert opened.column_names == list(cohort.table.columns) and len(opened) == len(cohort)
    assert opened[3] == cohort.table.iloc[3].to_dict()
    pd.testing.assert_frame_equal(pd.read_parquet(brain / "cohort.parquet"), cohort.table)
