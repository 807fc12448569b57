"""Sections of audit_calibration.py on verdicts: levels and power of tests between groups, rules, the final check, and refusals."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from evenhand.alignment.checking import FinalCheck, images_needed, judges_leave_open
from evenhand.alignment.classes import PromptClasses
from evenhand.alignment.correction import Correction, Rows
from evenhand.audit import auc_gaps
from evenhand.audit.auc_gaps import fidelity_gap, utility_gap_p
from evenhand.audit.decisions import parse_rule
from evenhand.audit.intervals import share_interval
from evenhand.audit.mixes import mix_gap
from evenhand.audit.presence import Target, gap_error, target_p_value
from evenhand.audit.representation import estimate_mix
from evenhand.audit.result import PresenceRow
from evenhand.cohorts.cohort import Cohort
from evenhand.cohorts.phantoms.cohort import write_phantoms
from evenhand.core.randomness import generator
from evenhand.models.classifiers import Classifier, ClassifierSettings, train_classifier
from evenhand.models.encoders import Encoder

Rates = dict[str, Any]
SIZES: dict[str, tuple[tuple[int, ...], float]] = {
    "300/300/300, half positive": ((300, 300, 300), 0.5),
    "1000/60/60, half positive": ((1000, 60, 60), 0.5),
    "1000/100/50, one in ten positive": ((1000, 100, 50), 0.1),
}
JUDGES = {"AUC .9 in all groups": (0.9, 0.9, 0.9), "AUC .95/.83/.83": (0.95, 0.83, 0.83), "AUC .83/.95/.9": (0.83, 0.95, 0.9)}
_DRAWS = 2000  # permutations behind a p-value: enough to tell .05, and a thousand simulations end


def fidelity(repeats: int) -> Rates:
    """How often unequal prompt fidelity is flagged: where the generator is perfect, where it is equally poor, and where one group lags."""
    nulls = [(size, judge, drop, 0.0) for size, judge, drop in itertools.product(SIZES, JUDGES, (0.0, 0.1))]
    power = [(size, "AUC .9 in all groups", 0.0, less) for size, less in itertools.product(SIZES, (0.05, 0.1, 0.15, 0.2, 0.3))]
    flagged = _pooled(_fidelity_cell, repeats, [*nulls, *power])
    told = {"false alarm": {}, "power by the third group's shortfall of AUC": {}}
    for (size, judge, drop, less), rate in flagged.items():
        kind = "power by the third group's shortfall of AUC" if less else "false alarm"
        poor = f"AUC {drop:g} lower on generated images in every group" if drop else "a perfect generator"
        generated = f"{less:g}" if less else poor
        told[kind].setdefault(size, {})[generated if less else f"{judge}, {generated}"] = rate
    return told


def utility(repeats: int) -> Rates:
    """How often a classifier trained on generated images is called worse for one group where it is equally worse for all."""
    cells = [(size, drop) for size, drop in itertools.product(SIZES, (0.0, 0.4))]
    return {f"{size}, signal {drop:g} lower in every group": rate for (size, drop), rate in _pooled(_utility_cell, repeats, cells).items()}


def _pooled(cell: Any, repeats: int, cells: Sequence[tuple]) -> dict[tuple, float]:
    with ProcessPoolExecutor() as pool:
        return dict(zip(cells, pool.map(cell, itertools.repeat(repeats), cells), strict=True))


def _fidelity_cell(repeats: int, cell: tuple[str, str, float, float]) -> float:
    size, judge, drop, less = cell
    sizes, positives = SIZES[size]
    auc_gaps.SCREENING, auc_gaps.DRAWS = min(500, _DRAWS), _DRAWS
    flagged = 0
    for repeat in range(repeats):
        rng = generator(repeat, "fidelity", *map(str, cell))
        aucs = JUDGES[judge]
        made = _scored(rng, sizes, [auc - drop - (less if place == 2 else 0) for place, auc in enumerate(aucs)], positives)
        real = _scored(rng, [max(40, n // 2) for n in sizes], aucs, positives)
        flagged += fidelity_gap(*made, *real, n_boot=2, seed=repeat).p_value < 0.05
    return flagged / repeats


def _scored(rng: np.random.Generator, sizes: Sequence[int], aucs: Sequence[float], positives: float) -> tuple[np.ndarray, ...]:
    """Normal scores of these AUCs, labels, and groups."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.concatenate([np.arange(n) < round(n * positives) for n in sizes]).astype(int)
    return rng.normal(size=len(groups)) + math.sqrt(2) * norm.ppf(np.array(aucs))[groups] * labels, labels, groups


