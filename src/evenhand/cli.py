"""The command line: a function a command, no logic. Exit 0, 1 for a user's error in one line, 2 for wrong usage."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from evenhand.core.artifacts import is_disk_full
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.names import cut, unquoted
from evenhand.core.progress import console, warn
from evenhand.core.threads import choose_wait_policy

# Help texts must not wait for torch: each command imports what it runs.
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="markdown")
cohort_app = typer.Typer(no_args_is_help=True, help="Make, check and join cohorts: folders of images with one table.")
model_app = typer.Typer(no_args_is_help=True, help="Make a small model that needs no download.")
classifier_app = typer.Typer(no_args_is_help=True, help="Train classifiers that guide or judge.")
app.add_typer(cohort_app, name="cohort")
app.add_typer(model_app, name="model")
app.add_typer(classifier_app, name="classifier")

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; options given here come first.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Every random draw is keyed on it. [default: 0]")]
SpacingOption = Annotated[
    Literal["leading", "linspace", "trailing"] | None,
    typer.Option(
        "--timestep-spacing", help="Where solver steps lie in time. [default: as the model or its scheduler file says, else linspace]"
    ),
]
Names = Annotated[str | None, typer.Option("--prompt-attributes", help="Attributes that prompts state, by commas; 'none' states none.")]


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False) -> None:
    """Train, align and audit text-to-medical-image diffusion models so that every patient subgroup is served."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises to install torchvision, which is the trap doctor names
    if debug:
        os.environ["EVENHAND_DEBUG"] = "1"


def _first_rank() -> bool:
    """Whether this process speaks for all that accelerate has launched."""
    return os.environ.get("RANK", "0") == "0"


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return [] if text == "none" else _columns(text)


def _columns(text: str | None) -> list[str] | None:
    """Names between commas; one that holds a comma itself stands in double quotes."""
    if text is None:
        return None
    try:
        return [unquoted(name) for name in cut(text, ",") if name.strip()]
    except ValueError as fault:
        raise UserError(f"{text!r}: {fault}; write for example 'sex,\"Race, detailed\"'") from None


def _counts(title: str, cohort: Any) -> None:
    """Print a cohort's counts by group, and what limits it."""
    from evenhand.cohorts.checking import group_counts, notes_on

    counts = group_counts(cohort)
    table = Table(title=title, title_justify="left")
    for name in counts.columns:
        table.add_column(name, justify="left" if name in ("column", "group") else "right")
    for row in counts.itertuples(index=False):
        table.add_row(*map(escape, map(str, row)))
    console.print(table)
    for note in notes_on(cohort):
        console.print(f"[yellow]note[/]: {escape(note)}", highlight=False)


