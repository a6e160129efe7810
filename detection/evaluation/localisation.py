"""ImageNet's localisation error, and the trivial predictors that a localiser must beat. Imports no torch.

A prediction is right if its class is an object's and its box overlaps that object by an IoU of at least 0.5; an image
is wrong if none of its predictions is right (the benchmark's rule, He et al. 2016, App. C). Boxes are (..., 4) x1 y1 x2
y2 in continuous pixels of the original images.

N images, M objects (image i's are offsets[i] to offsets[i + 1]), T predictions an image.
"""

from __future__ import annotations

import numpy as np

IOU_THRESHOLD = 0.5
CENTRE_SHARE = 0.75
"""The trivial centred box has this share of the image's width and height: 48x48 of 64x64."""


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(...,) float64 overlaps of boxes (..., 4), one by one; 0 where neither has an area."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    intersection = np.clip(high - low, 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return intersection / np.maximum(union, 1e-12)


def right_predictions(
    boxes: np.ndarray, labels: np.ndarray, objects: np.ndarray, object_labels: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """(N, T) bool: class and box are those of some object.

    Args:
        boxes, labels: (N, T, 4) and (N, T): the predictions.
        objects, object_labels: (M, 4) and (M,).
        offsets: (N + 1,) int64.
    """
    image = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    hits = (iou(boxes[image], objects[:, None]) >= IOU_THRESHOLD) & (labels[image] == object_labels[:, None])
    right = np.zeros(labels.shape, bool)
    np.logical_or.at(right, image, hits)
    return right


def error(right: np.ndarray, top: int = 1) -> float:
    """The share of images none of whose first `top` predictions is right; `right` is (N, T)."""
    return float(1.0 - right[:, :top].any(1).mean())


def mean_boxes(boxes: np.ndarray, labels: np.ndarray, image_sizes: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, 4): the mean box of each class's objects as shares of width and height; NaN where a class has none.

    Args:
        boxes, labels: (M, 4) and (M,) int64 in 0..K-1.
        image_sizes: (M, 2), (H, W) of each object's image.
        num_classes: K.
    """
    shares = boxes / image_sizes[:, [1, 0, 1, 0]]
    sums = np.stack([np.bincount(labels, shares[:, i], num_classes) for i in range(4)], axis=1)
    counts = np.bincount(labels, minlength=num_classes)[:, None]
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def scaled_to_images(shares: np.ndarray, image_sizes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) in pixels from shares (N, 4) or (4,) of images of `image_sizes` (N, 2), (H, W)."""
    return shares * image_sizes[:, [1, 0, 1, 0]]


def centre_box() -> np.ndarray:
    """(4,): the centred box as shares of width and height."""
    margin = (1.0 - CENTRE_SHARE) / 2
    return np.array([margin, margin, 1.0 - margin, 1.0 - margin])


def localisation_errors(
    boxes: np.ndarray,
    labels: np.ndarray,
    image_labels: np.ndarray,
    objects: np.ndarray,
    object_labels: np.ndarray,
    offsets: np.ndarray,
    *,
    predicted: bool,
) -> dict[str, float]:
    """The figures of a set, as fractions.

    Args:
        boxes, labels: (N, 1 + T, 4) and (N, 1 + T): first the box of the true class, then those of the predicted
            classes, best first (up to 5).
        image_labels: (N,) the true classes.
        objects, object_labels, offsets: as for `right_predictions`.
        predicted: whether there are predicted classes.

    Returns:
        true_class_error; and top1_error, top5_error (class and box), top1_class_error, top5_class_error (class alone)
        where there are predicted classes; and images.
    """
    right = right_predictions(boxes, labels, objects, object_labels, offsets)
    values = {"true_class_error": error(right[:, :1])}
    if predicted:
        right, class_right = right[:, 1:], labels[:, 1:] == image_labels[:, None]
        values |= {"top1_error": error(right, 1), "top5_error": error(right, 5)}
        values |= {"top1_class_error": error(class_right, 1), "top5_class_error": error(class_right, 5)}
    return {**values, "images": len(image_labels)}


def trivial_errors(
    class_means: np.ndarray,
    image_labels: np.ndarray,
    image_sizes: np.ndarray,
    objects: np.ndarray,
    object_labels: np.ndarray,
    offsets: np.ndarray,
) -> dict[str, float]:
    """The errors with the true class of two predictors that see no pixel: mean_box_error, centre_box_error.

    Args:
        class_means: (K, 4) of `mean_boxes`, of the training set; a class without one takes the centred box.
        image_labels: (N,) int64 in 0..K-1.
        image_sizes: (N, 2), (H, W).
        objects, object_labels, offsets: as for `right_predictions`, labels in 0..K-1.
    """
    class_means = np.where(np.isnan(class_means), centre_box(), class_means)
    predictions = {"mean_box_error": class_means[image_labels], "centre_box_error": centre_box()}
    return {
        name: error(
            right_predictions(
                scaled_to_images(shares, image_sizes)[:, None], image_labels[:, None], objects, object_labels, offsets
            )
        )
        for name, shares in predictions.items()
    }
