"""COCO's rule (Lin et al. 2014; the COCO API). pycocotools is the reference; hotcoco computes the same bits faster.

Neither library reads a file here: the project's own readers check the input (`ground_truth.py`, `results.py`), and the
libraries get arrays with fresh ids, numbered from 1 in the order in which pycocotools itself would sort them. So
annotation id 0 (for which pycocotools loses the match, since it marks a match with the object's id), sparse ids, string
ids and empty results are all ordinary. COCO's `ignore` key is without effect, as in pycocotools: only `iscrowd` counts.

Sets in VOC's format are scored with their boxes turned into COCO's frame and with difficult objects counted like
others, for the COCO API has no word for them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from configs.errors import UserError
from detection.evaluation.data import Aligned

Backend = Literal["auto", "hotcoco", "pycocotools"]

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The 12 numbers of `summary`, in the COCO API's order."""
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
ALL, SMALL, MEDIUM, LARGE = range(4)
"""Ranges of area: all; below 32^2; 32^2 to 96^2; above (both ends belong to the range)."""
MAX_1, MAX_10, MAX_100 = range(3)
"""Detections that count in each image, of each class."""


@dataclass(frozen=True)
class CocoResult:
    """What COCO's accumulation leaves; -1 where there is nothing to be found."""

    precision: np.ndarray
    """(10 IoUs, 101 recalls, K, 4 areas, 3 maxDets) float64."""
    recall: np.ndarray
    """(10, K, 4, 3) float64."""
    class_names: list[str]
    backend: str
    """Library and version that computed it."""


def choose_backend(backend: Backend = "auto") -> Literal["hotcoco", "pycocotools"]:
    """The library to compute with: hotcoco where it is installed, else pycocotools.

    Raises:
        UserError: the library that is asked for is not installed, or none is.
    """
    names = ("hotcoco", "pycocotools") if backend == "auto" else (backend,)
    for name in names:
        if importlib.util.find_spec(name) is not None:
            return name  # type: ignore[return-value]
    raise UserError(f"COCO's metrics need {' or '.join(names)}: pip install {names[0]}")


def evaluate_coco(data: Aligned, backend: Backend = "auto") -> CocoResult:
    """Score detections the COCO way.

    Args:
        data: detections of classes that the ground truth does not have take no part, as in the COCO API.
        backend: the library; auto: hotcoco where it is installed.
    """
    name = choose_backend(backend)
    columns = _columns(data)
    precision, recall = (_run_hotcoco if name == "hotcoco" else _run_pycocotools)(columns)
    return CocoResult(precision, recall, data.ground_truth.class_names, f"{name} {version(name)}")


def summary(result: CocoResult) -> dict[str, float | None]:
    """The 12 numbers; None where there is nothing to be found (the COCO API's -1)."""
    precision, recall = result.precision, result.recall
    half, three_quarters = 0, 5  # positions of .5 and .75 in IOU_THRESHOLDS
    return {
        "AP": _mean(precision[:, :, :, ALL, MAX_100]),
        "AP50": _mean(precision[half, :, :, ALL, MAX_100]),
        "AP75": _mean(precision[three_quarters, :, :, ALL, MAX_100]),
        "APs": _mean(precision[:, :, :, SMALL, MAX_100]),
        "APm": _mean(precision[:, :, :, MEDIUM, MAX_100]),
        "APl": _mean(precision[:, :, :, LARGE, MAX_100]),
        "AR1": _mean(recall[:, :, ALL, MAX_1]),
        "AR10": _mean(recall[:, :, ALL, MAX_10]),
        "AR100": _mean(recall[:, :, ALL, MAX_100]),
        "ARs": _mean(recall[:, :, SMALL, MAX_100]),
        "ARm": _mean(recall[:, :, MEDIUM, MAX_100]),
        "ARl": _mean(recall[:, :, LARGE, MAX_100]),
    }


