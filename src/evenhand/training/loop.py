"""Supervised fine-tuning, top to bottom. The loop knows no method: it asks for weights and odds, and reports losses."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from accelerate import Accelerator

from evenhand.core.artifacts import claim
from evenhand.core.progress import note, track, warn
from evenhand.engine.checkpoints import load_latest, save_checkpoint
from evenhand.engine.devices import accelerator as new_accelerator
from evenhand.engine.losses import min_snr_weights, per_sample_loss, target_of
from evenhand.engine.runs import CONFIG_FILE, StopSignal, any_rank, check_folder
from evenhand.models.denoise import predict
from evenhand.training.data import Piece, TrainingData
from evenhand.training.forks import Forks
from evenhand.training.log import TrainingLog
from evenhand.training.population import resolved, with_rate
from evenhand.training.run import publish, resumable
from evenhand.training.settings import TrainResult, TrainSettings
from evenhand.training.state import TrainingState


def train(settings: TrainSettings) -> TrainResult:
    """Fine-tune the denoiser of ``settings.model`` on the training split of ``settings.cohort``.

    Interrupted by SIGTERM or SIGINT it saves and returns; with ``resume`` it goes on where it stopped, to the bit.

    Raises:
        UserError: bad input, a folder in use, or too many steps in a row that are not finite.
    """
    accelerator = new_accelerator(settings.precision)
    settings = with_rate(resolved(settings))
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(claim(settings.out))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            check_folder(settings, resumable(settings))
        state = TrainingState.create(settings, accelerator)
        data = TrainingData.prepare(settings, state, accelerator)
        if settings.resume:
            _restore(settings, accelerator, state, data)
        if accelerator.is_main_process:  # not before: a run with a fault in its input has not begun
            settings.save(settings.out / CONFIG_FILE)
            note(f"learning rate {settings.learning_rate:g}, warm-up {settings.warmup} steps")
        log = TrainingLog(settings.out / "log.jsonl", data.groups, state.step, active=accelerator.is_main_process)
        stop = held.enter_context(StopSignal())
        return _run(settings, accelerator, state, data, log, stop)


def _restore(settings: TrainSettings, accelerator: Accelerator, state: TrainingState, data: TrainingData) -> None:
    """Go on from the newest checkpoint; it is in memory no longer than it takes to restore it."""
    checkpoint = load_latest(settings.out / "checkpoints", quiet=not accelerator.is_main_process)
    if checkpoint is not None:
        state.restore(checkpoint, data.fingerprint)


def _save(settings: TrainSettings, accelerator: Accelerator, state: TrainingState, data: TrainingData) -> None:
    """Every rank takes part: weights may be sharded. What is saved is freed on return, before the next one is made."""
    checkpoint = state.snapshot(data.fingerprint)
    if accelerator.is_main_process:
        save_checkpoint(settings.out / "checkpoints", checkpoint, settings.keep_checkpoints)


def _run(
    settings: TrainSettings, accelerator: Accelerator, state: TrainingState, data: TrainingData, log: TrainingLog, stop: StopSignal
) -> TrainResult:
    started, first = time.perf_counter(), state.computed
    forks = _forks(settings, accelerator, state, data, log, stop)
    with track("train", settings.steps, done=first, quiet=not accelerator.is_main_process) as bar:
        while state.computed < settings.steps:
            before, loss = state.computed, math.nan
            forked = forks is not None and forks.look()
            stopping = any_rank(stop.seen, accelerator)
            if not forked and not stopping:
                loss = training_step(settings, accelerator, state, data, state.method.odds(state.step), log)
            bar.advance(state.computed - before, note="settings tried" if forked else f"loss {loss:.4f}")
            ended = state.computed >= settings.steps
            if forked or stopping or ended or state.step % settings.checkpoint_every == 0:
                _save(settings, accelerator, state, data)
            if stopping and not ended:
                return TrainResult(
                    settings.out, None, state.step, state.skipped, log.last_loss, 0.0, interrupted=True, lost_steps=state.lost
                )
    rate = (state.computed - first) * settings.batch_size / max(time.perf_counter() - started, 1e-9)
    if state.skipped and accelerator.is_main_process:
        told = "so the model is as it was" if state.skipped == state.step else "and changed nothing"
        warn(f"{state.skipped} of {state.step} steps had a loss or gradient that is not finite, {told}; lower --learning-rate")
    model = publish(settings, state, data, accelerator)
    return TrainResult(settings.out, model, state.step, state.skipped, log.last_loss, rate, lost_steps=state.lost)


def _forks(
    settings: TrainSettings,
    accelerator: Accelerator,
    state: TrainingState,
    data: TrainingData,
    log: TrainingLog,
    stop: StopSignal,
) -> Forks | None:
    """What a method that tries settings trains its arms with."""
    if state.method.fork_plan is None:
        return None
    if not state.method.schedule(settings.steps):
        if accelerator.is_main_process:
            warn(f"--steps {settings.steps}: too few to try settings; this is balanced sampling")
        return None
    return Forks(
        settings, accelerator, state, data, state.method.fork_plan, log,
        step=lambda data, odds, log: training_step(settings, accelerator, state, data, odds, log),
        measure=lambda piece: _losses(settings, state, piece),
        stopping=lambda: any_rank(stop.seen, accelerator),
    )  # fmt: skip


def training_step(
    settings: TrainSettings,
    accelerator: Accelerator,
    state: TrainingState,
    data: TrainingData,
    odds: Mapping[str, float] | None,
    log: TrainingLog,
) -> float:
    """One optimizer step. Returns the unweighted mean loss of the global batch."""
    learning_rate = state.set_learning_rate()
    pieces = data.batch(state.step, odds)
    losses = []
    for place, piece in enumerate(pieces):
        with _synchronised(accelerator, state.learner.denoiser, last=place == len(pieces) - 1):
            per_sample = _losses(settings, state, piece)
            weights = state.method.weights(piece.groups, state.step, piece.generator).to(per_sample)
            if settings.min_snr is not None:
                weights = weights * min_snr_weights(state.schedule, piece.timesteps, settings.min_snr)
            accelerator.backward((weights * per_sample).mean() / len(pieces))
            losses.append(per_sample.detach())
    norm = accelerator.clip_grad_norm_(state.learner.parameters, settings.clip)
    gathered = data.gather(pieces, torch.cat(losses), accelerator)
    finite = bool(torch.isfinite(gathered.losses).all() and torch.isfinite(norm))  # equal on all ranks: both are reduced
    if finite or state.learner.scaler is not None:  # an fp16 scaler skips by itself, and must see the overflow to lower its scale
        state.learner.optimizer.step()
    if finite:
        state.learner.averages.update()
        state.method.observe(gathered.losses, gathered.timesteps, gathered.groups)
    state.learner.optimizer.zero_grad(set_to_none=True)
    state.count(finite, settings.max_skipped)
    log.record(state, gathered, learning_rate, float(norm), finite, settings.log_every)
    return float(gathered.losses.mean())


def _losses(settings: TrainSettings, state: TrainingState, piece: Piece) -> torch.Tensor:
    noisy = state.schedule.add_noise(piece.latents, piece.noise, piece.timesteps)
    target = target_of(state.schedule, piece.latents, piece.noise, piece.timesteps)
    prediction = predict(state.learner.denoiser, noisy, piece.timesteps, piece.text, piece.condition)
    return per_sample_loss(prediction, target)


def _synchronised(accelerator: Accelerator, model: torch.nn.Module, *, last: bool) -> ExitStack:
    """Gradients travel between processes with the last piece of a batch only."""
    stack = ExitStack()
    if not last:
        stack.enter_context(accelerator.no_sync(model))
    return stack
