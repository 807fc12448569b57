"""T2MedI's experiment in small: a cascade that knows radiology from captions, aligned to the sexes of a brain MR data set.

    python benchmarks/t2medi.py --work runs/t2medi --seeds 0 1 2

1. ROCO-style figures of four modalities with captions, four men to a woman, imported as ROCOv2: ``tiny-imagen`` is trained on them.
2. Its decoders are tuned on the figures of brain MR; the text encoder stays frozen all along.
3. A BraTS18-like tree of NIfTI volumes with a table of sexes, half of them women, imported as brats18: the target. Guides read others.
4. What captions that name nobody draw is audited against the target; the base stage is aligned to the target's mix, learning the figures of
   brain MR whose captions name nobody, and audited again.

Everything is phantoms, whose oracle reads what is drawn. Scripts stop and go on; what is done is kept in the work folder.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from common import RESULTS, markdown, write_result

from evenhand.alignment.settings import AlignSettings
from evenhand.alignment.tune import align
from evenhand.audit.result import AuditResult
from evenhand.audit.run import audit_cohorts
from evenhand.audit.settings import AuditSettings
from evenhand.cohorts.cohort import SCHEMA_FILE, Cohort, to_image
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.cohorts.sources import ImportSettings
from evenhand.cohorts.sources.importing import import_cohort
from evenhand.core.artifacts import new_folder, read_json, write_json, write_text
from evenhand.core.randomness import generator
from evenhand.generation.generate import GenerateSettings, generate
from evenhand.models.classifiers import ClassifierSettings, train_classifier
from evenhand.models.tiny import TinyImagenSettings, init_tiny_imagen
from evenhand.report.html import write_report
from evenhand.training.loop import train
from evenhand.training.settings import TrainSettings

SIZE, SLICES = 64, 5
BIASED = "sex=male:0.8,female:0.2"
TARGET = "sex=male:0.5,female:0.5"
NAMING = 0.3  # share of captions that name the patient
SOLVER_STEPS, GUIDANCE = 10, 1.5
RATE = 1e-3  # of the training and of the alignment
FIGURES = {"brain": 3000, "chest": 1500, "fundus": 1000, "dermoscopy": 500}
# modality -> how a caption begins, and what it says of each condition
WORDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "brain": ("Axial brain MRI", "tumour", {"tumour": "showing an enhancing tumour", "none": "without tumour"}),
    "chest": ("Frontal chest radiograph", "effusion", {"effusion": "showing pleural effusion", "none": "without effusion"}),
    "fundus": ("Fundus photograph", "glaucoma", {"glaucoma": "showing glaucoma", "non-glaucoma": "without glaucoma"}),
    "dermoscopy": ("Dermoscopic image", "malignancy", {"malignant": "showing a melanoma", "benign": "showing a benign naevus"}),
}
TRAINING: tuple[tuple[str, str, str, int], ...] = (  # run, cohort, stage, steps; each goes on from the one before
    ("mixed-base", "roco", "base", 1500),
    ("mixed-large", "roco", "super-resolution", 400),
    ("brain-base", "roco-brain", "base", 800),
    ("brain-large", "roco-brain", "super-resolution", 200),
)


def main() -> None:
    """Run what is missing, then write JSON and a table of all runs in the work folder, and the first one's report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for seed in options.seeds:
        _run(options.work / f"seed-{seed}", seed)
    notes = sorted(options.work.glob("seed-*/found.json"))
    found = {note.parent.name.removeprefix("seed-"): read_json(note) for note in notes}
    write_result("t2medi", {"source": BIASED, "target": TARGET, "runs": found}, seeds=[int(seed) for seed in found])
    write_text(RESULTS / "t2medi.md", _table(found))
    report = (notes[0].parent / "report.html").read_text(encoding="utf-8")
    if options.work.is_absolute():  # paths of this machine are kept out of what is committed
        report = report.replace(str(options.work), options.work.name)
    write_text(RESULTS / "t2medi.html", report)
    print(_table(found))


def _run(world: Path, seed: int) -> None:
    if (world / "found.json").exists():
        return
    world.mkdir(parents=True, exist_ok=True)
    _cohorts(world, seed)
    _classifiers(world, seed)
    model = _trained(world, seed)
    plan = _plan(world)
    found = {"before": _measured(world, "before", _drawn(world, "before", model, plan, seed), seed)}
    aligned, facts = _aligned(world, model, seed)
    found["after"] = _measured(world, "after", _drawn(world, "after", aligned, plan, seed), seed)
    write_report([world / "before.json", world / "after.json"], world / "report.html")
    write_json(world / "found.json", {**found, "alignment": facts})


