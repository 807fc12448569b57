"""Does a model draw the target mix after alignment, and at what cost? Every recipe from one model, judged by who did not guide.

    python benchmarks/alignment.py --work runs/alignment --recipes default no-consistency --seeds 0 1 2 3 4

Brain phantoms, 80 % male; prompts are silent on sex. A seed is a world of its own: cohort, model, guides, held-out guide, judge. Shares are
those of the phantoms' exact oracle and of a judge corrected for its errors. Quality is the Fréchet distance to real images drawn in the
same mix as the generated ones, so that a better mix is not taken for better images, and the kernel distance within each sex. What is
done is kept in the work folder; the script may be stopped, run again with more recipes or seeds, and run side by side with others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import JOINT, RESULTS, with_joint, write_result
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.audit.fidelity import frechet_distance, kernel_distance
from evenhand.audit.representation import estimate_mix
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import claim, read_json, write_atomically, write_json, write_text
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

BASE_STEPS, BATCH = 1500, 32
SOLVER_STEPS = 20
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
TARGET = "sex=male:0.5,female:0.5"

# changes to the default alignment; "exemplars" and "anchor_cohort" name cohorts of the seed's world, "guide" classifiers
RECIPES: dict[str, dict[str, Any]] = {
    "before": {},
    "default": {},
    "few-own-images": {"own_images": 300},
    "all-noise-levels": {"early": 1.0},
    "lora-8": {"lora": 8, "learning_rate": 1e-3},
    "source": {"exemplars": "source-silent"},
    "target-fine-tuned": {"exemplars": "small-target", "real_mix": "own"},
    "kl": {"form": "kl"},
    "kl-certain": {"form": "kl", "confidence": 1.0},
    "kl-undamped": {"form": "kl", "damping": 0},
    "kl-no-consistency": {"form": "kl", "consistency": 0},
    "kl-all-steps": {"form": "kl", "carrying": "all"},
    "kl-last-half": {"form": "kl", "carrying": "last:10"},
    "kl-truncated-2": {"form": "kl", "path": "truncated"},
    "kl-full": {"form": "kl", "path": "full"},
    "kl-own-anchor": {"form": "kl", "own_images": 1200, "anchor": 1.0},
    "kl-source-anchor": {"form": "kl", "anchor": 1.0, "anchor_cohort": "source"},
    "transport": {"form": "transport"},
    "trap": {
        "form": "kl",
        "path": "truncated",
        "carrying": "last:1",
        "consistency": 0,
        "confidence": 1.0,
        "learning_rate": 1e-4,
        "ema": 0.0,
        "damping": 0,
        "guide": ["plain"],
    },
}
FIGURES = {
    "oracle_male": "male, oracle", "judge_male": "male, judge", "valid": "valid", "follows": "tumour follows", "matched_fd": "matched FD",
    "kid_male": "KID male", "kid_female": "KID female", "distance": "TV, held-out guide", "gradient_share": "compute",
}  # fmt: skip


def main() -> None:
    """Run what is missing, then write JSON and a table of all runs in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=1000, help="generated to measure a model")
    options = parser.parse_args()
    for seed in options.seeds:
        world = options.work / f"seed-{seed}"
        world.mkdir(parents=True, exist_ok=True)
        with claim(world / "base", wait=True):
            _prepare(world, seed)
        for recipe in options.recipes:
            _run(world, recipe, seed, options.images)
    found = _found(options.work)
    write_result(
        "alignment", {"target": TARGET, "recipes": RECIPES, "runs": found}, seeds=sorted({int(s) for r in found.values() for s in r})
    )
    write_text(RESULTS / "alignment.md", _table(found))
    if "lora-8" in found:
        _plot_scales(found["lora-8"], RESULTS.parents[1] / "docs" / "images" / "alignment_lora_scale.png")
    print(_table(found))


def _prepare(world: Path, seed: int) -> None:
    """Cohorts, the biased model, and classifiers that share no subject."""
    made = {
        "source": {"n": 3000, "mix": "sex=male:0.8,female:0.2", "seed": 10 * seed, "prompt_attributes": ["none"]},
        "small-target": {"n": 400, "mix": TARGET, "seed": 10 * seed + 1, "prompt_attributes": ["none"]},
        "eval": {"n": 4000, "mix": TARGET, "seed": 10 * seed + 2, "prompt_attributes": ["none"]},
        **{
            name: {"n": 800, "seed": 10 * seed + 3 + place}
            for place, name in enumerate(("guide-0", "guide-1", "held-out", "judge", "encoder"))
        },
    }
    for name, settings in made.items():
        if not (world / "cohorts" / name / SCHEMA_FILE).exists():
            (world / "cohorts").mkdir(exist_ok=True)
            write_phantoms("brain", world / "cohorts" / name, size=32, **settings)  # type: ignore[arg-type]
    _without_sex(Cohort.load(world / "cohorts" / "source"), world / "cohorts" / "source-silent")
    _classifiers(world, seed)
    source = world / "cohorts" / "source"
    if not (world / "base" / "initial").exists():
        init_tiny_latent(TinySettings(cohort=source, out=world / "base" / "initial", seed=seed))
    if not (world / "base" / "run" / "model").exists():
        run = world / "base" / "run"
        train(
            TrainSettings(
                model=str(world / "base" / "initial"), cohort=source, out=run, steps=BASE_STEPS, batch_size=BATCH, learning_rate=1e-3,
                warmup=100, schedule="cosine", ema=0.995, seed=seed, resume=(run / "config.yaml").exists(),
            )
        )  # fmt: skip


