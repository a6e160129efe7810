"""What the localisation scripts share: predictions of a whole set, their figures, and the table of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.classification import Classifier
from backbones.views import view_scores
from configs.localisation import LocalisationConfig
from datasets.localisation import image_labels
from datasets.localisation_views import evaluation_views
from datasets.records import Records
from detection.evaluation import localisation as evaluation
from detection.localisation import PerClassRcnn, PerClassRpn, merge, propose, rescore, suppress
from tools.runtime import distributed
from tools.runtime.distributed import say
from tools.runtime.progress import Progress
from tools.runtime.run_folder import write_json
from tools.runtime.training import autocast

EVALUATION_BATCH = {"center": 64, "dense": 16}
"""Images at a time."""
TOP = 5
"""Predicted classes of an image."""


@dataclass(frozen=True)
class Members:
    """The networks of a test, on one device; several of a kind are an ensemble."""

    rpns: Sequence[PerClassRpn]
    rcnns: Sequence[PerClassRcnn] = ()
    classifiers: Sequence[Classifier] = ()
    """They predict the classes, dense ones with the window of their own training crop (where it is not known, of the
    config's); none: boxes of the true class only."""

    def modules(self) -> list[nn.Module]:
        return [*self.rpns, *self.rcnns, *(member.net for member in self.classifiers)]


@dataclass(frozen=True)
class Predictions:
    """The boxes of N images, in the set's order."""

    labels: np.ndarray
    """(N, 1 + T) int64, 0..K-1: the true class, then the predicted ones, best first."""
    boxes: np.ndarray
    """(N, 1 + T, 4) float32, pixels of the original images."""
    scores: np.ndarray
    """(N, 1 + T) float32."""


@torch.no_grad()  # not inference mode: the anchors that are remembered here serve in training too
def predict(
    members: Members,
    records: Records,
    config: LocalisationConfig,
    device: torch.device,
    *,
    view: str,
    batch_size: int | None = None,
    what: str = "test",
) -> Predictions:
    """What the networks make of a set; the same on every process, which share the work.

    Args:
        members: in any mode; they come back in it.
        records: the set.
        config: data, test and train.amp.
        device: where they are.
        view: center or dense.
        batch_size: images at a time, at most; None: as many as usual.
        what: a word for the progress bar.
    """
    test, modes = config.test, [module.training for module in members.modules()]
    for module in members.modules():
        module.eval()
    loader = evaluation_views(
        records, config.data, test.scales if view == "dense" else (), batch_size=batch_size or EVALUATION_BATCH[view],
        rank=distributed.rank(), world_size=distributed.world_size(), pin_memory=device.type == "cuda",
    )  # fmt: skip
    parts: list[tuple[np.ndarray, ...]] = []
    with autocast(device, config.train.amp), Progress(len(records), what, unit="image") as progress:
        for batches in loader:
            moved = [batch.to(device) for batch in batches]
            images, first = [batch.images for batch in moved], moved[0]
            classes = first.labels[:, None]
            if members.classifiers:
                how = "center" if view == "center" else "multiscale"
                scores = [
                    view_scores(each.net, each.normalize, seen_by(each, images, view), how, window)
                    for each in members.classifiers
                    for window in [each.crop_size or config.data.crop_size]
                ]
                mean = torch.stack(scores).mean(0)
                classes = torch.cat((classes, mean.topk(min(TOP, mean.shape[1]), 1).indices), 1)
            views = [(batch.images, batch.frames) for batch in moved]
            flips = test.hflip and view == "dense"
            found = propose(members.rpns, views, classes, first.original_sizes, test.proposals, mirror=flips)
            if members.rcnns:
                largest = max(views, key=lambda each: each[0].shape[2])
                found = suppress(found, test.nms_thresh, test.crops)
                found = rescore(members.rcnns, *largest, classes, first.original_sizes, found)
            boxes, scores = merge(found, test.merge_iou)
            parts.append(tuple(tensor.cpu().numpy() for tensor in (first.index, classes, boxes, scores)))
            progress.update(len(first.index) * distributed.world_size())
    for module, mode in zip(members.modules(), modes, strict=True):
        module.train(mode)
    everything = [part for parts in distributed.all_gather(parts) for part in parts]
    index, labels, boxes, scores = (np.concatenate(column) for column in zip(*everything, strict=True))
    order = np.argsort(index)
    return Predictions(labels[order], boxes[order], scores[order])


def seen_by(classifier: Classifier, images: Sequence[Tensor], view: str) -> list[Tensor]:
    """A batch's images as a classifier's own test has them: of center, the crop at the size that it was trained on."""
    side = classifier.crop_size
    if view != "center" or side is None or images[0].shape[-1] == side:
        return list(images)
    return [F.interpolate(each.float(), (side, side), mode="bilinear", antialias=True) for each in images]


def figures(predictions: Predictions, records: Records) -> dict[str, float]:
    """The errors of predictions, as fractions; see `detection.evaluation.localisation`."""
    return evaluation.localisation_errors(
        predictions.boxes, predictions.labels, image_labels(records), records.boxes, records.labels - 1,
        records.offsets, predicted=predictions.labels.shape[1] > 1,
    )  # fmt: skip


def mean_boxes(records: Records) -> np.ndarray:
    """(K, 4) of each class, as shares of width and height, over all annotated objects."""
    sizes = records.sizes[records.image_of_object()]
    return evaluation.mean_boxes(records.boxes, records.labels - 1, sizes, len(records.class_names))


def trivial_figures(class_means: np.ndarray, records: Records) -> dict[str, float]:
    """The errors of the predictors that see no pixel."""
    return evaluation.trivial_errors(
        np.asarray(class_means, np.float64), image_labels(records), records.sizes, records.boxes, records.labels - 1,
        records.offsets,
    )  # fmt: skip


_ROWS = (
    ("true class, a box", "true_class_error"),
    ("predicted class, top 1", "top1_error"),
    ("predicted classes, top 5", "top5_error"),
    ("  (class alone, top 1)", "top1_class_error"),
    ("  (class alone, top 5)", "top5_class_error"),
    ("true class, its mean box", "mean_box_error"),
    ("true class, centred box", "centre_box_error"),
)


def say_table(values: dict[str, float], title: str) -> None:
    """Print the figures in per cent."""
    say(f"\n{title}\n{'error %':>34}")
    for words, name in _ROWS:
        if name in values:
            say(f"{words:<26}{100 * values[name]:8.2f}")


def write_predictions(path: Path, predictions: Predictions, records: Records) -> None:
    """Write the boxes of the predicted classes (of the true class, where none are predicted) as JSON, best first."""
    first = 1 if predictions.labels.shape[1] > 1 else 0
    rows: list[dict[str, Any]] = [
        {
            "image_id": identity,
            "category": records.class_names[label],
            "bbox": [round(float(value), 3) for value in box],
            "score": float(score),
        }
        for identity, labels, boxes, scores in zip(
            records.image_ids.tolist(), predictions.labels[:, first:].tolist(), predictions.boxes[:, first:],
            predictions.scores[:, first:], strict=True,
        )
        for label, box, score in zip(labels, boxes, scores, strict=True)
    ]  # fmt: skip
    write_json(path, rows)
