"""Annotations of a whole data set in flat arrays. Imports no torch.

A list of dictionaries of a hundred thousand images is copied into every worker process, object by object, as its
reference counts change; a handful of arrays is shared.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from configs.errors import PrintableFilter, UserError, did_you_mean
from datasets.images import image_file_size
from datasets.names import Names
from datasets.resize import clip_boxes
from datasets.target import Target

logger = logging.getLogger(__name__)
logger.addFilter(PrintableFilter())

MIN_EXTENT = 1.0
"""Pixels of the original image. A box that is not wider and higher than this is a slip of the mouse: nothing can be
learned from it, and its logarithms ruin the loss. In VOC's inclusive pixels it is a box with xmax <= xmin."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_IMAGES = 1 << 16  # that are looked at together
_EPSILON = 1e-6  # x2 - x1 of a box that was stored as x, y, w, h is off by rounding


@dataclass(frozen=True)
class Records:
    """N images with M objects of K classes; the objects of image i are offsets[i] to offsets[i + 1].

    `boxes` are as annotated, neither clipped nor filtered, for the evaluators count what the official tools count;
    `target` gives what can be trained on.
    """

    image_paths: Names
    """N paths; what else is given as texts becomes `Names`."""
    image_ids: np.ndarray
    """(N,) str or int64: the set's own names of the images."""
    sizes: np.ndarray
    """(N, 2) int64: (H, W) as declared; the file's own where a box leaves the declared size. The decoded image counts
    where it differs."""
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
    """(K,) int64 or str: label k's id in the COCO file (-1 or empty: none there); elsewhere 1..K."""
    annotated: bool = True
    """False: images only, as in the test sets whose annotations are kept by a server."""
    source: str = ""
    """What the reports call this set."""
    annotation_file: str = "{}"
    """Pattern that makes the annotation file's path of an image id."""
    form: Literal["voc", "coco"] | None = None
    """Whose files detections are written as; None: COCO's where the image ids are numbers, else VOC's."""

    def __post_init__(self) -> None:
        if not isinstance(self.image_paths, Names):
            object.__setattr__(self, "image_paths", Names.of(self.image_paths))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Records that are mapped from a file are pickled as its name, for a worker process to map it too."""
        return self.__dict__.get("reopen") or super().__reduce_ex__(protocol)

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

    def object_counts(self) -> np.ndarray:
        """(K,) int64: objects of each class."""
        known = self.__dict__.get("counts")  # of records that are mapped from a file
        return np.bincount(self.labels, minlength=len(self.class_names) + 1)[1:] if known is None else known

    def image_of_object(self) -> np.ndarray:
        """(M,) int64: the image of each object."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def classes_of_images(self, which: np.ndarray | None = None) -> np.ndarray:
        """(P, 2) int64: each image and each label of its objects, once, sorted.

        Args:
            which: (M,) bool, the objects that count; default: all.
        """
        factor = len(self.class_names) + 1  # pairs as one number: a sort of rows takes minutes for millions
        pairs = np.repeat(np.arange(len(self)) * factor, np.diff(self.offsets))
        pairs += self.labels
        return np.stack(np.divmod(np.unique(pairs if which is None else pairs[which]), factor), axis=1)

    def trainable(self, *, train_difficult: bool = True) -> np.ndarray:
        """(M,) bool: objects that can take part in training: no crowd, inside the image, with an extent."""
        usable = ~self.iscrowd
        for objects, images in self.parts():
            usable[objects] &= has_extent(np.clip(self.boxes[objects], 0, self.limits(images)))
        return usable if train_difficult else usable & ~self.difficult

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """(objects, (m,) the image of each) of some images after another: columns of 25 million boxes take 0.8 GB."""
        for start in range(0, len(self), _IMAGES):
            offsets = self.offsets[start : start + _IMAGES + 1]
            images = np.repeat(np.arange(start, start + len(offsets) - 1), np.diff(offsets))
            yield slice(int(offsets[0]), int(offsets[-1])), images

    def limits(self, images: np.ndarray) -> np.ndarray:
        """(m, 4) int64: W H W H of some images (m,), which boxes are held against."""
        return self.sizes[images][:, [1, 0, 1, 0]]

    def describe(self, m: int) -> str:
        """Object m in words: its file, its number within the image (from 0), its class."""
        i = int(np.searchsorted(self.offsets, m, side="right")) - 1
        name = self.class_names[self.labels[m] - 1]
        file = self.annotation_file.replace("{}", str(self.image_ids[i]))
        return f"{file} object {m - self.offsets[i]} ({name})"

    def subset(self, images: np.ndarray | Sequence[int]) -> Records:
        """The records of these images, in this order."""
        images = np.asarray(images, np.int64)
        starts, ends = self.offsets[images].tolist(), self.offsets[images + 1].tolist()
        parts = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
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
        keep, kept, offsets = labels != dropped, replace(self, labels=labels), self.offsets
        if not keep.all():
            kept = kept._take_objects(np.flatnonzero(keep))
            offsets = _offsets(np.bincount(self.image_of_object()[keep], minlength=len(self)))
        id_of = dict(reversed(list(zip(renamed, self.category_ids.tolist(), strict=True))))
        none = "" if self.category_ids.dtype.kind == "U" else -1
        return replace(
            kept,
            offsets=offsets,
            class_names=class_names,
            category_ids=_id_array([id_of.get(name, none) for name in class_names]),
        )


