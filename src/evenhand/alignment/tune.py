"""Alignment, top to bottom: draw, read, pull the batch towards the target mix, stay close to the untuned model.

Subgroup distribution aligned tuning (Han et al. 2024, arXiv 2406.14847), with the gradient paths and the transport form of Shen et al.
(2024, arXiv 2311.07604). See docs/methods/distribution-alignment.md for what departs from both and why.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from evenhand.alignment.consistency import consistency_loss, consistency_weights
from evenhand.alignment.drawing import Drawing, read_prompts, stating
from evenhand.alignment.exemplars import Exemplars
from evenhand.alignment.gradients import Drawn, adjusted, chained, draw
from evenhand.alignment.guides import Guides
from evenhand.alignment.publish import publish
from evenhand.alignment.settings import RESUMABLE, AlignResult, AlignSettings
from evenhand.alignment.softening import soften
from evenhand.alignment.state import AlignState
from evenhand.alignment.targets import assign, assignment_loss, mix_divergence
from evenhand.alignment.validation import Standing, Validation, embed
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.core.artifacts import append_jsonl, claim
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import Mix, observed_mix, parse_mix
from evenhand.core.progress import console, track
from evenhand.core.randomness import derive_seed
from evenhand.engine.checkpoints import load_latest, save_checkpoint
from evenhand.engine.devices import accelerator as new_accelerator
from evenhand.engine.devices import mixed_precision
from evenhand.engine.runs import CONFIG_FILE, StopSignal, any_rank, check_folder, drop_lines_after
from evenhand.models.denoise import sampler
from evenhand.models.encoders import Encoder
from evenhand.models.pipelines import clip_of


@dataclass(frozen=True)
class Work:
    """All parts of one alignment."""

    settings: AlignSettings
    accelerator: Accelerator
    state: AlignState
    drawing: Drawing
    guides: Guides
    softened: Guides  # what pulls in form kl
    softened_target: np.ndarray  # (K,) what those read at the target
    held_out: Guides
    encoders: list[Encoder]
    real: Exemplars | None
    fingerprint: dict[str, str]
    own: Exemplars | None = None

    @property
    def unet(self) -> torch.nn.Module:
        """The denoiser without what accelerate wraps it in: gradients are summed over ranks once, after a whole trajectory."""
        found: torch.nn.Module = self.accelerator.unwrap_model(self.state.learner.denoiser)
        return found


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
        if accelerator.is_main_process:
            check_folder(settings, RESUMABLE)
        work = _prepare(settings, accelerator)
        checkpoint = load_latest(settings.out / "checkpoints", quiet=not accelerator.is_main_process) if settings.resume else None
        if checkpoint is not None:
            work.state.restore(checkpoint, work.fingerprint)
        if accelerator.is_main_process:
            settings.save(settings.out / CONFIG_FILE)
            drop_lines_after(settings.out / "log.jsonl", "iteration", work.state.iteration)
        if settings.own_images:
            own = Exemplars.own(work.drawing, work.guides, work.state.target, work.state.untuned, settings, accelerator)
            work = replace(work, own=own)
        return _run(work, held.enter_context(StopSignal()))


def _precision(settings: AlignSettings) -> str:
    """A GPU without bf16 computes in float32: fp16 would want its gradients scaled, and these come in parts."""
    found = mixed_precision(settings.precision)
    return "no" if found == "fp16" else found


def _prepare(settings: AlignSettings, accelerator: Accelerator) -> Work:
    guides, held_out = _guides(settings, accelerator)
    cohort = Cohort.load(settings.target) if (Path(settings.target) / SCHEMA_FILE).is_file() else None
    mix = _mix(settings, cohort, guides)
    target = guides.shares(mix)
    state = AlignState.create(settings, target, accelerator)
    prompts = read_prompts(Path(settings.prompts))
    stated = stating(prompts, guides.groups)
    if stated and accelerator.is_main_process:
        console.print(
            f"[yellow]warning[/]: {len(stated)} of {len(prompts)} prompts state a group of {', '.join(guides.groups)} "
            f"({stated[0]!r}): what they ask for is drawn, their mix will hardly move"
        )
    drawing = Drawing.prepare(state.stage, prompts, settings, accelerator)
    real = None
    if settings.anchor and (images := Cohort.load(settings.anchor_cohort) if settings.anchor_cohort else cohort):
        real = Exemplars.real(state.stage, images, guides, target, settings, state.model_sha256, accelerator)
    if settings.anchor and real is None and not settings.own_images:
        raise UserError("--anchor: the target is a mix, not a cohort; name the real images with --anchor-cohort, or give --own-images")
    if settings.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {settings.batch_size}: not a multiple of the {accelerator.num_processes} processes")
    paths = settings.consistency_encoder or ([clip_of(settings.model)] if settings.consistency else [])
    encoders = [Encoder.load(path).to(accelerator.device) for path in paths]
    for encoder in encoders:
        encoder.model.requires_grad_(False)
    fingerprint = {
        "model": state.model_sha256,
        "guides": ",".join(guide.sha256 for guide in [*guides.all, *held_out.all]),
        "target mix": str(mix),
        "prompts": _digest(prompts),
        "encoders": ",".join(encoder.sha256 for encoder in encoders),
        "anchor cohort": _digest(real.facts) if real is not None else "",
    }
    guides, held_out = guides.to(accelerator.device), held_out.to(accelerator.device)
    softened = soften(guides, target, drawing, state.untuned, settings.confidence) if settings.form == "kl" else (guides, target)
    return Work(settings, accelerator, state, drawing, guides, *softened, held_out, encoders, real, fingerprint)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _guides(settings: AlignSettings, accelerator: Accelerator) -> tuple[Guides, Guides]:
    """Those that guide, and those that tell when to stop: different ones, where there are two of an attribute."""
    guides, held_out = Guides.load(settings.guide), Guides.load(settings.held_out_guide)
    for attribute, found in guides.by_attribute.items():
        if attribute in held_out.by_attribute:
            continue
        held_out = held_out.having(attribute, found[-1:])
        guides = guides.having(attribute, found[:-1] or found)
        if len(found) == 1 and accelerator.is_main_process:
            console.print(
                f"[yellow]warning[/]: {found[0].path} alone both guides and tells when to stop; a tuned model fools its guide, so give a "
                f"second classifier of {attribute}, trained on other subjects"
            )
    for attribute, found in held_out.by_attribute.items():
        if attribute not in guides.by_attribute:
            raise UserError(
                f"--held-out-guide {found[0].path}: no guide reads {attribute!r}; {did_you_mean(attribute, guides.by_attribute)}"
            )
        both = {guide.sha256: guide for guide in guides.by_attribute[attribute]}
        if settings.held_out_guide and (same := [guide for guide in found if guide.sha256 in both]):
            raise UserError(f"--held-out-guide {same[0].path}: guides as well; a tuned model fools its guide, so give one that does not")
    return guides, Guides({attribute: held_out.by_attribute[attribute] for attribute in guides.by_attribute})


def _mix(settings: AlignSettings, cohort: Cohort | None, guides: Guides) -> Mix:
    if cohort is None:
        if "=" not in settings.target:
            raise UserError(f"--target {settings.target}: neither a cohort nor a mix; write for example 'sex=male:0.5,female:0.5'")
        return parse_mix(settings.target)
    for name in guides.groups:
        cohort.require_column(name)
    return observed_mix(cohort.table, list(guides.groups))


def _run(work: Work, stop: StopSignal) -> AlignResult:
    settings, state, accelerator = work.settings, work.state, work.accelerator
    validation = Validation.prepare(work.drawing, work.guides, work.held_out, work.encoders, state.untuned, settings.out / "sheets")
    reached = state.within >= 2  # a run may be killed between its end and its model
    with track("align", settings.iterations, done=state.iteration, quiet=not accelerator.is_main_process) as bar:
        if state.iteration == 0 and state.best is None:
            _validate(work, validation)  # where the model stands before
        while state.iteration < settings.iterations and not reached:
            stopping = any_rank(stop.seen, accelerator)
            if not stopping:
                facts = _iterate(work)
                if state.iteration % settings.validate_every == 0 or state.iteration == settings.iterations:
                    facts |= _validate(work, validation)
                    reached = state.within >= 2
                if accelerator.is_main_process:
                    append_jsonl(settings.out / "log.jsonl", facts)
                bar.advance(note=f"distance {state.best['distance']:.3f}" if state.best else "")
            if stopping or reached or state.iteration == settings.iterations or state.iteration % settings.checkpoint_every == 0:
                checkpoint = state.snapshot(work.fingerprint)
                if accelerator.is_main_process:
                    save_checkpoint(settings.out / "checkpoints", checkpoint)
            if stopping:
                return AlignResult(settings.out, None, state.iteration, 0, None, None, reached=False, interrupted=True)
    return _kept(work, validation)


def _iterate(work: Work) -> dict[str, Any]:
    """One step: the gradient of own images or of a drawn batch, and that of an anchor."""
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
        facts |= _draw_and_pull(work, places)
    gradients = _taken(work)
    facts["gradient_norm"] = _norm(gradients)
    if settings.anchor and exemplars:
        facts["anchor_loss"] = _learn(work, exemplars[-1], places)
        held = _taken(work)
        facts["anchor_norm"] = _norm(held)
        scale = settings.anchor * facts["gradient_norm"] / max(facts["anchor_norm"], 1e-12)
        gradients = [one + scale * other for one, other in zip(gradients, held, strict=True)]
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


def _draw_and_pull(work: Work, places: np.ndarray) -> dict[str, Any]:
    """Draw a batch, read it, send the loss's gradient back to the denoiser."""
    settings, state = work.settings, work.state
    sheet = work.drawing.sheet("tuning", state.iteration, places.tolist())
    predict = work.drawing.predictor(work.unet, sheet.prompts)
    drawn = draw(predict, sampler(state.stage.scheduler), sheet.noise, settings.solver_steps)
    untuned = None
    if settings.consistency:
        with torch.no_grad():
            untuned = state.stage.decode(work.drawing.latents(state.untuned, sheet))
    loss, gradient, *means = _pull(work, drawn, untuned, places)
    path = adjusted if settings.path == "adjusted" else chained
    path(predict, sampler(state.stage.scheduler), drawn, gradient, settings.carrying_steps)
    read, softly = (dict(zip(work.guides.joint, mean.tolist(), strict=True)) for mean in means)
    return {"loss": loss, "batch": read, "softly": softly}