def _without_sex(cohort: Cohort, out: Path) -> None:
    """The cohort as a hospital may have it: of whom an image is, only a guide can say."""
    if not (out / SCHEMA_FILE).exists():
        attributes = {name: groups for name, groups in cohort.schema.attributes.items() if name != "sex"}
        Cohort(cohort.schema.model_copy(update={"attributes": attributes}), cohort.table.drop(columns="sex"), cohort.root).save(out)


def _classifiers(world: Path, seed: int) -> None:
    """Guides and held-out guide of sex, a judge of another architecture, an encoder of all labels; the trap's guide is not augmented."""
    plans: dict[str, dict[str, Any]] = {
        "guide-0": {}, "guide-1": {}, "held-out": {}, "plain": {"augment": False, "cohort": "guide-0"},
        "judge": {"arch": "vit", "steps": 500},
    }  # fmt: skip
    for place, (name, changes) in enumerate(plans.items()):
        if not (world / "classifiers" / name).exists():
            cohort = world / "cohorts" / changes.get("cohort", name)
            rest = {key: value for key, value in changes.items() if key != "cohort"}
            out = world / "classifiers" / name
            train_classifier(ClassifierSettings(cohort=cohort, target="sex", out=out, seed=10 * seed + place, **{"steps": 200, **rest}))
    if not (world / "classifiers" / "encoder").exists():
        with_joint(Cohort.load(world / "cohorts" / "encoder")).save(world / "cohorts" / "labelled")
        settings = ClassifierSettings(cohort=world / "cohorts" / "labelled", target=JOINT, out=world / "classifiers" / "encoder", steps=300)
        train_classifier(settings)


def _run(world: Path, recipe: str, seed: int, images: int) -> None:
    """One recipe, unless it is there."""
    note = world / "found" / f"{recipe}.json"
    if note.exists():
        return
    note.parent.mkdir(exist_ok=True)
    model, facts = world / "base" / "run", dict[str, Any]()
    if recipe != "before":
        changes = dict(RECIPES[recipe])
        guides = [world / "classifiers" / name for name in changes.pop("guide", ["guide-0", "guide-1"])]
        for key in ("exemplars", "anchor_cohort"):
            if key in changes:
                changes[key] = world / "cohorts" / changes[key]
        model, start = world / "runs" / recipe, time.process_time()
        result = align(
            AlignSettings(
                model=str(world / "base" / "run"), guide=guides, held_out_guide=[world / "classifiers" / "held-out"], target=TARGET,
                prompts=str(world / "cohorts" / "source"), out=model, solver_steps=SOLVER_STEPS, seed=seed,
                resume=(model / "config.yaml").exists(), **changes,
            )
        )  # fmt: skip
        if result.interrupted:
            raise SystemExit("interrupted and saved; the same command goes on")
        settings = AlignSettings.model_validate(
            {"model": "", "guide": ["."], "target": "", "prompts": "", "out": ".", **RECIPES[recipe]} | changes
        )
        facts = {
            "iterations": result.iterations, "kept": result.kept, "distance": result.distance, "certified": result.certified,
            "reached": result.reached, "seconds": time.process_time() - start, "gradient_share": _compute(settings, result.iterations),
        }  # fmt: skip
    if "lora" in RECIPES[recipe]:
        facts["male_by_scale"] = {scale: _male_at(world, model, scale, seed) for scale in SCALES}
    write_json(note, {**facts, **_measured(world, _drawn(model, world / "drawn" / recipe, world, n=images, seed=900 + seed))})


def _male_at(world: Path, run: Path, scale: float, seed: int) -> float:
    """The oracle's share of men when the LoRA, as plain diffusers loads it, is added to the untuned model at this scale."""
    folder = run / f"scale-{scale:g}"
    if not folder.exists():
        pipeline = StableDiffusionPipeline.from_pretrained(world / "base" / "run" / "model")
        pipeline.load_lora_weights(run / "lora")
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
        pipeline.save_pretrained(folder)
    made = _drawn(folder, world / "drawn" / f"{run.name}-{scale:g}", world, n=300, seed=700 + seed)
    seen = MODALITIES["brain"].oracle(made.pixels())
    return float((seen["sex"][seen["valid"].to_numpy(dtype=bool)] == "male").mean())


