"""Annotations of a whole data set in flat arrays. Imports no torch.

A list of dictionaries of a hundred thousand images is copied into every worker process, object by object, as its
reference counts change; a handful of arrays is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

import numpy as np

from configs.errors import UserError, counted, did_you_mean, examples, printable_logger
from datasets.findings import find, is_listening
from datasets.names import Names
from datasets.resize import clip_boxes
from datasets.target import Target

logger = printable_logger(__name__)

MIN_EXTENT = 1.0
"""Pixels of the original image. A box that is not wider and higher than this is a slip of the mouse: nothing can be
learned from it, and its logarithms ruin the loss. In VOC's inclusive pixels it is a box with xmax <= xmin."""

_IMAGES = 1 << 16  # that are looked at together
OF_OBJECTS = ("boxes", "labels", "area", "iscrowd", "difficult", "truncated", "annotation_ids")
"""The columns of `Records` with a value for each object."""

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
    """(K,) int64 or str: label k's id in the COCO file (-1, -2, ... that none has: not there);
    elsewhere 1..K."""
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
        return np.stack(np.divmod(each_once(pairs if which is None else pairs[which]), factor), axis=1)

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

    def limits(self, images: np.ndarray | None = None) -> np.ndarray:
        """(m, 4) int64: W H W H of some images (m,), which boxes are held against; None: of each object's image."""
        return self.sizes[self.image_of_object() if images is None else images][:, [1, 0, 1, 0]]

    def describe(self, m: int) -> str:
        """Object m in words: its file, its number within the image (from 0), its class."""
        i = self.image_of(m)
        return f"{self.file_of(i)} object {m - self.offsets[i]} ({self.class_names[self.labels[m] - 1]})"

    def image_of(self, m: int) -> int:
        """The image of object m."""
        return int(np.searchsorted(self.offsets, m, side="right")) - 1

    def file_of(self, i: int) -> str:
        """The annotation file of image i."""
        return self.annotation_file.replace("{}", str(self.image_ids[i]))

    def subset(self, images: np.ndarray | Sequence[int]) -> Records:
        """The records of these images, in this order."""
        images = np.asarray(images, np.int64)
        starts, ends = self.offsets[images].tolist(), self.offsets[images + 1].tolist()
        parts = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        objects = np.concatenate([*parts, np.zeros(0, np.int64)])
        return replace(
            self,
            image_paths=self.image_paths[images],
            image_ids=self.image_ids[images],
            sizes=self.sizes[images],
            offsets=offsets_of([len(part) for part in parts]),
            **{name: getattr(self, name)[objects] for name in OF_OBJECTS},
        )

    def with_objects(self, keep: np.ndarray) -> Records:
        """The same images with those objects only that `keep`, (M,) bool, marks."""
        if keep.all():
            return self
        counts = np.bincount(self.image_of_object()[keep], minlength=len(self))
        objects = {name: getattr(self, name)[keep] for name in OF_OBJECTS}
        return replace(self, offsets=offsets_of(counts), **objects)

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
        label_of = dict.fromkeys(known, dropped) | {name: label for label, name in enumerate(class_names, 1)}
        new_label = np.array([0, *(label_of.get(name, unknown) for name in renamed)], np.int64)
        labels = new_label[self.labels]
        if (labels == unknown).any():
            for m in np.flatnonzero(labels == unknown).tolist() if is_listening() else ():
                i, name = self.image_of(m), renamed[self.labels[m] - 1]
                find("class-unknown", self.file_of(i), f"object {m - int(self.offsets[i])}", name)
            raise UserError(_unknown_class(self, int(np.argmax(labels == unknown)), renamed, known))
        id_of = dict(reversed(list(zip(renamed, self.category_ids.tolist(), strict=True))))
        # Classes that the file lacks get ids of their own, or detections of one would be scored as another's.
        taken, as_text = set(id_of.values()), self.category_ids.dtype.kind == "U"
        free = (each for n in count(1) if (each := f"-{n}" if as_text else -n) not in taken)
        return replace(
            replace(self, labels=labels).with_objects(labels != dropped),
            class_names=class_names,
            category_ids=id_array([id_of[name] if name in id_of else next(free) for name in class_names]),
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
    if len({array.dtype.kind for array in ids}) > 1 or count_different(np.concatenate(ids)) < sum(map(len, ids)):
        ids = [np.array([f"{number}/{name}" for name in array]) for number, array in enumerate(ids, 1)]
        form = None
    same_categories = all(np.array_equal(part.category_ids, parts[0].category_ids) for part in parts)
    shifts = np.cumsum([0] + [len(part.labels) for part in parts])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("sizes", *OF_OBJECTS)}
    columns["annotation_ids"] = np.arange(1, shifts[-1] + 1)  # several parts may have the same
    return replace(
        parts[0],
        **columns,
        image_paths=Names.join([part.image_paths for part in parts]),
        image_ids=np.concatenate(ids),
        offsets=np.concatenate([[0], *(p.offsets[1:] + s for p, s in zip(parts, shifts[:-1], strict=True))]),
        category_ids=parts[0].category_ids if same_categories else np.arange(1, len(parts[0].class_names) + 1),
        annotated=all(part.annotated for part in parts),
        source=" + ".join(part.source for part in parts),
        annotation_file="{}",
        form=form,
    )


def _unknown_class(records: Records, m: int, renamed: list[str], known: list[str]) -> str:
    name = renamed[records.labels[m] - 1]
    return (
        f"{records.describe(m)}: class {name} is not among the {counted(len(known), 'class')} [{examples(known)}]"
        f"{did_you_mean(name, known)}: "
        "add it to data.classes, map it with data.rename_classes, or choose with data.keep_classes"
    )


def each_once(values: np.ndarray) -> np.ndarray:
    """Values (N,), sorted, each once: `np.unique`, which for millions of different numbers takes 20 times as long."""
    values = np.sort(values)
    return values[_first(values)]


def count_different(values: np.ndarray) -> int:
    """How many different values there are."""
    return int(np.count_nonzero(_first(np.sort(values))))


def _first(values: np.ndarray) -> np.ndarray:
    """(N,) bool: which of some sorted values differ from the one before."""
    first = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return first


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N + 1,) int64: where the objects of each image begin, of the numbers of objects."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def id_array(ids: list[Any]) -> np.ndarray:
    """(N,) int64 where the ids are numbers, else str."""
    return np.array(ids, np.int64 if ids and isinstance(ids[0], int) else np.str_)
