"""Alignment on real images: a model of 80 % one group is brought to 50 %, and read by judges who never met its guides' patients.

    EVENHAND_DATA=... python benchmarks/alignment_real.py nih-cxr --work runs/align-nih

Patients are parted: 60 % for the model and its guides, 40 % for the judges. The model learns from the first part, resampled to 80 % of one
group, its autoencoder from all of that part, as public ones know everyone. Guides and held-out guides have a half of these patients each,
judges the others; every classifier of a part leaves out another fifth of its patients, and is tested on that. Those readings tell how often
the judges err, and correct what they read from generated images. Where the correction cannot be trusted, it is refused, and the refusal is
the result. Recipes: learning the images that the model was trained on, for 600 iterations and for 1,800, and learning its own. A seed has
its own parting of the patients, classifiers and model.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import JOINT, RESULTS, contact_sheet, is_done, markdown, with_joint, write_result

from evenhand.alignment.guides import LEAST_AUC
from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.audit.fidelity import kernel_distance
from evenhand.audit.memorization import copy_rate
from evenhand.audit.representation import estimate_mix
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import read_json, write_json, write_text
from evenhand.core.groups import known
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

FOLDS, SOLVER_STEPS, GUIDANCE = 5, 10, 1.5
RATE = 7e-4  # of the model and of the alignment
RECIPES: dict[str, dict[str, Any]] = {
    "source": {"exemplars": "skewed"},
    "source-long": {"exemplars": "skewed", "iterations": 1800},
    "own": {},
}
PARTS = ("guide", "held-out", "judge")  # each has patients of its own, and a classifier a fold
SKEW = 0.8  # share of the common group in what the model learns from


@dataclass(frozen=True)
class World:
    """One data set: whose share is moved, and how long classifiers train."""

    folder: str
    attribute: str
    common: str
    conditions: list[str] | None
    epochs: float
    autoencoder_steps: int
    steps: int = 2400


WORLDS = {
    "nih-cxr": World("nih_cxr", "sex", "male", ["view"], 30, 1500),
    "ham10000": World("ham10000", "age_group", "<60", None, 6, 1500),
}


def main() -> None:
    """Run what is missing, then write JSON and a table of all runs in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1000, help="generated to measure a model")
    options = parser.parse_args()
    if "EVENHAND_DATA" not in os.environ:
        raise SystemExit("EVENHAND_DATA is not set; it names the folder that holds the raw data sets")
    world = WORLDS[options.source]
    for seed in options.seeds:
        _prepare(options.source, world, _place(options.work, seed), seed)
        for recipe in ("before", *options.recipes):
            _run(world, _place(options.work, seed), recipe, seed, options.images)
    places = {path.name.removeprefix("seed-"): path for path in sorted(options.work.glob("seed-*"))}
    found = {
        recipe: {seed: read_json(note) for seed, path in places.items() if (note := path / recipe / "found.json").exists()}
        for recipe in ("before", *RECIPES)
    }
    cohorts, aucs = ({seed: tell(path) for seed, path in places.items()} for tell in (_sizes, _aucs))
    payload = {"cohorts": cohorts, "auc": aucs, "recipes": RECIPES, "runs": found}
    write_result(f"alignment_real_{world.folder}", payload, seeds=[int(seed) for seed in found["before"]])
    write_text(RESULTS / f"alignment_real_{world.folder}.md", _table(world, found))
    first = _place(options.work, int(min(found["before"], key=int)))
    _sheet(first, RESULTS.parents[1] / "docs" / "images" / f"alignment_{world.folder}.png")
    print(_table(world, found))


def _place(work: Path, seed: int) -> Path:
    """Everything of one seed."""
    return work / f"seed-{seed}"


def _prepare(source: str, world: World, work: Path, seed: int) -> None:
    """Parts by patient, classifiers, and the skewed model."""
    if not (work / "judge" / SCHEMA_FILE).exists():
        _parts(source, world, work, seed)
    learnt = [path for part in PARTS for path in _folds(work, part)]
    for place, out in enumerate([*learnt, work / "classifiers" / "encoder"]):
        if not out.exists():
            cohort, target = (work / out.name, world.attribute) if out in learnt else (work / "labelled", JOINT)
            train_classifier(ClassifierSettings(cohort=cohort, target=target, out=out, epochs=world.epochs, seed=100 * seed + place))
    if not (work / "initial").exists():
        settings_ = TinySettings(cohort=work / "labelled", out=work / "initial", autoencoder_steps=world.autoencoder_steps, seed=seed)
        init_tiny_latent(settings_)
    run = work / "run"
    if not (run / "model").exists():
        train(
            TrainSettings(
                model=str(work / "initial"), cohort=work / "skewed", out=run, steps=world.steps, batch_size=32, learning_rate=RATE,
                warmup=50, ema=0.995, timesteps="logit-normal", uniform_part=0, schedule="cosine", checkpoint_every=100, seed=seed,
                resume=(run / "config.yaml").exists(),
            )
        )  # fmt: skip


