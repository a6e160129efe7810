"""The figures of a training over its iterations, read from metrics.jsonl: the run's curves.png, and runs side by side.

Imports matplotlib only to draw.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import UserError, did_you_mean
from configs.files import read_text, write_bytes
from tools.runtime.texts import leaves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
"""The lines of metrics.jsonl: `iteration`, `split` and figures under flat names such as voc12.mAP."""
Curve = tuple[list[int], list[float]]
"""Iterations and a figure at each of them."""

TRAIN = "train"
VALIDATED = ("val", "test")
"""The sets that validations are about; the first that a run has counts."""
_COLOURS = ("#2563eb", "#ea580c", "#15803d", "#9333ea", "#0891b2", "#ca8a04", "#db2777", "#4b5563")
MOST_INSIDE = 6
"""Curves. The legend of more stands beside the plot."""


# ---------------------------------------------------------------------------------------------- reading


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, with nested figures under dotted names.

    A last line that is cut short (the run writes it just now, or was killed) is left out.

    Raises:
        UserError: another line is not a JSON object with an iteration.
    """
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            rows.append({"split": "", **dict(leaves(values)), "iteration": int(values["iteration"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: is not a line of figures with an iteration: {error}") from None
    return rows


def curve(rows: Rows, split: str, name: str) -> Curve:
    """A figure of a set wherever it has a value."""
    points = [
        (row["iteration"], float(row[name]))
        for row in rows
        if row["split"] == split and isinstance(row.get(name), (int, float))
    ]
    return [x for x, _ in points], [y for _, y in points]


def find_curve(rows: Rows, name: str) -> Curve:
    """A figure by name: voc12.mAP or loss of the validations, train.loss of the training; empty where there is none."""
    split, _, rest = name.partition(".")
    if split in (TRAIN, *VALIDATED) and rest:
        return curve(rows, split, rest)
    for validated in VALIDATED:
        found = curve(rows, validated, name)
        if found[0]:
            return found
    return [], []


def names_of(rows: Rows, splits: Sequence[str] = VALIDATED) -> list[str]:
    """The figures of some sets, in their order."""
    return list(
        dict.fromkeys(
            name
            for row in rows
            if row["split"] in splits
            for name, value in row.items()
            if name not in ("iteration", "split", "images") and isinstance(value, (int, float))
        )
    )


def is_headline(name: str) -> bool:
    """Whether a validation's figure is one to look at first: a mAP, COCO's AP and AP50, an error."""
    return name.rpartition(".")[2] in ("mAP", "AP", "AP50") or name.endswith("error")


# ---------------------------------------------------------------------------------------------- drawing


def write_curves(folder: Path) -> Path | None:
    """Draw the curves of the run in `folder` from its metrics.jsonl.

    Returns:
        folder/curves.png; None: nothing was logged.
    """
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        return None
    path = folder / "curves.png"
    with _style():
        write_bytes(path, _png(_run_figure(rows)))
    return path


def write_comparison(path: Path, runs: Mapping[str, Rows], metrics: Sequence[str]) -> None:
    """Draw figures of several runs over their iterations as PNG, a panel for each figure.

    Raises:
        UserError: no run has such a figure.
    """
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(9.0, 3.8 * len(metrics) + 0.2), layout="constrained")
        panels = figure.subplots(len(metrics), 1, squeeze=False)[:, 0]
        for axis, metric in zip(panels, metrics, strict=True):
            curves = {name: find_curve(rows, metric) for name, rows in runs.items()}
            if not any(points for points, _ in curves.values()):
                known = [name for rows in runs.values() for name in names_of(rows)]
                known += [f"{TRAIN}.{name}" for rows in runs.values() for name in names_of(rows, (TRAIN,))]
                raise UserError(f"--metric {metric}: no run has such a figure{did_you_mean(metric, known)}")
            for number, (name, found) in enumerate(curves.items()):
                if found[0]:
                    style = ("-", "--", ":")[number // len(_COLOURS) % 3]
                    _plot(axis, found, name, _COLOURS[number % len(_COLOURS)], linestyle=style)
            axis.set(title=metric, xlabel="iteration", xlim=(0, None))
            count = len(axis.get_legend_handles_labels()[0])
            if count > MOST_INSIDE:  # they would cover the curves
                axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + count // 24)
            else:
                axis.legend(fontsize=8)
        write_bytes(path, _png(figure))


def _run_figure(rows: Rows) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11.5, 6.8), layout="constrained")
    (losses, validations), (rates, times) = figure.subplots(2, 2, sharex=True)
    _draw_losses(losses, rows)
    _draw_validations(validations, rows)
    _plot(rates, curve(rows, TRAIN, "rate"), "", _COLOURS[0])
    rates.set(title="learning rate", ylim=(0, None))
    rates.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # a common power of ten would lift the title
    for name, label, colour in (
        ("seconds", "whole step", _COLOURS[0]),
        ("data_seconds", "of it waiting for data", _COLOURS[1]),
    ):
        _plot(times, curve(rows, TRAIN, name), label, colour, fill=True)
    times.set(title="seconds per iteration", ylim=(0, None))
    phases = curve(rows, TRAIN, "phase")
    for axis in (losses, validations, rates, times):
        for (end, old), (_, new) in pairwise(zip(*phases, strict=True)):
            if old != new:
                axis.axvline(end, color="#9ca3af", linestyle=":", linewidth=1)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    for axis in (rates, times):
        axis.set_xlabel("iteration (dotted: a new phase)" if len(set(phases[1])) > 1 else "iteration")
    return figure


def _draw_losses(axis: Axes, rows: Rows) -> None:
    """The training's loss and its parts, and the validation's loss."""
    parts = [
        name
        for name in names_of(rows, (TRAIN,))
        if name.startswith("loss_") or ("entropy" in name and name.count(".") == 0)
    ]
    _plot(axis, curve(rows, TRAIN, "loss"), "training", _COLOURS[0], linewidth=1.8)
    _plot(axis, find_curve(rows, "loss"), "validation", _COLOURS[0], linestyle="--", marker="o", markersize=3)
    if len(parts) > 1:
        for name, colour in zip(parts, _COLOURS[1:], strict=False):
            _plot(axis, curve(rows, TRAIN, name), name.removeprefix("loss_"), colour, linewidth=1.0)
    axis.set(title="loss" + (" and its parts" if len(parts) > 1 else ""), ylim=(0, None))


def _draw_validations(axis: Axes, rows: Rows) -> None:
    """The figures that validations are read by, and the training's error beside them."""
    names = [name for name in names_of(rows) if is_headline(name)]
    for name, colour in zip(names, _COLOURS, strict=False):
        _plot(axis, find_curve(rows, name), name, colour, marker="o", markersize=3)
        _plot(axis, curve(rows, TRAIN, name), f"{name}, training", colour, linestyle=":", linewidth=1.0)
    if names:
        axis.set(title="validation", ylim=(0, None))
    else:
        axis.set_title("no validation")
        axis.set_yticks([])


def _plot(axis: Axes, found: Curve, label: str, colour: str, *, fill: bool = False, **options: Any) -> None:
    """A curve where there is one; a single value as a dot."""
    if not found[0]:
        return
    if len(found[0]) == 1:
        options["marker"] = "o"
    axis.plot(*found, color=colour, label=label or None, **{"linewidth": 1.4, **options})
    if fill:
        axis.fill_between(*found, color=colour, alpha=0.12, linewidth=0)


@contextmanager
def _style() -> Iterator[None]:
    """The look of the report's plots."""
    import matplotlib

    from detection.evaluation.report.plots import STYLE

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    return picture.getvalue()
