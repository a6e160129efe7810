"""What is in a set, in numbers and sentences: counts by class, sizes, what looks wrong. Imports no torch."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from configs.errors import UserError, counted, printable, some
from datasets.images import image_file_size
from datasets.make_records import repeated
from datasets.records import Records
from datasets.resize import resized_size
from datasets.voc import corners_from_zero

FEW = 10
"""Objects. Of a class with fewer nothing can be learned, nor measured."""


def class_counts(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Objects of each class, and images that show it: (K,) int64 each."""
    size = len(records.class_names) + 1
    return records.object_counts(), np.bincount(records.classes_of_images()[:, 1], minlength=size)[1:]


def class_table(parts: Mapping[str, Records]) -> list[str]:
    """Lines of a table: objects of each class in each part, and in how many of its images."""
    names = next(iter(parts.values())).class_names
    counts = {part: class_counts(records) for part, records in parts.items()}
    shown = [printable(name)[:40] for name in names]
    width = max(len("images"), *map(len, shown)) if names else 6
    rows = [["", *parts], ["images", *(f"{len(records)}" for records in parts.values())]]
    rows.append(["  empty", *(f"{int((np.diff(records.offsets) == 0).sum())}" for records in parts.values())])
    rows += [
        [name, *(f"{objects[k]} in {images[k]}" for objects, images in counts.values())] for k, name in enumerate(shown)
    ]
    return ["  " + row[0].ljust(width) + "".join(f"{cell:>18}" for cell in row[1:]) for row in rows]


def resize_factors(sizes: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """(N,) float64: by how much images of sizes (N, 2) are enlarged; 1 where a side is 0."""
    different, which = np.unique(sizes, axis=0, return_inverse=True)
    factors = [
        resized_size((height, width), min_size, max_size)[0] / height if min(height, width) > 0 else 1.0
        for height, width in different.tolist()
    ]
    return np.array(factors)[which.ravel()]


def resized_extents(records: Records, min_size: int, max_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Width and height, (M, 2) float64 pixels after resizing, of objects that can be trained on, and their labels."""
    usable = records.trainable(train_difficult=True)
    scales = resize_factors(records.sizes, min_size, max_size)
    boxes = np.clip(records.boxes, 0, records.limits())
    extents = (boxes[:, 2:] - boxes[:, :2]) * scales[records.image_of_object()][:, None]
    return extents[usable], records.labels[usable]


def size_lines(records: Records, min_size: int, max_size: int) -> list[str]:
    """What images and objects measure, before and after resizing, as lines for a person."""
    heights, widths = np.median(records.sizes, axis=0).astype(int)
    different = len(np.unique(records.sizes, axis=0))
    lines = [f"images     {widths}x{heights}" + (f" (the median of {different} sizes)" if different > 1 else "")]
    extents, _ = resized_extents(records, min_size, max_size)
    if len(extents):
        root = np.sqrt(extents.prod(axis=1))
        low, middle, high = np.percentile(root, [5, 50, 95])
        ratio = np.percentile(extents[:, 1] / extents[:, 0], [5, 50, 95])
        lines.append(
            f"objects    {low:.0f}, {middle:.0f}, {high:.0f} pixels (5 %, half, 95 % are smaller; square roots of the "
            f"areas after resizing to {min_size}), height / width {ratio[0]:.2f}, {ratio[1]:.2f}, {ratio[2]:.2f}"
        )
        counts = np.diff(records.offsets)
        lines.append(f"an image   {counts.mean():.1f} objects, at most {counts.max()}")
    return lines


# ---------------------------------------------------------------------------------------------- what looks wrong


def rare_classes(records: Records, fewer_than: int = FEW) -> list[str]:
    """`name (count)` of the classes with few objects."""
    counts = zip(records.class_names, records.object_counts(), strict=True)
    return [f"{name} ({count})" for name, count in counts if count < fewer_than]


def problems(records: Records, part: str) -> list[str]:
    """What a person should look at in a part (train, val or test), one line each."""
    found = []
    if part == "train":
        if rare := rare_classes(records):
            found.append(f"classes with fewer than {FEW} objects, of which little can be learned: {some(rare)}")
    elif records.annotated and (absent := rare_classes(records, 1)):
        found.append(f"classes without objects, which cannot be measured: {some(absent)}")
    for names in same_spellings(records.class_names):
        found.append(f"classes that may be one: {', '.join(sorted(names))}: data.rename_classes gives them one name")
    again = np.flatnonzero(repeated(records))
    if len(again):
        example = records.describe(int(again[0]))
        found.append(
            f"{counted(len(again), 'object', ' is', ' are')} there twice, box and class, for example {example}"
        )
    return found + _files(records)


def same_spellings(names: Sequence[str]) -> list[list[str]]:
    """The names that differ in case, blanks or separators only, side by side."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(letter for letter in name.casefold() if letter.isalnum())].append(name)
    return [group for plain, group in groups.items() if plain and len(group) > 1]


def _files(records: Records) -> list[str]:
    """Images that cannot be opened, and those of another size than declared; looks at headers alone."""
    broken, other = [], []
    for path, size in zip(records.image_paths.tolist(), records.sizes.tolist(), strict=True):
        try:
            real = image_file_size(path, (size[0], size[1]))
        except UserError as error:
            broken.append(str(error))
            continue
        if real != (size[0], size[1]):
            other.append(f"{path} ({real[1]}x{real[0]}, declared {size[1]}x{size[0]})")
    found = [f"images that cannot be read: {some(broken)}"] if broken else []
    if other:
        found.append(
            f"{counted(len(other), 'image', ' is', ' are')} of another size than declared, for example {other[0]}: do "
            "boxes fit?"
        )
    return found


def counts_from_zero(records: Records, *, zero_based: bool) -> bool | None:
    """Whether a VOC set's coordinates count from 0, judged by those at the left and upper border.

    Objects that the border cuts off begin at the first pixel: at 0 where pixels count from 0, at 1 where from 1.

    Args:
        records: as read by `datasets.voc` or `datasets.annotation_files`.
        zero_based: how they were read.

    Returns:
        None: no object lies at the border.
    """
    return corners_from_zero(records.boxes[:, :2] + (0 if zero_based else 1))


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collects what readers warn of meanwhile, each sentence once, instead of printing it."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if text not in found:
                found.append(text)

    logger = logging.getLogger("datasets")
    handler, propagates = Collector(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
