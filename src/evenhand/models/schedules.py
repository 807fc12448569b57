"""What a scheduler file states, and what diffusers adds of its own: the two must not be taken for each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from diffusers import DiffusionPipeline, SchedulerMixin

from evenhand.core.artifacts import read_json

Spacing = Literal["leading", "linspace", "trailing"]
SPACINGS: tuple[str, ...] = get_args(Spacing)
SCHEDULER_FILE = "scheduler_config.json"
_DEFAULTED = "_use_default_values"  # diffusers' list of what a scheduler's file does not state


def spacing_of(config: Mapping[str, Any]) -> Spacing:
    """Where solver steps lie in time by a scheduler's configuration or file: as it states, else evenly over all times (linspace).

    Diffusers' own defaults differ between schedulers, and saving writes them out; a default is no statement. With zero terminal SNR and
    v-prediction steps end at the last timestep and lie evenly before it (trailing; Lin et al. 2023, arXiv 2305.08891, section 3.3).
    """
    found = config.get("timestep_spacing")
    if found in SPACINGS and "timestep_spacing" not in config.get(_DEFAULTED, ()):
        return found  # type: ignore[no-any-return]
    zero_snr = bool(config.get("rescale_betas_zero_snr")) and config.get("prediction_type") == "v_prediction"
    return "trailing" if zero_snr else "linspace"


def declare(scheduler: SchedulerMixin, **values: Any) -> None:
    """Set values of a scheduler's configuration as if its file stated them; diffusers drops what it takes for a default."""
    defaulted = [name for name in scheduler.config.get(_DEFAULTED, ()) if name not in values]
    scheduler.register_to_config(**values, **{_DEFAULTED: defaulted})


def drop_defaults(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Take out of the scheduler files of a saved ``pipeline`` what the files that it was loaded from did not state.

    Else a solver of another class, whose own defaults differ, would draw a saved model otherwise than the one it was made of.
    """
    for path in folder.glob(f"*/{SCHEDULER_FILE}"):
        defaulted = getattr(pipeline, path.parent.name).config.get(_DEFAULTED, ())
        stated = {name: value for name, value in read_json(path).items() if name not in defaulted}
        path.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")
