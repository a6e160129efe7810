"""Records of plain lists, as the readers collect them, and what is wrong with their boxes. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from configs.errors import UserError, counted, examples
from datasets.findings import find
from datasets.images import image_file_size
from datasets.names import Names
from datasets.records import MIN_EXTENT, Records, has_extent, id_array, logger, offsets_of

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
        UserError: a coordinate is not finite, or the name of an image or a class is not UTF-8.
    """
    _check_names(images, class_names, source)
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)  # columns that are arrays already are not copied
    total = len(corners)
    if area is None:
        area = np.clip(corners[:, 2:] - corners[:, :2], 0, None).prod(axis=1)
    ids = [image_id for _, image_id, _ in images]
    records = Records(
        image_paths=Names.of(path for path, _, _ in images),
        image_ids=id_array(ids),
        sizes=np.array([size for _, _, size in images], np.int64).reshape(-1, 2),
        offsets=offsets_of(counts),
        boxes=corners,
        labels=np.asarray(labels, np.int64),
        area=np.asarray(area, np.float64),
        iscrowd=np.zeros(total, bool) if iscrowd is None else np.asarray(iscrowd, bool),
        difficult=np.zeros(total, bool) if difficult is None else np.asarray(difficult, bool),
        truncated=np.zeros(total, bool) if truncated is None else np.asarray(truncated, bool),
        annotation_ids=np.arange(1, total + 1) if annotation_ids is None else np.asarray(annotation_ids, np.int64),
        class_names=list(class_names),
        category_ids=id_array(list(category_ids or range(1, len(class_names) + 1))),
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
        named = examples([records.describe(int(m)) for m in found[:4]], 3)
        logger.warning("%s: %s %s: %s", records.source, counted(len(found), "object"), fault, named)


def _check_names(images: list[tuple[str, Any, tuple[int, int]]], class_names: Sequence[str], source: str) -> None:
    """Refuse names that are not UTF-8, and image names that hold line ends and their like: lists cannot hold them."""
    if wrong := next((name for name in class_names if not _is_unicode(name)), None):
        raise UserError(
            f"{source}: the class name {wrong} holds half of a surrogate pair, which no file can: rename it"
        )
    names = (f"{path.rpartition('/')[2]}{identity}" for path, identity, _ in images)
    bad = []
    for (path, _, _), name in zip(images, names, strict=True):
        if name.isprintable():  # no lone surrogate is
            continue
        if _CONTROL.search(name):
            raise UserError(f"{source}: the image name {name!r} holds a control character: rename it")
        if not _is_unicode(name):
            bad.append(path)
    if bad:
        raise UserError(
            f"{source}: the name of {counted(len(bad), 'image')} is not UTF-8, the first: {bad[0]}: "
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


def _with_true_sizes(records: Records) -> Records:
    """The records with the size in the file's header for images whose boxes leave the declared one, for the image
    counts; an image that cannot be read keeps what is declared."""
    leaving = np.zeros(len(records), bool)
    for objects, images in records.parts():
        boxes = records.boxes[objects]
        leaving[images[((boxes < -1) | (boxes > records.limits(images) + 1)).any(axis=1)]] = True
    sizes, wrong = records.sizes.copy(), []
    for i in np.flatnonzero(leaving).tolist():
        try:
            sizes[i] = image_file_size(str(records.image_paths[i]), records.image_size(i))
        except UserError:  # the loader will say so, by its own policy
            continue
        if tuple(sizes[i]) != records.image_size(i):
            wrong.append(i)
            (height, width), declared = sizes[i], records.image_size(i)
            differing = f"{width} x {height}, declared {declared[1]} x {declared[0]}"
            find("size-differs", str(records.image_paths[i]), value=differing)
    if wrong:
        (height, width), (declared_height, declared_width) = sizes[wrong[0]], records.sizes[wrong[0]]
        logger.warning(
            "%s: %s not of the declared size: the image counts: %s is %d wide and %d high, declared %d and %d",
            records.source, counted(len(wrong), "image", " is", " are"), records.image_paths[wrong[0]],
            width, height, declared_width, declared_height,
        )  # fmt: skip
    return replace(records, sizes=sizes)


def _report_boxes(records: Records) -> None:
    faults = box_faults(records)
    report(records, faults["box-reversed"], _why_reversed(records, faults["box-reversed"]))
    if looks_like_fractions(records):
        logger.warning(
            "%s: no coordinate is above 1.5: the boxes seem to be in fractions of the image, not in pixels: multiply x "
            "by its width and y by its height", records.source,
        )  # fmt: skip
    for code, words in _FAULTS.items():
        report(records, faults[code], words)


_FAULTS = {
    "box-zero-extent": f"at most {MIN_EXTENT:g} pixel wide or high will not be trained on (the evaluators count them)",
    "box-off-image": "wholly outside the image will not be trained on (the evaluators count them)",
    "box-outside": "reaching out of the image by more than a pixel will be clipped for training",
    "box-repeated": "annotated twice, with the same box and class in the same image",
}


def box_faults(records: Records) -> dict[str, np.ndarray]:
    """Code of `datasets.lint` -> (M,) bool: which boxes have the fault; of the first four each box has one at most."""
    codes = ("box-reversed", "box-zero-extent", "box-off-image", "box-outside")
    found = {code: np.zeros(len(records.labels), bool) for code in codes}
    for objects, images in records.parts():
        boxes, limits = records.boxes[objects], records.limits(images)
        reversed_ = np.any(boxes[:, 2:] < boxes[:, :2], axis=1)
        without = ~has_extent(boxes) & ~reversed_
        off = ~reversed_ & ~without & np.any((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits[:, :2]), axis=1)
        outside = ~reversed_ & ~without & ~off & np.any((boxes < -1) | (boxes > limits + 1), axis=1)
        for code, marks in zip(codes, (reversed_, without, off, outside), strict=True):
            found[code][objects] = marks
    return {**found, "box-repeated": repeated(records)}


def looks_like_fractions(records: Records) -> bool:
    """Whether the boxes rather hold fractions of their images: none reaches far beyond the first pixel, and some
    coordinates are no whole numbers."""
    boxes = records.boxes
    return len(boxes) > 0 and bool(boxes.max() <= 1.5) and bool((boxes % 1).any())


def _why_reversed(records: Records, reversed_: np.ndarray) -> str:
    """What is likely wrong with boxes whose second corner lies before the first."""
    if records.form == "coco":
        return "with a negative width or height will not be trained on: is the corner not the upper left one?"
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