def has_extent(boxes: np.ndarray) -> np.ndarray:
    """(N,) bool: boxes (N, 4) in original pixels that are wider and higher than `MIN_EXTENT`."""
    return np.all(boxes[:, 2:] - boxes[:, :2] > MIN_EXTENT + _EPSILON, axis=1)


def join(parts: Sequence[Records]) -> Records:
    """Several sets as one, in the given order (07+12). All must have the same classes.

    Image ids that occur in more than one part get the part's number before them, for evaluators tell images by id.
    """
    if len(parts) == 1:
        return parts[0]
    assert all(part.class_names == parts[0].class_names for part in parts), "give all parts the same classes first"
    ids = [part.image_ids for part in parts]
    form = parts[0].form if all(part.form == parts[0].form for part in parts) else None
    if len({array.dtype.kind for array in ids}) > 1 or len(np.unique(np.concatenate(ids))) < sum(map(len, ids)):
        ids = [np.array([f"{number}/{name}" for name in array]) for number, array in enumerate(ids, 1)]
        form = None
    same_categories = all(np.array_equal(part.category_ids, parts[0].category_ids) for part in parts)
    shifts = np.cumsum([0] + [len(part.labels) for part in parts])
    names = ("sizes", "boxes", "labels", "area", "iscrowd", "difficult", "truncated")
    return replace(
        parts[0],
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        image_paths=Names.join([part.image_paths for part in parts]),
        image_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], *(p.offsets[1:] + s for p, s in zip(parts, shifts[:-1], strict=True))]),
        annotation_ids=np.arange(1, shifts[-1] + 1),
        category_ids=parts[0].category_ids if same_categories else np.arange(1, len(parts[0].class_names) + 1),
        annotated=all(part.annotated for part in parts),
        source=" + ".join(part.source for part in parts),
        annotation_file="{}",
        form=form,
    )


