"""Alignment, top to bottom: learn own or real images in the target mix, or pull drawn batches towards it; validate, keep the best, publish.

Subgroup distribution aligned tuning (Han et al. 2024, arXiv 2406.14847), with the gradient paths and the transport form of Shen et al.
(2024, arXiv 2311.07604). See docs/methods/distribution-alignment.md for what departs from both and why.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from evenhand.alignment.checking import images_needed, judges_leave_open
from evenhand.alignment.correction import Correction
from evenhand.alignment.defaults import resolved
from evenhand.alignment.exemplars import Exemplars
from evenhand.alignment.publish import publish
from evenhand.alignment.pulling import draw_and_pull
from evenhand.alignment.scaling import keep_scaled
from evenhand.alignment.settings import RESUMABLE, AlignResult, AlignSettings
from evenhand.alignment.validation import Standing, Validation
from evenhand.alignment.work import Work, prepare
from evenhand.core.artifacts import append_jsonl, claim
from evenhand.core.progress import note, track, warn
from evenhand.engine.checkpoints import load_latest, save_checkpoint
from evenhand.engine.devices import accelerator as new_accelerator
from evenhand.engine.devices import mixed_precision
from evenhand.engine.runs import CONFIG_FILE, StopSignal, any_rank, check_folder, drop_lines_after


def align(settings: AlignSettings) -> AlignResult:
    """Tune the denoiser of ``settings.model`` until what it draws from ``settings.prompts`` has the target mix.

    Interrupted by SIGTERM or SIGINT it saves and returns; with ``resume`` it goes on where it stopped, to the bit.

    Raises:
        UserError: bad input, guides that cannot tell, a folder in use, or too many gradients in a row that are not finite.
    """
    accelerator = new_accelerator(_precision(settings))
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(claim(settings.out))
        accelerator.wait_for_everyone()
        settings = resolved(settings)
        if accelerator.is_main_process:
            check_folder(settings, RESUMABLE)
        work = prepare(settings, accelerator)
        resumed = _restored(work)
        if accelerator.is_main_process:
            settings.save(settings.out / CONFIG_FILE)
            note(f"learning rate {settings.learning_rate:g}, warm-up {settings.warmup} iterations; {settings.sampling.in_words}")
            drop_lines_after(settings.out / "log.jsonl", "iteration", work.state.iteration if resumed else -1)
        stop = held.enter_context(StopSignal())
        if settings.draws_own:
            work = replace(work, own=Exemplars.own(work.drawing, work.guides, work.state, work.fingerprint, accelerator))
        return _run(work, stop)


def _restored(work: Work) -> bool:
    """Whether there was a checkpoint to go on from; it is in memory no longer than it takes to restore it."""
    settings = work.settings
    checkpoint = load_latest(settings.out / "checkpoints", quiet=not work.accelerator.is_main_process) if settings.resume else None
    if checkpoint is not None:
        work.state.restore(checkpoint, work.fingerprint)
    return checkpoint is not None


def _save(work: Work) -> None:
    """Every rank takes part: weights may be sharded. What is saved is freed on return, before the next one is made."""
    checkpoint = work.state.snapshot(work.fingerprint)
    if work.accelerator.is_main_process:
        save_checkpoint(work.settings.out / "checkpoints", checkpoint)


def _precision(settings: AlignSettings) -> str:
    """A GPU without bf16 computes in float32: fp16 would want its gradients scaled, and these come in parts."""
    found = mixed_precision(settings.precision)
    return "no" if found == "fp16" else found


def _run(work: Work, stop: StopSignal) -> AlignResult:
    settings, state, accelerator = work.settings, work.state, work.accelerator
    validation = Validation.prepare(
        work.drawing, state.target, work.guides, work.held_out, list(work.corrections.values()), work.encoders, state.untuned,
        settings.out / "sheets",
    )  # fmt: skip
    with track("align", settings.iterations, done=state.iteration, quiet=not accelerator.is_main_process) as bar:
        if not state.standing:
            _log(work, {"iteration": 0, **_validate(work, validation)})  # where the model stands before
        while state.iteration < settings.iterations and not state.arrived:  # a run may be killed between its end and its model
            stopping = any_rank(stop.seen, accelerator)
            if not stopping:
                facts = iterate(work)
                if state.iteration % settings.validate_every == 0 or state.iteration == settings.iterations:
                    facts |= _validate(work, validation)
                _log(work, facts)
                bar.advance(note=f"distance {state.distance:.3f}")
            if stopping or state.arrived or state.iteration == settings.iterations or state.iteration % settings.checkpoint_every == 0:
                _save(work)
            if stopping:
                return _interrupted(work)
    if settings.form == "distill" and not keep_scaled(work, validation, stop):
        return _interrupted(work)
    return _kept(work, validation)


def _interrupted(work: Work) -> AlignResult:
    return AlignResult(work.settings.out, None, work.state.iteration, 0, 1.0, None, work.settings.near, interrupted=True)


def _log(work: Work, facts: dict[str, Any]) -> None:
    if work.accelerator.is_main_process:
        append_jsonl(work.settings.out / "log.jsonl", facts)


def iterate(work: Work) -> dict[str, Any]:
    """One step: the gradient of exemplars or of a drawn batch, and that of an anchor."""
    settings, state, accelerator = work.settings, work.state, work.accelerator
    share = settings.batch_size // accelerator.num_processes
    places = np.arange(share) + share * accelerator.process_index
    rate = state.rate()
    state.learner.set_learning_rate(rate)
    facts: dict[str, Any] = {"iteration": state.iteration + 1, "learning_rate": rate}
    exemplars = [found for found in (work.own, work.real) if found is not None]
    if settings.form == "distill":
        facts["loss"] = _learn(work, exemplars.pop(0), places)
    else:
        facts |= draw_and_pull(work, places)
    gradients = _taken(work)
    facts["gradient_norm"] = _norm(gradients)
    if settings.anchor and exemplars:
        facts["anchor_loss"] = _learn(work, exemplars[-1], places)
        held = _taken(work)
        facts["anchor_norm"] = _norm(held)
        gradients = anchored(gradients, held, settings.anchor)
    facts["skipped"] = not math.isfinite(_norm(gradients))
    for parameter, gradient in zip(state.learner.parameters, gradients, strict=True):
        parameter.grad = gradient
    if not facts["skipped"]:
        accelerator.clip_grad_norm_(state.learner.parameters, settings.clip)
        state.learner.optimizer.step()
        state.learner.averages.update()
        if "softly" in facts:
            state.saw(*(np.array(list(facts[key].values())) for key in ("batch", "softly")))
    state.learner.optimizer.zero_grad(set_to_none=True)
    state.count(not facts["skipped"])
    return facts


def _learn(work: Work, exemplars: Exemplars, places: np.ndarray) -> float:
    """Send the gradient of given images' diffusion loss back to the denoiser."""
    with work.accelerator.autocast():
        loss = exemplars.loss(work.unet, work.state.iteration, places)
    part = loss * len(places) / work.settings.batch_size
    part.backward()
    return work.summed(part)