def _cohorts(world: Path, seed: int) -> None:
    """Raw trees in the published layouts, imported by the importers that read the published data."""
    if not (world / "roco" / SCHEMA_FILE).exists():
        if not (world / "raw-roco").exists():
            _write_roco(world / "raw-roco", seed)
        import_cohort("roco", world / "raw-roco", world / "roco", ImportSettings(size=SIZE, mode="RGB", seed=seed))
    roco = Cohort.load(world / "roco")
    brain = roco.table["prompt"].str.startswith(WORDS["brain"][0]).to_numpy()
    named = roco.table["prompt"].str.contains("-year-old").to_numpy()
    for name, rows in {"roco-brain": brain, "roco-brain-silent": brain & ~named}.items():
        if not (world / name / SCHEMA_FILE).exists():
            roco.subset(rows).save(world / name)
    for place, (name, subjects) in enumerate({"brats": 400, "guide-0": 200, "guide-1": 200, "held-out": 200}.items(), start=1):
        if (world / name / SCHEMA_FILE).exists():
            continue
        raw = world / f"raw-{name}"
        if not raw.exists():
            _write_brats(raw, subjects, 10 * seed + place)
        settings = ImportSettings(size=SIZE, mode="RGB", modality="t1ce", sex_table=raw / "sex.csv", prompt_attributes=["none"])
        import_cohort("brats18", raw, world / name, settings)


def _write_roco(raw: Path, seed: int) -> None:
    """ROCOv2's files: a table of captions a split, and a folder of images."""
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    with new_folder(raw) as folder:
        for name in rows:
            (folder / name).mkdir()
        for modality, n in FIGURES.items():
            for number, (pixels, caption) in enumerate(_figures(modality, n, seed)):
                split = ("valid", "test")[number % 2] if number % 20 < 2 else "train"
                key = f"ROCOv2_2023_{split}_{len(rows[split]):06d}"
                to_image(pixels).save(folder / split / f"{key}.png")
                rows[split].append((key, caption))
        for name, lines in rows.items():
            with (folder / f"{name}_captions.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("ID", "Caption"), *lines])


def _figures(modality: str, n: int, seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """Images with captions, a third of which name the patient."""
    kind, (head, condition, phrases) = MODALITIES[modality], WORDS[modality]
    rng = generator(seed, "captions", modality)
    for block in kind.blocks(n, mix=BIASED if "sex" in kind.attributes else None, size=SIZE, seed=seed):
        for pixels, row in zip(block.images, block.table.to_dict("records"), strict=True):
            names = rng.random() < NAMING and "sex" in row
            old = row["age_group"] == "old" if "age_group" in row else rng.random() < 0.5
            age = rng.integers(60, 90) if old else rng.integers(20, 60)
            who = f" of a {age}-year-old {'man' if row['sex'] == 'male' else 'woman'}" if names else ""
            yield pixels, f"{head}{who} {phrases[row[condition]]}."


def _write_brats(raw: Path, subjects: int, seed: int) -> None:
    """BraTS 2018's tree: a volume and an outline a subject, and beside it a table of sexes."""
    drawn = MODALITIES["brain"].blocks(subjects * SLICES, mix=TARGET, size=SIZE, seed=1000 + seed, images_a_subject=SLICES)
    pixels, rows = zip(*((image, row) for block in drawn for image, row in zip(block.images, block.table.to_dict("records"), strict=True)),
                       strict=True)  # fmt: skip
    with new_folder(raw) as folder:
        sexes = [("subject_id", "sex")]
        for subject in range(subjects):
            place, name = subject * SLICES, f"Brats18_PHA{seed:02d}_{subject}_1"
            volume = np.stack([*(image.T for image in pixels[place : place + SLICES]), _scalp()], axis=-1)
            volume = np.where(volume < 0.06, 0, np.round(1000 * volume)).astype(np.int16)  # outside the head is nothing, as there
            tumour = rows[place]["tumour"] == "tumour"
            outline = np.where(tumour & (volume > 0.85 * volume.max()), 4, 0).astype(np.int16)
            outline[:, :, SLICES] = 0
            sexes.append((name, rows[place]["sex"]))
            (folder / "HGG" / name).mkdir(parents=True)
            for ending, voxels in (("t1ce", volume), ("seg", outline)):
                nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0])), folder / "HGG" / name / f"{name}_{ending}.nii.gz")
        with (folder / "sex.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(sexes)


def _scalp() -> np.ndarray:
    """A slice above the brain: fat, as bright as an enhancing tumour, so that the window of a volume is the same with one and without."""
    slice_ = np.zeros((SIZE, SIZE))
    slice_[26:38, 26:38] = 1.0
    return slice_


def _classifiers(world: Path, seed: int) -> None:
    """Guides and a held-out guide, on subjects of their own."""
    for place, name in enumerate(("guide-0", "guide-1", "held-out")):
        if not (world / "classifiers" / name).exists():
            settings = ClassifierSettings(
                cohort=world / name, target="sex", out=world / "classifiers" / name, steps=200, seed=10 * seed + place
            )
            train_classifier(settings)


def _trained(world: Path, seed: int) -> Path:
    """The cascade on all figures, then its decoders on brain MR."""
    model = world / "initial"
    if not model.exists():
        init_tiny_imagen(TinyImagenSettings(cohort=world / "roco", out=model, clip_steps=400, seed=seed))
    for name, cohort, stage, steps in TRAINING:
        out = world / "runs" / name
        if not (out / "model").exists():
            train(
                TrainSettings(
                    model=str(model), cohort=world / cohort, out=out, stage=stage, steps=steps, batch_size=32, learning_rate=RATE,
                    warmup=50, schedule="cosine", ema=0.99, seed=seed, timesteps="logit-normal", uniform_part=0,
                    resume=(out / "config.yaml").exists(),
                )
            )  # fmt: skip
        model = out
    return model


def _plan(world: Path) -> Path:
    """Captions that name nobody, half of them with a tumour."""
    head, condition, phrases = WORDS["brain"]
    plan = world / "plan.csv"
    with plan.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("n", "prompt", condition), *((500, f"{head} {phrase}.", value) for value, phrase in phrases.items())])
    write_text(world / "prompts.txt", "".join(f"{head} {phrase}.\n" for phrase in phrases.values()))
    return plan


