"""Images whose ordinary diffusion loss tunes a model: its own from before, or real ones; drawn in the target mix.

A model that is taught its own images, reweighted, keeps drawing as it drew, but other shares: distillation of the model into itself. Each
image counts as it must for the mean reading of the guides to be the target, and otherwise as little unlike the others as can be. Which
group an image shows is decided in noise: own images may teach at the noisier levels alone (``early``), and the untuned model at the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.drawing import Drawing
from evenhand.alignment.guides import Guides
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.state import AlignState
from evenhand.alignment.targets import tilted_weights, total_variation
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import write_atomically
from evenhand.core.errors import UserError
from evenhand.core.progress import note, warn
from evenhand.core.randomness import generator, torch_generator
from evenhand.engine.batching import Batches, warn_of_epochs
from evenhand.engine.latents import LatentCache, latent_cache
from evenhand.engine.losses import per_sample_loss, target_of
from evenhand.models.denoise import predict
from evenhand.models.pipelines import training_scheduler
from evenhand.models.stages import Stage

OWN_FILE = "own-images.safetensors"
_ALLOWED = 0.005  # total variation between the target and what capped weights make, beyond which it is told
_MISSED = 0.02  # total variation between the target and what weights can make of a model's own images
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie as evenly as can be
_DROPOUT = 0.1  # of prompts, so that the answer without one, which guidance starts from, learns the mix as well


@dataclass(frozen=True)
class Exemplars:
    """Latents of n images with their prompts; every draw depends on iteration and place alone."""

    stage: Stage
    cache: LatentCache
    weights: np.ndarray | None  # (n,), sum to 1; None takes each once an epoch
    shown: np.ndarray  # (n, C K) what is read from each; nothing of one that is of no prompt's class
    facts: list[str]  # hashes and prompts of real images: what a resumption must find again
    purpose: str
    batch_size: int
    seed: int
    device: torch.device
    untuned: torch.nn.Module | None = None  # teaches at the lower noise levels
    early: float = 1.0  # part of the noise levels, from the noisiest, at which images teach

    @classmethod
    def real(
        cls, stage: Stage, cohort: Cohort, guides: Guides, classes: PromptClasses, target: np.ndarray, settings: AlignSettings,
        accelerator: Accelerator,
    ) -> Exemplars:  # fmt: skip
        """The cohort's training split, in the target mix by its own columns, else as guides read it; or in its own mix.

        Raises:
            UserError: the split is empty, or lacks a group that the target has.
        """
        images = cohort.split("train")
        if not len(images):
            raise UserError(f"{cohort.root}: the training split is empty; give another cohort")
        cache = latent_cache(stage, images, accelerator)
        shown = np.zeros((len(images), len(target)))
        if settings.real_mix == "target":
            groups = classes.within(images, guides.read(images), len(guides.joint))
            absent = [name for code, name in enumerate(classes.groups(guides)) if target[code] > 0 and not (groups == code).any()]
            if absent:
                raise UserError(f"{cohort.root}: no training image shows {absent[0]}, which the target has; give another cohort")
            shown[groups >= 0] = np.eye(len(target))[groups[groups >= 0]]
        read_as = shown.argmax(1)
        facts = [
            f"{sha256} {code} {prompt}" for sha256, code, prompt in zip(images.image_hashes(), read_as, images.table["prompt"], strict=True)
        ]
        weights, read = None, shown.any(axis=1)
        if read.any():
            weights = np.zeros(len(images))
            weights[read] = tilted_weights(shown[read], target, settings.weight_cap)
            if accelerator.is_main_process:
                tell_weights(weights[read], shown[read], target, classes.groups(guides), settings)
        return cls(stage, cache, weights, shown, facts, "real", settings.batch_size, settings.seed, accelerator.device)

    @classmethod
    def own(
        cls, drawing: Drawing, guides: Guides, state: AlignState, fingerprint: Mapping[str, str], accelerator: Accelerator
    ) -> Exemplars:
        """Images of the untuned model, without guidance: what it has learnt. They are kept in the run folder, for resumption.

        Raises:
            UserError: no weights make the target of them: too few show a group.
        """
        settings, target, n = state.settings, state.target, state.settings.own_images
        path, of = settings.out / OWN_FILE, json.dumps(fingerprint, sort_keys=True)
        if not _holds(path, of):
            drawn = drawing.latent_batches(state.untuned, "own", n, guidance_scale=1.0)
            rows = drawing.whole([(places, _read(guides, drawing, latents, classes)) for places, classes, latents in drawn], n)
            if accelerator.is_main_process:
                latents, shown = rows[:, : -len(target)].reshape(n, *drawing.stage.shape), rows[:, -len(target) :]
                # safetensors writes what lies in memory: a view of part of the rows would be written wrong
                arrays = {"latents": latents.contiguous().numpy(), "shown": shown.contiguous().numpy()}
                write_atomically(path, lambda partial: save_file(arrays, partial, metadata={"of": of}))
            accelerator.wait_for_everyone()
        arrays = load_file(path)
        shown = arrays["shown"].astype(np.float64)
        mix = tilted_weights(shown, target) @ shown  # without a cap: what no weights reach
        groups = drawing.classes.groups(guides)
        if total_variation(mix, target) > _MISSED:
            worst = int((target - mix).argmax())
            raise UserError(
                f"{settings.model}: however its own {n} images are weighed, {groups[worst]} is {mix[worst]:.2f} "
                f"of them by the guides, not {target[worst]:.2f}; draw more (--own-images, another --out), or tune it on real ones first"
            )
        weights = tilted_weights(shown, target, settings.weight_cap)
        if accelerator.is_main_process:
            tell_weights(weights, shown, target, groups, settings)
        prompts, codes = np.unique(drawing.sheet("own", 0, range(n)).prompts, return_inverse=True)
        text = torch.stack([drawing.states[prompt] for prompt in (*prompts.tolist(), "")]).float().cpu().numpy()
        cache = LatentCache(arrays["latents"], np.zeros((n, 1, 1, 1), np.float32), text, codes)
        return cls(
            drawing.stage, cache, weights, shown, [], "own", settings.batch_size, settings.seed, accelerator.device,
            state.untuned, settings.early,
        )  # fmt: skip

    def rows(self, iteration: int) -> np.ndarray:
        """Which images (batch_size,) an iteration learns from, group by group.

        Systematic sampling: every batch has the groups' shares to within one image. Drawn independently, the mix of the last batches, and
        with it that of the model, would wander about the target.
        """
        n = len(self.cache.mean)
        if self.weights is None:
            return Batches(n, self.batch_size, self.seed).at(iteration)
        draws = generator(self.seed, self.purpose, iteration)
        order = draws.permutation(n)
        order = order[np.argsort(self.shown[order].argmax(1), kind="stable")]
        ends = np.cumsum(self.weights[order])
        return order[np.searchsorted(ends / ends[-1], (np.arange(self.batch_size) + draws.random()) / self.batch_size, side="right")]

    def timesteps(self, iteration: int, steps: int) -> np.ndarray:
        """Noise levels (batch_size,) in [0, steps): a lattice that covers all of them in any run of places, so in each group alike."""
        start = generator(self.seed, self.purpose, "timesteps", iteration).random()
        return np.floor((start + _GOLDEN * self.partners(np.arange(self.batch_size))) % 1 * steps).astype(np.int64)

    def partners(self, places: np.ndarray) -> np.ndarray:
        """The place in the first half of a batch whose noise and noise level each place has: an image of another group, where two are even.

        Who shares noise with another group cannot be told from it by chance.
        """
        return places % max(1, self.batch_size // 2)

    def loss(self, unet: torch.nn.Module, iteration: int, places: np.ndarray) -> torch.Tensor:
        """Mean loss of this rank's ``places`` of the iteration's batch."""
        schedule = training_scheduler(self.stage)
        rows = self.rows(iteration)[places]
        mean, std = self.cache.latents(rows)
        draws = [torch_generator(self.seed, self.purpose, iteration, place) for place in places.tolist()]
        fresh = torch.stack([torch.randn(mean.shape[1:], generator=own) for own in draws])
        shared = [torch_generator(self.seed, self.purpose, "noise", iteration, place) for place in self.partners(places).tolist()]
        noise = torch.stack([torch.randn(mean.shape[1:], generator=own) for own in shared])
        steps = schedule.config.num_train_timesteps
        timesteps = torch.from_numpy(self.timesteps(iteration, steps)[places]).to(self.device)
        latents, noise = (mean + std * fresh).to(self.device), noise.to(self.device)
        condition = self.stage.training_condition(latents, draws)
        seen = (
            schedule.add_noise(latents, noise, timesteps), timesteps, self._prompts(rows, draws),
            condition.to(self.device) if condition is not None else None,
        )  # fmt: skip
        target = target_of(schedule, latents, noise, timesteps)
        if self.untuned is not None and self.early < 1:
            with torch.no_grad():
                late = timesteps < (1 - self.early) * steps
                target = torch.where(late[:, None, None, None], predict(self.untuned, *seen).to(target), target)
        return per_sample_loss(predict(unet, *seen), target).mean()

    def _prompts(self, rows: np.ndarray, draws: Sequence[torch.Generator]) -> torch.Tensor:
        """Token states of the rows' prompts, some of them dropped."""
        dropped = torch.stack([torch.rand((), generator=own) for own in draws]) < _DROPOUT
        return torch.where(dropped[:, None, None], self.cache.silent, self.cache.embeddings(rows)).to(self.device)