def _learn(work: Work, exemplars: Exemplars, places: np.ndarray) -> float:
    """Send the gradient of given images' diffusion loss back to the denoiser."""
    with work.accelerator.autocast():
        loss = exemplars.loss(work.unet, work.state.iteration, places)
    (loss * len(places) / work.settings.batch_size).backward()
    return float(loss.detach())


def _taken(work: Work) -> list[torch.Tensor]:
    """The parameters' gradients, summed over ranks and taken from them."""
    found = []
    for parameter in work.state.learner.parameters:
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(work.accelerator.reduce(own, "sum") if work.accelerator.num_processes > 1 else own)
        parameter.grad = None
    return found


def _norm(gradients: list[torch.Tensor]) -> float:
    return float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())


def _pull(work: Work, drawn: Drawn, untuned: torch.Tensor | None, places: np.ndarray) -> tuple[float, torch.Tensor, np.ndarray, np.ndarray]:
    """Loss, its gradient at the final latents (b, C, h, w) of this rank, and what (K,) is read from the whole batch, and read softly."""
    settings, state = work.settings, work.state
    final = drawn.final.detach().requires_grad_()
    images = state.stage.decode(final)
    own, soft = work.guides.probabilities(images), work.softened.probabilities(images)
    everyone, everyone_soft = (_gathered(found.detach(), work) for found in (own, soft))
    part = len(places) / len(everyone)  # a mean over this rank's images counts as much in the mean over all
    if settings.form == "transport" or untuned is not None:
        assignment = assign(everyone.double().cpu().numpy(), state.target, seed=derive_seed(settings.seed, "assign", state.iteration))
    if settings.form == "kl":
        whole = torch.cat([everyone_soft[: places[0]], soft, everyone_soft[places[-1] + 1 :]])
        past = None if state.past is None else torch.from_numpy(state.past).to(whole)
        target = torch.from_numpy(work.softened_target).to(whole)
        loss = mix_divergence(whole, target, past, 1 - settings.memory if past is not None else 1.0)
    else:
        loss = part * assignment_loss(own.clamp_min(1e-12).log(), assignment.part(places))
    if untuned is not None:
        with torch.no_grad():
            before = work.guides.probabilities(untuned).argmax(1).cpu().numpy()
            frozen = embed(work.encoders, untuned)
        weights = torch.from_numpy(consistency_weights(assignment.groups[places], before)).to(images)
        loss = loss + settings.consistency * part * consistency_loss(embed(work.encoders, images), frozen, weights)
    (gradient,) = torch.autograd.grad(loss, final)
    return float(loss.detach()), gradient, *(found.double().mean(0).cpu().numpy() for found in (everyone, everyone_soft))


