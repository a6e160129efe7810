"""The VGG Image Annotator's CSV, JSON and projects, of its versions 1 to 3. Imports no torch.

Boxes are taken as they are written: continuous pixels that count from 0.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError, counted
from configs.files import read_json
from datasets.annotation_files import box_around, class_in, numbers_in, points_of, typed
from datasets.annotation_tables import table_records, table_rows
from datasets.collect import Object, Unlabelled
from datasets.columns import short
from datasets.records import Records, logger

VIA_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


def read_via(path: Path, images: Path, *, unlabelled: Unlabelled | None = None) -> Records:
    """The images of an export or project of the VGG Image Annotator, CSV or JSON.

    The class is the region attribute that all regions have (of several: class, label, name or type).

    Args:
        path: the export.
        images: folder that holds the images, at any depth.
        unlabelled: what images of the folder are that the export does not name: empty ones join the set.

    Raises:
        UserError: it is not such an export, an image is missing, or a region lacks its class; names line or image.
    """
    regions = list(_via_regions(path))
    attribute = _class_attribute(path, [attributes for _, _, _, attributes in regions if attributes is not None])
    objects: dict[str, list[Object]] = defaultdict(list)
    passed_over = 0
    for where, name, shape, attributes in regions:
        mine = objects[name]
        if attributes is None:
            continue
        box = _via_box(shape, where)
        if box is None:
            passed_over += 1
            continue
        mine.append(Object(_via_class(attributes.get(attribute), attribute, where), box))
    if passed_over:
        logger.warning("%s: %s without a box (points, lines): passed over", path, counted(passed_over, "shape"))
    return table_records(path, images, objects, {}, unlabelled)


def _via_regions(path: Path) -> Iterator[tuple[str, str, Any, dict | None]]:
    """(place for messages, image, shape, attributes) of each region; None for both of an image without regions."""
    if path.suffix.lower() == ".json":
        content = read_json(path, "annotation file")
        entries = via_entries(content)
        if entries is None:
            raise UserError(f"{path}: not an export of the VGG Image Annotator: it has no regions")
        for entry in entries:
            name = typed(entry, "filename", str, str(path))
            here = f"{path} image {name}"
            regions = entry["regions"] or []
            if isinstance(regions, dict):  # of version 1
                regions = list(regions.values())
            if not isinstance(regions, list):
                raise UserError(f"{here}: regions is {short(regions)}, not a list of regions")
            if not regions:
                yield here, name, None, None
            for number, region in enumerate(regions):
                where = f"{here} object {number}"
                shape = typed(region, "shape_attributes", dict, where)
                yield where, name, shape, typed(region, "region_attributes", dict, where, default={})
        return
    for number, row in table_rows(path):
        where = f"{path} line {number}"
        if any(name not in row for name in VIA_COLUMNS):
            raise UserError(f"{path}: not an export of the VGG Image Annotator: it has no {', no '.join(VIA_COLUMNS)}")
        try:
            shape, attributes = (json.loads(row[name] or "{}") for name in VIA_COLUMNS[1:])
        except ValueError as error:
            raise UserError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(shape, dict) or not isinstance(attributes, dict):
            raise UserError(f"{where}: {' and '.join(VIA_COLUMNS[1:])} must be JSON objects {{...}}")
        yield where, row["filename"].strip(), shape or None, attributes if shape else None


def via_entries(content: Any) -> list[dict] | None:
    """The images of a VIA JSON export or project; None where it is something else."""
    if isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("file", "view", "metadata")):
        return _via3_entries(content)
    if isinstance(content, dict):
        content = content.get("_via_img_metadata", content)
        entries = list(content.values()) if isinstance(content, dict) else []
        if entries and all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries):
            return entries
    return None


_VIA3_SHAPES: dict[Any, tuple[str, ...]] = {
    1: ("point",), 2: ("rect", "x", "y", "width", "height"), 3: ("circle", "cx", "cy", "r"),
    4: ("ellipse", "cx", "cy", "rx", "ry"), 5: ("polyline",), 6: ("polyline",), 7: ("polygon",),
    8: ("rect", "x", "y", "width", "height"), 9: ("circle", "cx", "cy", "r"),
}  # fmt: skip
"""Numbers of shapes in projects of VIA 3, with what their numbers are."""


def _via3_entries(content: Mapping[str, Any]) -> list[dict]:
    """A project of VIA 3 in the form of version 2; what is unusual is left for its reader to name."""
    attributes = _object(content.get("attribute"))
    regions: dict[str, list] = defaultdict(list)
    for region in content["metadata"].values():
        numbers = _object(region).get("xy")
        if not isinstance(numbers, list) or not numbers:
            continue  # of the whole image, or of a moment of a video
        named = {}
        for key, value in _object(region.get("av")).items():
            attribute = _object(attributes.get(key))
            options = _object(attribute.get("options"))
            named[str(attribute.get("aname", key))] = options.get(value, value) if isinstance(value, str) else value
        kind, *keys = _VIA3_SHAPES.get(numbers[0] if isinstance(numbers[0], int) else None, (str(numbers[0]),))
        shape = {"name": kind, **dict(zip(keys, numbers[1:], strict=False))}
        if kind == "polygon":
            shape |= {"all_points_x": numbers[1::2], "all_points_y": numbers[2::2]}
        regions[str(region.get("vid"))].append({"shape_attributes": shape, "region_attributes": named})
    entries = []
    for key, view in content["view"].items():
        files = _object(view).get("fid_list")
        for number in files if isinstance(files, list) else []:
            file = _object(content["file"].get(str(number)))
            entries.append({"filename": file.get("fname") or file.get("src"), "regions": regions[str(key)]})
    return entries


def _object(value: Any) -> dict:
    """The value where it is an object of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}


def _class_attribute(path: Path, all_attributes: list[dict]) -> str:
    """The name of the region attribute that holds the class."""
    counts = Counter(name for attributes in all_attributes for name in attributes)
    full = [name for name, count in counts.items() if count == len(all_attributes)]
    usual = [name for name in full if name.strip().lower() in ("class", "label", "name", "type", "category", "object")]
    candidates = full if len(full) == 1 else usual
    if len(candidates) == 1 or not all_attributes:
        return candidates[0] if candidates else ""
    if not candidates and len(counts) == 1:
        return next(iter(counts))  # the region without it is named when its turn comes
    raise UserError(
        f"{path}: cannot tell which region attribute is the class ({', '.join(sorted(counts)) or 'there is none'}): "
        "call it class"
    )


def _via_class(value: Any, attribute: str, where: str) -> str:
    """A text, or the one ticked box of several."""
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else None
    return class_in(value, f"{where}: its attribute {attribute} names no class, or several")


def _via_box(shape: Any, where: str) -> tuple[float, float, float, float] | None:
    """The box of a region; None for points and lines."""
    kind = shape.get("name") if isinstance(shape, dict) else None
    try:
        if kind == "rect":
            x, y, width, height = numbers_in([shape[key] for key in ("x", "y", "width", "height")])
            return x, y, x + width, y + height
        if kind in ("circle", "ellipse"):
            radii = ("r", "r") if kind == "circle" else ("rx", "ry")
            x, y, rx, ry = numbers_in([shape[key] for key in ("cx", "cy", *radii)])
            return x - rx, y - ry, x + rx, y + ry
        if kind == "polygon":
            points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
            return box_around(points_of(points, where), where)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: the {kind} {short(shape)} lacks a number") from None
    if kind in ("point", "polyline"):
        return None
    raise UserError(f"{where}: a region of the unknown shape {short(kind)}")
