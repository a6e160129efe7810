"""The report's tables, as values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from detection.evaluation.coco import NUMBERS as COCO_NUMBERS
from detection.evaluation.evaluate import PROTOCOLS, headline
from detection.evaluation.report.analysis import Analysis
from detection.evaluation.report.errors import ERRORS
from detection.evaluation.report.run import Run
from detection.evaluation.voc import TRUE

_CARDS = {
    "voc07": ("VOC07 mAP", "11 points, IoU .5"),
    "voc12": ("VOC12 mAP", "area under the curve, IoU .5"),
    "coco": ("COCO AP", "mean over IoU .50 to .95"),
    "imagenet_det": ("ImageNet DET mAP", "area under the curve, IoU .5, less for small objects"),
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    style: str = ""
    """CSS class of the text: up, down, none."""
    key: str | None = None
    """What the column is sorted by; None: the text."""
    bar: float | None = None
    """A bar below the number, filled by this fraction."""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    heads: list[str]
    rows: list[list[Cell]]
    foot: list[Cell] = field(default_factory=list)
    title: str = ""


@dataclass(frozen=True)
class Card:
    """A protocol's number, large."""

    name: str
    note: str
    values: list[Cell]
    """One for each run."""
    difference: Cell | None
    """The first run less the second; None for one run."""


def cards(runs: Sequence[Run]) -> list[Card]:
    """A card for each protocol, with the difference where there are two runs."""
    found = []
    for protocol, (name, note) in _CARDS.items():
        if any(protocol in run.metrics for run in runs):
            values = [_headline(run, protocol) for run in runs]
            gap = _difference(values[0], values[1]) if len(values) > 1 else None
            found.append(Card(name, note, [_percent(value) for value in values], gap))
    return found


def coco_table(runs: Sequence[Run]) -> Table | None:
    """COCO's 12 numbers, a line for each run."""
    rows = [
        [Cell(run.name), *(_percent(run.metrics["coco"][name]) for name in COCO_NUMBERS)]
        for run in runs
        if "coco" in run.metrics
    ]
    return Table(["", *COCO_NUMBERS], rows, title="COCO's 12 numbers") if rows else None


def iou_table(runs: Sequence[Run]) -> Table | None:
    """VOC's area rule at other thresholds."""
    parts = [(run.name, run.metrics["voc_by_iou"]) for run in runs if "voc_by_iou" in run.metrics]
    if not parts:
        return None
    heads = ["", *(f"IoU {key}" for key in parts[0][1]["mAP"]), "mean"]
    rows = [
        [Cell(name), *map(_percent, part["mAP"].values()), _percent(part["voc12_mean_iou50_95"])]
        for name, part in parts
    ]
    return Table(heads, rows, title="VOC12's rule at other overlaps (its mean is not COCO's AP)")


def per_class_table(runs: Sequence[Run], analyses: Sequence[Analysis]) -> Table:
    """Objects, detections and the protocols' values of each class."""
    present = [name for name in PROTOCOLS if all(name in run.metrics for run in runs)]
    heads = ["class", "objects"]
    for name in present:
        heads += [_CARDS[name][0].replace("mAP", "AP")] + (["other", "difference"] if len(runs) > 1 else [])
    heads += ["recall", "precision", "detections"]
    recall, precision, count = _class_figures(analyses[0])
    positives = analyses[0].matches.positives
    rows = []
    for index, name in enumerate(analyses[0].data.class_names):
        cells = [Cell(name), _number(positives[index])]
        for protocol in present:
            cells += _protocol_cells([run.metrics[protocol]["per_class"].get(name) for run in runs])
        rows.append([*cells, _fraction(recall[index]), _fraction(precision[index]), _number(count[index])])
    foot = [Cell("mean"), _number(positives.sum())]
    for protocol in present:
        foot += _protocol_cells([_headline(run, protocol) for run in runs])
    return Table(heads, rows, [*foot, Cell(""), Cell(""), _number(len(analyses[0].matches.scores))])


def _class_figures(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K,) recall and precision at the working threshold (NaN for 0/0), and the number of all detections."""
    matches, classes = analysis.matches, len(analysis.data.class_names)
    sure = (matches.scores >= analysis.threshold) & (analysis.outcome >= 0)
    true = np.bincount(matches.labels[sure & (analysis.outcome == TRUE)], minlength=classes + 1)[1:]
    kept = np.bincount(matches.labels[sure], minlength=classes + 1)[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return true / matches.positives, true / kept, np.bincount(matches.labels, minlength=classes + 1)[1:]


def error_table(runs: Sequence[Run], analyses: Sequence[Analysis]) -> Table:
    """Gains and numbers of the kinds of errors."""
    heads = ["error"]
    for run in runs:
        heads += [f"mAP, {run.name}" if len(runs) > 1 else "mAP it would give back", "number"]
    rows = []
    for kind in (*ERRORS, "missed"):
        row = [Cell(kind)]
        for analysis in analyses:
            row += [Cell(f"+{100 * analysis.gains[kind]:.2f}"), Cell(f"{analysis.counts[kind]:,}")]
        rows.append(row)
    return Table(heads, rows)


# ---------------------------------------------------------------------------------------------- cells


def _headline(run: Run, protocol: str) -> float | None:
    return headline(run.metrics[protocol]) if protocol in run.metrics else None


def _percent(value: float | None) -> Cell:
    """In percent with one decimal; a dash for None."""
    return Cell("–", style="none", key="") if value is None else Cell(f"{100 * value:.1f}", key=f"{value:.6f}")


def _difference(first: float | None, second: float | None) -> Cell:
    """First minus second in points, coloured: green where this run is better than the other."""
    if first is None or second is None:
        return Cell("", key="")
    gap = first - second
    style = "up" if gap >= 0.0005 else "down" if gap <= -0.0005 else "none"
    return Cell(f"{100 * gap:+.1f}", style=style, key=f"{gap:.6f}")


def _protocol_cells(values: Sequence[float | None]) -> list[Cell]:
    first = _percent(values[0])
    cells = [Cell(first.text, first.style, first.key, bar=values[0])]
    if len(values) > 1:
        cells += [_percent(values[1]), _difference(values[0], values[1])]
    return cells


def _fraction(value: float) -> Cell:
    return _percent(None if np.isnan(value) else float(value))


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", key=str(value))
