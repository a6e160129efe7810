"""One file that lists all images, as other tools write it: CVAT's XML, CreateML, Label Studio, Datumaro, VoTT.

Boxes are continuous pixels that count from 0; Label Studio's are shares of the image. Outlines, ellipses and turned
boxes are taken as the box around them. Imports no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException, ElementTree

from configs.errors import UserError, counted
from configs.files import TEXT_LIMIT, decode_xml, is_folder, read_bytes, read_json
from datasets.annotation_files import box_around, class_in, declared_size, numbers_in, points_of, typed
from datasets.annotation_tables import table_records
from datasets.collect import Object, Unlabelled
from datasets.columns import LARGEST, number_in, short
from datasets.listing import IMAGE_SUFFIXES, list_files
from datasets.records import Records, logger

ListFormat = Literal["cvat", "createml", "label_studio", "datumaro", "vott"]
Points = list[tuple[float, float]]


class Entry(NamedTuple):
    """One image of a list."""

    name: str
    size: tuple[int, int] | None
    """(H, W) as declared."""
    objects: list[Object | None]
    """None: a shape without a box (a point, a line)."""
    subset: str = ""
    """CVAT: the part of the project that the image belongs to."""


def read_list(
    path: Path,
    images: Path,
    file_format: ListFormat,
    *,
    subset: str | None = None,
    unlabelled: Unlabelled | None = None,
) -> Records:
    """The images of a list of annotations.

    Args:
        path: the file; a folder: all such files directly in it (labelImg's CreateML, VoTT's assets).
        images: folder that holds the images, at any depth.
        file_format: which tool's.
        subset: cvat: the images of this subset alone.
        unlabelled: what images of the folder are that the list does not name: empty ones join the set.

    Raises:
        UserError: it is not such a file, an image is missing, or a shape is broken; names image and object (from 0).
    """
    known, entries = listed_entries(path, file_format)
    if subset is not None:
        there = {entry.subset for entry in entries}
        entries = [entry for entry in entries if entry.subset == subset]
        if not entries:
            raise UserError(f"{path}: has no image of the subset {subset}; there are: {', '.join(sorted(there))}")
    objects: dict[str, list[Object]] = defaultdict(list)
    for entry in entries:
        objects[entry.name] += [thing for thing in entry.objects if thing is not None]
    passed_over = sum(thing is None for entry in entries for thing in entry.objects)
    if passed_over:
        logger.warning(
            "%s: %s without a box (points, lines, brushes): passed over", path, counted(passed_over, "shape")
        )
    used = sorted({thing.name for things in objects.values() for thing in things} - set(known))
    sizes = {entry.name: entry.size for entry in entries}
    return table_records(
        path, images, objects, sizes, unlabelled,
        class_names=[*known, *used], fractions=file_format == "label_studio",
    )  # fmt: skip


def listed_entries(path: Path, file_format: str) -> tuple[list[str], list[Entry]]:
    """The classes in the tool's order, where it lists them, and the images of a file, or of a folder of such files.

    Raises:
        UserError: as `read_list`.
    """
    if not is_folder(path):
        content = _xml(path) if file_format == "cvat" else read_json(path, "annotation file")
        if file_format != "cvat" and content != [] and list_kind(content) != file_format:
            raise UserError(f"{path}: is not of the format {file_format}")
        return _names_in(content, file_format, path), list(_READERS[file_format](content, str(path)))
    names, entries = dict[str, None](), list[Entry]()
    for file in list_files(path, (".json",), recursive=False):
        if list_kind(content := read_json(file, "annotation file")) == file_format:
            names |= dict.fromkeys(_names_in(content, file_format, file))
            entries += _READERS[file_format](content, str(file))
    return list(names), entries


def list_kind(content: Any) -> ListFormat | None:
    """Which of the JSON formats of this module a file's content is; None: another one."""
    if isinstance(content, dict):
        if isinstance(content.get("items"), list) and isinstance(content.get("categories"), dict):
            return "datumaro"
        assets = content.get("assets")
        vott = isinstance(content.get("asset"), dict) and isinstance(content.get("regions"), list)
        return "vott" if vott or (isinstance(assets, dict) and "tags" in content) else None
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return None
    if {"image", "imagefilename"} & first.keys() and {"annotations", "annotation"} & first.keys():
        return "createml"
    task = isinstance(first.get("data"), dict) and {"annotations", "completions"} & first.keys()
    return "label_studio" if task or {"annotation_id", "annotator"} <= first.keys() else None


def _names_in(content: Any, file_format: str, path: Path) -> list[str]:
    """The classes that a file lists, without doubles."""
    names: list[Any] = []
    if file_format == "cvat":
        names = [node.text for node in content.iterfind("meta//labels/label/name")]
    elif file_format == "datumaro":
        names = _datumaro_names(content, str(path))
    elif file_format == "vott":
        names = [typed(tag, "name", str, str(path)) for tag in typed(content, "tags", list, str(path), default=[])]
    return list(dict.fromkeys(name.strip() for name in names if name and name.strip()))


# ---------------------------------------------------------------------------------------------- CVAT's XML


def _xml(path: Path) -> Any:
    try:
        root = ElementTree.fromstring(decode_xml(read_bytes(path, "annotation file", TEXT_LIMIT), path))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise UserError(f"{path}: not a valid annotation file: {error}") from error
    if root.tag != "annotations":
        raise UserError(f"{path}: not CVAT's XML: it begins with <{root.tag}>, not <annotations>")
    if root.find("image") is None and root.find("track") is not None:
        raise UserError(f"{path}: holds tracks (CVAT for video): export the task again as 'CVAT for images' or as COCO")
    return root


def _cvat(root: Any, where: str) -> Iterator[Entry]:
    for node in root.iterfind("image"):
        name = (node.get("name") or "").strip()
        if not name:
            raise UserError(f"{where}: an <image> has no name")
        shapes = [child for child in node if child.tag != "tag"]
        objects = [_cvat_shape(child, f"{where} image {name} object {number}") for number, child in enumerate(shapes)]
        size = declared_size(node.get("height"), node.get("width"))
        yield Entry(name, size, objects, node.get("subset") or "")


def _cvat_shape(node: Any, where: str) -> Object | None:
    label = class_in(node.get("label"), f"{where}: has no label")
    if node.tag == "box":
        x1, y1, x2, y2 = _attributes(node, where, "xtl", "ytl", "xbr", "ybr")
        points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif node.tag == "ellipse":
        x, y, rx, ry = _attributes(node, where, "cx", "cy", "rx", "ry")
        points = [(x - rx, y - ry), (x + rx, y - ry), (x + rx, y + ry), (x - rx, y + ry)]
    elif node.tag == "mask":
        x, y, width, height = _attributes(node, where, "left", "top", "width", "height")
        points = [(x, y), (x + width, y + height)]
    elif node.tag in ("polygon", "cuboid"):
        outline = node.get("points") or ";".join(
            f"{node.get(f'x{corner}')},{node.get(f'y{corner}')}"
            for corner in ("tl1", "tr1", "br1", "bl1", "tl2", "tr2", "br2", "bl2")
        )
        points = [_numbers(pair.split(","), where) for pair in outline.split(";")]
        if any(len(pair) != 2 for pair in points):
            raise UserError(f"{where}: points {short(outline)} are not pairs of numbers")
    else:
        return None
    (angle,) = _attributes(node, where, "rotation") if node.get("rotation") else (0.0,)
    return Object(label, box_around(_turned(points, angle, _middle(points)), where))  # type: ignore[arg-type]


def _attributes(node: Any, where: str, *names: str) -> list[float]:
    missing = next((name for name in names if node.get(name) is None), None)
    if missing:
        raise UserError(f"{where}: has no {missing}")
    return _numbers([node.get(name) for name in names], where)


def _numbers(texts: Sequence[str], where: str) -> Any:
    try:
        numbers = [number_in(text) for text in texts]
    except ValueError:
        raise UserError(f"{where}: {', '.join(texts)}: not all are numbers") from None
    if not all(abs(number) <= LARGEST for number in numbers):
        raise UserError(f"{where}: {', '.join(texts)}: give finite numbers of pixels")
    return numbers