def _utility_cell(repeats: int, cell: tuple[str, float]) -> float:
    size, drop = cell
    sizes, positives = SIZES[size]
    auc_gaps.SCREENING, auc_gaps.DRAWS = min(500, _DRAWS), _DRAWS
    flagged = 0
    for repeat in range(repeats):
        rng = generator(repeat, "utility", *map(str, cell))
        groups = np.repeat(np.arange(len(sizes)), sizes)
        labels = np.concatenate([np.arange(n) < round(n * positives) for n in sizes]).astype(int)
        shared = rng.normal(size=len(groups))
        first, second = (0.8 * shared + 0.6 * rng.normal(size=len(groups)) + signal * labels for signal in (1.8, 1.8 - drop))
        flagged += utility_gap_p(labels, first, second, groups, seed=repeat) < 0.05
    return flagged / repeats


def shares(repeats: int) -> Rates:
    """How often a mix that is the target's is called another one, by the number of groups; and how often rules fail such an audit.

    Every image's group is known, so that nothing but sampling is behind a gap.
    """
    texts = ("presence:sex>0.05", "presence:sex<=0.05", "presence:sex>0.05!point")
    rules = {text: parse_rule(text) for text in texts}
    found: Rates = {}
    for k, n in itertools.product((2, 3, 8), (200, 2000)):
        target = {str(place): 1 / k for place in range(k)}
        flagged, failed, gaps = 0, dict.fromkeys(texts, 0), []
        for repeat in range(repeats):
            groups = generator(repeat, "shares", f"{k}", f"{n}").integers(k, size=n)
            rows, gap, radius = _counted(groups, target)
            flagged += target_p_value(rows, Target(target)) < 0.05
            gaps.append(gap)
            for text, rule in rules.items():
                failed[text] += rule.fails(gap, max(gap - radius, 0), gap + radius) is not False
        found[f"{k} groups, {n} images at parity"] = {
            "flagged": flagged / repeats, "mean_gap": float(np.mean(gaps)), "failed": {text: n_ / repeats for text, n_ in failed.items()},
        }  # fmt: skip
    return found


def _counted(groups: np.ndarray, target: dict[str, float]) -> tuple[list[PresenceRow], float, float]:
    """Rows of a table of counted shares, the gap, and the 95th percentile of its error."""
    k, n = len(target), len(groups)
    rows = []
    for place, (name, wanted) in enumerate(target.items()):
        value, low, high = share_interval(groups == place, np.arange(n))
        rows.append(PresenceRow(group=name, n=n, value=value, low=low, high=high, raw=None, raw_low=None, raw_high=None, target=wanted))
    values = np.array([row.value for row in rows])
    errors = generator(0, "counted").multinomial(n, values, size=4000) / n - values
    return rows, mix_gap(dict(zip(target, values, strict=True)), target), gap_error(errors, np.full(k, 1 / k), 0)[0]


def reached(repeats: int) -> Rates:
    """How often the final check of an alignment says ``reached``, by how far the true share lies from the target of one half.

    Images are as many as the tolerance .05 asks for; the judge takes one image in twenty of either group for the other, as 400 test
    subjects of each told.
    """
    cells = [(off,) for off in (0.0, 0.02, 0.05, 0.06, 0.1, 0.288)]
    return {f"share {0.5 + off:.3f}": rate for (off,), rate in _pooled(_reached_cell, repeats, cells).items()}


