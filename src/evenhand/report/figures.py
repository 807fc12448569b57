"""Figures as inline SVG with a text alternative: estimates with intervals by group, and presence bars against a target."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart in every common kind of colour vision; shapes differ too.
GENERATED, REAL, INK, RULE = "#0072B2", "#D55E00", "#1b1f24", "#d8dbe0"
_WIDTH, _ROW, _LABEL, _HEADING = 4.8, 0.27, 26, 52
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#5b6470",
}


@dataclass(frozen=True)
class Mark:
    """One estimate; None where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """One group's row: what was found, and what it is held against."""

    label: str
    found: Mark
    reference: Mark = field(default_factory=lambda: Mark(None))


@dataclass(frozen=True)
class Panel:
    """Rows under one heading."""

    heading: str
    lines: Sequence[Line]


def dots(panels: Sequence[Panel], *, title: str, axis: str, found: str, reference: str, limits: tuple[float, float] | None = None) -> str:
    """Estimates with 95 % whiskers, what was found above what it is held against."""
    return _draw(panels, title, axis, found, reference, limits, bars=False)


def bars(panels: Sequence[Panel], *, title: str, axis: str, found: str, reference: str) -> str:
    """Shares as bars with 95 % whiskers, the target as an upright stroke."""
    return _draw(panels, title, axis, found, reference, (0.0, 1.0), bars=True)


def _draw(
    panels: Sequence[Panel], title: str, axis: str, found: str, reference: str, limits: tuple[float, float] | None, *, bars: bool
) -> str:
    rows = sum(len(panel.lines) + 1 for panel in panels)
    height = _ROW * rows + 0.85
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        picture = Figure(figsize=(_WIDTH, height))
        axes = picture.add_axes((0.34, 0.5 / height, 0.61, _ROW * rows / height))
        places, names, heads = [], [], []
        y = 0.0
        for panel in panels:
            heads.append((y, panel.heading))
            for line in panel.lines:
                y += 1
                places.append(y)
                names.append(_short(line.label))
                (_bar if bars else _pair)(axes, y, line)
            y += 1
        _dress(axes, y, places, names, heads, axis, limits)
        _legend(picture, axes, found, reference, bars)
        buffer = io.BytesIO()
        picture.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _with_text(buffer.getvalue().decode(), title, _described(panels, found, reference))


def _pair(axes: Axes, y: float, line: Line) -> None:
    _whisker(axes, y - 0.14, line.found, GENERATED, "o", filled=True)
    _whisker(axes, y + 0.22, line.reference, REAL, "D", filled=False)
    if line.found.value is None:
        _undefined(axes, y)


def _bar(axes: Axes, y: float, line: Line) -> None:
    if line.found.value is None:
        _undefined(axes, y)
    else:
        axes.barh(y, line.found.value, height=0.6, color=GENERATED, alpha=0.28, linewidth=0)
        _whisker(axes, y, line.found, GENERATED, "o", filled=True)
    if line.reference.value is not None:
        axes.plot([line.reference.value] * 2, [y - 0.4, y + 0.4], color=REAL, linewidth=2.4, solid_capstyle="butt", zorder=4)


def _undefined(axes: Axes, y: float) -> None:
    axes.text(0.01, y, "undefined", transform=axes.get_yaxis_transform(), va="center", fontsize=8, style="italic", color="#5b6470")


def _whisker(axes: Axes, y: float, mark: Mark, colour: str, shape: str, *, filled: bool) -> None:
    if mark.value is None:
        return
    if mark.low is not None and mark.high is not None:
        axes.plot([mark.low, mark.high], [y, y], color=colour, linewidth=1.5, solid_capstyle="butt", zorder=3)
    axes.plot([mark.value], [y], shape, markersize=4.6, color=colour, markerfacecolor=colour if filled else "white", zorder=5)


