"""COCO's JSON annotations. Imports no torch.

Ids of categories are sparse (1..90 for COCO's 80 classes): labels are 1..K in the order of the ids, and
`Records.category_ids` leads back. Boxes are x, y, width, height in continuous pixels that count from 0. Ids of images
and categories are whole numbers or texts; ids of annotations may be anything, for they are only compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from configs.errors import UserError, counted, printable_logger
from configs.files import is_file, is_folder
from datasets.coco_exports import is_placeholder
from datasets.columns import (
    LARGEST,
    Growing,
    Rows,
    comparable,
    distinct_names,
    find_broken,
    no_garbage_collection,
    short,
)
from datasets.complaints import say_once
from datasets.findings import Mistakes, find, is_listening
from datasets.images import image_file_size
from datasets.json_lists import JsonLists, read_lists
from datasets.listing import same_name, without_upload_prefix
from datasets.make_records import make_records
from datasets.records import Records, count_different

logger = printable_logger(__name__)


@dataclass(frozen=True)
class CocoFile:
    """The checked content of an annotation file in columns; N images, M annotations, K categories."""

    path: Path
    image_ids: list[Any]
    """N ids, all int or all str, each once, in the file's order."""
    file_names: list[str]
    """N names relative to the image folder; empty where the file gives none."""
    sizes: np.ndarray
    """(N, 2) int64 (H, W) as declared; 0 where they are not."""
    category_ids: list[Any]
    """K ids in sorted order, all int or all str."""
    class_names: list[str]
    """K names, all different: categories of the same name are told apart by their id."""
    image_index: np.ndarray
    """(M,) int64: position in `image_ids`; -1: the file lists no such image."""
    labels: np.ndarray
    """(M,) int64: 1..K; 0: the file lists no such category."""
    boxes: np.ndarray
    """(M, 4) float64: x, y, width, height."""
    area: np.ndarray
    """(M,) float64: width x height where the file has none."""
    lacks_area: bool
    """Whether some annotation has none."""
    iscrowd: np.ndarray
    """(M,) bool."""
    annotation_ids: np.ndarray | list[Any]
    """(M,) int64; or, where some are no such numbers, M ids as they are; None where there is none."""
    unknown: UserError | None
    """About the first annotation of an image, or else a category, that the file does not list."""
    annotated: bool
    """False: the file has no list of annotations (COCO's image_info_test-dev2017.json)."""


def read_coco_file(path: Path) -> CocoFile:
    """The content of a COCO annotation file, each value of the type that it must have.

    Raises:
        UserError: no such file, no JSON, or a value is missing or of the wrong type; names record, id and key.
    """
    with no_garbage_collection():
        lists = read_lists(path, "annotation file", tuple(_WANTED))
        if "images" not in lists:
            raise UserError(f"{path}: not a COCO annotation file: it has no list of images: is it a results file?")
        if is_listening():
            _find_broken(lists)
        image_ids, file_names, sizes = _image_columns(lists)
        categories = _each_once(_all_rows(lists, "categories", "category number"))
        category_ids = categories.ids("id")
        texts = [text.strip() for text in categories.texts("name", "give the category a name")]
        names = dict(zip(category_ids, texts, strict=True))
        item_of = dict(zip(category_ids, categories.items, strict=True))
        category_ids = sorted(category_ids)
        columns = _annotations(lists, image_ids, category_ids)
        if is_placeholder([item_of[identity] for identity in category_ids]) and not (columns["labels"] == 1).any():
            category_ids = category_ids[1:]
            columns["labels"] -= columns["labels"] > 0
        class_names, twice = distinct_names([names[identity] for identity in category_ids], category_ids)
        if twice:
            logger.warning("%s: categories of the same name are told apart by id: %s", path, ", ".join(twice[:5]))
        file = CocoFile(
            path=path,
            image_ids=image_ids,
            file_names=file_names,
            sizes=sizes,
            category_ids=category_ids,
            class_names=class_names,
            annotated="annotations" in lists,
            **columns,
        )
    _warn(file)
    return file


