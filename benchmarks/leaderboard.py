"""Tables and contact sheets of several methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import interval, markdown, spread, with_interval
from matplotlib.figure import Figure

from evenhand.cohorts.cohort import Cohort
from evenhand.core.artifacts import write_atomically

FIGURES = ("worst_fd", "worst_kid", "fd_gap", "pooled_fd", "pooled_kid", "rare_fd", "rare_kid", "major_fd", "major_kid", "auc_gap")
_ACROSS = 8
_DISTANCES = {
    "rare_fd": "rare FD", "worst_fd": "worst FD", "major_fd": "major FD", "fd_gap": "FD gap", "pooled_fd": "pooled FD",
    "rare_kid": "rare KID", "worst_kid": "worst KID", "pooled_kid": "pooled KID",
}  # fmt: skip
_PAIRED = ("rare_fd", "rare_kid", "worst_fd", "worst_kid", "major_fd", "pooled_fd", "auc_gap")

Found = Mapping[str, Mapping[str, Any]]  # method -> seed -> figures


def against_uniform(found: Found) -> dict[str, Any]:
    """Mean paired difference to uniform over common seeds, with a 95 % t interval."""
    base, differences = found.get("uniform", {}), {}
    for method, runs in found.items():
        seeds = sorted(set(runs) & set(base))
        if method != "uniform" and seeds:
            pairs = {key: np.array([runs[seed][key] - base[seed][key] for seed in seeds]) for key in FIGURES}
            differences[method] = {"seeds": len(seeds), **{key: interval(values) for key, values in pairs.items()}}
    return differences


def tables(found: Found, against: Mapping[str, Any], floor: Mapping[str, Any] | None) -> str:
    """Distances, condition AUC by group, and paired differences to uniform; markdown."""
    some = next(iter(next(iter(found.values())).values()))
    groups = sorted(some["auc"])
    parts = [
        f"Mean ± standard deviation over seeds. Rare group: {some['rare']}, largest: {some['major']}; {some['n']} images of each a side.",
        markdown(
            ["method (seeds)", *_DISTANCES.values()],
            [[f"{method} ({len(runs)})", *_spreads(runs, _DISTANCES)] for method, runs in found.items()]
            + ([["two samples of one law", *(f"{floor[key]:.3g}" for key in _DISTANCES)]] if floor else []),
        ),
        "AUC of the condition, as a classifier of real images reads it from generated ones.",
        markdown(["method", *groups, "gap"], [
            *([method, *(spread([run["auc"][group] for run in runs.values()]) for group in groups), *_spreads(runs, ["auc_gap"])]
              for method, runs in found.items()),
            ["real images", *(f"{some['auc_real'][group]:.3g}" for group in groups),
             f"{max(some['auc_real'].values()) - min(some['auc_real'].values()):.3g}"],
        ]),
        "Difference to uniform with the same seed, and its 95 % interval.",
        markdown(["method (pairs)", *(_DISTANCES.get(key, "AUC gap") for key in _PAIRED)],
              [[f"{method} ({pairs['seeds']})", *(with_interval(pairs[key]) for key in _PAIRED)] for method, pairs in against.items()]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _spreads(runs: Mapping[str, Any], keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    return [spread([run[key] for run in runs.values()]) for key in keys]


def write_sheet(path: Path, drawn: Mapping[str, Cohort], attribute: str) -> None:
    """The first images of every group, a row a method and group; methods that drew with the same seed stand on the same noise."""
    rows = [(method, group, cohort) for method, cohort in drawn.items() for group in sorted(set(cohort.table[attribute]))]
    figure = Figure(figsize=(7, 0.62 * len(rows)), layout="constrained")
    for place, (axes, (method, group, cohort)) in enumerate(zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True)):
        own = np.flatnonzero(cohort.table[attribute] == group)[:_ACROSS]
        axes.imshow(np.concatenate(list(cohort.pixels(own)), axis=1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_ylabel(
            f"{method}\n{group}" if not place or rows[place - 1][0] != method else group, rotation=0, ha="right", va="center", size=7
        )
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120, bbox_inches="tight"))
