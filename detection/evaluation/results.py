"""Detections from the files that the official tools read: comp4 folders, COCO results, and this project's VOC list.

What the official tools accept is accepted, with a warning where it is likely a mistake.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError, counted, did_you_mean, examples, printable_logger
from configs.files import read_json, read_lines
from datasets.columns import Rows, no_garbage_collection, number_in, short
from datasets.listing import without_image_suffix
from detection.evaluation.boxes import coco_to_continuous, voc_to_coco, voc_to_continuous
from detection.evaluation.data import Detections, GroundTruth

logger = printable_logger(__name__)

_COMP_FILE = re.compile(r"comp.*?_det_(?P<rest>.+)\.txt")
_COMP_LINE = "a line is: image_id score xmin ymin xmax ymax"


def read_detections(path: Path, ground_truth: GroundTruth, image_set: str = "test") -> Detections:
    """Saved detections for this ground truth.

    Args:
        path: VOC: a folder of `comp*_det_<set>_<class>.txt`, one such file, or a JSON list. COCO: a results JSON.
        ground_truth: whose images the detections belong to; its frame says the format.
        image_set: of the folder's files those of this set are read, where there are any.

    Raises:
        UserError: a file is missing or malformed, an image is unknown, or a number is not one; names file and line.
    """
    path = Path(path)
    if ground_truth.frame == "voc" and (path.is_dir() or path.suffix == ".txt"):
        detections = _read_comp_files(path, ground_truth, image_set)
    else:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; --dt of format coco is a JSON file of results")
        with no_garbage_collection():
            detections = _read_json_detections(path, ground_truth)
    _warn_of_likely_mistakes(path, detections, ground_truth)
    return detections


# ---------------------------------------------------------------------------------------------- comp4 folders


def _read_comp_files(path: Path, truth: GroundTruth, image_set: str) -> Detections:
    files = _comp_files(path, truth, image_set)
    position = {identity: index for index, identity in enumerate(truth.image_ids)}
    class_names = list(truth.class_names)
    images, labels, scores, boxes = [], [], [], []
    for file, name in files:
        if name not in class_names:
            class_names.append(name)
        file_images, numbers = _read_comp_file(file, position)
        images += file_images
        labels += [class_names.index(name) + 1] * len(file_images)
        scores.append(numbers[:, 0])
        boxes.append(numbers[:, 1:])
    return Detections(
        frame="voc",
        image_ids=truth.image_ids,
        class_names=class_names,
        image_index=np.array(images, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        boxes=np.concatenate(boxes),
        scores=np.concatenate(scores),
        source=str(path),
    )


def _comp_files(path: Path, truth: GroundTruth, image_set: str) -> list[tuple[Path, str]]:
    """The files to read, in sorted order, and the class of each."""
    candidates = sorted(path.glob("comp*_det_*.txt")) if path.is_dir() else [path]
    found = [(file, match["rest"]) for file in candidates if (match := _COMP_FILE.fullmatch(file.name))]
    if not found:
        raise UserError(f"{path}: no file is named comp*_det_<set>_<class>.txt, as in comp4_det_{image_set}_cat.txt")
    prefix = f"{image_set}_"
    by_file_name = dict(zip(file_names_of(truth.class_names), truth.class_names, strict=True))
    of_this_set = [(file, rest.removeprefix(prefix)) for file, rest in found if rest.startswith(prefix)]
    of_this_set = [(file, by_file_name.get(name, name)) for file, name in of_this_set]
    if not of_this_set:
        logger.warning("%s: no file is of the image set %s: all are read", path, image_set)
    chosen = of_this_set or [(file, _class_in(rest, by_file_name)) for file, rest in found]
    per_class: dict[str, list[str]] = {}
    for file, name in chosen:
        per_class.setdefault(name, []).append(file.name)
    for name, names in per_class.items():
        if len(names) > 1:
            logger.warning("%s: class %s has several files, read in this order: %s", path, name, examples(names))
    return chosen


def _class_in(rest: str, by_file_name: dict[str, str]) -> str:
    """The class in `<set>_<class>`: the longest known name that it ends with, else all after the first underscore."""
    known = [part for part in by_file_name if rest.endswith(f"_{part}")]
    return by_file_name[max(known, key=len)] if known else rest.partition("_")[2] or rest


def file_names_of(class_names: Sequence[str]) -> list[str]:
    """The class names as parts of file names, all different whatever the names hold.

    Slashes, control characters and what Windows forbids become `_`, long names are cut at 100 bytes; where that makes
    two equal (`a/b` and `a_b`), or equal but for case, the later ones get the class's number.
    """
    taken: set[str] = set()
    exact = {name for name in class_names if _file_name_of(name) == name}
    names = []
    for label, name in enumerate(class_names, start=1):
        part = _file_name_of(name)
        if part.casefold() in taken or (part != name and part in exact):
            part = f"{part}_{label}"
        taken.add(part.casefold())
        names.append(part)
    return names


def _file_name_of(class_name: str) -> str:
    part = "".join("_" if c in '/\\:*?"<>|' or not c.isprintable() else c for c in class_name)
    part = part.encode("utf-8", "replace")[:100].decode("utf-8", "ignore")
    return part if part.strip(". ") else "_" * max(1, len(part))


def _read_comp_file(path: Path, position: dict[Any, int]) -> tuple[list[int], np.ndarray]:
    """The images and (n, 5) float64 score, xmin, ymin, xmax, ymax of one class file."""
    lines = read_lines(path, "file of detections")
    rows = [(number, line.rsplit(maxsplit=5)) for number, line in enumerate(lines, start=1)]  # ids may hold blanks
    rows = [(number, [_listed_id(row[0], position), *row[1:]]) for number, row in rows if row]
    images, numbers = list[int](), np.zeros((0, 5))
    try:
        images = [position[row[0]] for _, row in rows]
        numbers = np.array([list(map(number_in, row[1:])) for _, row in rows], dtype=np.float64).reshape(-1, 5)
        sound = len(images) == len(numbers) and not np.isnan(numbers).any() and np.isfinite(numbers[:, 1:]).all()
    except (KeyError, ValueError):
        sound = False
    if not sound or any(len(row) != 6 for _, row in rows):
        for number, row in rows:
            _check_comp_line(f"{path} line {number}", row, position)
    return images, numbers


def _listed_id(text: str, position: dict[Any, int]) -> str:
    """The image id at the beginning of a line: as it stands, else without quotes or an image's suffix."""
    if text in position:
        return text
    bare = text.strip().strip("\"'")
    last = bare.replace("\\", "/").rpartition("/")[2]
    return next(
        (form for form in (bare, without_image_suffix(bare), without_image_suffix(last)) if form in position), bare
    )


