"""The report's tables, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

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


def cards(runs: Sequence[Run]) -> str:
    """A card for each protocol, with the difference where there are two runs."""
    html = ""
    for protocol in PROTOCOLS:
        if not any(protocol in run.metrics for run in runs):
            continue
        name, note = _CARDS[protocol]
        values = [_headline(run, protocol) for run in runs]
        numbers = f'<span class="{"first" if len(runs) > 1 else ""}">{percent(values[0])}</span>'
        if len(runs) > 1:
            numbers += f'<small class="second">{percent(values[1])}</small><small>{difference(*values)}</small>'
        html += f'<div class="card"><div class="name">{name}</div><div class="value">{numbers}</div>'
        html += f'<div class="note">{note}</div></div>'
    return f'<div class="cards">{html}</div>'


def coco_table(runs: Sequence[Run]) -> str:
    """COCO's 12 numbers, a line for each run."""
    runs = [run for run in runs if "coco" in run.metrics]
    rows = [[escape(run.name), *(percent(run.metrics["coco"][key]) for key in COCO_NUMBERS)] for run in runs]
    return "<h3>COCO's 12 numbers</h3>" + _table(["", *COCO_NUMBERS], rows) if rows else ""


def iou_table(runs: Sequence[Run]) -> str:
    """VOC's area rule at other thresholds."""
    runs = [run for run in runs if "voc_by_iou" in run.metrics]
    if not runs:
        return ""
    heads = ["", *(f"IoU {key}" for key in runs[0].metrics["voc_by_iou"]["mAP"]), "mean"]
    rows = []
    for run in runs:
        part = run.metrics["voc_by_iou"]
        rows.append([escape(run.name), *map(percent, part["mAP"].values()), percent(part["voc12_mean_iou50_95"])])
    return "<h3>VOC12's rule at other overlaps (its mean is not COCO's AP)</h3>" + _table(heads, rows)


def per_class_table(runs: Sequence[Run], analyses: Sequence[Analysis]) -> str:
    """Objects, detections and the protocols' values of each class."""
    two = len(runs) > 1
    present = [name for name in PROTOCOLS if all(name in run.metrics for run in runs)]
    heads = ["class", "objects"]
    for name in present:
        heads += [_CARDS[name][0].replace("mAP", "AP")] + (["other", "difference"] if two else [])
    heads += ["recall", "precision", "detections"]
    body = ""
    figures = [_class_figures(analysis) for analysis in analyses]
    for index, name in enumerate(analyses[0].data.class_names):
        cells = f"<td>{escape(name)}</td>{_number(analyses[0].matches.positives[index])}"
        for protocol in present:
            cells += _protocol_cells([run.metrics[protocol]["per_class"].get(name) for run in runs])
        recall, precision, count = (column[index] for column in figures[0])
        cells += _fraction(recall) + _fraction(precision) + _number(count)
        body += f"<tr>{cells}</tr>"
    foot = f"<td>mean</td>{_number(analyses[0].matches.positives.sum())}"
    for protocol in present:
        foot += _protocol_cells([_headline(run, protocol) for run in runs])
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    foot += "<td></td><td></td>" + _number(len(analyses[0].matches.scores))
    return (
        f'<div class="wide{" tight" if two else ""}"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot><tr>{foot}</tr></tfoot></table></div>"
    )


def _class_figures(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K,) recall and precision at the working threshold (NaN for 0/0), and the number of all detections."""
    matches, classes = analysis.matches, len(analysis.data.class_names)
    sure = (matches.scores >= analysis.threshold) & (analysis.outcome >= 0)
    true = np.bincount(matches.labels[sure & (analysis.outcome == TRUE)], minlength=classes + 1)[1:]
    kept = np.bincount(matches.labels[sure], minlength=classes + 1)[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return true / matches.positives, true / kept, np.bincount(matches.labels, minlength=classes + 1)[1:]


def error_table(runs: Sequence[Run], analyses: Sequence[Analysis]) -> str:
    """Gains and numbers of the kinds of errors."""
    heads = ["error"]
    for run in runs:
        heads += [f"mAP, {run.name}" if len(runs) > 1 else "mAP it would give back", "number"]
    rows = []
    for kind in (*ERRORS, "missed"):
        row = [kind]
        for analysis in analyses:
            row += [f"+{100 * analysis.gains[kind]:.2f}", f"{analysis.counts[kind]:,}"]
        rows.append(row)
    table = _table(heads, rows)
    note = "<p class=soft>Numbers are of false detections from the working threshold on; gains are of all.</p>"
    return f"<div>{table}{note}</div>"


# ---------------------------------------------------------------------------------------------- cells


def _headline(run: Run, protocol: str) -> float | None:
    return headline(run.metrics[protocol]) if protocol in run.metrics else None


def percent(value: float | None) -> str:
    """In percent with one decimal; a dash for None."""
    return '<span class="none">–</span>' if value is None else f"{100 * value:.1f}"


def difference(first: float | None, second: float | None) -> str:
    """First minus second in points, coloured: green where this run is better than the other."""
    if first is None or second is None:
        return ""
    points = 100 * (first - second)
    style = "up" if points >= 0.05 else "down" if points <= -0.05 else "none"
    return f'<span class="{style}">{points:+.1f}</span>'


def _protocol_cells(values: list[float | None]) -> str:
    first = values[0]
    bars = f'<i><b style="width:{100 * first:.1f}%"></b></i>' if first is not None else ""
    cells = f'<td class="bar" data-value="{_key(first)}">{percent(first)}{bars}</td>'
    if len(values) > 1:
        gap = None if None in values else values[0] - values[1]  # type: ignore[operator]
        cells += f'<td data-value="{_key(values[1])}">{percent(values[1])}</td>'
        cells += f'<td data-value="{_key(gap)}">{difference(*values)}</td>'  # type: ignore[arg-type]
    return cells


def _fraction(value: float) -> str:
    known = None if np.isnan(value) else float(value)
    return f'<td data-value="{_key(known)}">{percent(known)}</td>'


def _number(value: int) -> str:
    return f'<td data-value="{value}">{value:,}</td>'


def _key(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table; cells are HTML already."""
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide tight"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