@app.command()
def quickstart(
    modality: Annotated[str | None, typer.Option(help="Phantom world: brain, chest, dermoscopy or fundus. [default: brain]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for everything it makes. [default: quickstart]")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """The whole story on phantoms: biased model, audit, alignment, audit, one report. No download, no GPU."""
    from evenhand.quickstart import QuickstartSettings, run_quickstart

    report = run_quickstart(QuickstartSettings.resolve(config, modality=modality, out=out, seed=seed))
    print(f"report: {report.resolve()}")


@cohort_app.command("import")
def cohort_import(
    source: Annotated[str, typer.Argument(help="brats18, chexpert, fairgenmed, ham10000, nih-cxr, roco or table.")],
    raw: Annotated[Path, typer.Argument(help="Folder of the raw data set (or the table file, for 'table').")],
    out: Annotated[Path, typer.Argument(help="The cohort to write.")],
    size: Annotated[int | None, typer.Option(help="Side in pixels. [default: the first image's shorter side, at most 512]")] = None,
    limit: Annotated[int | None, typer.Option(help="Import so many images at most.")] = None,
    skip_bad: Annotated[int | None, typer.Option(help="So many bad rows or images are left out and counted. [default: 0]")] = None,
    unknown: Annotated[Literal["keep", "drop"] | None, typer.Option(help="Rows with an unknown group. [default: keep]")] = None,
    prompt_attributes: Names = None,
    image_column: Annotated[str | None, typer.Option(help="table: column of image paths.")] = None,
    subject_column: Annotated[str | None, typer.Option(help="table: column of subject ids.")] = None,
    split_column: Annotated[str | None, typer.Option(help="table: column of train, val, test.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="table: column of prompts.")] = None,
    attributes: Annotated[str | None, typer.Option(help="Attribute columns, by commas. [default: the source's]")] = None,
    conditions: Annotated[str | None, typer.Option(help="Condition columns, by commas. [default: the source's]")] = None,
    uncertain: Annotated[
        Literal["zeros", "ones", "drop"] | None, typer.Option(help="chexpert: what the label -1 counts as. [default: zeros]")
    ] = None,
    demographics: Annotated[
        Path | None, typer.Option(help="chexpert: workbook of race and ethnicity. [default: RAW's CHEXPERT DEMO.xlsx]")
    ] = None,
    slices: Annotated[
        Literal["tumour", "brain", "all"] | None, typer.Option(help="brats18: which slices may be taken. [default: brain]")
    ] = None,
    slices_per_subject: Annotated[int | None, typer.Option(help="brats18: so many at most, evenly spaced. [default: 5]")] = None,
    sex_table: Annotated[Path | None, typer.Option(help="brats18: table of subject_id and sex.")] = None,
    name_mapping: Annotated[Path | None, typer.Option(help="brats18: name_mapping.csv of BraTS 2020, with --clinical.")] = None,
    clinical: Annotated[Path | None, typer.Option(help="brats18: TCGA's clinical table, with --name-mapping.")] = None,
    modality: Annotated[
        str | None, typer.Option(help="brats18: flair, t1, t1ce or t2 [default: flair]; table: what the images are.")
    ] = None,
    synthetic: Annotated[bool | None, typer.Option("--synthetic", help="table: images of a generator.")] = None,
    mode: Annotated[Literal["L", "RGB"] | None, typer.Option(help="Image mode. [default: the first image's]")] = None,
    fit: Annotated[
        Literal["crop", "pad"] | None, typer.Option(help="Images that are not square: cut from the centre, or black added. [default: crop]")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="LOW,HIGH: grey values that become black and white. [default: as declared, else the data's range]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="table: name of the cohort.")] = None,
    licence: Annotated[str | None, typer.Option(help="roco: licences to take, by commas; table: licence of the images.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of text tables. [default: UTF-8 or UTF-16, else cp1252 with a note]")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Import a raw data set into a cohort."""
    from evenhand.cohorts.sources.importing import ImportSettings, import_cohort

    settings = ImportSettings.resolve(
        config,
        size=size,
        limit=limit,
        skip_bad=skip_bad,
        unknown=unknown,
        prompt_attributes=_names(prompt_attributes),
        image_column=image_column,
        subject_column=subject_column,
        split_column=split_column,
        prompt_column=prompt_column,
        attributes=_columns(attributes),
        conditions=_columns(conditions),
        uncertain=uncertain,
        demographics=demographics,
        slices=slices,
        slices_per_subject=slices_per_subject,
        sex_table=sex_table,
        name_mapping=name_mapping,
        clinical=clinical,
        modality=modality,
        synthetic=synthetic,
        mode=mode,
        fit=fit,
        window=window,
        name=name,
        licence=licence,
        encoding=encoding,
        seed=seed,
    )
    _counts(f"{out}", import_cohort(source, raw, out, settings))


@cohort_app.command("phantom")
def cohort_phantom(
    modality: Annotated[str, typer.Argument(help="brain, chest, dermoscopy or fundus.")],
    out: Annotated[Path, typer.Argument(help="The cohort to write.")],
    n: Annotated[int, typer.Option("--n", help="Number of images.")],
    mix: Annotated[str | None, typer.Option(help="'sex=male:0.8,female:0.2'; see the README for joint mixes.")] = None,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 32,
    harder: Annotated[str | None, typer.Option(help="'sex=female:2': twice the nuisance variance for a group.")] = None,
    prompt_attributes: Names = None,
    seed: int = 0,
) -> None:
    """Synthetic anatomy with known truth: every claim can be checked exactly."""
    from evenhand.cohorts.phantoms.cohort import write_phantoms

    cohort = write_phantoms(modality, out, n=n, mix=mix, size=size, seed=seed, harder=harder, prompt_attributes=_names(prompt_attributes))
    _counts(f"{out}", cohort)


@cohort_app.command("check")
def cohort_check(path: Annotated[Path, typer.Argument(help="A cohort.")]) -> None:
    """List every fault with its row, and the counts by group."""
    from evenhand.cohorts.checking import check_cohort
    from evenhand.cohorts.cohort import Cohort

    report = check_cohort(path)
    if report.faults:
        for fault in report.faults:
            print(fault)
        raise UserError(f"{path}: {len(report.faults)} faults; import the data again, or mend the rows named above")
    _counts(f"{path}: no faults", Cohort.load(path))


@cohort_app.command("merge")
def cohort_merge(a: Path, b: Path, out: Path) -> None:
    """Join two cohorts into one."""
    from evenhand.cohorts.merging import merge_cohorts

    _counts(f"{out}", merge_cohorts(a, b, out))


@model_app.command("init")
def model_init(
    family: Annotated[str, typer.Argument(help="tiny-latent or tiny-imagen.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
    cohort: Annotated[Path, typer.Option(help="The cohort it is fitted on.")],
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Fit the text side on a cohort, and an autoencoder for tiny-latent: a complete pipeline at small size, still untrained."""
    from evenhand.models.tiny import TINY_FAMILIES

    if family not in TINY_FAMILIES:
        raise UserError(f"model init: unknown family {family!r}; {did_you_mean(family, TINY_FAMILIES)}")
    settings, init = TINY_FAMILIES[family]
    print(init(settings.resolve(config, cohort=cohort, out=out, seed=seed)))


@app.command()
def train(
    model: Annotated[str | None, typer.Option(help="Diffusers folder, run folder, or hub id.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="The cohort; its training split is used.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    stage: Annotated[str | None, typer.Option(help="Of a cascade: base or super-resolution. [default: base]")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="auto, uniform, inverse_frequency, group_dro, random_perturbation, bayesian_perturbation."),
    ] = None,
    form: Annotated[str | None, typer.Option(help="bayesian_perturbation: robust or reference. [default: robust]")] = None,
    window: Annotated[int | None, typer.Option(help="Reference form: steps between proposals. [default: 30]")] = None,
    exploitation: Annotated[float | None, typer.Option(help="Perturbation: what sigma keeps of itself a step. [default: 0.95]")] = None,
    sampling: Annotated[Literal["natural", "balanced"] | None, typer.Option(help="[default: natural]")] = None,
    tau: Annotated[float | None, typer.Option(help="Balanced sampling: odds (1/share)^tau. [default: 1]")] = None,
    attributes: Annotated[str | None, typer.Option(help="Attributes whose joint groups count, by commas. [default: all]")] = None,
    steps: Annotated[int | None, typer.Option(help="[default: 1000]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes. [default: 32]")] = None,
    accumulation: Annotated[int | None, typer.Option(help="Pieces a batch is computed in. [default: 1]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="[default: LoRA 1e-4, all weights 1e-5, small models of 'model init' 1e-3]")
    ] = None,
    schedule: Annotated[Literal["constant", "cosine"] | None, typer.Option(help="[default: constant]")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps. [default: 100 with the default rate of all weights, else 0]")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the weight average; 0 keeps none. [default: 0.9999]")] = None,
    min_snr: Annotated[float | None, typer.Option(help="Gamma of min-SNR weighting.")] = None,
    lora: Annotated[int | None, typer.Option(help="Train a LoRA of this rank instead of every weight.")] = None,
    gradient_checkpointing: Annotated[bool | None, typer.Option("--gradient-checkpointing", help="Less memory, more time.")] = None,
    precision: Annotated[Literal["auto", "no", "bf16", "fp16"] | None, typer.Option(help="[default: auto]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="[default: 200]")] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on where the run stopped.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Fine-tune a text-to-image model on a cohort. For many devices: accelerate launch -m evenhand train ..."""
    given = {key: value for key, value in locals().items() if key != "config"}
    given["attributes"] = _columns(attributes)
    from evenhand.training.loop import train as run
    from evenhand.training.settings import TrainSettings

    result = run(TrainSettings.resolve(config, **given))
    if result.interrupted:
        if _first_rank():
            print(f"interrupted at step {result.steps} and saved; go on with --resume", file=sys.stderr)
        raise typer.Exit(143)
    if _first_rank():
        print(f"{result.model}")


@classifier_app.command("train")
def classifier_train(
    cohort: Annotated[Path | None, typer.Option(help="The cohort.")] = None,
    target: Annotated[str | None, typer.Option(help="Attribute or condition to tell apart.")] = None,
    out: Annotated[Path | None, typer.Option(help="The classifier folder to write.")] = None,
    arch: Annotated[str | None, typer.Option(help="resnet, vit or efficientnet. [default: resnet]")] = None,
    epochs: Annotated[float | None, typer.Option(help="[default: 8]")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Train an image classifier, calibrate it on held-out subjects and print its held-out figures."""
    from evenhand.models.classifiers import ClassifierSettings, train_classifier

    settings = ClassifierSettings.resolve(config, cohort=cohort, target=target, out=out, arch=arch, epochs=epochs, seed=seed)
    classifier = train_classifier(settings)
    auc = "undefined" if classifier.auc is None else f"{classifier.auc:.3f}"
    print(f"{settings.out}: AUC {auc} on {classifier.facts['n']['test']} held-out images")


@app.command()
def align(
    model: Annotated[str | None, typer.Option(help="Diffusers folder, run folder, or hub id.")] = None,
    guide: Annotated[list[Path] | None, typer.Option(help="Classifier that guides; may be given several times.")] = None,
    held_out_guide: Annotated[
        list[Path] | None, typer.Option(help="Classifier that tells how far to go. [default: the last --guide of each attribute]")
    ] = None,
    judge: Annotated[
        list[Path] | None, typer.Option(help="Classifier that takes no part and checks on fresh seeds whether the target is reached.")
    ] = None,
    target: Annotated[str | None, typer.Option(help='A cohort, whose mix is used, or "sex=male:0.5,female:0.5".')] = None,
    prompts: Annotated[str | None, typer.Option(help="A cohort, or a text file with one prompt a line.")] = None,
    within: Annotated[str | None, typer.Option(help="Column of that cohort: the target holds within each of its values.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    form: Annotated[
        Literal["distill", "kl", "transport"] | None,
        typer.Option(help="Learn images in the target mix, or pull every batch towards it. [default: distill]"),
    ] = None,
    own_images: Annotated[int | None, typer.Option(help="Drawn by the model before it is tuned. [default: 1200; kl, transport: 0]")] = None,
    exemplars: Annotated[Path | None, typer.Option(help="A cohort to learn from instead, such as the model's own training images.")] = None,
    path: Annotated[
        Literal["adjusted", "truncated", "full"] | None, typer.Option(help="How gradient reaches the denoiser. [default: adjusted]")
    ] = None,
    carrying: Annotated[str | None, typer.Option(help="Solver steps with gradient: all, half, first:K, last:K.")] = None,
    solver_steps: Annotated[int | None, typer.Option(help="The mix moves with it. [default: what the model records, else 25]")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="The mix moves with it. [default: what the model records, else 3]")
    ] = None,
    timestep_spacing: SpacingOption = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images an iteration, over all processes. [default: 32; kl, transport: 24]")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="[default: 600; kl, transport: at most 60]")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="[default: LoRA 1e-4, all weights 1e-5, small models of 'model init' 1e-3; kl, transport: 2e-5]"),
    ] = None,
    weight_cap: Annotated[
        float | None, typer.Option(help="Largest sampling weight of an image, in parts of the uniform one. [default: 10]")
    ] = None,
    consistency: Annotated[float | None, typer.Option(help="Weight of CLIP-consistency. [default: 0; kl, transport: 1]")] = None,
    consistency_encoder: Annotated[list[Path] | None, typer.Option(help="CLIP or DINOv2 folder. [default: the model's own CLIP]")] = None,
    anchor: Annotated[float | None, typer.Option(help="Weight of real images, else own, in norms of the gradient. [default: 0]")] = None,
    anchor_cohort: Annotated[Path | None, typer.Option(help="Those real images. [default: the target, where it is a cohort]")] = None,
    lora: Annotated[int | None, typer.Option(help="Tune a LoRA of this rank instead of every weight.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest difference of a share from its target. [default: 0.05]")] = None,
    precision: Annotated[Literal["auto", "no", "bf16"] | None, typer.Option(help="[default: auto]")] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Go on where the run stopped.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Tune a model until what it draws has a target mix. For many devices: accelerate launch -m evenhand align ..."""
    given = {key: value for key, value in locals().items() if key != "config"}
    from evenhand.alignment.settings import AlignSettings
    from evenhand.alignment.tune import align as run

    result = run(AlignSettings.resolve(config, **given))
    if result.interrupted:
        if _first_rank():
            print(f"interrupted at iteration {result.iterations} and saved; go on with --resume", file=sys.stderr)
        raise typer.Exit(143)
    if _first_rank():
        if result.shortfall:
            warn(result.shortfall)
        console.print(result.verdict, markup=False)  # brackets are bounds
        print(f"{result.model}")


@app.command()
def generate(
    model: Annotated[str | None, typer.Option(help="Diffusers folder, run folder, or hub id.")] = None,
    out: Annotated[Path | None, typer.Option(help="The synthetic cohort to write.")] = None,
    like: Annotated[Path | None, typer.Option(help="Same joint mix and prompt templates as this cohort.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Table: n, and prompt or columns of the cohort given with --like.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Number of images, with --like.")] = None,
    prompt_attributes: Names = None,
    guidance_scale: Annotated[float | None, typer.Option(help="[default: what the model records, else 3]")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps. [default: what the model records, else 25]")] = None,
    sampler: Annotated[Literal["dpm++", "model"] | None, typer.Option(help="[default: what the model records, else dpm++]")] = None,
    timestep_spacing: SpacingOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Images drawn at once. [default: by their pixels, at most 50]")] = None,
    resume: Annotated[bool | None, typer.Option("--resume", help="Draw only what is missing.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Draw a synthetic cohort: a seed an image, provenance in cohort.json."""
    given = {key: value for key, value in locals().items() if key != "config"}
    given["prompt_attributes"] = _names(prompt_attributes)
    from evenhand.generation.generate import GenerateSettings
    from evenhand.generation.generate import generate as run

    settings = GenerateSettings.resolve(config, **given)
    cohort = run(settings)
    if _first_rank():
        _counts(f"{settings.out}", cohort)


@app.command()
def audit(
    real: Annotated[Path | None, typer.Option(help="Cohort of real images.")] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Cohort of generated images; several in turn, as of guidance scales.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="audit.json to write, audit.parquet beside it; then audit-2.json, ...")] = None,
    judge: Annotated[
        list[Path] | None, typer.Option(help="Classifier folder; several allowed. [default: trained on the real cohort]")
    ] = None,
    encoder: Annotated[list[Path] | None, typer.Option(help="Vision model folder; several allowed. [default: the judges]")] = None,
    target: Annotated[str | None, typer.Option(help="Mix to hold presence against. [default: the real cohort's]")] = None,
    labels: Annotated[Path | None, typer.Option(help="Table of generated images read by hand: image, and a column an attribute.")] = None,
    primary: Annotated[list[str] | None, typer.Option(help="Question declared beforehand, such as quality:race.")] = None,
    fail_on: Annotated[list[str] | None, typer.Option(help="Rule such as 'presence:sex<=0.05'; exit 3 where it is broken.")] = None,
    utility: Annotated[
        bool | None, typer.Option("--utility", help="Train classifiers on generated and on real images, test both on held-out real ones.")
    ] = None,
    force_judge: Annotated[bool | None, typer.Option("--force-judge", help="Allow a judge that guided the model's alignment.")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Compare two cohorts by subgroup: presence, quality, semantics, utility, copies."""
    from evenhand.audit.run import AuditSettings, audit_several

    given = synthetic or []
    settings = AuditSettings.resolve(
        config, real=real, synthetic=given[0] if given else None, out=out, judge=judge or None, encoder=encoder or None,
        target=target, labels=labels, primary=primary or None, fail_on=fail_on or None, utility=utility,
        force_judge=force_judge, seed=seed,
    )  # fmt: skip
    failed = False
    for path, result in audit_several(settings, given[1:]):
        print(f"{path}")
        for rule in result.rules:
            if rule.failed:
                print(f"failed: {rule.text}")
                failed = True
    if failed:
        raise typer.Exit(3)


@app.command()
def semantic(
    real: Annotated[Path | None, typer.Option(help="Cohort of real images: trained on in part, tested on in part.")] = None,
    synthetic: Annotated[Path | None, typer.Option(help="Cohort of generated images, all of them trained on.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Condition to classify; several allowed.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .json file to write, or a folder that gets semantic.json.")] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help="resnet, vit or efficientnet; several allowed. [default: vit, efficientnet]")
    ] = None,
    attributes: Annotated[str | None, typer.Option(help="Attributes to compare by, by commas. [default: all]")] = None,
    epochs: Annotated[float | None, typer.Option(help="[default: vit 50, efficientnet 10, as published]")] = None,
    config: Config = None,
    seed: Seed = None,
) -> None:
    """Train on generated images, test on real ones, by subgroup: semantic correlation, beside training on real images."""
    from evenhand.audit.correlation import SemanticSettings, semantic_correlation
    from evenhand.report.correlation import render

    settings = SemanticSettings.resolve(
        config, real=real, synthetic=synthetic, label=label or None, out=out, arch=arch or None,
        attributes=_columns(attributes), epochs=epochs, seed=seed,
    )  # fmt: skip
    result = semantic_correlation(settings)
    if _first_rank():
        console.print(render(result))
        print(f"{settings.file}")


@app.command()
def report(
    audits: Annotated[list[Path], typer.Argument(help="audit.json; several are set side by side, before and after.")],
    out: Annotated[Path, typer.Option(help="The report to write.")],
    format: Annotated[str, typer.Option(help="html, json, csv, markdown, model-card or data-card.")] = "html",
) -> None:
    """Turn audits into one self-contained HTML page, a table, or a Hugging Face card."""
    from evenhand.report.html import write_report

    write_report(audits, out, format)
    print(f"{out}")


@app.command()
def doctor() -> None:
    """Versions, devices, free disk, and known traps of this machine."""
    from evenhand.doctor import examine, render

    findings = examine()
    console.print(render(findings))
    if any(finding.level == "fault" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a user's error is one line and exit code 1; a traceback only with --debug."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # at import they advise to install torchvision, which would break them
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    choose_wait_policy()
    try:
        app()
    except UserError as error:
        _fail(str(error), error)
    except Exception as error:
        if is_disk_full(error):  # safetensors and SQLite raise errors of their own kind
            where = getattr(error, "filename", None) or "while writing"
            _fail(f"no space left on the disk ({where}); free some, then run again (with --resume where there is one)", error)
        raise


def _fail(message: str, error: BaseException) -> None:
    if os.environ.get("EVENHAND_DEBUG"):
        raise error
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
