"""Forms ``kl`` and ``transport``: draw a batch, read it, and send the loss's gradient back to the denoiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from evenhand.alignment.consistency import consistency_loss, consistency_weights
from evenhand.alignment.gradients import Drawn, adjusted, chained, draw
from evenhand.alignment.targets import assign_within, assignment_loss, mix_divergence
from evenhand.alignment.validation import embed
from evenhand.alignment.work import Work
from evenhand.core.randomness import derive_seed


def draw_and_pull(work: Work, places: np.ndarray) -> dict[str, Any]:
    """One iteration for this rank's ``places`` of the batch; gradients stay in the parameters."""
    settings, state = work.settings, work.state
    sheet = work.drawing.sheet("tuning", state.iteration, places.tolist())
    predict = work.drawing.predictor(work.unet, sheet.prompts)
    drawn = draw(predict, work.drawing.solver(), sheet.noise, settings.sampling.steps)
    untuned = None
    if settings.consistency:
        with torch.no_grad():
            untuned = state.stage.decode(work.drawing.latents(state.untuned, sheet))
    loss, gradient, *means = _loss(work, drawn, untuned, places, sheet.classes)
    path = adjusted if settings.path == "adjusted" else chained
    path(predict, work.drawing.solver(), drawn, gradient, settings.carrying_steps)
    means[0] = work.drawing.classes.settled(means[0], state.target)
    read, softly = (dict(zip(work.groups, mean.tolist(), strict=True)) for mean in means)
    return {"loss": loss, "batch": read, "softly": softly}


def _loss(
    work: Work, drawn: Drawn, untuned: torch.Tensor | None, places: np.ndarray, classes: np.ndarray
) -> tuple[float, torch.Tensor, np.ndarray, np.ndarray]:
    """The whole batch's loss and what (C K,) is read from it, and read softly; and the gradient at this rank's latents (b, C, h, w)."""
    settings, state = work.settings, work.state
    final = drawn.final.detach().requires_grad_()
    images = state.stage.decode(final)
    joint = work.drawing.classes.joint
    logs, soft = work.guides.log_probabilities(images), joint(work.softened.probabilities(images), classes)
    everyone, everyone_soft = (work.accelerator.gather(found.detach()) for found in (joint(logs.double().exp(), classes), soft))
    part = len(places) / len(everyone)  # a mean over this rank's images counts as much in the mean over all
    if settings.form == "transport" or untuned is not None:
        assignment = assign_within(
            everyone.cpu().numpy(),
            state.target,
            len(work.drawing.classes.names),
            seed=derive_seed(settings.seed, "assign", state.iteration),
        )
    common = own = torch.zeros((), device=images.device)  # what all ranks compute alike, and this one's part of the rest
    if settings.form == "kl":
        whole = torch.cat([everyone_soft[: places[0]], soft, everyone_soft[places[-1] + 1 :]])
        past = None if state.past is None else torch.from_numpy(state.past).to(whole)
        target = torch.from_numpy(work.softened_target).to(whole)
        common = mix_divergence(whole, target, past, 1 - settings.memory if past is not None else 1.0)
    else:
        own = part * assignment_loss(logs, assignment.part(places).among(logs.shape[1]))
    if untuned is not None:
        with torch.no_grad():
            before = joint(work.guides.probabilities(untuned), classes).argmax(1).cpu().numpy()
            frozen = embed(work.encoders, untuned)
        weights = torch.from_numpy(consistency_weights(assignment.groups[places], before)).to(images)
        own = own + settings.consistency * part * consistency_loss(embed(work.encoders, images), frozen, weights)
    (gradient,) = torch.autograd.grad(common + own, final)
    means = (found.double().mean(0).cpu().numpy() for found in (everyone, everyone_soft))
    return float(common.detach()) + work.summed(own), gradient, *means