def per_class(result: CocoResult, iou: int | None = None) -> dict[str, float | None]:
    """AP of each class, over all IoU thresholds or at the one of position `iou`; None without objects."""
    chosen = slice(None) if iou is None else slice(iou, iou + 1)
    return {
        name: _mean(result.precision[chosen, :, index, ALL, MAX_100]) for index, name in enumerate(result.class_names)
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else None


# ---------------------------------------------------------------------------------------------- the libraries


@dataclass(frozen=True)
class _Columns:
    """Ground truth and detections as the libraries take them: images 1..N, categories 1..K, COCO boxes."""

    images: int
    class_names: list[str]
    object_images: np.ndarray
    object_labels: np.ndarray
    object_boxes: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    images_of: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


def _columns(data: Aligned) -> _Columns:
    truth = data.ground_truth
    rank = np.arange(1, len(truth.image_ids) + 1)
    if truth.frame == "coco":
        # Detections of equal score come in the order of the sorted image ids.
        try:
            order = sorted(range(len(truth.image_ids)), key=lambda index: truth.image_ids[index])
        except TypeError:
            raise UserError(f"{truth.source}: image ids are partly numbers and partly text: use one kind") from None
        rank[order] = np.arange(1, len(order) + 1)
    known = data.detection_labels <= len(truth.class_names)
    return _Columns(
        images=len(truth.image_ids),
        class_names=truth.class_names,
        object_images=rank[truth.image_index],
        object_labels=truth.labels,
        object_boxes=truth.coco_boxes,
        area=truth.area,
        iscrowd=truth.iscrowd,
        images_of=rank[data.detection_images[known]],
        labels=data.detection_labels[known],
        boxes=data.detections.coco_boxes[known],
        scores=data.detections.scores[known],
    )


def _run_hotcoco(columns: _Columns) -> tuple[np.ndarray, np.ndarray]:
    from hotcoco import COCO, COCOeval

    truth = COCO.from_arrays(
        [{"id": number} for number in range(1, columns.images + 1)],
        [{"id": label, "name": name} for label, name in enumerate(columns.class_names, start=1)],
        columns.object_images,
        columns.object_labels,
        np.ascontiguousarray(columns.object_boxes),
        ids=np.arange(1, len(columns.object_labels) + 1),
        area=columns.area,
        iscrowd=columns.iscrowd.astype(np.int64),
    )
    rows = np.column_stack((columns.images_of, columns.boxes, columns.scores, columns.labels)).astype(np.float64)
    evaluator = COCOeval(truth, truth.load_res(rows), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    accumulated: Any = evaluator.eval
    return accumulated["precision"], accumulated["recall"]


def _run_pycocotools(columns: _Columns) -> tuple[np.ndarray, np.ndarray]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = [{"id": label, "name": name} for label, name in enumerate(columns.class_names, start=1)]
    images = [{"id": number} for number in range(1, columns.images + 1)]
    objects = _as_dicts(
        image_id=columns.object_images, category_id=columns.object_labels, bbox=columns.object_boxes, area=columns.area,
        iscrowd=columns.iscrowd.astype(np.int64),
    )  # fmt: skip
    found = _as_dicts(
        image_id=columns.images_of, category_id=columns.labels, bbox=columns.boxes, score=columns.scores,
        area=columns.boxes[:, 2] * columns.boxes[:, 3], iscrowd=np.zeros(len(columns.labels), dtype=np.int64),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        shared: Any = {"images": images, "categories": categories}
        truth.dataset = shared | {"annotations": objects}
        results.dataset = shared | {"annotations": found}
        truth.createIndex()
        results.createIndex()
        evaluator = COCOeval(truth, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def plain_pycocotools(truth_file: Path, found_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall as pycocotools computes them from its own reading of the files: the reference in tests."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluator = COCOeval(truth, truth.loadRes(str(found_file)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _as_dicts(**columns: np.ndarray) -> list[dict[str, Any]]:
    names = ("id", *columns)
    length = len(next(iter(columns.values())))
    rows = zip(range(1, length + 1), *(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]
