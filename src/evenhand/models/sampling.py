"""How a model is drawn: options come before the ``sampling`` block of its ``evenhand.json``, and that before the defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from evenhand.core.artifacts import read_json
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.core.progress import warn
from evenhand.models.components import read_index
from evenhand.models.pipelines import model_folder, model_provenance
from evenhand.models.schedules import SCHEDULER_FILE, Spacing, spacing_of

Solver = Literal["dpm++", "model"]

STEPS, GUIDANCE_SCALE = 25, 3.0
SOLVER: Solver = "dpm++"
BLOCK = "sampling"  # of evenhand.json


class _Recorded(Settings):
    """The block; what is absent is not recorded."""

    steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1)
    sampler: Solver | None = None
    timestep_spacing: Spacing | None = None


@dataclass(frozen=True)
class Sampling:
    """Solver steps, guidance, solver, and where its steps lie in time (None: each scheduler's own way)."""

    steps: int
    guidance_scale: float
    sampler: Solver
    timestep_spacing: Spacing | None

    @classmethod
    def resolve(
        cls,
        model: str | Path,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: Solver | None = None,
        timestep_spacing: Spacing | None = None,
    ) -> Sampling:
        """What is given, else what the model records, else the defaults; the spacing at last from its scheduler files.

        Raises:
            UserError: not a model, or a block or scheduler file that cannot be read.
        """
        recorded = _recorded(model)
        solver = sampler or recorded.sampler or SOLVER
        if timestep_spacing is None and solver == (recorded.sampler or SOLVER):
            timestep_spacing = recorded.timestep_spacing
        if timestep_spacing is None and solver != "model":  # "model" is the saved scheduler as it is
            timestep_spacing = _spacing_of_files(model_folder(model))
        return cls(
            steps or recorded.steps or STEPS,
            guidance_scale or recorded.guidance_scale or GUIDANCE_SCALE,
            solver,
            timestep_spacing,
        )

    @property
    def in_words(self) -> str:
        """For a reader of the log."""
        return f"{self.steps} solver steps, guidance {self.guidance_scale:g}, timesteps {self.timestep_spacing or 'as saved'}"

    def block(self) -> dict[str, Any]:
        """For ``evenhand.json`` of a model that is to be drawn so."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def inherited_block(model: str | Path) -> dict[str, Any]:
    """For ``evenhand.json`` of a model that was trained from ``model``: what that one records, and where its steps lie in any case."""
    recorded = {name: value for name, value in _recorded(model).model_dump().items() if value is not None}
    found = Sampling.resolve(model).block()
    return {**recorded, **{name: found[name] for name in ("sampler", "timestep_spacing") if name in found}}


def _recorded(model: str | Path) -> _Recorded:
    block = model_provenance(model).get(BLOCK, {})
    where = f"{model_folder(model) / 'evenhand.json'}: {BLOCK}"
    if not isinstance(block, dict):
        raise UserError(f"{where} is {block!r}; write settings by name, or take it out")
    try:
        return _Recorded(**block)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UserError(f"{where}: {fault['loc'][0]}: {fault['msg']} (got {fault['input']!r}); mend it, or take it out") from None


def _spacing_of_files(folder: Path) -> Spacing | None:
    """The spacing on which all scheduler files of a model agree; None where they do not, or there is none."""
    found: set[Spacing] = set()
    components = read_index(folder)  # what lies beside them, such as a scheduler that was put aside, says nothing
    for path in sorted(path for path in folder.glob(f"*/{SCHEDULER_FILE}") if path.parent.name in components):
        config = read_json(path)
        found.add(spacing := spacing_of(config if isinstance(config, dict) else {}))
        if spacing == "leading" and isinstance(config, dict) and config.get("rescale_betas_zero_snr"):
            warn(f"{path}: zero terminal SNR, but 'leading' timesteps do not start at pure noise; give --timestep-spacing trailing")
    return found.pop() if len(found) == 1 else None
