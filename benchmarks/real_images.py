"""Real images end to end: import, train, generate, audit, report, and whether the result is recognisable.

    EVENHAND_DATA=... python benchmarks/real_images.py ham10000 --work runs/ham10000

Every stage resumes where it stopped. Recognisable means: KID(generated, held-out real) below KID(blurred held-out real, real), and
an independent condition classifier that tells real test images apart tells generated ones apart too. Near copies of training images
are counted against what held-out images of other subjects reach by chance.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import contact_sheet, write_result
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from evenhand.audit.fidelity import kernel_distance
from evenhand.audit.frame import Estimate
from evenhand.audit.run import AuditSettings, audit_cohorts
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort, to_image
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import read_json
from evenhand.core.errors import UserError
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import CALIBRATION_FILE, Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder
from evenhand.models.tiny import TinySettings, init_tiny_latent
from evenhand.report.html import write_report
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

BLUR = 2.0  # px
ENCODERS = ("resnet", "vit")


@dataclass(frozen=True)
class World:
    """One data set: its folder under EVENHAND_DATA, the condition that is judged, and how the classifier of it is trained."""

    folder: str
    condition: str
    conditions: list[str] | None
    classifier_epochs: float
    judge_epochs: float
    autoencoder_steps: int = 600
    train_steps: int = 1000


WORLDS = {
    "ham10000": World("ham10000", "malignancy", None, 6, 5),
    "nih-cxr": World("nih_cxr", "view", ["effusion", "view"], 30, 12),
}


def main() -> None:
    """Run what is missing, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=WORLDS)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--train-steps", type=int)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--stop-after", choices=("model",), help="end when the model is trained")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if "EVENHAND_DATA" not in os.environ:
        raise SystemExit("EVENHAND_DATA is not set; it names the folder that holds the raw data sets")
    world = WORLDS[options.source]
    world = replace(world, train_steps=options.train_steps or world.train_steps)
    options.work.mkdir(parents=True, exist_ok=True)
    real = _cohort(options, world)
    _train(options, world)
    if options.stop_after == "model":
        return
    made = _generate(options)
    out = options.work / "audit.json"
    audit_cohorts(AuditSettings(real=real.root, synthetic=made.root, out=out, judge_epochs=world.judge_epochs, seed=options.seed))
    report = write_report([out], options.work / "report.html")
    measured = {
        "cohort": {"images": len(real), "subjects": int(real.table["subject_id"].nunique()), "size": real.schema.image_size},
        "settings": {**vars(options), **vars(world)},
        "kid": {arch: _distances(_encoder(options, world, arch, real), real, made, options.seed) for arch in ENCODERS},
        "condition": {arch: _condition(options, world, arch, real, made) for arch in ENCODERS},
        "near_copies": _near_copies(real, made),
        "training": read_json(options.work / "run" / "model" / "evenhand.json")["steps"],
        "report_bytes": report.stat().st_size,
    }
    sheet = _contact_sheet(options, world, real, made)
    path = write_result(f"real_images_{world.folder}", {**measured, "contact_sheet": sheet.name}, seeds=[options.seed])
    print(path.read_text())


def _cohort(options: argparse.Namespace, world: World) -> Cohort:
    out = options.work / "real"
    if not (out / SCHEMA_FILE).exists():
        settings = ImportSettings(size=64, conditions=world.conditions, seed=options.seed)
        import_cohort(options.source, Path(os.environ["EVENHAND_DATA"]) / world.folder, out, settings)
    return Cohort.load(out)


def _train(options: argparse.Namespace, world: World) -> None:
    work = options.work
    if not (work / "initial").exists():
        init_tiny_latent(
            TinySettings(
                cohort=work / "real",
                out=work / "initial",
                clip_steps=200,
                autoencoder_steps=world.autoencoder_steps,
                width=48,
                seed=options.seed,
            )
        )
    if not (work / "run" / "model").exists():
        train(
            TrainSettings(
                model=str(work / "initial"),
                cohort=work / "real",
                out=work / "run",
                steps=world.train_steps,
                batch_size=32,
                learning_rate=7e-4,
                warmup=50,
                schedule="cosine",
                timesteps="logit-normal",
                uniform_part=0,  # as when the results were recorded
                ema=0.998,
                checkpoint_every=100,
                seed=options.seed,
                resume=(work / "run" / "config.yaml").exists(),
            )
        )


def _generate(options: argparse.Namespace) -> Cohort:
    return generate(
        GenerateSettings(
            model=str(options.work / "run"),
            out=options.work / "generated",
            like=options.work / "real",
            n=options.n,
            guidance_scale=options.guidance_scale,
            steps=25,
            seed=options.seed,
            resume=(options.work / "generated").exists(),
        )
    )


def _encoder(options: argparse.Namespace, world: World, arch: str, real: Cohort) -> Encoder:
    """The penultimate layer of the condition classifier: trained on real training images only."""
    out = options.work / f"classifier-{arch}"
    if not (out / CALIBRATION_FILE).exists():
        train_classifier(
            ClassifierSettings(
                cohort=real.root, target=world.condition, out=out, arch=arch, epochs=world.classifier_epochs, seed=options.seed + 1
            )
        )
    return Encoder.load(out)


