"""Layouts with one file for all images of a part: COCO's JSON, VIA's and TensorFlow's tables. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from configs.detection import SourceConfig
from configs.errors import UserError, counted
from configs.files import is_file, read_json, read_text
from datasets.annotation_lists import listed_entries
from datasets.annotation_tables import columns_of, missing_columns, table_rows
from datasets.collect import ImageFinder
from datasets.layouts.inventory import LOOKED_AT, Inventory, Layout
from datasets.layouts.parts import group_by_part, part_of_name, part_of_path
from datasets.listing import plain_name, without_upload_prefix
from datasets.via import VIA_COLUMNS, via_entries

_START = 1000
"""Characters of an XML file within which its first tag is looked for."""


@dataclass(frozen=True)
class ListedImages:
    """An annotation file and the images that it names."""

    path: Path
    names: list[str]
    part: str | None
    annotated: bool = True
    second_choice: bool = False
    """Of two files about the same images the other one is taken."""
    image_set: str | None = None
    """Of a file with several parts the name of this one."""


def find_coco(inventory: Inventory) -> Layout | None:
    """COCO's JSON: one file, one for each part, or one in each part's folder (Roboflow)."""
    listed = []
    for path, kind in inventory.json_kinds.items():
        if kind != "coco":
            continue
        content = read_json(path, "annotation file")
        names = [image["file_name"] for image in content["images"] if isinstance(image, dict) and "file_name" in image]
        annotations = content.get("annotations")
        part = part_of_path(path, inventory.root, own_name=True)
        if annotations is None and part != "test":
            continue
        if annotations and not any(isinstance(item, dict) and "bbox" in item for item in annotations):
            continue  # captions
        listed.append(ListedImages(path, names, part, bool(annotations), "instances" not in path.name))
    return _find_listed(inventory, "coco", "COCO JSON (COCO, Roboflow, CVAT, Label Studio)", listed)


def find_via(inventory: Inventory) -> Layout | None:
    """The VGG Image Annotator's CSV or JSON."""
    listed = []
    for path in inventory.of(".csv"):
        if (row := _first_row(path)) and all(name in row for name in VIA_COLUMNS):
            names = _column(path, "filename")
            listed.append(ListedImages(path, names, part_of_path(path, inventory.root, own_name=True)))
    for path, kind in inventory.json_kinds.items():
        if kind == "via":
            names = [entry["filename"] for entry in via_entries(read_json(path, "annotation file")) or []]
            names = [name for name in names if isinstance(name, str)]  # the reader names others
            listed.append(ListedImages(path, names, part_of_path(path, inventory.root, own_name=True)))
    return _find_listed(inventory, "via", "VGG Image Annotator (VIA)", listed)


def find_csv(inventory: Inventory) -> Layout | None:
    """TensorFlow's table with a line for each box."""
    listed = []
    for path in inventory.of(".csv"):
        columns = columns_of(_first_row(path) or {})
        if not missing_columns(columns):
            names = _column(path, columns["filename"])
            listed.append(ListedImages(path, names, part_of_path(path, inventory.root, own_name=True)))
    return _find_listed(inventory, "csv", "CSV with a line for each box (TensorFlow, Roboflow)", listed)


LISTS = {
    "cvat": "CVAT XML for images (CVAT, FiftyOne)",
    "createml": "CreateML JSON (labelImg, Roboflow)",
    "label_studio": "Label Studio JSON",
    "datumaro": "Datumaro JSON (CVAT)",
    "vott": "VoTT JSON",
}


def find_cvat(inventory: Inventory) -> Layout | None:
    """CVAT's XML for images: one file for each task or project, whose subsets are the parts."""
    listed = []
    of_one_image = {image.stem for image in inventory.images}
    for path in inventory.of(".xml"):
        if path.stem in of_one_image or not _is_cvat(path):
            continue
        _, entries = listed_entries(path, "cvat")
        subsets = {entry.subset: part_of_name(entry.subset) for entry in entries}
        if len(set(subsets.values())) == 1:
            part = part_of_path(path, inventory.root, own_name=True)
            listed.append(ListedImages(path, [entry.name for entry in entries], part))
            continue
        for subset, part in subsets.items():
            names = [entry.name for entry in entries if entry.subset == subset]
            listed.append(ListedImages(path, names, part, image_set=subset))
    return _find_listed(inventory, "cvat", LISTS["cvat"], listed)


def _is_cvat(path: Path) -> bool:
    with suppress(UserError):
        return "<annotations>" in read_text(path, "annotation file")[:_START]
    return False


