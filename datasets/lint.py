"""What is wrong with a data set: each problem with its code, file, object, value and likely cause. Imports no torch.

`lint_records` looks at the annotations alone (`summary` does so before each training), `lint_anchors` compares boxes
with anchors; `lint_voc.py` looks at each file of VOC sets by itself, `lint_images.py` opens the images. `clean` takes
out, or clips, what a training cannot use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from configs.detection import AnchorConfig
from configs.errors import counted
from datasets.anchor_fit import anchor_shapes, better_anchors, reached
from datasets.coco import looks_like_corners
from datasets.make_records import box_faults, looks_like_fractions
from datasets.records import Records, has_extent
from datasets.survey import resize_factors, resized_extents, same_spellings
from datasets.voc import ROUNDED

Severity = Literal["error", "warning", "note"]

CODES: dict[str, tuple[Severity, str]] = {
    "box-zero-extent": ("error", "at most a pixel wide or high: a slip of the mouse"),
    "box-reversed": ("error", "the second corner lies before the first: corners exchanged, or width and height given?"),
    "box-off-image": ("error", "wholly outside the image: of another image, of another size, or in other units?"),
    "box-outside": ("warning", "reaches out of the image by more than a pixel"),
    "box-at-edge": ("note", "touches the edge of the image: the object may be cut"),
    "box-repeated": ("warning", "the same box and class twice in an image: exported or annotated twice"),
    "boxes-as-corners": ("error", "x y width height (YOLO: of the centre) seem to hold x1 y1 x2 y2: convert the boxes"),
    "boxes-as-fractions": ("error", "coordinates seem to be fractions of the image, not pixels: multiply by its sides"),
    "boxes-from-zero": ("warning", "coordinates below 1 in a set that counts from 1: set zero_based: true"),
    "anchors-miss": ("warning", "fewer than 70 % of the objects overlap an anchor by half: change model.anchors"),
    "object-small": ("warning", "under 4 pixels after resizing: hardly to be learned; raise data.min_size"),
    "size-differs": ("warning", "the image has another size than its annotation declares: the image counts"),
    "size-absurd": ("error", "a side of less than 8 or more than 20,000 pixels, or 50 times as long as the other"),
    "image-without-object": ("note", "no object: is it background, or is its annotation missing?"),
    "image-unreadable": ("error", "cannot be decoded"),
    "image-damaged": ("warning", "the decoder met damage inside and went on: some pixels may be wrong"),
    "image-repeated": ("warning", "the same content under two names"),
    "image-near": ("warning", "nearly the same picture as another: a frame of the same film, or saved again?"),
    "image-in-two-splits": ("error", "the same content in two splits: the figures of the second say too much"),
    "image-grey": ("note", "one channel: it is taken as RGB with equal channels"),
    "image-cmyk": ("warning", "CMYK: converted, but its colours may differ from what a viewer shows"),
    "image-deep": ("warning", "more than 8 bits for each channel: only the upper 8 are taken"),
    "image-palette": ("note", "a palette: converted to RGB"),
    "image-animated": ("warning", "several frames: the first is taken"),
    "image-turned": ("note", "EXIF, XMP or TIFF say that it is to be turned: were the boxes drawn on it so?"),
    "set-unreadable": ("error", "cannot be read as a set: what it says is to be repaired first"),
    "annotation-broken": ("error", "cannot be read: repair or remove it"),
    "annotation-missing": (
        "error",
        "an image of the set without an annotation file, though others have one: label it, or a config's unlabelled "
        "says what it is (empty or skip)",
    ),
    "annotation-lonely": ("note", "an annotation that no image set lists, or without an image"),
    "image-missing": ("error", "listed, but there is no such image"),
    "image-lonely": ("note", "an image that no image set lists"),
    "filename-differs": ("warning", "the annotation names another file than its own: copied or renamed?"),
    "size-missing": ("note", "no size is declared: it is read from the image"),
    "id-repeated": ("warning", "the same id twice: number them anew"),
    "id-missing": ("warning", "no id, without which other tools refuse the file: number them"),
    "class-unknown": ("error", "a class that is not listed: list it, or map it with data.rename_classes"),
    "class-unseen": ("warning", "no object of this class"),
    "class-spelling": ("warning", "differs from another class in case, blanks or separators only"),
}
"""Code -> severity and likely cause."""

_EDGE = 0.05
"""Pixels. Nearer boxes touch the edge: YOLO's fractions of six digits miss it by a few thousandths."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or may be."""

    code: str
    """A key of `CODES`."""
    file: str
    """The annotation file or the image."""
    thing: str = ""
    """The object, class or image inside; empty: the file itself."""
    value: str = ""
    """What was found there."""

    @property
    def severity(self) -> Severity:
        """error, warning or note."""
        return CODES[self.code][0]

    def line(self) -> str:
        """The problem in one line: code, file, thing, value, likely cause."""
        place = " ".join(part for part in (self.file, self.thing) if part)
        return f"{self.code}: {place}{f': {self.value}' if self.value else ''}: {CODES[self.code][1]}"

    def to_dict(self) -> dict[str, str]:
        named = {"code": self.code, "severity": self.severity, "file": self.file, "thing": self.thing}
        return {**named, "value": self.value, "cause": CODES[self.code][1]}


