"""Made-up ground truth and detections of any size, to measure the evaluators' speed and to test them.

Detections are objects with jittered boxes and noisy scores, some of a wrong class, and clutter, so that all branches
of the rules are taken about as often as with a real detector.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.files import write_text
from detection.evaluation import coco
from detection.evaluation.boxes import Frame, coco_to_voc
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.write import category_ids_of, write_detections_json

IMAGE_SIZE = (375, 500)
"""(H, W) of every image."""


def make_set(
    frame: Frame, *, images: int, classes: int, objects: int, detections: int, seed: int = 0
) -> tuple[GroundTruth, Detections]:
    """A random set of annotated images and the detections of an imagined detector.

    Args:
        frame: VOC boxes are whole pixels, a tenth of the objects is difficult; COCO boxes have two decimals, one
            object in a hundred is a crowd, and the ids have gaps.
        images, classes, objects, detections: how many.
        seed: of all random numbers.
    """
    rng = np.random.default_rng(seed)
    height, width = IMAGE_SIZE
    decimals = 0 if frame == "voc" else 2
    image_index = np.sort(rng.integers(0, images, objects))
    labels = rng.integers(1, classes + 1, objects)
    sides = np.exp(rng.uniform(np.log(8), np.log(250), (objects, 2)))
    corners = rng.random((objects, 2)) * (np.array((width, height)) - sides)
    boxes = np.round(np.concatenate((corners, sides), axis=1), decimals)
    found_image, found_labels, found_boxes, scores = _imagined(
        rng, detections, image_index, labels, boxes, images=images, classes=classes, decimals=decimals
    )
    area = boxes[:, 2:].prod(axis=1)
    ids: list[str | int]
    if frame == "voc":
        boxes, found_boxes = coco_to_voc(boxes), coco_to_voc(found_boxes)
        ids = [f"{number:06d}" for number in range(1, images + 1)]
    else:
        area = np.round(area * rng.uniform(0.5, 1.0, objects), 4)  # of a segment
        ids = (np.cumsum(rng.integers(1, 120, images)) + 100).tolist()
    truth = GroundTruth(
        frame=frame,
        image_ids=ids,
        class_names=[f"class{label:02d}" for label in range(1, classes + 1)],
        image_index=image_index,
        labels=labels,
        boxes=boxes,
        area=area,
        iscrowd=(rng.random(objects) < 0.01) & (frame == "coco"),
        difficult=(rng.random(objects) < 0.1) & (frame == "voc"),
        image_sizes=np.tile(IMAGE_SIZE, (images, 1)),
        category_ids=np.cumsum(rng.integers(1, 3, classes)).tolist() if frame == "coco" else None,
        source="synthetic",
    )
    return truth, Detections(
        frame=frame,
        image_ids=truth.image_ids,
        class_names=truth.class_names,
        image_index=found_image,
        labels=found_labels,
        boxes=found_boxes,
        scores=scores,
        source="synthetic",
    )


def _imagined(
    rng: np.random.Generator,
    count: int,
    image_index: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    *,
    images: int,
    classes: int,
    decimals: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, boxes (x, y, width, height) and scores of `count` detections of these objects, image by image."""
    source = rng.integers(0, len(labels), count)
    clutter = rng.random(count) < 0.5
    found_image = np.where(clutter, rng.integers(0, images, count), image_index[source])
    confused = rng.random(count) < 0.2
    found_labels = np.where(confused, rng.integers(1, classes + 1, count), labels[source])
    noise = np.exp(rng.normal(0, 0.12, (count, 4)))
    shift = np.concatenate((boxes[source, 2:] * rng.normal(0, 0.1, (count, 2)), np.zeros((count, 2))), axis=1)
    found_boxes = np.round(boxes[source] * np.where([True, True, False, False], 1.0, noise) + shift, decimals)
    scores = np.round(np.clip(rng.beta(2, 2, count) - 0.3 * (clutter | confused), 1e-4, 1.0), 5)
    order = np.argsort(found_image, kind="stable")
    return found_image[order], found_labels[order], found_boxes[order], scores[order]


