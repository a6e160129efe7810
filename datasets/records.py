"""Annotations of a whole data set in flat arrays. Imports no torch.

A list of dictionaries of a hundred thousand images is copied into every worker process, object by object, as its
reference counts change; a handful of arrays is shared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.errors import UserError, did_you_mean
from datasets.resize import clip_boxes
from datasets.target import Target

logger = logging.getLogger(__name__)

MIN_EXTENT = 1.0
"""Pixels of the original image. A box that is not wider and higher than this is a slip of the mouse: nothing can be
learned from it, and its logarithms ruin the loss. In VOC's inclusive pixels it is a box with xmax <= xmin."""

_EPSILON = 1e-6  # x2 - x1 of a box that was stored as x, y, w, h is off by rounding


@dataclass(frozen=True)
class Records:
    """N images with M objects of K classes; the objects of image i are offsets[i] to offsets[i + 1].

    `boxes` are as annotated, neither clipped nor filtered, for the evaluators count what the official tools count;
    `target` gives what can be trained on.
    """

    image_paths: np.ndarray
    """(N,) str"""
    image_ids: np.ndarray
    """(N,) str or int64: the set's own names of the images."""
    sizes: np.ndarray
    """(N, 2) int64: (H, W) as declared; the decoded image counts where it differs."""
    offsets: np.ndarray
    """(N + 1,) int64"""
    boxes: np.ndarray
    """(M, 4) float64: x1 y1 x2 y2, continuous pixels that count from 0."""
    labels: np.ndarray
    """(M,) int64: 1..K"""
    area: np.ndarray
    """(M,) float64: square pixels; COCO's own segment area where the set has one."""
    iscrowd: np.ndarray
    """(M,) bool"""
    difficult: np.ndarray
    """(M,) bool"""
    truncated: np.ndarray
    """(M,) bool"""
    annotation_ids: np.ndarray
    """(M,) int64: COCO's own; elsewhere 1..M."""
    class_names: list[str]
    """K names: label k is class_names[k - 1]."""
    category_ids: np.ndarray
    """(K,) int64: label k's id in the COCO file (-1: none there); elsewhere 1..K."""
    annotated: bool = True
    """False: images only, as in the test sets whose annotations are kept by a server."""
    source: str = ""
    """What the reports call this set."""
    annotation_file: str = "{}"
    """Pattern that makes the annotation file's path of an image id."""

    def __len__(self) -> int:
        return len(self.image_paths)

    def objects(self, i: int) -> slice:
        """Where image i's objects lie in the per-object arrays."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def image_size(self, i: int) -> tuple[int, int]:
        """(H, W) of image i as declared."""
        return int(self.sizes[i, 0]), int(self.sizes[i, 1])

    def target(self, i: int, image_size: tuple[int, int] | None = None) -> Target:
        """Image i's objects in its original pixels, clipped to the image; objects without extent are left out.

        Args:
            i: position in the set.
            image_size: (H, W) of the decoded image; default: the declared size.
        """
        part = self.objects(i)
        boxes = clip_boxes(self.boxes[part], image_size or self.image_size(i))
        keep = has_extent(boxes)
        return Target(
            boxes=boxes[keep].astype(np.float32),
            labels=self.labels[part][keep],
            area=self.area[part][keep].astype(np.float32),
            iscrowd=self.iscrowd[part][keep],
            difficult=self.difficult[part][keep],
        )

    def image_of_object(self) -> np.ndarray:
        """(M,) int64: the image of each object."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def trainable(self, *, train_difficult: bool = True) -> np.ndarray:
        """(M,) bool: objects that can take part in training: no crowd, inside the image, with an extent."""
        limits = self.sizes[self.image_of_object()][:, [1, 0, 1, 0]]
        usable = has_extent(np.clip(self.boxes, 0, limits)) & ~self.iscrowd
        return usable if train_difficult else usable & ~self.difficult

    def describe(self, m: int) -> str:
        """Object m in words: its file, its number within the image (from 0), its class."""
        i = int(np.searchsorted(self.offsets, m, side="right")) - 1
        name = self.class_names[self.labels[m] - 1]
        file = self.annotation_file.replace("{}", str(self.image_ids[i]))
        return f"{file} object {m - self.offsets[i]} ({name})"

    def subset(self, images: np.ndarray | Sequence[int]) -> Records:
        """The records of these images, in this order."""
        images = np.asarray(images, np.int64)
        parts = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in images]
        counts = np.array([len(part) for part in parts], np.int64)
        return replace(
            self._take_objects(np.concatenate([*parts, np.zeros(0, np.int64)])),
            image_paths=self.image_paths[images],
            image_ids=self.image_ids[images],
            sizes=self.sizes[images],
            offsets=_offsets(counts),
        )

    def _take_objects(self, objects: np.ndarray) -> Records:
        names = ("boxes", "labels", "area", "iscrowd", "difficult", "truncated", "annotation_ids")
        return replace(self, **{name: getattr(self, name)[objects] for name in names})

    def with_classes(
        self,
        class_names: Sequence[str],
        *,
        known: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> Records:
        """The same images with labels 1..K of `class_names`.

        Args:
            class_names: the new classes, in the order of their labels.
            known: all classes that may be annotated; objects of those that are not in `class_names` are dropped.
                Default: `class_names`.
            rename: annotated name -> name in `known`.

        Raises:
            UserError: an object's class is not among `known`; names file, object, class and nearest name.
        """
        class_names, known = list(class_names), list(class_names if known is None else known)
        renamed = [(rename or {}).get(name, name) for name in self.class_names]
        unknown, dropped = -1, 0
        new_label = np.array(
            [0]
            + [class_names.index(n) + 1 if n in class_names else dropped if n in known else unknown for n in renamed],
            np.int64,
        )
        labels = new_label[self.labels]
        if (labels == unknown).any():
            raise UserError(_unknown_class(self, int(np.argmax(labels == unknown)), renamed, known))
        keep = labels != dropped
        counts = np.bincount(self.image_of_object()[keep], minlength=len(self))
        id_of = {n: int(i) for n, i in reversed(list(zip(renamed, self.category_ids, strict=True)))}
        return replace(
            replace(self, labels=labels)._take_objects(np.flatnonzero(keep)),
            offsets=_offsets(counts),
            class_names=class_names,
            category_ids=np.array([id_of.get(name, -1) for name in class_names], np.int64),
        )


def has_extent(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes (N, 4) in original pixels that are wider and higher than `MIN_EXTENT`."""
    return ((boxes[:, 2:] - boxes[:, :2]) > MIN_EXTENT + _EPSILON).all(axis=1)


def join(parts: Sequence[Records]) -> Records:
    """Several sets as one, in the given order (07+12). All must have the same classes.

    Image ids that occur in more than one part get the part's number before them, for evaluators tell images by id.
    """
    if len(parts) == 1:
        return parts[0]
    assert all(part.class_names == parts[0].class_names for part in parts), "give all parts the same classes first"
    ids = [part.image_ids for part in parts]
    if len({array.dtype.kind for array in ids}) > 1 or len(np.unique(np.concatenate(ids))) < sum(map(len, ids)):
        ids = [np.array([f"{number}/{name}" for name in array]) for number, array in enumerate(ids, 1)]
    same_categories = all(np.array_equal(part.category_ids, parts[0].category_ids) for part in parts)
    shifts = np.cumsum([0] + [len(part.labels) for part in parts])
    names = ("image_paths", "sizes", "boxes", "labels", "area", "iscrowd", "difficult", "truncated")
    return replace(
        parts[0],
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        image_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], *(p.offsets[1:] + s for p, s in zip(parts, shifts[:-1], strict=True))]),
        annotation_ids=np.arange(1, shifts[-1] + 1),
        category_ids=parts[0].category_ids if same_categories else np.arange(1, len(parts[0].class_names) + 1),
        annotated=all(part.annotated for part in parts),
        source=" + ".join(part.source for part in parts),
        annotation_file="{}",
    )


def make_records(
    *,
    images: list[tuple[str, str | int, tuple[int, int]]],
    boxes: list,
    labels: list[int],
    counts: list[int],
    class_names: list[str],
    source: str,
    annotation_file: str,
    area: list[float] | None = None,
    iscrowd: list[bool] | None = None,
    difficult: list[bool] | None = None,
    truncated: list[bool] | None = None,
    annotation_ids: list[int] | None = None,
    category_ids: list[int] | None = None,
    annotated: bool = True,
) -> Records:
    """Records of plain lists, as the readers collect them; reports what is wrong with the boxes.

    Args:
        images: (path, id, declared (H, W)) of each image.
        boxes: M boxes, x1 y1 x2 y2, continuous pixels that count from 0.
        labels: M labels, 1..K.
        counts: number of objects of each image.
        class_names, source, annotation_file, ...: as in `Records`.
    """
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    total = len(corners)
    if area is None:
        area = np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(axis=1)
    ids = [image_id for _, image_id, _ in images]
    records = Records(
        image_paths=np.array([path for path, _, _ in images], np.str_),
        image_ids=np.array(ids, np.int64 if ids and isinstance(ids[0], int) else np.str_),
        sizes=np.array([size for _, _, size in images], np.int64).reshape(-1, 2),
        offsets=_offsets(np.array(counts, np.int64)),
        boxes=corners,
        labels=np.array(labels, np.int64),
        area=np.asarray(area, np.float64),
        iscrowd=np.zeros(total, bool) if iscrowd is None else np.array(iscrowd, bool),
        difficult=np.zeros(total, bool) if difficult is None else np.array(difficult, bool),
        truncated=np.zeros(total, bool) if truncated is None else np.array(truncated, bool),
        annotation_ids=np.arange(1, total + 1) if annotation_ids is None else np.array(annotation_ids, np.int64),
        class_names=list(class_names),
        category_ids=np.array(category_ids or range(1, len(class_names) + 1), np.int64),
        annotated=annotated,
        source=source,
        annotation_file=annotation_file,
    )
    _report_boxes(records)
    return records


def report(records: Records, which: np.ndarray, fault: str) -> None:
    """Log one line about the objects that `which` (M,) marks: how many, the fault, the first three by name."""
    found = np.flatnonzero(which)
    if len(found):
        examples = ", ".join(records.describe(int(m)) for m in found[:3])
        more = ", ..." if len(found) > 3 else ""
        plural = "s" if len(found) > 1 else ""
        logger.warning("%s: %d object%s %s: %s%s", records.source, len(found), plural, fault, examples, more)


def _report_boxes(records: Records) -> None:
    bad = ~np.isfinite(records.boxes).all(axis=1)
    if bad.any():
        raise UserError(f"{records.describe(int(np.argmax(bad)))}: a coordinate is not a finite number")
    limits = records.sizes[records.image_of_object()][:, [1, 0, 1, 0]]
    without = ~has_extent(records.boxes)
    report(
        records,
        without,
        f"at most {MIN_EXTENT:g} pixel wide or high will not be trained on (the evaluators count them)",
    )
    outside = ((records.boxes < -1) | (records.boxes > limits + 1)).any(axis=1) & ~without
    report(records, outside, "reach out of the image by more than a pixel and are clipped for training")


def _unknown_class(records: Records, m: int, renamed: list[str], known: list[str]) -> str:
    name = renamed[records.labels[m] - 1]
    listed = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
    return (
        f"{records.describe(m)}: class {name} is not among the {len(known)} classes [{listed}]"
        f"{did_you_mean(name, known)}: "
        "add it to data.classes, map it with data.rename_classes, or choose with data.keep_classes"
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
