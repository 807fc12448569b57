"""What a training run carries from step to step, and how it is saved and restored to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed
from evenhand.engine.checkpoints import Checkpoint
from evenhand.engine.ema import Averages
from evenhand.models.adapters import add_lora
from evenhand.models.pipelines import load_pipeline, model_hash, training_scheduler
from evenhand.training.population import Population
from evenhand.training.settings import TrainSettings
from evenhand.training.weighting import METHODS, WeightingMethod

# torch can flatten the optimizer's state too, but then cannot load it where nothing is sharded (a KeyError up to 2.13)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_PART = StateDictOptions(full_state_dict=True, strict=False)  # a checkpoint holds what is trained, and no more
_OF = "|"  # between a parameter's name and what the optimizer keeps of it


@dataclass
class TrainingState:
    """Model, optimizer, averages and method, with the count of steps."""

    pipeline: DiffusionPipeline
    denoiser: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    averages: Averages
    schedule: DDPMScheduler
    method: WeightingMethod
    population: Population
    model_sha256: str
    settings: TrainSettings
    scaler: torch.amp.GradScaler | None = None
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
        population = Population.of(settings, Cohort.load(settings.cohort))
        pipeline, parameters = trainable_pipeline(settings)
        unet = pipeline.unet.train().to(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        fused = accelerator.device.type in ("cuda", "cpu")
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
        compiled = settings.compile if settings.compile is not None else accelerator.device.type == "cuda"
        denoiser, optimizer = accelerator.prepare(torch.compile(unet) if compiled else unet, optimizer)
        schedule = training_scheduler(pipeline)
        schedule.alphas_cumprod = schedule.alphas_cumprod.to(accelerator.device)
        return cls(
            pipeline=pipeline,
            denoiser=denoiser,
            parameters=[parameter for parameter in denoiser.parameters() if parameter.requires_grad],
            optimizer=optimizer,
            averages=Averages([parameter for parameter in denoiser.parameters() if parameter.requires_grad], settings.ema),
            schedule=schedule,
            method=METHODS[settings.method](
                population.groups, counts=population.counts, odds=population.odds, seed=settings.seed, **settings.all_options
            ),
            population=population,
            model_sha256=model_hash(settings.model),
            settings=settings,
            scaler=accelerator.scaler,
        )

    def set_learning_rate(self) -> float:
        """Warm-up, then constant or cosine; a function of the steps done."""
        settings, rate = self.settings, self.settings.learning_rate
        if self.step < settings.warmup:
            rate *= (self.step + 1) / settings.warmup
        elif settings.schedule == "cosine":
            done = (self.computed - settings.warmup) / max(1, settings.steps - settings.warmup)
            rate *= 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
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
        model: dict[str, Any]
        optimizer: dict[str, Any]  # both are empty on all ranks but the first, which writes
        if self._plain_optimizer().state:
            model, optimizer = get_state_dict(self.denoiser, self._plain_optimizer(), options=_WHOLE)
        else:  # no step was taken yet; torch would make a state by a step of its own, and count it
            model, optimizer = get_model_state_dict(self.denoiser, options=_WHOLE), {}
        tensors = {
            "model": self._trained(model),
            "averages": self.averaged_weights(),
            "optimizer": {f"{name}{_OF}{key}": value for name, part in optimizer.get("state", {}).items() for key, value in part.items()},
        }
        facts = {
            "optimizer": optimizer.get("param_groups"),
            "averages_updates": self.averages.updates,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "method": self.method.state_dict(),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "lost": self.lost,
            "fingerprint": fingerprint,
        }
        return Checkpoint(self.step, tensors, facts)

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """The averages of the trained parameters, by name, whole even where the model is sharded."""
        with self.averages.applied():
            return {name: value.clone() for name, value in self._trained(get_model_state_dict(self.denoiser, options=_WHOLE)).items()}

    def restore(self, checkpoint: Checkpoint, fingerprint: dict[str, str]) -> None:
        """Take a checkpoint back.

        Raises:
            UserError: the cohort or the model is not the one that the run began with.
        """
        facts = checkpoint.facts
        for what, before in facts["fingerprint"].items():
            if fingerprint.get(what) != before:
                raise UserError(f"{self.settings.out}: the {what} has changed since this run began; start a new run with another --out")
        tensors = checkpoint.tensors
        if tensors["model"].keys() != self._trained_names() or tensors["averages"].keys() != tensors["model"].keys():
            raise UserError(f"{self.settings.out}: the checkpoint holds other parameters than are trained now; start a new run")
        set_model_state_dict(self.denoiser, tensors["averages"], options=_PART)
        self.averages.adopt(facts["averages_updates"])
        if tensors.get("optimizer"):
            self._restore_both(tensors["model"], tensors["optimizer"], facts["optimizer"])
        else:
            set_model_state_dict(self.denoiser, tensors["model"], options=_PART)
        if self.scaler is not None and facts["scaler"] is not None:
            self.scaler.load_state_dict(facts["scaler"])
        self.method.load_state_dict(facts["method"])
        self.step = checkpoint.step
        self.skipped, self.skipped_in_a_row, self.lost = facts["skipped"], facts["skipped_in_a_row"], facts["lost"]

    def _restore_both(self, model: dict[str, Any], tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> None:
        optimizer: dict[str, Any] = {"state": {}, "param_groups": groups}
        for name, value in tensors.items():
            parameter, _, key = name.rpartition(_OF)
            optimizer["state"].setdefault(parameter, {})[key] = value
        set_state_dict(self.denoiser, self._plain_optimizer(), model_state_dict=model, optim_state_dict=optimizer, options=_PART)
        for group in self._plain_optimizer().param_groups:  # JSON knows no tuples
            group["betas"] = tuple(group["betas"])
        for parameter, part in self._plain_optimizer().state.items():
            for key, value in part.items():
                if value.shape == parameter.shape:  # the fused kernel walks memory: averages must lie as the weights do (channels last)
                    part[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _trained(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = self._trained_names()
        return {name: value for name, value in weights.items() if name in names}

    def _trained_names(self) -> set[str]:
        return {_plain(name) for name, parameter in self.denoiser.named_parameters() if parameter.requires_grad}

    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)


def trainable_pipeline(settings: TrainSettings) -> tuple[DiffusionPipeline, list[torch.nn.Parameter]]:
    """The model as it is before training, all frozen but the parameters returned."""
    pipeline = load_pipeline(settings.model)
    if settings.prediction is not None:
        pipeline.scheduler.register_to_config(prediction_type=settings.prediction)
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    if settings.lora is not None:
        return pipeline, add_lora(pipeline.unet, settings.lora, derive_seed(settings.seed, "lora"))
    return pipeline, list(pipeline.unet.requires_grad_(True).parameters())


def _plain(name: str) -> str:
    for wrapper in ("module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name
