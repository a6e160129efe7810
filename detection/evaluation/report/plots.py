"""The report's plots, as PNG files and as SVG for the page. Uses matplotlib without its global state."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from configs.files import write_bytes
from detection.evaluation.report.analysis import Analysis
from detection.evaluation.report.breakdown import Group
from detection.evaluation.report.errors import ERRORS
from detection.evaluation.voc import NOT_COUNTED, TRUE, class_curves
from detection.fonts import font_file

INK, GREY, RIGHT, WRONG = "#1f2937", "#9ca3af", "#15803d", "#dc2626"
RUN_COLORS = ("#2563eb", "#ea580c")
"""The first and the second run's."""
MOST_PANELS = 100
"""Classes that get their own panel."""
MOST_NUMBERED = 25
"""Classes up to which the confusion matrix has numbers in its cells."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK,
    "axes.grid": True, "grid.color": "#e5e7eb", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
    "svg.hashsalt": "report", "figure.dpi": 100, "text.parse_math": False,
}  # fmt: skip

Named = Sequence[tuple[str, Analysis]]
"""Name and analysis of one or two runs."""


SMALL = 6.0
"""Inches of width up to which a plot is legible on a phone as a whole; wider ones are moved under the finger."""


class Plot(NamedTuple):
    """A plot for the page."""

    uri: str
    """SVG as a data URI."""
    small: bool


def draw_all(folder: Path, runs: Named) -> dict[str, Plot]:
    """The plots by name; writes them as PNG files, too."""
    style: dict[Any, Any] = {**STYLE, **_font_of(runs)}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # `font_file` has said it
        figures = {
            "precision_recall": precision_recall(runs),
            "errors": errors(runs),
            "groups": groups(runs),
            "scores": scores(runs),
            **{f"confusion_{number}": confusion(*run) for number, run in enumerate(runs, start=1)},
        }
        return {name: _save(figure, folder / f"{name}.png") for name, figure in figures.items()}


def _font_of(runs: Named) -> dict[str, list[str]]:
    """matplotlib's option for a font that has the class names' letters."""
    file = font_file(frozenset("".join(runs[0][1].data.class_names)))
    if file is None:
        return {}
    font_manager.fontManager.addfont(str(file))
    return {"font.sans-serif": ["DejaVu Sans", font_manager.FontProperties(fname=str(file)).get_name()]}


def _save(figure: Figure, path: Path) -> Plot:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out now: once, not again for each format
    picture, vector = io.BytesIO(), io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
    write_bytes(path, picture.getvalue())
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
    uri = "data:image/svg+xml;base64," + base64.b64encode(vector.getvalue()).decode("ascii")
    return Plot(uri, small=figure.get_figwidth() <= SMALL)


# ---------------------------------------------------------------------------------------------- curves


def precision_recall(runs: Named) -> Figure:
    """A panel for each class with the precision over the recall at an overlap of .5."""
    curves = [class_curves(analysis.matches, analysis.outcome) for _, analysis in runs]
    names = runs[0][1].data.class_names
    shown = [index for index in range(len(names)) if curves[0][index] is not None][:MOST_PANELS]
    columns = 8 if len(shown) > 30 else 5 if len(shown) > 4 else max(2, len(shown))
    rows = max(1, -(-len(shown) // columns))
    size = (min(11.5, 2.8 * columns), {8: 1.3, 5: 1.75}.get(columns, 2.1) * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for place, axis in enumerate(axes):
        if place >= len(shown):
            axis.set_axis_off()
            continue
        index = shown[place]
        for run, color in zip(curves, RUN_COLORS, strict=False):
            curve = run[index]
            if curve is not None:
                recall, precision = _steps(*curve)
                axis.plot(recall, precision, color=color, linewidth=1.3)
                if len(runs) == 1:
                    axis.fill_between(recall, precision, color=color, alpha=0.12, linewidth=0)
        axis.set_title(_short(names[index], 22))
        axis.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision", fontsize=9)
    return figure


def _steps(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The monotone precision at 201 recalls: a curve of half a million points would weigh megabytes."""
    grid = np.linspace(0, 1, 201)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return grid, envelope[np.searchsorted(recall, grid, side="left")]


