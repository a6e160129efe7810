"""Small sets of objects and detections, and what the report says of them."""

from __future__ import annotations

import numpy as np

from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.report.analysis import Analysis, analyse

BOX, HALF = (1.0, 1.0, 100.0, 100.0), (1.0, 1.0, 100.0, 30.0)
FAR = (301.0, 301.0, 400.0, 400.0)


def make(
    objects: list[tuple], found: list[tuple], difficult: list[bool] | None = None
) -> tuple[GroundTruth, Detections]:
    """Objects (image, class, box) and detections (image, class, box, score); 3 images, 3 classes, VOC's frame."""
    boxes = np.array([item[2] for item in objects], dtype=float).reshape(-1, 4)
    truth = GroundTruth(
        frame="voc",
        image_ids=["a", "b", "c"],
        class_names=["cat", "dog", "cow"],
        image_index=np.array([item[0] for item in objects], dtype=np.int64),
        labels=np.array([item[1] for item in objects], dtype=np.int64),
        boxes=boxes,
        area=(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array(difficult or [False] * len(objects), dtype=bool),
    )
    return truth, Detections(
        frame="voc",
        image_ids=truth.image_ids,
        class_names=truth.class_names,
        image_index=np.array([item[0] for item in found], dtype=np.int64),
        labels=np.array([item[1] for item in found], dtype=np.int64),
        boxes=np.array([item[2] for item in found], dtype=float).reshape(-1, 4),
        scores=np.array([item[3] for item in found], dtype=float),
    )


def analysis_of(objects: list[tuple], found: list[tuple], difficult: list[bool] | None = None) -> Analysis:
    return analyse(align(*make(objects, found, difficult)))