def _check_comp_line(where: str, row: list[str], position: dict[Any, int]) -> None:
    if len(row) != 6:
        raise UserError(f"{where}: has {len(row)} fields, not 6: {_COMP_LINE}")
    if row[0] not in position:
        fields = len(row[0].split()) + 5
        if fields > 6 and row[0].split()[0] in position:
            raise UserError(f"{where}: has {fields} fields, not 6: {_COMP_LINE}")
        alike = did_you_mean(row[0], list(position))
        raise UserError(f"{where}: image {row[0]!r} is not in the image set{alike}: check --image-set")
    for name, text in zip(("score", "xmin", "ymin", "xmax", "ymax"), row[1:], strict=True):
        try:
            value = number_in(text)
        except ValueError:
            raise UserError(f"{where}: {name} is {text!r}, not a number: {_COMP_LINE}") from None
        if np.isnan(value) or (np.isinf(value) and name != "score"):
            raise UserError(f"{where}: {name} is {text}: give a finite number")


# ---------------------------------------------------------------------------------------------- JSON


def _read_json_detections(path: Path, truth: GroundTruth) -> Detections:
    rows = _read_rows(path)
    read = _from_voc_list if truth.frame == "voc" or _names_classes(rows) else _from_coco_results
    return read(path, rows, truth)


def _names_classes(rows: Rows) -> bool:
    """Whether it is a list of VOC's form, with names of classes; by its first record."""
    return bool(rows.items) and "category" in rows.items[0] and "category_id" not in rows.items[0]


