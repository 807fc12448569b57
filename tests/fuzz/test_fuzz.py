"""A fixed part of the generator's cases, and every seed that once failed; ``python -m fuzz.run`` runs as many as are asked for."""

from pathlib import Path

import pytest
from fuzz.run import check, kept_seeds

FIXED = {"tables": range(150), "images": range(60), "models": range(40)}
_PARTS = 10  # cases of one test: one failure does not hide the others


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in FIXED for part in range(_PARTS)])
def test_a_fixed_part(tmp_path: Path, kind: str, part: int) -> None:
    faults = {}
    for seed in FIXED[kind][part::_PARTS]:
        folder = tmp_path / str(seed)
        folder.mkdir()
        faults[f"{kind}:{seed}"] = check(kind, seed, folder)
    assert {case: fault for case, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(("kind", "seed"), kept_seeds())
def test_what_once_failed(tmp_path: Path, kind: str, seed: int) -> None:
    assert check(kind, seed, tmp_path) is None
