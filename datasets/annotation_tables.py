"""One table for all images: a line for each box, as TensorFlow, Roboflow and others write it. Imports no torch.

Boxes are taken as they are written: continuous pixels that count from 0, or shares of the image's sides.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.errors import UserError, counted
from configs.files import read_lines
from datasets.annotation_files import declared_size, numbers_in
from datasets.coco import looks_like_corners
from datasets.collect import ImageFinder, Item, Object, Unlabelled, images_below, records_of
from datasets.columns import number_in
from datasets.images import image_file_size
from datasets.listing import IMAGE_SUFFIXES, list_files
from datasets.records import Records, logger

COLUMNS: dict[str, tuple[str, ...]] = {
    "filename": (
        "filename", "file_name", "image", "image_name", "imagename", "image_path", "image_id", "imageid", "path",
        "file",
    ),
    "class": ("class", "label", "class_name", "classname", "label_name", "labelname", "category", "name", "object"),
    "xmin": ("xmin", "x_min", "x1", "left", "x", "bbox_x"),
    "ymin": ("ymin", "y_min", "y1", "top", "y", "bbox_y"),
    "xmax": ("xmax", "x_max", "x2", "right"),
    "ymax": ("ymax", "y_max", "y2", "bottom"),
    "box_width": ("box_width", "bbox_width", "w"),
    "box_height": ("box_height", "bbox_height", "h"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "group": ("isgroupof",),
    "bbox": ("bbox",),
}  # fmt: skip
"""What a table's columns are called, in lower case."""

_ONE_CLASS = "object"
"""What a table that names no class shows."""

_HEADERLESS = {
    "makesense": ("class", "x", "y", "w", "h", "filename", "width", "height"),
    "retinanet": ("filename", "xmin", "ymin", "xmax", "ymax", "class"),
}
"""The columns of tables that come without a header, from makesense.ai and for keras-retinanet (Roboflow)."""


def read_csv(path: Path, images: Path, *, unlabelled: Unlabelled | None = None) -> Records:
    """The images of a table with a line for each box, as TensorFlow's scripts, Roboflow and Open Images write it.

    Coordinates of which none is above 1 and not all are whole are shares of the image's sides.

    Args:
        path: CSV with a header: filename, class, xmin, ymin, and xmax, ymax or the box's width and height (x, y, width,
            height); often the image's width and height. Or filename and bbox, "[x, y, width, height]", with a class or
            without (Kaggle's Global Wheat Detection). Without a header: see `_HEADERLESS`.
        images: folder that holds the images, at any depth.
        unlabelled: what images of the folder are that the table does not name: empty ones join the set.

    Raises:
        UserError: a column or an image is missing, or a value is no number; names the line (from 1).
    """
    rows = table_rows(path)
    column_of = columns_of(rows[0][1] if rows else {})
    if missing := missing_columns(column_of):
        raise UserError(f"{path}: the table has no column {' and no column '.join(missing)}")
    if "class" not in column_of:
        logger.warning("%s: no column tells the class: all are taken for one class, %s", path, _ONE_CLASS)
    objects: dict[str, list[Object]] = defaultdict(list)
    sizes: dict[str, tuple[int, int] | None] = {}
    for number, row in rows:
        where = f"{path} line {number}"
        name = row[column_of["filename"]].strip()
        if not name:
            raise UserError(f"{where}: names no image")
        mine = objects[name]  # a line without box and class: an image without objects
        if {"width", "height"} <= column_of.keys():
            sizes[name] = declared_size(row[column_of["height"]], row[column_of["width"]])
        if (thing := _object_of(row, column_of, where)) is not None:
            mine.append(thing)
    things = [thing for mine in objects.values() for thing in mine]
    numbers = [value for thing in things for value in thing.box]
    fractions = bool(numbers) and max(map(abs, numbers)) <= 1 and not all(value.is_integer() for value in numbers)
    if fractions:
        logger.warning("%s: its coordinates are shares of the images' sides, and taken as that", path)
    if all(thing.name.startswith(("/m/", "/g/", "/t/")) for thing in things) and (named := _descriptions(path)):
        objects = {  # type: ignore[assignment]
            image: [thing._replace(name=named.get(thing.name, thing.name)) for thing in mine]
            for image, mine in objects.items()
        }
    records = table_records(path, images, objects, sizes, unlabelled, fractions=fractions)
    if "xmax" not in column_of:
        given = np.hstack([records.boxes[:, :2], records.boxes[:, 2:] - records.boxes[:, :2]])
        if looks_like_corners(given, np.full(len(given), np.nan), records.limits()[:, :2]):
            logger.warning("%s: seems to hold x1 y1 x2 y2, not x y width height: convert the boxes", path)
    return records


