"""What is measured of a model before and after alignment, and what is said of it over seeds. Brain phantoms alone: they have an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import interval, markdown, spread, with_interval
from scipy.ndimage import gaussian_filter

from evenhand.audit.fidelity import frechet_distance, kernel_distance
from evenhand.audit.representation import estimate_mix
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms import MODALITIES
from evenhand.core.groups import Mix, intersection
from evenhand.core.randomness import generator
from evenhand.engine.features import cohort_features, cohort_predictions
from evenhand.models.classifiers import Classifier
from evenhand.models.encoders import Encoder

MATCHED = 2000  # real images in the mix of the drawn ones: as many for every model, since distances fall with the number
ATTRIBUTES = ["sex", "age_group"]  # images are compared with real ones of the same of both
FEW = 20  # drawn images of a group: fewer have no distance
FIGURES = {
    "oracle_male": "male, oracle", "judge_male": "male, judge", "oracle_tv": "TV, oracle", "judge_tv": "TV, judge", "valid": "valid",
    "follows": "tumour follows", "matched_fd": "FD at its own mix", "target_fd": "FD at the target", "kid_male": "KID male",
    "kid_female": "KID female", "gradient_share": "compute", "reading_share": "and of reading",
}  # fmt: skip
HALF, OTHER = 0.03, 0.05  # total variation that is near enough: from the target of half and half, and from others
AGAINST = {
    "fd_ratio": "FD at its own mix, after / before", "target_fd_ratio": "FD at the target, after / before", "follows": "tumour follows",
    "kid_male": "KID male", "kid_female": "KID female",
}  # fmt: skip


def classifier_folder(world: Path, name: str, attribute: str) -> Path:
    """Where a guide or judge of an attribute is."""
    return world / "classifiers" / (name if attribute == "sex" else f"{name}-{attribute}")


def measured(world: Path, made: Cohort, target: Mix) -> dict[str, Any]:
    """Shares by oracle and judge, prompt following, and quality by an encoder that took no part.

    ``matched_fd`` compares with real images in the mix that is drawn, so that another mix is not taken for other images. It still rises
    where a group that is drawn worse than others is drawn more often: ``target_fd`` weighs the drawn images to the target before both
    models are compared. Both, and the kernel distance within each sex, hold age alike too.
    """
    seen = MODALITIES["brain"].oracle(made.pixels())
    valid = seen["valid"].to_numpy(dtype=bool)
    real, encoder = Cohort.load(world / "cohorts" / "eval"), Encoder.load(world / "classifiers" / "encoder")
    there, here = cohort_features(encoder, real), cohort_features(encoder, made)[valid]
    drawn = seen[valid]
    shares = intersection(drawn, list(target.names)).value_counts(normalize=True).to_dict()
    wanted = {" x ".join(values): share for values, share in target.joint().items()}
    return {
        "n": len(made), "valid": float(valid.mean()), "oracle_male": float((drawn["sex"] == "male").mean()),
        "oracle_tv": sum(abs(shares.get(group, 0) - share) for group, share in wanted.items()) / 2, **_judged(world, made, target),
        "follows": float(((seen["tumour"].to_numpy() == made.table["tumour"].to_numpy()) & valid).mean()),
        "matched_fd": _matched_fd(real.table, there, drawn, here), "target_fd": _target_fd(real.table, there, drawn, here, target),
        **{f"kid_{sex}": _kid(real.table, there, drawn, here, sex) for sex in ("male", "female")},
        "blurred_kid": _blurred(encoder, real, there),
    }  # fmt: skip


def _matched_fd(real: pd.DataFrame, there: np.ndarray, drawn: pd.DataFrame, here: np.ndarray) -> float:
    groups, shares = intersection(real, ATTRIBUTES).to_numpy(), intersection(drawn, ATTRIBUTES).value_counts(normalize=True).to_dict()
    return float(np.mean([frechet_distance(there[_rows(groups, shares, repeat)], here) for repeat in range(5)]))


def _target_fd(real: pd.DataFrame, there: np.ndarray, drawn: pd.DataFrame, here: np.ndarray, target: Mix) -> float | None:
    """With drawn images resampled to the target mix; None where too few show a group of it."""
    wanted = {" x ".join(values): share for values, share in target.joint().items()}
    groups, shown = (intersection(table, list(target.names)).to_numpy() for table in (real, drawn))
    counts = {group: int((shown == group).sum()) for group in wanted}
    if min(counts.values()) < FEW:
        return None
    weights = np.array([wanted[group] / counts[group] for group in shown])
    found = []
    for repeat in range(5):
        rows = generator(repeat, "to target").choice(len(here), size=len(here), p=weights / weights.sum())
        found.append(frechet_distance(there[_rows(groups, wanted, repeat)], here[rows]))
    return float(np.mean(found))


def _rows(groups: np.ndarray, shares: Mapping[str, float], repeat: int) -> np.ndarray:
    """Random real rows with these shares of groups."""
    rows = {group: generator(repeat, "matched", group).permutation(np.flatnonzero(groups == group)) for group in shares}
    n = min(MATCHED, *(len(rows[group]) / share for group, share in shares.items()))
    return np.concatenate([rows[group][: round(n * share)] for group, share in shares.items()])


def _kid(real: pd.DataFrame, there: np.ndarray, drawn: pd.DataFrame, here: np.ndarray, sex: str) -> float | None:
    """Mean over ages of the kernel distance; None where too few of one are drawn."""
    found = []
    for age in sorted(real["age_group"].unique()):
        rows, own = (((table["sex"] == sex) & (table["age_group"] == age)).to_numpy() for table in (real, drawn))
        if own.sum() < FEW:
            return None
        found.append(kernel_distance(there[rows], here[own]).value)
    return float(np.mean(found))


def _judged(world: Path, made: Cohort, target: Mix) -> dict[str, Any]:
    """Shares as the judges read them, corrected by their errors on held-out real images; the distance is that of the worst attribute."""
    held, facts, distances = Cohort.load(world / "cohorts" / "judge").split("val", "test"), dict[str, Any](), []
    for attribute in target.names:
        judge = Classifier.load(classifier_folder(world, "judge", attribute))
        labels = held.table[attribute].map({group: code for code, group in enumerate(judge.groups)}).to_numpy()
        encoder = Encoder.load(classifier_folder(world, "judge", attribute))  # its own features, as audits take them
        features, there = (cohort_features(encoder, cohort) for cohort in (made, held))
        probabilities, known = (cohort_predictions(judge, cohort) for cohort in (made, held))
        found = estimate_mix(probabilities, known, labels, features=features, calibration_features=there)
        wanted = {group: share for (group,), share in target.joint([attribute]).items()}
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


def against_before(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What each recipe changed, paired by seed: distances as ratios of geometric means, the rest as differences; 95 % t intervals."""
    against = {}
    for recipe, runs in found.items():
        pairs = [(found["before"][seed], run) for seed, run in runs.items() if seed in found["before"]]
        if recipe == "before" or not pairs:
            continue
        changed = {key: _changed(pairs, key) for key in ("follows", "kid_male", "kid_female")}
        against[recipe] = {
            "seeds": len(pairs), "near_enough": sum(_near_enough(after) for _, after in pairs),
            "fd_ratio": _ratio(pairs, "matched_fd"), "target_fd_ratio": _ratio(pairs, "target_fd"),
            **changed, "kid_limit": float(np.mean([before["blurred_kid"] for before, _ in pairs])) / 10,
        }  # fmt: skip
    return against