def _taken(work: Work) -> list[torch.Tensor]:
    """The parameters' gradients, summed over ranks and taken from them."""
    found = []
    for parameter in work.state.learner.parameters:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(work.accelerator.reduce(own, "sum") if work.accelerator.num_processes > 1 else own)
        parameter.grad = None
    return found


def anchored(gradients: list[torch.Tensor], held: list[torch.Tensor], strength: float) -> list[torch.Tensor]:
    """Gradients, and those of an anchor at ``strength`` times their norm."""
    scale = strength * _norm(gradients) / max(_norm(held), 1e-12)
    return [one + scale * other for one, other in zip(gradients, held, strict=True)]


def _norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())


def _validate(work: Work, validation: Validation) -> dict[str, Any]:
    """Where the averaged weights stand."""
    state = work.state
    with state.learner.averages.applied():
        standing: Standing = validation.standing(work.unet, f"iteration-{state.iteration:04d}")
    state.judge(standing.held_out)
    if standing.parted and work.accelerator.is_main_process:
        warn(
            f"iteration {state.iteration}: guide and held-out guide read different mixes "
            f"({np.round(standing.guide, 2).tolist()} and {np.round(standing.held_out, 2).tolist()}): "
            "one of them errs on what is drawn, or the guide is being fooled"
        )
    return {
        "validation": {
            "distance": state.distance, "guide": dict(zip(work.groups, standing.guide.tolist(), strict=True)),
            "held_out": dict(zip(work.groups, standing.held_out.tolist(), strict=True)), "consistency": standing.consistency,
            "parted": standing.parted,
        }
    }  # fmt: skip


def _kept(work: Work, validation: Validation) -> AlignResult:
    """Publish the best weights, checked by the judges."""
    settings, state = work.settings, work.state
    assert state.best is not None
    work.unet.load_state_dict(state.best_weights, strict=False)
    check = _checked(work, validation)
    told = {"final_check": check, "not_corrected": work.corrections["held-out guide"].unknown}
    model = publish(settings, state, work.groups, work.guides, work.held_out, told, work.accelerator)
    kept, distance, scale = state.best["iteration"], state.best["distance"], state.best.get("scale", 1.0)
    return AlignResult(settings.out, model, state.iteration, kept, scale, distance, settings.near, check)


def _checked(work: Work, validation: Validation) -> dict[str, Any] | None:
    """What the judges read on fresh seeds, and whether it shows that the target is met; None without judges."""
    settings, judges, target = work.settings, work.judges, work.state.target
    if judges is None:
        return None
    classes = work.drawing.classes
    correction = Correction.of(judges, len(classes.names))
    left = judges_leave_open(target, correction, classes, settings.seed)
    n = settings.check_images or images_needed(target, settings.tolerance, correction, left)
    if work.accelerator.is_main_process:
        for reason in correction.unknown:
            warn(f"judge: {reason}; until then its readings are not corrected for its errors")
        note(f"final check: {n} images of fresh seeds, to show each share within {settings.tolerance:g} of its target")
        if left > settings.tolerance:
            warn(
                f"final check: the judges' test subjects leave +-{left:.3f} of a share open, more than the tolerance "
                f"{settings.tolerance:g}, and no number of images closes that; train the judge on a larger cohort, or raise --tolerance"
            )
    check = validation.checked(work.unet, judges, correction, n)
    return check.facts(work.groups, check.shows(target, settings.tolerance))
