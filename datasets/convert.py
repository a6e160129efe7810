"""Writes a set as VOC, COCO or YOLO folders, and says what the format cannot hold. Imports no torch.

Every layout that is written is one that this project, and the tools that made the format popular, read. Images are
copied as they are. Coordinates stay what they are: VOC's count from 1 and may have decimals, COCO's are x, y, width
and height, both to a billionth of a pixel; YOLO's fractions have all their digits.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np

from configs.errors import UserError, counted
from datasets.images import image_file_size
from datasets.records import Records

Format = Literal["voc", "coco", "yolo"]


def convert(parts: Mapping[str, Records], out: Path, to: Format) -> None:
    """Write a data set in another format.

    Args:
        parts: the images of train, val, test or what the parts are called; all with the same classes.
        out: a new folder.
        to: the format.

    Raises:
        UserError: the folder holds something, or an image cannot be expressed in the format.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already, and nothing is written over: name a new folder")
    names = new_names(parts)
    for records in parts.values():  # before anything is written
        if to == "yolo":
            _check_upright(records)
        control = next((name for name in records.class_names if not _WRITABLE.fullmatch(name)), None)
        if control is not None:
            raise UserError(f"{records.source}: the class {control!r} holds control characters: rename it")
        blanks = next((name for name in records.class_names if name != " ".join(name.split())), None)
        if to == "voc" and blanks is not None:
            raise UserError(f"{records.source}: voc does not keep the blanks of the class {blanks!r}: rename it")
    if to != "coco":
        _check_once(parts, to)
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}[to](parts, names, unfinished)
    if out.exists():
        out.rmdir()
    unfinished.rename(out)


def _check_once(parts: Mapping[str, Records], to: Format) -> None:
    """VOC and YOLO have one annotation file for an image (YOLO: in each part): refuse an image with two."""
    seen: dict[tuple[str, str], list] = {}
    for part, records in parts.items():
        for i, path in enumerate(records.image_paths.tolist()):
            objects = records.objects(i)
            found = [records.boxes[objects].tolist(), records.labels[objects].tolist()]
            if seen.setdefault((part if to == "yolo" else "", path), found) != found:
                raise UserError(
                    f"{path}: is listed twice, with different objects: {to} has one annotation file for an image: join "
                    "the two, or convert to coco"
                )


_WRITABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]*")
"""Texts that XML, YAML and lists of names can hold."""


def new_names(parts: Mapping[str, Records]) -> dict[str, str]:
    """The file name in the new set of each image's path: its own, with its folder's before it where names collide."""
    paths = [Path(path) for records in parts.values() for path in records.image_paths.tolist()]
    counts: dict[str, int] = {}
    for path in paths:
        counts[path.stem.lower()] = counts.get(path.stem.lower(), 0) + 1
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        name = path.name if counts[path.stem.lower()] == 1 else f"{path.parent.name}_{path.name}"
        number = 2
        stem = Path(name).stem
        while Path(name).stem.lower() in taken:
            name, number = f"{stem}_{number}{path.suffix}", number + 1
        taken.add(Path(name).stem.lower())
        names[str(path)] = name
    return names


def losses(parts: Mapping[str, Records], to: Format) -> list[str]:
    """What the format cannot hold of these sets, one sentence each."""
    flags = {
        name: sum(int(getattr(records, name).sum()) for records in parts.values())
        for name in ("difficult", "truncated", "iscrowd")
    }
    lacking = {"voc": ("iscrowd",), "coco": ("difficult", "truncated"), "yolo": ("difficult", "truncated", "iscrowd")}
    words = {"difficult": "difficult", "truncated": "truncated", "iscrowd": "a crowd"}
    found = [
        f"{counted(flags[name], 'object')} marked {words[name]}: {to} has no such mark: ordinary objects there"
        for name in lacking[to]
        if flags[name]
    ]
    if to != "coco":
        outlines = sum(int((~np.isclose(records.area, _box_area(records))).sum()) for records in parts.values())
        if outlines:
            found.append(f"{counted(outlines, 'object')} with an outline's area: {to} keeps boxes only")
    first = next(iter(parts.values()))
    if to == "voc":
        shown = {records.class_names[label - 1] for records in parts.values() for label in np.unique(records.labels)}
        if first.class_names != sorted(shown):
            found.append("voc has no list of the classes: their order is lost, and classes without objects are")
    if to != "coco" and first.category_ids.tolist() != list(range(1, len(first.class_names) + 1)):
        found.append(f"the categories' ids: {to} numbers the classes or names them")
    unlabelled = sum(not records.annotated for records in parts.values())
    if unlabelled:
        found.append("a part without annotations is written as images without objects")
    return found


def _box_area(records: Records) -> np.ndarray:
    return np.clip(records.boxes[:, 2:] - records.boxes[:, :2], 0, None).prod(axis=1)