def _parts(source: str, world: World, work: Path, seed: int) -> None:
    """Cohorts by patient: ``skewed`` of model and guides, ``guide`` and ``held-out`` its halves, ``judge`` the others; also by folds."""
    settings = ImportSettings(size=64, conditions=world.conditions, prompt_attributes=["none"])
    import_cohort(source, Path(os.environ["EVENHAND_DATA"]) / world.folder, work / "all", settings)
    whole = Cohort.load(work / "all")
    whole = whole.subset(known(whole.table, [world.attribute]))
    subjects = np.array(sorted(whole.table["subject_id"].unique()))
    place = pd.Series(generator(seed, "patients").permutation(len(subjects)) / len(subjects), index=subjects)
    at = whole.table["subject_id"].map(place).to_numpy()
    inside = at < 0.6
    _with_splits(whole.subset(inside), ("train",), seed).subset(_skewed(whole.subset(inside), world, seed)).save(work / "skewed")
    labelled = _with_splits(whole.subset(inside), ("train", "train", "val", "test"), seed)
    with_joint(labelled).save(work / "labelled")
    for part, rows in zip(PARTS, (at < 0.3, inside & (at >= 0.3), ~inside), strict=True):
        for fold in range(FOLDS):  # test: the fold; val: the next one, which sets the temperature
            splits = tuple({fold: "test", (fold + 1) % FOLDS: "val"}.get(place, "train") for place in range(FOLDS))
            _with_splits(whole.subset(rows), splits, seed).save(work / f"{part}-{fold}")
        whole.subset(rows).save(work / part)


def _with_splits(cohort: Cohort, splits: tuple[str, ...], seed: int) -> Cohort:
    """Patients dealt out to ``splits`` in turn."""
    subjects = np.array(sorted(cohort.table["subject_id"].unique()))
    turn = pd.Series(generator(seed, "turns").permutation(len(subjects)) % len(splits), index=subjects)
    return Cohort(cohort.schema, cohort.table.assign(split=np.array(splits)[cohort.table["subject_id"].map(turn)]), cohort.root)


def _skewed(cohort: Cohort, world: World, seed: int) -> np.ndarray:
    """Rows of which the common group makes up 80 %, as many as there are."""
    common = (cohort.table[world.attribute] == world.common).to_numpy()
    n = min(common.sum() / SKEW, (~common).sum() / (1 - SKEW))
    draws = generator(seed, "skew")
    rows = [draws.permutation(np.flatnonzero(part))[: round(share * n)] for part, share in ((common, SKEW), (~common, 1 - SKEW))]
    return np.isin(np.arange(len(cohort)), np.concatenate(rows))


def _run(world: World, work: Path, recipe: str, seed: int, images: int) -> None:
    """One alignment, or the model before it, measured by images of the same seeds."""
    path, plan = work / recipe, {"recipe": RECIPES.get(recipe, {}), "images": images}
    if is_done(path / "found.json", plan):
        return
    path.mkdir(parents=True, exist_ok=True)
    model, facts = (work / "run", {}) if recipe == "before" else _aligned(world, work, path / "aligned", recipe, seed)
    write_json(path / "found.json", {"plan": plan, **_measured(world, work, _drawn(model, path / "drawn", work, images, seed)), **facts})


def _aligned(world: World, work: Path, out: Path, recipe: str, seed: int) -> tuple[Path, dict[str, Any]]:
    if not (out / "model").exists():
        _align(world, work, out, recipe, seed)
    told = read_json(out / "model" / "evenhand.json")
    return out, told["kept"]


def _align(world: World, work: Path, out: Path, recipe: str, seed: int) -> None:
    changes = {key: work / value if key == "exemplars" else value for key, value in RECIPES[recipe].items()}
    groups = Cohort.load(work / "skewed").schema.attributes[world.attribute]
    result = align(
        AlignSettings(
            model=str(work / "run"), guide=_accepted(work, "guide"), held_out_guide=_accepted(work, "held-out"),
            target=f"{world.attribute}=" + ",".join(f"{group}:{1 / len(groups):.6f}" for group in groups), prompts=str(work / "skewed"),
            out=out, solver_steps=SOLVER_STEPS, guidance_scale=GUIDANCE, learning_rate=RATE, weight_cap=1e6, seed=seed,
            validate_every=1800, validation_images=1000,  # before, and at the end
            resume=(out / "config.yaml").exists(), **changes,
        )
    )  # fmt: skip
    if result.interrupted:
        raise SystemExit("interrupted and saved; the same command goes on")


def _drawn(model: Path, out: Path, work: Path, n: int, seed: int) -> Cohort:
    return generate(
        GenerateSettings(
            model=str(model), out=out, like=work / "skewed", n=n, prompt_attributes=["none"], guidance_scale=GUIDANCE,
            steps=SOLVER_STEPS, seed=900 + seed, resume=out.exists(),
        )
    )  # fmt: skip


