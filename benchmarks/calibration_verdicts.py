"""Sections of audit_calibration.py on verdicts: levels and power of tests between groups, rules, and the final check."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
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
from evenhand.audit.result import PresenceRow
from evenhand.core.randomness import generator

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