def _dress(
    axes: Axes,
    rows: float,
    places: Sequence[float],
    names: Sequence[str],
    heads: Sequence[tuple[float, str]],
    axis: str,
    limits: tuple[float, float] | None,
) -> None:
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks(list(places), list(names))
    axes.tick_params(axis="y", length=0, pad=6)
    axes.tick_params(axis="x", length=3, labelsize=8.5)
    for y, heading in heads:
        axes.text(-0.545, y, _short(heading, _HEADING), transform=axes.get_yaxis_transform(), va="center", weight="bold", fontsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(axis, fontsize=9)
    if limits:
        axes.set_xlim(*limits)
    if limits == (0.0, 1.0):
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    elif axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color="#5b6470", linewidth=0.9, zorder=1)


def _legend(picture: Figure, axes: Axes, found: str, reference: str, bars: bool) -> None:
    shape = {"marker": "|", "markersize": 10, "markeredgewidth": 2.4} if bars else {"marker": "D", "markersize": 4.6}
    handles = [
        axes.plot([], [], "o-", color=GENERATED, markersize=4.6, linewidth=1.5, label=found)[0],
        axes.plot(
            [], [], color=REAL, linewidth=0 if bars else 1.5, markerfacecolor="white", label=reference, **shape  # type: ignore[arg-type]
        )[0],
    ]  # fmt: skip
    picture.legend(handles=handles, loc="upper left", ncols=2, frameon=False, fontsize=8.5, borderaxespad=0.2, handlelength=1.6)


def _short(label: str, length: int = _LABEL) -> str:
    flat = " ".join(label.split())
    return flat if len(flat) <= length else flat[: length - 1] + "…"


def _described(panels: Sequence[Panel], found: str, reference: str) -> str:
    parts = []
    for panel in panels:
        for line in panel.lines:
            parts.append(f"{panel.heading}, {line.label}: {found} {_words(line.found)}, {reference} {_words(line.reference)}.")
    return " ".join(parts)


def _words(mark: Mark) -> str:
    if mark.value is None:
        return "undefined"
    between = f" (95 % interval {mark.low:.3g} to {mark.high:.3g})" if mark.low is not None and mark.high is not None else ""
    return f"{mark.value:.3g}{between}"


def _with_text(svg: str, title: str, description: str) -> str:
    """Title and description for those who do not see the figure; ids of its own, since several figures share one page."""
    key = "f" + hashlib.sha256((title + description).encode()).hexdigest()[:8]
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', lambda found: found.group(1) + key + "-", svg)
    end = svg.index(">")
    alternative = f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    return f'{svg[:end]} role="img" aria-labelledby="{key}-title {key}-desc">{alternative}{svg[end + 1 :]}'


@dataclass(frozen=True)
class Curve:
    """One group's estimates along an axis."""

    label: str
    points: Sequence[tuple[float, Mark]]
    target: float | None = None


_CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito
_CURVE_MARKS = "oDs^vP"


def curves(rows: Sequence[Curve], *, title: str, across: str, up: str, share: bool = False) -> str:
    """Estimates with 95 % whiskers along an axis, one line a group; dashes at the group's target."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        picture = Figure(figsize=(_WIDTH, 3.1))
        axes = picture.add_axes((0.13, 0.27, 0.84, 0.66))
        for place, row in enumerate(rows):
            colour, shape = _CURVE_COLOURS[place % len(_CURVE_COLOURS)], _CURVE_MARKS[place % len(_CURVE_MARKS)]
            shown = [(x, mark) for x, mark in row.points if mark.value is not None]
            heights = [mark.value for _, mark in shown if mark.value is not None]
            axes.plot(
                [x for x, _ in shown], heights, shape + "-",
                color=colour, markersize=4.6, linewidth=1.4, label=_short(row.label),
            )  # fmt: skip
            for x, mark in shown:
                if mark.low is not None and mark.high is not None:
                    axes.plot([x, x], [mark.low, mark.high], color=colour, linewidth=1.1)
            if row.target is not None:
                axes.axhline(row.target, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.set_xlabel(across, fontsize=9)
        axes.set_ylabel(up, fontsize=9)
        if share:
            axes.set_ylim(0, 1)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        picture.legend(loc="lower left", ncols=3, frameon=False, fontsize=8.5, borderaxespad=0.2, handlelength=1.6)
        buffer = io.BytesIO()
        picture.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    told = " ".join(f"{row.label} at {across} {x:g}: {_words(mark)}." for row in rows for x, mark in row.points)
    return _with_text(buffer.getvalue().decode(), title, told)