def scores(runs: Named) -> Figure:
    """Scores of right and wrong detections, and precision, recall and F1 over the threshold."""
    figure = Figure(figsize=(11.5, 3.1 * len(runs)), layout="constrained")
    axes = figure.subplots(len(runs), 2, squeeze=False)
    for (name, analysis), (left, right) in zip(runs, axes, strict=True):
        _histogram(left, analysis)
        _over_threshold(right, analysis)
        prefix = f"{_short(name, 30)}: " if len(runs) > 1 else ""
        left.set_title(f"{prefix}scores of right and wrong detections")
        right.set_title(f"{prefix}what a threshold on the score gives")
    return figure


def _histogram(axis: Axes, analysis: Analysis) -> None:
    values, outcome = np.clip(analysis.matches.scores, 0.0, 1.0), analysis.outcome
    counted = outcome != NOT_COUNTED
    bins = np.linspace(0, 1, 41).tolist()
    axis.hist(
        [values[outcome == TRUE], values[counted & (outcome != TRUE)]], bins=bins, stacked=True,
        color=[RIGHT, WRONG], alpha=0.85, label=["right", "wrong"],
    )  # fmt: skip
    axis.axvline(analysis.threshold, color=INK, linewidth=1, linestyle=":")
    axis.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    highest = max(int(np.histogram(values[counted], bins)[0].max(initial=0)), 1)
    if highest > 500:  # most detections of most detectors have low scores
        axis.set_yscale("symlog", linthresh=10)
        axis.yaxis.set_major_formatter("{x:,.0f}")  # its own is mathematics, which STYLE shows as text
    axis.set_ylim(0, highest * (5 if highest > 500 else 1.3))
    axis.legend(loc="upper right", ncols=2)


def _over_threshold(axis: Axes, analysis: Analysis) -> None:
    counted = np.flatnonzero(analysis.outcome != NOT_COUNTED)
    order = counted[np.argsort(-analysis.matches.scores[counted], kind="stable")]
    ordered = analysis.matches.scores[order]
    true = np.append(0, np.cumsum(analysis.outcome[order] == TRUE))
    grid = np.linspace(0, 1, 201)
    kept = np.searchsorted(-ordered, -grid, side="right")
    wanted = max(int(analysis.matches.positives.sum()), 1)
    precision = np.where(kept > 0, true[kept] / np.maximum(kept, 1), np.nan)
    for values, label, color in (
        (precision, "precision", RUN_COLORS[0]),
        (true[kept] / wanted, "recall", RUN_COLORS[1]),
        (2 * true[kept] / (kept + wanted), "F1", INK),
    ):
        axis.plot(grid, values, color=color, linewidth=1.5, label=label)
    axis.axvline(analysis.threshold, color=INK, linewidth=1, linestyle=":")
    axis.text(analysis.threshold, 1.02, f" best F1 at {analysis.threshold:.3g}", fontsize=8)
    axis.set(xlabel="threshold", xlim=(0, 1), ylim=(0, 1.1))
    axis.legend(loc="best")


# ---------------------------------------------------------------------------------------------- bars