def find_lists(inventory: Inventory) -> Layout | None:
    """The JSON files of CreateML, Label Studio, Datumaro and VoTT; of several kinds the one with the most images."""
    kinds: dict[str, dict[Path, list[Path]]] = {kind: defaultdict(list) for kind in LISTS}
    for path, kind in inventory.json_kinds.items():
        if kind in kinds:
            kinds[kind][path.parent].append(path)
    layouts = []
    for kind, folders in kinds.items():
        listed = []
        for folder, paths in folders.items():
            whole = kind in ("createml", "vott") and len(paths) > 1  # a file for each image
            for path in [folder] if whole else paths:
                names = list(dict.fromkeys(entry.name for entry in listed_entries(path, kind)[1]))
                part = part_of_path(folder / "x" if whole else path, inventory.root, own_name=not whole)
                listed.append(ListedImages(path, names, part))
        if listed and (layout := _find_listed(inventory, kind, LISTS[kind], listed)):
            layouts.append(layout)
    return max(layouts, key=lambda layout: layout.num_labelled, default=None)


def _first_row(path: Path) -> dict[str, str] | None:
    try:
        return table_rows(path)[0][1]
    except UserError:  # another kind of table
        return None


def _column(path: Path, name: str) -> list[str]:
    return list(dict.fromkeys(row[name].strip() for _, row in table_rows(path)))


def _find_listed(inventory: Inventory, file_format: str, name: str, listed: list[ListedImages]) -> Layout | None:
    """The layout of some annotation files; of two that name the same images one is taken.

    Raises:
        UserError: two of one part, or of none, have some images in common.
    """
    found: dict[tuple, tuple[ListedImages, Path]] = {}
    images_of: dict[tuple, set[Path]] = {}
    taken: set[Path] = set()
    notes = []
    for entry in sorted(listed, key=lambda it: (it.second_choice, not it.part, len(it.path.parts), it.path)):
        folder, images = _image_folder(entry, inventory)
        twice = [other for other, others in images_of.items() if images & others]
        if folder is None:
            notes.append(f"{entry.path}: none of its {counted(len(entry.names), 'image')} is here: it is not used")
            continue
        if images <= taken or any(entry.second_choice > found[other][0].second_choice for other in twice):
            notes.append(f"{entry.path}: names images that another annotation file names: it is not used")
            continue
        if twice:
            example = min(images & images_of[twice[0]])
            again = (
                f"{entry.path}: names {example} as {twice[0][0]} does ({counted(len(images & taken), 'such image')})"
            )
            if any(not entry.part or found[other][0].part in (None, entry.part) for other in twice):
                raise UserError(f"{again}: take them out of one of the two")
            notes.append(f"{again}: one part would flatter the other")
        taken |= images
        key = (entry.path, entry.image_set or "")
        images_of[key] = images
        found[key] = (entry, folder)
    if not found:
        return Layout(inventory.root, name, {}, None, 0, notes) if notes else None
    unlisted = [image for image in inventory.images if image not in taken]
    sources: dict[str, list[SourceConfig]] = {}
    for part, keys in group_by_part({key: entry.part for key, (entry, _) in found.items()}).items():
        for key in sorted(keys):
            entry, folder = found[key]
            below = [image for image in unlisted if image.is_relative_to(folder)]
            shared = any(place.is_relative_to(folder) for other, (_, place) in found.items() if other != key)
            join = bool(below) and not shared
            unlisted = [image for image in unlisted if not join or image not in below]
            values = {"format": file_format, "images": str(folder), "annotations": str(entry.path)}
            values |= {"image_set": entry.image_set} if entry.image_set is not None else {}
            source = SourceConfig.model_validate(values | ({"unlabelled": "empty"} if join else {}))
            sources.setdefault(part, []).append(source)
    if unlisted:
        notes.append(
            f"{counted(len(unlisted), 'image')} in no annotation file, for example {unlisted[0]}, and not to be "
            "assigned: left out"
        )
    return Layout(inventory.root, name, sources, None, len(taken), notes)


def _image_folder(entry: ListedImages, inventory: Inventory) -> tuple[Path | None, set[Path]]:
    """The folder that an annotation file's names are relative to, and the images; of several the nearest one."""
    root = inventory.root
    parents = {parent for image in inventory.images for parent in image.parents if parent.is_relative_to(root)}
    names = [name.replace("\\", "/") for name in entry.names]

    def nearness(folder: Path) -> tuple:
        common = len(Path(os.path.commonpath([folder, entry.path])).parts)
        same_part = part_of_path(folder / "x", root) == entry.part
        return folder != entry.path.parent, not same_part, -common, len(folder.parts), folder

    folder = root
    bare = [name.rsplit("/", 1)[-1] for name in names]
    forms = (names, bare, list(map(without_upload_prefix, bare)))  # paths of another machine: bare names
    plain = {plain_name(str(path)) for image in inventory.images for path in (image, image.with_suffix(""))}
    tries = [(here, form) for here in (is_file, lambda path: plain_name(str(path)) in plain) for form in forms]
    for here, looked_for in tries:
        hits = Counter({place: sum(here(place / name) for name in looked_for[:LOOKED_AT]) for place in parents})
        most = max(hits.values(), default=0)
        if most:
            folder = min((place for place, count in hits.items() if count == most), key=nearness)
            break
    finder = ImageFinder(folder, [image for image in inventory.images if image.is_relative_to(folder)])
    images = {Path(os.path.realpath(path)) for name in names if (path := finder(name)) is not None}
    return (folder, images) if images else (None, images)
