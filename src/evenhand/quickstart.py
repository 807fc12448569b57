"""The whole story on phantoms, from nothing: a cohort with a rare group, a biased model, an audit, an alignment, an audit, a report.

Each chapter leaves a folder; run again, it goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import find_modality, write_phantoms
from evenhand.core.artifacts import claim, write_json
from evenhand.core.config import Settings
from evenhand.core.errors import UserError
from evenhand.core.progress import console
from evenhand.engine.runs import CONFIG_FILE
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.report.html import write_report
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

TRAIN_RATE = 1e-3


class QuickstartSettings(Settings):
    """Sizes of the story; the defaults take some minutes on two cores."""

    modality: str = "brain"
    out: Path = Path("quickstart")
    majority: float = Field(0.8, gt=0, lt=1, description="share of the first group of the first attribute")
    images: int = Field(3000, ge=100)
    size: int = 32
    clip_steps: int = Field(150, ge=0)
    autoencoder_steps: int = Field(300, ge=0)
    train_steps: int = Field(1500, ge=1)
    train_batch: int = Field(32, ge=1)
    generated: int = Field(1000, ge=10)
    solver_steps: int = Field(25, ge=1)
    guidance_scale: float = Field(1.0, ge=1, description="above 1 the larger group grows")
    judge_epochs: float = Field(3, gt=0)
    guide_images: int = Field(600, ge=20, description="of each of two cohorts that guides are trained on")
    guide_steps: int = Field(150, ge=1)
    align_form: Literal["distill", "kl", "transport"] = "distill"
    align_iterations: int = Field(300, ge=1)
    validation_images: int = Field(400, ge=20)
    seed: int = 0


def run_quickstart(settings: QuickstartSettings) -> Path:
    """Tell the story; returns the report's path.

    Raises:
        UserError: unknown modality, or a folder in use.
    """
    find_modality(settings.modality)
    out = settings.out
    with claim(out):
        settings.save(out / "quickstart.yaml")
        _cohort(settings, out / "real")
        _model(settings, out)
        _say(f"3. {settings.generated} generated images: same conditions as the cohort, no word of any attribute")
        _generated(settings, out, "run", "generated")
        _say("4. the audit: who appears, how good the images are by subgroup, whether they show what was asked")
        judges = _audited(settings, out, "generated", "audit.json")
        _aligned(settings, out)
        _say(f"6. {settings.generated} images of the aligned model from the same seeds, and their audit")
        _generated(settings, out, "aligned", "generated-aligned")
        _audited(settings, out, "generated-aligned", "audit-aligned.json", judges)
        return write_report([out / "audit.json", out / "audit-aligned.json"], out / "report.html")


def _first_attribute(settings: QuickstartSettings) -> tuple[str, list[str]]:
    attribute, groups = next(iter(MODALITIES[settings.modality].attributes.items()))
    return attribute, list(groups)


def _equal_shares(settings: QuickstartSettings) -> str:
    """The target mix: all groups of the first attribute alike."""
    attribute, groups = _first_attribute(settings)
    return f"{attribute}=" + ",".join(f"{group}:{1 / len(groups):.6g}" for group in groups)


def _cohort(settings: QuickstartSettings, path: Path) -> None:
    attribute, groups = _first_attribute(settings)
    rest = (1 - settings.majority) / (len(groups) - 1)
    shares = {group: settings.majority if place == 0 else rest for place, group in enumerate(groups)}
    mix = f"{attribute}=" + ",".join(f"{group}:{share:.6f}" for group, share in shares.items())
    _say(f"1. {settings.images} {settings.modality} phantoms, {mix}; prompts silent on every attribute")
    if not (path / SCHEMA_FILE).exists():
        write_phantoms(
            settings.modality, path, n=settings.images, mix=mix, size=settings.size, seed=settings.seed, prompt_attributes=["none"]
        )


def _model(settings: QuickstartSettings, out: Path) -> None:
    _say("2. a small Stable Diffusion model: tokenizer, CLIP and autoencoder fitted on the cohort, then the denoiser trained")
    if not (out / "initial").exists():
        init_tiny_latent(
            TinySettings(
                cohort=out / "real",
                out=out / "initial",
                clip_steps=settings.clip_steps,
                autoencoder_steps=settings.autoencoder_steps,
                seed=settings.seed,
            )
        )
    if not (out / "run" / "model").exists():
        train(
            TrainSettings(
                model=str(out / "initial"),
                cohort=out / "real",
                out=out / "run",
                steps=settings.train_steps,
                batch_size=settings.train_batch,
                learning_rate=TRAIN_RATE,
                warmup=min(100, settings.train_steps),
                schedule="cosine",
                ema=0.995,
                seed=settings.seed,
                resume=(out / "run" / "config.yaml").exists(),
            )
        )


def _generated(settings: QuickstartSettings, out: Path, model: str, name: str) -> None:
    """Draw with a model, and tell what the oracle sees."""
    cohort = generate(
        GenerateSettings(
            model=str(out / model),
            out=out / name,
            like=out / "real",
            n=settings.generated,
            prompt_attributes=["none"],
            guidance_scale=settings.guidance_scale,
            steps=settings.solver_steps,
            seed=settings.seed,
            resume=(out / name).exists(),
        )
    )
    facts = oracle_facts(settings.modality, Cohort.load(out / "real"), cohort)
    write_json(out / f"oracle-{name}.json", facts)
    for attribute, groups in facts["shares"].items():
        parts = [f"{group} {share['generated']:.1%} (training cohort {share['training']:.1%})" for group, share in groups.items()]
        _say(f"   oracle: {attribute}: " + ", ".join(parts))
    follows = ", ".join(f"{attribute} follows the prompt in {share:.1%}" for attribute, share in facts["follows"].items())
    _say(f"   oracle: {facts['valid']:.1%} of the images are valid; {follows}")


def _audited(settings: QuickstartSettings, out: Path, name: str, result: str, judges: list[Path] | None = None) -> list[Path]:
    """Audit a generated cohort; returns its judges, so that before and after are read by the same ones."""
    audited = audit_cohorts(
        AuditSettings(
            real=out / "real",
            synthetic=out / name,
            out=out / result,
            judge=judges,
            target=_equal_shares(settings),
            judge_epochs=settings.judge_epochs,
            seed=settings.seed,
        )
    )
    return [Path(judge.path) for judge in audited.judges]


def _aligned(settings: QuickstartSettings, out: Path) -> None:
    """Two guides on subjects of their own, then the tuning."""
    attribute, target = _first_attribute(settings)[0], _equal_shares(settings)
    _say(
        f"5. the alignment to {target}: the model learns its images in that mix, a classifier tells how far to go; the judge takes no part"
    )
    guides = [out / "guides" / name for name in ("guide", "held-out")]
    for place, guide in enumerate(guides, start=1):
        cohort = out / "guides" / f"{guide.name}-cohort"
        if not (cohort / SCHEMA_FILE).exists():
            write_phantoms(settings.modality, cohort, n=settings.guide_images, size=settings.size, seed=settings.seed + 1000 * place)
        if not guide.exists():
            train_classifier(
                ClassifierSettings(cohort=cohort, target=attribute, out=guide, steps=settings.guide_steps, seed=settings.seed + place)
            )
    if not (out / "aligned" / "model").exists():
        result = align(
            AlignSettings(
                model=str(out / "run"),
                guide=guides[:1],
                held_out_guide=guides[1:],
                target=target,
                prompts=str(out / "real"),
                out=out / "aligned",
                form=settings.align_form,
                solver_steps=settings.solver_steps,
                guidance_scale=settings.guidance_scale,
                iterations=settings.align_iterations,
                **({"exemplars": out / "real", "learning_rate": TRAIN_RATE} if settings.align_form == "distill" else {}),
                validation_images=settings.validation_images,
                seed=settings.seed,
                resume=(out / "aligned" / CONFIG_FILE).exists(),
            )
        )
        if result.interrupted:
            raise UserError(f"{out}: interrupted and saved; the same command goes on")
        where = f"iteration {result.kept} of {result.iterations}, scale {result.scale:.2f}"
        _say(f"   total variation from the target {result.distance:.3f} at {where}")


def oracle_facts(modality: str, real: Cohort, synthetic: Cohort) -> dict[str, Any]:
    """What the phantoms' exact oracle says of a generated cohort: a check that real data never allow.

    Shares are among valid images; ``follows`` is the share of images that show the condition that was asked for, invalid ones counted
    as misses.
    """
    oracle = MODALITIES[modality].oracle(synthetic.pixels())
    valid = oracle["valid"].to_numpy(dtype=bool)
    facts: dict[str, Any] = {"n": len(synthetic), "valid": float(valid.mean()), "shares": {}, "follows": {}}
    for name in (column for column in oracle.columns if column != "valid"):
        if name in real.schema.attributes:
            facts["shares"][name] = {
                group: {"training": float((real.table[name] == group).mean()), "generated": float((oracle[name][valid] == group).mean())}
                for group in real.schema.attributes[name]
            }
        else:
            shown = oracle[name].to_numpy() == synthetic.table[name].to_numpy()
            facts["follows"][name] = float((shown & valid).mean())
    return facts


def _say(line: str) -> None:
    console.print(line, highlight=False)
