"""Each stage of a cascade trains by the same loop: its own UNet and no other, resumed to the bit, by every kind of method."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file
from training.runs import assert_equal, last_checkpoint, settings_for, train_until_killed, train_with_crash

from evenhand.core.errors import UserError
from evenhand.engine.devices import accelerator
from evenhand.models.pipelines import load_pipeline
from evenhand.training.data import TrainingData
from evenhand.training.forks import Probe
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState

STAGES = {"base": "unet", "super-resolution": "super_resolution_unet"}


def _weights(model: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(model / part / "diffusion_pytorch_model.safetensors")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stage_trains_its_own_unet_and_the_other_follows_from_run_to_run(imagen: Path, brain: Path, tmp_path: Path) -> None:
    base = train(settings_for(imagen, brain, tmp_path / "base", steps=2, prediction="epsilon"))
    both = train(settings_for(base.run, brain, tmp_path / "both", steps=2, stage="super-resolution"))
    assert base.model is not None and both.model is not None
    changed = {name: not _same(_weights(imagen, part), _weights(base.model, part)) for name, part in STAGES.items()}
    assert changed == {"base": True, "super-resolution": False}
    changed = {name: not _same(_weights(base.model, part), _weights(both.model, part)) for name, part in STAGES.items()}
    assert changed == {"base": False, "super-resolution": True}
    pipeline = load_pipeline(both.run)  # the setting reached the stage that was trained, and no other
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.super_resolution_scheduler.config.prediction_type == "sample"
    note = json.loads((both.model / "evenhand.json").read_text())
    assert [note["settings"]["stage"], note["model_provenance"]["settings"]["stage"]] == ["super-resolution", "base"]
    text = "text_encoder/model.safetensors"
    assert (imagen / text).read_bytes() == (both.model / text).read_bytes()


def test_kill_9_in_the_base_stage_then_resume_changes_nothing(imagen: Path, brain: Path, tmp_path: Path) -> None:
    _killed_and_resumed("base", imagen, brain, tmp_path)


def test_kill_9_in_super_resolution_then_resume_changes_nothing(imagen: Path, brain: Path, tmp_path: Path) -> None:
    _killed_and_resumed("super-resolution", imagen, brain, tmp_path)


def _killed_and_resumed(stage: str, model: Path, cohort: Path, tmp_path: Path) -> None:
    whole, broken = (
        settings_for(model, cohort, tmp_path / name, steps=7, checkpoint_every=2, timesteps="logit-normal", stage=stage)
        for name in ("whole", "broken")
    )
    train(whole)
    ended = processes.run(train_until_killed, broken.model_dump(), 5, str(tmp_path / "seen"), log=tmp_path / "log")
    assert ended.code == -signal.SIGKILL
    train(broken.model_copy(update={"resume": True}))
    assert_equal(last_checkpoint(broken.out), last_checkpoint(whole.out))
    assert _same(*(_weights(settings.out / "model", STAGES[stage]) for settings in (whole, broken)))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora": 2}, id="lora"),
        pytest.param({"accumulation": 2, "gradient_checkpointing": True, "method": "group_dro"}, id="group-dro"),
        pytest.param({"method": "bayesian_perturbation", "form": "reference", "window": 2, "min_snr": 5.0}, id="reference"),
    ],
)
def test_a_crash_in_super_resolution_changes_nothing(changes: dict[str, Any], imagen: Path, brain: Path, tmp_path: Path) -> None:
    base = {"steps": 5, "checkpoint_every": 2, "stage": "super-resolution", **changes}
    whole, broken = (settings_for(imagen, brain, tmp_path / name, **base) for name in ("whole", "broken"))
    train(whole)
    train_with_crash(broken, step=3)
    assert_equal(last_checkpoint(broken.out), last_checkpoint(whole.out))


def test_a_lora_of_super_resolution_is_folded_into_its_unet(imagen: Path, brain: Path, tmp_path: Path) -> None:
    settings = settings_for(imagen, brain, tmp_path / "run", steps=2, lora=2, learning_rate=1e-2, ema=0.0, stage="super-resolution")
    train(settings)
    base, merged = (load_pipeline(model).super_resolution_unet for model in (imagen, settings.out))
    latents, text, level = torch.ones(1, 5, 16, 16), torch.ones(1, 16, 64), torch.tensor([50])
    with torch.no_grad():
        before, after = (unet(latents, 500, encoder_hidden_states=text, class_labels=level).sample for unet in (base, merged))
        base.load_lora_adapter(settings.out / "lora", prefix="unet", use_safetensors=True)
        adapted = base(latents, 500, encoder_hidden_states=text, class_labels=level).sample
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(adapted, after, rtol=1e-4, atol=1e-5)


def test_the_robust_form_forks_in_super_resolution(imagen: Path, brain: Path, tmp_path: Path) -> None:
    options = {"arm_steps": 3, "looks": 2, "nulls": 1, "probe": 8, "averaged": 2}
    settings = settings_for(
        imagen, brain, tmp_path / "run", steps=16, stage="super-resolution",
        method="bayesian_perturbation", method_options=options, attributes=["sex"],
    )  # fmt: skip
    result = train(settings)
    assert (result.steps, result.lost_steps) == (10, 6)


def _prepared(model: Path, cohort: Path, out: Path, **changes: Any) -> tuple[TrainSettings, TrainingState, TrainingData]:
    settings = settings_for(model, cohort, out, stage="super-resolution", **changes)
    state = TrainingState.create(settings, accelerator("no"))
    return settings, state, TrainingData.prepare(settings, state, accelerator("no"))


def test_pieces_and_ranks_share_out_conditions_too(imagen: Path, brain: Path, tmp_path: Path) -> None:
    _, _, data = _prepared(imagen, brain, tmp_path / "run")
    (whole,) = data.batch(3, None)
    assert whole.condition is not None and whole.condition.channels.shape == (4, 1, 16, 16)
    assert len(set(whole.condition.level.tolist())) == 4
    two = [replace(data, rank=rank, world=2).batch(3, None)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([piece.condition.level for piece in two]), whole.condition.level)
    assert torch.equal(torch.cat([piece.condition.channels for piece in two]), whole.condition.channels)
    (later,) = data.batch(4, None)
    assert not torch.equal(later.condition.level, whole.condition.level)


def test_a_probe_has_the_same_conditions_in_every_group(imagen: Path, brain: Path, tmp_path: Path) -> None:
    settings, state, _ = _prepared(imagen, brain, tmp_path / "run", method="bayesian_perturbation", attributes=["sex"])
    probe = Probe.prepare(settings, state, 4, accelerator("no"))
    levels = torch.cat([piece.condition.level for _, piece in probe.pieces])
    assert len(probe.names) == 2 and torch.equal(levels[:4], levels[4:]) and len(set(levels.tolist())) == 4


def test_faults_of_the_stage_are_named(imagen: Path, tiny: Path, brain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(settings_for(tiny, brain, tmp_path / "run", stage="super-resolution"))
    assert str(error.value) == "--stage super-resolution: StableDiffusionPipeline has no such stage; There is: base"
    settings = settings_for(imagen, brain, tmp_path / "base", steps=1)
    train(settings)
    with pytest.raises(UserError) as error:
        train(settings.model_copy(update={"stage": "super-resolution", "resume": True}))
    assert str(error.value) == (
        f"{settings.out}/config.yaml: --resume with stage = 'super-resolution', but the run began with 'base'; "
        "keep it, or choose another --out"
    )


def test_a_run_from_before_there_were_stages_goes_on(plain: Path, skin: Path, tmp_path: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=1)
    train(settings)
    config = settings.out / "config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(keepends=True) if not line.startswith("stage:")))
    assert train(settings.model_copy(update={"steps": 2, "resume": True})).steps == 2
