"""Forks within a run: they come back to the bit, cost what they say, and survive a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from training.runs import Crash, assert_equal, last_checkpoint, settings_for, stopped_after, train_until_killed

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import Checkpoint
from evenhand.training.data import TrainingData
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings
from evenhand.training.weighting.fork_contrast import ForkContrast, Look
from evenhand.training.weighting.method import Arm

QUICK = {"arm_steps": 3, "looks": 2, "nulls": 1, "probe": 8, "averaged": 2}


def forking(model: Path, cohort: Path, out: Path, **changes: Any) -> TrainSettings:
    """Sixteen computed steps, six of them in arms that lose."""
    options = {**QUICK, **changes.pop("method_options", {})}
    base = {"steps": 16, "method": "bayesian_perturbation", "method_options": options, "attributes": ["age_group"]}
    return settings_for(model, cohort, out, **{**base, **changes})


@pytest.fixture(scope="module")
def whole(plain: Path, skin: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A run with two forks that nothing disturbed."""
    settings = forking(plain, skin, tmp_path_factory.mktemp("runs") / "whole")
    result = train(settings)
    assert (result.steps, result.lost_steps, result.interrupted) == (10, 6, False)
    return settings


def test_lost_arms_count_as_computed_steps(whole: TrainSettings) -> None:
    checkpoint = last_checkpoint(whole.out)
    assert (checkpoint.step, checkpoint.facts["lost"]) == (10, 6)
    note = json.loads((whole.out / "model" / "evenhand.json").read_text())
    assert (note["steps"], note["lost_steps"]) == (10, 6)
    assert not (whole.out / "forks").exists()


def test_the_log_tells_what_was_tried(whole: TrainSettings) -> None:
    lines = [json.loads(line) for line in (whole.out / "log.jsonl").read_text().splitlines()]
    looks = [look for line in lines for look in line["method"]["looks"]]
    assert [(look["step"], look["error"] is None) for look in looks] == [(1, True), (6, False)]
    assert looks[1]["tried"] == [0.0, 0.0] and looks[1]["against"] == [1.0, 1.0] and np.isfinite(looks[1]["gain"])
    assert lines[-1]["lost_steps"] == 6 and lines[-1]["method"]["sigma"].keys() == {"young", "old"}
    assert [line["step"] for line in lines] == [5, 10]  # both arms that went on are in it, once
    drawing = (whole.out / "method.svg").read_text()
    assert "<title>sigma by group</title>" in drawing and all(word in drawing for word in (">young<", ">old<", "noise alone"))