def voc_benchmark_set() -> tuple[GroundTruth, Detections]:
    """2,000 images, 20 classes, 19,000 detections."""
    return make_set("voc", images=2000, classes=20, objects=6000, detections=19_000)


def coco_benchmark_set() -> tuple[GroundTruth, Detections]:
    """5,000 images, 80 classes, 500,000 detections: COCO val2017 with 100 detections an image."""
    return make_set("coco", images=5000, classes=80, objects=36_800, detections=500_000)


def write_coco_annotations(path: Path, truth: GroundTruth) -> None:
    """Write ground truth in COCO's frame as an annotation file."""
    assert truth.area is not None, "COCO's ground truth has areas"
    categories = truth.category_ids or list(range(1, len(truth.class_names) + 1))
    sizes = np.zeros((len(truth), 2), np.int64) if truth.image_sizes is None else truth.image_sizes
    content = {
        "images": [
            {"id": identity, "height": height, "width": width, "file_name": f"{identity}.jpg"}
            for identity, (height, width) in zip(truth.image_ids, sizes.tolist(), strict=True)
        ],
        "categories": [
            {"id": identity, "name": name} for identity, name in zip(categories, truth.class_names, strict=True)
        ],
        "annotations": [
            {"id": number, "image_id": truth.image_ids[image], "category_id": categories[label - 1], "bbox": box,
             "area": area, "iscrowd": int(crowd)}
            for number, (image, label, box, area, crowd) in enumerate(
                zip(truth.image_index.tolist(), truth.labels.tolist(), truth.coco_boxes.tolist(), truth.area.tolist(),
                    truth.iscrowd.tolist(), strict=True), start=1)
        ],
    }  # fmt: skip
    write_text(path, json.dumps(content))


# ---------------------------------------------------------------------------------------------- timing


@dataclass(frozen=True)
class CocoTiming:
    """Seconds from files to numbers, and whether the numbers agree."""

    seconds: float
    """This project: reading, checking, scoring."""
    backend: str
    reference_seconds: float | None
    """pycocotools, used plainly; None: not run."""
    equal: bool | None
    """The precision and recall arrays are equal to the last bit."""


def time_coco(folder: Path, *, reference: bool = True) -> CocoTiming:
    """Score `coco_benchmark_set` from files, and plain pycocotools beside it (most of a minute)."""
    from detection.evaluation.ground_truth import read_coco_ground_truth
    from detection.evaluation.results import read_detections

    made, found = coco_benchmark_set()
    truth_file, found_file = Path(folder) / "annotations.json", Path(folder) / "detections.json"
    write_coco_annotations(truth_file, made)
    write_detections_json(found_file, found, category_ids_of(made))
    del made, found

    start = time.perf_counter()
    truth = read_coco_ground_truth(truth_file)
    result = coco.evaluate_coco(align(truth, read_detections(found_file, truth)))
    coco.summary(result)
    coco.per_class(result)
    seconds = time.perf_counter() - start
    if not reference:
        return CocoTiming(seconds, result.backend, None, None)
    start = time.perf_counter()
    precision, recall = coco.plain_pycocotools(truth_file, found_file)
    reference_seconds = time.perf_counter() - start
    equal = np.array_equal(precision, result.precision) and np.array_equal(recall, result.recall)
    return CocoTiming(seconds, result.backend, reference_seconds, equal)


def time_voc() -> float:
    """Seconds to score `voc_benchmark_set` by voc07 and voc12, and at the ten thresholds, without reading files."""
    from detection.evaluation.evaluate import evaluate

    truth, found = voc_benchmark_set()
    start = time.perf_counter()
    evaluate(truth, found, ("voc07", "voc12"))
    return time.perf_counter() - start
