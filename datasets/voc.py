"""PASCAL VOC folders: Annotations/*.xml, ImageSets/Main/NAME.txt, JPEGImages/. Imports no torch.

Coordinates: the XML counts pixels from 1 and includes both ends. As continuous coordinates that count from 0, pixel p
covers [p - 1, p]: 1 is subtracted from xmin and ymin only, so that the width is xmax - xmin + 1 as in the official
tool. Sets of one's own often count from 0 and give edges (`zero_based`): they are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from configs.errors import UserError, did_you_mean
from datasets.images import IMAGE_SUFFIXES, image_file_size
from datasets.records import Records, logger, make_records, report


@dataclass(frozen=True)
class VocObject:
    """One <object> as the file has it."""

    name: str
    box: tuple[float, float, float, float]
    """xmin ymin xmax ymax in the file's own pixels (official sets: 1-based, both ends inclusive)."""
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class VocAnnotation:
    """One XML file, unconverted."""

    filename: str
    """The image file's name as the XML has it; empty where it has none."""
    size: tuple[int, int] | None
    """(H, W) as declared; None where it is missing or zero."""
    objects: list[VocObject]


def read_annotation(path: str | Path) -> VocAnnotation:
    """The raw content of a VOC annotation file.

    Raises:
        UserError: the file is missing, not XML, or an object lacks its name or a coordinate; names the object (from 0).
    """
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such annotation file") from error
    except (ParseError, DefusedXmlException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a valid annotation file: {error}") from error
    size = (_number(root, "size/height", path, 0.0), _number(root, "size/width", path, 0.0))
    return VocAnnotation(
        filename=(root.findtext("filename") or "").strip(),
        size=(int(size[0]), int(size[1])) if min(size) > 0 else None,
        objects=[_read_object(node, f"{path} object {i}") for i, node in enumerate(root.findall("object"))],
    )


def _read_object(node: Any, where: str) -> VocObject:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{where}: has no <name>")
    xmin, ymin, xmax, ymax = (_number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult, truncated = (_number(node, flag, where, 0.0) != 0 for flag in ("difficult", "truncated"))
    return VocObject(name, (xmin, ymin, xmax, ymax), difficult, truncated)


def _number(node: Any, tag: str, where: str | Path, default: float | None = None) -> float:
    text = node.findtext(tag)
    if text is None or not text.strip():
        if default is None:
            raise UserError(f"{where}: has no <{tag.replace('/', '><')}>")
        return default
    try:
        return float(text)
    except ValueError:
        if default is not None and tag in ("difficult", "truncated"):  # labelling tools write Unspecified
            return default
        raise UserError(f"{where}: <{tag.replace('/', '><')}> is {text.strip()!r}, not a number") from None


def read_voc(root: str | Path, image_set: str, *, zero_based: bool = False) -> Records:
    """The set ImageSets/Main/`image_set`.txt of a VOC folder, with the annotated class names in sorted order.

    A set of which no image has an annotation file is taken as images only (`annotated` is False).

    Args:
        root: the folder that holds Annotations/, ImageSets/ and JPEGImages/.
        image_set: train, val, trainval, test, ...
        zero_based: the XML counts pixels from 0.

    Raises:
        UserError: a folder, list, image or annotation file is missing or broken.
    """
    root = Path(root)
    image_ids = read_image_set(root, image_set)
    source = f"{root}/{image_set}"
    files = {
        path.stem: path for path in sorted((root / "JPEGImages").iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES
    }
    present = {path.stem for path in (root / "Annotations").glob("*.xml")} if (root / "Annotations").is_dir() else set()
    annotated = any(image_id in present for image_id in image_ids)

    images, boxes, names, flags, counts = [], [], [], [], []
    for image_id in image_ids:
        xml = root / "Annotations" / f"{image_id}.xml"
        annotation = read_annotation(xml) if annotated else VocAnnotation("", None, [])
        path = files.get(image_id) or root / "JPEGImages" / (annotation.filename or f"{image_id}.jpg")
        if image_id not in files and not path.is_file():
            raise UserError(f"{path}: there is no such image, though {source}.txt lists {image_id}")
        images.append((str(path), image_id, annotation.size or image_file_size(path)))
        boxes += [item.box for item in annotation.objects]
        names += [item.name for item in annotation.objects]
        flags += [(item.difficult, item.truncated) for item in annotation.objects]
        counts.append(len(annotation.objects))

    raw = np.array(boxes, np.float64).reshape(-1, 4)
    class_names = sorted(set(names))
    label_of = {name: label for label, name in enumerate(class_names, 1)}
    records = make_records(
        images=images,
        boxes=raw if zero_based else raw - (1, 1, 0, 0),
        labels=[label_of[name] for name in names],
        counts=counts,
        class_names=class_names,
        source=source,
        annotation_file=str(root / "Annotations" / "{}.xml"),
        difficult=[difficult for difficult, _ in flags],
        truncated=[truncated for _, truncated in flags],
        annotated=annotated,
    )
    if not zero_based:
        report(
            records,
            (raw[:, :2] < 1).any(axis=1),
            "with a coordinate below 1, though VOC counts from 1 (a set that counts from 0 needs zero_based: true)",
        )
    return records


def read_image_set(root: Path, image_set: str) -> list[str]:
    """The image ids that ImageSets/Main/`image_set`.txt lists, each once."""
    _check_folders(root)
    folder = root / "ImageSets" / "Main"
    path = folder / f"{image_set}.txt"
    if not path.is_file():
        there = sorted(item.stem for item in folder.glob("*.txt")) if folder.is_dir() else []
        raise UserError(
            f"{path}: there is no such image set{did_you_mean(image_set, there)}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    return listed_images(path.read_text(), path)


def listed_images(text: str, path: Path) -> list[str]:
    """The image ids of an image set's file, each once.

    Raises:
        UserError: there is none.
    """
    # The official per-class lists have a second column (1, 0 or -1).
    listed = [line.split()[0] for line in text.splitlines() if line.strip()]
    unique = list(dict.fromkeys(listed))
    if not unique:
        raise UserError(f"{path}: lists no image")
    if len(unique) < len(listed):
        logger.warning("%s: lists %d images more than once; each is taken once", path, len(listed) - len(unique))
    return unique


def _check_folders(root: Path) -> None:
    """Raise a UserError that names the first missing folder, and how to get it where it is an official set's."""
    for folder in (root, root / "JPEGImages", root / "ImageSets" / "Main"):
        if folder.is_dir():
            continue
        year = next((part[3:] for part in reversed(root.parts) if part in ("VOC2007", "VOC2012")), None)
        nested = next(iter(sorted(path.parent for path in root.glob("*/ImageSets"))), None)
        if year:
            # .../D/VOCdevkit/VOC2007: the tool's --data-root is D
            data_root = Path(*root.parts[: root.parts.index(f"VOC{year}")]).parent
            mend = f"get it with: python tools/prepare_data.py voc{year} --data-root {data_root}"
        elif nested:
            mend = f"did you mean root: {nested}?"
        else:
            mend = "a VOC folder holds Annotations/, ImageSets/Main/ and JPEGImages/"
        raise UserError(f"{folder}: there is no such folder: {mend}")
