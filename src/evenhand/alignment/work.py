"""All parts of one alignment, made from its settings: model, prompts, guides, target, encoders, real images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from evenhand.alignment.checking import load_judges
from evenhand.alignment.correction import Correction
from evenhand.alignment.defaults import resolved
from evenhand.alignment.drawing import Drawing, read_prompts, stating
from evenhand.alignment.exemplars import Exemplars
from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.softening import soften
from evenhand.alignment.state import AlignState
from evenhand.audit.judges import guides_in
from evenhand.cohorts.cohort import Cohort, is_cohort
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.progress import warn
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder
from evenhand.models.pipelines import clip_of, has_clip, model_provenance


@dataclass(frozen=True)
class Work:
    """All parts of one alignment."""

    settings: AlignSettings
    accelerator: Accelerator
    state: AlignState
    drawing: Drawing
    guides: Guides
    softened: Guides  # what pulls in form kl
    softened_target: np.ndarray  # (C K,) what those read at the target
    held_out: Guides
    corrections: dict[str, Correction]  # of guides and held-out guides
    encoders: list[Encoder]
    real: Exemplars | None
    judges: Guides | None
    fingerprint: dict[str, str]
    own: Exemplars | None = None

    @property
    def groups(self) -> list[str]:
        """Names of the joint groups that the target has shares of."""
        return self.drawing.classes.groups(self.guides)

    def summed(self, part: torch.Tensor) -> float:
        """A figure of which every rank has a part."""
        return float(self.accelerator.reduce(part.detach(), "sum"))

    @property
    def unet(self) -> torch.nn.Module:
        """The denoiser without what accelerate wraps it in: gradients are summed over ranks once, after a whole trajectory."""
        found: torch.nn.Module = self.accelerator.unwrap_model(self.state.learner.denoiser)
        return found


def prepare(settings: AlignSettings, accelerator: Accelerator) -> Work:
    """Load and check everything.

    Raises:
        UserError: bad input, or guides that cannot tell.
    """
    settings = resolved(settings)
    guides, held_out = _guides(settings, accelerator)
    judges = load_judges(settings.judge, guides, held_out, guides_in(model_provenance(settings.model)))
    prompts, classes = read_prompts(Path(settings.prompts), settings.within)
    target = classes.target(settings.target, guides)
    corrections = {role: Correction.of(found, len(classes.names)) for role, found in (("guide", guides), ("held-out guide", held_out))}
    state = AlignState.create(settings, target, accelerator)
    if accelerator.is_main_process:
        for role, found in corrections.items():
            for reason in found.unknown:
                warn(f"{role}: {reason}; until then its readings are not corrected for its errors")
        _warn_of(prompts, guides, "what they ask for is drawn, their mix will hardly move")
    drawing = Drawing.prepare(state.stage, prompts, classes, settings, accelerator)
    real = None
    if images := _real_images(settings):
        if settings.exemplars and accelerator.is_main_process:
            own = images.split("train").table["prompt"].astype(str).tolist()
            _warn_of(own, guides, "silent ones learn little of these images' mix; import them with --prompt-attributes that leave it out")
        real = Exemplars.real(state.stage, images, guides, classes, target, settings, accelerator)
    if settings.anchor and real is None and (settings.form == "distill" or not settings.draws_own):
        other = "" if settings.form == "distill" else ", or give --own-images"
        raise UserError(f"--anchor: the target is a mix, not a cohort; name the real images with --anchor-cohort{other}")
    if settings.form != "distill" and settings.draws_own and real is not None:
        raise UserError(f"--own-images {settings.own_images}: real images anchor, so own ones would do nothing; leave one of both out")
    if settings.batch_size % accelerator.num_processes:
        raise UserError(f"--batch-size {settings.batch_size}: not a multiple of the {accelerator.num_processes} processes")
    encoders = [Encoder.load(path).to(accelerator.device) for path in _encoders(settings)]
    for encoder in encoders:
        encoder.model.requires_grad_(False)
    errors = [found.matrix().round(9).tolist() for found in corrections.values()]
    calibrated = [(guide.temperature, guide.facts.get("test_subjects")) for found in (guides, held_out) for guide in found.all]
    fingerprint = {
        "model": state.model_sha256,
        "guides": " ".join(",".join(guide.sha256 for guide in found.all) for found in (guides, held_out)),
        "guides' calibration": repr((errors, calibrated)),
        "target mix": json.dumps(dict(zip(classes.groups(guides), target.round(9).tolist(), strict=True))),
        "prompts": _digest(f"{classes.codes[prompt]} {prompt}" for prompt in prompts),
        "encoders": ",".join(encoder.sha256 for encoder in encoders),
        "real images": _digest(real.facts) if real is not None else "",
    }
    guides, held_out = guides.to(accelerator.device), held_out.to(accelerator.device)
    judges = judges.to(accelerator.device) if judges else None
    softened = soften(guides, target, drawing, state.untuned, settings.confidence) if settings.form == "kl" else (guides, target)
    return Work(settings, accelerator, state, drawing, guides, *softened, held_out, corrections, encoders, real, judges, fingerprint)


def _warn_of(prompts: Sequence[str], guides: Guides, consequence: str) -> None:
    """Say so where prompts state what is to be moved."""
    if stated := stating(prompts, guides.groups):
        warn(f"{len(stated)} of {len(prompts)} prompts state a group of {', '.join(guides.groups)} ({stated[0]!r}): {consequence}")


def _encoders(settings: AlignSettings) -> list[Path]:
    """Those that consistency is learnt by; where none is, the model's own CLIP, if it has one, still says in the log how images change."""
    if settings.consistency_encoder:
        return settings.consistency_encoder
    return [clip_of(settings.model)] if settings.consistency or has_clip(settings.model) else []


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _guides(settings: AlignSettings, accelerator: Accelerator) -> tuple[Guides, Guides]:
    """Those that guide, and those that tell how far to go: different ones, where there are two of an attribute."""
    guides, held_out = Guides.load(settings.guide), Guides.load(settings.held_out_guide)
    _refuse_twice([*guides.all, *held_out.all])
    for attribute, found in guides.by_attribute.items():
        if attribute in held_out.by_attribute:
            continue
        held_out = held_out.having(attribute, found[-1:])
        guides = guides.having(attribute, found[:-1] or found)
        if len(found) == 1 and accelerator.is_main_process:
            warn(
                f"{found[0].path} alone both guides and tells how far to go; a tuned model fools its guide, so give a "
                f"second classifier of {attribute}, trained on other subjects"
            )
    for attribute, found in held_out.by_attribute.items():
        if attribute not in guides.by_attribute:
            raise UserError(
                f"--held-out-guide {found[0].path}: no guide reads {attribute!r}; {did_you_mean(attribute, guides.by_attribute)}"
            )
        if set(found[0].groups) != set(groups := guides.groups[attribute]):
            raise UserError(
                f"--held-out-guide {found[0].path}: its groups of {attribute} are {', '.join(found[0].groups)}, those of the guides "
                f"{', '.join(groups)}; train both on cohorts of one schema"
            )
    if settings.form != "distill" and accelerator.is_main_process:
        _warn_of_one_kind(guides, held_out)
    return guides, Guides({attribute: held_out.by_attribute[attribute] for attribute in guides.by_attribute}, order=guides.groups)