def read_coco(annotations: str | Path, images: str | Path) -> Records:
    """The images and objects of a COCO JSON file, with its categories in the order of their ids.

    A file without a list of annotations (COCO's image_info_test-dev2017.json) is taken as images only.

    Args:
        annotations: the JSON file.
        images: the folder that the images' file_name is relative to.

    Raises:
        UserError: a file is missing, the JSON is broken, or an annotation lacks something; names the annotation's id.
    """
    annotations, images = Path(annotations), Path(images)
    _check_places(annotations, images)
    file = read_coco_file(annotations)
    if not file.image_ids:
        raise UserError(f"{annotations}: lists no image")
    if file.unknown is not None:
        if is_listening():
            _find_unknown(file)
        raise file.unknown
    counts = np.bincount(file.image_index, minlength=len(file.image_ids))
    order = np.argsort(file.image_index, kind="stable")
    if not isinstance(file.annotation_ids, np.ndarray):
        vars(file)["annotation_ids"] = _numbered(file.annotation_ids)
    columns = {name: vars(file).pop(name) for name in ("boxes", "labels", "area", "iscrowd", "annotation_ids")}
    del vars(file)["image_index"]
    for name in columns:  # one after another, so that only one is there twice
        for column in np.atleast_2d(columns[name].T):
            column[:] = column[order]
    boxes = columns["boxes"]
    boxes[:, 2:] += boxes[:, :2]
    del order
    return make_records(
        images=_images(file, images),
        counts=counts,
        class_names=file.class_names,
        source=str(annotations),
        annotation_file=f"{annotations} image {{}}",
        category_ids=file.category_ids,
        annotated=file.annotated,
        form="coco",
        **columns,
    )


# ---------------------------------------------------------------------------------------------- parts


def _check_places(annotations: Path, images: Path) -> None:
    for path in (images, annotations):
        if os.path.exists(path):  # also of a name that no file can have
            continue
        named = re.search(r"(test)?(?:-dev)?(2014|2015|2017)", path.name)
        official = named and ("coco" in str(path).lower() or path.name.startswith("instances_"))
        name = f"coco{'_test' if named[1] else ''}{named[2]}" if named else ""
        parts = path.parts
        data_root = f" --data-root {Path(*parts[: parts.index('coco')])}" if "coco" in parts else ""
        fix = f": get it with: python tools/prepare_data.py {name}{data_root}" if official else ""
        kind = "folder" if path == images else "annotation file"
        raise UserError(f"{path}: there is no such {kind}{fix}")


_ANNOTATION = "annotation number"
_WANTED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name", "supercategory"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "attributes"),
}
"""The lists of an annotation file that are read, and the keys of their records."""


def _find_broken(lists: JsonLists) -> None:
    """Find the records of a file that cannot be read, each by itself."""
    checks: dict[str, Callable[[Rows], object]] = {
        "images": lambda rows: (rows.ids("id"), _sizes(rows), [_file_name(rows, i) for i in range(len(rows.items))]),
        "categories": lambda rows: (rows.ids("id"), rows.texts("name", "give the category a name")),
        "annotations": lambda rows: (
            rows.column("image_id", "each needs one"), rows.column("category_id", "each needs one"),
            _areas(rows, rows.optional("area"), rows.boxes("x, y, width, height")), rows.flags("iscrowd"),
        ),
    }  # fmt: skip
    for key, what in (("images", "image number"), ("categories", "category number"), ("annotations", _ANNOTATION)):
        for rows in lists.parts(key, _WANTED[key]) if key in lists else ():
            if isinstance(rows, list):  # else the reading says so
                find_broken(lists.path, rows, what, checks[key])


def _find_unknown(file: CocoFile) -> None:
    """Find the annotations of images and categories that a file does not list."""
    ids = file.annotation_ids if isinstance(file.annotation_ids, list) else file.annotation_ids.tolist()
    for number in np.flatnonzero((file.image_index < 0) | (file.labels < 1)).tolist():
        thing = f"{_ANNOTATION} {number} (id {short(ids[number])})"
        if file.image_index[number] < 0:
            find("annotation-broken", file.path, thing, "its image_id is not among the images")
        else:
            find("class-unknown", file.path, thing, "its category_id is not among the categories")


def _rows(lists: JsonLists, key: str, what: str) -> Iterator[Rows]:
    """The records under a key, some at a time; none where the file lacks it."""
    if key not in lists:
        return
    if lists.content is not None and not isinstance(lists.content[key], list):
        raise UserError(f"{lists.path}: {key} is {short(lists.content[key])}, not a list [{{...}}, ...]")
    first = 0
    for part in lists.parts(key, _WANTED[key]):
        yield Rows(lists.path, part, what, is_whole_file=False, first=first)
        first += len(part)