def _reached_cell(repeats: int, cell: tuple[float]) -> float:
    target, tolerance, errs, subjects = np.array([0.5, 0.5]), 0.05, 0.05, 400
    passed = 0
    for repeat in range(repeats):
        rng = generator(repeat, "reached", *map(str, cell))
        wrong = rng.binomial(subjects, errs, size=2) / subjects
        read_as = np.array([[1 - wrong[0], wrong[0]], [wrong[1], 1 - wrong[1]]])
        correction = Correction(1, [[Rows(read_as, np.full(2, float(subjects)), 1)]], [])
        left = judges_leave_open(target, correction, PromptClasses.one([""]), repeat)
        n = images_needed(target, tolerance, correction, left)
        first = rng.random(n) < 0.5 + cell[0]
        seen = first ^ (rng.random(n) < errs)
        votes = np.stack([seen, ~seen], axis=1).astype(float)
        low, high = correction.interval(votes, lambda mix: mix, repeat)
        passed += FinalCheck(correction.shares(votes.mean(0)), low, high, n).shows(target, tolerance)
    return passed / repeats


def refusals(repeats: int) -> Rates:
    """How often a share is refused where only the mix differs, and where images are off the manifold; and what is missed.

    A judge of brain phantoms reads 500 others whose shares are .2 to .9, as they are, or blurred, noisy, of another contrast, or turned.
    ``missed``: the 95 % interval does not contain the true share; ``refused_of_missed`` is what is refused of those. Cases of one
    distortion are resamples of the same 1,200 images; ``repeats`` cases of each.
    """
    with tempfile.TemporaryDirectory() as work:
        cohort = write_phantoms("brain", Path(work) / "cohort", n=3000, size=32, seed=5)
        pool = write_phantoms("brain", Path(work) / "pool", n=1200, size=32, seed=6)
        found: Rates = {}
        for attribute in ("sex", "age_group"):
            judge = train_classifier(ClassifierSettings(cohort=cohort.root, target=attribute, out=Path(work) / attribute, epochs=6))
            found[attribute] = _refusals_of(judge, cohort.split("val", "test"), pool, repeats)
    return found


def _refusals_of(judge: Classifier, held_out: Cohort, pool: Cohort, repeats: int) -> Rates:
    encoder = Encoder.load(judge.path)
    order = {group: code for code, group in enumerate(judge.groups)}
    codes = [cohort.table[judge.target].map(order).to_numpy() for cohort in (held_out, pool)]
    calibration = _read(judge, encoder, held_out.pixels())
    images, found = pool.pixels(), {}
    for name, distorted in _distortions(images).items():
        probs, features = _read(judge, encoder, distorted)
        refused = missed = both = 0
        for repeat in range(repeats):
            rng = generator(repeat, "refusals", name)
            share = float(rng.choice([0.2, 0.4, 0.5, 0.9]))
            counts = round(500 * share), 500 - round(500 * share)
            rows = np.concatenate([rng.choice(np.flatnonzero(codes[1] == code), n) for code, n in enumerate(counts)])
            mix = estimate_mix(
                probs[rows], calibration[0], codes[0], features=features[rows], calibration_features=calibration[1], n_boot=200, seed=repeat
            )
            out = not mix.low[0] <= share <= mix.high[0]
            refused, missed, both = refused + (not mix.identifiable), missed + out, both + (out and not mix.identifiable)
        found[name] = {"refused": refused / repeats, "missed": missed / repeats, "refused_of_missed": both / missed if missed else None}
    return found


def _distortions(images: np.ndarray) -> dict[str, np.ndarray]:
    noise = generator(0, "refusals").standard_normal(images.shape, dtype=np.float32)
    made = {"only the mix differs": images}
    made |= {f"blur {sd} px": gaussian_filter(images, (0, sd, sd)) for sd in (0.5, 1.0, 1.5, 2.5)}
    made |= {f"noise {sd}": images + np.float32(sd) * noise for sd in (0.05, 0.15, 0.3)}
    made |= {"contrast .7": 0.5 + (images - 0.5) * 0.7, "gamma 1.5": images**1.5, "upside down": images[:, ::-1]}
    return {name: np.clip(part, 0, 1).astype(np.float32) for name, part in made.items()}


def _read(judge: Classifier, encoder: Encoder, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and penultimate features."""
    parts = [np.ascontiguousarray(images[start : start + 100]) for start in range(0, len(images), 100)]
    return np.concatenate([judge.predict(part) for part in parts]), np.concatenate([encoder.features(part) for part in parts])
