"""What an alignment draws: prompts, their token states, noise by seed, and trajectories of the tuned and the untuned denoiser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import SchedulerMixin

from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.gradients import Predict
from evenhand.alignment.settings import AlignSettings
from evenhand.cohorts.cohort import Cohort, is_cohort
from evenhand.core.artifacts import is_file
from evenhand.core.errors import UserError
from evenhand.core.randomness import derive_seed, generator, torch_generator
from evenhand.engine.batching import rank_batches
from evenhand.models.chunks import images_at_once
from evenhand.models.denoise import guided_prediction, sampler, trajectory
from evenhand.models.pipelines import encode_prompts, warn_of_overlong
from evenhand.models.stages import Stage, unit_noise

_MOST_AT_ONCE = 50  # images without gradient, however small they are


def read_prompts(path: Path, within: str | None = None) -> tuple[list[str], PromptClasses]:
    """Prompts of a cohort's training split as they stand, or the lines of a text file; and their classes by the column ``within``.

    Raises:
        UserError: no such file, nothing in it, or no such column.
    """
    if is_cohort(path):
        cohort = Cohort.load(path)
        cohort = cohort.split("train") if len(cohort.split("train")) else cohort
        prompts = cohort.table["prompt"].astype(str).tolist()
        if prompts and within:
            return prompts, PromptClasses.by_column(cohort, within)
    elif is_file(path):
        if within:
            raise UserError(f"{path}: a text file has no column {within!r}; --within wants --prompts to be a cohort")
        try:
            prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise UserError(f"{path}: not UTF-8 text; --prompts wants a cohort or a text file with one prompt a line") from None
    else:
        raise UserError(f"{path}: no such cohort or file; --prompts wants a cohort or a text file with one prompt a line")
    if not prompts:
        raise UserError(f"{path}: no prompt in it; write one a line")
    return prompts, PromptClasses.one(prompts)


def stating(prompts: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Prompts that name a group of an attribute as a word: what they state is drawn, whatever the mix should be."""
    names = "|".join(re.escape(group) for names in groups.values() for group in names)
    words = re.compile(rf"(?<!\w)({names})(?!\w)", re.IGNORECASE)  # "<60" begins with no letter, so no word boundary is before it
    return [prompt for prompt in prompts if words.search(prompt)]


@dataclass(frozen=True)
class Sheet:
    """Some images to draw: prompts (n), their classes (n,), and unit noise (n, C, h, w) from a seed an image."""

    prompts: list[str]
    classes: np.ndarray
    noise: torch.Tensor


@dataclass(frozen=True)
class Drawing:
    """How one stage draws, and from which prompts."""

    stage: Stage
    prompts: list[str]
    classes: PromptClasses
    states: Mapping[str, torch.Tensor]
    settings: AlignSettings
    accelerator: Accelerator

    @classmethod
    def prepare(
        cls, stage: Stage, prompts: list[str], classes: PromptClasses, settings: AlignSettings, accelerator: Accelerator
    ) -> Drawing:
        """Encode every prompt once; warn of those that the tokenizer cuts."""
        if accelerator.is_main_process:
            warn_of_overlong(stage.pipeline, prompts)
        unique = sorted({"", *prompts})
        stage.pipeline.text_encoder.to(accelerator.device)
        states = torch.cat([encode_prompts(stage.pipeline, unique[i : i + 64]) for i in range(0, len(unique), 64)])
        return cls(stage, prompts, classes, dict(zip(unique, states, strict=True)), settings, accelerator)

    def sheet(self, purpose: str, round_: int, places: Sequence[int]) -> Sheet:
        """Images ``places`` of a purpose and round: prompt and noise of each depend on its place alone."""
        seed = derive_seed(self.settings.seed, "align", purpose, round_)
        prompts = [self.prompts[int(generator(seed, "prompt", place).integers(len(self.prompts)))] for place in places]
        draws = [torch_generator(seed, "noise", place) for place in places]
        codes = np.array([self.classes.codes[prompt] for prompt in prompts])
        return Sheet(prompts, codes, unit_noise(self.stage.shape, draws, self.accelerator.device))

    def solver(self) -> SchedulerMixin:
        """The solver that ``generate`` will draw with, fresh."""
        return sampler(self.stage.scheduler, self.settings.sampling.sampler, self.settings.sampling.timestep_spacing)

    def predictor(self, unet: torch.nn.Module, prompts: Sequence[str]) -> Predict:
        """What ``unet`` answers for these prompts, under classifier-free guidance."""
        text = torch.stack([self.states[prompt] for prompt in prompts])
        silent = self.states[""].expand_as(text)

        def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                # float32 between steps, whatever the denoiser computes in: solvers return what they are given
                return guided_prediction(unet, latents, timestep, text, silent, self.settings.sampling.guidance_scale).float()

        return predict

    def latents(self, unet: torch.nn.Module, sheet: Sheet, guidance_scale: float | None = None) -> torch.Tensor:
        """Clean latents (n, C, h, w), without gradient; ``guidance_scale`` is the settings' where none is given."""
        text = torch.stack([self.states[prompt] for prompt in sheet.prompts])
        sampling = self.settings.sampling
        with torch.no_grad(), self.accelerator.autocast():
            found = trajectory(
                unet, self.solver(), sheet.noise, text, self.states[""].expand_as(text),
                steps=sampling.steps, guidance_scale=guidance_scale or sampling.guidance_scale,
            )  # fmt: skip
        return found.float()

    def latent_batches(
        self, unet: torch.nn.Module, purpose: str, n: int, guidance_scale: float | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
        """This rank's part of ``n`` images: places and classes (b,), and latents (b, C, h, w)."""
        state = self.accelerator
        at_once = images_at_once(self.stage.side, state.device, _MOST_AT_ONCE)
        for places in rank_batches(n, at_once, state.process_index, state.num_processes):
            sheet = self.sheet(purpose, 0, places.tolist())
            yield places, sheet.classes, self.latents(unet, sheet, guidance_scale)

    def images(self, unet: torch.nn.Module, purpose: str, n: int) -> Iterator[tuple[np.ndarray, np.ndarray, torch.Tensor]]:
        """This rank's part of ``n`` images: places and classes (b,), and pixels (b, channels, H, W) in [0, 1]."""
        for places, classes, latents in self.latent_batches(unet, purpose, n):
            with torch.no_grad():
                pixels = self.stage.decode(latents)
            yield places, classes, pixels  # not within: whoever takes them has a say in gradients of its own

    def whole(self, pieces: list[tuple[np.ndarray, torch.Tensor]], n: int) -> torch.Tensor:
        """Rows that all ranks found, in the order of their places, (n, d), on the CPU and the same on every rank."""
        state = self.accelerator
        width = state.gather(torch.tensor(pieces[0][1].shape[1] if pieces else 0, device=state.device)).max()
        rows = torch.zeros(n, int(width), device=state.device)
        for places, values in pieces:
            rows[places] = values.float()
        return state.reduce(rows, "sum").cpu()
