"""YOLO folders: images/NAME/*.jpg with labels/NAME/*.txt, or NAME/images and NAME/labels. Imports no torch.

A line is `class cx cy w h`, in fractions of the image as a viewer shows it (EXIF rotation applied), or
`class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose bounding box is taken. The class is a number that counts from 0; its
name comes from data.yaml, classes.txt or obj.names beside the folders. An image without a text file has no objects.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from configs.errors import UserError, did_you_mean
from datasets.images import IMAGE_SUFFIXES, image_file_size
from datasets.records import Records, make_records


def read_yolo(root: str | Path, image_set: str, *, class_names: list[str] | None = None) -> Records:
    """The set `image_set` of a YOLO folder.

    Args:
        root: the folder that holds images/ and labels/.
        image_set: train, val, ...
        class_names: names of the class numbers where the folder has no list of its own.

    Raises:
        UserError: a folder or the class names are missing, or a line is malformed; names file and line (from 1).
    """
    root = Path(root)
    images_folder, labels_folder = _folders(root, image_set)
    class_names = read_class_names(root, image_set) or class_names
    if not class_names:
        raise UserError(
            f"{root}: has no data.yaml, classes.txt or obj.names: "
            "list the names in data.classes, in the order of their numbers"
        )
    paths = sorted(path for path in images_folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{images_folder}: holds no image")
    images, boxes, labels, counts = [], [], [], []
    for path in paths:
        size = image_file_size(path)
        name = path.relative_to(images_folder).with_suffix("")
        objects = _read_lines(labels_folder / f"{name}.txt", size, len(class_names))
        images.append((str(path), name.as_posix(), size))
        labels += [label for label, _ in objects]
        boxes += [box for _, box in objects]
        counts.append(len(objects))
    return make_records(
        images=images,
        boxes=boxes,
        labels=labels,
        counts=counts,
        class_names=class_names,
        source=f"{root}/{image_set}",
        annotation_file=str(labels_folder / "{}.txt"),
        annotated=labels_folder.is_dir(),
    )


def read_class_names(root: Path, image_set: str) -> list[str] | None:
    """The folder's own class names in the order of their numbers, or None where it lists none."""
    for file in (root / "data.yaml", root / "data.yml"):
        if file.is_file():
            try:
                names = (yaml.safe_load(file.read_text()) or {}).get("names")
            except yaml.YAMLError as error:
                raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
            if isinstance(names, dict):
                if sorted(names) != list(range(len(names))):
                    raise UserError(f"{file}: names must be numbered 0 to {len(names) - 1}")
                names = [names[number] for number in range(len(names))]
            if names:
                return [str(name) for name in names]
    labels = root / "labels"
    for file in (root / "classes.txt", root / "obj.names", labels / "classes.txt", labels / image_set / "classes.txt"):
        if file.is_file():
            return [line.strip() for line in file.read_text().splitlines() if line.strip()]
    return None


def _folders(root: Path, image_set: str) -> tuple[Path, Path]:
    pairs = [
        (root / "images" / image_set, root / "labels" / image_set),
        (root / image_set / "images", root / image_set / "labels"),
    ]
    for images, labels in pairs:
        if images.is_dir():
            return images, labels
    there = (
        sorted(path.name for path in (root / "images").iterdir() if path.is_dir()) if (root / "images").is_dir() else []
    )
    raise UserError(
        f"{pairs[0][0]}: there is no such folder{did_you_mean(image_set, there)}: "
        "a YOLO folder holds images/NAME/ and labels/NAME/"
    )


def _read_lines(path: Path, size: tuple[int, int], num_classes: int) -> list[tuple[int, tuple[float, ...]]]:
    """(label, box in pixels) of each line of a label file; none where there is no file."""
    if not path.is_file():
        return []
    objects = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            objects.append(_read_line(line, f"{path} line {number}", size, num_classes))
    return objects


def _read_line(line: str, where: str, size: tuple[int, int], num_classes: int) -> tuple[int, tuple[float, ...]]:
    try:
        category, *numbers = (float(field) for field in line.split())
    except ValueError:
        raise UserError(f"{where}: {line.strip()!r} has something that is not a number") from None
    if category not in range(num_classes):
        raise UserError(f"{where}: class {category:g} is not one of 0 to {num_classes - 1}")
    height, width = size
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        box = (min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2]))
    else:
        raise UserError(f"{where}: has {len(numbers)} numbers after the class, not 4 (cx cy w h)")
    return int(category) + 1, (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
