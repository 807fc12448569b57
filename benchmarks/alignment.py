"""Does a model draw the target mix after alignment, and at what cost? Every recipe from one model, judged by who did not guide.

    python benchmarks/alignment.py --work runs/alignment --recipes before source own --seeds 0 1 2 3 4

Brain phantoms, 80 % male; prompts are silent on sex and age. A seed is a world of its own: cohort, model, guides, held-out guide, judge.
The model's autoencoder has learnt from both sexes alike, as a public one has: else no tuning of the denoiser could draw women well.
Shares are those of the phantoms' exact oracle and of a judge corrected for its errors. Quality is the Fréchet distance to real images drawn
in the same mix as the generated ones, so that a better mix is not taken for better images, and the kernel distance within each sex. What is
done is kept in the work folder; the script may be stopped, run again with more recipes or seeds, and run side by side with others. Runs
that the result file has already stay in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from alignment_measures import against_before, classifier_folder, measured, tables
from common import JOINT, RESULTS, is_done, with_joint, write_result
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.alignment.validation import COMPARED
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.artifacts import claim, provenance, read_json, write_atomically, write_json, write_text
from evenhand.core.groups import parse_mix
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

BASE_STEPS, BATCH, BASE_RATE = 1500, 32, 1e-3
UNCAPPED = 1e6  # times the uniform weight: no weight was capped when the results were recorded
SOLVER_STEPS = 10
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
TARGET = "sex=male:0.5,female:0.5"
LORA = "source-lora-8"
JOINT_TARGET = "sex*age_group=male/young:0.2,male/old:0.3,female/young:0.35,female/old:0.15"

_DISTILL: dict[str, Any] = {"learning_rate": BASE_RATE, "validate_every": 600}
_SOURCE: dict[str, Any] = {**_DISTILL, "exemplars": "source-silent"}
# Changes to the default alignment towards TARGET; "exemplars" names a cohort of the seed's world, "guide" classifiers, "model" the recipe
# whose result is aligned once more.
# The first two are no alignment: the model itself, and what it becomes if it is only trained on for as long as "source" is tuned.
RECIPES: dict[str, dict[str, Any]] = {
    "before": {},
    "trained-longer": {"steps": 600},
    "balanced": {"steps": 600, "sampling": "balanced", "attributes": ["sex"]},  # of labelled images: what reweighting them comes to
    "source": _SOURCE,
    "source-150": {**_SOURCE, "iterations": 150, "validate_every": 150},
    "source-to-30": {**_SOURCE, "target": "sex=male:0.3,female:0.7"},
    "source-to-70": {**_SOURCE, "target": "sex=male:0.7,female:0.3"},
    "source-to-joint": {**_SOURCE, "target": JOINT_TARGET},
    "source-to-joint-again": {**_SOURCE, "target": JOINT_TARGET, "model": "source-to-joint", "iterations": 150},
    LORA: {**_SOURCE, "lora": 8, "learning_rate": 5e-3},
    "own": _DISTILL,
    "own-noisier-half": {**_DISTILL, "early": 0.5},
    "target-fine-tuned": {**_DISTILL, "exemplars": "small-target", "real_mix": "own"},
    "kl": {"form": "kl"},
    "kl-confidence-95": {"form": "kl", "confidence": 0.95},
    "kl-confidence-99": {"form": "kl", "confidence": 0.99},
    "kl-undamped": {"form": "kl", "damping": 0},
    "kl-no-consistency": {"form": "kl", "consistency": 0},
    "kl-truncated-2": {"form": "kl", "path": "truncated"},
    "kl-full": {"form": "kl", "path": "full"},
    "transport": {"form": "transport"},
    "trap": {
        "form": "kl",
        "path": "truncated",
        "carrying": "last:1",
        "consistency": 0,
        "learning_rate": 1e-4,
        "ema": 0.0,
        "damping": 0,
        "guide": ["plain"],
    },
}


def main() -> None:
    """Run what is missing, then write JSON and a table of all runs in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=4000, help="generated to measure a model")
    options = parser.parse_args()
    _with_recorded(_found(options.work), RESULTS / "alignment.json", options.images)  # sooner than after hours
    for seed in options.seeds:
        world = options.work / f"seed-{seed}"
        world.mkdir(parents=True, exist_ok=True)
        with claim(world / "base", wait=True):
            prepare(world, seed)
        for recipe in dict.fromkeys(["before", *options.recipes]):
            _run(world, recipe, seed, options.images)
    found = _with_recorded(_found(options.work), RESULTS / "alignment.json", options.images)
    against = against_before(found)
    write_result(
        "alignment", {"target": TARGET, "joint_target": JOINT_TARGET, "against_before": against, "runs": found},
        seeds=sorted({int(seed) for runs in found.values() for seed in runs}),
    )  # fmt: skip
    write_text(RESULTS / "alignment.md", tables(found, against))
    if LORA in found:
        _plot_scales(found[LORA], RESULTS.parents[1] / "docs" / "images" / "alignment_lora_scale.png")
    print(tables(found, against))


