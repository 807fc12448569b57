"""What stays on disk: atomic files and folders, manifests, locks, provenance.

Every write goes to a temporary name, is flushed to the disk and renamed: a reader sees the old file or the new one.
"""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from evenhand.core.errors import UserError

MANIFEST = "manifest.json"
_PACKAGES = ("evenhand", "torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "pandas", "scipy", "scikit-learn")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary sibling of ``path``, then put it in place; nothing partial stays behind."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as JSON; NaN is written as null, since JSON has none."""
    write_text(path, json.dumps(_json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, or say in one line why not."""
    try:
        return json.loads(path.read_bytes())  # of bytes, so that the mark that some editors put first is no fault
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore the file or make it anew") from None


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line to a log and flush it."""
    with path.open("a") as log:
        log.write(json.dumps(_json_safe(row), allow_nan=False) + "\n")
        log.flush()


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _json_safe(value.tolist())
    if isinstance(value, float) and (not math.isfinite(value)):
        return None
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def claim(folder: Path, *, wait: bool = False) -> Iterator[Path]:
    """Hold ``folder`` (made if absent) for this process; the lock dies with the process, even by kill -9.

    Args:
        wait: until another process lets go of it, for what several runs share.

    Raises:
        UserError: another process holds it, and ``wait`` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{folder}: in use by process {lock.read().strip() or 'unknown'}; wait for it or choose another output folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Build a folder under a temporary name; it appears as ``path`` only when whole.

    Args:
        replace: put it in the place of a folder that is there already; that one stays until the new one is whole.

    Raises:
        UserError: ``path`` exists and is not empty (without ``replace``), or another process is building it.
    """
    if not replace:
        require_free(path)
    partial = path.parent / f".{path.name}.partial"
    with claim(partial):
        for stale in partial.iterdir():
            if stale.name != ".lock":
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            (partial / ".lock").unlink()
            _make_way(path, replace)
            os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    _sync(path.parent)
    if replace:
        shutil.rmtree(_outdated(path), ignore_errors=True)


def _make_way(path: Path, replace: bool) -> None:
    if not path.exists():
        return
    if replace:
        shutil.rmtree(_outdated(path), ignore_errors=True)
        os.replace(path, _outdated(path))
    else:
        path.rmdir()


def _outdated(path: Path) -> Path:
    return path.parent / f".{path.name}.old"


def require_free(path: Path) -> None:
    """Refuse an output folder that already holds something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path}: exists already; choose another output folder or remove it")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text that is too long for a name is none, which pathlib may raise for."""
    try:
        return path.is_file()
    except OSError:
        return False


_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index*.json",
    "*config.json",
    "model_index.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
)


def sha256_files(files: Mapping[str, Path]) -> str:
    """One hash of files under names of their own: of names and contents, whatever links lead to them."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0{sha256_file(file)}\0".encode())
    return digest.hexdigest()


def sha256_folder(path: Path, patterns: Iterable[str] = _MODEL_FILES) -> str:
    """One hash for a folder, by default a model's: of names and contents of its weights and of every setting that changes what it computes.

    Raises:
        UserError: a link within leads back to a folder that holds it.
    """
    wanted = tuple(patterns)
    return sha256_files(
        {file.relative_to(path).as_posix(): file for file in files_below(path) if any(fnmatch(file.name, pattern) for pattern in wanted)}
    )


def files_below(path: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of names, links followed.

    Raises:
        UserError: a link leads back to a folder that holds it, so that there is no end.
    """
    held: dict[Path, frozenset[Path]] = {path: frozenset({path.resolve()})}  # each folder, and what it lies in
    for folder, folders, names in os.walk(path, followlinks=True):
        here = held.pop(Path(folder))
        for name in list(folders):
            below = Path(folder) / name
            if (real := below.resolve()) in here:
                raise UserError(f"{below}: a link that leads back to a folder around it ({real}); remove it")
            held[below] = here | {real}
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names) if is_file(Path(folder) / name))


def write_manifest(folder: Path) -> None:
    """Write SHA-256 and size of every file below ``folder`` into its manifest."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, ".lock"))
    rows = {str(p.relative_to(folder)): {"sha256": sha256_file(p), "bytes": p.stat().st_size} for p in files}
    write_json(folder / MANIFEST, rows)


def manifest_faults(folder: Path) -> list[str]:
    """What differs from the manifest: one line a fault, empty where all is as written."""
    try:
        rows = read_json(folder / MANIFEST)
    except UserError as error:
        return [str(error)]
    faults = []
    for name, row in rows.items():
        file = folder / name
        if not file.is_file():
            faults.append(f"{file}: missing")
        elif file.stat().st_size != row["bytes"]:
            faults.append(f"{file}: truncated ({file.stat().st_size} of {row['bytes']} bytes)")
        elif sha256_file(file) != row["sha256"]:
            faults.append(f"{file}: damaged (SHA-256 differs from the manifest)")
    return faults


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no space is left, whichever library raised it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "database or disk is full"))  # safetensors; SQLite


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour enters a result; they are read once."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def provenance(**facts: Any) -> dict[str, Any]:
    """How something was made: versions, git commit where there is one, command, time, and ``facts``."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": versions(),
        "git": _git_commit(),
        "platform": platform.platform(),
        **facts,
    }


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def cache_folder(kind: str) -> Path:
    """Where recomputable things live between runs: ``$EVENHAND_CACHE`` or ``~/.cache/evenhand``."""
    base = os.environ.get("EVENHAND_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evenhand"
    folder = Path(base) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder
