"""Settings of an alignment that were not given: by the run that is resumed, by the model, or by what is tuned."""

from __future__ import annotations

from typing import Any

from evenhand.alignment.settings import AlignSettings
from evenhand.engine.rates import Rate
from evenhand.engine.runs import began_with
from evenhand.models.sampling import Sampling

_WARMUP = 3  # iterations
_ADOPTED = ("solver_steps", "guidance_scale", "timestep_spacing", "learning_rate", "warmup")


def resolved(settings: AlignSettings) -> AlignSettings:
    """The same settings with solver steps, guidance, spacing, learning rate and warm-up as what they stand for.

    Raises:
        UserError: not a model, or a note of it that cannot be read.
    """
    began = began_with(settings.out) if settings.resume else {}
    given: dict[str, Any] = {name: getattr(settings, name) for name in _ADOPTED}
    given = {name: began.get(name) if value is None else value for name, value in given.items()}
    sampling = Sampling.resolve(
        settings.model, steps=given["solver_steps"], guidance_scale=given["guidance_scale"], sampler="dpm++",
        timestep_spacing=given["timestep_spacing"],
    )  # fmt: skip
    rate = Rate.of(settings.model, lora=settings.lora is not None)
    by_default = given["learning_rate"] is None
    given |= {"solver_steps": sampling.steps, "guidance_scale": sampling.guidance_scale, "timestep_spacing": sampling.timestep_spacing}
    if by_default:
        given["learning_rate"] = rate.learning_rate
    if given["warmup"] is None:
        given["warmup"] = max(_WARMUP, min(rate.warmup, settings.iterations // 10)) if by_default else _WARMUP
    return settings.model_copy(update=given)
