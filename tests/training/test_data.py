"""What a step sees: draws of each sample's own, captions left out at the rate asked for, prompts that are cut counted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training.runs import settings_for

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.engine.devices import accelerator, mixed_precision
from evenhand.models.denoise import encode
from evenhand.training.data import TrainingData
from evenhand.training.loop import train
from evenhand.training.state import TrainingState


@pytest.fixture(scope="module")
def data(tiny: Path, brain: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    settings = settings_for(tiny, brain, tmp_path_factory.mktemp("unused"), sampling="balanced")
    device = accelerator("no")
    return TrainingData.prepare(settings, TrainingState.create(settings, device), device)


def _with(data: TrainingData, **changes: object) -> TrainingData:
    return replace(data, settings=data.settings.model_copy(update=changes))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_captions_are_left_out_at_the_rate_asked_for(data: TrainingData, rate: float) -> None:
    changed, left_out = _with(data, caption_dropout=rate), []
    for step in range(150):
        (piece,) = changed.batch(step, None)
        for text, row in zip(piece.text, piece.rows, strict=True):
            silent, own = torch.equal(text, data.cache.silent), torch.equal(text, data.cache.embeddings(np.array([row]))[0])
            assert silent != own
            left_out.append(silent)
    assert np.mean(left_out) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / len(left_out)) ** 0.5)


def test_pieces_and_ranks_share_out_one_batch(data: TrainingData) -> None:
    (whole,) = data.batch(3, None)
    for world, accumulation in ((2, 1), (1, 2), (2, 2)):
        parts = [
            (place, piece)
            for rank in range(world)
            for place, piece in enumerate(replace(_with(data, accumulation=accumulation), rank=rank, world=world).batch(3, None))
        ]
        parts.sort(key=lambda part: part[0])  # the first piece of every rank, then the second
        for name in ("latents", "noise", "timesteps", "text"):
            torch.testing.assert_close(torch.cat([getattr(piece, name) for _, piece in parts]), getattr(whole, name), rtol=0, atol=0)


def test_each_sample_has_noise_of_its_own(data: TrainingData) -> None:
    (first,), (again,), (later,) = data.batch(0, None), data.batch(0, None), data.batch(1, None)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.timesteps, again.timesteps)
    assert not torch.equal(first.noise, later.noise)
    assert len({tuple(sample.flatten()[:4].tolist()) for sample in first.noise}) == len(first.rows)
    only = dict.fromkeys(data.joint_odds or {}, 0.0)
    rare = min(data.joint_odds or {}, key=lambda group: int((data.batches.groups == group).sum()))  # type: ignore[union-attr]
    twice = replace(data, batches=replace(data.batches, batch_size=40), settings=data.settings.model_copy(update={"batch_size": 40}))
    (piece,) = twice.batch(0, {**only, rare: 1.0})
    assert len(set(piece.rows.tolist())) < 40  # a row that is drawn twice
    assert len({tuple(sample.flatten()[:4].tolist()) for sample in piece.noise}) == 40


def test_latents_are_draws_from_the_posterior(data: TrainingData, tiny: Path, brain: Path) -> None:
    from evenhand.models.pipelines import load_pipeline

    train_split = Cohort.load(brain).split("train")
    with torch.no_grad():
        mean, std = encode(load_pipeline(tiny).vae, torch.from_numpy(train_split.pixels([5]))[:, None])
    cached_mean, cached_std = data.cache.latents(np.array([5]))
    torch.testing.assert_close(cached_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cached_std, std, rtol=1e-4, atol=1e-5)


def test_balanced_sampling_evens_out_the_joint_groups(data: TrainingData) -> None:
    groups = data.batches.groups
    assert groups is not None
    drawn = np.concatenate([data.batches.at(step, data.joint_odds) for step in range(400)])
    shares = [(groups[drawn] == group).mean() for group in sorted(set(groups))]
    assert len(shares) == 4 and shares == pytest.approx([0.25] * 4, abs=0.05)


def test_codes_follow_the_schema_and_unknown_is_minus_one(tiny: Path, brain: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(brain)
    table = cohort.table.copy()
    table.loc[::2, "sex"] = "unknown"
    Cohort(cohort.schema, table, cohort.root).save(tmp_path / "cohort")
    settings, device = settings_for(tiny, tmp_path / "cohort", tmp_path / "run", attributes=["sex"]), accelerator("no")
    data = TrainingData.prepare(settings, TrainingState.create(settings, device), device)
    values = table.loc[table["split"] == "train", "sex"]
    order = {group: code for code, group in enumerate(cohort.schema.attributes["sex"])}
    assert data.codes["sex"].tolist() == [order.get(str(value), -1) for value in values]
    assert list(data.codes) == ["sex"]


def test_prompts_over_the_limit_are_counted(tiny: Path, brain: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cohort = Cohort.load(brain)
    table = cohort.table.copy()
    rows = table.index[table["split"] == "train"][:5]
    table.loc[rows, "prompt"] = "Brain MR slice of a male patient " * 20
    Cohort(cohort.schema, table, cohort.root).save(tmp_path / "cohort")
    train(settings_for(tiny, tmp_path / "cohort", tmp_path / "run", steps=1))
    error = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 prompts (5 images) exceed the tokenizer's 16 tokens; their end is cut" in error


def _message(**changes: object) -> str:
    with pytest.raises(UserError) as error:
        train(settings_for(**changes))  # type: ignore[arg-type]
    return str(error.value)


def test_faults_of_the_input_are_named(tiny: Path, brain: Path, tmp_path: Path) -> None:
    base = {"model": tiny, "cohort": brain, "out": tmp_path / "run"}
    assert _message(**base, batch_size=6, accumulation=4) == "--batch-size 6: not a multiple of processes x accumulation (4)"
    near = f"--attributes: {brain} has no attribute 'sexe'; did you mean 'sex'? There is: "
    assert _message(**base, attributes=["sexe"]).startswith(near)
    cohort = Cohort.load(brain)
    cohort.split("test").save(tmp_path / "test")
    assert _message(**{**base, "cohort": tmp_path / "test"}) == (
        f"{tmp_path / 'test'}: the training split is empty; import again, or give rows split=train"
    )


def test_no_model_is_trained_that_could_not_be_drawn(plain: Path, skin: Path, tmp_path: Path) -> None:
    """Zero terminal SNR with epsilon: refused in a folder, and as what --prediction would make of one."""
    model = shutil.copytree(plain, tmp_path / "model")
    file = model / "scheduler/scheduler_config.json"
    config = {**json.loads(file.read_text()), "rescale_betas_zero_snr": True}
    for stated, prediction in (("v_prediction", "epsilon"), ("epsilon", None)):
        file.write_text(json.dumps({**config, "prediction_type": stated}))
        with pytest.raises(UserError, match="zero terminal SNR"):
            train(settings_for(model, skin, tmp_path / f"run-{stated}", prediction=prediction))


def test_images_of_another_size_are_refused(tiny: Path, tmp_path: Path) -> None:
    from evenhand.cohorts.phantoms.cohort import write_phantoms

    write_phantoms("dermoscopy", tmp_path / "skin", n=8, size=48)
    assert _message(model=tiny, cohort=tmp_path / "skin", out=tmp_path / "run") == (
        f"{tmp_path / 'skin'}: images are 48 px RGB, the model draws 32 px L; import again with --size 32 --mode L"
    )


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed_precision("bf16") == "bf16"
    for has, bf16, expected in ((False, False, "no"), (True, False, "fp16"), (True, True, "bf16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has=has: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda bf16=bf16: bf16)
        assert mixed_precision("auto") == expected


def test_one_process_may_change_its_precision() -> None:
    assert accelerator("bf16").mixed_precision == "bf16"
    assert accelerator("no").mixed_precision == "no"
