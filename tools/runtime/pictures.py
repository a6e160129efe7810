"""Pictures of a data set's images with what was found and what is there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from configs.files import write_bytes
from datasets.images import read_image
from datasets.records import Records
from detection.drawing import draw_detections, sheet
from detection.evaluation.data import Detections

DRAWN_SCORE = 0.5
"""Detections in pictures are at least so sure."""


def choose_images(records: Records, count: int) -> list[int]:
    """Positions of `count` images spread over the set, those with objects first."""
    filled = np.flatnonzero(np.diff(records.offsets) > 0) if records.annotated else np.arange(len(records))
    candidates = filled if len(filled) >= min(count, len(records)) else np.arange(len(records))
    return np.unique(
        candidates[np.linspace(0, len(candidates) - 1, min(count, len(candidates))).round().astype(int)]
    ).tolist()


def draw_image(records: Records, detections: Detections, index: int) -> np.ndarray:
    """Image `index` with its detections and its ground truth, (H, W, 3) uint8 RGB; small images enlarged."""
    image = read_image(str(records.image_paths[index]), records.image_size(index))
    mine = (detections.image_index == index) & (detections.scores >= DRAWN_SCORE)
    target = records.target(index, image.shape[:2]) if records.annotated else None
    return draw_detections(
        image,
        detections.continuous_boxes[mine],
        detections.labels[mine],
        detections.scores[mine],
        detections.class_names,
        scale=max(1, round(480 / min(image.shape[:2]))),
        truth_boxes=None if target is None else target.boxes,
        truth_labels=None if target is None else target.labels,
    )


def write_pictures(folder: Path, records: Records, detections: Detections, count: int = 12) -> None:
    """Write pictures of some images, and all of them on one sheet (overview.png)."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose_images(records, count)
    pictures = []
    for index, name in zip(chosen, picture_names([Path(records.image_paths[i]) for i in chosen]), strict=True):
        pictures.append(draw_image(records, detections, index))
        write_picture(folder / name, pictures[-1])
    write_picture(folder / "overview.png", sheet(pictures))


def picture_names(paths: Sequence[Path]) -> list[str]:
    """A file name for the picture of each image, all different: its stem, with a number where that is taken already."""
    taken, names = {"overview"}, []
    for path in paths:
        name, number = path.stem, 1
        while name.lower() in taken:  # some disks do not tell capitals apart
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.lower())
        names.append(f"{name}.png")
    return names


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a (H, W, 3) uint8 RGB picture whole or not at all; the suffix decides the format."""
    buffer = io.BytesIO()
    format_name = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    Image.fromarray(picture).save(buffer, format_name, **({"quality": 95} if format_name == "JPEG" else {}))
    write_bytes(path, buffer.getvalue())
