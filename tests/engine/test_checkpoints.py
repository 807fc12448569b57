"""Checkpoints: whole or absent, named where damaged, and the old one survives a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from full_disk import fail_at_every_write

from evenhand.core.artifacts import manifest_faults
from evenhand.core.errors import UserError
from evenhand.engine.checkpoints import Checkpoint, checkpoint_folders, load_latest, save_checkpoint


def _checkpoint(step: int) -> Checkpoint:
    tensors = {"model": {"w": torch.arange(4.0) + step}, "optimizer": {"w|exp_avg": torch.ones(2, 2).t() * step}}
    return Checkpoint(step, tensors, {"skipped": 1, "name": "run"})


def _steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoint_folders(folder)]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(3))
    back = load_latest(tmp_path)
    assert back is not None and back.step == 3 and back.facts == {"skipped": 1, "name": "run"}
    assert torch.equal(back.tensors["model"]["w"], torch.arange(4.0) + 3)
    assert torch.equal(back.tensors["optimizer"]["w|exp_avg"], torch.full((2, 2), 3.0))
    assert {path.suffix for path in (tmp_path / "step-00000003").iterdir()} == {".safetensors", ".json"}


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    save_checkpoint(tmp_path, Checkpoint(1, {"model": {"a": shared, "b": shared}}, {}))
    back = load_latest(tmp_path)
    assert back is not None and torch.equal(back.tensors["model"]["a"], back.tensors["model"]["b"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, _checkpoint(step), keep=2)
    assert _steps(tmp_path) == [3, 4]


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def test_a_damaged_checkpoint_does_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, _checkpoint(step))
    (tmp_path / "step-00000020" / "model.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, _checkpoint(15), keep=2)  # the run went back to 10
    assert _steps(tmp_path) == [10, 15]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(10))
    (tmp_path / "step-00000010" / "facts.json").unlink()
    save_checkpoint(tmp_path, _checkpoint(10))
    assert manifest_faults(tmp_path / "step-00000010") == []


def test_where_all_are_damaged_the_run_cannot_go_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path, _checkpoint(10))
    manifest = tmp_path / "step-00000010" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-9])
    with pytest.raises(UserError) as error:
        load_latest(tmp_path)
    assert str(error.value) == f"{tmp_path}: every checkpoint is damaged (1); start again in another folder"
    assert capsys.readouterr().err.startswith(f"warning: {manifest}: not valid JSON")
    with pytest.raises(UserError):
        load_latest(tmp_path, quiet=True)
    assert capsys.readouterr().err == ""


def test_what_a_kill_left_behind_is_swept_up(tmp_path: Path) -> None:
    abandoned = tmp_path / ".step-00000007.partial"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"half")
    assert load_latest(tmp_path) is None
    save_checkpoint(tmp_path, _checkpoint(8))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


def test_on_a_full_disk_the_old_checkpoint_survives(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _checkpoint(5))

    def look() -> None:
        assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["step-00000005"]
        old = load_latest(tmp_path)
        assert old is not None and torch.equal(old.tensors["model"]["w"], torch.arange(4.0) + 5)

    writes = fail_at_every_write(tmp_path, lambda: save_checkpoint(tmp_path, _checkpoint(10)), look)
    assert writes >= 5  # lock, two files of tensors, facts, manifest
    assert _steps(tmp_path) == [5, 10] and manifest_faults(tmp_path / "step-00000010") == []


def test_a_pickle_in_the_folder_is_never_read(tmp_path: Path) -> None:
    import pickle

    save_checkpoint(tmp_path / "checkpoints", _checkpoint(5))
    canary = tmp_path / "canary"
    for name in ("random_states_0.pkl", "optimizer.bin", "pytorch_model.bin"):
        (tmp_path / "checkpoints" / "step-00000005" / name).write_bytes(pickle.dumps(Bomb(str(canary))))
    assert load_latest(tmp_path / "checkpoints") is not None
    assert not canary.exists()
    pickle.loads((tmp_path / "checkpoints" / "step-00000005" / "optimizer.bin").read_bytes())
    assert canary.exists()  # it would have been noticed


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (_write, (self.path,))


def _write(path: str) -> None:
    Path(path).write_text("executed")
