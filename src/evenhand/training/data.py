"""What a step sees: latents, noise, timesteps, text and groups, each sample from a generator of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather

from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed, torch_generator
from evenhand.engine.batching import Batches, warn_of_epochs
from evenhand.engine.latents import LatentCache, latent_cache
from evenhand.models.denoise import Condition
from evenhand.models.pipelines import warn_of_overlong
from evenhand.models.stages import Stage
from evenhand.training.settings import TrainSettings
from evenhand.training.state import TrainingState
from evenhand.training.weighting import GroupCodes


@dataclass(frozen=True)
class Piece:
    """One rank's share of a batch that is computed at once; B samples."""

    rows: np.ndarray
    latents: torch.Tensor  # (B, C, h, w)
    noise: torch.Tensor  # (B, C, h, w)
    timesteps: torch.Tensor  # (B,)
    text: torch.Tensor  # (B, tokens, width)
    condition: Condition | None  # what else the denoiser is given
    groups: GroupCodes
    generator: torch.Generator


@dataclass(frozen=True)
class Gathered:
    """Per-sample losses of the global batch, the same on every rank."""

    losses: torch.Tensor
    timesteps: torch.Tensor
    groups: GroupCodes


@dataclass
class TrainingData:
    """The training split behind a latent cache."""

    stage: Stage
    cache: LatentCache
    batches: Batches
    codes: Mapping[str, np.ndarray]
    groups: Mapping[str, list[str]]
    joint_odds: dict[str, float] | None
    fingerprint: dict[str, str]
    settings: TrainSettings
    schedule_length: int
    rank: int
    world: int
    device: torch.device

    @classmethod
    def prepare(cls, settings: TrainSettings, state: TrainingState, accelerator: Accelerator) -> TrainingData:
        """Fill or open the cache; warn of prompts that the tokenizer cuts."""
        cohort = Cohort.load(settings.cohort).split("train")
        share = settings.accumulation * accelerator.num_processes
        if settings.batch_size % share:
            raise UserError(f"--batch-size {settings.batch_size}: not a multiple of processes x accumulation ({share})")
        if accelerator.is_main_process:
            warn_of_overlong(state.pipeline, cohort.table["prompt"].tolist())
            if (odds := state.population.odds) is not None and state.population.joint is not None:
                weights = np.array([odds[str(group)] for group in state.population.joint])
                warn_of_epochs(settings.steps * settings.batch_size, weights, "give more images, fewer --steps or a lower --tau")
        cache = latent_cache(state.stage, cohort, accelerator)
        codes = {
            name: cohort.table[name].map({group: code for code, group in enumerate(groups)}).fillna(-1).to_numpy(dtype=np.int64)
            for name, groups in state.groups.items()
        }
        rows = cohort.table[["prompt", *state.groups]].astype(str)
        rows.insert(0, "sha256", cohort.image_hashes())
        content = hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()
        return cls(
            stage=state.stage,
            cache=cache,
            batches=Batches(len(cohort), settings.batch_size, settings.seed, state.population.joint),
            codes=codes,
            groups=state.groups,
            joint_odds=state.population.odds,
            fingerprint={"cohort": content, "model": state.model_sha256},
            settings=settings,
            schedule_length=state.schedule.config.num_train_timesteps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            device=accelerator.device,
        )

    def replica(self, number: int) -> TrainingData:
        """The same data in another order, with other noise; 0 is this."""
        if not number:
            return self
        seed = derive_seed(self.settings.seed, "replica", number)
        return replace(self, batches=replace(self.batches, seed=seed), settings=self.settings.model_copy(update={"seed": seed}))

    def batch(self, step: int, odds: Mapping[str, float] | None) -> list[Piece]:
        """This rank's pieces of the batch of ``step``. Odds of the method come before those of the settings."""
        rows = self.batches.at(step, odds if odds is not None else self.joint_odds)
        share = self.settings.batch_size // (self.world * self.settings.accumulation)
        starts = [(piece * self.world + self.rank) * share for piece in range(self.settings.accumulation)]
        return [self._piece(step, np.arange(start, start + share), rows[start : start + share]) for start in starts]

    def _piece(self, step: int, places: np.ndarray, rows: np.ndarray) -> Piece:
        mean, std = self.cache.latents(rows)
        text = self.cache.embeddings(rows)
        fresh, noise, timesteps = torch.empty_like(mean), torch.empty_like(mean), torch.empty(len(rows), dtype=torch.int64)
        # by place, not by row: a row that is drawn twice has other noise, and methods that draw other rows see the same noise
        own = [torch_generator(self.settings.seed, "sample", step, place) for place in places.tolist()]
        for i, draws in enumerate(own):
            fresh[i].normal_(generator=draws)
            noise[i].normal_(generator=draws)
            timesteps[i] = self._timestep(draws)
            if torch.rand((), generator=draws) < self.settings.caption_dropout:
                text[i] = self.cache.silent
        groups = {name: torch.from_numpy(codes[rows]) for name, codes in self.codes.items()}
        latents = mean + std * fresh
        condition = self.stage.training_condition(latents, own)
        return Piece(
            rows=rows,
            latents=latents.to(self.device),
            noise=noise.to(self.device),
            timesteps=timesteps.to(self.device),
            text=text.to(self.device),
            condition=condition.to(self.device) if condition is not None else None,
            groups=groups,
            generator=torch_generator(self.settings.seed, "weights", step, int(places[0])),
        )

    def _timestep(self, draws: torch.Generator) -> int:
        """Uniform, or logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1), over the schedule.

        Logit-normal times have a density of 0 at the ends, and sampling starts at one of them: some times are drawn uniformly.
        """
        part = 1.0 if self.settings.timesteps == "uniform" else self.settings.uniform_part
        if part == 1 or (part and torch.rand((), generator=draws) < part):
            return int(torch.randint(self.schedule_length, (), generator=draws))
        place = torch.sigmoid(torch.randn((), generator=draws))
        return min(int(place * self.schedule_length), self.schedule_length - 1)

    def gather(self, pieces: list[Piece], losses: torch.Tensor, accelerator: Accelerator) -> Gathered:
        """Losses, timesteps and groups of all ranks, in one order on all of them."""
        timesteps = torch.cat([piece.timesteps for piece in pieces])
        groups = {name: torch.cat([piece.groups[name] for piece in pieces]) for name in self.codes}
        if accelerator.num_processes == 1:
            return Gathered(losses, timesteps, groups)
        return Gathered(gather(losses), gather(timesteps), {name: gather(codes.to(self.device)).cpu() for name, codes in groups.items()})
