"""What evaluators compare: the ground truth and the detections of a whole set of images, in flat arrays.

N images, M objects, D detections, K classes. Boxes stay in the frame of the file that they come from (`boxes.py`), in
double precision and in the file's order, for both official rules break ties by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from configs.errors import UserError
from datasets.columns import last_of_equal_ids
from detection.evaluation import boxes as frames
from detection.evaluation.boxes import Frame

if TYPE_CHECKING:
    from datasets.records import Records

ImageId = str | int

COORDINATE_DECIMALS = 3
"""Detections are written, and scored, with coordinates rounded to a thousandth of a pixel."""
SCORE_DIGITS = 9
"""Significant digits of a written score: as many as tell any two float32 apart, so that writing makes no ties."""


class ImageDetectionsLike(Protocol):
    """The detections of one image (`detection.prediction.ImageDetections`)."""

    @property
    def boxes(self) -> np.ndarray:
        """(D, 4) x1 y1 x2 y2, continuous pixels from 0 of the original image."""
        ...

    @property
    def scores(self) -> np.ndarray:
        """(D,)."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """(D,) in 1..K."""
        ...


@dataclass(frozen=True)
class _Boxes:
    """Boxes with classes in a set of images, objects or detections; they are in one frame and wanted in others."""

    frame: Frame
    """The frame of `boxes`."""
    image_ids: list[ImageId]
    """N ids. Of a ground truth all images'; of detections those that have some, and perhaps others."""
    class_names: list[str]
    """K names, in the order of the labels."""
    image_index: np.ndarray
    """(M,) or (D,) int64: position in `image_ids`."""
    labels: np.ndarray
    """(M,) or (D,) int64 in 1..K."""
    boxes: np.ndarray
    """(M, 4) or (D, 4) float64, in the file's order."""

    @property
    def voc_boxes(self) -> np.ndarray:
        """(N, 4) float64 in VOC's frame."""
        return self.boxes if self.frame == "voc" else frames.coco_to_voc(self.boxes)

    @property
    def coco_boxes(self) -> np.ndarray:
        """(N, 4) float64 in COCO's frame."""
        return self.boxes if self.frame == "coco" else frames.voc_to_coco(self.boxes)

    @property
    def continuous_boxes(self) -> np.ndarray:
        """(N, 4) float64 x1 y1 x2 y2 from 0."""
        convert = frames.voc_to_continuous if self.frame == "voc" else frames.coco_to_continuous
        return convert(self.boxes)


