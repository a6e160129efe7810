"""Layouts with an annotation file for each image: VOC's XML, KITTI's text, labelme's and Supervisely's JSON. Imports
no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from configs.detection import SourceConfig
from configs.errors import UserError, counted
from configs.files import read_text
from datasets.annotation_files import annotation_files, pair
from datasets.layouts.inventory import Inventory, Layout, missing_images, that_are
from datasets.layouts.parts import folder_sources, part_of_list, part_of_path
from datasets.voc import read_image_set


def find_voc(inventory: Inventory) -> Layout | None:
    """PASCAL VOC's XML, with image sets or without."""
    files = that_are(_is_voc, annotation_files(inventory.root, "voc"))
    labelled = pair(inventory.images, files, inventory.root)
    name = "Pascal VOC XML"
    if not labelled:
        return Layout(inventory.root, name, {}, None, 0, missing_images(files, {})) if files else None
    beside = sum(image.parent == file.parent for image, file in labelled.items())
    sets = [path for path in inventory.of(".txt") if path.parent.parts[-2:] == ("ImageSets", "Main")]
    parts: dict[Path, str] = {}
    sources: dict[str, list[SourceConfig]] = {}
    if sets:
        sources, parts = _voc_sets(inventory, sets, labelled)
    if sources:
        name += " with image sets (PASCAL VOC, CVAT)"
        unlisted = len(inventory.images) - len(parts)
        notes = [f"{counted(unlisted, 'image')} in none of the lists in ImageSets/Main: trained on"] if unlisted else []
        return Layout(inventory.root, name, sources, None, len(labelled), notes)
    name += " beside the images (labelImg, Roboflow)" if beside else " in a folder of its own (Label Studio, CVAT)"
    by_folder = {image: part_of_path(image, inventory.root) for image in inventory.images}
    sources = folder_sources("voc", by_folder, labelled, inventory.root)
    return Layout(inventory.root, name, sources, None, len(labelled), missing_images(files, labelled))


def _voc_sets(
    inventory: Inventory, lists: list[Path], labelled: dict[Path, Path]
) -> tuple[dict[str, list[SourceConfig]], dict[Path, str]]:
    """The sources of the lists in ImageSets/Main, and each listed image's part; nothing where they make no parts."""
    roots = sorted({path.parents[2] for path in lists})
    sources: dict[str, list[SourceConfig]] = {}
    part_of: dict[Path, str] = {}
    for root in roots:
        names = {path.stem: path for path in lists if path.parents[2] == root}
        usual = {name: part for name in names if (part := part_of_list(name))}
        if any(name != "trainval" and part == "train" for name, part in usual.items()):
            usual.pop("trainval", None)  # train and val together
        usual = usual or _class_lists(root, names)
        folder = root / "JPEGImages"
        by_name = {
            image.relative_to(folder).with_suffix("").as_posix(): image
            for image in inventory.images
            if image.is_relative_to(folder)
        }
        for name, part in usual.items():
            images = [by_name[item] for item in _listed(root, name) if item in by_name]
            new = [image for image in images if image not in part_of]
            if not images or len(new) < len(images):
                continue  # a list that repeats another one
            part_of |= dict.fromkeys(new, part)
            bare = any(image not in labelled for image in images)
            sources.setdefault(part, []).append(
                SourceConfig(format="voc", root=str(root), image_set=name, unlabelled="empty" if bare else None)
            )
    if "train" not in sources or len(sources) < 2:
        return {}, {}
    for root in roots:
        rest = [
            image for image in inventory.images if image.is_relative_to(root / "JPEGImages") and image not in part_of
        ]
        if rest:
            bare = any(image not in labelled for image in rest)
            sources["train"].append(
                SourceConfig(format="voc", root=str(root), unlisted=True, unlabelled="empty" if bare else None)
            )
    return sources, part_of


def _class_lists(root: Path, names: Iterable[str]) -> dict[str, str]:
    """The lists of one class with their parts, where those of all others name the same images (VoTT has no others)."""
    lists: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if part := part_of_list(name.rpartition("_")[2]):
            lists[part].append(name)
    first = {named[0]: part for part, named in lists.items()}
    same = all(set(_listed(root, name)) == set(_listed(root, named[0])) for named in lists.values() for name in named)
    return first if same else {}


def _listed(root: Path, name: str) -> list[str]:
    """The images of a list; none where it is empty.

    Raises:
        UserError: the list cannot be read, or names what it may not.
    """
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    return read_image_set(root, name) if read_text(path, "image set").strip() else []


def _is_voc(path: Path) -> bool:
    """Whether an XML file is one image's annotation; a broken one counts, so that its reader names it."""
    try:
        text = read_text(path)
    except UserError:
        return True
    return "<annotation>" in text or "<annotation " in text or "<object>" in text


def find_kitti(inventory: Inventory) -> Layout | None:
    """KITTI's text files."""
    root, name = inventory.root, "KITTI text"
    files = that_are(_is_kitti, annotation_files(root, "kitti"))
    labelled = pair(inventory.images, files, root)
    if not labelled:
        return Layout(root, name, {}, None, 0, missing_images(files, {})) if files else None
    parts = {image: part_of_path(image, root) for image in inventory.images}
    return Layout(root, name, folder_sources("kitti", parts, labelled, root), None, len(labelled))


def _is_kitti(path: Path) -> bool:
    """Whether the first line of a text file is one of KITTI's."""
    try:
        words = read_text(path).partition("\n")[0].split()
    except UserError:
        return False
    numbers = all(re.fullmatch(r"-?\d+(\.\d*)?", word) for word in words[1:])
    return len(words) in (15, 16) and numbers and not words[0][0].isdigit()


def find_labelme(inventory: Inventory) -> Layout | None:
    """labelme's JSON files."""
    return _find_json(inventory, "labelme", "labelme JSON")


def find_supervisely(inventory: Inventory) -> Layout | None:
    """A Supervisely project: img/a.jpg with ann/a.jpg.json."""
    return _find_json(inventory, "supervisely", "Supervisely JSON")


def _find_json(inventory: Inventory, kind: str, name: str) -> Layout | None:
    files = [path for path, its_kind in inventory.json_kinds.items() if its_kind == kind]
    labelled = pair(inventory.images, files, inventory.root, named=kind == "supervisely")
    if not labelled:
        return Layout(inventory.root, name, {}, None, 0, missing_images(files, {})) if files else None
    parts = {image: part_of_path(image, inventory.root) for image in inventory.images}
    sources = folder_sources(kind, parts, labelled, inventory.root)
    return Layout(inventory.root, name, sources, None, len(labelled), missing_images(files, labelled))