def read_proposals(path: Path, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A JSON list of detections, of which the classes do not count and may be missing.

    Returns:
        (D,) int64 positions of the images in the ground truth, (D, 4) continuous boxes, (D,) scores.

    Raises:
        UserError: as `read_detections`.
    """
    with no_garbage_collection():
        rows = _read_rows(path)
        first = rows.items[0] if rows.items else {}
        if truth.frame == "voc" and "category_id" in first and "category" not in first:
            raise UserError(f"{path}: these are COCO results (category_id), the ground truth is VOC's")
        is_voc = truth.frame == "voc" or _names_classes(rows)
        boxes = rows.boxes("xmin, ymin, xmax, ymax" if is_voc else "x, y, width, height")
        convert = voc_to_continuous if is_voc else coco_to_continuous
        images = _image_column(rows, truth, by_file=is_voc)
        return images, convert(boxes), rows.numbers("score", rows.column("score", "give a confidence"))


def _read_rows(path: Path) -> Rows:
    """The records of a JSON list of detections, of either form."""
    content = read_json(path, "file of detections")
    if isinstance(content, dict) and "annotations" in content:
        raise UserError(
            f"{path}: is a data-set dictionary, not a list of detections: join its images and categories by name "
            "(its ids are its own) and write a list [{...}, ...]"
        )
    if not isinstance(content, list):
        raise UserError(f"{path}: is not a list of detections [{{...}}, ...]")
    return Rows(path, content, "detection")


def read_detections_together(paths: Sequence[Path]) -> list[Detections]:
    """Saved detections of several detectors without a ground truth: images and classes are those that the files name.

    Args:
        paths: JSON lists, all of VOC's form or all COCO results.

    Returns:
        One for each file, with common image ids and class names (COCO: the categories' ids as JSON).

    Raises:
        UserError: as `read_detections`, or the files' forms differ.
    """
    with no_garbage_collection():
        files = [(Path(path), _read_rows(path)) for path in paths]
        form_of = {path: "coco" if "category_id" in rows.items[0] else "voc" for path, rows in files if rows.items}
        frames = dict(zip(form_of.values(), form_of, strict=True))
        if len(frames) > 1:
            raise UserError(f"{frames['coco']} holds COCO results, {frames['voc']} VOC's list: give files of one form")
        frame, key = ("coco", "category_id") if "coco" in frames else ("voc", "category")
        ids: list[Any] = _values_of(files, "image_id", str | int)
        classes: list[Any] = _values_of(files, key, str | int)
        if frame == "coco" and len(set(map(type, ids))) > 1:
            text = next(short(value) for value in ids if isinstance(value, str))
            raise UserError(
                f"{' and '.join(str(path) for path, _ in files)}: image_id is partly a number, partly a text ({text}): "
                "an image would count as two: write all of them in one way"
            )
        if frame == "voc":
            ids, classes = [*dict.fromkeys(map(str, ids))], [*dict.fromkeys(map(str, classes))]
        _check_common(files, ids, key)
        nothing = np.zeros(0)
        names = GroundTruth(
            frame=frame, image_ids=ids,
            class_names=[str(name) if frame == "voc" else json.dumps(name) for name in classes],
            category_ids=classes if frame == "coco" else None, image_index=nothing.astype(np.int64),
            labels=nothing.astype(np.int64), boxes=nothing.reshape(0, 4), area=nothing,
            iscrowd=nothing.astype(bool), difficult=nothing.astype(bool), source="any of the files",
        )  # fmt: skip
        read = _from_voc_list if frame == "voc" else _from_coco_results
        return [read(path, rows, names) for path, rows in files]


def _check_common(files: Sequence[tuple[Path, Rows]], ids: list[Any], key: str) -> None:
    """Refuse files that call the same image by its name and by its file's; warn of those with nothing in common."""
    there = set(ids)
    twice = (name for name in ids if isinstance(name, str) and without_image_suffix(name) != name)
    if (name := next((name for name in twice if without_image_suffix(name) in there), None)) is not None:
        raise UserError(
            f"{' and '.join(str(path) for path, _ in files)}: name an image both {short(name)} and "
            f"{short(without_image_suffix(name))}: it would count as two: write all of them in one way"
        )
    for what, column in (("image", "image_id"), ("class", key)):
        # 1 and 1.0 are the same, and are equal; in VOC's lists 1 and "1" are, too
        values = [(path, {item[column] for item in rows.items}) for path, rows in files if rows.items]
        texts = [(path, own | {str(value) for value in own if type(value) is int}) for path, own in values]
        for path, own in texts[1:]:
            if not own & texts[0][1]:
                logger.warning("%s and %s have no %s in common: nothing is fused", texts[0][0], path, what)


def _values_of(files: Sequence[tuple[Path, Rows]], key: str, kinds: Any) -> list[Any]:
    """The values of a key in all files, each once, in order."""
    found: dict[Any, None] = {}
    for _, rows in files:
        for index, value in enumerate(rows.names(key, "each detection needs one")):
            if type(value) is float and value.is_integer():
                value = int(value)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise rows.error(index, f"{key} is {short(value)}: give a whole number or text")
            found[value] = None
    return list(found)


def _from_voc_list(path: Path, rows: Rows, truth: GroundTruth) -> Detections:
    """VOC's list, of which predict.py writes one for any model: also for a COCO ground truth, joined by names."""
    if rows.items and "category" not in rows.items[0] and "category_id" in rows.items[0]:
        raise UserError(f"{path}: these are COCO results (category_id): give --format coco, or name each category")
    names = [name.strip() for name in rows.texts("category", "give the class name")]
    class_names = list(dict.fromkeys((*truth.class_names, *names)))
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    boxes = rows.boxes("xmin, ymin, xmax, ymax")
    return Detections(
        frame=truth.frame,
        image_ids=truth.image_ids,
        class_names=class_names,
        image_index=_image_column(rows, truth, by_file=True),
        labels=np.array([label_of[name] for name in names], dtype=np.int64),
        boxes=boxes if truth.frame == "voc" else voc_to_coco(boxes),
        scores=rows.numbers("score", rows.column("score", "give a confidence"), infinite=True),
        source=str(path),
    )


def _from_coco_results(path: Path, rows: Rows, truth: GroundTruth) -> Detections:
    first = rows.items[0] if rows.items else {"bbox": []}
    if "bbox" not in first and "segmentation" in first:
        raise UserError(f"{path}: these are mask results: give box results, with bbox [x, y, width, height]")
    label_of = {identity: label for label, identity in enumerate(truth.category_ids or (), start=1)}
    labels = rows.lookup("category_id", label_of, missing=0, owner="categories'")
    known = labels > 0
    if not known.all():
        unknown = list(dict.fromkeys(rows.items[index]["category_id"] for index in np.flatnonzero(~known)))
        logger.warning(
            "%s: %s of categories that the annotation file does not list; like pycocotools, this passes over them: "
            "category_id %s", path, counted(int((~known).sum()), "detection"), examples(unknown),
        )  # fmt: skip
    return Detections(
        frame="coco",
        image_ids=truth.image_ids,
        class_names=list(truth.class_names),
        image_index=_image_column(rows, truth)[known],
        labels=labels[known],
        boxes=rows.boxes("x, y, width, height")[known],
        scores=rows.numbers("score", rows.column("score", "give a confidence"), infinite=True)[known],
        source=str(path),
    )


def _image_column(rows: Rows, truth: GroundTruth, *, by_file: bool = False) -> np.ndarray:
    """(D,) int64: position of each detection's image in the ground truth.

    Args:
        rows: the detections.
        truth: whose images they are of.
        by_file: an id may be a number for a text, or the image's file name, as predict.py writes it.
    """
    ids = rows.names("image_id", "name the image")
    position: dict[Any, int] = {identity: index for index, identity in enumerate(truth.image_ids)}
    numbers = bool(position) and not isinstance(next(iter(position)), str)
    if not set(map(type, ids)) - ({int, float} if numbers else {str}):
        try:
            return np.fromiter(map(position.__getitem__, ids), dtype=np.int64, count=len(ids))
        except KeyError:
            pass
    if by_file:
        position = {**_positions_by_file(truth), **position}
        ids = [str(value) if type(value) is int and not numbers else value for value in ids]
        position |= _positions_by_end({v for v in ids if isinstance(v, str) and v not in position}, truth)
        ids = [
            without_image_suffix(value) if isinstance(value, str) and value not in position else value for value in ids
        ]
    for index, identity in enumerate(ids):
        if type(identity) not in (str, int, float) or identity not in position:
            given = rows.items[index]["image_id"]
            raise rows.error(index, _unknown_image(given, truth, wants_number=numbers and not by_file))
    return np.array([position[identity] for identity in ids], dtype=np.int64)


def _unknown_image(identity: Any, truth: GroundTruth, *, wants_number: bool) -> str:
    if isinstance(identity, str) and wants_number:
        return f"image_id is the text {short(identity)}, but the ids of {truth.source} are numbers"
    hint = did_you_mean(identity, truth.image_ids) if isinstance(identity, str) else ""
    return f"image_id {short(identity)} is not in {truth.source}{hint}: is it another set's file?"


def _positions_by_file(truth: GroundTruth) -> dict[str, int]:
    """Positions by the file names of the images: whole, without folders, without suffix; what two share is left out."""
    found: dict[str, int] = {}
    files = truth.image_files or [str(identity) for identity in truth.image_ids]
    for index, (file, identity) in enumerate(zip(files, truth.image_ids, strict=True)):
        path = Path((file or str(identity)).replace("\\", "/"))
        for form in {*(whole := (path.as_posix(), path.name)), *map(without_image_suffix, whole)}:
            found[form] = index if found.get(form, index) == index else -1
    return {form: index for form, index in found.items() if index >= 0}


def _positions_by_end(names: set[str], truth: GroundTruth) -> dict[str, int]:
    """Positions of the images whose paths end with these, as `a/x.jpg` of `/data/set/a/x.jpg` where another folder has
    an x.jpg too; what fits two is left out."""
    by_name = defaultdict[str, list[tuple[int, str]]](list)
    for index, file in enumerate(truth.image_files or () if names else ()):
        path = file.replace("\\", "/")
        by_name[path.rpartition("/")[2]].append((index, path))
    found: dict[str, int] = {}
    for name in names:
        fitting = [index for index, path in by_name[name.rpartition("/")[2]] if path.endswith(f"/{name}")]
        if len(fitting) == 1:
            found[name] = fitting[0]
    return found


# ---------------------------------------------------------------------------------------------- warnings


def _warn_of_likely_mistakes(path: Path, detections: Detections, truth: GroundTruth) -> None:
    """Log what the official tools score without a word, though nobody means it."""
    if not len(detections):
        logger.warning("%s: holds no detection at all", path)
        return
    used = np.unique(detections.labels)
    annotated = {truth.class_names[label - 1] for label in np.unique(truth.labels)}
    counting = ~truth.iscrowd & ~truth.difficult
    if len(truth.labels) and not counting.any():
        logger.warning("%s: all objects are crowds or difficult: every metric will be empty", truth.source)
    found = {detections.class_names[label - 1] for label in used}
    without = sorted(found - annotated)
    if without:
        logger.warning(
            "%s: detections of classes that have no ground truth are left out of the means: %s%s",
            path, examples(without), did_you_mean(without[0], sorted(annotated)),
        )  # fmt: skip
    to_find = {truth.class_names[label - 1] for label in np.unique(truth.labels[counting])}
    missed = sorted(to_find - found)
    if missed:
        logger.warning("%s: nothing detected of %s, AP 0: %s", path, counted(len(missed), "class"), examples(missed))
    if twice := _count_repeated(detections):
        logger.warning(
            "%s: %s with the image, class, box and score of another one, each a false positive: was a file joined with "
            "itself?", path, counted(twice, "detection", " comes", " come"),
        )  # fmt: skip
    corners = detections.continuous_boxes
    if corners.max() <= 1.5 and (detections.boxes % 1).any():
        logger.warning(
            "%s: no coordinate is above 1.5: the boxes seem to be in fractions of the image, not pixels", path
        )
    sides = corners[:, 2:] - corners[:, :2]
    _warn_boxes(path, detections, np.any(sides < 0, axis=1), "reversed boxes (the second corner before the first)")
    flat = np.all(sides >= 0, axis=1) & np.any(sides == 0, axis=1)
    _warn_boxes(path, detections, flat, "boxes without an area")
    if truth.image_sizes is not None:
        limits = truth.image_sizes[detections.image_index][:, ::-1].astype(np.float64)
        outside = np.any(corners[:, :2] < -1, axis=1) | np.any(corners[:, 2:] > limits + 1, axis=1)
        outside &= np.all(limits > 0, axis=1)
        _warn_boxes(path, detections, outside, "boxes that leave the image by more than a pixel")


def _count_repeated(detections: Detections) -> int:
    """How many detections equal an earlier one in all that they hold."""
    keys = np.column_stack([detections.image_index, detections.labels, detections.boxes, detections.scores])
    sums = keys @ np.random.default_rng(0).random(7)  # equal rows have equal sums: fast for millions
    order = np.argsort(sums, kind="stable")
    neighbours = np.flatnonzero(sums[order][1:] == sums[order][:-1])
    return int((keys[order[neighbours]] == keys[order[neighbours + 1]]).all(axis=1).sum())


def _warn_boxes(path: Path, detections: Detections, which: np.ndarray, what: str) -> None:
    if which.any():
        first = int(np.argmax(which))
        image = detections.image_ids[detections.image_index[first]]
        example = f"first: image {image}, {detections.boxes[first].tolist()}"
        logger.warning("%s: %d %s are scored as they are (%s)", path, int(which.sum()), what, example)