def _warn_of_one_kind(guides: Guides, held_out: Guides) -> None:
    """Say so where images that guides' gradients have shaped are read by other networks of their kind alone."""
    for attribute, found in guides.by_attribute.items():
        guiding = {guide.sha256 for guide in found}
        others = {guide.model.config.model_type for guide in held_out.by_attribute[attribute] if guide.sha256 not in guiding}
        kinds = {guide.model.config.model_type for guide in found}
        if others and others <= kinds:
            warn(
                f"guides and held-out guides of {attribute} are of one architecture ({', '.join(sorted(others))}): "
                "images that fool one may fool the other; give a --held-out-guide of another --arch"
            )


def _refuse_twice(classifiers: Sequence[Classifier]) -> None:
    seen: set[str] = set()
    for classifier in classifiers:
        if classifier.sha256 in seen:
            raise UserError(
                f"{classifier.path}: given twice as --guide or --held-out-guide; a tuned model fools what guides it, so give another one"
            )
        seen.add(classifier.sha256)


def _real_images(settings: AlignSettings) -> Cohort | None:
    """Real images to learn from, or that anchor: a cohort that is named for it, else the target where it is one."""
    if path := settings.exemplars or settings.anchor_cohort:
        return Cohort.load(path)
    return Cohort.load(settings.target) if settings.anchor and is_cohort(settings.target) else None
