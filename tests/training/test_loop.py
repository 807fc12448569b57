"""The loop: steps that are not finite, the log by group, LoRA, a full disk."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import fail_at_every_write, full_disk
from safetensors.torch import load_file
from training.runs import last_checkpoint, settings_for

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import is_disk_full, manifest_faults
from evenhand.core.errors import UserError
from evenhand.engine.batching import Batches
from evenhand.engine.checkpoints import checkpoint_folders
from evenhand.training import loop
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings
from evenhand.training.weighting import METHODS


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _poison(cache: Path, rows: list[int]) -> None:
    """Make cached latents of some rows NaN, as a damaged image or an overflowing autoencoder would."""
    (file,) = cache.glob("latents/*/mean.npy")
    latents = np.load(file)
    latents[rows] = np.nan
    np.save(file, latents)


def test_a_step_that_is_not_finite_is_skipped_and_counted(plain: Path, skin: Path, tmp_path: Path, own_cache: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=8, log_every=1, checkpoint_every=20)
    train(settings.model_copy(update={"out": tmp_path / "first", "steps": 1}))
    n = len(Cohort.load(skin).split("train"))
    bad = int(Batches(n, 4, settings.seed).at(2)[0])  # step 2 of the first epoch, and no other of these eight
    _poison(own_cache, [bad])
    result = train(settings)
    assert result.skipped == 1 and result.steps == 8
    checkpoint = last_checkpoint(settings.out)
    assert checkpoint.facts["skipped"] == 1 and checkpoint.facts["averages_updates"] == 7
    assert all(tensor.isfinite().all() for part in checkpoint.tensors.values() for tensor in part.values())
    assert {float(checkpoint.tensors["optimizer"][name]) for name in checkpoint.tensors["optimizer"] if name.endswith("|step")} == {7.0}
    lines = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert lines[2]["loss"] is None and lines[2]["gradient_norm"] is None  # JSON has no NaN
    assert all(line["loss"] > 0 for line in lines if line["step"] != 3)


@pytest.mark.parametrize(
    ("bad", "told"), [([2], "1 of 3 steps had a .* and changed nothing"), ([0, 1, 2], "3 of 3 .* so the model is as it was")]
)
def test_a_run_tells_of_steps_that_were_skipped(
    plain: Path, skin: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str], bad: list[int], told: str
) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=3)
    train(settings.model_copy(update={"out": tmp_path / "first", "steps": 1}))
    batches = Batches(len(Cohort.load(skin).split("train")), 4, settings.seed)
    _poison(own_cache, [int(batches.at(step)[0]) for step in bad])
    train(settings)
    assert re.search(f"warning: {told}; lower --learning-rate", capsys.readouterr().err)


def test_too_many_in_a_row_stop_the_run(plain: Path, skin: Path, tmp_path: Path, own_cache: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=6, checkpoint_every=1, max_skipped=3)
    train(settings.model_copy(update={"steps": 1}))
    _poison(own_cache, list(range(len(Cohort.load(skin).split("train")))))
    with pytest.raises(UserError) as error:
        train(settings.model_copy(update={"resume": True}))
    assert str(error.value) == (
        "training stopped at step 4: 3 steps in a row had a loss or gradient that is not finite; "
        "lower --learning-rate, or check the cohort and the model"
    )
    assert all(tensor.isfinite().all() for tensor in last_checkpoint(settings.out).tensors["model"].values())


def test_a_checkpoint_before_the_first_update_disturbs_nothing(plain: Path, skin: Path, tmp_path: Path, own_cache: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "often", steps=3, checkpoint_every=1)
    train(settings.model_copy(update={"out": tmp_path / "first", "steps": 1}))
    _poison(own_cache, [int(Batches(len(Cohort.load(skin).split("train")), 4, settings.seed).at(0)[0])])
    train(settings.model_copy(update={"steps": 1}))  # its only step is skipped: no averages of gradients yet
    assert not (last_checkpoint(settings.out).tensors).get("optimizer")
    train(settings.model_copy(update={"resume": True}))
    train(settings.model_copy(update={"out": tmp_path / "once", "checkpoint_every": 9}))
    a, b = last_checkpoint(settings.out), last_checkpoint(tmp_path / "once")
    assert all(torch.equal(a.tensors[part][name], b.tensors[part][name]) for part in b.tensors for name in b.tensors[part])


def test_the_log_tells_the_loss_by_group_and_an_absent_group_has_none(plain: Path, skin: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(skin)
    schema = cohort.schema.model_copy(update={"attributes": {**cohort.schema.attributes, "age_group": ["young", "old", "ageless"]}})
    Cohort(schema, cohort.table, cohort.root).save(tmp_path / "cohort")
    train(settings_for(plain, tmp_path / "cohort", tmp_path / "run", steps=4, log_every=2, warmup=4))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3 * 2 / 4, 1e-3])
    for line in lines:
        by_age = line["loss_by_group"]["age_group"]
        assert by_age["ageless"] == {"n": 0, "loss": None}
        assert sum(entry["n"] for entry in by_age.values()) == 8
        mean = sum(entry["n"] * (entry["loss"] or 0) for entry in by_age.values()) / 8
        assert mean == pytest.approx(line["loss"], rel=1e-6)


def test_min_snr_changes_the_gradient_not_the_reported_loss(plain: Path, skin: Path, tmp_path: Path) -> None:
    first = {}
    for gamma in (None, 0.1):
        run = tmp_path / f"run-{gamma}"
        train(settings_for(plain, skin, run, steps=1, log_every=1, min_snr=gamma))
        first[gamma] = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    assert first[None]["loss"] == first[0.1]["loss"]
    assert first[0.1]["gradient_norm"] < 0.8 * first[None]["gradient_norm"]


def test_lora_trains_only_its_own_and_is_folded_into_the_model(plain: Path, skin: Path, tmp_path: Path) -> None:
    from evenhand.models.pipelines import load_pipeline

    settings = settings_for(plain, skin, tmp_path / "run", steps=2, lora=2, learning_rate=1e-2, ema=0.0)
    train(settings)
    assert all(".lora_" in name for name in last_checkpoint(settings.out).tensors["model"])
    base, merged = load_pipeline(plain), load_pipeline(settings.out)
    before, after = base.unet.state_dict(), merged.unet.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(any(part in name for part in ("to_q", "to_k", "to_v", "to_out.0")) for name in changed)
    base.load_lora_weights(settings.out / "lora")
    latents, text = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(1, 4, 16)
    with torch.no_grad():
        a, b = (pipe.unet(latents, 500, encoder_hidden_states=text).sample for pipe in (base, merged))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_model_has_the_averaged_weights(plain: Path, skin: Path, tmp_path: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=3, ema=0.5)
    train(settings)
    weights = load_file(settings.out / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    checkpoint = last_checkpoint(settings.out)
    assert all(torch.equal(weights[name], tensor) for name, tensor in checkpoint.tensors["averages"].items())
    assert any(not torch.equal(weights[name], tensor) for name, tensor in checkpoint.tensors["model"].items())


def test_on_a_full_disk_the_old_model_and_the_checkpoints_survive(
    plain: Path, skin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=1, lora=2)
    train(settings)
    old = (settings.out / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    publish = loop.publish

    def look() -> None:
        names = {path.name for path in settings.out.iterdir() if not path.name.startswith(".")}
        assert names == {"checkpoints", "config.yaml", "log.jsonl", "model", "lora"}
        assert (settings.out / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == old
        assert (settings.out / "model" / "model_index.json").is_file()
        assert all(not manifest_faults(folder) for folder in checkpoint_folders(settings.out / "checkpoints"))

    writes = []

    def with_little_space(*args) -> Path:  # type: ignore[no-untyped-def]
        writes.append(fail_at_every_write(settings.out, lambda: publish(*args), look))
        return settings.out / "model"

    monkeypatch.setattr(loop, "publish", with_little_space)
    train(settings.model_copy(update={"steps": 2, "resume": True}))
    assert writes[0] >= 8  # weights and settings of each part of the pipeline
    assert (settings.out / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() != old


def test_a_run_that_met_a_full_disk_goes_on(plain: Path, skin: Path, tmp_path: Path, own_cache: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=2, checkpoint_every=1)
    for allowed in itertools.count(0, 5):
        with full_disk(tmp_path, allowed) as disk:  # cache and run
            try:
                train(settings.model_copy(update={"resume": True}))
            except Exception as error:
                assert disk.tripped and is_disk_full(error), error
        if not disk.tripped:
            break
        assert not [file for file in own_cache.rglob("whole.json") if not (file.parent / "text.npy").is_file()]
    train(settings.model_copy(update={"out": tmp_path / "undisturbed"}))
    a, b = last_checkpoint(settings.out), last_checkpoint(tmp_path / "undisturbed")
    assert all(torch.equal(a.tensors[part][name], b.tensors[part][name]) for part in b.tensors for name in b.tensors[part])


def test_cached_latents_take_their_space_before_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    from evenhand.engine.latents import _reserve

    def full(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        _reserve(tmp_path / "mean.npy", (10, 4, 16, 16))
    assert list(tmp_path.iterdir()) == []


def test_settings_are_checked_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        TrainSettings.resolve(None, model="m", cohort="c", out="o", method="unifrom")
    there = ", ".join(["auto", *METHODS])
    assert str(error.value) == f"--method: unknown method; did you mean 'uniform'? There is: {there} (got 'unifrom')"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "group_dro", "form": "reference"}, "--method group_dro: it has no option 'form'; There is: eta"),
        (
            {"method": "bayesian_perturbation", "form": "refrence"},
            "--method bayesian_perturbation: it has no form 'refrence'; did you mean 'reference'? There is: robust, reference",
        ),
        (
            {"method": "bayesian_perturbation", "form": "reference", "window": 1},
            "--method bayesian_perturbation: window: Input should be greater than or equal to 2 (got 1)",
        ),
        (
            {"method": "group_dro", "method_options": {"eat": 1}},
            "--method group_dro: it has no option 'eat'; did you mean 'eta'? There is: eta",
        ),
    ],
)
def test_options_of_a_method_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        TrainSettings.resolve(None, model="m", cohort="c", out="o", **changes)
    assert str(error.value) == message


def test_auto_is_square_root_balanced_sampling(plain: Path, skin: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(settings_for(plain, skin, tmp_path / "auto", steps=2, method="auto"))
    train(settings_for(plain, skin, tmp_path / "balanced", steps=2, sampling="balanced", tau=0.5))
    a, b = last_checkpoint(tmp_path / "auto"), last_checkpoint(tmp_path / "balanced")
    assert all(torch.equal(a.tensors["model"][name], value) for name, value in b.tensors["model"].items())
    cohort = Cohort.load(skin)
    Cohort(cohort.schema, cohort.table.assign(age_group="old", skin_tone="unknown"), cohort.root).save(tmp_path / "one")
    train(settings_for(plain, tmp_path / "one", tmp_path / "alone", steps=1, method="auto"))
    assert "no attribute has two groups in the training split; auto is plain training" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="--method auto: it has no option 'form'"):
        TrainSettings.resolve(None, model="m", cohort="c", out="o", method="auto", form="robust")