def _object_of(row: Mapping[str, str], column_of: Mapping[str, str], where: str) -> Object | None:
    """The object of a line; None where box and class are empty."""
    values = _box_values(row, column_of)
    label = row[column_of["class"]].strip() if "class" in column_of else _ONE_CLASS * any(values)
    if not any(values) and not label:
        return None
    if not label:
        raise UserError(f"{where}: has a box without a class")
    if not any(values):
        raise UserError(f"{where}: has a class without a box: leave both empty for an image without objects")
    try:
        x1, y1, x2, y2 = numbers_in(map(number_in, values))
    except ValueError:
        raise UserError(f"{where}: {', '.join(text[:20] for text in values)} are not four numbers") from None
    box = (x1, y1, x2, y2) if "xmax" in column_of else (x1, y1, x1 + x2, y1 + y2)
    return Object(label, box, difficult="group" in column_of and row[column_of["group"]].strip() == "1")


def _box_values(row: Mapping[str, str], column_of: Mapping[str, str]) -> list[str]:
    """The four texts that are a line's box; a column that holds all four may have it in brackets."""
    if "bbox" in column_of:
        return re.split(r"[\s,;]+", row[column_of["bbox"]].strip(" []()"))
    return [row[column_of[side]].strip() for side in ("xmin", "ymin", *_far_sides(column_of))]


def _far_sides(column_of: Mapping[str, str]) -> tuple[str, str]:
    """What tells where a box ends: its far corner, or its width and height."""
    return ("xmax", "ymax") if {"xmax", "ymax"} & column_of.keys() else ("box_width", "box_height")


def missing_columns(column_of: Mapping[str, str]) -> list[str]:
    """The columns that a table of boxes needs and this one, of which `columns_of` told, does not have."""
    if "bbox" in column_of:
        return [] if "filename" in column_of else ["filename"]
    far = ("xmax", "ymax") if "box_width" not in column_of else _far_sides(column_of)
    return [name for name in ("filename", "class", "xmin", "ymin", *far) if name not in column_of]


def _descriptions(path: Path) -> dict[str, str]:
    """Open Images' names of its classes (/m/01yrx is Cat), from a table of the two near the boxes."""
    for folder in (path.parent, path.parent.parent / "metadata"):
        for file in list_files(folder, (".csv",), recursive=False):
            lines = [line.split(",", 1) for line in read_lines(file, "table")] if "class" in file.name else []
            if lines and all(len(line) == 2 for line in lines):
                return {identity.strip(): name.strip().strip('"') for identity, name in lines}
    return {}