def _middle(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2


def _turned(points: Sequence[Sequence[float]], degrees: float, pivot: tuple[float, float]) -> Points:
    """Points that are turned clockwise, as one sees them, around a pivot."""
    if not degrees:
        return [(x, y) for x, y in points]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    steps = [(x - pivot[0], y - pivot[1]) for x, y in points]
    return [(pivot[0] + dx * cos - dy * sin, pivot[1] + dx * sin + dy * cos) for dx, dy in steps]


# ---------------------------------------------------------------------------------------------- Label Studio


def _label_studio(content: Any, where: str) -> Iterator[Entry]:
    """Tasks as JSON, or as JSON-MIN, which has a task's regions beside its data; those that nobody has annotated are
    left out."""
    for number, task in enumerate(content):
        here = f"{where} task {number}"
        data = typed(task, "data", dict, here, default=task)
        name = _image_of(data, here)
        here = f"{here} ({name})"
        if data is task:
            lists = [value for value in task.values() if isinstance(value, list)]
            regions = [{"value": item} | item for some in lists for item in some if isinstance(item, dict)]
        elif (regions := _answer(task, here)) is None:
            continue
        size, objects = None, list[Object | None]()
        for index, region in enumerate(regions):
            place = f"{here} object {index}"
            value = typed(region, "value", dict, place, default={})
            size = size or declared_size(region.get("original_height"), region.get("original_width"))
            labels = [label for key in value if key.endswith("labels") for label in typed(value, key, list, place)]
            if labels or region.get("type") not in ("rectangle", "polygon", "ellipse", "brush"):  # its labels follow
                box = _share_box(value, size, place) if labels else None
                names = [class_in(label, f"{place}: a label is {short(label)}") for label in labels]
                objects += [box and Object(name, box) for name in names]
        yield Entry(name, size, objects)


def _answer(task: Mapping[str, Any], where: str) -> list[Any] | None:
    """The regions of a task: of several annotations that were not cancelled the ground truth, else the last; None:
    there is none."""
    given = typed(task, "annotations" if "annotations" in task else "completions", list, where)
    if wrong := [item for item in given if not isinstance(item, dict)]:
        raise UserError(f"{where}: an annotation is {short(wrong[0])}, not an object {{...}}")
    valid = [item for item in given if not item.get("was_cancelled")]
    if not valid:
        return None
    best = next((item for item in valid if item.get("ground_truth")), valid[-1])
    return typed(best, "result", list, where)


def _image_of(data: Mapping[str, Any], where: str) -> str:
    """The path of a task's image, from an address, an upload or a local file."""
    values = sorted(data.items(), key=lambda item: item[0] != "image")
    for _, value in values:
        text = unquote(value) if isinstance(value, str) else ""
        path = text.split("?d=")[-1].split("?")[0]
        if path.lower().endswith(IMAGE_SUFFIXES):
            return path
    raise UserError(f"{where}: its data name no image file")


def _share_box(value: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> Any:
    """A region's box in shares of the image; None for points and brushes. The file has per cent."""
    try:
        if "points" in value:
            points = points_of(value["points"], where)
        elif "radiusX" in value:
            x, y, rx, ry = numbers_in([value[key] for key in ("x", "y", "radiusX", "radiusY")])
            points = [(x - rx, y - ry), (x + rx, y + ry)]
        elif "height" in value and "rle" not in value:
            x, y, width, height = numbers_in([value[key] for key in ("x", "y", "width", "height")])
            points = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        else:
            return None
        (angle,) = numbers_in([0 if value.get("rotation") is None else value["rotation"]])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: the region {short(value)} lacks a number") from None
    if angle and size is None:
        raise UserError(f"{where}: is turned, but original_width and original_height are missing")
    if angle and size is not None:  # per cent of the width and of the height differ: pixels turn
        height, width = size
        pivot = _middle(points) if "radiusX" in value else points[0]  # a rectangle's upper left corner
        pixels = [(x * width, y * height) for x, y in points]
        turned = _turned(pixels, angle, (pivot[0] * width, pivot[1] * height))
        points = [(x / width, y / height) for x, y in turned]
    x1, y1, x2, y2 = box_around(points, where)
    return x1 / 100, y1 / 100, x2 / 100, y2 / 100


# ---------------------------------------------------------------------------------------------- others


def _createml(content: Any, where: str) -> Iterator[Entry]:
    """Apple's CreateML: the boxes' centres and sides in pixels."""
    for number, item in enumerate(content):
        here = f"{where} image {number}"
        name = typed(item, "image" if isinstance(item, dict) and "image" in item else "imagefilename", str, here)
        objects = list[Object | None]()
        for index, thing in enumerate(
            typed(item, "annotations" if "annotations" in item else "annotation", list, here)
        ):
            place = f"{here} ({name}) object {index}"
            label = class_in(typed(thing, "label", object, place), f"{place}: has no label")
            x, y, width, height = _named(typed(thing, "coordinates", dict, place), ("x", "y", "width", "height"), place)
            objects.append(Object(label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)))
        yield Entry(name, None, objects)


def _named(values: Mapping[str, Any], keys: Sequence[str], where: str) -> list[float]:
    try:
        return numbers_in([values[key] for key in keys])
    except (KeyError, ValueError):
        raise UserError(f"{where}: {short(values)} are not numbers of {', '.join(keys)}") from None


def _datumaro_names(content: Any, where: str) -> list[str]:
    label = typed(typed(content, "categories", dict, where), "label", dict, where, default={})
    return [typed(item, "name", str, where) for item in typed(label, "labels", list, where, default=[])]


def _datumaro(content: Any, where: str) -> Iterator[Entry]:
    names = _datumaro_names(content, where)
    for number, item in enumerate(content["items"]):
        here = f"{where} item {number}"
        image = typed(item, "image", dict, here, default={})
        name = typed(image, "path", str, here, default="") or typed(item, "id", str, here)
        height, width = [*typed(image, "size", list, here, default=[]), None, None][:2]
        things = [
            (f"{here} ({name}) object {index}", thing)
            for index, thing in enumerate(typed(item, "annotations", list, here, default=[]))
        ]
        shapes = [(place, thing) for place, thing in things if typed(thing, "type", str, place) not in _NO_SHAPES]
        yield Entry(
            name, declared_size(height, width), [_datumaro_shape(thing, names, place) for place, thing in shapes]
        )


_NO_SHAPES = ("label", "caption", "hash_key", "feature_vector", "tabular")


def _datumaro_shape(thing: Mapping[str, Any], names: Sequence[str], where: str) -> Object | None:
    kind = thing["type"]
    if kind not in ("bbox", "polygon", "ellipse"):
        return None
    number = typed(thing, "label_id", int, where)
    if not 0 <= number < len(names):
        raise UserError(f"{where}: label_id {short(number)} is not one of 0 to {len(names) - 1}")
    values = typed(thing, "bbox" if kind == "bbox" else "points", list, where)
    try:
        numbers = numbers_in(values)
        angle = typed(thing, "attributes", dict, where, default={}).get("rotation")
        (angle,) = numbers_in([0 if angle is None else angle])
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if kind == "bbox" and len(numbers) == 4:
        x, y, width, height = numbers
        points = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        return Object(names[number], box_around(_turned(points, angle, _middle(points)), where))
    if kind == "bbox" or len(numbers) % 2:
        raise UserError(
            f"{where}: has {counted(len(numbers), 'number')}: a box has four, an outline two for each point"
        )
    return Object(names[number], box_around(list(zip(numbers[::2], numbers[1::2], strict=True)), where))


def _vott(content: Any, where: str) -> Iterator[Entry]:
    """An exported project, or the file of one of its images; those that nobody has opened are left out."""
    items = typed(content, "assets", dict, where).values() if "assets" in content else [content]
    for number, item in enumerate(items):
        here = f"{where} asset {number}"
        asset = typed(item, "asset", dict, here)
        name = unquote(typed(asset, "name", str, here))
        if typed(asset, "state", int, here, default=1) == 0:
            continue
        objects = list[Object | None]()
        for index, region in enumerate(typed(item, "regions", list, here, default=[])):
            place = f"{here} ({name}) object {index}"
            box = typed(region, "boundingBox", dict, place)
            x, y, width, height = _named(box, ("left", "top", "width", "height"), place)
            tags = typed(region, "tags", list, place)
            if not tags:
                raise UserError(f"{place}: has no tag")
            objects += [
                Object(class_in(t, f"{place}: a tag is {short(t)}"), (x, y, x + width, y + height)) for t in tags
            ]
        size = typed(asset, "size", dict, here, default={})
        yield Entry(name, declared_size(size.get("height"), size.get("width")), objects)


_READERS: dict[str, Callable[[Any, str], Iterator[Entry]]] = {
    "cvat": _cvat, "createml": _createml, "label_studio": _label_studio, "datumaro": _datumaro, "vott": _vott,
}  # fmt: skip