def tell_weights(weights: np.ndarray, shown: np.ndarray, target: np.ndarray, groups: Sequence[str], settings: AlignSettings) -> None:
    """Say how often images are learnt, and warn where few of them are learnt again and again, or the cap keeps them from the target.

    Args:
        weights: (n,), sum to 1.
        shown: (n, K) what is read from each.
        groups: names of the K.
    """
    raised, draws = weights * len(weights), settings.iterations * settings.batch_size
    part = raised @ shown / np.maximum(shown.sum(0), 1e-12)  # (K,) of the uniform weight, in the mean over a group's images
    epochs = draws / len(weights) * part
    present = [code for code in range(len(groups)) if shown[:, code].any()]
    told = [f"{groups[code]} {part[code]:.2g} times the uniform weight, {epochs[code]:.3g} epochs" for code in present]
    note(f"{len(weights)} images are learnt, each {draws / len(weights):.3g} times on average: " + "; ".join(told))
    warn_of_epochs(draws, weights, "give more images, fewer --iterations or a lower --weight-cap")
    mix = weights @ shown
    if raised.max() > settings.weight_cap * (1 - 1e-3) and total_variation(mix, target) > _ALLOWED:
        allowed = ", ".join(f"{group} {share:.3f} (target {wanted:.3f})" for group, share, wanted in zip(groups, mix, target, strict=True))
        cap = f"no image weighs more than {settings.weight_cap:g} times the uniform weight (--weight-cap)"
        warn(f"{cap}, and that allows the mix {allowed}; give more images of the rare group")


def _holds(path: Path, of: str) -> bool:
    """Whether the file is there, and of this model, these guides and prompts."""
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("of") == of
    except (OSError, SafetensorError):
        return False


def _read(guides: Guides, drawing: Drawing, latents: torch.Tensor, classes: np.ndarray) -> torch.Tensor:
    """Latents and the joint groups of their images, side by side (b, channels h w + C K)."""
    with torch.no_grad():
        shown = drawing.classes.joint(guides.probabilities(drawing.stage.decode(latents)), classes)
    return torch.cat([latents.flatten(1), shown], dim=1)
