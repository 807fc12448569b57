"""log.jsonl: loss overall and by group, learning rate, gradient norm, skipped steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evenhand.core.artifacts import append_jsonl
from evenhand.engine.runs import drop_lines_after

if TYPE_CHECKING:
    from evenhand.training.data import Gathered
    from evenhand.training.state import TrainingState


class TrainingLog:
    """Averages since the last line, by group; a group that did not occur stands with n = 0 and no value."""

    def __init__(self, path: Path, groups: Mapping[str, list[str]], step: int, *, active: bool) -> None:
        self._path, self._groups, self._active = path, groups, active
        self._held: list[dict[str, Any]] | None = None  # lines of a branch, not written yet
        self.last_loss = math.nan
        self._sum, self._n, self._by_group = 0.0, 0, dict[str, list[list[Any]]]()
        self._clear()
        if active:
            drop_lines_after(path, "step", step)

    def branch(self) -> TrainingLog:
        """A log of what may turn out to be lost: it goes on from here, and holds its lines back."""
        twin = copy.deepcopy(self)
        twin._held = []
        return twin

    def adopt(self, branch: TrainingLog) -> None:
        """Go on as the branch: write what it has held back."""
        for line in branch._held or []:
            append_jsonl(self._path, line)
        self._sum, self._n, self._by_group, self.last_loss = branch._sum, branch._n, branch._by_group, branch.last_loss

    def _clear(self) -> None:
        self._sum, self._n = 0.0, 0
        self._by_group = {name: [[0.0, 0] for _ in groups] for name, groups in self._groups.items()}

    def record(self, state: TrainingState, seen: Gathered, learning_rate: float, norm: float, finite: bool, every: int) -> None:
        """Take in one step; write a line every ``every`` steps."""
        if finite and self._active:
            self._add(seen)
        if state.step % every == 0 or state.computed == state.settings.steps:
            method = state.method.report()  # on every rank: the method may note that it has been asked
            if self._active:
                self.last_loss = self._sum / self._n if self._n else math.nan
                facts = {"step": state.step, "loss": self.last_loss, "learning_rate": learning_rate, "gradient_norm": norm}
                facts |= {"skipped": state.skipped, "lost_steps": state.lost}
                self._write({**facts, "loss_by_group": self._groups_now(), "method": method})
                self._clear()

    def _write(self, line: dict[str, Any]) -> None:
        if self._held is not None:
            self._held.append(line)
        else:
            append_jsonl(self._path, line)

    def _add(self, seen: Gathered) -> None:
        losses = seen.losses.double().cpu()
        self._sum, self._n = self._sum + float(losses.sum()), self._n + len(losses)
        for name, codes in seen.groups.items():
            for code in torch.unique(codes[codes >= 0]).tolist():
                member = losses[codes.cpu() == code]
                self._by_group[name][code][0] += float(member.sum())
                self._by_group[name][code][1] += len(member)

    def _groups_now(self) -> dict[str, Any]:
        return {
            name: {
                group: {"n": n, "loss": total / n if n else None}
                for group, (total, n) in zip(self._groups[name], self._by_group[name], strict=True)
            }
            for name in self._groups
        }