def table_records(
    path: Path,
    images: Path,
    objects: Mapping[str, list[Object]],
    sizes: Mapping[str, tuple[int, int] | None],
    unlabelled: Unlabelled | None,
    *,
    class_names: Sequence[str] | None = None,
    fractions: bool = False,
) -> Records:
    """The images that one file names, in its order, then those that it does not name where these are empty ones.

    Args:
        path: the file, for messages.
        images: folder that holds the images, at any depth.
        objects: of each image, by the name that the file has.
        sizes: (H, W) of images as declared.
        unlabelled: what images of the folder are that the file does not name.
        class_names: in the order of their labels; None: those of the objects, sorted.
        fractions: the boxes are in shares of the image's sides, not in pixels.

    Raises:
        UserError: an image is missing, or `unlabelled` makes one that is not named a mistake.
    """
    there = images_below(images)
    finder = ImageFinder(images, there)
    items: dict[Path, Item] = {}
    for name, mine in objects.items():
        image = finder(name)
        if image is None:
            raise UserError(f"{images}: has no image {name}, or several of the name, though {path} lists it")
        if fractions:
            height, width = image_file_size(image, sizes.get(name))
            mine = [_scaled(thing, width, height) for thing in mine]
        before = items[image].objects if image in items else []
        items[image] = Item(image, [*(before or []), *mine], sizes.get(name))
    others = [image for image in there if image not in items]
    if others and unlabelled == "error":
        raise UserError(
            f"{path}: does not name {len(others)} of {counted(len(there), 'image')}, for example {others[0]}: if they "
            "show no object, write unlabelled: empty; if they are not labelled yet, unlabelled: skip"
        )
    if unlabelled == "empty":
        items |= {image: Item(image, []) for image in others}
    return records_of(
        list(items.values()),
        root=images,
        source=str(path),
        annotation_file=f"{path} image {{}}",
        class_names=class_names,
    )


def _scaled(thing: Object, width: int, height: int) -> Object:
    x1, y1, x2, y2 = thing.box
    return thing._replace(box=(x1 * width, y1 * height, x2 * width, y2 * height))


# ---------------------------------------------------------------------------------------------- tables


def table_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(number of the line, {column: value}) of each line below the header; commas, semicolons or tabs part values."""
    lines = read_lines(path, "table")
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    reader = csv.reader(lines, delimiter=delimiter)
    names: list[str] | None = None
    rows = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if names is None and (layout := _headerless(values)):
                names = list(layout)
            if names is None:
                if values[0].startswith("# Exported using VGG Image Annotator"):  # of VIA 3
                    raise UserError(f"{path}: VIA 3's tables are not read: save the project (JSON) and use that")
                names = [value.strip().removeprefix("#") for value in values]  # VIA 1 writes #filename
                if twice := next((name for name in names if name and names.count(name) > 1), None):
                    raise UserError(f"{path} line {reader.line_num}: names the column {twice} twice: remove one")
            elif len(values) != len(names):
                raise UserError(f"{path} line {reader.line_num}: has {len(values)} values, the header has {len(names)}")
            else:
                rows.append((reader.line_num, dict(zip(names, values, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: the table has no line below its header")
    return rows


def _headerless(values: Sequence[str]) -> tuple[str, ...] | None:
    """The columns of a table whose first line is no header but a box."""
    texts = [value.strip() for value in values]
    for names in _HEADERLESS.values():
        if len(texts) == len(names) and texts[names.index("filename")].lower().endswith(IMAGE_SUFFIXES):
            numbers = [text for name, text in zip(names, texts, strict=True) if name not in ("filename", "class")]
            if all(re.fullmatch(r"-?\d*\.?\d+", text) for text in numbers) or not any(numbers):
                return names
    return None


def columns_of(row: Mapping[str, str]) -> dict[str, str]:
    """What the table calls the columns of `COLUMNS`, for those that it has.

    Where boxes have no far corner and no other extent, width and height are theirs.
    """
    lower = {name.lower(): name for name in row}
    found = {
        meaning: next(lower[alias] for alias in aliases if alias in lower)
        for meaning, aliases in COLUMNS.items()
        if any(alias in lower for alias in aliases)
    }
    if not {"xmax", "ymax", "box_width", "box_height"} & found.keys() and {"x", "y"} <= lower.keys():
        found |= {f"box_{side}": found.pop(side) for side in ("width", "height") if side in found}
    for unused in ("bbox",) if "xmin" in found else ("xmax", "ymax") if "bbox" in found else ():
        found.pop(unused, None)
    return found
