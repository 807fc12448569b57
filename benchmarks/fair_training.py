"""Which training serves the rare group? Every method from one initial model, with equal compute, side by side.

    python benchmarks/fair_training.py fundus --work runs/fair --methods uniform balanced bayesian_robust --seeds 0 1 2
    EVENHAND_DATA=... python benchmarks/fair_training.py ham10000 --work runs/fair-ham

A method and seed is one run: train, generate equally many images of every group with the same seeds, measure. A seed has its own
cohorts (of real images: its own split by subject), initial model, classifiers and noise, the same for all methods; steps of arms that
the robust form gives up count. Real images are those of an evaluation cohort that no run of the seed trains on; features and condition
scores come from classifiers trained on other real images than the evaluation cohort. What is done is kept in the work folder, so the
script may be stopped, run again with more methods or seeds, and run side by side with other seeds; every call writes the table of all
that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import JOINT, RESULTS, number, with_joint, write_result
from leaderboard import against_uniform, tables, write_sheet

from evenhand.audit.fidelity import frechet_distance, kernel_distance
from evenhand.audit.semantics import group_auc
from evenhand.audit.subsampling import size_matched
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import claim, read_json, write_json, write_text
from evenhand.core.groups import known
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

METHODS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "balanced": {"sampling": "balanced"},
    "balanced_sqrt": {"sampling": "balanced", "tau": 0.5},
    "inverse_frequency": {"method": "inverse_frequency"},
    "group_dro": {"method": "group_dro"},
    "random_perturbation": {"method": "random_perturbation"},
    "bayesian_reference": {"method": "bayesian_perturbation", "form": "reference"},
    "bayesian_robust": {"method": "bayesian_perturbation", "form": "robust"},
}
IMAGES = Path(__file__).parent.parent / "docs" / "images"


@dataclass(frozen=True)
class World:
    """Data, who is rare, and how much is trained."""

    attribute: str
    target: str  # the condition that a judge reads
    steps: int
    pretraining: int  # uniform steps of the model that every run then fine-tunes
    pretrained_on: str = "train"  # the cohort of those steps
    batch_size: int = 32
    learning_rate: float = 1e-3
    timesteps: str = "uniform"
    generated: int = 300  # of each group
    solver_steps: int = 20
    guidance_scale: float = 1.0
    judge_epochs: float = 6
    robust: dict[str, Any] = field(default_factory=dict)  # options of the robust form
    tiny: dict[str, Any] = field(default_factory=dict)


# 600 steps leave room for two forks of 90: one measures the noise, one decides
_REAL: dict[str, Any] = {
    "robust": {"nulls": 1}, "steps": 600, "pretraining": 2400, "learning_rate": 7e-4, "timesteps": "logit-normal", "guidance_scale": 2.0,
    "tiny": {"autoencoder_steps": 1500},
}  # fmt: skip
WORLDS = {
    # as a public model is: it knows the largest group alone
    "fundus": World(
        "race", "glaucoma", steps=1500, pretraining=4500, pretrained_on="common", tiny={"width": 16, "autoencoder_steps": 1500}
    ),
    "ham10000": World("age_group", "malignancy", generated=100, **_REAL),
    "nih-cxr": World("sex", "view", generated=60, judge_epochs=30, **{**_REAL, "tiny": {"autoencoder_steps": 600}}),
}


def main() -> None:
    """Run what is missing, then write JSON and a table of all runs in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    world, work = WORLDS[options.world], options.work
    work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        with claim(_place(work, seed), wait=True):
            _same_world(options.world, world, _place(work, seed) / "world.json")
            _prepare(options.world, world, _place(work, seed), seed)
        for method in options.methods:
            _run(options.world, world, work, method, seed)
    found = {method: {path.stem: read_json(path) for path in sorted((work / "found" / method).glob("*.json"))} for method in METHODS}
    found = {method: by_seed for method, by_seed in found.items() if by_seed}
    seeds = sorted({int(seed) for by_seed in found.values() for seed in by_seed})
    name = f"fair_training_{options.world.replace('-', '_')}"
    floor, against = _floor(options.world, world, _place(work, seeds[0]), seeds[0]), against_uniform(found)
    write_result(name, {"world": asdict(world), "equal_laws": floor, "runs": found, "against_uniform": against}, seeds=seeds)
    write_text(RESULTS / f"{name}.md", tables(found, against, floor))
    write_sheet(IMAGES / f"{name}.png", {method: Cohort.load(made) for method, made in _drawn(work, found).items()}, world.attribute)
    print(tables(found, against, floor))


