"""Settings of ``evenhand align`` and what an alignment returns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from evenhand.core.config import WORD, Settings
from evenhand.models.sampling import STEPS, Sampling
from evenhand.models.schedules import Spacing

# Settings that may differ between a run and its resumption: they never change what is computed.
RESUMABLE = ("model", "guide", "held_out_guide", "prompts", "exemplars", "anchor_cohort", "out", "checkpoint_every", "resume")

LARGEST_SCALE = 1.5  # of weights on the line from untuned to tuned ones; beyond it nothing was tried

# what differs where images are drawn, read and pulled at every iteration
_PULLED: dict[str, Any] = {
    "own_images": 0, "batch_size": 24, "iterations": 60, "learning_rate": 2e-5, "consistency": 1.0, "ema": 0.9, "validate_every": 5,
    "validation_images": 500,
}  # fmt: skip
_OF_OWN = ("own_images", "early")
_OF_KL = ("confidence", "memory")
_OF_PULLING = ("path", "carrying", "damping", "consistency", *_OF_KL)
_CARRYING = re.compile(r"(all|half)|(first|last):(\d+)")


class AlignSettings(Settings):
    """How a model is tuned until what it draws has a target mix."""

    model: str = Field(description="diffusers folder, run folder, or hub id")
    guide: list[Path] = Field(min_length=1, description="classifiers that guide; several of one attribute are averaged")
    held_out_guide: list[Path] = Field(
        [], description="classifiers that do not guide but tell where it is; default: the last --guide of each attribute"
    )
    judge: list[Path] = Field(
        [], description="classifiers that neither guide nor validate: whether the target is reached is checked by them, or not at all"
    )
    target: str = Field(description="a cohort, whose mix of the guides' attributes is used, or a mix such as sex=male:0.5,female:0.5")
    prompts: str = Field(description="a cohort, whose training prompts are used as they stand, or a text file, one prompt a line")
    within: str | None = Field(None, description="column of the prompts' cohort: the target holds within each of its values")
    out: Path
    form: Literal["distill", "kl", "transport"] = Field("distill", description="sets the defaults of what is marked *")
    own_images: int = Field(
        1200, ge=0, description="* of the untuned model, drawn before; form distill learns from them, others may by --anchor"
    )
    exemplars: Path | None = Field(
        None, description="real images that form distill learns from instead, such as those that the model was trained on"
    )
    early: float = Field(
        1.0, gt=0, le=1, description="part of the noise levels, from the noisiest, at which own images teach; below, the untuned model does"
    )
    path: Literal["adjusted", "truncated", "full"] = "adjusted"
    carrying: str | None = Field(None, description="solver steps that carry gradient: all, half (the first), first:K or last:K")
    solver_steps: int | None = Field(None, ge=1, description="the mix moves with it; default: what the model records, else 25")
    guidance_scale: float | None = Field(None, ge=1, description="the mix moves with it; default: what the model records, else 3")
    timestep_spacing: Spacing | None = Field(None, description="default: what the model records, else its scheduler file, else linspace")
    batch_size: int = Field(32, ge=2, description="* images an iteration, over all processes")
    iterations: int = Field(600, ge=1, description="*; forms kl and transport may end earlier")
    learning_rate: float | None = Field(
        None, gt=0, description="*; take the rate that the model was trained at; default: by what is tuned, see engine/rates.py"
    )
    warmup: int | None = Field(None, ge=0, description="iterations; default 3, where distill tunes a model of real size in full more")
    weight_cap: float = Field(10.0, ge=1, description="largest sampling weight of an image that is learnt, in parts of the uniform one")
    damping: float = Field(0.1, ge=0, description="distance from the target below which steps shrink with it; 0: they do not")
    confidence: float = Field(0.85, gt=0.5, le=1, description="mean certainty that guides are softened to in form kl; 1: they are not")
    memory: float = Field(0.5, ge=0, lt=1, description="part of earlier batches in the mean prediction of form kl")
    consistency: float = Field(0.0, ge=0, description="* weight of CLIP-consistency")
    consistency_encoder: list[Path] = Field([], description="default: the model's own CLIP")
    anchor: float = Field(0.0, ge=0, description="norm of the gradient of real images, else of own ones, in that of the alignment")
    anchor_cohort: Path | None = Field(None, description="default: the target, where it is a cohort")
    real_mix: Literal["target", "own"] = Field("target", description="mix in which real images are drawn; groups by column, else by guide")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.995, ge=0, lt=1, description="*")
    lora: int | None = Field(None, ge=1, description="rank; default tunes every weight of the denoiser")
    validate_every: int = Field(200, ge=1, description="*")
    validation_images: int = Field(2000, ge=20, description="* the mix is read from so many, with a standard error of 1 / (2 sqrt n)")
    tolerance: float = Field(0.05, gt=0, description="largest difference of a share from its target; kl and transport end near it")
    check_images: int | None = Field(None, ge=20, description="of fresh seeds, for the judges; default: as many as the tolerance needs")
    checkpoint_every: int = Field(5, ge=1)
    precision: Annotated[Literal["auto", "no", "bf16"], WORD] = Field("auto", description="gradients of images do not bear fp16's range")
    max_skipped: int = Field(5, ge=1, description="stop after so many iterations in a row whose gradient is not finite")
    seed: int = 0
    resume: bool = False

    @model_validator(mode="before")
    @classmethod
    def _by_form(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("form") in ("kl", "transport"):
            return {**_PULLED, **given}
        return given

    @field_validator("carrying")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None and not _CARRYING.fullmatch(value):
            raise ValueError("write all, half, first:K or last:K")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.path == "truncated" and self.carrying is not None and not self.carrying.startswith("last:"):
            raise ValueError("path truncated carries gradient through the last steps; write carrying last:K")
        if self.exemplars is not None and (self.form != "distill" or self.anchor):
            raise ValueError("exemplars are what form distill learns from alone; leave them out, or form and anchor")
        if self.anchor_cohort is not None and not self.anchor:
            raise ValueError("anchor_cohort is given, and anchor is 0: its images would do nothing; give anchor too")
        if self.form == "distill" and not self.own_images and not self.exemplars:
            raise ValueError("own_images is 0, and no exemplars are given: form distill has nothing to learn from")
        if self.form != "distill" and self.own_images and not self.anchor:
            raise ValueError(f"own_images {self.own_images}: in form {self.form} they only anchor; give anchor too")
        if not self.carrying_steps:
            raise ValueError(f"carrying {self.carrying}: no solver step carries gradient")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        idle = (
            (self.form == "distill", _OF_PULLING, "form distill pulls no drawn images", "take form kl or transport"),
            (self.form == "transport", _OF_KL, "form transport takes guides and batches as they are", "take form kl"),
            (self.exemplars is not None, _OF_OWN, "exemplars take the place of own images", "leave exemplars out"),
            (not self.draws_own, ("early",), "no own images teach", "give own_images"),
            (self.exemplars is None and not self.anchor, ("real_mix",), "no real images teach", "give exemplars or anchor"),
        )
        for holds, names, why, remedy in idle:
            told = next((name for name in names if getattr(self, name) != type(self).model_fields[name].default), None)
            if holds and told:
                raise ValueError(f"{why}, so {told} would do nothing; leave it out, or {remedy}")
        return self

    @property
    def sampling(self) -> Sampling:
        """How images are drawn and validated, of resolved settings."""
        assert self.solver_steps and self.guidance_scale
        return Sampling(self.solver_steps, self.guidance_scale, "dpm++", self.timestep_spacing)

    @property
    def near(self) -> float:
        """Total variation from the target that counts as near at validation."""
        return self.tolerance / 2

    @property
    def draws_own(self) -> bool:
        """Whether images of the untuned model are wanted."""
        return bool(self.own_images) and self.exemplars is None

    @property
    def carrying_steps(self) -> list[int]:
        """Solver steps that carry gradient, 0 is the first drawn."""
        steps, text = self.solver_steps or STEPS, self.carrying or {"adjusted": "half", "truncated": "last:2", "full": "all"}[self.path]
        word, _, count = text.partition(":")
        k = min(int(count), steps) if count else steps if word == "all" else max(1, steps // 2)
        return list(range(steps - k, steps) if word == "last" else range(k))


@dataclass(frozen=True)
class AlignResult:
    """What an alignment left behind.

    Distances are total variation between target and shown mix, as the held-out guides read it, corrected for their errors on real images.
    """

    run: Path
    model: Path | None  # None when the run was interrupted
    iterations: int
    kept: int  # the iteration whose averaged weights are the model
    scale: float  # of them, on the way from the untuned weights; other than 1 in form distill alone
    distance: float | None  # at validation
    near: float  # the distance that counts as near at validation
    check: dict[str, Any] | None = None  # images, shares and 95 % intervals by the judges on fresh seeds; None without judges
    interrupted: bool = False

    @property
    def reached(self) -> bool:
        """Whether judges showed that every share is within the tolerance of its target; False where nobody checked."""
        return self.check is not None and bool(self.check["reached"])

    @property
    def verdict(self) -> str:
        """``reached``, ``not reached`` or ``not checked``, with what the judges read on fresh seeds."""
        if self.check is None:
            return "not checked: no judge was given; --judge CLF, which neither guides nor validates, checks on fresh seeds"
        bounds = self.check["intervals"]
        shares = self.check["shares"].items()
        read = ", ".join(f"{group} {share:.3f} [{bounds[group][0]:.3f}, {bounds[group][1]:.3f}]" for group, share in shares)
        return f"{'reached' if self.reached else 'not reached'}, by the judges on {self.check['images']} images of fresh seeds: {read}"

    @property
    def shortfall(self) -> str:
        """What to say, and to do, where the weights that are kept are not near the target by the validators; empty where they are."""
        if self.distance is None or self.distance <= self.near:
            return ""
        remedy = "raise --tolerance or --iterations"
        if self.scale == 0:
            remedy = "no tuned weights came nearer, so the model is as it was; raise --iterations"
        elif self.scale == LARGEST_SCALE:
            remedy = "the tuning fell short of it; raise --iterations or --learning-rate"
        return f"the nearest to the target (iteration {self.kept}, scale {self.scale:.2f}) is {self.distance:.3f} from it; {remedy}"