def _all_rows(lists: JsonLists, key: str, what: str) -> Rows:
    items = list(chain.from_iterable(rows.items for rows in _rows(lists, key, what)))
    return Rows(lists.path, items, what, is_whole_file=False)


def _image_columns(lists: JsonLists) -> tuple[list[Any], list[str], np.ndarray]:
    """Ids, file names and sizes (N, 2) of the images; a million dictionaries are never there at a time."""
    ids, names, sizes = [], [], Growing(np.int64, 2)

    def add(rows: Rows) -> None:
        ids.extend(rows.ids("id"))
        names.extend(_file_name(rows, i) for i in range(len(rows.items)))
        sizes.add(_sizes(rows))

    for rows in _rows(lists, "images", "image number"):
        add(rows)
    if len(set(map(type, ids))) > 1 or len(set(ids)) < len(ids):  # which depends on all records
        ids, names, sizes = [], [], Growing(np.int64, 2)
        add(_each_once(_all_rows(lists, "images", "image number")))
    return ids, names, sizes.array()


def _sizes(images: Rows) -> np.ndarray:
    """(n, 2) int64 (H, W) as declared; 0 where they are not."""
    return np.stack([images.sides("height"), images.sides("width")], axis=1)


def _annotations(lists: JsonLists, image_ids: list[Any], category_ids: list[Any]) -> dict[str, Any]:
    """What `CocoFile` says about the annotations, by its fields' names."""
    columns = {
        "boxes": Growing(np.float64, 4), "area": Growing(np.float64), "iscrowd": Growing(bool),
        "image_index": Growing(np.int64), "labels": Growing(np.int64),
    }  # fmt: skip
    ids, others = Growing(np.int64), []
    position_of, label_of = _positions(image_ids, 0), _positions(category_ids, 1)
    lacks_area, unknown = False, {}
    for rows in _rows(lists, "annotations", _ANNOTATION):
        boxes = rows.boxes("x, y, width, height")
        images = rows.lookup("image_id", position_of, missing=-1, owner="images'")
        labels = rows.lookup("category_id", label_of, missing=0, owner="categories'")
        area = rows.optional("area")
        turned = [isinstance(each, dict) and bool(each.get("rotation")) for each in rows.optional("attributes")]
        if any(turned):  # CVAT's box is that of the object before it is turned
            say_once("rotation", str(rows.error(turned.index(True), "has a rotation, which is not read (said once)")))
        lacks_area |= None in area
        found = {"boxes": boxes, "image_index": images, "labels": labels}
        found |= {"area": _areas(rows, area, boxes), "iscrowd": rows.flags("iscrowd")}
        for name, column in found.items():
            columns[name].add(column)
        of_rows = _whole_numbers(rows.optional("id"))
        if isinstance(of_rows, np.ndarray) and not others:
            ids.add(of_rows)
        else:
            others += [*([] if others else ids.array().tolist()), *of_rows]
        for key, bad in (("image_id", images < 0), ("category_id", labels < 1)):
            if key not in unknown and bad.any():
                m = int(np.argmax(bad))
                owner = "images" if key == "image_id" else f"categories {short(category_ids)}"
                unknown[key] = rows.error(m, f"{key} {short(rows.items[m][key])} is not among the {owner}")
    return {
        **{name: column.array() for name, column in columns.items()},
        "lacks_area": lacks_area,
        "annotation_ids": others or ids.array(),
        "unknown": unknown.get("image_id") or unknown.get("category_id"),
    }


def _whole_numbers(ids: list[Any]) -> np.ndarray | list[Any]:
    """The ids as (M,) int64 where all are such numbers, else as they are."""
    if set(map(type, ids)) <= {int} and -(2**63) < min(ids, default=0) <= max(ids, default=0) < 2**63:
        return np.array(ids, np.int64)
    return ids


