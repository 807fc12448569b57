"""A disk that runs full: from the k-th write below a folder on, half of the data arrives and the error of the system follows."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import transformers.modeling_utils
from safetensors import SafetensorError

import evenhand.engine.checkpoints

_open, _save_file, _to_parquet = io.open, safetensors.torch.save_file, pd.DataFrame.to_parquet


class FullDisk:
    """Counts writes; ``allowed`` of them succeed."""

    def __init__(self, root: Path, allowed: int) -> None:
        self.root, self.left, self.tripped = root.resolve(), allowed, False

    def holds(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).resolve().is_relative_to(self.root)

    def has_space(self) -> bool:
        self.left -= 1
        self.tripped |= self.left < 0
        return not self.tripped

    def open(self, path: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        file = _open(path, mode, *args, **named)
        return _Leaky(file, self) if set(mode) & set("wax+") and self.holds(path) else file

    def save_file(self, tensors: Any, path: Any, metadata: Any = None) -> None:
        if self.holds(path) and not self.has_space():
            with _open(path, "wb") as file:
                file.write(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        _save_file(tensors, path, metadata)

    def to_parquet(self, table: pd.DataFrame, path: Any, **named: Any) -> None:
        if self.holds(path) and not self.has_space():
            with _open(path, "wb") as file:
                file.write(b"PAR1")
            raise _full(path)
        _to_parquet(table, path, **named)


class _Leaky:
    def __init__(self, file: Any, disk: FullDisk) -> None:
        self._file, self._disk = file, disk

    def write(self, data: Any) -> int:
        if self._disk.has_space():
            return self._file.write(data)
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise _full(self._file.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> _Leaky:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _full(path: Any) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def full_disk(root: Path, allowed: int) -> Iterator[FullDisk]:
    """The disk below ``root`` takes ``allowed`` more writes."""
    disk = FullDisk(root, allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", disk.open)
        patch.setattr(builtins, "open", disk.open)
        patch.setattr(safetensors.torch, "save_file", disk.save_file)
        patch.setattr(evenhand.engine.checkpoints, "save_file", disk.save_file)
        patch.setattr(transformers.modeling_utils, "safe_save_file", disk.save_file)
        patch.setattr(pd.DataFrame, "to_parquet", _method(disk))
        yield disk


def fail_at_every_write(root: Path, work: Callable[[], object], after_failure: Callable[[], None]) -> int:
    """Run ``work`` with space for 0, 1, 2, ... writes until it succeeds; returns how many writes it took.

    ``after_failure`` looks at what the failure has left behind.
    """
    from evenhand.core.artifacts import is_disk_full

    for allowed in range(1000):
        with full_disk(root, allowed) as disk:
            try:
                work()
            except Exception as error:
                assert disk.tripped and is_disk_full(error), error
        if not disk.tripped:
            return allowed
        after_failure()
    raise AssertionError("the work writes without end")


def _method(disk: FullDisk) -> Callable[..., None]:
    def to_parquet(table: pd.DataFrame, path: Any, **named: Any) -> None:  # a bound method would not receive the table
        disk.to_parquet(table, path, **named)

    return to_parquet
