"""Features and predictions of a cohort: once an image, cached by image hash and model hash, spread over processes."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, reduce

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import cache_folder
from evenhand.core.errors import UserError
from evenhand.core.progress import track
from evenhand.engine.batching import rank_batches
from evenhand.engine.devices import processes
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder


def cohort_features(encoder: Encoder, cohort: Cohort, *, batch_size: int = 64) -> np.ndarray:
    """Features (n, d), float32, in the order of the cohort's table."""
    encoder.to(processes().device)
    return _once(encoder.features, f"features-{encoder.sha256}", f"features {encoder.name}", cohort, batch_size).astype(np.float32)


def cohort_predictions(classifier: Classifier, cohort: Cohort, *, batch_size: int = 64) -> np.ndarray:
    """Calibrated probabilities (n, G), in the order of the cohort's table."""
    classifier.to(processes().device)
    key = f"judge-{classifier.sha256}-{classifier.temperature!r}"
    return _once(classifier.predict, key, f"judge {classifier.target}", cohort, batch_size)


def _once(compute: Callable[[np.ndarray], np.ndarray], key: str, label: str, cohort: Cohort, batch_size: int) -> np.ndarray:
    """Compute what the cache lacks. Equal images are computed once, whatever their names."""
    state = processes()
    names = cohort.image_hashes()
    with _Store(cache_folder("features") / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.sqlite") as store:
        known = store.read(names)
        lacking = np.flatnonzero(_lacking([name not in known for name in names], state))
        missing, first = np.unique(names[lacking], return_index=True)
        rows = lacking[first]
        fresh = _computed(compute, cohort, rows, label, batch_size, state)
        _require_finite(fresh, label)
        if state.is_main_process:
            store.write(missing, fresh)
    known.update(zip(missing.tolist(), fresh, strict=True))
    return np.stack([known[name] for name in names]) if len(names) else np.zeros((0, 1))


def _require_finite(values: np.ndarray, label: str) -> None:
    """Raise where a network gave NaN or infinity; nothing may be compared with it, and no cache may keep it."""
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(1).sum())
        raise UserError(f"{label}: not finite (NaN or infinity) for {bad} of {len(values)} images; the network overflows, use another one")


def _lacking(here: list[bool], state: PartialState) -> np.ndarray:
    """What any rank lacks: ranks must agree on the work, even where another run writes to the cache between their reads."""
    if state.num_processes == 1 or not here:
        return np.array(here, dtype=bool)
    return reduce(torch.tensor(here, dtype=torch.float32, device=state.device), "sum").cpu().numpy() > 0


def _computed(
    compute: Callable[[np.ndarray], np.ndarray], cohort: Cohort, rows: np.ndarray, label: str, batch_size: int, state: PartialState
) -> np.ndarray:
    if not len(rows):
        return np.zeros((0, 1))
    mine = rank_batches(len(rows), batch_size, state.process_index, state.num_processes)
    pieces = []
    with track(label, len(mine), quiet=not state.is_main_process) as bar:
        for places in mine:
            pieces.append((places, compute(cohort.pixels(rows[places]))))
            bar.advance()
    if state.num_processes == 1:
        return np.concatenate([values for _, values in pieces]).astype(np.float64)
    return _gathered(pieces, len(rows), state)


def _gathered(pieces: list[tuple[np.ndarray, np.ndarray]], n: int, state: PartialState) -> np.ndarray:
    """Every rank fills its rows of a table of zeros; the sum is the whole. Tensors travel, nothing is unpickled."""
    width = torch.tensor([pieces[0][1].shape[1] if pieces else 0], device=state.device)
    width = int(gather(width).max())
    mine = torch.zeros((n, width), dtype=torch.float64)
    for places, values in pieces:
        mine[torch.from_numpy(places)] = torch.from_numpy(values.astype(np.float64))
    parts = gather(mine[None].to(state.device))
    return parts.sum(0).cpu().numpy()


class _Store:
    """One SQLite file a model: image hash -> vector. Several processes may read and write it."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=60)
        self._connection.execute("CREATE TABLE IF NOT EXISTS vectors (image TEXT PRIMARY KEY, vector BLOB NOT NULL)")

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def read(self, names: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        wanted = np.unique(names).tolist()
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            for image, vector in self._connection.execute(f"SELECT image, vector FROM vectors WHERE image IN ({marks})", part):
                found[image] = np.frombuffer(vector, dtype=np.float64)
        return found

    def write(self, names: np.ndarray, vectors: np.ndarray) -> None:
        rows = [(str(name), np.ascontiguousarray(vector, dtype=np.float64).tobytes()) for name, vector in zip(names, vectors, strict=True)]
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
