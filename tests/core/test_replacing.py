"""A folder that takes another's place, and a claim that waits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from evenhand.core.artifacts import claim, is_disk_full, new_folder


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(ValueError, match="halfway"), new_folder(target, replace=True) as folder:
        (folder / "weights").write_text("new")
        raise ValueError("halfway")
    assert (target / "weights").read_text() == "old"
    with new_folder(target, replace=True) as folder:
        (folder / "other").write_text("new")
        assert (target / "weights").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_claim_can_wait_for_another(tmp_path: Path) -> None:
    order, started = [], threading.Event()

    def second() -> None:
        started.set()
        with claim(tmp_path, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with claim(tmp_path):
        thread.start()
        assert started.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_full_disk_is_known_by_any_librarys_error() -> None:
    import sqlite3

    from safetensors import SafetensorError

    assert is_disk_full(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert is_disk_full(sqlite3.OperationalError("database or disk is full"))
    assert not is_disk_full(SafetensorError("header too large"))