def _each_once(rows: Rows) -> Rows:
    """The records without those of an id that comes again: the last counts, as in pycocotools.

    Raises:
        UserError: they are not the same thing, for their names differ.
    """
    last = {identity: index for index, identity in enumerate(rows.ids("id"))}
    if len(last) == len(rows.items):
        return rows
    for index, item in enumerate(rows.items):
        if index != last[item["id"]]:
            find("id-repeated", rows.path, f"{rows.what} {index}", f"{short(item['id'])}, as number {last[item['id']]}")
        other = rows.items[last[item["id"]]]
        if any(item.get(key) != other.get(key) for key in ("file_name", "name")):
            raise rows.error(index, f"the id occurs more than once, also for {short(_name_of(other))}")
    logger.warning(
        "%s: %s more than once: the last one counts", rows.path,
        counted(len(rows.items) - len(last), f"{rows.what.removesuffix(' number')} id", " occurs", " occur"),
    )  # fmt: skip
    return Rows(rows.path, [rows.items[index] for index in last.values()], rows.what, is_whole_file=False)


def _name_of(item: dict[str, Any]) -> Any:
    return item.get("file_name", item.get("name"))


def _file_name(images: Rows, index: int) -> str:
    name = images.items[index].get("file_name", "")
    if not isinstance(name, str) or "\0" in name:
        raise images.error(index, f"file_name is {short(name)}: give the image file's name")
    return name


def _positions(ids: list[Any], first: int) -> dict[Any, int]:
    return {identity: position for position, identity in enumerate(ids, first)}


def _areas(annotations: Rows, values: list[Any], boxes: np.ndarray) -> np.ndarray:
    """(M,) float64; width x height for annotations without an area, as for `area: null`."""
    if None in values:
        extents = (boxes[:, 2] * boxes[:, 3]).tolist()
        values = [extent if value is None else value for value, extent in zip(values, extents, strict=True)]
    areas = annotations.numbers("area", values)
    bounded = np.abs(areas) <= LARGEST**2
    if not bounded.all():
        raise annotations.error(int(np.argmin(bounded)), f"area is {areas[~bounded][0]:g}: larger than any image")
    return areas


def _numbered(ids: list[Any]) -> np.ndarray:
    """(M,) int64: numbers 1.. in place of ids that are no whole numbers; equal ids get equal numbers, null its own."""
    number_of: dict[Any, int] = {}
    numbers = [
        number_of.setdefault((position,) if identity is None else comparable(identity), len(number_of) + 1)
        for position, identity in enumerate(ids)
    ]
    return np.array(numbers, np.int64)


def _images(file: CocoFile, folder: Path) -> list[tuple[str, Any, tuple[int, int]]]:
    """(path, id, declared (H, W)) of each image; a size that is not declared is read from the file."""
    images, is_loose, mistakes = [], False, Mistakes()
    for name, identity, size in zip(file.file_names, file.image_ids, file.sizes.tolist(), strict=True):
        if not name:
            raise UserError(f"{file.path}: image {short(identity)} has no file_name")
        path = find_image(folder, name)
        if path is None:
            with mistakes.of("image-missing", folder / name):
                raise UserError(f"{folder / name}: there is no such image, though the annotation file lists it")
            continue
        text = str(path)
        is_loose |= not text.endswith(name)
        if min(size) <= 0:
            find("size-missing", text)
            with mistakes.of("image-unreadable", path):
                size = image_file_size(path)
        images.append((text, identity, (size[0], size[1])))
    mistakes.raise_first()
    name_of: dict[str, str] = {}
    for (text, _, _), name in zip(images, file.file_names, strict=True) if is_loose else ():
        if name_of.setdefault(text, name) != name:
            raise UserError(f"{file.path}: {name_of[text]} and {name} both mean {text}: remove one")
    return images


def find_image(folder: Path, name: str) -> Path | None:
    r"""The image that an annotation calls `name`; None where there is none.

    As it stands, with Windows' `\` as `/`, with `%20` and its like decoded, or, of a path that another machine had
    (`C:\data\a.jpg`, `/home/me/a.jpg`, `../media/a.jpg`, `data/a.jpg` where there is no folder `data`), its last part,
    also without the prefix of an upload; else the only file whose name differs in case or in how letters with marks
    are composed (macOS takes them apart).
    """
    path = folder / name
    if is_file(path):
        return path
    slashes = name.replace("\\", "/")
    candidates = [slashes]
    first, *rest = slashes.split("/")
    if rest and (not first or ".." in (first, *rest) or not is_folder(folder / first)):
        candidates.append(slashes.rsplit("/", 1)[-1])
    if "%" in slashes:
        candidates.append(unquote(candidates[-1]))
    before, slash, last = candidates[-1].rpartition("/")
    candidates.append(f"{before}{slash}{without_upload_prefix(last)}")
    for candidate in candidates:
        if is_file(folder / candidate):
            return folder / candidate
    return next((path for candidate in candidates if (path := same_name(folder / candidate))), None)


