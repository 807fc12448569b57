"""Does a model draw the target mix after alignment, and at what cost? Every recipe from one model, judged by who did not guide.

    python benchmarks/alignment.py --work runs/alignment --recipes before source own --seeds 0 1 2 3 4 --images 4000

Brain phantoms, 80 % male; prompts are silent on sex and age. A seed is a world of its own: cohort, model, guides, held-out guide, judge.
Shares are those of the phantoms' exact oracle and of a judge corrected for its errors. Quality is the Fréchet distance to real images drawn
in the same mix as the generated ones, so that a better mix is not taken for better images, and the kernel distance within each sex. What is
done is kept in the work folder; the script may be stopped, run again with more recipes or seeds, and run side by side with others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import JOINT, RESULTS, interval, markdown, spread, with_interval, with_joint, write_result
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
from evenhand.core.groups import Mix, intersection, parse_mix
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

BASE_STEPS, BATCH = 1500, 32
SOLVER_STEPS = 10
MATCHED = 2000  # real images in the mix of the drawn ones
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
TARGET = "sex=male:0.5,female:0.5"
JOINT_TARGET = "sex*age_group=male/young:0.2,male/old:0.3,female/young:0.35,female/old:0.15"

# The rate of form distill is half of that at which the model was trained.
_DISTILL: dict[str, Any] = {"learning_rate": 5e-4, "validate_every": 300}
_SOURCE: dict[str, Any] = {**_DISTILL, "exemplars": "source-silent"}
# changes to the default alignment towards TARGET; "exemplars" and "anchor_cohort" name cohorts of the seed's world, "guide" classifiers
RECIPES: dict[str, dict[str, Any]] = {
    "before": {},
    "source": _SOURCE,
    "source-to-30": {**_SOURCE, "target": "sex=male:0.3,female:0.7"},
    "source-to-70": {**_SOURCE, "target": "sex=male:0.7,female:0.3"},
    "source-to-joint": {**_SOURCE, "target": JOINT_TARGET},
    "source-lora-8": {**_SOURCE, "lora": 8, "learning_rate": 5e-3},
    "own": _DISTILL,
    "own-all-noise-levels": {**_DISTILL, "early": 1.0},
    "target-fine-tuned": {**_DISTILL, "exemplars": "small-target", "real_mix": "own"},
    "kl": {"form": "kl"},
    "kl-certain": {"form": "kl", "confidence": 1.0},
    "kl-undamped": {"form": "kl", "damping": 0},
    "kl-no-consistency": {"form": "kl", "consistency": 0},
    "kl-last-half": {"form": "kl", "carrying": "last:5"},
    "kl-truncated-2": {"form": "kl", "path": "truncated"},
    "kl-full": {"form": "kl", "path": "full"},
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
    "oracle_male": "male, oracle", "judge_male": "male, judge", "oracle_tv": "TV, oracle", "judge_tv": "TV, judge", "valid": "valid",
    "follows": "tumour follows", "matched_fd": "matched FD", "kid_male": "KID male", "kid_female": "KID female",
    "gradient_share": "compute",
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
        "alignment", {"target": TARGET, "recipes": RECIPES, "against_before": (against := _against_before(found)), "runs": found},
        seeds=sorted({int(seed) for runs in found.values() for seed in runs}),
    )  # fmt: skip
    text = f"{_table(found)}\n\nAgainst the untuned model of the same seed, with 95 % intervals over seeds.\n\n{_verdicts(against)}\n"
    write_text(RESULTS / "alignment.md", text)
    if "lora-8" in found:
        _plot_scales(found["lora-8"], RESULTS.parents[1] / "docs" / "images" / "alignment_lora_scale.png")
    print(text)


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
    _silent(Cohort.load(world / "cohorts" / "source"), world / "cohorts" / "source-silent")
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
        out = world / "classifiers" / _of(name, attribute)
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


def _of(name: str, attribute: str) -> str:
    return name if attribute == "sex" else f"{name}-{attribute}"


def _run(world: Path, recipe: str, seed: int, images: int) -> None:
    """One recipe, unless it is there."""
    note = world / "found" / f"{recipe}.json"
    if note.exists():
        return
    note.parent.mkdir(exist_ok=True)
    model, facts = world / "base" / "run", dict[str, Any]()
    if recipe != "before":
        changes = {"target": TARGET, **RECIPES[recipe]}
        attributes = parse_mix(changes["target"]).names
        guides, held_out = (
            [world / "classifiers" / _of(name, attribute) for attribute in attributes for name in names]
            for names in (changes.pop("guide", ["guide-0", "guide-1"]), ["held-out"])
        )
        for key in ("exemplars", "anchor_cohort"):
            if key in changes:
                changes[key] = world / "cohorts" / changes[key]
        model, start = world / "runs" / recipe, time.process_time()
        result = align(
            AlignSettings(
                model=str(world / "base" / "run"), guide=guides, held_out_guide=held_out, prompts=str(world / "cohorts" / "source"),
                out=model, solver_steps=SOLVER_STEPS, seed=seed, resume=(model / "config.yaml").exists(), **changes,
            )
        )  # fmt: skip
        if result.interrupted:
            raise SystemExit("interrupted and saved; the same command goes on")
        settings = AlignSettings.model_validate({"model": "", "guide": ["."], "prompts": "", "out": ".", **RECIPES[recipe]} | changes)
        facts = {
            "iterations": result.iterations, "kept": result.kept, "scale": result.scale, "distance": result.distance,
            "certified": result.certified, "reached": result.reached, "seconds": time.process_time() - start,
            "gradient_share": _compute(settings, result.iterations),
        }  # fmt: skip
    if "lora" in RECIPES[recipe]:
        facts["male_by_scale"] = {scale: _male_at(world, model, scale, seed) for scale in SCALES}
    made = _drawn(model, world / "drawn" / recipe, world, n=images, seed=900 + seed)
    write_json(note, {**facts, **_measured(world, made, parse_mix(RECIPES[recipe].get("target", TARGET)))})


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


def _measured(world: Path, made: Cohort, target: Mix) -> dict[str, Any]:
    """Shares by oracle and judge, prompt following, quality at matched mix and within each sex."""
    seen = MODALITIES["brain"].oracle(made.pixels())
    valid = seen["valid"].to_numpy(dtype=bool)
    shown = seen["sex"].to_numpy()
    real, encoder = Cohort.load(world / "cohorts" / "eval"), Encoder.load(world / "classifiers" / "encoder")
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)
    sexes = real.table["sex"].to_numpy()
    groups, drawn = (intersection(table, list(target.names)) for table in (real.table, seen[valid]))
    shares = drawn.value_counts(normalize=True).to_dict()
    distances = [
        frechet_distance(there[rows], here[valid]) for rows in (_matched(groups.to_numpy(), shares, repeat) for repeat in range(5))
    ]
    wanted = {" x ".join(values): share for values, share in target.joint().items()}
    kid = {
        f"kid_{sex}": kernel_distance(there[sexes == sex][:1000], here[valid & (shown == sex)]).value
        for sex in ("male", "female")
        if (valid & (shown == sex)).sum() > 20
    }
    return {
        "n": len(made), "valid": float(valid.mean()), "oracle_male": float((shown[valid] == "male").mean()), **kid,
        "oracle_tv": sum(abs(shares.get(group, 0) - share) for group, share in wanted.items()) / 2, **_judged(world, made, target),
        "matched_fd": float(np.mean(distances)),
        "follows": float(((seen["tumour"].to_numpy() == made.table["tumour"].to_numpy()) & valid).mean()),
        "blurred_kid": _blurred(encoder, real, there),
    }  # fmt: skip


def _matched(groups: np.ndarray, shares: Mapping[str, float], repeat: int) -> np.ndarray:
    """Random real rows with these shares of groups: as many for every mix, since distances fall with the number."""
    rows = {group: generator(repeat, "matched", group).permutation(np.flatnonzero(groups == group)) for group in shares}
    n = min(MATCHED, *(len(rows[group]) / share for group, share in shares.items()))
    return np.concatenate([rows[group][: round(n * share)] for group, share in shares.items()])


def _judged(world: Path, made: Cohort, target: Mix) -> dict[str, float | bool]:
    """Shares as the judges read them, corrected by their errors on held-out real images; the distance is that of the worst attribute."""
    held, facts, distances = Cohort.load(world / "cohorts" / "judge").split("val", "test"), dict[str, float | bool](), []
    for attribute in target.names:
        judge = Classifier.load(world / "classifiers" / _of("judge", attribute))
        labels = held.table[attribute].map({group: code for code, group in enumerate(judge.groups)}).to_numpy()
        found = estimate_mix(cohort_predictions(judge, made), cohort_predictions(judge, held), labels)
        wanted = target.marginal(attribute)
        distances.append(sum(abs(share - wanted.get(group, 0)) for group, share in zip(judge.groups, found.values, strict=True)) / 2)
        facts[f"{attribute}_identifiable"] = bool(found.identifiable)
        if attribute == "sex":
            male = judge.groups.index("male")
            facts |= {"judge_male": float(found.values[male]), "judge_low": float(found.low[male]), "judge_high": float(found.high[male])}
    return {**facts, "judge_tv": float(max(distances))}


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


def _against_before(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What each recipe changed, paired by seed: the distance as a ratio of geometric means, the rest as differences."""
    against = {}
    for recipe, runs in found.items():
        pairs = [(found["before"][seed], run) for seed, run in runs.items() if seed in found["before"]]
        if recipe == "before" or not pairs:
            continue
        ratio = interval(np.array([np.log(after["matched_fd"] / before["matched_fd"]) for before, after in pairs]))
        changed = {
            key: interval(np.array([after[key] - before[key] for before, after in pairs])) for key in ("follows", "kid_male", "kid_female")
            if all(key in after for _, after in pairs)
        }  # fmt: skip
        against[recipe] = {
            "seeds": len(pairs),
            "within_three_points": sum(max(after["oracle_tv"], after["judge_tv"]) <= 0.03 for _, after in pairs),
            "fd_ratio": {end: None if value is None else float(np.exp(value)) for end, value in ratio.items()},
            **changed,
            "kid_limit": float(np.mean([before["blurred_kid"] for before, _ in pairs])) / 10,
        }
    return against


def _verdicts(against: Mapping[str, Any]) -> str:
    """One row a recipe."""
    names = {"fd_ratio": "FD, after / before", "follows": "tumour follows", "kid_male": "KID male", "kid_female": "KID female"}
    heads = ["recipe (seeds)", "within .03 by oracle and judge", *names.values(), "KID may rise by"]
    rows = [
        [
            f"{recipe} ({row['seeds']})", f"{row['within_three_points']} of {row['seeds']}",
            *(with_interval(row[key]) if key in row else "" for key in names), f"{row['kid_limit']:.3f}",
        ]
        for recipe, row in against.items()
    ]  # fmt: skip
    return markdown(heads, rows)


def _table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    rows = []
    for recipe, runs in found.items():
        values = ([run[key] for run in runs.values() if run.get(key) is not None] for key in FIGURES)
        rows.append([f"{recipe} ({len(runs)})", *(spread(own) if own else "" for own in values)])
    return markdown(["recipe (seeds)", *FIGURES.values()], rows)


if __name__ == "__main__":
    main()