def errors(runs: Named) -> Figure:
    """The AP that fixing each kind of error would give back."""
    kinds = (*ERRORS, "missed")
    figure = Figure(figsize=(5.6, 0.6 + 0.42 * len(kinds)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(runs)
    for number, (name, analysis) in enumerate(runs):
        places = np.arange(len(kinds)) + (number - (len(runs) - 1) / 2) * height
        values = [100 * analysis.gains[kind] for kind in kinds]
        axis.barh(places, values, height=height * 0.92, color=RUN_COLORS[number], label=_short(name, 30))
        for place, value in zip(places, values, strict=True):
            axis.text(max(value, 0), place, f" {value:.1f}", va="center", fontsize=8.5)
    axis.set_yticks(np.arange(len(kinds)), [kind.capitalize() for kind in kinds])
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("points of voc12 mAP that fixing it would give back")
    axis.margins(x=0.12)
    if len(runs) > 1:
        axis.legend(loc="best")
    return figure


def groups(runs: Named) -> Figure:
    """AP and recall by size, by crowding and by neighbours."""
    figure = Figure(figsize=(11.5, 3.0), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = (
        ("Size of the object", [analysis.sizes for _, analysis in runs]),
        ("Objects in the image", [analysis.crowding for _, analysis in runs]),
        ("Overlap with the nearest object", [analysis.neighbours for _, analysis in runs]),
    )
    for axis, (title, parts) in zip(axes, panels, strict=True):
        _group_bars(axis, parts, [name for name, _ in runs])
        axis.set_title(title)
    axes[0].set(ylim=(0, 1.08 if len(runs) == 1 else 1.24), yticks=np.arange(0, 1.01, 0.2), ylabel="fraction")
    axes[0].legend(loc="upper left", fontsize=8, ncols=2)
    return figure


def _group_bars(axis: Axes, parts: list[list[Group]], names: list[str]) -> None:
    bars: list[tuple[str, str, str | None, list[float]]] = []
    for name, color, part in zip(names, RUN_COLORS, parts, strict=False):
        suffix = f" {_short(name, 14)}" if len(parts) > 1 else ""
        if not all(np.isnan(group.ap) for group in part):
            bars.append((f"AP{suffix}", color, None, [group.ap for group in part]))
        bars.append((f"recall{suffix}", color, "////", [group.recall for group in part]))
    width = 0.84 / len(bars)
    for number, (label, color, hatch, values) in enumerate(bars):
        places = np.arange(len(values)) + (number - (len(bars) - 1) / 2) * width
        heights = np.nan_to_num(np.array(values))
        axis.bar(
            places, heights, width=width * 0.94, label=label, edgecolor=color, linewidth=0.8, hatch=hatch,
            color=color if hatch is None else "white",
        )  # fmt: skip
        for place, value in zip(places, values, strict=True):
            axis.text(
                place,
                np.nan_to_num(value) + 0.01,
                "–" if np.isnan(value) else f"{100 * value:.0f}",
                ha="center",
                fontsize=7,
            )
    labels = [f"{group.name.replace(', ', chr(10))}\n({group.objects})" for group in parts[0]]
    axis.set_xticks(np.arange(len(labels)), labels, fontsize=8)
    axis.grid(visible=False, axis="x")


# ---------------------------------------------------------------------------------------------- confusion


def confusion(name: str, analysis: Analysis) -> Figure:
    """The confusion matrix; colours are shares of the row."""
    counts = analysis.confusion
    used = np.flatnonzero(counts.sum(axis=0)[:-1] + counts.sum(axis=1)[:-1])
    chosen = np.append(used, len(counts) - 1)
    counts = counts[np.ix_(chosen, chosen)]
    names = [_short(analysis.data.class_names[index], 18) for index in used]
    size = float(np.clip(0.45 * len(counts) + 2.2, 5.5, 18.0))
    figure = Figure(figsize=(size, size), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    small = 9.5 if len(counts) <= MOST_NUMBERED else max(7.0, 360 / len(counts))
    axis.set_xticks(range(len(counts)), [*names, "(missed)"], rotation=90, fontsize=small)
    axis.set_yticks(range(len(counts)), [*names, "(no object)"], fontsize=small)
    axis.set(xlabel="detected as", ylabel="annotated as")
    axis.grid(visible=False)
    axis.set_title(f"{_short(name, 40)}, scores from {analysis.threshold:.3g}")
    if len(counts) <= MOST_NUMBERED:
        for row, column in np.argwhere(counts):
            color = "white" if share[row, column] > 0.55 else INK
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=9, color=color)
    return figure


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