def _place(work: Path, seed: int) -> Path:
    """Cohorts, initial model and classifiers of a seed."""
    return work / "worlds" / str(seed)


def _drawn(work: Path, found: dict[str, Any]) -> dict[str, Path]:
    """What each method drew with its first seed."""
    return {method: work / "runs" / f"{method}-{min(runs, key=int)}" / "made" for method, runs in found.items()}


def _same_world(name: str, world: World, note: Path) -> None:
    """Runs of another world must not stand in one table."""
    now = {"name": name, **asdict(world)}
    if note.exists() and read_json(note) != now:
        raise SystemExit(f"{note}: holds runs of other settings; choose another --work")
    write_json(note, now)


def _prepare(name: str, world: World, path: Path, seed: int) -> None:
    """Training and evaluation cohorts, judge, initial model."""
    if not all((path / part / SCHEMA_FILE).exists() for part in ("train", "judged", "eval")):
        (_fundus if name == "fundus" else _real_images)(name, world, path, seed)
    for target, folder, epochs in ((world.target, "judge", world.judge_epochs), (JOINT, "encoder", 2 * world.judge_epochs)):
        if not (path / folder).exists():
            train_classifier(ClassifierSettings(cohort=path / "judged", target=target, out=path / folder, epochs=epochs, seed=seed))
    if not (path / "initial").exists():
        init_tiny_latent(TinySettings(cohort=path / "train", out=path / "initial", seed=seed, **world.tiny))
    if not (path / "pretrained" / "model").exists():
        changes = {"cohort": path / world.pretrained_on, "attributes": None}
        settings = _training(world, path / "initial", path, path / "pretrained", seed=1000 + seed, steps=world.pretraining)
        train(settings.model_copy(update=changes))


def _fundus(name: str, world: World, path: Path, seed: int) -> None:
    """Phantoms: 77/15/8 by race, the rare group with twice the nuisance variance; the same law in equal parts for evaluation."""
    harder, equal = "race=asian:2", "race=white:0.334,black:0.333,asian:0.333"
    write_phantoms("fundus", path / "train", n=4000, mix="race=white:0.77,black:0.15,asian:0.08", harder=harder, seed=10 * seed)
    drawn = write_phantoms("fundus", path / "judged-drawn", n=3000, mix=equal, harder=harder, seed=10 * seed + 1)
    with_joint(drawn, invisible=["sex"]).save(path / "judged")
    write_phantoms("fundus", path / "eval", n=3 * world.generated, mix=equal, harder=harder, seed=10 * seed + 2)
    write_phantoms("fundus", path / "common", n=4000, mix="race=white:1", seed=10 * seed + 4)


def _floor(name: str, world: World, path: Path, seed: int) -> dict[str, Any] | None:
    """How far apart two draws of one law are, of the first seed, by the same figures; real images are too few to part once more."""
    if name not in MODALITIES:
        return None
    if not (path / "again" / SCHEMA_FILE).exists():
        equal = "race=white:0.334,black:0.333,asian:0.333"
        write_phantoms(name, path / "again", n=3 * world.generated, mix=equal, harder="race=asian:2", seed=10 * seed + 3)
    return _measured(name, world, path, Cohort.load(path / "again"))