def _distances(encoder: Encoder, real: Cohort, made: Cohort, seed: int) -> dict[str, Any]:
    """KID of generated, of blurred real and, as the floor, of two halves of the held-out subjects, each against held-out real."""
    held_out = real.split("val", "test")
    features = cohort_features(encoder, held_out)
    subjects = held_out.table["subject_id"].to_numpy()
    first = np.isin(subjects, generator(seed, "halves").permutation(np.unique(subjects))[::2])
    pixels = held_out.pixels()
    blurred = np.stack([gaussian_filter(image, (BLUR, BLUR, 0)[: image.ndim]) for image in pixels])
    blurred_features = np.concatenate([encoder.features(blurred[i : i + 64]) for i in range(0, len(blurred), 64)])
    own = np.arange(len(made)).astype(str)
    pairs = {
        "generated_vs_real": (features, cohort_features(encoder, made), np.concatenate([subjects, own])),
        "real_vs_real": (features[first], features[~first], np.concatenate([subjects[first], subjects[~first]])),
        # other subjects on the two sides, as for generated images: a blurred copy beside its original would count in its favour
        "blurred_vs_real": (features[first], blurred_features[~first], np.concatenate([subjects[first], subjects[~first]])),
    }
    found = {name: _facts(kernel_distance(a, b, subjects=ids)) for name, (a, b, ids) in pairs.items()}
    better = found["generated_vs_real"]["value"] < found["blurred_vs_real"]["value"]
    return {**found, "encoder": encoder.name, "generated_below_blurred": better}


def _facts(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _condition(options: argparse.Namespace, world: World, arch: str, real: Cohort, made: Cohort) -> dict[str, Any]:
    """AUC of the condition classifier on real test images and on generated ones, whose label is what the prompt asked for."""
    classifier = Classifier.load(options.work / f"classifier-{arch}")
    positive = classifier.groups[-1]
    found: dict[str, Any] = {"condition": world.condition, "positive": positive}
    for name, cohort in {"real_test": real.split("test"), "generated": made}.items():
        labels = (cohort.table[world.condition] == positive).to_numpy()
        found[name] = {
            "auc": float(roc_auc_score(labels, cohort_predictions(classifier, cohort)[:, -1])),
            "n": len(labels),
            "positives": int(labels.sum()),
        }
    return found


def _near_copies(real: Cohort, made: Cohort) -> dict[str, Any]:
    """Nearest training image, mirrored ones included, by root mean square difference of 32 px pictures.

    A near copy is nearer to a training image than 99 % of the held-out images of other subjects are.
    """
    training = _small(real.split("train"))
    training = np.concatenate([training, training[:, :, ::-1]]).reshape(2 * len(training), -1)
    by_chance = _nearest(_small(real.split("val", "test")), training)
    found = _nearest(_small(made), training)
    limit = float(np.quantile(by_chance, 0.01))
    return {
        "near_copies": int((found < limit).sum()),
        "n": len(found),
        "expected_by_chance": round(0.01 * len(found), 1),
        "limit_rms": limit,
        "median_ratio_generated_to_held_out": float(np.median(found) / np.median(by_chance)),
        "smallest_rms": float(found.min()),
    }


def _small(cohort: Cohort) -> np.ndarray:
    """(n, 32, 32 x channels), each picture with its mean taken away: brightness alone makes no copy."""
    images = [np.asarray(to_image(image).resize((32, 32), Image.Resampling.BOX), dtype=np.float32) / 255 for image in cohort.pixels()]
    stack = np.stack(images)
    return stack - stack.mean(axis=(1, 2), keepdims=True)


def _nearest(images: np.ndarray, training: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    square = (flat**2).sum(1)[:, None] + (training**2).sum(1)[None] - 2 * flat @ training.reshape(len(training), -1).T
    return np.sqrt(np.maximum(square.min(1), 0) / flat.shape[1])


def _contact_sheet(options: argparse.Namespace, world: World, real: Cohort, made: Cohort, columns: int = 10) -> Path:
    """Four rows: two of real images above two of generated ones; each pair of rows with the condition's first and last value."""
    rows, values = [], real.schema.conditions[world.condition]
    for half, cohort in enumerate((real.split("test"), made)):
        for line, value in enumerate((values[0], values[-1])):
            shown = np.flatnonzero((cohort.table[world.condition] == value).to_numpy())
            rows.append(cohort.pixels(generator(options.seed, "sheet", half, line).permutation(shown)[:columns]))
    path = Path(__file__).resolve().parents[1] / "docs" / "images" / f"{world.folder}.png"
    contact_sheet(path, rows, tile=72, colours=192)
    if path.stat().st_size > 300_000:
        raise UserError(f"{path}: {path.stat().st_size} bytes; the repository keeps sheets under 300 KB")
    return path


if __name__ == "__main__":
    main()