def test_a_fork_comes_back_to_the_bit(plain: Path, skin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three arms, a run that goes on as the first of them, and the same steps without any fork."""
    points: list[Checkpoint] = []

    def adapt(method: ForkContrast, step: int, total: int, fork: Any) -> Arm | None:
        if step != 2:
            return None
        first = fork(method.odds(step), 3)
        points.append(fork._state.snapshot({}))
        fork(dict.fromkeys(method.odds(step), 1.0), 3)
        points.append(fork._state.snapshot({}))
        again = fork(method.odds(step), 3)
        assert first.losses.keys() == again.losses.keys() == {"young", "old"}
        assert all(np.array_equal(first.losses[name], again.losses[name]) for name in first.losses)
        return first

    monkeypatch.setattr(ForkContrast, "schedule", lambda method, total: [2])
    monkeypatch.setattr(ForkContrast, "adapt", adapt)
    forked = train(forking(plain, skin, tmp_path / "forked", steps=14))
    monkeypatch.setattr(ForkContrast, "adapt", lambda *given: None)
    train(forking(plain, skin, tmp_path / "straight", steps=8))
    assert (forked.steps, forked.lost_steps) == (8, 6)
    a, b = last_checkpoint(tmp_path / "forked"), last_checkpoint(tmp_path / "straight")
    assert a.facts.pop("lost") == 6 and b.facts.pop("lost") == 0
    assert_equal(a, b)
    assert all(torch.equal(points[0].tensors["model"][name], value) for name, value in points[1].tensors["model"].items())


def test_the_winning_arm_goes_on(plain: Path, skin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm under natural odds that wins is the run that had those odds for these steps."""
    natural: dict[str, float] = {}

    def adapt(method: ForkContrast, step: int, total: int, fork: Any) -> Arm | None:
        if step != 2:
            return None
        fork(method.odds(step), 3)
        natural.update(dict.fromkeys(method.odds(step), 1.0))
        method.looks.append(Look(step, [0.0, 0.0], [1.0, 1.0], 1.0, 0.1, 2.0, True, "old"))  # what was learnt outlives the arms
        return fork(natural, 3)

    monkeypatch.setattr(ForkContrast, "schedule", lambda method, total: [2])
    monkeypatch.setattr(ForkContrast, "adapt", adapt)
    train(forking(plain, skin, tmp_path / "forked", steps=9))
    monkeypatch.setattr(ForkContrast, "adapt", lambda *given: None)
    odds = ForkContrast.odds
    monkeypatch.setattr(ForkContrast, "odds", lambda method, step: natural if 2 <= step < 5 else odds(method, step))
    train(forking(plain, skin, tmp_path / "straight", steps=6))
    a, b = last_checkpoint(tmp_path / "forked"), last_checkpoint(tmp_path / "straight")
    assert len(a.facts["method"]["looks"]) == 1
    for part in ("model", "averages", "optimizer"):
        assert all(torch.equal(a.tensors[part][name], value) for name, value in b.tensors[part].items())


def test_arms_of_one_replica_see_the_same_noise(plain: Path, skin: Path, tmp_path: Path) -> None:
    from evenhand.engine.devices import accelerator
    from evenhand.training.state import TrainingState

    settings, device = forking(plain, skin, tmp_path / "run"), accelerator("no")
    data = TrainingData.prepare(settings, TrainingState.create(settings, device), device)
    (young,), (old,) = (data.batch(3, {"young": odd, "old": 1 - odd}) for odd in (0.0, 1.0))
    assert torch.equal(young.noise, old.noise) and torch.equal(young.timesteps, old.timesteps)
    assert set(young.rows.tolist()).isdisjoint(old.rows.tolist())
    (other,) = data.replica(1).batch(3, {"young": 1.0, "old": 1.0})
    assert not torch.equal(other.noise, old.noise)
    data.batches.at(0)  # the order of an epoch is kept from call to call; a replica must not inherit it
    assert data.replica(1).batch(0, None)[0].rows.tolist() != data.batch(0, None)[0].rows.tolist()


def test_the_probe_is_balanced_and_matched(plain: Path, skin: Path, tmp_path: Path) -> None:
    from evenhand.engine.devices import accelerator
    from evenhand.training.forks import Probe
    from evenhand.training.state import TrainingState

    settings, device = forking(plain, skin, tmp_path / "run"), accelerator("no")
    probe = Probe.prepare(settings, TrainingState.create(settings, device), 8, device)
    places = np.concatenate([where for where, _ in probe.pieces])
    pieces, order = [piece for _, piece in probe.pieces], np.argsort(places)
    noise, times = (torch.cat([getattr(piece, name) for piece in pieces])[order] for name in ("noise", "timesteps"))
    assert probe.names == ["young", "old"] and len(places) == 16
    assert torch.equal(noise[:8], noise[8:]) and torch.equal(times[:8], times[8:])
    held_out = Cohort.load(skin).split("val").table["age_group"].to_numpy()
    rows = np.concatenate([piece.rows for piece in pieces])[order]
    assert held_out[rows].tolist() == ["young"] * 8 + ["old"] * 8
    found = probe.losses(lambda piece: piece.timesteps.float(), device)
    assert found["old"].tolist() == times[8:].tolist()


@pytest.mark.parametrize("at", [3, 8])
def test_a_crash_within_a_fork_changes_nothing(at: int, whole: TrainSettings, tmp_path: Path) -> None:
    settings = whole.model_copy(update={"out": tmp_path / "run", "checkpoint_every": 1})

    def crash() -> None:
        raise Crash

    with stopped_after(at, crash), pytest.raises(Crash):
        train(settings)
    assert (settings.out / "forks").exists()
    train(settings.model_copy(update={"resume": True}))
    assert_equal(last_checkpoint(settings.out), last_checkpoint(whole.out))


def test_sigterm_within_an_arm_saves_what_was_before_the_fork(whole: TrainSettings, tmp_path: Path) -> None:
    settings = whole.model_copy(update={"out": tmp_path / "run"})
    ended = processes.run(_stopped, settings.model_dump(mode="json"), log=tmp_path / "log")
    assert ended.code == 0 and "6 3 True" in ended.output
    train(settings.model_copy(update={"resume": True}))
    assert_equal(last_checkpoint(settings.out), last_checkpoint(whole.out))


def _stopped(settings: dict[str, Any]) -> None:
    with stopped_after(8, lambda: os.kill(os.getpid(), signal.SIGTERM)):  # the first time: the second arm must not be reached
        result = train(TrainSettings(**settings))
    print(result.steps, result.lost_steps, result.interrupted)


@pytest.mark.parametrize(
    ("method", "options", "killed_at"),
    [
        ("inverse_frequency", {}, 4),
        ("group_dro", {"eta": 0.1}, 4),
        ("random_perturbation", {}, 4),
        ("bayesian_perturbation", {"form": "reference", "window": 2}, 4),
        ("bayesian_perturbation", QUICK, 8),  # in an arm of the second fork
    ],
)
def test_every_method_resumes_to_the_bit_after_kill_9(
    method: str, options: dict[str, Any], killed_at: int, plain: Path, skin: Path, tmp_path: Path
) -> None:
    changes = {"steps": 16 if options is QUICK else 6, "checkpoint_every": 3, "method": method, "method_options": options}
    whole, broken = (settings_for(plain, skin, tmp_path / name, **changes) for name in ("whole", "broken"))
    train(whole)
    ended = processes.run(train_until_killed, broken.model_dump(), killed_at, str(tmp_path / "seen"), log=tmp_path / "log")
    assert ended.code == -signal.SIGKILL
    train(broken.model_copy(update={"resume": True}))
    assert_equal(last_checkpoint(broken.out), last_checkpoint(whole.out))
    assert last_checkpoint(whole.out).facts["method"] != {} or method == "inverse_frequency"


def test_without_held_out_images_the_run_does_not_begin(plain: Path, skin: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(skin)
    kept = cohort.subset(cohort.table["split"] != "val")
    kept.save(tmp_path / "cohort")
    with pytest.raises(UserError) as error:
        train(forking(plain, tmp_path / "cohort", tmp_path / "run"))
    assert str(error.value) == (
        f"{tmp_path / 'cohort'}: no group has two images with split=val; this method judges settings by such images"
    )


def test_groups_that_are_too_few_are_named(plain: Path, skin: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(skin)
    table = cohort.table.assign(age_group="old")
    Cohort(cohort.schema, table, cohort.root).save(tmp_path / "one")
    for method in ("group_dro", "bayesian_perturbation"):
        with pytest.raises(UserError) as error:
            train(settings_for(plain, tmp_path / "one", tmp_path / "run", method=method, attributes=["age_group"]))
        assert str(error.value) == (
            f"--attributes: 'age_group' has fewer than two groups in the training split of {tmp_path / 'one'} (old); {method} needs two"
        )
    Cohort(cohort.schema, cohort.table.assign(age_group="unknown", skin_tone="unknown"), cohort.root).save(tmp_path / "none")
    with pytest.raises(UserError) as error:
        train(settings_for(plain, tmp_path / "none", tmp_path / "run", sampling="balanced"))
    assert str(error.value) == (
        f"{tmp_path / 'none'}: no attribute has two groups in the training split; balanced sampling needs one that does"
    )


def test_a_group_of_one_sample_trains(plain: Path, skin: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(skin)
    table = cohort.table.copy()
    rows = table.index[table["split"] == "train"]
    table.loc[rows, "age_group"] = ["young", *["old"] * (len(rows) - 1)]
    Cohort(cohort.schema, table, cohort.root).save(tmp_path / "cohort")
    for method in ("inverse_frequency", "group_dro", "random_perturbation"):
        result = train(settings_for(plain, tmp_path / "cohort", tmp_path / method, steps=2, method=method, sampling="balanced"))
        assert result.skipped == 0


def test_a_method_that_needs_groups_leaves_out_what_the_data_lack(plain: Path, skin: Path, tmp_path: Path) -> None:
    cohort = Cohort.load(skin)
    schema = cohort.schema.model_copy(update={"attributes": {**cohort.schema.attributes, "age_group": ["young", "old", "ageless"]}})
    Cohort(schema, cohort.table.assign(skin_tone="light"), cohort.root).save(tmp_path / "cohort")
    train(settings_for(plain, tmp_path / "cohort", tmp_path / "run", steps=1, log_every=1, method="random_perturbation"))
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert set(line["method"]["sigma"]) == {"age_group: young", "age_group: old"}


def test_a_run_too_short_for_forks_says_so(plain: Path, skin: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = train(forking(plain, skin, tmp_path / "run", steps=5))
    assert result.lost_steps == 0
    assert "warning: --steps 5: too few to try settings; this is balanced sampling" in " ".join(capsys.readouterr().err.split())


def test_an_arm_on_another_replica_survives_a_crash(whole: TrainSettings, tmp_path: Path) -> None:
    settings = whole.model_copy(update={"out": tmp_path / "run", "checkpoint_every": 1})
    reached: list[int] = []

    def crash_in_the_second_arm() -> None:
        reached.append(1)
        if len(reached) == 2:
            raise Crash

    with stopped_after(3, crash_in_the_second_arm), pytest.raises(Crash):
        train(settings)
    train(settings.model_copy(update={"resume": True}))
    assert_equal(last_checkpoint(settings.out), last_checkpoint(whole.out))
