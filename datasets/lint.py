"""What is wrong with a data set: each problem with its code, file, object, value and likely cause. Imports no torch.

`lint_records` looks at the annotations alone (fast: it may run before each training), `lint_voc_files` at each file of
a VOC folder by itself, `lint_images` opens every image, `lint_splits` compares sets with each other. `clean` takes out,
or clips, what a training cannot use.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from configs.errors import UserError
from datasets.images import image_file_size, list_files, list_images, read_image
from datasets.records import Records, has_extent, repeated
from datasets.resize import resized_size
from datasets.voc import read_annotation, read_image_set

Severity = Literal["error", "warning", "note"]

CODES: dict[str, tuple[Severity, str]] = {
    "box-zero-extent": ("error", "at most a pixel wide or high: a slip of the mouse"),
    "box-reversed": ("error", "the second corner lies before the first: corners exchanged, or width and height given?"),
    "box-off-image": ("error", "wholly outside the image: of another image, of another size, or in other units?"),
    "box-outside": ("warning", "reaches out of the image by more than a pixel"),
    "box-at-edge": ("note", "touches the edge of the image: the object may be cut"),
    "box-repeated": ("warning", "the same box and class twice in an image: exported or annotated twice"),
    "boxes-from-zero": ("warning", "coordinates below 1 in a set that counts from 1: set zero_based: true"),
    "object-small": ("warning", "under 4 pixels after resizing: hardly to be learned; raise data.min_size"),
    "size-differs": ("warning", "the image has another size than its annotation declares: the image counts"),
    "size-absurd": ("error", "a side of less than 8 or more than 20,000 pixels, or 50 times as long as the other"),
    "image-without-object": ("note", "no object: is it background, or is its annotation missing?"),
    "image-unreadable": ("error", "cannot be decoded"),
    "image-repeated": ("warning", "the same content under two names"),
    "image-in-two-splits": ("error", "the same content in two splits: the figures of the second say too much"),
    "image-grey": ("note", "one channel: it is taken as RGB with equal channels"),
    "image-cmyk": ("warning", "CMYK: converted, but its colours may differ from what a viewer shows"),
    "image-deep": ("warning", "more than 8 bits for each channel: only the upper 8 are taken"),
    "image-palette": ("note", "a palette: converted to RGB"),
    "image-animated": ("warning", "several frames: the first is taken"),
    "image-turned": ("note", "EXIF, XMP or TIFF say that it is to be turned: were the boxes drawn on it so?"),
    "annotation-broken": ("error", "cannot be read: repair or remove it"),
    "annotation-missing": ("error", "an image of the set without an annotation file, though others have one"),
    "annotation-lonely": ("note", "an annotation that no image set lists"),
    "image-missing": ("error", "listed, but there is no such image"),
    "image-lonely": ("note", "an image that no image set lists"),
    "filename-differs": ("warning", "the annotation names another file than its own: copied or renamed?"),
    "size-missing": ("note", "no <size>: it is read from the image"),
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
        """For JSON."""
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
    image_of = records.image_of_object()
    boxes, sizes = records.boxes, records.sizes[image_of]
    limits = sizes[:, [1, 0, 1, 0]]
    reversed_ = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    without = ~has_extent(boxes) & ~reversed_
    sound = ~reversed_ & ~without
    off = sound & ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits[:, :2])).any(axis=1)
    outside = sound & ~off & ((boxes < -1) | (boxes > limits + 1)).any(axis=1)
    at_edge = sound & ~off & ~outside & ((boxes[:, :2] <= _EDGE) | (boxes[:, 2:] >= limits[:, :2] - _EDGE)).any(axis=1)
    marks = {
        "box-reversed": reversed_, "box-zero-extent": without, "box-off-image": off, "box-outside": outside,
        "box-at-edge": at_edge, "box-repeated": repeated(records),
        "object-small": sound & ~off & (_resized_extent(records, min_size, max_size) < 4),
    }  # fmt: skip
    if from_one:
        marks["boxes-from-zero"] = (boxes[:, :2] < 0).any(axis=1)
    problems = [
        Problem(code, *_place(records, m), _box_words(records, m))
        for code, mark in marks.items()
        for m in np.flatnonzero(mark).tolist()
    ]
    return problems + _lint_sizes(records) + _lint_classes(records)


def lint_voc_files(root: Path, image_sets: Sequence[str]) -> list[Problem]:
    """The problems of a VOC folder's files, each looked at by itself: a broken one does not hide the others.

    Args:
        root: the folder that holds Annotations/, ImageSets/Main/ and JPEGImages/.
        image_sets: the sets whose files belong together; files in none of them are told.

    Raises:
        UserError: a folder or a list is missing.
    """
    listed = list(dict.fromkeys(name for image_set in image_sets for name in read_image_set(root, image_set)))
    images = {_below(path, root / "JPEGImages"): path for path in list_images(root / "JPEGImages")}
    xmls = {_below(path, root / "Annotations"): path for path in list_files(root / "Annotations", (".xml",))}
    problems = []
    for name in listed:
        xml = xmls.get(name, root / "Annotations" / f"{name}.xml")
        if name not in images:
            problems.append(Problem("image-missing", str(root / "JPEGImages" / name)))
        if name not in xmls:
            problems += [Problem("annotation-missing", str(xml))] if xmls else []
            continue
        try:
            annotation = read_annotation(xml)
        except UserError as error:
            problems.append(Problem("annotation-broken", str(xml), value=str(error).removeprefix(f"{xml}: ")))
            continue
        stem = Path(annotation.filename.replace("\\", "/")).stem
        if stem and stem != Path(name).name and name in images:
            problems.append(Problem("filename-differs", str(xml), value=annotation.filename))
        if annotation.size is None:
            problems.append(Problem("size-missing", str(xml)))
    known = set(listed)
    problems += [Problem("image-lonely", str(path)) for name, path in images.items() if name not in known]
    return problems + [Problem("annotation-lonely", str(path)) for name, path in xmls.items() if name not in known]


def lint_images(records: Records, *, threads: int = 2) -> tuple[list[Problem], dict[str, str]]:
    """The problems of the image files, each decoded once; and each readable file's digest of its pixels.

    Args:
        records: the set.
        threads: decoding ones.

    Returns:
        The problems in the order of the images; path -> hexadecimal digest, for `lint_splits`.
    """
    paths = [str(path) for path in dict.fromkeys(records.image_paths.tolist())]
    first = {str(path): index for index, path in reversed(list(enumerate(records.image_paths.tolist())))}
    problems: list[Problem] = []
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for path, (found, digest) in zip(
            paths, pool.map(lambda path: _lint_image(path, records.image_size(first[path])), paths), strict=True
        ):
            problems += found
            if digest:
                digests[path] = digest
    owner: dict[str, str] = {}
    for path, digest in digests.items():
        if owner.setdefault(digest, path) != path:
            problems.append(Problem("image-repeated", path, value=f"as {owner[digest]}"))
    return problems, digests


def lint_splits(digests: Mapping[str, Mapping[str, str]]) -> list[Problem]:
    """Images of the same pixels in two splits, also through links and under other names.

    Args:
        digests: split -> path -> digest, as from `lint_images`.
    """
    owner: dict[str, tuple[str, str]] = {}
    problems = []
    for split, files in digests.items():
        for path, digest in files.items():
            other_split, other = owner.setdefault(digest, (split, path))
            if other_split != split:
                problems.append(Problem("image-in-two-splits", path, split, f"as {other} of {other_split}"))
    return problems


def clean(records: Records, policy: Literal["drop", "clip"]) -> Records:
    """The records with what a training cannot use taken out, or clipped where something is left.

    Args:
        records: the set.
        policy: `drop` leaves out every object whose box is an error or reaches out of its image by more than a pixel;
            `clip` cuts such boxes to the image and leaves out those without an extent.
    """
    limits = records.sizes[records.image_of_object()][:, [1, 0, 1, 0]]
    if policy == "clip":
        boxes = np.clip(records.boxes, 0, limits)
        keep = has_extent(boxes)
    else:
        boxes = records.boxes
        keep = has_extent(boxes) & ((boxes >= -1) & (boxes <= limits + 1)).all(axis=1)
    counts = np.bincount(records.image_of_object()[keep], minlength=len(records))
    names = ("labels", "area", "iscrowd", "difficult", "truncated", "annotation_ids")
    return replace(
        records,
        boxes=boxes[keep],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        **{name: getattr(records, name)[keep] for name in names},
    )


def table(problems: Iterable[Problem]) -> str:
    """The number of problems of each code, the severest first."""
    counts = Counter(problem.code for problem in problems)
    rows = [f"{counts[code]:8d}  {severity:7s}  {code}" for code, (severity, _) in CODES.items() if counts[code]]
    order = {"error": 0, "warning": 1, "note": 2}
    return "\n".join(sorted(rows, key=lambda row: order[row.split()[1]])) or "no problems"


# ---------------------------------------------------------------------------------------------- parts


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _lint_sizes(records: Records) -> list[Problem]:
    problems = []
    counts = np.diff(records.offsets)
    for i in range(len(records)):
        height, width = records.image_size(i)
        short, long = min(height, width), max(height, width)
        if short < 8 or long > 20_000 or long > 50 * short:
            problems.append(Problem("size-absurd", str(records.image_paths[i]), value=f"{width} x {height}"))
        if records.annotated and not counts[i]:
            problems.append(Problem("image-without-object", str(records.image_paths[i])))
    return problems


def _lint_classes(records: Records) -> list[Problem]:
    seen = np.bincount(records.labels, minlength=len(records.class_names) + 1)[1:]
    problems = [
        Problem("class-unseen", records.source, name)
        for name, count in zip(records.class_names, seen, strict=True)
        if records.annotated and not count
    ]
    alike: dict[str, list[str]] = defaultdict(list)
    for name in records.class_names:
        alike["".join(letter for letter in name.casefold() if letter.isalnum())].append(name)
    for plain, names in alike.items():
        if plain and len(names) > 1:
            problems.append(Problem("class-spelling", records.source, names[1], f"beside {names[0]!r}"))
    return problems


def _lint_image(path: str, declared: tuple[int, int]) -> tuple[list[Problem], str]:
    """The problems of one file, and the digest of its pixels; no digest where it cannot be read."""
    try:
        pixels = read_image(path, declared)
        shown = image_file_size(path)
    except UserError as error:
        return [Problem("image-unreadable", path, value=str(error).removeprefix(f"{path}: "))], ""
    problems = []
    if pixels.shape[:2] != declared:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}, declared {declared[1]} x {declared[0]}"
        problems.append(Problem("size-differs", path, value=found))
    with Image.open(path) as image:
        codes = {"L": "image-grey", "1": "image-grey", "LA": "image-grey", "CMYK": "image-cmyk", "P": "image-palette"}
        if image.mode in codes:
            problems.append(Problem(codes[image.mode], path))
        if image.mode.startswith(("I", "F")):
            problems.append(Problem("image-deep", path, value=image.mode))
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            problems.append(Problem("image-animated", path, value=f"{frames} frames"))
        orientation = image.getexif().get(0x0112, 1)
    if orientation in range(2, 9):
        turned = "turned" if shown == pixels.shape[:2] else "taken as stored"
        problems.append(Problem("image-turned", path, value=f"orientation {orientation}, {turned}"))
    return problems, hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).hexdigest()


def _resized_extent(records: Records, min_size: int, max_size: int) -> np.ndarray:
    """(M,) float64: the shorter side of each object in the resized image, pixels."""
    scales = np.ones(len(records))
    for i in range(len(records)):
        height, width = records.image_size(i)
        if min(height, width) > 0:
            scales[i] = resized_size((height, width), min_size, max_size)[0] / height
    return (records.boxes[:, 2:] - records.boxes[:, :2]).min(axis=1, initial=np.inf) * scales[records.image_of_object()]


def _place(records: Records, m: int) -> tuple[str, str]:
    """The file of object m, and its number there with its class."""
    i = int(np.searchsorted(records.offsets, m, side="right")) - 1
    file = records.annotation_file.replace("{}", str(records.image_ids[i]))
    return file, f"object {m - int(records.offsets[i])} ({records.class_names[records.labels[m] - 1]})"


def _box_words(records: Records, m: int) -> str:
    i = int(np.searchsorted(records.offsets, m, side="right")) - 1
    height, width = records.image_size(i)
    return f"{', '.join(f'{round(value, 2) + 0.0:g}' for value in records.boxes[m].tolist())} in {width} x {height}"
