"""Latents are cached by what they depend on, and by nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.engine.devices import accelerator
from evenhand.engine.latents import latent_cache
from evenhand.models.pipelines import load_pipeline, save_pipeline, stage_of


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many there are."""
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    return lambda: len(list((tmp_path / "cache/latents").iterdir()))


@pytest.fixture
def few(skin: Path) -> Cohort:
    cohort = Cohort.load(skin)
    return cohort.subset(cohort.table.index < 3)


def _fill(pipeline: StableDiffusionPipeline, cohort: Cohort) -> np.ndarray:
    return np.array(latent_cache(stage_of(pipeline), cohort, accelerator("no")).mean)


def test_a_fine_tuned_model_shares_the_latents_of_its_base(plain: Path, few: Cohort, tmp_path: Path, caches: Callable[[], int]) -> None:
    """Another denoiser, another sampler, written anew by the library of today, and in another place."""
    pipeline = load_pipeline(plain)
    expected = _fill(pipeline, few)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.add_(1)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    save_pipeline(pipeline, tmp_path / "tuned")
    shutil.rmtree(tmp_path / "tuned/tokenizer")
    shutil.copytree(plain / "tokenizer", tmp_path / "tuned/tokenizer")
    assert np.array_equal(_fill(load_pipeline(tmp_path / "tuned"), few), expected) and caches() == 1


def _other_autoencoder(pipeline: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        pipeline.vae.encoder.conv_in.bias.add_(1)


def _other_scale(pipeline: StableDiffusionPipeline) -> None:
    pipeline.vae.register_to_config(scaling_factor=0.5)


def _other_text_encoder(pipeline: StableDiffusionPipeline) -> None:
    with torch.no_grad():
        next(pipeline.text_encoder.parameters()).add_(1)


def _other_limit(pipeline: StableDiffusionPipeline) -> None:
    pipeline.tokenizer.model_max_length = 16


@pytest.mark.parametrize("change", [_other_autoencoder, _other_scale, _other_text_encoder, _other_limit])
def test_whatever_changes_latents_or_text_has_a_cache_of_its_own(plain: Path, few: Cohort, change: Callable, caches: Callable) -> None:
    pipeline = load_pipeline(plain)
    _fill(pipeline, few)
    change(pipeline)
    _fill(pipeline, few)
    assert caches() == 2


def test_images_and_prompts_enter_and_names_do_not(plain: Path, few: Cohort, caches: Callable[[], int]) -> None:
    pipeline, table = load_pipeline(plain), few.table
    _fill(pipeline, few)
    _fill(pipeline, replace(few, table=table.assign(subject_id="one", split="test")))
    assert caches() == 1
    _fill(pipeline, replace(few, table=table.iloc[[1, 0, 2]].reset_index(drop=True)))
    assert caches() == 2
    _fill(pipeline, replace(few, table=table.assign(prompt=["another", *table["prompt"][1:]])))
    assert caches() == 3


@pytest.mark.parametrize("value", [float("nan"), 3e38])
def test_token_states_that_are_no_numbers_are_not_trained_on(plain: Path, few: Cohort, value: float) -> None:
    pipeline = load_pipeline(plain)
    with torch.no_grad():
        for name, weights in pipeline.text_encoder.named_parameters():
            if "final_layer_norm" in name:
                weights.fill_(value)
    with pytest.raises(UserError, match=r"text_encoder: token states are not finite \(NaN or infinity\) for the prompt '"):
        _fill(pipeline, few)


def test_latents_that_are_no_numbers_are_not_trained_on(plain: Path, few: Cohort, caches: Callable[[], int]) -> None:
    pipeline = load_pipeline(plain)
    with torch.no_grad():
        pipeline.vae.encoder.conv_out.bias.fill_(3e38)
        pipeline.vae.quant_conv.weight.fill_(3e38)
    with pytest.raises(UserError, match="latents are not finite"):
        _fill(pipeline, few)