def lint_records(
    records: Records, *, min_size: int = 600, max_size: int = 1000, from_one: bool = False
) -> list[Problem]:
    """The problems of the annotations, without opening an image.

    Args:
        records: the set.
        min_size, max_size: of the resizing in training, pixels; for objects that become too small.
        from_one: the set's coordinates count from 1 (VOC's own): negative ones, counted from 0, are told.
    """
    problems = [
        _box_problem(code, records, m)
        for code, mark in _object_marks(records, min_size, max_size, from_one).items()
        for m in np.flatnonzero(mark).tolist()
    ]
    problems += [
        Problem(code, str(records.image_paths[i]), value=f"{records.sizes[i, 1]} x {records.sizes[i, 0]}")
        for code, mark in _image_marks(records).items()
        for i in np.flatnonzero(mark).tolist()
    ]
    return problems + _lint_set(records)


SUMMARY_LIMIT = 1_000_000
"""Objects. A larger set is not looked at before a training, for that would take seconds."""


def summary(parts: Mapping[str, Records], *, min_size: int, max_size: int, more: str) -> str:
    """The numbers of errors and warnings in the annotations of a training's sets, in one line.

    Args:
        parts: train, val, test -> its records.
        min_size, max_size: as of `lint_records`.
        more: the command that shows more.
    """
    if sum(len(records.labels) for records in parts.values()) > SUMMARY_LIMIT:
        return f"not looked at, more than {SUMMARY_LIMIT:,} objects: {more}"
    counts: Counter[str] = Counter()
    for records in parts.values():
        marks = {**_object_marks(records, min_size, max_size, False), **_image_marks(records)}
        counts += Counter({code: int(mark.sum()) for code, mark in marks.items()})
        counts += Counter(problem.code for problem in _lint_set(records))
    told = [
        f"{counts[code]} {code}"
        for severity in ("error", "warning")
        for code, (of_code, _) in CODES.items()
        if of_code == severity and counts[code]
    ]
    return f"{', '.join(told)}: {more}" if told else "no errors or warnings in the annotations"


FPN_STRIDES, C4_STRIDE = (4, 8, 16, 32, 64), 16
"""Distances between anchors, pixels: of P2..P6, and of the one map of other detectors."""


def lint_anchors(
    records: Records, anchors: AnchorConfig, *, fpn: bool, min_size: int, max_size: int
) -> tuple[list[Problem], str]:
    """Whether anchors fit the objects.

    Args:
        records: the training set.
        anchors: the detector's.
        fpn: they lie on P2..P6, not on one map.
        min_size, max_size: as of `lint_records`.

    Returns:
        The problem, if it is one; and the figures in words, with better anchors where there are such.
    """
    nested = [size if isinstance(size, list) else [size] for size in anchors.sizes]
    sizes = nested if fpn else [[size for level in nested for size in level]]
    strides = FPN_STRIDES if fpn else (C4_STRIDE,)
    extents, _ = resized_extents(records, min_size, max_size)
    share = reached(extents, anchor_shapes(sizes, anchors.aspect_ratios, strides))
    words = f"anchors reach {100 * share:.1f} % of {counted(len(extents), 'object')}"
    if share < 1:
        better, ratios = better_anchors(extents, sizes, len(anchors.aspect_ratios), strides)
        possible = reached(extents, anchor_shapes(better, ratios, strides))
        if possible > share + 0.01:
            shown = better if fpn else better[0]
            words += f"; model.anchors={{sizes: {shown}, aspect_ratios: {ratios}}} would reach {100 * possible:.1f} %"
    return [Problem("anchors-miss", records.source, value=words)] if share < 0.7 else [], words