def make_records(
    *,
    images: list[tuple[str, str | int, tuple[int, int]]],
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    counts: Sequence[int] | np.ndarray,
    class_names: list[str],
    source: str,
    annotation_file: str,
    area: Sequence[float] | np.ndarray | None = None,
    iscrowd: Sequence[bool] | np.ndarray | None = None,
    difficult: Sequence[bool] | np.ndarray | None = None,
    truncated: Sequence[bool] | np.ndarray | None = None,
    annotation_ids: Sequence[int] | np.ndarray | None = None,
    category_ids: Sequence[Any] | None = None,
    annotated: bool = True,
    form: Literal["voc", "coco"] | None = None,
) -> Records:
    """Records of plain lists, as the readers collect them; reports what is wrong with the boxes.

    Args:
        images: (path, id, declared (H, W)) of each image.
        boxes: M boxes, x1 y1 x2 y2, continuous pixels that count from 0.
        labels: M labels, 1..K.
        counts: number of objects of each image.
        class_names, source, annotation_file, ...: as in `Records`.

    Raises:
        UserError: a coordinate is not finite, or the name of an image is not UTF-8.
    """
    _check_names(images, source)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)  # columns that are arrays already are not copied
    total = len(corners)
    if area is None:
        area = np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(axis=1)
    ids = [image_id for _, image_id, _ in images]
    records = Records(
        image_paths=Names.of(path for path, _, _ in images),
        image_ids=_id_array(ids),
        sizes=np.array([size for _, _, size in images], np.int64).reshape(-1, 2),
        offsets=_offsets(np.array(counts, np.int64)),
        boxes=corners,
        labels=np.asarray(labels, np.int64),
        area=np.asarray(area, np.float64),
        iscrowd=np.zeros(total, bool) if iscrowd is None else np.asarray(iscrowd, bool),
        difficult=np.zeros(total, bool) if difficult is None else np.array(difficult, bool),
        truncated=np.zeros(total, bool) if truncated is None else np.array(truncated, bool),
        annotation_ids=np.arange(1, total + 1) if annotation_ids is None else np.asarray(annotation_ids, np.int64),
        class_names=list(class_names),
        category_ids=_id_array(list(category_ids or range(1, len(class_names) + 1))),
        annotated=annotated,
        source=source,
        annotation_file=annotation_file,
        form=form,
    )
    _check_finite(records)
    records = _with_true_sizes(records)
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


def _check_names(images: list[tuple[str, Any, tuple[int, int]]], source: str) -> None:
    """Refuse image names whose bytes are not UTF-8, or that hold line ends and their like: lists cannot hold them."""
    names = [f"{path.rpartition('/')[2]}{identity}" for path, identity, _ in images]
    control = next((name for name in names if not name.isprintable() and _CONTROL.search(name)), None)
    if control is not None:
        raise UserError(f"{source}: the image name {control!r} holds a control character: rename it")
    bad = [path for (path, _, _), name in zip(images, names, strict=True) if not _is_unicode(name)]
    if bad:
        raise UserError(
            f"{source}: the name of {len(bad)} image{'s' if len(bad) > 1 else ''} is not UTF-8, the first: {bad[0]}: "
            "rename them (convmv -f latin1 -t utf8 --notest FOLDER)"
        )


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # os.fsdecode keeps bytes that are not UTF-8 as lone surrogates
        return False
    return True


def _check_finite(records: Records) -> None:
    bad = ~np.isfinite(records.boxes).all(axis=1)
    if bad.any():
        raise UserError(f"{records.describe(int(np.argmax(bad)))}: a coordinate is not a finite number")


def _leaving(records: Records) -> np.ndarray:
    """(M,) bool: objects that reach out of their image by more than a pixel."""
    leaving = np.zeros(len(records.labels), bool)
    for objects, images in records.parts():
        boxes = records.boxes[objects]
        leaving[objects] = np.any((boxes < -1) | (boxes > records.limits(images) + 1), axis=1)
    return leaving


def _with_true_sizes(records: Records) -> Records:
    """The records with the size in the file's header for images whose boxes leave the declared one, for the image
    counts; an image that cannot be read keeps what is declared."""
    sizes, wrong = records.sizes.copy(), []
    for i in np.unique(records.image_of_object()[_leaving(records)]):
        try:
            sizes[i] = image_file_size(str(records.image_paths[i]), records.image_size(i))
        except UserError:  # the loader will say so, by its own policy
            continue
        if tuple(sizes[i]) != records.image_size(i):
            wrong.append(i)
    if wrong:
        (height, width), (declared_height, declared_width) = sizes[wrong[0]], records.sizes[wrong[0]]
        logger.warning(
            "%s: %d image%s not of the declared size: the image counts: %s is %d wide and %d high, declared %d and %d",
            records.source, len(wrong), " is" if len(wrong) == 1 else "s are", records.image_paths[wrong[0]],
            width, height, declared_width, declared_height,
        )  # fmt: skip
    return replace(records, sizes=sizes)