def _warn(file: CocoFile) -> None:
    """Log what is likely a mistake, though every value is of its type."""
    ids = file.annotation_ids
    if not isinstance(ids, np.ndarray):
        ids = [comparable(identity) for identity in ids]
    different = count_different(ids) if isinstance(ids, np.ndarray) else len(set(ids))
    if is_listening():
        _find_repeated_ids(file.path, list(ids))
    if different < len(ids) and (isinstance(ids, np.ndarray) or None not in ids):
        logger.warning(
            "%s: %s more than once: training takes each annotation; in scoring pycocotools reads the last of them "
            "each time, and so does this; give each annotation its own id",
            file.path, counted(len(ids) - different, "annotation id", " occurs", " occur"),
        )  # fmt: skip
    if without := int(((file.area == 0) & (file.boxes[:, 2:] > 0).all(axis=1)).sum()):
        logger.warning("%s: %s with an area of 0, though not of the box: small objects; leave area out to have "
                       "width x height", file.path, counted(without, "annotation"))  # fmt: skip
    if negative := int((file.area < 0).sum()):
        logger.warning(
            "%s: %s with an area below 0: counted in no range of sizes", file.path, counted(negative, "annotation")
        )
    names = [name for name in file.file_names if name]
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = [name for name in names if name in seen or seen.add(name)]
        for name in twice:
            find("image-repeated", file.path, name, "listed under two ids")
        logger.warning(
            "%s: %s listed under two ids, the first: %s: objects of the other id count as background",
            file.path, counted(len(twice), "image"), twice[0],
        )  # fmt: skip
    if _seem_corners(file):
        logger.warning("%s: bbox seems to hold x1 y1 x2 y2, not x y width height: convert the boxes", file.path)


def _find_repeated_ids(path: Path, ids: list[Any]) -> None:
    first: dict[Any, int] = {}
    if None in ids:
        find("id-missing", path, f"{_ANNOTATION} {ids.index(None)}", f"and {ids.count(None) - 1} others")
    for number, identity in enumerate(ids):
        if identity is not None and (other := first.setdefault(identity, number)) != number:
            find("id-repeated", path, f"{_ANNOTATION} {number}", f"{short(identity)}, as number {other}")


def _seem_corners(file: CocoFile) -> bool:
    known = slice(None) if (file.image_index >= 0).all() else file.image_index >= 0  # as a rule nothing is copied
    boxes = file.boxes[known]
    if not _has_no_corner_before(boxes):
        return False
    return looks_like_corners(boxes, file.area[known], file.sizes[file.image_index[known]][:, ::-1])


def _has_no_corner_before(boxes: np.ndarray) -> bool:
    """Whether there are some boxes (M, 4), and as corners none of them would have its second one before the first."""
    return len(boxes) >= 8 and not (boxes[:, 2:] <= boxes[:, :2]).any()


def looks_like_corners(boxes: np.ndarray, area: np.ndarray, limits: np.ndarray) -> bool:
    """Whether boxes that should be x, y, width, height are rather corners: no second corner lies before the first, and
    either the areas are those of the corners or most boxes leave their image as they are but not as corners.

    Args:
        boxes: (M, 4).
        area: (M,).
        limits: (M, 2) width and height of each box's image; 0: not declared.
    """
    if not _has_no_corner_before(boxes):
        return False
    x1, y1, x2, y2 = boxes.T
    as_corners = np.isclose(area, (x2 - x1) * (y2 - y1), rtol=1e-3)
    as_sides = np.isclose(area, x2 * y2, rtol=1e-3)
    if (as_corners & ~as_sides).mean() > 0.9:
        return True
    leaves = ((boxes[:, :2] + boxes[:, 2:] > limits + 1) & (limits > 0)).any(axis=1)
    inside = (boxes[:, 2:] <= limits + 1).all(axis=1)
    return bool((leaves & inside).mean() > 0.5)