def clean(records: Records, policy: Literal["drop", "clip"]) -> Records:
    """The records with what a training cannot use taken out, or clipped where something is left.

    Args:
        records: the set.
        policy: `drop` leaves out every object whose box is an error or reaches out of its image by more than a pixel;
            `clip` cuts such boxes to the image and leaves out those without an extent.
    """
    limits = records.limits()
    if policy == "clip":
        clipped = np.clip(records.boxes, 0, limits)
        return replace(records, boxes=clipped).with_objects(has_extent(clipped))
    inside = ((records.boxes >= -1) & (records.boxes <= limits + 1)).all(axis=1)
    return records.with_objects(has_extent(records.boxes) & inside)


def table(problems: Iterable[Problem]) -> str:
    """The number of problems of each code, the severest first."""
    counts = Counter(problem.code for problem in problems)
    rows = [f"{counts[code]:8d}  {severity:7s}  {code}" for code, (severity, _) in CODES.items() if counts[code]]
    order = {"error": 0, "warning": 1, "note": 2}
    return "\n".join(sorted(rows, key=lambda row: order[row.split()[1]])) or "no problems"


def is_problem_list(path: Path) -> bool:
    """Whether a file is a JSON list of problems, as `tools/check_data.py` writes them."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, list) and all(isinstance(item, dict) and "code" in item for item in content)


# ---------------------------------------------------------------------------------------------- parts


def _object_marks(records: Records, min_size: int, max_size: int, from_one: bool) -> dict[str, np.ndarray]:
    """Code -> (M,) bool: which objects have the problem."""
    boxes, limits, marks = records.boxes, records.limits(), box_faults(records)
    has_area = ~marks["box-reversed"] & ~marks["box-zero-extent"] & ~marks["box-off-image"]
    at_edge = np.any((boxes[:, :2] <= _EDGE) | (boxes[:, 2:] >= limits[:, :2] - _EDGE), axis=1)
    marks["box-at-edge"] = has_area & ~marks["box-outside"] & at_edge
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
    factors = resize_factors(records.sizes, min_size, max_size)[records.image_of_object()]
    marks["object-small"] = has_area & (shorter * factors < 4)
    if from_one:
        marks["boxes-from-zero"] = np.any(boxes[:, :2] < -ROUNDED, axis=1)
    return marks


def _image_marks(records: Records) -> dict[str, np.ndarray]:
    """Code -> (N,) bool: which images have the problem."""
    short, long = records.sizes.min(axis=1), records.sizes.max(axis=1)
    return {
        "size-absurd": (short < 8) | (long > 20_000) | (long > 50 * short),
        "image-without-object": (np.diff(records.offsets) == 0) & records.annotated,
    }


def _lint_set(records: Records) -> list[Problem]:
    """The problems of the boxes and the classes as a whole."""
    problems = _lint_classes(records)
    boxes, limits = records.boxes, records.sizes[records.image_of_object()][:, ::-1]
    if records.form == "coco":
        given = np.column_stack((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]))
        if looks_like_corners(given, records.area, limits):
            problems.append(Problem("boxes-as-corners", records.source))
    elif _centres_look_like_corners(boxes, limits):
        problems.append(Problem("boxes-as-corners", records.source, value="taken as centre, width and height"))
    if looks_like_fractions(records):
        problems.append(Problem("boxes-as-fractions", records.source, value=f"none above {boxes.max():.3g}"))
    return problems


def _centres_look_like_corners(boxes: np.ndarray, limits: np.ndarray) -> bool:
    """Whether centre, width and height of boxes (M, 4) make corners inside the image, where most of the boxes leave it.

    Args:
        boxes: x1 y1 x2 y2.
        limits: (M, 2) width and height of each box's image.
    """
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    if len(boxes) < 8 or (sides <= centres).any():
        return False
    leaves = ((boxes[:, :2] < -1) | (boxes[:, 2:] > limits + 1)).any(axis=1)
    return bool((leaves & (sides <= limits + 1).all(axis=1)).mean() > 0.5)


def _lint_classes(records: Records) -> list[Problem]:
    problems = [
        Problem("class-unseen", records.source, name)
        for name, count in zip(records.class_names, records.object_counts(), strict=True)
        if records.annotated and not count
    ]
    for names in same_spellings(records.class_names):
        problems.append(Problem("class-spelling", records.source, names[1], f"beside {names[0]!r}"))
    return problems


def _box_problem(code: str, records: Records, m: int) -> Problem:
    """The problem of object m: its file, its number there with its class, its box."""
    i = records.image_of(m)
    height, width = records.image_size(i)
    numbers = ", ".join(f"{round(value, 2) + 0.0:g}" for value in records.boxes[m].tolist())
    thing = f"object {m - int(records.offsets[i])} ({records.class_names[records.labels[m] - 1]})"
    return Problem(code, records.file_of(i), thing, f"{numbers} in {width} x {height}")
