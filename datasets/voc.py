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

from configs.errors import UserError, counted, did_you_mean
from configs.files import TEXT_LIMIT, decode_xml, is_file, read_bytes, read_lines
from datasets.columns import LARGEST, number_in
from datasets.complaints import say_once
from datasets.findings import Mistakes
from datasets.folders import how_to_get
from datasets.images import image_file_size
from datasets.listing import IMAGE_SUFFIXES, by_plain_name, is_hidden, list_files, list_images, plain_name, same_name
from datasets.make_records import make_records, report
from datasets.records import Records, logger

ROUNDED = 0.5
"""Pixels by which a border's coordinate may be off: YOLO's fractions, for one, have six digits."""


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
    path = Path(path)
    if not is_file(path):
        path = same_name(path) or path  # a.XML
    text = decode_xml(read_bytes(path, "annotation file", TEXT_LIMIT), path)
    try:
        root = ElementTree.fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise UserError(f"{path}: not a valid annotation file: {error}") from error
    if root.tag != "annotation":
        raise UserError(f"{path}: not a valid annotation file: it begins with <{root.tag}>, not <annotation>")
    objects = root.findall("object")
    if text.lower().count("<object") > len(objects):  # rare, and slow to be sure of
        inner = [node.tag for node in root.iter() if str(node.tag).lower() == "object" and node not in objects]
        if inner:
            raise UserError(f"{path}: has an <{inner[0]}> that is no <object> directly in <annotation>: make it one")
    height, width = ("size/height", "size/width")
    if root.find("imagesize") is not None:  # LabelMe 3.0, which keeps what was deleted
        height, width = ("imagesize/nrows", "imagesize/ncols")
        objects = [node for node in objects if node.findtext("deleted", "0").strip() != "1"]
    size = (_number(root, height, path, 0.0), _number(root, width, path, 0.0))
    return VocAnnotation(
        filename=(root.findtext("filename") or "").strip(),
        size=(int(size[0]), int(size[1])) if min(size) >= 1 else None,
        objects=[_read_object(node, f"{path} object {i}") for i, node in enumerate(objects)],
    )


def _read_object(node: Any, where: str) -> VocObject:
    name = " ".join((node.findtext("name") or "").split())
    if not name:
        raise UserError(f"{where}: has no <name>")
    box = node.find("bndbox")
    tags = [child.tag for child in node if child.tag in ("name", "bndbox", "difficult", "truncated")]
    tags += [child.tag for child in box] if box is not None else []
    if len(set(tags)) < len(tags):
        twice = next(tag for tag in tags if tags.count(tag) > 1)
        raise UserError(f"{where} ({name}): has <{twice}> more than once: remove one")
    for each in node.iterfind("attributes/attribute"):
        if each.findtext("name") == "rotation" and (each.findtext("value") or "").strip("0. "):
            # CVAT's box is that of the object before it is turned.
            say_once("rotation", f"{where} ({name}): has a rotation, which is not read (said once)")
    xmin, ymin, xmax, ymax = _outline(node, where) or (
        _number(node, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return VocObject(name, (xmin, ymin, xmax, ymax), _flag(node, "difficult", where), _flag(node, "truncated", where))


def _outline(node: Any, where: str) -> tuple[float, float, float, float] | None:
    """The box around the outline of LabelMe 3.0's XML (CVAT), in VOC's pixels, where there is no <bndbox>."""
    points = node.findall("polygon/pt") if node.find("bndbox") is None else []
    if not points:
        return None
    xs, ys = ([_number(point, axis, where) for point in points] for axis in ("x", "y"))
    return min(xs) + 1, min(ys) + 1, max(xs), max(ys)


def _number(node: Any, tag: str, where: str | Path, default: float | None = None) -> float:
    text = node.findtext(tag)
    brackets = f"<{tag.replace('/', '><')}>"
    if text is None or not text.strip():
        if default is None:
            raise UserError(f"{where}: has no {brackets}")
        return default
    try:
        value = number_in(text)
    except ValueError:
        raise UserError(f"{where}: {brackets} is {text.strip()!r}, not a number") from None
    if not abs(value) <= LARGEST:
        raise UserError(f"{where}: {brackets} is {text.strip()}: give a finite number of pixels")
    return value


_FLAGS = {
    **dict.fromkeys(("1", "true", "yes"), True),
    **dict.fromkeys(("0", "false", "no", "unspecified", ""), False),
}
"""Words that labelling tools write for `difficult` and `truncated`."""


def _flag(node: Any, tag: str, where: str) -> bool:
    text = (node.findtext(tag) or "").strip()
    known = _FLAGS.get(text.lower())
    return known if known is not None else _number(node, tag, where, 0.0) != 0


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
    source, listing = f"{root}/{image_set}", root / "ImageSets" / "Main" / f"{image_set}.txt"
    files = _images_by_stem(root / "JPEGImages")
    present = set(map(plain_name, _stems(root / "Annotations")))
    annotated = any(plain_name(image_id) in present or _has_xml(root, image_id) for image_id in image_ids)

    images, boxes, names, flags, counts, mistakes = [], [], [], [], [], Mistakes()
    for image_id in image_ids:
        annotation = _listed_annotation(root, listing, image_id) if annotated else VocAnnotation("", None, [])
        path = _image_path(root, image_id, files.get(image_id, []), annotation.filename)
        if path is None:
            missing = root / "JPEGImages" / f"{image_id}.jpg"
            raise UserError(f"{missing}: there is no such image, though {listing} lists {image_id}")
        with mistakes.of("image-unreadable", path):
            images.append((str(path), image_id, annotation.size or image_file_size(path)))
        boxes += [item.box for item in annotation.objects]
        names += [item.name for item in annotation.objects]
        flags += [(item.difficult, item.truncated) for item in annotation.objects]
        counts.append(len(annotation.objects))
    mistakes.raise_first()

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
            np.any(raw[:, :2] < 1 - ROUNDED, axis=1),
            "with a coordinate below 1, though VOC counts from 1 (a set that counts from 0 needs zero_based: true)",
        )
    return records


def _listed_annotation(root: Path, listing: Path, image_id: str) -> VocAnnotation:
    """The annotation of an image that a list names."""
    xml = root / "Annotations" / f"{image_id}.xml"
    if not is_file(xml) and same_name(xml) is None:
        raise UserError(
            f"{xml}: there is no such annotation file, though {listing} lists {image_id}: if the image shows no "
            "object, write unlabelled: empty; if it is not labelled yet, unlabelled: skip"
        )
    return read_annotation(xml)


def read_image_set(root: Path, image_set: str) -> list[str]:
    """The image ids that ImageSets/Main/`image_set`.txt lists, each once."""
    _check_folders(root)
    folder = root / "ImageSets" / "Main"
    path = folder / f"{image_set}.txt"
    if not is_file(path):
        there = sorted(item.stem for item in folder.glob("*.txt") if not is_hidden(item.name))
        raise UserError(
            f"{path}: there is no such image set{did_you_mean(image_set, there)}; "
            f"there are: {', '.join(there) or 'none'}"
        )
    return listed_images(path, root)


def listed_images(path: Path, root: Path) -> list[str]:
    r"""The image ids of an image set's file, each once.

    A line is an id; or an id and a flag (1, 0 or -1, as in the official per-class lists). It is taken whole where there
    is such an annotation or image, for names may hold blanks; else without its flag, its quotes, the suffix of an
    image, or the folders before it (Windows' too), in whichever of these forms it exists; else the only such name that
    differs in case or in how letters with marks are composed.

    Args:
        path: the list.
        root: the folder that holds Annotations/ and JPEGImages/.

    Raises:
        UserError: the file is not text, lists no image, or names one outside the folder.
    """
    known = _stems(root / "Annotations") | set(_images_by_stem(root / "JPEGImages"))
    plain = by_plain_name(known)
    lines = [line for line in read_lines(path, "image set") if line.strip()]
    listed = [line if line in known else _image_id(line.strip(), known, plain, root) for line in lines]
    for name in listed:
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path}: {name} leads out of {root}: an image set lists names of images")
    unique = list(dict.fromkeys(listed))
    if not unique:
        raise UserError(f"{path}: lists no image")
    if len(unique) < len(listed):
        logger.warning(
            "%s: lists %s more than once; each is taken once", path, counted(len(listed) - len(unique), "image")
        )
    return unique