def _gathered(found: torch.Tensor, work: Work) -> torch.Tensor:
    return work.accelerator.gather(found) if work.accelerator.num_processes > 1 else found


def _validate(work: Work, validation: Validation) -> dict[str, Any]:
    """Where the averaged weights stand; keeps them if they are the best so far."""
    state = work.state
    with state.learner.averages.applied():
        standing: Standing = validation.standing(work.unet, state.iteration)
    distance = standing.distance(state.target)
    state.judge(distance)
    if standing.parted and work.accelerator.is_main_process:
        console.print(
            f"[yellow]warning[/]: iteration {state.iteration}: guide and held-out guide read different mixes "
            f"({np.round(standing.guide, 2).tolist()} and {np.round(standing.held_out, 2).tolist()}): the guide is being fooled"
        )
    joint = work.guides.joint
    return {
        "validation": {
            "distance": distance, "guide": dict(zip(joint, standing.guide.tolist(), strict=True)),
            "held_out": dict(zip(joint, standing.held_out.tolist(), strict=True)), "consistency": standing.consistency,
            "parted": standing.parted,
        }
    }  # fmt: skip


def _kept(work: Work, validation: Validation) -> AlignResult:
    """Publish the best weights, and count who they draw on fresh seeds."""
    settings, state = work.settings, work.state
    assert state.best is not None
    work.unet.load_state_dict(state.best_weights, strict=False)
    certified = None
    if settings.certified_images:
        counts = validation.certified(work.unet, settings.certified_images)
        certified = dict(zip(work.guides.joint, (counts / counts.sum()).tolist(), strict=True))
    reached = bool(state.best["distance"] <= settings.tolerance)
    model = publish(settings, state, work.guides, work.held_out, certified, work.accelerator)
    return AlignResult(settings.out, model, state.iteration, state.best["iteration"], state.best["distance"], certified, reached)
