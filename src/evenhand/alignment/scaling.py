"""How far along the way from the untuned weights to the tuned ones a model draws the target mix.

What a model draws moves evenly along the line between its weights before and after a tuning (Wortsman et al. 2022, arXiv 2109.01903), also
a little beyond its end. So a tuning that fell short of the target, or went past it, needs no other tuning: only another scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from evenhand.alignment.settings import LARGEST_SCALE
from evenhand.alignment.state import tunable_pipeline
from evenhand.alignment.targets import total_variation
from evenhand.alignment.validation import Validation
from evenhand.alignment.work import Work
from evenhand.engine.runs import StopSignal, any_rank
from evenhand.models.pipelines import stage_of

_FINE = 0.01
_FACTOR = ".lora_A."  # peft's name
_LOOKS = 2  # at mixes between; the line through the last ones is then near enough


def keep_scaled(work: Work, validation: Validation, stop: StopSignal) -> bool:
    """Of the weights between untuned and tuned ones, keep those that held-out guides read nearest to the target; False if interrupted."""
    state, target = work.state, work.state.target
    tuned = state.learner.averaged_weights()
    untuned = stage_of(tunable_pipeline(work.settings)).unet.state_dict()
    shown = {0.0: state.standing["untuned"], 1.0: state.standing["newest"]}
    for _ in range(_LOOKS):
        scale = likely_scale(shown, target)
        if scale in shown:
            break
        if any_rank(stop.seen, work.accelerator):
            return False
        work.unet.load_state_dict(between(untuned, tuned, scale), strict=False)
        shown[scale] = validation.standing(work.unet, f"scale-{scale:.2f}").held_out
    distance, _, scale = min((float(total_variation(mix, target)), abs(scale - 1), scale) for scale, mix in shown.items())
    read = {f"{scale:.2f}": dict(zip(work.groups, mix.tolist(), strict=True)) for scale, mix in sorted(shown.items())}
    facts = {"iteration": state.iteration, "distance": distance, "scale": scale, "read_at_scale": read}
    state.keep(facts, between(untuned, tuned, scale))
    return True


def between(untuned: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The weights of ``tuned`` on the line through both: the untuned ones at scale 0, the tuned ones at 1.

    What a LoRA adds is a product, of which one factor is scaled: its "A" stays as tuned, its "B" was 0 before.
    """
    return {
        name: weight.clone() if _FACTOR in name else torch.lerp(untuned[name].to(weight), weight, scale) for name, weight in tuned.items()
    }


def likely_scale(shown: Mapping[float, np.ndarray], target: np.ndarray) -> float:
    """The scale in [0, 1.5] at which the target is nearest, if between those that were drawn, and beyond, mixes lie on lines.

    Args:
        shown: mix (K,) by scale, of two scales or more.
        target: (K,).
    """
    known = sorted(shown)
    scales = np.arange(0, LARGEST_SCALE + _FINE / 2, _FINE)
    place = np.clip(np.searchsorted(known, scales) - 1, 0, len(known) - 2)
    low, high = (np.array(known)[place + step] for step in (0, 1))
    mixes = np.array([shown[scale] for scale in known])
    part = ((scales - low) / (high - low))[:, None]
    distances = total_variation((1 - part) * mixes[place] + part * mixes[place + 1], target)
    return float(min(zip(distances.round(9), abs(scales - 1), scales, strict=True))[2])