def _image_id(line: str, known: set[str], by_plain: dict[str, str], root: Path) -> str:
    """The id that a line of an image set means."""
    if line in known:
        return line
    name, _, flag = line.replace("\t", " ").rpartition(" ")
    plain = name.rstrip() if name.strip() and flag in ("-1", "0", "1") else line
    forms = [line, plain]
    for form in (line, plain):
        bare = form.strip("\"'")
        slashes = bare.replace("\\", "/")
        forms += [bare, slashes, _without_suffix(bare), _without_suffix(slashes)]
        forms += [slashes.rsplit("/", 1)[-1], _without_suffix(slashes.rsplit("/", 1)[-1])]
    for form in forms:
        if form in known or _has_xml(root, form):
            return form
        if (same := by_plain.get(plain_name(form))) is not None:
            return same
    return plain


def _without_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in (*IMAGE_SUFFIXES, ".xml") else name


def _has_xml(root: Path, name: str) -> bool:
    """Whether an id with folders in it has an annotation; those without are in the listing."""
    return "/" in name and ".." not in name and is_file(root / "Annotations" / f"{name}.xml")


def _stems(folder: Path) -> set[str]:
    """The names of the annotations in a folder, without suffix."""
    return {path.stem for path in list_files(folder, (".xml",), recursive=False)}


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by their names without suffix."""
    files: dict[str, list[Path]] = {}
    for path in list_images(folder, recursive=False):
        files.setdefault(path.stem, []).append(path)
    return files


def _image_path(root: Path, image_id: str, files: list[Path], filename: str) -> Path | None:
    """The image's file: of several that differ in suffix the one that the annotation names; None: there is none."""
    folder = root / "JPEGImages"
    if "/" in image_id:
        files = [file for suffix in IMAGE_SUFFIXES if is_file(file := folder / f"{image_id}{suffix}")]
    if not files:  # its annotation's name may differ in case
        files = [found for suffix in IMAGE_SUFFIXES if (found := same_name(folder / f"{image_id}{suffix}"))]
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    named = folder / last
    if len(files) == 1 or (files and named not in files):
        if len(files) > 1:
            shown = " and ".join(file.name for file in files)
            logger.warning("%s: holds %s: the first is taken for image %s", folder, shown, image_id)
        return files[0]
    return named if last and not is_hidden(last) and is_file(named) else None


def corners_from_zero(raw: np.ndarray) -> bool | None:
    """Whether xmin and ymin, (M, 2) as the files have them, count from 0; None: none lies at the border."""
    at_zero, at_one = (int((np.abs(raw - first) < ROUNDED).sum()) for first in (0, 1))
    if not at_zero and not at_one:
        return None
    return at_zero > at_one


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
            fix = f"get it with: python tools/prepare_data.py voc{year} --data-root {data_root}"
        elif nested:
            fix = f"did you mean root: {nested}?"
        elif known := how_to_get(root):
            fix = known.removeprefix(": ")
        else:
            fix = "a VOC folder holds Annotations/, ImageSets/Main/ and JPEGImages/"
        raise UserError(f"{folder}: there is no such folder: {fix}")
