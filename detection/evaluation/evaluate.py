"""All protocols at once, in the layout of metrics.json, and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.errors import UserError, printable
from configs.files import write_text
from detection.evaluation import coco, imagenet_det, voc
from detection.evaluation.data import Aligned, Detections, GroundTruth, align

ProtocolName = Literal["voc07", "voc12", "coco", "imagenet_det"]
PROTOCOLS: tuple[ProtocolName, ...] = ("voc07", "voc12", "coco", "imagenet_det")
USUAL: tuple[ProtocolName, ...] = ("voc07", "voc12", "coco")
"""What is computed unless something else is asked for."""

Metrics = dict[str, Any]
"""metrics.json: fractions in [0, 1], None where there is no ground truth; a protocol that is not computed is absent."""


def evaluate(
    ground_truth: GroundTruth,
    detections: Detections,
    protocols: Iterable[ProtocolName] = USUAL,
    *,
    backend: coco.Backend = "auto",
) -> Metrics:
    """Score detections by the named protocols.

    Args:
        ground_truth: the objects.
        detections: joined to the ground truth by image id and class name.
        protocols: of voc07, voc12, coco, imagenet_det. COCO's crowd regions count as difficult in VOC's protocols;
            VOC's difficult objects count like others in COCO's and ImageNet's.
        backend: the library that computes COCO's numbers.

    Returns:
        `{"voc07": {"mAP": x, "per_class": {name: x or None}}, "voc12": {...}, "coco": {"AP": x, ..., "per_class":
        {...}}, "imagenet_det": {as voc07}, "voc_by_iou": {...}, "coco_backend": "library version"}`. `voc_by_iou` is
        VOC's area rule at other thresholds and is not comparable to COCO's AP.

    Raises:
        UserError: a detection's image is unknown, or no library for COCO's numbers is installed.
    """
    chosen = list(protocols)
    unknown = [name for name in chosen if name not in PROTOCOLS]
    if unknown:
        raise UserError(f"unknown protocol {unknown[0]!r}: there are {', '.join(PROTOCOLS)}")
    data = align(ground_truth, detections)
    metrics: Metrics = {}
    if "voc07" in chosen or "voc12" in chosen:
        metrics.update(_voc(data, chosen))
    if "coco" in chosen:
        result = coco.evaluate_coco(data, backend)
        metrics["coco"] = {**coco.summary(result), "per_class": coco.per_class(result)}
        metrics["coco_backend"] = result.backend
    if "imagenet_det" in chosen:
        metrics["imagenet_det"] = _summary(data, imagenet_det.average_precisions(data))
    return metrics


def _voc(data: Aligned, chosen: list[ProtocolName]) -> Metrics:
    matches = voc.match(data)
    at_half = dict(zip(("voc07", "voc12"), voc.average_precisions(matches), strict=True))
    metrics: Metrics = {name: _summary(data, values) for name, values in at_half.items() if name in chosen}
    if "voc12" in chosen:
        means = [voc.mean_of_classes(voc.average_precisions(matches, limit)[1]) for limit in voc.THRESHOLDS]
        metrics["voc_by_iou"] = {
            "rule": "voc12 at other IoU thresholds; not COCO's AP",
            "mAP": {f"{limit:.2f}": _none_for_nan(x) for limit, x in zip(voc.THRESHOLDS, means, strict=True)},
            "voc12_mean_iou50_95": _none_for_nan(float(np.mean(means))),
        }
    return metrics


def _summary(data: Aligned, values: np.ndarray) -> dict[str, Any]:
    """mAP and the APs by class of (K,) values."""
    return {
        "mAP": _none_for_nan(voc.mean_of_classes(values)),
        "per_class": {key: _none_for_nan(value) for key, value in zip(data.class_names, values, strict=True)},
    }


def _none_for_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def headline(values: dict[str, Any]) -> float | None:
    """The number by which a protocol is known: AP of COCO, mAP of the others; None where there is no ground truth.

    Args:
        values: one protocol's part of the metrics, for example `metrics["voc07"]`.
    """
    return values["AP"] if "AP" in values else values["mAP"]


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write metrics.json, in double precision to the last digit."""
    write_text(path, json.dumps(metrics, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------- the table

_COLUMN_TITLES = {"voc07": "VOC07 AP", "voc12": "VOC12 AP", "coco": "COCO AP", "imagenet_det": "DET AP"}


def format_table(metrics: Metrics) -> str:
    """The metrics as text: a line for each class, the means, and COCO's 12 numbers; percent with one decimal."""
    present = [name for name in PROTOCOLS if name in metrics]
    if not present:
        return "no protocol could be computed"
    names: list[str] = []
    for name in present:
        names += [key for key in metrics[name]["per_class"] if key not in names]
    means = {name: headline(metrics[name]) for name in present}
    rows = [["class", *(_COLUMN_TITLES[name] for name in present)]]
    rows += [[printable(key), *(_percent(metrics[name]["per_class"].get(key)) for name in present)] for key in names]
    rows.append(["mean", *(_percent(means[name]) for name in present)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    rule = "-" * len(lines[0])
    text = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if "coco" in metrics:
        numbers = [f"{name} {_percent(metrics['coco'][name])}" for name in coco.NUMBERS]
        text += ["", f"COCO (by {metrics.get('coco_backend', 'unknown')}):", "  " + "  ".join(numbers[:6])]
        text.append("  " + "  ".join(numbers[6:]))
    if "voc_by_iou" in metrics:
        by_iou = metrics["voc_by_iou"]
        text += ["", f"VOC12 rule, mean over IoU .50:.95 (not COCO's AP): {_percent(by_iou['voc12_mean_iou50_95'])}"]
    return "\n".join(text)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