def _real_images(name: str, world: World, path: Path, seed: int) -> None:
    """Real images at 64 px; sex of chest radiographs resampled to 85/15 in the training split; held-out ones in equal parts."""
    conditions = ["view"] if name == "nih-cxr" else None
    raw = Path(os.environ["EVENHAND_DATA"]) / name.replace("-", "_")
    import_cohort(name, raw, path / "all", ImportSettings(size=64, conditions=conditions, seed=seed))
    whole = Cohort.load(path / "all")
    subjects = np.array(sorted(whole.table["subject_id"].unique()))
    held = set(subjects[generator(seed, "fair-training").permutation(len(subjects)) < 0.35 * len(subjects)])
    outside = whole.table["subject_id"].isin(held).to_numpy()
    splits = np.where(outside, "test", np.where(whole.table["split"] == "val", "val", "train"))
    parted = Cohort(whole.schema, whole.table.assign(split=splits), whole.root)
    parted.save(path / "whole")
    with_joint(parted.subset(~outside)).save(path / "judged")
    kept = ~outside & (_skewed(parted, world.attribute, seed) if name == "nih-cxr" else True)
    parted.subset(kept).save(path / "train")
    parted.subset(_equal_parts(parted, outside, world, seed)).save(path / "eval")


def _skewed(cohort: Cohort, attribute: str, seed: int) -> np.ndarray:
    """Rows of which the first group makes up 15 % of the training split; the validation split is left as it is."""
    values, training = cohort.table[attribute].to_numpy(), (cohort.table["split"] == "train").to_numpy()
    first, second = cohort.schema.attributes[attribute][:2]
    rows = generator(seed, "skew").permutation(np.flatnonzero(training & (values == first)))
    keep = np.ones(len(cohort), dtype=bool)
    keep[rows[round(0.15 / 0.85 * int((training & (values == second)).sum())) :]] = False
    return keep


def _equal_parts(cohort: Cohort, outside: np.ndarray, world: World, seed: int) -> np.ndarray:
    """As many held-out rows of every group as the smallest has, at most as many as are generated; of those of which all is known."""
    values = cohort.table[world.attribute].to_numpy()
    outside = outside & known(cohort.table, [*cohort.schema.attributes, *cohort.schema.conditions]).to_numpy()
    names = cohort.schema.attributes[world.attribute]
    rows = [generator(seed, "equal", group).permutation(np.flatnonzero(outside & (values == group))) for group in names]
    n = min([world.generated, *map(len, rows)])
    return np.isin(np.arange(len(cohort)), np.concatenate([part[:n] for part in rows]))


def _training(world: World, model: Path, path: Path, out: Path, seed: int, steps: int, **changes: Any) -> TrainSettings:
    return TrainSettings(
        model=str(model), cohort=path / "train", out=out, steps=steps, batch_size=world.batch_size, learning_rate=world.learning_rate,
        warmup=50, ema=0.995, attributes=[world.attribute], timesteps=world.timesteps, uniform_part=0, seed=seed, checkpoint_every=100,
        resume=(out / "config.yaml").exists(), **changes,
    )  # fmt: skip


def _run(name: str, world: World, work: Path, method: str, seed: int) -> None:
    """One method and seed, unless it is there."""
    found, path = work / "found" / method / f"{seed}.json", _place(work, seed)
    if found.exists():
        return
    run = work / "runs" / f"{method}-{seed}"
    if not (run / "trained.json").exists():
        options = {"method_options": world.robust} if method == "bayesian_robust" else {}
        result = train(_training(world, path / "pretrained", path, run / "run", seed, world.steps, **METHODS[method], **options))
        if result.interrupted:
            raise SystemExit("interrupted and saved; the same command goes on")
        state = read_json(sorted((run / "run").glob("checkpoints/step-*/facts.json"))[-1])["method"]
        write_json(run / "trained.json", {"steps": result.steps, "lost_steps": result.lost_steps, "method_state": state})
        shutil.rmtree(run / "run" / "checkpoints")
    made = generate(
        GenerateSettings(
            model=str(run / "run"), out=run / "made", like=path / "eval", n=len(Cohort.load(path / "eval")), steps=world.solver_steps,
            guidance_scale=world.guidance_scale, seed=seed, resume=(run / "made").exists(),
        )
    )  # fmt: skip
    found.parent.mkdir(parents=True, exist_ok=True)
    write_json(found, {**_measured(name, world, path, made), **read_json(run / "trained.json"), **_history(run / "run")})


