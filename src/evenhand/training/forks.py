"""Forks: from where a run stands, several settings are tried one after the other, and the run goes on as one of the arms."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.groups import intersection
from evenhand.core.progress import warn
from evenhand.core.randomness import generator, torch_generator
from evenhand.engine.batching import rank_batches
from evenhand.engine.checkpoints import Checkpoint, load_latest, save_checkpoint
from evenhand.engine.latents import latent_cache
from evenhand.training.data import Piece, TrainingData
from evenhand.training.log import TrainingLog
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState
from evenhand.training.weighting.method import Arm, ForkPlan

Losses = Callable[[Piece], torch.Tensor]  # per-sample losses (B,) of the model as it stands
Step = Callable[[TrainingData, Mapping[str, float], TrainingLog], object]  # one optimizer step with these sampling odds


class Stopped(Exception):
    """The run was asked to stop in the middle of an arm."""


@dataclass(frozen=True)
class Probe:
    """Held-out images, equally many of each joint group; place i has the same timestep and noise in every group."""

    names: list[str]
    size: int
    pieces: list[tuple[np.ndarray, Piece]]  # of this rank: where the losses belong, nowhere for one that only keeps ranks in step
    images: dict[str, np.ndarray]  # joint group -> (size,) which image

    @classmethod
    def prepare(cls, settings: TrainSettings, state: TrainingState, size: int, accelerator: Accelerator) -> Probe:
        """Draw it from the validation split; groups with few images there give them several times, with other noise.

        Raises:
            UserError: of no joint group are two images held out.
        """
        cohort = Cohort.load(settings.cohort).split("val")
        groups = intersection(cohort.table, list(state.groups)).to_numpy() if len(cohort) else np.array([])
        names = [name for name in state.method.joint.names if (groups == name).sum() > 1]
        if not names:
            raise UserError(f"{settings.cohort}: no group has two images with split=val; this method judges settings by such images")
        absent = sorted(set(state.method.joint.names) & set(state.method.counts) - set(names))
        if absent and accelerator.is_main_process:
            warn(f"fewer than two validation images of {', '.join(absent)}; settings are judged without")
        rows = np.concatenate([_tiled(np.flatnonzero(groups == name), size, settings.seed, name) for name in names])
        cache = latent_cache(state.stage, cohort, accelerator)
        timesteps = (np.arange(size) + 0.5) * state.schedule.config.num_train_timesteps / size
        noise = torch.stack([torch.randn(cache.mean.shape[1:], generator=torch_generator(settings.seed, "probe", i)) for i in range(size)])

        def piece(places: np.ndarray) -> Piece:
            latents, _ = cache.latents(rows[places])
            own = [torch_generator(settings.seed, "probe-condition", i) for i in (places % size).tolist()]
            condition = state.stage.training_condition(latents, own)
            return Piece(
                rows=rows[places],
                latents=latents.to(accelerator.device),
                noise=noise[places % size].to(accelerator.device),
                timesteps=torch.from_numpy(timesteps[places % size].astype(np.int64)).to(accelerator.device),
                text=cache.embeddings(rows[places]).to(accelerator.device),
                condition=condition.to(accelerator.device) if condition is not None else None,
                groups={},
                generator=torch_generator(settings.seed, "probe"),
            )

        images = {name: rows[place * size : (place + 1) * size] for place, name in enumerate(names)}
        shares = _shares(len(rows), settings.batch_size, accelerator)
        return cls(names, size, [(places, piece(places if len(places) else np.arange(1))) for places in shares], images)

    @torch.no_grad()
    def losses(self, measure: Losses, accelerator: Accelerator) -> dict[str, np.ndarray]:
        """Losses by joint group, (size,) float64, the same on every rank."""
        found = torch.zeros(len(self.names) * self.size, dtype=torch.float64, device=accelerator.device)
        for places, piece in self.pieces:
            losses = measure(piece).double()
            if len(places):
                found[places] = losses
        if accelerator.num_processes > 1:
            found = accelerator.reduce(found, "sum")
        return dict(zip(self.names, found.cpu().numpy().reshape(len(self.names), self.size), strict=True))


def _shares(n: int, batch_size: int, accelerator: Accelerator) -> list[np.ndarray]:
    """This rank's batches of range(n), as many as every other's: a sharded model computes on all ranks or on none."""
    every = -(-n // batch_size)
    mine = rank_batches(n, batch_size, accelerator.process_index, accelerator.num_processes)
    return [*mine, *[np.arange(0)] * (-(-every // accelerator.num_processes) - len(mine))]


def _tiled(rows: np.ndarray, size: int, seed: int, name: str) -> np.ndarray:
    return np.resize(generator(seed, "probe", name).permutation(rows), size)


class Forks:
    """The ``Fork`` that a method is handed, and the run's way out of it."""

    def __init__(
        self,
        settings: TrainSettings,
        accelerator: Accelerator,
        state: TrainingState,
        data: TrainingData,
        plan: ForkPlan,
        log: TrainingLog,
        *,
        step: Step,
        measure: Losses,
        stopping: Callable[[], bool],
    ) -> None:
        self._settings, self._accelerator, self._state, self._data, self._plan = settings, accelerator, state, data, plan
        self._log, self._branches = log, dict[str, TrainingLog]()
        self._step, self._measure, self._stopping = step, measure, stopping
        self._folder = settings.out / "forks"
        self._steps = 0
        self._probe = Probe.prepare(settings, state, plan.probe, accelerator)
        self._clear()

    def look(self) -> bool:
        """Let the method try settings where it wants to. Whether the run has gone on by that.

        Interrupted, everything is as it was before.
        """
        try:
            arm = self._state.method.adapt(self._state.step, self._settings.steps, self)
        except Stopped:
            self._restore("start", learnt=None)
            self._clear()
            return False
        if arm is None:
            return False
        self._go_on_as(arm)
        return True

    def __call__(self, odds: Mapping[str, float], steps: int, replica: int = 0) -> Arm:
        """Train ``steps`` steps and come back; arms of one replica see the same noise and timesteps at the same places."""
        if not self._steps:
            self._save("start")
        data, averaged = self._data.replica(replica), [torch.zeros_like(parameter) for parameter in self._state.learner.parameters]
        last, log = min(self._plan.averaged, steps), self._log.branch()
        for done in range(steps):
            if self._stopping():
                raise Stopped
            self._step(data, odds, log)
            if done >= steps - last:
                for mean, parameter in zip(averaged, self._state.learner.parameters, strict=True):
                    mean.add_(parameter.detach(), alpha=1 / last)
        name = f"arm-{self._steps}"
        self._steps += steps
        self._branches[name] = log
        self._save(name)
        for mean, parameter in zip(averaged, self._state.learner.parameters, strict=True):
            parameter.data.copy_(mean)
        losses = self._probe.losses(self._measure, self._accelerator)
        self._restore("start", learnt=self._state.method.state_dict())
        return Arm(name, dict(odds), losses, self._probe.images)

    def _go_on_as(self, arm: Arm) -> None:
        """The run's state is now that of the arm; what the method has learnt stays, the other arms' steps are counted as lost."""
        before, lost = self._state.step, self._state.lost
        self._restore(arm.name, learnt=self._state.method.state_dict())
        self._state.lost = lost + self._steps - (self._state.step - before)
        self._log.adopt(self._branches[arm.name])
        self._clear()

    def _save(self, name: str) -> None:
        checkpoint = self._state.snapshot(self._data.fingerprint)  # every rank takes part: its weights may be sharded
        if self._accelerator.is_main_process:
            save_checkpoint(self._folder / name, checkpoint)
        self._accelerator.wait_for_everyone()

    def _restore(self, name: str, learnt: Mapping[str, Any] | None) -> None:
        """The run as it was saved; the method keeps what it has ``learnt`` since."""
        checkpoint: Checkpoint | None = load_latest(self._folder / name)
        assert checkpoint is not None
        self._state.restore(checkpoint, self._data.fingerprint)
        if learnt is not None:
            self._state.method.load_state_dict(learnt)

    def _clear(self) -> None:
        """Also what a run that was killed in a fork has left."""
        self._steps, self._branches = 0, {}
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            shutil.rmtree(self._folder, ignore_errors=True)
