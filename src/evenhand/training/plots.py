"""What a method did over a run, as a figure: sigma or q by group, and the contrasts of its forks with their errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evenhand.core.artifacts import write_atomically

# Okabe and Ito's colours; line styles change with every round of them
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")


def plot_method(log: Path, out: Path) -> Path | None:
    """Draw ``log.jsonl`` of a run as SVG; None where its method reports nothing that changes."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    told = [(line["step"], line.get("method") or {}) for line in lines]
    key = next((name for name in ("sigma", "q") if any(name in report for _, report in told)), None)
    if key is None:
        return None
    looks = [look for _, report in told for look in report.get("looks", []) if look["gain"] is not None]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "evenhand", "font.size": 9}):
        figure = Figure(figsize=(6.4, 5.2 if looks else 3.0), layout="constrained")
        axes = figure.subplots(2 if looks else 1, squeeze=False, sharex=True)[:, 0]
        _by_group(axes[0], [(step, report[key]) for step, report in told if key in report], key)
        if looks:
            _contrasts(axes[1], looks)
        axes[-1].set_xlabel("step")
        write_atomically(out, lambda path: figure.savefig(path, format="svg", metadata={"Date": None, "Title": f"{key} by group"}))
    return out


def _by_group(axes: Axes, values: list[tuple[int, dict[str, float]]], key: str) -> None:
    steps = [step for step, _ in values]
    for place, group in enumerate(values[0][1]):
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
        axes.plot(steps, [found[group] for _, found in values], color=colour, linestyle=style, linewidth=1.2, label=group)
    axes.set_ylim(0, 1.04)
    axes.set_ylabel(key)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _contrasts(axes: Axes, looks: list[dict[str, Any]]) -> None:
    """Gains over the setting that was in force; the whisker is the bound that a gain must pass, what moved sigma is filled."""
    axes.axhline(0, color="#5b6470", linewidth=0.8)
    for look in looks:
        noise = look["error"] is None
        whisker = None if noise else look["bound"] * look["error"]
        colour = "#5b6470" if noise else COLOURS[0]
        axes.errorbar(look["step"], look["gain"], yerr=whisker, fmt="x" if noise else "o", color=colour, capsize=3,
                      markerfacecolor=colour if look["moved"] else "white")  # fmt: skip
    axes.set_ylabel("gain in the groups' mean\nlog-loss (x: noise alone)")
