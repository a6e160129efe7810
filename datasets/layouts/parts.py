"""Which images belong to train, val and test, and how sources of a config say so. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.detection import SourceConfig
from datasets.split import PARTS

_WORDS = {
    "train": {"train", "training", "trainval", "trn"},
    "val": {"val", "valid", "validation", "validate", "dev"},
    "test": {"test", "testing", "tst"},
}


def part_of_name(*names: str) -> str | None:
    """The part that one of some names of folders or files tells of, by its words: obj_train_data, val2017, Valid."""
    for name in names:
        words = set(re.findall(r"[a-z]+", name.lower()))
        for part, hints in _WORDS.items():
            if words & hints:
                return part
    return None


def part_of_list(name: str) -> str | None:
    """The part that a list's whole name is; not that of a class's list (cat_train)."""
    return part_of_name(name) if re.fullmatch(r"[A-Za-z]+\d*", name) else None


def part_of_path(path: Path, root: Path, *, own_name: bool = False) -> str | None:
    """The part that a file's folders below `root` tell of; with `own_name` its own name first."""
    relative = path.relative_to(root)
    return part_of_name(*([relative.stem] if own_name else []), *relative.parts[:-1])


def group_by_part(parts: Mapping[Any, str | None]) -> dict[str, list]:
    """The members of each part. Without a training part, or with nothing beside it, all are `all`.

    Members of no part train where there is a training part.
    """
    there = {part for part in parts.values() if part}
    if "train" not in there or there == {"train"}:
        return {"all": list(parts)}
    groups: dict[str, list] = {part: [] for part in PARTS if part in there}
    for member, part in parts.items():
        groups[part or "train"].append(member)
    return groups


def covering_folders(target: Iterable[Path], everything: Sequence[Path], root: Path) -> list[Path]:
    """The fewest folders below which lie exactly the target's images; `folder/*`: only those directly in it."""
    wanted = set(target)

    def cover(folder: Path, images: Sequence[Path]) -> list[Path]:
        if all(image in wanted for image in images):
            return [folder] if images else []
        if not any(image in wanted for image in images):
            return []
        children: dict[Path, list[Path]] = {}
        direct = []
        for image in images:
            if image.parent == folder:
                direct.append(image)
            else:
                children.setdefault(folder / image.relative_to(folder).parts[0], []).append(image)
        own = [folder / "*"] if direct and all(image in wanted for image in direct) else []
        return own + [place for child, below in sorted(children.items()) for place in cover(child, below)]

    return cover(root, everything)


def folder_sources(
    file_format: str, parts: Mapping[Path, str | None], labelled: Mapping[Path, Path], root: Path
) -> dict[str, list[SourceConfig]]:
    """Sources of a format with one annotation file for each image, for each part.

    Args:
        file_format: voc, yolo, labelme or supervisely.
        parts: each image's part.
        labelled: image -> annotation file.
        root: the folder of the set.
    """
    images = sorted(parts)
    sources: dict[str, list[SourceConfig]] = {}
    for part, members in group_by_part(parts).items():
        for place in covering_folders(members, images, root):
            inside = [image for image in members if image.is_relative_to(place if place.name != "*" else place.parent)]
            if place.name == "*":
                inside = [image for image in inside if image.parent == place.parent]
            source = _folder_source(file_format, place, inside, labelled, root)
            sources.setdefault(part, []).append(source)
    return sources


def _folder_source(
    file_format: str, place: Path, images: Sequence[Path], labelled: Mapping[Path, Path], root: Path
) -> SourceConfig:
    """The shortest source that means these images, which are all below `place`."""
    files = {image: labelled[image] for image in images if image in labelled}
    if file_format == "yolo":
        name = _yolo_set(place, files, images, root)
        if name is not None:
            return SourceConfig(format="yolo", root=str(root), image_set=name)
        contains_all = place == root  # the names of the classes lie there
    else:
        contains_all = place.name != "*" and all(file.is_relative_to(place) for file in files.values())
    where = {"root": str(place)} if contains_all else {"root": str(root), "images": str(place)}
    values = {"format": file_format, **where, **({"unlabelled": "empty"} if len(files) < len(images) else {})}
    return SourceConfig.model_validate(values)


def _yolo_set(place: Path, files: Mapping[Path, Path], images: Sequence[Path], root: Path) -> str | None:
    """NAME where the images are all of images/NAME or NAME/images, and their labels lie where `read_yolo` looks."""
    relative = place.relative_to(root).parts if place != root else ()
    if len(relative) == 1 and relative[0] not in ("images", "*"):
        name, folder, labels = relative[0], place / "images", place / "labels"
    elif len(relative) == 2 and relative[0] == "images" and relative[1] != "*":
        name, folder, labels = relative[1], place, root / "labels" / relative[1]
    elif len(relative) == 2 and relative[1] == "images":
        name, folder, labels = relative[0], place, place.parent / "labels"
    else:
        return None
    if not files or not all(image.is_relative_to(folder) for image in images):
        return None
    as_expected = all(file == labels / image.relative_to(folder).with_suffix(".txt") for image, file in files.items())
    return name if as_expected else None