@dataclass(frozen=True)
class GroundTruth(_Boxes):
    """The annotated objects of a set of images."""

    area: np.ndarray
    """(M,) float64, square pixels: COCO's own segment area where the set has one."""
    iscrowd: np.ndarray
    """(M,) bool: COCO's regions of many objects."""
    difficult: np.ndarray
    """(M,) bool: VOC's objects that need not be found."""
    image_sizes: np.ndarray | None = None
    """(N, 2) int64 (H, W) as the annotation says; 0 where it does not."""
    image_files: list[str] | None = None
    """N file names, for the pictures of the report."""
    category_ids: list[Any] | None = None
    """K ids of COCO's file, numbers with gaps or texts."""
    source: str = "the ground truth"
    """What messages call it."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_records(cls, records: Records) -> GroundTruth:
        """The ground truth of a data set that the project has read.

        The frame is that of the records' own form, else COCO's where all image ids are numbers, else VOC's.
        """
        image_ids = np.asarray(records.image_ids).tolist()
        frame = records.form
        if frame is None:
            frame = "coco" if image_ids and all(isinstance(identity, int) for identity in image_ids) else "voc"
        continuous = np.asarray(records.boxes, dtype=np.float64).reshape(-1, 4)
        convert = frames.continuous_to_voc if frame == "voc" else frames.continuous_to_coco
        everyone = np.arange(len(continuous))
        # What is read of annotations with equal ids is what eval_det.py and pycocotools read: scores agree.
        keep = last_of_equal_ids(records.annotation_ids) if records.form == "coco" else everyone
        return cls(
            frame=frame,
            image_ids=image_ids,
            class_names=list(records.class_names),
            image_index=np.repeat(np.arange(len(image_ids)), np.diff(records.offsets))[keep],
            labels=np.asarray(records.labels, dtype=np.int64)[keep],
            boxes=convert(continuous)[keep],
            area=np.asarray(records.area, dtype=np.float64)[keep],
            iscrowd=np.asarray(records.iscrowd, dtype=bool)[keep],
            difficult=np.asarray(records.difficult, dtype=bool)[keep],
            image_sizes=np.asarray(records.sizes, dtype=np.int64).reshape(-1, 2),
            image_files=[str(path) for path in records.image_paths],
            source=records.source or cls.source,
            category_ids=np.asarray(records.category_ids).tolist(),
        )


@dataclass(frozen=True)
class Detections(_Boxes):
    """The detections of a set of images, in the order of their file."""

    scores: np.ndarray
    """(D,) float64."""
    source: str = field(default="the detections", compare=False)
    """What messages call it."""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_images(
        cls,
        image_ids: Sequence[ImageId],
        detections: Iterable[ImageDetectionsLike],
        class_names: Sequence[str],
        *,
        frame: Frame,
    ) -> Detections:
        """A detector's output as it will be written: coordinates and scores have the digits of the file.

        Metrics of the result are therefore those of the saved files, to the last digit.

        Args:
            image_ids: one for each image, in the order of the data set.
            detections: one for each image, boxes in continuous pixels from 0.
            class_names: K names in the order of the labels.
            frame: of the files, normally `ground_truth.frame`.

        Raises:
            ValueError: an image appears twice, there are more or fewer images than ids, or a label is not in 1..K.
            UserError: a box or a score is NaN.
        """
        image_ids = [identity if isinstance(identity, str) else int(identity) for identity in image_ids]
        per_image = list(detections)
        if len(per_image) != len(image_ids):
            raise ValueError(f"{len(per_image)} images of detections for {len(image_ids)} image ids")
        if len(set(image_ids)) != len(image_ids):
            raise ValueError("an image id appears twice: each image must be counted once")
        counts = [len(one.scores) for one in per_image]
        if sum(counts):
            continuous = np.concatenate([np.asarray(one.boxes, dtype=np.float64).reshape(-1, 4) for one in per_image])
            scores = np.concatenate([np.asarray(one.scores, dtype=np.float64) for one in per_image])
            labels = np.concatenate([np.asarray(one.labels, dtype=np.int64) for one in per_image])
        else:
            continuous, scores, labels = np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64)
        if len(labels) and not 1 <= labels.min() <= labels.max() <= len(class_names):
            raise ValueError(f"labels {labels.min()}..{labels.max()} do not fit {len(class_names)} classes (1..K)")
        broken = np.isnan(scores) | ~np.isfinite(continuous).all(axis=1)
        if broken.any():
            bad = image_ids[int(np.searchsorted(np.cumsum(counts), np.argmax(broken), side="right"))]
            raise UserError(f"image {bad!r}: a detection holds NaN: the model's weights have diverged; lower optim.lr")
        convert = frames.continuous_to_voc if frame == "voc" else frames.continuous_to_coco
        return cls(
            frame=frame,
            image_ids=image_ids,
            class_names=list(class_names),
            image_index=np.repeat(np.arange(len(image_ids)), counts),
            labels=labels,
            # + 0.0 turns -0.0 into 0.0, which is how it is read back.
            boxes=np.round(convert(continuous), COORDINATE_DECIMALS) + 0.0,
            scores=np.array([float(f"{score:.{SCORE_DIGITS}g}") for score in scores.tolist()], dtype=np.float64),
        )

    @classmethod
    def merge(cls, parts: Sequence[Detections], image_ids: Sequence[ImageId]) -> Detections:
        """The detections that several processes made of their shares of the images, in the order of `image_ids`.

        An image that several processes saw, because the sampler filled up the last step, counts once: the first part
        that has it is taken. The result does not depend on the number of processes.

        Args:
            parts: of equal frame and classes; `image_ids` of each names all images that it covers.
            image_ids: all images, in the order of the data set.

        Raises:
            ValueError: parts differ in frame or classes, or an image is missing.
        """
        first = parts[0]
        if any(part.frame != first.frame or part.class_names != first.class_names for part in parts):
            raise ValueError("the parts differ in frame or class names")
        position = {identity: index for index, identity in enumerate(image_ids)}
        owner: dict[ImageId, int] = {}
        for number, part in enumerate(parts):
            for identity in part.image_ids:
                owner.setdefault(identity, number)
        missing = [identity for identity in image_ids if identity not in owner]
        if missing:
            raise ValueError(f"no process has seen image {missing[0]!r} ({len(missing)} are missing)")
        kept = []
        for number, part in enumerate(parts):
            target = np.array(
                [position.get(identity, -1) if owner[identity] == number else -1 for identity in part.image_ids],
                dtype=np.int64,
            ).reshape(-1)
            place = target[part.image_index]
            kept.append((part, place >= 0, place[place >= 0]))
        places = np.concatenate([place for _, _, place in kept])
        order = np.argsort(places, kind="stable")

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(part, name)[mine] for part, mine, _ in kept])[order]

        return cls(
            frame=first.frame,
            image_ids=list(image_ids),
            class_names=first.class_names,
            image_index=places[order],
            labels=column("labels"),
            boxes=column("boxes"),
            scores=column("scores"),
        )


@dataclass(frozen=True)
class Aligned:
    """Ground truth and detections with common numbers for images and classes."""

    ground_truth: GroundTruth
    detections: Detections
    class_names: list[str]
    """The ground truth's, then those that only the detections have."""
    detection_images: np.ndarray
    """(D,) int64: position in `ground_truth.image_ids`."""
    detection_labels: np.ndarray
    """(D,) int64 in 1..len(class_names)."""


def align(ground_truth: GroundTruth, detections: Detections) -> Aligned:
    """Join detections to the ground truth by image id and class name.

    Raises:
        UserError: a detection's image is not in the ground truth.
    """
    if detections.image_ids is ground_truth.image_ids:
        images = detections.image_index
    else:
        position = {identity: index for index, identity in enumerate(ground_truth.image_ids)}
        lookup = np.array([position.get(identity, -1) for identity in detections.image_ids], dtype=np.int64)
        images = lookup.reshape(-1)[detections.image_index]
        if len(images) and images.min() < 0:
            unknown = detections.image_ids[int(detections.image_index[int(np.argmin(images))])]
            raise UserError(f"{detections.source}: image {unknown!r} is not in {ground_truth.source}")
    class_names = list(ground_truth.class_names)
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    for name in detections.class_names:
        if name not in label_of:
            class_names.append(name)
            label_of[name] = len(class_names)
    relabel = np.array([0] + [label_of[name] for name in detections.class_names], dtype=np.int64)
    return Aligned(ground_truth, detections, class_names, images, relabel[detections.labels])