def _history(run: Path) -> dict[str, Any]:
    """On which commit a run was trained, which may be another than that of the call; and rates that its method reported."""
    made = read_json(run / "model" / "evenhand.json")
    reports = [json.loads(line)["method"] for line in (run / "log.jsonl").read_text().splitlines()]
    rates = {
        key: [report[key] for report in reports if report.get(key) is not None] for key in ("negative_weights", "batches_without_a_group")
    }
    return {"trained": {key: made[key] for key in ("git", "made_at")}, **{key: float(np.mean(part)) for key, part in rates.items() if part}}


def _measured(name: str, world: World, path: Path, made: Cohort) -> dict[str, Any]:
    """Distances by group and at the training mix, condition AUC by group; of phantoms what the oracle sees."""
    real, encoder, judge = Cohort.load(path / "eval"), Encoder.load(path / "encoder"), Classifier.load(path / "judge")
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)
    groups = [cohort.table[world.attribute].to_numpy() for cohort in (real, made)]
    names = sorted(set(groups[0]))
    metrics = {"fd": frechet_distance, "kid": kernel_distance}
    frames = {key: size_matched(there, here, *groups, metric, seed=0) for key, metric in metrics.items()}
    by_group = {key: {group: float(frame.by_group.loc[group, "value"]) for group in names} for key, frame in frames.items()}
    share = Cohort.load(path / "train").split("train").table[world.attribute].value_counts(normalize=True)
    rare, major = min(names, key=lambda group: share[group]), max(names, key=lambda group: share[group])
    mixed = [[_at_mix(values, share, repeat) for values in groups] for repeat in range(10)]
    found: dict[str, Any] = {"by_group": by_group, "rare": rare, "major": major, "n": int(frames["fd"].by_group["n"].min())}
    for key, metric in metrics.items():
        pooled = [metric(there[first], here[second]) for first, second in mixed]
        found[f"pooled_{key}"] = float(np.mean([number(value) for value in pooled]))
        found |= {f"worst_{key}": max(by_group[key].values()), f"rare_{key}": by_group[key][rare], f"major_{key}": by_group[key][major]}
    found["fd_gap"] = max(by_group["fd"].values()) - min(by_group["fd"].values())
    auc = condition_auc(judge, made, groups[1], world)
    found |= {"auc": auc, "auc_real": condition_auc(judge, real, groups[0], world), "auc_gap": max(auc.values()) - min(auc.values())}
    if name in MODALITIES:
        seen = MODALITIES[name].oracle(made.pixels())
        valid, shown = seen["valid"].to_numpy(dtype=bool), seen[world.attribute].to_numpy() == groups[1]
        place = {group: groups[1] == group for group in names}
        found["oracle"] = {
            group: {"valid": float(valid[rows].mean()), "follows": float((valid & shown)[rows].mean())} for group, rows in place.items()
        }
    return found


def _at_mix(values: np.ndarray, share: Any, repeat: int) -> np.ndarray:
    """Random rows of every group in proportion to its share of the training split, as many as there are."""
    counts = {group: int((values == group).sum()) for group in set(values)}
    n = min(counts[group] / share[group] for group in counts)
    rows = {group: generator(repeat, "mix", group).permutation(np.flatnonzero(values == group)) for group in sorted(counts)}
    return np.sort(np.concatenate([part[: max(2, math.floor(n * share[group]))] for group, part in rows.items()]))


def condition_auc(judge: Classifier, cohort: Cohort, groups: np.ndarray, world: World) -> dict[str, float]:
    """AUC of the condition's last value against the rest, by group."""
    value = judge.groups[-1]
    scores = cohort_predictions(judge, cohort)[:, -1]
    frame = group_auc(scores, (cohort.table[world.target] == value).to_numpy().astype(int), groups, n_boot=100)
    return {str(group): float(frame.by_group.loc[group, "value"]) for group in frame.by_group.index}


if __name__ == "__main__":
    main()
