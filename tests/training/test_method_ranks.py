"""Two gloo processes: every rank sees the same observations, so the method's state and what it does are equal on both, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from training.runs import last_checkpoint, settings_for

from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState

RUNS: dict[str, dict[str, Any]] = {
    "group_dro": {"method": "group_dro", "steps": 40},
    "random_perturbation": {"method": "random_perturbation", "steps": 40},
    "reference": {"method": "bayesian_perturbation", "method_options": {"form": "reference", "window": 10}, "steps": 40},
    "robust": {"method": "bayesian_perturbation", "method_options": {"arm_steps": 2, "looks": 4, "probe": 8, "averaged": 2}, "steps": 40},
}


def _noted_runs(runs: dict[str, dict[str, Any]], notes: str) -> None:
    """One rank's part: after every step the method's state and a sum over the model's weights."""
    count = TrainingState.count
    for name, settings in runs.items():
        lines: list[str] = []

        def counted(state: TrainingState, finite: bool, limit: int, lines: list[str] = lines) -> None:
            count(state, finite, limit)
            with torch.no_grad():
                total = sum(float(parameter.double().sum()) for parameter in state.learner.parameters)
            lines.append(json.dumps([state.step, state.method.state_dict(), state.method.odds(state.step), total.hex()]))

        TrainingState.count = counted  # type: ignore[method-assign]
        train(TrainSettings(**settings))
        from evenhand.engine.devices import processes as these

        Path(notes, f"{name}-{these().process_index}").write_text("\n".join(lines))


def test_both_ranks_hold_the_same_state_over_forty_steps(
    plain: Path, skin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENHAND_CACHE", str(tmp_path / "cache"))
    runs = {
        name: settings_for(plain, skin, tmp_path / name, checkpoint_every=changes["steps"], **changes).model_dump(mode="json")
        for name, changes in RUNS.items()
    }
    ended = processes.run_ranks(_noted_runs, runs, str(tmp_path), log=tmp_path / "log")
    assert [end.code for end in ended] == [0, 0], "\n".join(end.output for end in ended)
    for name in RUNS:
        first, second = ((tmp_path / f"{name}-{rank}").read_text().splitlines() for rank in (0, 1))
        assert len(first) == RUNS[name]["steps"] and first == second, name
        states = [json.loads(line)[1] for line in first]
        assert states[0] != states[-1]
    looks = last_checkpoint(tmp_path / "robust").facts["method"]["looks"]
    assert len(looks) == 4 and last_checkpoint(tmp_path / "robust").facts["lost"] == 8
