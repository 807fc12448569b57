"""Image classifiers: transformers folders with ``calibration.json``, fitted on a cohort, calibrated on held-out subjects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from transformers import (
    AutoModelForImageClassification,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import new_folder, provenance, read_json, require_free, write_json
from evenhand.core.config import Settings
from evenhand.core.errors import UserError, did_you_mean
from evenhand.core.groups import known
from evenhand.core.progress import track
from evenhand.core.randomness import generator, torch_generator
from evenhand.models.devices import processes
from evenhand.models.encoders import encoder_hash
from evenhand.models.libraries import quiet_libraries
from evenhand.models.preprocessing import Preprocessing
from evenhand.models.tensors import to_tensor
from evenhand.models.tiny import seeded
from evenhand.models.weights import load_weights

CALIBRATION_FILE = "calibration.json"
_SMALL = 64  # images below this side are enlarged to it: the stems of these networks halve the picture twice


class ClassifierSettings(Settings):
    """Settings of ``evenhand classifier train``."""

    cohort: Path
    target: str
    out: Path
    arch: str = "resnet"
    rows: Literal["train", "all"] = Field("train", description="what is trained on; 'all', as of generated images, holds nothing out")
    epochs: float = Field(8, gt=0)
    steps: int | None = Field(None, ge=1, description="overrides epochs")
    batch_size: int = Field(32, ge=2)
    learning_rate: float = Field(1e-3, gt=0)
    augment: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Classifier:
    """A classifier of one cohort column, with its held-out figures."""

    model: torch.nn.Module
    preprocessing: Preprocessing
    target: str
    groups: list[str]
    temperature: float
    auc: float | None
    facts: dict[str, Any]
    sha256: str
    path: Path

    @classmethod
    def load(cls, path: Path | str) -> Classifier:
        """Read a classifier folder.

        Raises:
            UserError: not a transformers image-classification folder, or no ``calibration.json``.
        """
        folder = Path(path)
        if not (folder / CALIBRATION_FILE).is_file():
            raise UserError(f"{folder}: no {CALIBRATION_FILE}; make a classifier with 'evenhand classifier train'")
        facts = read_json(folder / CALIBRATION_FILE)
        if not isinstance(facts, dict):
            raise UserError(f"{folder / CALIBRATION_FILE}: not a table of facts; train the classifier again")
        # Said, not left to the default: unset, transformers asks on a terminal whether to run a folder's own code.
        loaded = load_weights(AutoModelForImageClassification, folder, "the classifier", trust_remote_code=False)
        loaded.require_whole(folder)
        model = loaded.model
        for key in ("target", "groups", "temperature"):
            if key not in facts:
                raise UserError(f"{folder / CALIBRATION_FILE}: no {key!r}; train the classifier again")
        if model.config.num_labels != len(facts["groups"]):
            raise UserError(
                f"{folder / CALIBRATION_FILE}: {len(facts['groups'])} groups, the model tells {model.config.num_labels} apart; "
                "train the classifier again"
            )
        _check_errors(folder / CALIBRATION_FILE, facts)
        return cls(
            model=model.eval(),
            preprocessing=Preprocessing.load(folder),
            target=facts["target"],
            groups=list(facts["groups"]),
            temperature=float(facts["temperature"]),
            auc=facts.get("auc"),
            facts=facts,
            sha256=encoder_hash(folder),
            path=folder,
        )

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Calibrated logits (n, G) of a tensor (n, 3, H, W) in [0, 1]; differentiable."""
        return self.model(pixel_values=self.preprocessing(images)).logits / self.temperature

    @torch.no_grad()
    def predict(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n, G) of images (n, H, W) or (n, H, W, 3) in [0, 1]."""
        device = next(self.model.parameters()).device
        return self.logits(to_tensor(images, 3).to(device)).cpu().double().softmax(1).numpy()

    @property
    def subjects_sha256(self) -> str:
        """Hash of the subjects that it was trained on: judge and guide must differ in it."""
        return str(self.facts.get("subjects_sha256", ""))

    def to(self, device: torch.device) -> Classifier:
        """The same classifier on another device."""
        self.model.to(device)
        return self


def _resnet(labels: dict[str, Any], side: int) -> torch.nn.Module:
    small = ResNetConfig(num_channels=3, embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic", **labels)
    return ResNetForImageClassification(small)


def _vit(labels: dict[str, Any], side: int) -> torch.nn.Module:
    small = ViTConfig(
        image_size=side, patch_size=side // 8, hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, **labels
    )
    return ViTForImageClassification(small)


def _efficientnet(labels: dict[str, Any], side: int) -> torch.nn.Module:
    small = EfficientNetConfig(
        image_size=side, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640, batch_norm_momentum=0.1, **labels
    )
    model = EfficientNetForImageClassification(small)
    # The library draws all weights with a deviation of .02, those of normalisations too: meant to be loaded over, not to be trained from,
    # since nothing of an image arrives at the end. And its momentum of .99 is TensorFlow's: .01 here.
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
    return model


ARCHITECTURES: dict[str, Callable[[dict[str, Any], int], torch.nn.Module]] = {
    "resnet": _resnet,
    "vit": _vit,
    "efficientnet": _efficientnet,
}


def train_classifier(settings: ClassifierSettings) -> Classifier:
    """Train on the training split, calibrate the temperature on ``val``, measure on ``test`` (Guo et al. 2017, arXiv 1706.04599).

    Raises:
        UserError: unknown column or architecture, or fewer than two groups in the training split.
    """
    require_free(settings.out)
    if settings.arch not in ARCHITECTURES:
        raise UserError(f"--arch: unknown architecture {settings.arch!r}; {did_you_mean(settings.arch, ARCHITECTURES)}")
    cohort = Cohort.load(settings.cohort)
    groups = cohort.require_column(settings.target)
    labelled = cohort.subset(known(cohort.table, [settings.target]))
    train = _rows(labelled, settings)
    present = [group for group in groups if (train.table[settings.target] == group).any()]
    if len(present) < 2:
        found, where = present[0] if present else "none", "the training split" if settings.rows == "train" else "the cohort"
        raise UserError(f"{settings.cohort}: {settings.target} has one group only in {where} ({found}); nothing to tell apart")
    side = max(cohort.schema.image_size, _SMALL)
    labels = {"num_labels": len(groups), "id2label": dict(enumerate(groups)), "label2id": {g: i for i, g in enumerate(groups)}}
    with seeded(settings.seed, f"classifier-{settings.target}"):
        model = ARCHITECTURES[settings.arch](labels, side)
    preprocessing = Preprocessing((side, side), None, (0.5,) * 3, (0.5,) * 3)
    _fit(model.to(processes().device), preprocessing, train, groups, settings)
    facts = _held_out_facts(model.eval(), preprocessing, labelled, groups, settings)
    with new_folder(settings.out) as folder, quiet_libraries():
        model.save_pretrained(folder, safe_serialization=True)
        preprocessing.save(folder)
        write_json(folder / CALIBRATION_FILE, facts)
    return Classifier.load(settings.out)


def _rows(cohort: Cohort, settings: ClassifierSettings) -> Cohort:
    return cohort.split("train") if settings.rows == "train" else cohort


def _fit(model: torch.nn.Module, preprocessing: Preprocessing, train: Cohort, groups: list[str], settings: ClassifierSettings) -> None:
    device = next(model.parameters()).device
    codes = torch.from_numpy(_codes(train, settings.target, groups))
    steps = settings.steps or max(1, round(settings.epochs * len(train) / settings.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    model.train()
    with track(f"classifier {settings.target}", steps) as bar, seeded(settings.seed, "dropout"):
        for step in range(steps):
            rows = generator(settings.seed, "classifier", step).integers(len(train), size=settings.batch_size)
            images = to_tensor(train.pixels(rows), 3)
            if settings.augment:
                images = augmented(images, torch_generator(settings.seed, "augment", step))  # on the CPU: the same on every device
            logits = model(pixel_values=preprocessing(images.to(device))).logits
            loss = F.cross_entropy(logits, codes[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.advance(note=f"loss {loss.item():.3f}")


def augmented(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    """Small shift, contrast, brightness, noise and blur, one draw per image: what a generator's images differ by."""
    n, side = len(images), images.shape[-1]
    uniform = torch.rand((n, 5), generator=draws)
    reach = max(1, side // 16)
    padded = F.pad(images, [reach] * 4, mode="replicate")
    tops, lefts = ((uniform[:, k] * (2 * reach + 1)).long().clamp(max=2 * reach) for k in (0, 1))
    shifted = torch.stack([padded[i, :, t : t + side, left : left + side] for i, (t, left) in enumerate(zip(tops, lefts, strict=True))])
    blurred = F.avg_pool2d(F.pad(shifted, [1] * 4, mode="replicate"), 3, 1)
    shifted = torch.where((uniform[:, 2] < 0.3)[:, None, None, None], (shifted + blurred) / 2, shifted)
    contrast, light = (0.8 + 0.4 * uniform[:, 3])[:, None, None, None], (0.1 * uniform[:, 4] - 0.05)[:, None, None, None]
    noise = torch.randn(shifted.shape, generator=draws) * 0.03
    return ((shifted - 0.5) * contrast + 0.5 + light + noise).clamp(0, 1)


def _codes(cohort: Cohort, target: str, groups: list[str]) -> np.ndarray:
    place = {group: code for code, group in enumerate(groups)}
    faults = cohort.table.index[~cohort.table[target].isin(groups)]
    if len(faults):
        row, value = faults[0], cohort.table.loc[faults[0], target]
        raise UserError(f"{cohort.root}: row {row}: {target} has no group {value!r}; run 'evenhand cohort check'")
    return cohort.table[target].map(place).to_numpy(dtype=np.int64, copy=True)  # torch wants it writable


@torch.no_grad()
def _raw_logits(model: torch.nn.Module, preprocessing: Preprocessing, cohort: Cohort, batch: int = 64) -> np.ndarray:
    device = next(model.parameters()).device
    parts = (range(start, min(start + batch, len(cohort))) for start in range(0, len(cohort), batch))
    pieces = [model(pixel_values=preprocessing(to_tensor(cohort.pixels(rows), 3).to(device))).logits.cpu().numpy() for rows in parts]
    return np.concatenate(pieces) if pieces else np.zeros((0, model.config.num_labels), np.float32)


def _held_out_facts(
    model: torch.nn.Module, preprocessing: Preprocessing, labelled: Cohort, groups: list[str], settings: ClassifierSettings
) -> dict[str, Any]:
    nothing = labelled.subset(np.zeros(len(labelled), dtype=bool))
    val, test = (labelled.split(name) if settings.rows == "train" else nothing for name in ("val", "test"))
    temperature = _temperature(_raw_logits(model, preprocessing, val), _codes(val, settings.target, groups))
    logits, codes = _raw_logits(model, preprocessing, test), _codes(test, settings.target, groups)
    subjects = sorted(set(_rows(labelled, settings).table["subject_id"].astype(str)))
    by_group = {
        attribute: {group: _auc(logits[mask], codes[mask]) for group in names for mask in [(test.table[attribute] == group).to_numpy()]}
        for attribute, names in labelled.schema.attributes.items()
        if attribute != settings.target
    }
    return {
        "target": settings.target,
        "groups": groups,
        "temperature": temperature,
        "auc": _auc(logits, codes),
        "accuracy": float((logits.argmax(1) == codes).mean()) if len(codes) else None,
        "read_as": _read_as(logits.argmax(1), codes, len(groups)),
        "test_subjects": [int(test.table["subject_id"][codes == code].nunique()) for code in range(len(groups))],
        "auc_by_group": by_group,
        "n": {"train": len(_rows(labelled, settings)), "val": len(val), "test": len(test)},
        "subjects_sha256": _hash_subjects(subjects),
        "cohort": labelled.schema.name,
        "provenance": provenance(settings=settings.model_dump(mode="json")),
    }


def _check_errors(path: Path, facts: dict[str, Any]) -> None:
    """Raise where what a file says of its classifier's errors, if it does, is not what training writes."""
    if facts.get("read_as") is None:
        return
    k = len(facts["groups"])
    try:
        rows, subjects = list(facts["read_as"]), list(facts["test_subjects"])
        known = np.array([row for row in rows if row is not None], dtype=float).reshape(-1, k)
        right = len(rows) == len(subjects) == k and bool((known >= 0).all()) and np.allclose(known.sum(1), 1)
        right = right and all(isinstance(n, int) and n >= 0 for n in subjects)
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise UserError(
            f"{path}: 'read_as' must have a row of {k} shares a group, which sum to 1, and 'test_subjects' a count a group; "
            "train the classifier again"
        )


def _read_as(read: np.ndarray, codes: np.ndarray, k: int) -> list[list[float] | None]:
    """Which part of each group's images is read as which group: a row a group, None where it has no image."""
    rows = ((codes == code) for code in range(k))
    return [(np.bincount(read[own], minlength=k) / own.sum()).tolist() if own.any() else None for own in rows]


def _hash_subjects(subjects: list[str]) -> str:
    return hashlib.sha256("\n".join(subjects).encode()).hexdigest()


def _temperature(logits: np.ndarray, codes: np.ndarray) -> float:
    """The temperature of least log-loss; 1 where there is nothing to fit it on."""
    if len(np.unique(codes)) < 2:
        return 1.0
    tensor, target = torch.from_numpy(logits).double(), torch.from_numpy(codes)
    best = minimize_scalar(lambda log_t: float(F.cross_entropy(tensor / np.exp(log_t), target)), bounds=(-2.0, 3.0), method="bounded")
    return float(np.exp(best.x))


def _auc(logits: np.ndarray, codes: np.ndarray) -> float | None:
    """Area under the ROC curve, macro one-vs-rest over the classes present; None where it is undefined."""
    present = np.unique(codes)
    if len(present) < 2:
        return None
    if logits.shape[1] == 2:
        return float(roc_auc_score(codes, logits[:, 1] - logits[:, 0]))
    scores = torch.from_numpy(logits).softmax(1).numpy()
    return float(np.mean([roc_auc_score(codes == code, scores[:, code]) for code in present]))
