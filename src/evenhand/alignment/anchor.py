"""The ordinary diffusion loss on real images of the target, which keeps a tuned model's images near real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.cohorts.cohort import Cohort
from evenhand.core.errors import UserError
from evenhand.core.randomness import torch_generator
from evenhand.engine.batching import Batches
from evenhand.engine.latents import LatentCache, latent_cache
from evenhand.engine.losses import per_sample_loss, target_of
from evenhand.models.denoise import predict
from evenhand.models.pipelines import training_scheduler
from evenhand.models.stages import Stage


@dataclass(frozen=True)
class Anchor:
    """Real images behind a latent cache; every draw depends on iteration and place alone."""

    stage: Stage
    images: list[str]  # hashes and prompts: what a resumption must find again
    cache: LatentCache
    batches: Batches
    odds: dict[str, float] | None  # joint group -> sampling odds
    seed: int
    device: torch.device

    @classmethod
    def prepare(
        cls, stage: Stage, cohort: Cohort, guides: Guides, target: np.ndarray, settings: AlignSettings, model_sha256: str,
        accelerator: Accelerator,
    ) -> Anchor:  # fmt: skip
        """Fill or open the cache of the cohort's training split, whose images are drawn in the target mix, or in their own.

        Raises:
            UserError: the split is empty, or lacks a group that the target has.
        """
        real = cohort.split("train")
        if not len(real):
            raise UserError(f"{cohort.root}: the training split is empty; give another --anchor-cohort, or --anchor 0")
        cache = latent_cache(stage, real, accelerator, model_sha256)
        names = odds = None
        if settings.anchor_mix == "target":
            names = np.array(guides.joint)[guides.read(real)]
            odds = _odds(names, dict(zip(guides.joint, target.tolist(), strict=True)), cohort)
        images = [f"{sha256} {prompt}" for sha256, prompt in zip(real.image_hashes(), real.table["prompt"], strict=True)]
        return cls(
            stage, images, cache, Batches(len(real), settings.batch_size, settings.seed, names), odds, settings.seed, accelerator.device
        )

    def loss(self, unet: torch.nn.Module, iteration: int, places: np.ndarray) -> torch.Tensor:
        """Mean loss of this rank's ``places`` of the iteration's batch."""
        schedule = training_scheduler(self.stage)
        rows = self.batches.at(iteration, self.odds)[places]
        mean, std = self.cache.latents(rows)
        own = [torch_generator(self.seed, "anchor", iteration, place) for place in places.tolist()]
        fresh, noise = (torch.stack([torch.randn(mean.shape[1:], generator=draws) for draws in own]) for _ in range(2))
        steps = schedule.config.num_train_timesteps
        timesteps = torch.stack([torch.randint(steps, (), generator=draws) for draws in own]).to(self.device)
        latents, noise = (mean + std * fresh).to(self.device), noise.to(self.device)
        condition = self.stage.training_condition(latents, own)
        prediction = predict(
            unet, schedule.add_noise(latents, noise, timesteps), timesteps, self.cache.embeddings(rows).to(self.device),
            condition.to(self.device) if condition is not None else None,
        )  # fmt: skip
        return per_sample_loss(prediction, target_of(schedule, latents, noise, timesteps)).mean()


def _odds(names: np.ndarray, target: dict[str, float], cohort: Cohort) -> dict[str, float]:
    """Odds that turn the mix of ``names`` (n,) into the target."""
    counts = {group: int((names == group).sum()) for group in target}
    absent = [group for group, share in target.items() if share > 0 and not counts[group]]
    if absent:
        raise UserError(f"{cohort.root}: no training image shows {absent[0]}, which the target has; give another --anchor-cohort")
    return {group: target[group] / counts[group] for group in target if counts[group]}
