"""FairDiffusion's semantic correlation: classifiers trained on generated images beside ones trained on real images, by group.

    python benchmarks/semantic_table.py fundus --work runs/fair --methods uniform balanced

Takes models that ``fair_training.py`` has left in the work folder, draws one image for every training prompt, and runs ``evenhand
semantic`` on them: the same classifiers, of both published architectures, trained on either, and tested on the same real images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import RESULTS, markdown, write_result
from fair_training import METHODS, WORLDS

from evenhand.audit.correlation import SemanticSettings, semantic_correlation
from evenhand.audit.correlation_result import SemanticResult
from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import write_text
from evenhand.generation.generate import GenerateSettings, generate

LABELS = {"fundus": ["glaucoma", "cup_disc_ratio"], "ham10000": ["malignancy"], "nih-cxr": ["view"]}


def main() -> None:
    """Draw what is missing, train and test the classifiers, write JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["uniform", "balanced"])
    parser.add_argument("--epochs", type=float, help="of every classifier; as published where not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {method: _measured(options, method) for method in options.methods}
    name = f"semantic_{options.world.replace('-', '_')}"
    table = _table(results)
    write_text(RESULTS / f"{name}.md", table)
    write_result(name, {"found": {method: _plain(result) for method, result in results.items()}}, seeds=[options.seed])
    print(table)


def _measured(options: argparse.Namespace, method: str) -> SemanticResult:
    world, path = WORLDS[options.world], options.work / "world"
    run, out = options.work / "runs" / f"{method}-{options.seed}", options.work / "semantic" / f"{method}-{options.seed}"
    training = Cohort.load(path / "train").split("train")
    if not (out / "training" / "cohort.json").exists():
        training.save(out / "training")
    made = generate(
        GenerateSettings(
            model=str(run / "run"), out=out / "made", like=out / "training", n=len(training), steps=world.solver_steps,
            guidance_scale=world.guidance_scale, seed=options.seed, resume=(out / "made").exists(),
        )
    )  # fmt: skip
    real = path / ("train" if options.world == "fundus" else "whole")
    return semantic_correlation(
        SemanticSettings(
            real=real, synthetic=made.root, label=LABELS[options.world], out=options.work / "semantic" / f"{method}.json",
            epochs=options.epochs, seed=options.seed,
        )
    )  # fmt: skip


def _plain(result: SemanticResult) -> dict[str, Any]:
    return {
        "n_test": result.n_test, "notes": result.notes, "refused": result.refused, "warnings": result.warnings,
        "tables": [table.model_dump() for table in result.tables],
    }  # fmt: skip


def _table(results: dict[str, SemanticResult]) -> str:
    """One row a model, label, value, architecture and attribute: real-trained -> generated-trained."""
    heads = ["model", "label", "architecture", "attribute", "AUC", "worst group's AUC", "ES-AUC", "DPD", "EOD"]
    lines = []
    for method, result in results.items():
        for table in result.tables:
            worst = [min((getattr(row, side).value for row in table.rows if getattr(row, side).value is not None), default=None)
                     for side in ("real_trained", "synthetic_trained")]  # fmt: skip
            cells = [
                _both(part.real_trained.value, part.synthetic_trained.value) for part in (table.auc, table.es_auc, table.parity, table.odds)
            ]
            label = f"{table.label}={table.value}"
            lines.append([method, label, table.arch, table.attribute, cells[0], _both(*worst), *cells[1:]])
    return f"Real-trained → generated-trained.\n\n{markdown(heads, lines)}\n"


def _both(before: float | None, after: float | None) -> str:
    return " → ".join("undefined" if value is None else f"{value:.3f}" for value in (before, after))


if __name__ == "__main__":
    main()