def _plot_scales(runs: Mapping[str, Any], path: Path) -> None:
    """Share of men over the scale of the LoRA, a line a seed."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for seed, run in runs.items():
        axes.plot(SCALES, [run["male_by_scale"][str(scale)] for scale in SCALES], marker="o", label=f"seed {seed}")
    axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1)
    axes.set(xlabel="scale of the LoRA", ylabel="share of men (oracle)", ylim=(0, 1))
    axes.legend(frameon=False)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


def _compute(settings: AlignSettings, iterations: int) -> float:
    """Denoiser passes of the tuning, in those of the base training; a backward pass counts as two, validation is not in it."""
    learning, carrying = 3 * settings.batch_size, 3 * len(settings.carrying_steps)
    if settings.form == "distill":
        taught = settings.early < 1 and settings.draws_own  # a pass of the untuned model
        one = learning * (1 + bool(settings.anchor)) + (settings.batch_size if taught else 0)
    else:
        drawing = settings.solver_steps * (2 if settings.consistency else 1)  # tuned and untuned
        one = settings.batch_size * (drawing + carrying) + (learning if settings.anchor else 0)
    own = settings.own_images if settings.draws_own else 0
    return (own * settings.solver_steps + iterations * one) / (BASE_STEPS * BATCH * 3)


def _drawn(model: Path, out: Path, world: Path, n: int, seed: int) -> Cohort:
    out.parent.mkdir(parents=True, exist_ok=True)
    return generate(
        GenerateSettings(
            model=str(model), out=out, like=world / "cohorts" / "source", n=n, prompt_attributes=["none"], guidance_scale=1.0,
            steps=SOLVER_STEPS, seed=seed, resume=out.exists(),
        )
    )  # fmt: skip


def _measured(world: Path, made: Cohort) -> dict[str, Any]:
    """Shares by oracle and judge, prompt following, quality at matched mix and within each sex."""
    seen = MODALITIES["brain"].oracle(made.pixels())
    valid = seen["valid"].to_numpy(dtype=bool)
    shown = seen["sex"].to_numpy()
    real, encoder = Cohort.load(world / "cohorts" / "eval"), Encoder.load(world / "classifiers" / "encoder")
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)
    sexes = real.table["sex"].to_numpy()
    share = float((shown[valid] == "male").mean())
    distances = [frechet_distance(there[rows], here[valid]) for rows in (_matched(sexes, share, repeat) for repeat in range(5))]
    kid = {
        f"kid_{sex}": kernel_distance(there[sexes == sex][:1000], here[valid & (shown == sex)]).value
        for sex in ("male", "female")
        if (valid & (shown == sex)).sum() > 20
    }
    return {
        "n": len(made), "valid": float(valid.mean()), "oracle_male": share, **_judged(world, made), **kid,
        "matched_fd": float(np.mean(distances)),
        "follows": float(((seen["tumour"].to_numpy() == made.table["tumour"].to_numpy()) & valid).mean()),
        "blurred_kid": _blurred(encoder, real, there),
    }  # fmt: skip


def _matched(sexes: np.ndarray, male: float, repeat: int) -> np.ndarray:
    """Random real rows with a share ``male`` of men, as many as there are for it."""
    rows = {sex: generator(repeat, "matched", sex).permutation(np.flatnonzero(sexes == sex)) for sex in ("male", "female")}
    n = int(min(len(rows["male"]) / max(male, 1e-9), len(rows["female"]) / max(1 - male, 1e-9)))
    return np.concatenate([rows["male"][: round(n * male)], rows["female"][: round(n * (1 - male))]])


def _judged(world: Path, made: Cohort) -> dict[str, float | bool]:
    """The share of men as the judge reads it, corrected by its errors on held-out real images."""
    judge = Classifier.load(world / "classifiers" / "judge")
    held = Cohort.load(world / "cohorts" / "judge").split("val", "test")
    labels = held.table["sex"].map({group: code for code, group in enumerate(judge.groups)}).to_numpy()
    found = estimate_mix(cohort_predictions(judge, made), cohort_predictions(judge, held), labels)
    male = judge.groups.index("male")
    return {
        "judge_male": float(found.values[male]), "judge_low": float(found.low[male]), "judge_high": float(found.high[male]),
        "identifiable": bool(found.identifiable),
    }  # fmt: skip


def _blurred(encoder: Encoder, real: Cohort, there: np.ndarray) -> float:
    """KID of real images to other real ones blurred by one pixel: the unit of a visible loss of quality."""
    pixels = real.pixels(range(1000))
    blurred = np.stack([gaussian_filter(image, 1.0) for image in pixels]).astype(np.float32)
    with torch.no_grad():
        features = np.concatenate([encoder.features(blurred[i : i + 64]) for i in range(0, len(blurred), 64)])
    return kernel_distance(there[1000:2000], features).value


def _found(work: Path) -> dict[str, dict[str, Any]]:
    """Recipe -> seed -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for recipe in RECIPES:
        notes = sorted(work.glob(f"seed-*/found/{recipe}.json"))
        if notes:
            found[recipe] = {note.parent.parent.name.removeprefix("seed-"): read_json(note) for note in notes}
    return found


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    lines = [["recipe (seeds)", *FIGURES.values()], ["---"] * (1 + len(FIGURES))]
    for recipe, runs in found.items():
        cells = []
        for key in FIGURES:
            values = [run[key] for run in runs.values() if run.get(key) is not None]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3g}{spread}" if values else "")
        lines.append([f"{recipe} ({len(runs)})", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
