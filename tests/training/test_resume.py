"""A run that is interrupted and resumed is the run that was not: tolerance 0."""

from __future__ import annotations

import ast
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest
from training.runs import assert_equal, last_checkpoint, settings_for, train_until_killed, train_with_crash, watched

from evenhand.core.artifacts import claim
from evenhand.core.errors import UserError
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings


@dataclass(frozen=True)
class Reference:
    """A run of 40 steps that nothing disturbed."""

    settings: TrainSettings
    rows: dict[int, list[int]]

    @property
    def out(self) -> Path:
        return self.settings.out

    def copy(self, out: Path) -> TrainSettings:
        """The same run, as it was before its model was written, in another folder, to be resumed."""
        shutil.copytree(self.out, out, ignore=shutil.ignore_patterns("model"))
        return self.settings.model_copy(update={"out": out, "resume": True})


@pytest.fixture(scope="module")
def reference(tiny: Path, brain: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    rows: dict[int, list[int]] = {}
    settings = settings_for(tiny, brain, tmp_path_factory.mktemp("runs") / "reference")
    with watched(rows):
        result = train(settings)
    assert result.steps == 40 and result.skipped == 0 and result.model == settings.out / "model"
    return Reference(settings, rows)


def test_kill_9_then_resume_equals_the_uninterrupted_run(reference: Reference, tmp_path: Path) -> None:
    settings = reference.settings.model_copy(update={"out": tmp_path / "run"})
    seen = tmp_path / "seen"
    ended = processes.run(train_until_killed, settings.model_dump(), 17, str(seen), log=tmp_path / "log")
    assert ended.code == -signal.SIGKILL
    assert not (tmp_path / "run" / "model").exists()
    before, after = ast.literal_eval(seen.read_text()), {}
    with watched(after):
        result = train(settings.model_copy(update={"resume": True}))
    assert result.steps == 40
    assert (min(before), max(before), min(after), max(after)) == (0, 16, 15, 39)  # steps 15 and 16 were not saved
    assert {**before, **after} == reference.rows
    assert before[15] == after[15]
    assert_equal(last_checkpoint(settings.out), last_checkpoint(reference.out))
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (settings.out / "model" / weights).read_bytes() == (reference.out / "model" / weights).read_bytes()


def test_the_log_of_a_resumed_run_has_every_step_once(reference: Reference, tmp_path: Path) -> None:
    settings = reference.copy(tmp_path / "run")
    shutil.rmtree(settings.out / "checkpoints" / "step-00000040")
    with (settings.out / "log.jsonl").open("a") as log:
        log.write('{"step": 41, "lo')  # a line that a kill has cut
    train(settings)
    lines = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 45, 5))
    assert lines == [json.loads(line) for line in (reference.out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora": 2}, id="lora"),
        pytest.param({"accumulation": 2, "gradient_checkpointing": True, "schedule": "cosine", "warmup": 2}, id="accumulation"),
        pytest.param({"sampling": "balanced", "ema": 0.0, "min_snr": 5.0, "timesteps": "logit-normal"}, id="balanced"),
    ],
)
def test_a_crash_changes_nothing(changes: dict, plain: Path, skin: Path, tmp_path: Path) -> None:
    base = {"steps": 5, "checkpoint_every": 2, **changes}
    whole, broken = (settings_for(plain, skin, tmp_path / name, **base) for name in ("whole", "broken"))
    train(whole)
    train_with_crash(broken, step=3)
    assert_equal(last_checkpoint(broken.out), last_checkpoint(whole.out))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(("damage", "word"), [(_truncate, "truncated"), (_flip, "damaged"), (Path.unlink, "missing")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: Callable[[Path], None], word: str, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    settings = reference.copy(tmp_path / "run")
    bad = settings.out / "checkpoints" / "step-00000040" / "model.safetensors"
    damage(bad)
    rows: dict[int, list[int]] = {}
    with watched(rows):
        train(settings)
    assert list(rows) == [35, 36, 37, 38, 39]
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning"))
    assert f"{bad}: {word}" in warning and warning.endswith("; the checkpoint before it is used")
    assert_equal(last_checkpoint(settings.out), last_checkpoint(reference.out))


def test_more_steps_after_the_end_give_a_new_model(plain: Path, skin: Path, tmp_path: Path) -> None:
    settings = settings_for(plain, skin, tmp_path / "run", steps=2)
    weights = settings.out / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    train(settings)
    short = weights.read_bytes()
    train(settings.model_copy(update={"steps": 4, "resume": True}))
    assert weights.read_bytes() != short
    train(settings_for(plain, skin, tmp_path / "other", steps=4))
    assert weights.read_bytes() == (tmp_path / "other" / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert json.loads((settings.out / "model" / "evenhand.json").read_text())["steps"] == 4
    assert not [path for path in settings.out.iterdir() if path.name.startswith(".model")]


def test_sigterm_saves_and_exits_with_143(plain: Path, skin: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--model", str(plain), "--cohort", str(skin), "--out", str(out), "--steps", "30", "--batch-size", "4"]
    ended = processes.run(_terminated, arguments, log=tmp_path / "log")
    assert ended.code == 143
    assert "interrupted at step 3 and saved; go on with --resume" in ended.output
    assert last_checkpoint(out).step == 3
    assert not (out / "model").exists()


def _terminated(arguments: list[str]) -> None:
    import os

    from training.runs import stopped_after

    with stopped_after(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        processes.command(arguments)


def test_a_folder_in_use_by_another_process_is_refused(plain: Path, skin: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--model", str(plain), "--cohort", str(skin), "--out", str(out), "--steps", "1"]
    with claim(out):
        ended = processes.run(processes.command, arguments, log=tmp_path / "log")
        holder = (out / ".lock").read_text()
    assert ended.code == 1
    assert ended.output.strip() == f"error: {out}: in use by process {holder}; wait for it or choose another output folder"


def test_resume_with_other_settings_is_refused(reference: Reference) -> None:
    changed = reference.settings.model_copy(update={"learning_rate": 0.5, "resume": True})
    with pytest.raises(UserError) as error:
        train(changed)
    assert str(error.value) == (
        f"{reference.out}/config.yaml: --resume with learning_rate = 0.5, but the run began with 0.001; keep it, or choose another --out"
    )


def test_a_used_folder_without_resume_is_refused(reference: Reference, tiny: Path, brain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        train(reference.settings)
    assert str(error.value) == f"{reference.out}: holds a run at step 40 already; go on with --resume, or choose another --out"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as error:
        train(settings_for(tiny, brain, tmp_path))
    assert str(error.value) == f"{tmp_path}: not empty, and not a run; choose another --out"


def test_resume_on_another_cohort_is_refused(reference: Reference, tmp_path: Path) -> None:
    from evenhand.cohorts.cohort import Cohort

    cohort = Cohort.load(reference.settings.cohort)
    smaller = cohort.subset(cohort.table.index < 100)
    smaller.save(tmp_path / "smaller")
    settings = reference.copy(tmp_path / "run").model_copy(update={"cohort": tmp_path / "smaller"})
    with pytest.raises(UserError) as error:
        train(settings)
    assert str(error.value) == f"{settings.out}: the cohort has changed since this run began; start a new run with another --out"


def test_a_fault_in_the_input_does_not_use_up_the_folder(plain: Path, skin: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="not a model"):
        train(settings_for(tmp_path / "absent", skin, out))
    assert train(settings_for(plain, skin, out, steps=1)).steps == 1
