"""What a training run carries from step to step, and how it is saved and restored to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed
from evenhand.engine.checkpoints import Checkpoint
from evenhand.engine.learner import Learner
from evenhand.models.adapters import train_only
from evenhand.models.pipelines import load_pipeline, model_hash, stage_of, training_scheduler
from evenhand.models.schedules import declare
from evenhand.models.shapes import check_terminal_snr
from evenhand.models.stages import Stage
from evenhand.training.population import Population, with_rate
from evenhand.training.settings import TrainSettings
from evenhand.training.weighting import METHODS, WeightingMethod


@dataclass
class TrainingState:
    """Model, optimizer, averages and method, with the count of steps."""

    pipeline: DiffusionPipeline
    stage: Stage
    learner: Learner
    schedule: DDPMScheduler
    method: WeightingMethod
    population: Population
    model_sha256: str
    settings: TrainSettings
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    lost: int = 0  # steps of arms that were tried and given up; they cost as much as any

    @property
    def groups(self) -> dict[str, list[str]]:
        """The attributes that count, and their groups."""
        return self.population.groups

    @property
    def computed(self) -> int:
        """Steps computed so far, those of lost arms included: what a run of ``steps`` steps may cost."""
        return self.step + self.lost

    @classmethod
    def create(cls, settings: TrainSettings, accelerator: Accelerator) -> TrainingState:
        """Load the model, freeze all but what is trained, and hand it to accelerate."""
        settings = with_rate(settings)
        population = Population.of(settings, Cohort.load(settings.cohort))
        pipeline = trainable_pipeline(settings)
        stage = stage_of(pipeline, settings.stage)
        unet = stage.unet.train()
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        assert settings.learning_rate is not None
        learner = Learner.create(
            unet, accelerator, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, ema=settings.ema,
            compiled=settings.compile if settings.compile is not None else accelerator.device.type == "cuda",
        )  # fmt: skip
        schedule = training_scheduler(stage)
        schedule.alphas_cumprod = schedule.alphas_cumprod.to(accelerator.device)
        return cls(
            pipeline=pipeline,
            stage=stage,
            learner=learner,
            schedule=schedule,
            method=METHODS[settings.method](
                population.groups, counts=population.counts, odds=population.odds, seed=settings.seed, **settings.all_options
            ),
            population=population,
            model_sha256=model_hash(settings.model),
            settings=settings,
        )

    def set_learning_rate(self) -> float:
        """Warm-up, then constant or cosine; a function of the steps done."""
        settings, rate = self.settings, self.settings.learning_rate
        assert rate is not None and settings.warmup is not None
        if self.step < settings.warmup:
            rate *= (self.step + 1) / settings.warmup
        elif settings.schedule == "cosine":
            done = (self.computed - settings.warmup) / max(1, settings.steps - settings.warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        self.learner.set_learning_rate(rate)
        return rate

    def count(self, finite: bool, limit: int) -> None:
        """Count a step; stop the run where too many in a row were not finite."""
        self.step += 1
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= limit:
            raise UserError(
                f"training stopped at step {self.step}: {limit} steps in a row had a loss or gradient that is not finite; "
                "lower --learning-rate, or check the cohort and the model"
            )

    def snapshot(self, fingerprint: dict[str, str]) -> Checkpoint:
        """Everything that resume needs, as tensors and JSON."""
        tensors, facts = self.learner.snapshot()
        facts |= {
            "method": self.method.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "lost": self.lost,
            "fingerprint": fingerprint,
        }
        return Checkpoint(self.step, tensors, facts)

    def restore(self, checkpoint: Checkpoint, fingerprint: dict[str, str]) -> None:
        """Take a checkpoint back.

        Raises:
            UserError: the cohort or the model is not the one that the run began with.
        """
        facts = checkpoint.facts
        for what, before in facts["fingerprint"].items():
            if fingerprint.get(what) != before:
                raise UserError(f"{self.settings.out}: the {what} has changed since this run began; start a new run with another --out")
        self.learner.restore(checkpoint.tensors, facts, self.settings.out)
        self.method.load_state_dict(facts["method"])
        self.step = checkpoint.step
        self.skipped, self.skipped_in_a_row, self.lost = facts["skipped"], facts["skipped_in_a_row"], facts["lost"]


def trainable_pipeline(settings: TrainSettings) -> DiffusionPipeline:
    """The model as it is before training, all frozen but what is trained."""
    pipeline = load_pipeline(settings.model)
    stage = stage_of(pipeline, settings.stage)
    if settings.prediction is not None:
        declare(stage.scheduler, prediction_type=settings.prediction)
        check_terminal_snr(f"--prediction {settings.prediction}", training_scheduler(stage))
    train_only(pipeline, stage.unet, settings.lora, derive_seed(settings.seed, "lora"))
    return pipeline