def _near_enough(run: Mapping[str, Any]) -> bool:
    """By the oracle and by judges that can tell."""
    told = {key: value for key, value in run.items() if key.endswith("_identifiable")}
    return all(told.values()) and max(run["oracle_tv"], run["judge_tv"]) <= (OTHER if "target" in run["plan"]["recipe"] else HALF)


def _changed(pairs: list[tuple[Any, Any]], key: str) -> dict[str, Any] | None:
    values = [after - before for before, after in _known(pairs, key)]
    return {"seeds": len(values), **interval(np.array(values))} if values else None


def _ratio(pairs: list[tuple[Any, Any]], key: str) -> dict[str, Any] | None:
    values = [np.log(after / before) for before, after in _known(pairs, key)]
    if not values:
        return None
    return {"seeds": len(values), **{end: None if v is None else float(np.exp(v)) for end, v in interval(np.array(values)).items()}}


def _known(pairs: list[tuple[Any, Any]], key: str) -> list[tuple[float, float]]:
    """Of the seeds in which both have it."""
    return [(before[key], after[key]) for before, after in pairs if before[key] is not None and after[key] is not None]


def tables(found: Mapping[str, Mapping[str, Any]], against: Mapping[str, Any]) -> str:
    """Figures over seeds, and what changed."""
    rows = []
    for recipe, runs in found.items():
        values = ([run[key] for run in runs.values() if run.get(key) is not None] for key in FIGURES)
        rows.append([f"{recipe} ({len(runs)})", *(spread(own) if own else "" for own in values)])
    verdicts = [
        [
            f"{recipe} ({row['seeds']})", f"{row['near_enough']} of {row['seeds']}",
            *(with_interval(row[key]) if row[key] is not None else "" for key in AGAINST), f"{row['kid_limit']:.3f}",
        ]
        for recipe, row in against.items()
    ]  # fmt: skip
    near = f"TV within {HALF:.2f} ({OTHER:.2f} where the target is not half and half) by oracle and judge"
    return "\n\n".join(
        [
            "Mean ± standard deviation over seeds. FD is squared, as in FID. Compute in parts of the model's training.",
            markdown(["recipe (seeds)", *FIGURES.values()], rows),
            "Against the untuned model of the same seed, with 95 % intervals over seeds.",
            markdown(["recipe (seeds)", near, *AGAINST.values(), "KID may rise by"], verdicts),
        ]
    ) + "\n"  # fmt: skip