def _copy(path: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


# ---------------------------------------------------------------------------------------------- VOC


def _write_voc(parts: Mapping[str, Records], names: Mapping[str, str], out: Path) -> None:
    """Annotations/, JPEGImages/ and ImageSets/Main/PART.txt."""
    (out / "Annotations").mkdir()
    (out / "ImageSets/Main").mkdir(parents=True)
    for part, records in parts.items():
        stems = []
        for i, path in enumerate(records.image_paths.tolist()):
            name = names[path]
            stems.append(Path(name).stem)
            _copy(path, out / "JPEGImages" / name)
            (out / "Annotations" / f"{stems[-1]}.xml").write_text(_xml(records, i, name), encoding="utf-8")
        (out / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _xml(records: Records, i: int, name: str) -> str:
    height, width = records.image_size(i)
    lines = [
        "<annotation>",
        f"  <filename>{escape(name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    part = records.objects(i)
    for m in range(part.start, part.stop):
        x1, y1, x2, y2 = records.boxes[m].tolist()
        sides = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
        lines += [
            "  <object>",
            f"    <name>{escape(records.class_names[records.labels[m] - 1])}</name>",
            f"    <truncated>{int(records.truncated[m])}</truncated>",
            f"    <difficult>{int(records.difficult[m])}</difficult>",
            f"    <bndbox>{''.join(f'<{side}>{_number(value)}</{side}>' for side, value in sides.items())}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _number(value: float) -> int | float:
    """Pixels to a billionth: a whole number that came from fractions is whole again, not 314.99999999999994."""
    value = round(float(value), 9)
    return int(value) if value.is_integer() else value


# ---------------------------------------------------------------------------------------------- COCO


def _write_coco(parts: Mapping[str, Records], names: Mapping[str, str], out: Path) -> None:
    """images/PART/ and annotations/instances_PART.json."""
    (out / "annotations").mkdir()
    first_image, first_object, ids = 1, 1, _category_ids(parts)
    for part, records in parts.items():
        for path in records.image_paths.tolist():
            _copy(path, out / "images" / part / names[path])
        content = _coco_content(records, names, ids, first_image, first_object)
        text = json.dumps(content, ensure_ascii=False)
        (out / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")
        first_image, first_object = first_image + len(records), first_object + len(records.labels)


def _category_ids(parts: Mapping[str, Records]) -> list[Any]:
    """One id for each class, the same in all parts: those of the set's own files where they can be kept, else 1..K.

    Readers take classes in the order of their ids; a class that a part's file lacks has a negative one there.
    """
    of_parts = zip(*(records.category_ids.tolist() for records in parts.values()), strict=True)
    ids = [next((identity for identity in found if not str(identity).startswith("-")), None) for found in of_parts]
    same_type = None not in ids and len(set(map(type, ids))) == 1
    return ids if same_type and ids == sorted(set(ids)) else list(range(1, len(ids) + 1))  # type: ignore[type-var]


def _coco_content(
    records: Records, names: Mapping[str, str], ids: Sequence[Any], first_image: int, first_object: int
) -> dict:
    images = [
        {"id": first_image + i, "file_name": names[path], "height": int(height), "width": int(width)}
        for i, (path, (height, width)) in enumerate(
            zip(records.image_paths.tolist(), records.sizes.tolist(), strict=True)
        )
    ]
    owners = records.image_of_object()
    annotations = []
    for m, (x1, y1, x2, y2) in enumerate(records.boxes.tolist()):
        annotations.append(
            {
                "id": first_object + m,
                "image_id": first_image + int(owners[m]),
                "category_id": ids[records.labels[m] - 1],
                "bbox": [_number(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _number(records.area[m]),
                "iscrowd": int(records.iscrowd[m]),
            }
        )
    categories = [{"id": ids[k], "name": name} for k, name in enumerate(records.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


# ---------------------------------------------------------------------------------------------- YOLO


def _write_yolo(parts: Mapping[str, Records], names: Mapping[str, str], out: Path) -> None:
    """images/PART/, labels/PART/ and data.yaml."""
    class_names: Sequence[str] = []
    for part, records in parts.items():
        class_names = records.class_names
        labels = out / "labels" / part
        labels.mkdir(parents=True)
        for i, path in enumerate(records.image_paths.tolist()):
            _copy(path, out / "images" / part / names[path])
            lines = _yolo_lines(records, i, image_file_size(path))
            (labels / f"{Path(names[path]).stem}.txt").write_text("".join(lines), encoding="utf-8")
    listed = "".join(f"  {k}: {json.dumps(name, ensure_ascii=False)}\n" for k, name in enumerate(class_names))
    keys = "".join(f"{part}: images/{part}\n" for part in parts)
    (out / "data.yaml").write_text(f"{keys}names:\n{listed}", encoding="utf-8")


def _yolo_lines(records: Records, i: int, size: tuple[int, int]) -> list[str]:
    height, width = size
    lines = []
    part = records.objects(i)
    for label, (x1, y1, x2, y2) in zip(records.labels[part].tolist(), records.boxes[part].tolist(), strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label - 1} {' '.join(map(repr, values))}\n")
    return lines


def _check_upright(records: Records) -> None:
    """YOLO's fractions are of the image as a viewer shows it: refuse boxes that were drawn on it lying on its side."""
    for path, (height, width) in zip(records.image_paths.tolist(), records.sizes.tolist(), strict=True):
        shown = image_file_size(path)
        if image_file_size(path, (height, width)) != shown:
            raise UserError(
                f"{path}: its boxes were drawn on the image as it is stored, and viewers turn it (EXIF): YOLO has no "
                "way to say so: convert to voc or coco, or turn the image and its boxes for good"
            )