def prepare(world: Path, seed: int) -> None:
    """Cohorts, the biased model, and classifiers that share no subject."""
    made = {
        "source": {"n": 3000, "mix": "sex=male:0.8,female:0.2", "seed": 10 * seed, "prompt_attributes": ["none"]},
        "everyone": {"n": 3000, "mix": TARGET, "seed": 10 * seed + 9, "prompt_attributes": ["none"]},
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
    _silent(Cohort.load(world / "cohorts" / "source"), world / "cohorts" / "source-silent")
    _classifiers(world, seed)
    if not (world / "base" / "initial").exists():
        everyone = world / "cohorts" / "everyone"
        init_tiny_latent(TinySettings(cohort=everyone, out=world / "base" / "initial", autoencoder_steps=1000, seed=seed))
    _trained(world, world / "base" / "initial", world / "base" / "run", BASE_STEPS, seed)


def _trained(world: Path, model: Path, run: Path, steps: int, seed: int, **changes: Any) -> Path:
    """Ordinary training on the biased cohort, or with its groups drawn alike."""
    if not (run / "model").exists():
        train(
            TrainSettings(
                model=str(model), cohort=world / "cohorts" / "source", out=run, steps=steps, batch_size=BATCH, learning_rate=BASE_RATE,
                warmup=100, schedule="cosine", ema=0.995, seed=seed, resume=(run / "config.yaml").exists(), **changes,
            )
        )  # fmt: skip
    return run


def _silent(cohort: Cohort, out: Path) -> None:
    """The cohort as a hospital may have it: of whom an image is, only a guide can say."""
    if not (out / SCHEMA_FILE).exists():
        attributes = list(cohort.schema.attributes)
        Cohort(cohort.schema.model_copy(update={"attributes": {}}), cohort.table.drop(columns=attributes), cohort.root).save(out)


def _classifiers(world: Path, seed: int) -> None:
    """Guides, held-out guide and a judge of another architecture for both attributes, an encoder of all labels.

    The trap's guide is not augmented.
    """
    plans: dict[str, dict[str, Any]] = {
        "guide-0": {}, "guide-1": {}, "held-out": {}, "plain": {"augment": False}, "judge": {"arch": "vit", "steps": 500},
    }  # fmt: skip
    for (place, (name, changes)), attribute in product(enumerate(plans.items()), ("sex", "age_group")):
        out = classifier_folder(world, name, attribute)
        if not out.exists():
            cohort = world / "cohorts" / ("guide-0" if name == "plain" else name)
            train_classifier(
                ClassifierSettings(cohort=cohort, target=attribute, out=out, seed=10 * seed + place, **{"steps": 200, **changes})
            )
    if not (world / "classifiers" / "encoder").exists():
        if not (world / "cohorts" / "labelled" / SCHEMA_FILE).exists():
            with_joint(Cohort.load(world / "cohorts" / "encoder")).save(world / "cohorts" / "labelled")
        settings = ClassifierSettings(cohort=world / "cohorts" / "labelled", target=JOINT, out=world / "classifiers" / "encoder", steps=300)
        train_classifier(settings)


def _run(world: Path, recipe: str, seed: int, images: int) -> None:
    """One recipe, unless it is there."""
    note, plan = world / "found" / f"{recipe}.json", _plan(RECIPES[recipe], images)
    if is_done(note, plan):
        return
    note.parent.mkdir(exist_ok=True)
    if recipe == "before":
        model, facts = world / "base" / "run", dict[str, Any]()
    elif "steps" in RECIPES[recipe]:
        model = _trained(world, world / "base" / "run", world / "runs" / recipe, seed=seed, **RECIPES[recipe])
        facts = {"gradient_share": RECIPES[recipe]["steps"] / BASE_STEPS}
    else:
        model, facts = _aligned(world, recipe, seed)
    if recipe == LORA:
        facts["male_by_scale"] = {scale: _male_at(world, model, scale, seed) for scale in SCALES}
    made = _drawn(model, world / "drawn" / recipe, world, n=images, seed=900 + seed)
    how = {key: value for key, value in provenance().items() if key in ("git", "made_at")}
    write_json(note, {"plan": plan, "made": how, **facts, **measured(world, made, parse_mix(RECIPES[recipe].get("target", TARGET)))})


def _plan(changes: Mapping[str, Any], images: int) -> dict[str, Any]:
    """What a run is of."""
    return {"recipe": changes, "solver_steps": SOLVER_STEPS, "images": images}


def _aligned(world: Path, recipe: str, seed: int) -> tuple[Path, dict[str, Any]]:
    changes = {"target": TARGET, **RECIPES[recipe]}
    attributes = parse_mix(changes["target"]).names
    guides, held_out = (
        [classifier_folder(world, name, attribute) for attribute in attributes for name in names]
        for names in (changes.pop("guide", ["guide-0", "guide-1"]), ["held-out"])
    )
    judges = [classifier_folder(world, "judge", attribute) for attribute in attributes]
    if "exemplars" in changes:
        changes["exemplars"] = world / "cohorts" / changes["exemplars"]
    first = changes.pop("model", None)
    model, spent = world / "base" / "run", {"gradient_share": 0.0, "reading_share": 0.0}
    if first:
        model, spent = world / "runs" / first, read_json(world / "found" / f"{first}.json")
    out, start = world / "runs" / recipe, time.process_time()
    settings = AlignSettings(
        model=str(model), guide=guides, held_out_guide=held_out, judge=judges, prompts=str(world / "cohorts" / "source"), out=out,
        solver_steps=SOLVER_STEPS, guidance_scale=1.0, weight_cap=UNCAPPED, seed=seed, resume=(out / "config.yaml").exists(), **changes,
    )  # fmt: skip
    result = align(settings)
    if result.interrupted:
        raise SystemExit("interrupted and saved; the same command goes on")
    return out, {
        "iterations": result.iterations, "kept": result.kept, "scale": result.scale, "distance": result.distance,
        "check": result.check, "reached": result.reached, "seconds": time.process_time() - start,
        "gradient_share": spent["gradient_share"] + _compute(settings, result.iterations),
        "reading_share": spent["reading_share"] + _reading(settings),
    }  # fmt: skip


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
    axes.axhline(0.5, color="0.5", linestyle="--", linewidth=1, label="target")
    axes.set(xlabel="scale of the LoRA as it was published", ylabel="share of men (oracle)", ylim=(0, 1))
    axes.legend(frameon=False)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110))


