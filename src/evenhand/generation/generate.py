"""A plan becomes a synthetic cohort: batched, one seed per image, resumable by sample id, spread over processes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from pydantic import Field

from evenhand.cohorts.cohort import (
    IMAGE_FOLDER,
    SCHEMA_FILE,
    TABLE_FILE,
    Cohort,
    CohortSchema,
    to_image,
    write_table,
)
from evenhand.core.artifacts import claim, provenance, read_json, sha256_file, write_bytes, write_json
from evenhand.core.config import WORD, Settings
from evenhand.core.errors import UserError
from evenhand.core.progress import track, warn
from evenhand.core.randomness import torch_generator
from evenhand.engine.batching import rank_batches
from evenhand.engine.devices import accelerator as new_accelerator
from evenhand.generation.plan import Plan, plan_from_file, plan_like
from evenhand.models.chunks import images_at_once
from evenhand.models.pipelines import (
    encode_prompts,
    image_geometry,
    load_pipeline,
    model_hash,
    model_provenance,
    stages_of,
    warn_of_overlong,
)
from evenhand.models.sampling import Sampling, Solver
from evenhand.models.schedules import Spacing
from evenhand.models.stages import draw
from evenhand.models.tensors import to_array

_PROGRESS_FILE = ".generation.json"
_MOST_AT_ONCE = 50  # images in a batch, however small they are


class GenerateSettings(Settings):
    """Settings of ``evenhand generate``."""

    model: str
    out: Path
    like: Path | None = None
    plan: Path | None = None
    n: int | None = Field(None, ge=1, description="with --like; default: as many as the cohort has")
    prompt_attributes: list[str] | None = Field(None, description="attributes that the prompts state; default all")
    guidance_scale: float | None = Field(None, ge=1, description="default: what the model records, else 3")
    steps: int | None = Field(None, ge=1, description="solver steps; default: what the model records, else 25")
    sampler: Solver | None = Field(None, description="default: what the model records, else dpm++")
    timestep_spacing: Spacing | None = Field(None, description="default: what the model records, else its scheduler file, else linspace")
    batch_size: int | None = Field(None, ge=1, description="images drawn at once; default: by their pixels, at most 50")
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"], WORD] = "auto"
    seed: int = 0
    resume: bool = False


@dataclass(frozen=True)
class _Sampling:
    """The model and what a batch needs of it."""

    pipeline: DiffusionPipeline
    settings: Sampling
    accelerator: Accelerator
    embeddings: dict[str, torch.Tensor]


def generate(settings: GenerateSettings) -> Cohort:
    """Draw every image of the plan and write the cohort ``settings.out``.

    Raises:
        UserError: bad plan or model, a folder in use, or a resume with other settings.
    """
    accelerator = new_accelerator(settings.precision)
    plan = _plan(settings)
    pipeline = load_pipeline(settings.model)
    settings = _resolved(settings, pipeline, accelerator)
    with ExitStack() as held:
        if accelerator.is_main_process:
            held.enter_context(claim(settings.out))
            _begin(settings, plan)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for note in plan.notes:
                warn(note)
            warn_of_overlong(pipeline, plan.table["prompt"].tolist())
        _draw_missing(settings, plan, pipeline, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not (settings.out / SCHEMA_FILE).exists():
            _finish(settings, plan, pipeline)
        accelerator.wait_for_everyone()
    return Cohort.load(settings.out)


def _resolved(settings: GenerateSettings, pipeline: DiffusionPipeline, accelerator: Accelerator) -> GenerateSettings:
    """The same settings with everything said that was not given: by the generation that is resumed, by the model, or by default."""
    note = settings.out / _PROGRESS_FILE
    began = read_json(note) if settings.resume and note.is_file() else {}
    names = ("steps", "guidance_scale", "sampler", "timestep_spacing", "batch_size")
    given = {name: began.get(name) if getattr(settings, name) is None else getattr(settings, name) for name in names}
    at_once = given.pop("batch_size") or images_at_once(image_geometry(pipeline)[0], accelerator.device, _MOST_AT_ONCE)
    return settings.model_copy(update={**asdict(Sampling.resolve(settings.model, **given)), "batch_size": at_once})


def _sampling(settings: GenerateSettings) -> Sampling:
    """Of resolved settings."""
    assert settings.steps and settings.guidance_scale and settings.sampler
    return Sampling(settings.steps, settings.guidance_scale, settings.sampler, settings.timestep_spacing)


def _plan(settings: GenerateSettings) -> Plan:
    like = Cohort.load(settings.like) if settings.like else None
    if settings.plan is not None:
        return plan_from_file(settings.plan, prompt_attributes=settings.prompt_attributes, like=like, seed=settings.seed)
    if like is None:
        raise UserError("nothing says what to generate; give --like COHORT or --plan FILE")
    return plan_like(like, settings.n or len(like), prompt_attributes=settings.prompt_attributes, seed=settings.seed)


def _begin(settings: GenerateSettings, plan: Plan) -> None:
    """Note what is being made, so that a resume with other settings is refused rather than mixed in."""
    facts = settings.model_dump(mode="json", exclude={"resume", "out", "model", "like", "plan"})  # those by content, not by path
    facts["model_sha256"] = model_hash(settings.model)
    facts["plan_sha256"] = hashlib.sha256(plan.table.to_csv(index=False).encode()).hexdigest()
    note = settings.out / _PROGRESS_FILE
    images = settings.out / IMAGE_FOLDER
    if note.is_file():
        if not settings.resume:
            raise UserError(f"{settings.out}: holds a generation already; go on with --resume, or choose another --out")
        for key, before in read_json(note).items():
            if facts.get(key) != before and key.endswith("_sha256"):
                what = key.removesuffix("_sha256")
                raise UserError(f"{settings.out}: the {what} has changed since this generation began; choose another --out")
            if facts.get(key) != before:
                raise UserError(
                    f"{settings.out}: --resume with {key} = {facts.get(key)!r}, but it began with {before!r}; choose another --out"
                )
        for partial in [*settings.out.glob(".*.tmp"), *images.glob(".*.tmp")]:
            partial.unlink()
    elif [file for file in settings.out.iterdir() if not file.name.startswith(".")]:
        raise UserError(f"{settings.out}: not empty; choose another --out")
    else:
        write_json(note, facts)
    images.mkdir(exist_ok=True)


def _image_name(sample_id: int) -> str:
    return f"{IMAGE_FOLDER}/{sample_id:07d}.png"


def _draw_missing(settings: GenerateSettings, plan: Plan, pipeline: DiffusionPipeline, accelerator: Accelerator) -> None:
    assert settings.batch_size
    mine = rank_batches(len(plan.table), settings.batch_size, accelerator.process_index, accelerator.num_processes)
    # A batch with a missing image is drawn whole: what is computed together stays the same, so a resumed image is the same to the bit.
    todo = [rows for rows in mine if not all((settings.out / _image_name(i)).is_file() for i in rows)]
    if not todo:
        return
    pipeline.to(accelerator.device)
    prompts = sorted({"", *plan.table["prompt"]})
    states = torch.cat([encode_prompts(pipeline, prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
    sampling = _Sampling(pipeline, _sampling(settings), accelerator, dict(zip(prompts, states, strict=True)))
    with track("generate", len(mine), done=len(mine) - len(todo), quiet=not accelerator.is_main_process) as bar:
        for rows in todo:
            _write_images(settings.out, rows, _draw(sampling, plan, rows))
            bar.advance()


@torch.no_grad()
def _draw(sampling: _Sampling, plan: Plan, rows: np.ndarray) -> np.ndarray:
    """Images (n, H, W) or (n, H, W, 3) in [0, 1] of some rows of the plan."""
    part = plan.table.iloc[rows]
    text = torch.stack([sampling.embeddings[prompt] for prompt in part["prompt"]])
    silent = sampling.embeddings[""].expand_as(text)
    settings = sampling.settings
    with sampling.accelerator.autocast():
        pixels = draw(
            list(stages_of(sampling.pipeline).values()),
            text,
            silent,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            generators=[torch_generator(int(seed), "noise") for seed in part["seed"]],
            name=settings.sampler,
            spacing=settings.timestep_spacing,
        )
    return to_array(pixels)


def _write_images(out: Path, rows: Iterable[int], images: np.ndarray) -> None:
    for sample_id, image in zip(rows, images, strict=True):
        buffer = io.BytesIO()
        to_image(image).save(buffer, format="PNG")
        write_bytes(out / _image_name(sample_id), buffer.getvalue())


def _finish(settings: GenerateSettings, plan: Plan, pipeline: DiffusionPipeline) -> None:
    side, mode = image_geometry(pipeline)
    table = plan.table.copy()
    table.insert(0, "image", [_image_name(i) for i in table.pop("sample_id")])
    table.insert(1, "subject_id", [Path(name).stem for name in table["image"]])  # every synthetic image is a subject of its own
    table.insert(2, "split", "test")
    table["sha256"] = [sha256_file(settings.out / name) for name in table["image"]]
    hash_ = model_hash(settings.model)
    table["guidance_scale"], table["steps"], table["model"] = settings.guidance_scale, settings.steps, hash_
    schema = CohortSchema(
        name=settings.out.name,
        modality=plan.modality,
        attributes={name: list(groups) for name, groups in plan.attributes.items()},
        conditions={name: list(values) for name, values in plan.conditions.items()},
        image_size=side,
        image_mode="L" if mode == "L" else "RGB",
        synthetic=True,
        source=f"model {settings.model}",
        licence="as the model's training data",
        made=provenance(
            settings=settings.model_dump(mode="json"),
            model_sha256=hash_,
            model_provenance=model_provenance(settings.model),
            notes=list(plan.notes),
        ),
    )
    write_table(settings.out / TABLE_FILE, table)
    write_json(settings.out / SCHEMA_FILE, schema.model_dump())
