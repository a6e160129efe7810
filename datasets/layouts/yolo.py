"""YOLO's layouts: label files with data.yaml, obj.data, classes.txt or nothing beside them. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.detection import SourceConfig
from configs.errors import UserError, counted
from configs.files import read_json, read_lines, read_text
from configs.loading import parse_yaml
from datasets.annotation_files import annotation_files, listed_images, pair
from datasets.collect import ImageFinder
from datasets.layouts.inventory import LOOKED_AT, Inventory, Layout, missing_images, that_are
from datasets.layouts.parts import folder_sources, part_of_list, part_of_path
from datasets.yolo import listed_names

_LABEL_LINE = re.compile(r"\d+(\.0+)?(\s+[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?){4,}")

_LISTS = ("classes.txt", "labels.txt")


def find_yolo(inventory: Inventory) -> Layout | None:
    """YOLO's label files, with data.yaml (Ultralytics, Roboflow), obj.data (CVAT, darknet) or classes.txt."""
    root = inventory.root
    settings = _yolo_settings(inventory)
    files = that_are(is_label_file, annotation_files(root, "yolo"))
    labelled = pair(inventory.images, files, root)
    if not any(file.stat().st_size for file in labelled.values()):
        full = [file for file in files if file.stat().st_size]
        return Layout(root, "YOLO text", {}, None, 0, missing_images(full, {})) if full else None
    name = "YOLO text" + {"yaml": " with data.yaml (Ultralytics, Roboflow)", "data": " with obj.data (CVAT)"}.get(
        settings.get("kind", ""), " (Label Studio, labelImg)"
    )
    parts: dict[Path, str | None] = {image: part_of_path(image, root) for image in inventory.images}
    stated, lists, notes = _stated_parts(inventory, settings)
    if stated:
        parts |= stated
    if settings.get("kpt_shape") and settings["file"].with_suffix("") != root / "data":
        raise UserError(f"{settings['file']}: kpt_shape is read from {root}/data.yaml alone: make that of this file")
    names = yolo_class_names(inventory, settings)
    if names is None:
        highest = max(int(float(line.split()[0])) for file in set(labelled.values()) for line in _lines(file))
        names = [f"class_{number}" for number in range(highest + 1)]
        notes.append("no file lists the names of the classes: write them into data.classes, in order of their numbers")
    if len(lists) > 1 and "train" in lists:
        sources = {
            part: [SourceConfig(format="yolo", root=str(root), image_list=str(path)) for path in paths]
            for part, paths in lists.items()
        }
        rest = sum(image not in stated for image in inventory.images)
        notes += [f"{counted(rest, 'image')} in none of the lists: left out"] if rest else []
    else:
        sources = folder_sources("yolo", parts, labelled, root)
    return Layout(root, name, sources, names, len(labelled), notes)


def is_label_file(path: Path) -> bool:
    """Whether a text file holds YOLO's lines, or nothing."""
    try:
        lines = _lines(path)
    except UserError:
        return False
    return all(_LABEL_LINE.fullmatch(line) for line in lines[:LOOKED_AT])


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_lines(path) if line.strip()]


def _yolo_settings(inventory: Inventory) -> dict[str, Any]:
    """What data.yaml (or another YAML file with names) or obj.data say, with `file` and `kind`; or nothing."""
    for path in sorted(inventory.of(".yaml", ".yml"), key=lambda path: (len(path.parts), path.name != "data.yaml")):
        try:
            content = parse_yaml(read_text(path), str(path))
        except UserError:
            continue  # the reader of label files names it where it counts
        if isinstance(content, dict) and isinstance(content.get("names"), (list, dict)):
            return {**content, "file": path, "kind": "yaml"}
    for path in inventory.of(".data"):
        pairs = [line.split("=", 1) for line in _lines(path) if "=" in line]
        if pairs:
            return {**{key.strip(): value.strip() for key, value in pairs}, "file": path, "kind": "data"}
    return {}


def yolo_class_names(inventory: Inventory, settings: Mapping[str, Any]) -> list[str] | None:
    """The names of the class numbers from data.yaml, obj.names, classes.txt and their like, wherever they lie."""
    if isinstance(names := settings.get("names"), (list, dict)) and names:
        return listed_names(settings, settings["file"])
    lists = [path for path in inventory.files if path.suffix in (".names", ".labels") or path.name.lower() in _LISTS]
    for path in sorted(lists, key=lambda path: len(path.parts)):
        if path.name.lower() == "labels.txt" and is_label_file(path):
            continue  # of labels.jpg
        if found := _lines(path):
            return found
    for path in inventory.of(".json"):
        if path.name == "notes.json":
            categories = read_json(path, "list of classes").get("categories") or []
            if categories:
                return [str(item["name"]) for item in sorted(categories, key=lambda item: item["id"])]
    return None


def _stated_parts(
    inventory: Inventory, settings: Mapping[str, Any]
) -> tuple[dict[Path, str | None], dict[str, list[Path]], list[str]]:
    """Each image's part by data.yaml, obj.data or text files that list images, these files by part, and notes."""
    part_of: dict[Path, str | None] = {}
    lists: dict[str, list[Path]] = {}
    entries = (("train", "train"), ("val", "val"), ("val", "valid"), ("test", "test"))
    stated = [
        (part, value)
        for part, key in entries
        for value in (settings[key] if isinstance(settings.get(key), list) else [settings.get(key)])
        if isinstance(value, str) and value.strip()
    ]
    places, notes = [], []
    for part, value in stated:
        if (place := _resolve(value, inventory, settings)) is not None:
            places.append((part, place))
        else:
            notes.append(f"{settings['file']}: {part}: {value} is not here: passed over")
    if not any(part == "train" for part, _ in places):
        places = [(part, path) for path in inventory.of(".txt") if (part := part_of_list(path.stem))]
    for part, place in places:
        if place.is_dir():
            images = [image for image in inventory.images if image.is_relative_to(place)]
        else:
            lines, finder = _lines(place)[:LOOKED_AT], ImageFinder(inventory.root, inventory.images)
            missing = [line for line in lines if finder(line) is None]
            if missing and len(missing) < len(lines):
                notes.append(f"{place}: names {missing[0]}, which is not here: the list is passed over")
            if missing or not lines:
                continue
            images = listed_images(place, inventory.root)
        new = [image for image in images if image not in part_of]
        part_of |= dict.fromkeys(new, part)
        if place.is_file() and len(new) == len(images):
            lists.setdefault(part, []).append(place)
    return part_of, lists, notes


def _resolve(value: str, inventory: Inventory, settings: Mapping[str, Any]) -> Path | None:
    """The folder or file that a path in data.yaml means: below `path`, beside the file, or as its ends fit here."""
    base = settings["file"].parent
    given = Path(*(text.replace("\\", "/") for text in (str(settings.get("path") or ""), value)))
    if given.is_absolute() and given.exists() and given.resolve().is_relative_to(inventory.root):
        return given.resolve()
    parts = [part for part in given.parts if part not in ("..", ".", "/", given.anchor)]
    for start in range(len(parts)):
        for folder in (base, inventory.root):
            place = folder.joinpath(*parts[start:])
            if place.exists():
                return place.resolve()
    return None
