"""Detections as files: what servers and other people's evaluators read, and what `tools/eval_det.py` reads back.

Numbers are written with as many digits as tell them from their neighbours, so reading gives the same doubles.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import write_text
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.results import file_names_of


def write_detections_json(path: Path, detections: Detections, category_ids: dict[str, Any] | None = None) -> None:
    """Write detections.json in the form that fits the data set.

    VOC: a list of `{"image_id", "category", "bbox": [xmin, ymin, xmax, ymax], "score"}`, 1-based inclusive pixels.
    COCO: results as the COCO API and its server take them, `{"image_id", "category_id", "bbox": [x, y, w, h],
    "score"}`.

    Args:
        path: file to be written.
        detections: as from `Detections.from_images`.
        category_ids: COCO: class name -> id in the annotation file (see `category_ids_of`); default: the labels.
    """
    records = voc_records(detections) if detections.frame == "voc" else coco_records(detections, category_ids)
    lines = ",\n".join(json.dumps(record, separators=(",", ":"), ensure_ascii=False) for record in records)
    write_text(path, f"[\n{lines}\n]\n" if records else "[]\n")


def voc_records(detections: Detections) -> list[dict[str, Any]]:
    """Detections in VOC's frame as the dicts of the VOC list."""
    ids, names = [writable_id(i) for i in detections.image_ids], detections.class_names
    return [
        {"image_id": ids[image], "category": names[label - 1], "bbox": box, "score": score}
        for image, label, box, score in rows_of(detections, detections.boxes)
    ]


def coco_records(detections: Detections, category_ids: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Detections in COCO's frame as COCO results.

    Args:
        detections: of the frame coco.
        category_ids: class name -> id in the annotation file; None: the labels.
    """
    ids, names = [writable_id(i) for i in detections.image_ids], detections.class_names
    categories = [0] + [
        label if category_ids is None else category_ids[name] for label, name in enumerate(names, start=1)
    ]
    return [
        {"image_id": ids[image], "category_id": categories[label], "bbox": box, "score": score}
        for image, label, box, score in rows_of(detections, detections.boxes)
    ]


def writable_id(image_id: Any) -> Any:
    """An image's id as it is written; a file name whose bytes are not UTF-8 (predict.py takes any) with escapes."""
    return image_id.encode("utf-8", "backslashreplace").decode() if isinstance(image_id, str) else image_id


def rows_of(detections: Detections, boxes: np.ndarray) -> Iterator[tuple[int, int, list[float], float]]:
    """Position of the image, label, box and score of each detection; `boxes` (D, 4) are its boxes in some frame."""
    columns = detections.image_index, detections.labels, boxes, detections.scores
    return zip(*(column.tolist() for column in columns), strict=True)


def category_ids_of(ground_truth: GroundTruth) -> dict[str, Any] | None:
    """Class name -> id in COCO's annotation file; None where the set has no such ids."""
    if ground_truth.category_ids is None:
        return None
    return dict(zip(ground_truth.class_names, ground_truth.category_ids, strict=True))


def write_comp4(folder: Path, detections: Detections, image_set: str = "test") -> list[Path]:
    """Write `comp4_det_<image_set>_<class>.txt` for each class, as the VOC server and development kit take them.

    Each line: image id, score, xmin, ymin, xmax, ymax in 1-based inclusive pixels. A class without detections gets
    an empty file, for the official tools refuse a missing one.

    Returns:
        The files, in the order of the classes.
    """
    lines: list[list[str]] = [[] for _ in detections.class_names]
    for image, label, (xmin, ymin, xmax, ymax), score in rows_of(detections, detections.voc_boxes):
        lines[label - 1].append(f"{detections.image_ids[image]} {score!r} {xmin!r} {ymin!r} {xmax!r} {ymax!r}\n")
    paths = []
    for part, text in zip(file_names_of(detections.class_names), lines, strict=True):
        paths.append(Path(folder) / f"comp4_det_{image_set}_{part}.txt")
        write_text(paths[-1], "".join(text))
    return paths