def _compute(settings: AlignSettings, iterations: int) -> float:
    """Denoiser passes of the tuning, in those of the base training; a backward pass counts as two."""
    learning, carrying = 3 * settings.batch_size, 3 * len(settings.carrying_steps)
    if settings.form == "distill":
        taught = settings.early < 1 and settings.draws_own  # a pass of the untuned model
        one = learning * (1 + bool(settings.anchor)) + (settings.batch_size if taught else 0)
    else:
        drawing = settings.solver_steps * (2 if settings.consistency else 1)  # tuned and untuned
        one = settings.batch_size * (drawing + carrying) + (learning if settings.anchor else 0)
    own = settings.own_images if settings.draws_own else 0
    return (own * settings.solver_steps + iterations * one) / (BASE_STEPS * BATCH * 3)


def _reading(settings: AlignSettings) -> float:
    """Passes of validations, of scales that were looked at, and of the final check, likewise."""
    log = [json.loads(line) for line in (settings.out / "log.jsonl").read_text().splitlines()]
    validations = [line["validation"] for line in log if "validation" in line]
    facts = read_json(settings.out / "model" / "evenhand.json")
    looks = len(validations) + max(0, len(facts["kept"].get("read_at_scale", {})) - 2)
    untuned = validations[0]["consistency"] is not None  # whose images are drawn once more, to compare
    compared = min(COMPARED, settings.validation_images) if untuned else 0
    images = looks * settings.validation_images + compared + (facts["final_check"] or {"images": 0})["images"]
    return images * settings.solver_steps / (BASE_STEPS * BATCH * 3)


def _drawn(model: Path, out: Path, world: Path, n: int, seed: int) -> Cohort:
    out.parent.mkdir(parents=True, exist_ok=True)
    return generate(
        GenerateSettings(
            model=str(model), out=out, like=world / "cohorts" / "source", n=n, prompt_attributes=["none"], guidance_scale=1.0,
            steps=SOLVER_STEPS, seed=seed, resume=out.exists(),
        )
    )  # fmt: skip


def _found(work: Path) -> dict[str, dict[str, Any]]:
    """Recipe -> seed -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for recipe in RECIPES:
        notes = sorted(work.glob(f"seed-*/found/{recipe}.json"))
        if notes:
            found[recipe] = {note.parent.parent.name.removeprefix("seed-"): read_json(note) for note in notes}
    return found


def _with_recorded(found: Mapping[str, Mapping[str, Any]], result: Path, images: int) -> dict[str, dict[str, Any]]:
    """And the runs that the result file has and the work folder has not: a table of so many runs is not made in one go.

    A seed must be the same world in both, to which its untuned model's figures are the witness, and a run be of today's plan.
    """
    recorded = read_json(result)["runs"] if result.exists() else {}
    if gone := sorted(set(recorded) - set(RECIPES)):
        raise SystemExit(f"{result}: {gone[0]} is no recipe of today's; take it out of the file")
    joined: dict[str, dict[str, Any]] = {}
    for recipe, changes in RECIPES.items():
        runs = {**recorded.get(recipe, {}), **found.get(recipe, {})}
        for seed, run in runs.items():
            witness = recorded.get(recipe, {}).get(seed, run) if recipe == "before" else run
            if run["plan"] != _plan(changes, images) or run | {"made": None} != witness | {"made": None}:
                raise SystemExit(f"{result}: {recipe} of seed {seed} is of another plan or world; take it out of the file, or of --work")
        joined |= {recipe: dict(sorted(runs.items(), key=lambda run: int(run[0])))} if runs else {}
    return joined


if __name__ == "__main__":
    main()
