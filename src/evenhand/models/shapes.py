"""Whether the components of a pipeline fit together, and are of a shape that is trained and drawn with here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin

from evenhand.core.artifacts import is_file, read_json
from evenhand.core.errors import UserError
from evenhand.models.denoise import sampler
from evenhand.models.libraries import LOAD_ERRORS, brief, quiet_libraries
from evenhand.models.schedules import SCHEDULER_FILE
from evenhand.models.text import token_states, tokenized

PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What a denoiser may be given beside noisy latents, a timestep and text; it would be left without.
_INPUTS = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "addition_embed_type": "added embeddings, as of SDXL",
    "encoder_hid_dim": "projected embeddings",
    "encoder_hid_dim_type": "projected embeddings",
    "time_cond_proj_dim": "the guidance scale, as latent consistency models",
}
_UNUSED = "StableDiffusionPipeline does not apply; give the autoencoder of a Stable Diffusion 1.x or 2.x"
_SHORTEST = 3  # tokens: a start, an end, and a word between
_UNLIMITED = 10**9  # transformers takes a number above it where none is given
_OTHER_CHANNELS = {9: "an inpainting network", 8: "an instruct-pix2pix network", 5: "a depth-to-image network", 7: "an upscaling network"}


def check_latent_model(folder: Path, parts: Mapping[str, Any]) -> None:
    """Raise where a pipeline with autoencoder is not of Stable Diffusion's shape.

    Raises:
        UserError: with the file, the setting, and what it must be.
    """
    vae = parts["vae"].config
    _check_autoencoder(folder / "vae" / "config.json", vae)
    _check_denoiser(folder / "unet" / "config.json", parts["unet"].config, vae.latent_channels)
    _check_text(folder, parts, ("unet",))
    check_scheduler(folder / "scheduler", parts["scheduler"])
    states = _tried_text(folder, parts)
    _try(folder, "unet", partial(_run_denoiser, parts["unet"], states))
    _try(folder, "vae", partial(_run_autoencoder, parts["vae"]))


def check_cascade(folder: Path, parts: Mapping[str, Any]) -> None:
    """The same of a cascade in pixels; that its channels and grids fit is checked by the pipeline itself.

    Raises:
        UserError: with the file, the setting, and what it must be.
    """
    for name in ("unet", "super_resolution_unet"):
        told = ("class_embed_type",) if name == "super_resolution_unet" else ()
        _check_inputs(folder / name / "config.json", parts[name].config, told)
    _check_text(folder, parts, ("unet", "super_resolution_unet"))
    for name in ("scheduler", "super_resolution_scheduler"):
        check_scheduler(folder / name, parts[name])
    states = _tried_text(folder, parts)
    for name in ("unet", "super_resolution_unet"):
        _try(folder, name, partial(_run_denoiser, parts[name], states))


def _tried_text(folder: Path, parts: Mapping[str, Any]) -> torch.Tensor:
    """Token states of the empty prompt."""
    return cast(torch.Tensor, _try(folder, "text_encoder", partial(token_states, parts["tokenizer"], parts["text_encoder"], [""])))


def _try(folder: Path, name: str, run: Callable[[], Any]) -> Any:
    """Run a component once, on the smallest input: a setting of another kind than the network's is only found so.

    Raises:
        UserError: it cannot be run.
    """
    try:
        with quiet_libraries(), torch.no_grad():
            return run()
    except UserError:
        raise
    except LOAD_ERRORS as error:
        raise UserError(
            f"{folder / name / 'config.json'}: the network cannot be run ({brief(error)}); restore the settings that it was saved with"
        ) from None


def _run_denoiser(unet: Any, states: torch.Tensor) -> None:
    side = 2 ** (len(unet.config.block_out_channels) - 1)
    level = None if unet.config.class_embed_type is None else torch.zeros(1)
    unet(torch.zeros(1, unet.config.in_channels, side, side), torch.tensor(1), encoder_hidden_states=states, class_labels=level)


def _run_autoencoder(vae: Any) -> None:
    side = 2 ** len(vae.config.block_out_channels)
    vae.decode(vae.encode(torch.zeros(1, vae.config.in_channels, side, side)).latent_dist.mean)


def _check_autoencoder(where: Path, config: Any) -> None:
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None)
    if not isinstance(scale, int | float) or not math.isfinite(scale) or scale <= 0:
        raise UserError(f"{where}: scaling_factor is {scale!r}; it must be a number above 0, such as 0.18215")
    moved = {name: getattr(config, name, None) for name in ("latents_mean", "latents_std")}
    if shift not in (None, 0):
        raise UserError(f"{where}: shift_factor is {shift!r}, which {_UNUSED}")
    for name, value in moved.items():
        if value is not None:
            raise UserError(f"{where}: {name} is given, which {_UNUSED}")
    if config.in_channels != config.out_channels or config.out_channels not in (1, 3):
        raise UserError(
            f"{where}: {config.in_channels} channels in and {config.out_channels} out; images have 1 (gray) or 3 (colour), in and out alike"
        )


def _check_denoiser(where: Path, config: Any, latent_channels: int) -> None:
    side, seen, made = config.sample_size, config.in_channels, config.out_channels
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise UserError(f"{where}: sample_size is {side!r}; write the latent's side, one number")
    if seen != latent_channels:
        kind = f" ({_OTHER_CHANNELS[seen]})" if seen in _OTHER_CHANNELS else ""
        raise UserError(f"{where}: in_channels is {seen}{kind}, latents have {latent_channels}; only text-to-image networks are supported")
    if made != latent_channels:
        kind = "it predicts variances too; " if made == 2 * latent_channels else ""
        raise UserError(
            f"{where}: out_channels is {made}, latents have {latent_channels}; {kind}only networks that predict as many are supported"
        )
    _check_inputs(where, config, ())


def _check_inputs(where: Path, config: Any, told: tuple[str, ...]) -> None:
    for name, what in _INPUTS.items():
        value = getattr(config, name, None)
        if value is not None and name not in told:
            raise UserError(f"{where}: {name} is {value!r}: the network wants {what}, and would be given none; give another model")
    if getattr(config, "attention_type", "default") != "default":
        raise UserError(f"{where}: attention_type is {config.attention_type!r}: the network wants boxes or images; give another model")


def _check_text(folder: Path, parts: Mapping[str, Any], denoisers: tuple[str, ...]) -> None:
    encoder, tokenizer, where = parts["text_encoder"], parts["tokenizer"], folder / "text_encoder" / "config.json"
    if type(encoder).__name__.endswith("WithProjection"):
        raise UserError(f"{where}: {type(encoder).__name__} gives one vector for each prompt, not token states; give a CLIPTextModel")
    width = getattr(encoder.config, "hidden_size", None)
    for name in denoisers:
        wanted = parts[name].config.cross_attention_dim
        if any(value != width for value in (wanted if isinstance(wanted, list | tuple) else [wanted])):
            raise UserError(
                f"{folder / name / 'config.json'}: cross_attention_dim is {wanted!r}, the text encoder's states are {width} wide; "
                "give the text encoder that the network was trained with"
            )
    words = max(tokenizer.get_vocab().values(), default=-1) + 1
    known = encoder.get_input_embeddings().num_embeddings
    if words > known:
        raise UserError(f"{folder / 'tokenizer'}: {words} tokens, the text encoder knows {known}; give the tokenizer that belongs to it")
    _check_limit(folder / "tokenizer", tokenizer, getattr(encoder.config, "max_position_embeddings", None))
    try:
        with quiet_libraries():
            words = int(tokenized(tokenizer, ["", "An image of a patient, 60 years."]).input_ids.max()) + 1
    except LOAD_ERRORS as error:
        raise UserError(f"{folder / 'tokenizer'}: gives no tokens ({brief(error)}); give the tokenizer that belongs to the model") from None
    if words > known:
        raise UserError(f"{folder / 'tokenizer'}: {words} tokens, the text encoder knows {known}; give the tokenizer that belongs to it")


def _check_limit(folder: Path, tokenizer: Any, places: int | None) -> None:
    limit, most = tokenizer.model_max_length, places or _UNLIMITED
    if isinstance(limit, int) and not isinstance(limit, bool) and _SHORTEST <= limit <= most:
        return
    told = "not given" if isinstance(limit, int) and limit >= _UNLIMITED else repr(limit)
    raise UserError(
        f"{folder / 'tokenizer_config.json'}: model_max_length is {told}, the text encoder has {places or 'any number of'} positions; "
        f"write {places or 'how many are meant'}"
    )


def check_scheduler(folder: Path, scheduler: SchedulerMixin) -> None:
    """Raise where a noise schedule is not one of a diffusion with betas, or asks what a network cannot predict.

    Raises:
        UserError: with the file, the setting, and what it must be.
    """
    where, config, name = folder / SCHEDULER_FILE, scheduler.config, type(scheduler).__name__
    if "Flow" in name or config.get("use_flow_sigmas"):
        raise UserError(f"{where}: {name} has a flow's noise schedule; Stable Diffusion 1.x and 2.x have betas, as of DDIMScheduler")
    if not hasattr(scheduler, "alphas_cumprod") or "beta_schedule" not in config:
        raise UserError(f"{where}: {name} has no betas; Stable Diffusion 1.x and 2.x have them, as of DDIMScheduler")
    _check_stated_class(where)
    predicted = config.get("prediction_type", "epsilon")
    if predicted not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type is {predicted!r}; it must be {', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}")
    if config.get("predict_epsilon") is False and predicted == "epsilon":
        raise UserError(f"{where}: predict_epsilon is false, which diffusers no longer reads; write prediction_type: sample")
    try:
        with quiet_libraries():
            schedule = DDPMScheduler.from_config(config)
            sampler(scheduler).set_timesteps(2)
    except LOAD_ERRORS as error:
        raise UserError(f"{where}: not a noise schedule that can be drawn with ({brief(error)}); mend the file") from None
    if not bool(((schedule.betas >= 0) & (schedule.betas <= 1)).all()):
        least, most = float(schedule.betas.min()), float(schedule.betas.max())
        raise UserError(f"{where}: betas are {least:g} to {most:g}; they must lie between 0 and 1")
    check_terminal_snr(where, schedule)


def _check_stated_class(where: Path) -> None:
    """Raise where the file is of a scheduler without betas: diffusers reads it as the class that the index gives, with default betas."""
    config = read_json(where) if is_file(where) else {}
    stated = config.get("_class_name") if isinstance(config, dict) else None
    kind = getattr(diffusers, stated, None) if isinstance(stated, str) else None
    if isinstance(kind, type) and issubclass(kind, SchedulerMixin) and "beta_schedule" not in inspect.signature(kind).parameters:
        raise UserError(f"{where}: of {stated}, which has no betas; copy the scheduler that belongs to the model, such as DDIMScheduler")


def check_terminal_snr(where: Path | str, schedule: DDPMScheduler) -> None:
    """Raise for epsilon prediction with zero terminal SNR: of pure noise the network can only say that it is noise, and no image follows.

    Raises:
        UserError: Lin et al. 2023, arXiv 2305.08891, section 3.2, with both ways out.
    """
    if float(schedule.alphas_cumprod[-1]) <= 0 and schedule.config.prediction_type == "epsilon":
        raise UserError(
            f"{where}: zero terminal SNR (rescale_betas_zero_snr) with prediction_type epsilon: no image follows from pure noise; "
            "write rescale_betas_zero_snr: false, or train with v_prediction"
        )
