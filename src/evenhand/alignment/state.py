"""What an alignment carries from iteration to iteration, and how it is saved and restored to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.targets import total_variation
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed
from evenhand.engine.checkpoints import Checkpoint
from evenhand.engine.learner import Learner
from evenhand.models.adapters import train_only
from evenhand.models.pipelines import load_pipeline, model_hash, stage_of
from evenhand.models.stages import Stage

_SLOW = 0.8  # part of earlier batches in the mix that damping goes by; one batch says little


@dataclass
class AlignState:
    """Tuned and untuned denoiser, what the last batches showed, and the best weights so far."""

    pipeline: DiffusionPipeline
    stage: Stage
    learner: Learner
    untuned: torch.nn.Module
    model_sha256: str
    settings: AlignSettings
    target: np.ndarray  # (C K,)
    past: np.ndarray | None = None  # (K,) what softened guides read in earlier batches, for the loss
    shown: np.ndarray | None = None  # (K,) what guides read, over more of them, for damping
    iteration: int = 0
    within: int = 0  # validations within tolerance in a row
    standing: dict[str, np.ndarray] = field(default_factory=dict)  # what held-out guides read (C K,) of the untuned and the newest weights
    best: dict[str, Any] | None = None  # iteration and distance
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped_in_a_row: int = 0

    @classmethod
    def create(cls, settings: AlignSettings, target: np.ndarray, accelerator: Accelerator) -> AlignState:
        """Load the model twice: one copy is tuned, one stays as it is."""
        pipeline = tunable_pipeline(settings)
        stage = stage_of(pipeline)
        untuned = stage_of(load_pipeline(settings.model)).unet
        untuned.to(accelerator.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        assert settings.learning_rate is not None
        learner = Learner.create(
            stage.unet.eval(), accelerator, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, ema=settings.ema,
            compiled=False,
        )  # fmt: skip
        return cls(pipeline, stage, learner, untuned, model_hash(settings.model), settings, target)

    def rate(self) -> float:
        """Learning rate of this iteration: warm-up, then a cosine to 0 for form distill, whose way is as long as it is set.

        For the others, shorter steps near the target: AdamW's are as long near it as far from it; undamped, every run overshoots.
        """
        settings = self.settings
        assert settings.learning_rate is not None and settings.warmup is not None
        rate = settings.learning_rate * min(1.0, (self.iteration + 1) / max(settings.warmup, 1))
        if settings.form == "distill":
            rate *= (1 + math.cos(math.pi * self.iteration / settings.iterations)) / 2
        if settings.damping and self.shown is not None:
            rate *= min(1.0, float(total_variation(self.shown, self.target)) / settings.damping)
        return rate

    def saw(self, read: np.ndarray, softly: np.ndarray) -> None:
        """Take in what guides (K,) and softened guides (K,) read from a batch."""
        memory = self.settings.memory
        self.past = softly if self.past is None else memory * self.past + (1 - memory) * softly
        self.shown = read if self.shown is None else _SLOW * self.shown + (1 - _SLOW) * read

    def count(self, finite: bool) -> None:
        """Count an iteration; stop the run where too many in a row were not finite."""
        self.iteration += 1
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= self.settings.max_skipped:
            raise UserError(
                f"alignment stopped at iteration {self.iteration}: {self.skipped_in_a_row} gradients in a row were not finite; "
                "lower --learning-rate, or check the guides"
            )

    def judge(self, held_out: np.ndarray) -> None:
        """Take in a validation: count those within tolerance in a row, keep the weights if they are the best so far.

        Form distill keeps its last weights, since images get better as its rate falls; how far to go with them is seen at the end.
        """
        self.standing = {"untuned": self.standing.get("untuned", held_out), "newest": held_out}
        self.within = self.within + 1 if self.distance <= self.settings.near else 0
        if self.settings.form != "distill" and (self.best is None or self.distance < self.best["distance"]):
            self.keep({"iteration": self.iteration, "distance": self.distance}, self.learner.averaged_weights())

    @property
    def distance(self) -> float:
        """Total variation between the target and the newest validation."""
        return float(total_variation(self.standing["newest"], self.target))

    def keep(self, facts: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        """These are the weights to publish, until better ones are found."""
        self.best, self.best_weights = facts, weights

    @property
    def arrived(self) -> bool:
        """Whether the run may end before its last iteration: form distill's rate is to fall to 0 first."""
        return self.within >= 2 and self.settings.form != "distill"

    def snapshot(self, fingerprint: dict[str, str]) -> Checkpoint:
        """Everything that resume needs."""
        tensors, facts = self.learner.snapshot()
        facts |= {
            "past": None if self.past is None else self.past.tolist(),
            "shown": None if self.shown is None else self.shown.tolist(),
            "within": self.within,
            "standing": {which: read.tolist() for which, read in self.standing.items()},
            "best": self.best,
            "skipped_in_a_row": self.skipped_in_a_row,
            "fingerprint": fingerprint,
        }
        kept = {"best": self.best_weights} if self.best_weights else {}
        return Checkpoint(self.iteration, {**tensors, **kept}, facts)

    def restore(self, checkpoint: Checkpoint, fingerprint: dict[str, str]) -> None:
        """Take a checkpoint back.

        Raises:
            UserError: model, guides, prompts or anchor are not those that the run began with.
        """
        facts = checkpoint.facts
        for what, before in facts["fingerprint"].items():
            if fingerprint.get(what) != before:
                raise UserError(f"{self.settings.out}: {what} changed since this run began; start a new run with another --out")
        self.learner.restore(checkpoint.tensors, facts, self.settings.out)
        self.past, self.shown = (None if facts[name] is None else np.array(facts[name]) for name in ("past", "shown"))
        self.standing = {which: np.array(read) for which, read in facts["standing"].items()}
        self.iteration, self.within, self.best = checkpoint.step, facts["within"], facts["best"]
        self.best_weights, self.skipped_in_a_row = checkpoint.tensors.get("best", {}), facts["skipped_in_a_row"]


def tunable_pipeline(settings: AlignSettings) -> DiffusionPipeline:
    """The model as it is before alignment, all frozen but what is tuned: the first denoiser, which decides who is shown."""
    pipeline = load_pipeline(settings.model)
    stage = stage_of(pipeline)
    train_only(pipeline, stage.unet, settings.lora, derive_seed(settings.seed, "lora"))
    return pipeline