def _report_boxes(records: Records) -> None:
    reversed_ = np.any(records.boxes[:, 2:] < records.boxes[:, :2], axis=1)
    report(records, reversed_, _why_reversed(records, reversed_))
    if looks_like_fractions(records):
        logger.warning(
            "%s: no coordinate is above 1.5: the boxes seem to be in fractions of the image, not in pixels: multiply x "
            "by its width and y by its height", records.source,
        )  # fmt: skip
    without = ~has_extent(records.boxes) & ~reversed_
    report(
        records,
        without,
        f"at most {MIN_EXTENT:g} pixel wide or high will not be trained on (the evaluators count them)",
    )
    outside = np.zeros(len(records.labels), bool)
    for objects, images in records.parts():
        boxes = records.boxes[objects]
        outside[objects] = np.any((boxes[:, 2:] <= 0) | (boxes[:, :2] >= records.limits(images)[:, :2]), axis=1)
    outside &= ~reversed_ & ~without
    report(records, outside, "wholly outside the image will not be trained on (the evaluators count them)")
    clipped = _leaving(records) & ~reversed_ & ~without & ~outside
    report(records, clipped, "reach out of the image by more than a pixel and are clipped for training")
    report(records, repeated(records), "annotated twice, with the same box and class in the same image")


def looks_like_fractions(records: Records) -> bool:
    """Whether the boxes rather hold fractions of their images: none reaches far beyond the first pixel, and some
    coordinates are no whole numbers."""
    boxes = records.boxes
    return len(boxes) > 0 and bool(boxes.max() <= 1.5) and bool((boxes % 1).any())


def _why_reversed(records: Records, reversed_: np.ndarray) -> str:
    """What is likely wrong with boxes whose second corner lies before the first."""
    as_sides = np.zeros(len(records.labels), bool)
    for objects, images in records.parts():
        boxes = records.boxes[objects]
        as_sides[objects] = np.all(boxes[:, :2] + boxes[:, 2:] <= records.limits(images)[:, :2] + 1, axis=1)
    causes = ["corners exchanged", "width and height in place of xmax and ymax"]
    if not as_sides[reversed_].all():
        causes = causes[:1]  # such a width or height would leave the image
    elif as_sides.all() and len(as_sides) > 4:
        causes = causes[1:]  # all boxes of the set fit if they are taken so
    return f"with xmax below xmin or ymax below ymin will not be trained on: {', or '.join(causes)}?"


def repeated(records: Records) -> np.ndarray:
    """(M,) bool: objects with the box and the class of an earlier one in the same image."""
    found = np.zeros(len(records.labels), bool)
    weights = np.random.default_rng(0).random(6)
    for objects, images in records.parts():
        keys = np.column_stack([images, records.labels[objects], records.boxes[objects]])
        # Equal rows have equal sums, so only rows of sums that occur twice are compared: fast for millions of objects.
        sums = keys @ weights
        order = np.argsort(sums, kind="stable")
        near = np.zeros(len(keys), bool)
        same_sum = sums[order][1:] == sums[order][:-1]
        near[order[1:][same_sum]] = near[order[:-1][same_sum]] = True
        seen: set[tuple[float, ...]] = set()
        for m in np.flatnonzero(near).tolist():
            key = tuple(keys[m].tolist())
            found[objects.start + m] = key in seen
            seen.add(key)
    return found


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


def _id_array(ids: list[Any]) -> np.ndarray:
    """(N,) int64 where the ids are numbers, else str."""
    return np.array(ids, np.int64 if ids and isinstance(ids[0], int) else np.str_)
