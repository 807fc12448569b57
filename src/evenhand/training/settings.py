"""Settings of ``evenhand train`` and what a training run returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from evenhand.core.config import WORD, Settings
from evenhand.core.errors import did_you_mean
from evenhand.training.weighting import METHODS

# Settings that may differ between a run and its resumption: they change how long, how fast or under which path, never what is
# computed. That model and cohort are the same is known by their hashes.
RESUMABLE = ("model", "cohort", "out", "steps", "log_every", "checkpoint_every", "keep_checkpoints", "resume")


AUTO = "auto"  # what the leaderboard found best: see docs/methods/fair-bayesian-perturbation.md


class TrainSettings(Settings):
    """How a model is fine-tuned on a cohort."""

    model: str = Field(description="diffusers folder, run folder, or hub id")
    cohort: Path
    out: Path
    stage: str = Field("base", description="which denoiser of the pipeline is trained; a cascade has super-resolution too")
    method: str = Field("uniform", description="a key of METHODS, or auto: sampling balanced by square root")
    form: str | None = Field(None, description="bayesian_perturbation: robust or reference")
    window: int | None = Field(None, description="reference form: steps between proposals")
    exploitation: float | None = Field(None, description="perturbation: what is kept of sigma from step to step")
    method_options: dict[str, Any] = Field({}, description="further options of the method, by name")
    sampling: Literal["natural", "balanced"] = "natural"
    tau: float = Field(1.0, ge=0, le=2, description="balanced sampling: odds (1/share)^tau over joint groups")
    attributes: list[str] | None = Field(None, description="attributes whose joint groups count; default all")
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(32, ge=1, description="images an optimizer step, over all processes and accumulated pieces")
    accumulation: int = Field(1, ge=1, description="pieces a batch is computed in")
    learning_rate: float | None = Field(None, gt=0, description="default: by what is trained, see engine/rates.py")
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int | None = Field(None, ge=0, description="steps; default: 100 where a model of real size is trained in full, else 0")
    weight_decay: float = Field(1e-2, ge=0)
    clip: float = Field(1.0, gt=0, description="gradient norm")
    ema: float = Field(0.9999, ge=0, lt=1, description="decay of the weight average; 0 keeps none")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of prompts left out, for classifier-free guidance")
    min_snr: float | None = Field(None, gt=0, description="gamma of min-SNR weighting, for example 5")
    prediction: Literal["epsilon", "v_prediction", "sample"] | None = Field(None, description="default: what the model was trained with")
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    uniform_part: float = Field(0.15, ge=0, le=1, description="part of the timesteps that is uniform where the others are logit-normal")
    lora: int | None = Field(None, ge=1, description="rank; default trains every weight of the denoiser")
    gradient_checkpointing: bool = False
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], WORD] = "auto"
    compile: bool | None = Field(None, description="torch.compile; default: on CUDA")
    max_skipped: int = Field(20, ge=1, description="stop after so many steps in a row with a loss or gradient that is not finite")
    log_every: int = Field(25, ge=1)
    checkpoint_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=2)
    seed: int = 0
    resume: bool = False

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in (AUTO, *METHODS):
            raise ValueError(f"unknown method; {did_you_mean(value, [AUTO, *METHODS])}")
        return value

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        try:
            METHODS["uniform" if self.method == AUTO else self.method].check_options(self.all_options)
        except ValidationError as error:
            fault = error.errors()[0]
            raise ValueError(f"--method {self.method}: {fault['loc'][0]}: {fault['msg']} (got {fault['input']!r})") from None
        except ValueError as error:
            raise ValueError(f"--method {self.method}: {error}") from None
        return self

    @property
    def all_options(self) -> dict[str, Any]:
        """Every option that the method is given."""
        named = {"form": self.form, "window": self.window, "exploitation": self.exploitation}
        return {**self.method_options, **{name: value for name, value in named.items() if value is not None}}


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind."""

    run: Path
    model: Path | None  # None when the run was interrupted
    steps: int
    skipped: int
    loss: float
    samples_per_second: float
    interrupted: bool = False
    lost_steps: int = 0  # of arms that were tried and given up