def _measured(world: World, work: Path, made: Cohort) -> dict[str, Any]:
    """The share of the common group, kernel distance within each group as the judges read it, and the rate of near copies.

    The share is that of audits, by likelihood, and beside it by adjusted count: what both differ by is not the judges' to settle.
    """
    held, labels, subjects, reading = _judged(world, work)
    judges = [Classifier.load(path) for path in _folds(work, "judge")]
    each = [cohort_predictions(judge, made) for judge in judges]
    groups, shown = judges[0].groups, np.mean(each, axis=0)
    # One judge after the other, as real images are read by one each: the mean of five is surer than any, and their errors are not its
    ids = np.tile(made.table["subject_id"].astype(object).to_numpy(), FOLDS)
    mix, counted = (
        estimate_mix(np.concatenate(each), reading, labels, subjects=(ids, subjects), method=method) for method in ("emq", "acc")
    )
    place = groups.index(world.common)
    encoder, real = Encoder.load(work / "classifiers" / "encoder"), held
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)
    kid = {group: kernel_distance(there[labels == code], here[shown.argmax(1) == code]).value for code, group in enumerate(groups)}
    copies = copy_rate(Cohort.load(work / "skewed").pixels(), real.pixels(), made.pixels())
    return {
        "n": len(made), "share": float(mix.values[place]), "low": float(mix.low[place]), "high": float(mix.high[place]),
        "identifiable": bool(mix.identifiable), "refusal": mix.reason, "raw": float(mix.raw[place]), "kid": kid,
        "counted": {"share": float(counted.values[place]), "low": float(counted.low[place]), "high": float(counted.high[place])},
        "copies": {"rate": copies.value, "low": copies.low, "high": copies.high},
    }  # fmt: skip


def _folds(work: Path, part: str) -> list[Path]:
    """Classifiers of a part, one a fold; each learns from the cohort of its name."""
    return [work / "classifiers" / f"{part}-{fold}" for fold in range(FOLDS)]


def _accepted(work: Path, part: str) -> list[Path]:
    """Those that an alignment takes: a fold has few patients, and some classifiers do badly on theirs."""
    found = [path for path in _folds(work, part) if (Classifier.load(path).auc or 0) >= LEAST_AUC]
    if not found:  # without held-out guides, one that guides would take their place
        raise SystemExit(f"{work}: no {part} classifier has an AUC of {LEAST_AUC} on patients whom it has not met")
    return found


def _judged(world: World, work: Path) -> tuple[Cohort, np.ndarray, np.ndarray, np.ndarray]:
    """Real images of the judges' patients, their codes and patients, and what the judge that has not met them reads."""
    held = Cohort.load(work / "judge")
    judges = [Classifier.load(path) for path in _folds(work, "judge")]
    reading = np.zeros((len(held), len(judges[0].groups)))
    for fold, judge in enumerate(judges):
        part = Cohort.load(work / f"judge-{fold}").split("test")
        rows = held.table["image"].isin(part.table["image"]).to_numpy()
        reading[rows] = cohort_predictions(judge, held.subset(rows))
    codes = held.table[world.attribute].map({group: code for code, group in enumerate(judges[0].groups)}).to_numpy()
    return held, codes, held.table["subject_id"].astype(object).to_numpy(), reading


def _sizes(work: Path) -> dict[str, Any]:
    cohorts = {name: Cohort.load(work / name) for name in ("skewed", *PARTS)}
    return {name: {"images": len(part), "subjects": int(part.table["subject_id"].nunique())} for name, part in cohorts.items()}


def _aucs(work: Path) -> dict[str, Any]:
    """How well each guide and judge tells the group of patients whom it has not met."""
    return {path.name: Classifier.load(path).auc for path in sorted((work / "classifiers").iterdir()) if path.name != "encoder"}


def _table(world: World, found: Mapping[str, Any]) -> str:
    """One row a seed and recipe."""
    groups = list(next(iter(found["before"].values()))["kid"])
    readers = [f"{world.common}, judges", "by adjusted count"]
    heads = ["", "seed", *readers, "refused", *(f"KID {group}" for group in groups), "near copies"]
    lines = []
    for recipe, runs in found.items():
        for seed, facts in runs.items():
            share, count = (f"{one['share']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (facts, facts["counted"]))
            kid = [f"{facts['kid'][group]:.3g}" for group in groups]
            lines.append([recipe, seed, share, count, facts["refusal"] or "no", *kid, f"{facts['copies']['rate']:.3f}"])
    return markdown(heads, lines) + "\n"


def _sheet(work: Path, path: Path, columns: int = 16) -> None:
    """The same noise before (above) and after (below), two pairs of rows; nothing where no alignment was run."""
    after = [recipe for recipe in RECIPES if (work / recipe / "found.json").exists()]
    if not after:
        return
    drawn = [Cohort.load(work / recipe / "drawn") for recipe in ("before", after[0])]
    rows = [cohort.pixels(range(start, start + columns)) for start in (0, columns) for cohort in drawn]
    contact_sheet(path, rows, tile=64, colours=128)


if __name__ == "__main__":
    main()
