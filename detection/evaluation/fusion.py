"""Fusion of saved detections of several detectors, of any kind, by the library ensemble-boxes. Imports no torch.

Weighted box fusion (Solovyev et al. 2021): boxes of one class that overlap become one, the mean of their coordinates
weighted by their scores; its score is their mean, lowered where some detectors have found nothing there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configs.errors import UserError
from detection.evaluation.data import Detections

Method = Literal["wbf", "nms", "soft_nms", "nmw"]
METHODS: dict[str, str] = {
    "wbf": "weighted_boxes_fusion",
    "nms": "nms",
    "soft_nms": "soft_nms",
    "nmw": "non_maximum_weighted",
}
"""What we call a method -> the library's function."""


class _Fused(NamedTuple):
    """One image's fused detections; see `detection.evaluation.data.ImageDetectionsLike`."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def fuse(
    parts: Sequence[Detections], *, method: Method = "wbf", iou: float = 0.55, weights: Sequence[float] | None = None
) -> Detections:
    """One set of detections of several detectors' on the same images.

    Args:
        parts: one for each detector, with common image ids and classes (`read_detections_together`).
        method: wbf weighted box fusion, nms, soft_nms (Gaussian), nmw non-maximum weighted.
        iou: boxes of a class that overlap by more than this are one object.
        weights: of the detectors; default: equal.

    Returns:
        By image, best first. The library counts in float32: scores have 7 digits.

    Raises:
        UserError: the library is not installed, or a score is no probability.
    """
    for part in parts:
        bad = np.flatnonzero(~((part.scores >= 0) & (part.scores <= 1)))
        if len(bad):
            raise UserError(
                f"{part.source}: detection {bad[0]}: score {part.scores[bad[0]]} is not in [0, 1]: "
                "scores are averaged, so they must be probabilities"
            )
    function = _library_function(METHODS[method])
    shares = [_by_image(part) for part in parts]
    images = []
    for image in tqdm(range(len(parts[0].image_ids)), desc="fusing", unit="image", disable=None):
        images.append(_fuse_image([share[image] for share in shares], function, iou, weights))
    return Detections.from_images(parts[0].image_ids, images, parts[0].class_names, frame=parts[0].frame)


def _library_function(name: str) -> Callable:
    try:
        import ensemble_boxes
    except ImportError as error:
        raise UserError(f"fusion needs the library ensemble-boxes ({error}): pip install -e .[fusion]") from None
    return getattr(ensemble_boxes, name)


def _by_image(part: Detections) -> list[_Fused]:
    """The detections of each image, boxes in continuous pixels."""
    order = np.argsort(part.image_index, kind="stable")
    cuts = np.searchsorted(part.image_index[order], np.arange(1, len(part.image_ids)))
    boxes, scores, labels = (
        np.split(values[order], cuts) for values in (part.continuous_boxes, part.scores, part.labels)
    )
    return [_Fused(*columns) for columns in zip(boxes, scores, labels, strict=True)]


def _fuse_image(shares: list[_Fused], function: Callable, iou: float, weights: Sequence[float] | None) -> _Fused:
    """One image's detections of all detectors as one.

    The library wants coordinates in [0, 1]. The image's size is not known here, nor needed: overlaps and weighted means
    do not change when each axis is mapped linearly.
    """
    every = np.concatenate([share.boxes for share in shares])
    if not len(every):
        return _Fused(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    low = every.reshape(-1, 2).min(axis=0)
    span = np.maximum(every.reshape(-1, 2).max(axis=0) - low, 1e-9)
    boxes = [((share.boxes.reshape(-1, 2, 2) - low) / span).reshape(-1, 4) for share in shares]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # boxes without extent are passed over, a warning for each
        fused, scores, labels = function(
            boxes,
            [share.scores for share in shares],
            [share.labels for share in shares],
            iou_thr=iou,
            weights=None if weights is None else list(weights),
        )
    fused = np.asarray(fused, np.float64).reshape(-1, 2, 2) * span + low
    return _Fused(fused.reshape(-1, 4), np.minimum(scores, 1.0), np.asarray(labels, np.int64))
