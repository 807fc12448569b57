"""Does guidance that is chosen by group serve the rare group better? Models that ``fair_training.py`` has left, drawn at several scales.

    python benchmarks/group_guidance.py fundus --work runs/fair --methods uniform balanced_sqrt --scales 1.5 2 --seeds 0 1 2

Only the rare group is drawn anew, from its prompts; beside it the same measures of what the leaderboard has drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import interval, write_result
from fair_training import METHODS, WORLDS, condition_auc

from evenhand.audit.fidelity import frechet_distance, kernel_distance
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort
from evenhand.core.artifacts import read_json
from evenhand.engine.features import cohort_features
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder


def main() -> None:
    """Draw what is missing, and write distances by method, scale and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["uniform", "balanced_sqrt"])
    parser.add_argument("--scales", nargs="*", type=float, default=[1.5, 2.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    usual = WORLDS[options.world].guidance_scale
    found = {
        method: {
            f"{scale:g}": {str(seed): _measured(options, method, scale, seed) for seed in options.seeds}
            for scale in (usual, *options.scales)
        }
        for method in options.methods
    }
    against = {
        method: {
            scale: {
                key: interval(np.array([runs[seed][key] - scales[f"{usual:g}"][seed][key] for seed in runs]))
                for key in ("rare_fd", "rare_kid")
            }
            for scale, runs in scales.items()
            if scale != f"{usual:g}"
        }
        for method, scales in found.items()
    }
    path = write_result(
        f"group_guidance_{options.world.replace('-', '_')}", {"found": found, "against_usual": against}, seeds=options.seeds
    )
    print(path.read_text())


def _measured(options: argparse.Namespace, method: str, scale: float, seed: int) -> dict[str, Any]:
    """Distances of the rare group's images at one scale, and how far they show what was asked."""
    world, path, folder = WORLDS[options.world], options.work / "world", options.work / "guidance"
    rare = read_json(options.work / "found" / method / f"{seed}.json")["rare"]
    run = options.work / "runs" / f"{method}-{seed}"
    real = _of(Cohort.load(path / "eval"), world.attribute, rare)
    if scale == world.guidance_scale:
        made = _of(Cohort.load(run / "made"), world.attribute, rare)
    else:
        if not (folder / "rare" / SCHEMA_FILE).exists():
            real.save(folder / "rare")
        out = folder / f"{method}-{seed}-{scale:g}"
        made = generate(
            GenerateSettings(
                model=str(run / "run"), out=out, like=folder / "rare", n=len(real), steps=world.solver_steps, guidance_scale=scale,
                seed=seed, resume=out.exists(),
            )
        )  # fmt: skip
    encoder = Encoder.load(path / "encoder")
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)
    auc = condition_auc(Classifier.load(path / "judge"), made, made.table[world.attribute].to_numpy(), world)
    return {
        "rare_fd": frechet_distance(there, here), "rare_kid": kernel_distance(there, here).value, "auc": auc[rare], "n": len(made),
    }  # fmt: skip


def _of(cohort: Cohort, attribute: str, group: str) -> Cohort:
    return cohort.subset((cohort.table[attribute] == group).to_numpy())


if __name__ == "__main__":
    main()