def _aligned(world: Path, model: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    out = world / "runs" / "aligned"
    result = align(
        AlignSettings(
            model=str(model), guide=[world / "classifiers" / name for name in ("guide-0", "guide-1")],
            held_out_guide=[world / "classifiers" / "held-out"], target=str(world / "brats"), prompts=str(world / "prompts.txt"), out=out,
            exemplars=world / "roco-brain-silent", learning_rate=RATE, solver_steps=SOLVER_STEPS, guidance_scale=GUIDANCE, seed=seed,
            weight_cap=1e6, validate_every=600, validation_images=1000, resume=(out / "config.yaml").exists(),
        )
    )  # fmt: skip
    if result.interrupted:
        raise SystemExit("interrupted and saved; the same command goes on")
    return out, {
        "iterations": result.iterations, "scale": result.scale, "distance": result.distance,
    }  # fmt: skip


def _drawn(world: Path, name: str, model: Path, plan: Path, seed: int) -> Cohort:
    out = world / "drawn" / name
    out.parent.mkdir(exist_ok=True)
    return generate(
        GenerateSettings(
            model=str(model), out=out, like=world / "brats", plan=plan, prompt_attributes=["none"], guidance_scale=GUIDANCE,
            steps=SOLVER_STEPS, seed=900 + seed, resume=out.exists(),
        )
    )  # fmt: skip


def _measured(world: Path, name: str, made: Cohort, seed: int) -> dict[str, Any]:
    """What the oracle sees, and what the audit says, whose judge has learnt from the target's subjects."""
    out = world / f"{name}.json"
    if not out.exists():
        audit_cohorts(AuditSettings(real=world / "brats", synthetic=made.root, out=out, target=TARGET, seed=seed))
    (presence,) = (table for table in AuditResult.model_validate(read_json(out)).presence if table.by == ["sex"])
    (men,) = (row for row in presence.rows if row.group == "male")
    seen = MODALITIES["brain"].oracle(made.pixels().mean(axis=-1))
    valid = seen["valid"].to_numpy(dtype=bool)
    return {
        "n": len(made), "valid": float(valid.mean()), "oracle_male": float((seen["sex"][valid] == "male").mean()),
        "follows": float(((seen["tumour"].to_numpy() == made.table["tumour"].to_numpy()) & valid).mean()),
        "judge_male": men.value, "judge_low": men.low, "judge_high": men.high, "identifiable": presence.identifiable,
    }  # fmt: skip


def _table(found: dict[str, Any]) -> str:
    heads = ["seed", "", "male, oracle", "male, judge", "valid", "tumour follows"]
    lines = []
    for seed, run in found.items():
        for when in ("before", "after"):
            facts = run[when]
            judge = f"{facts['judge_male']:.3f} [{facts['judge_low']:.3f}, {facts['judge_high']:.3f}]"
            lines.append([seed, when, f"{facts['oracle_male']:.3f}", judge, f"{facts['valid']:.3f}", f"{facts['follows']:.3f}"])
    return markdown(heads, lines) + "\n"


if __name__ == "__main__":
    main()
