"""YOLO folders: images/NAME/*.jpg with labels/NAME/*.txt, or NAME/images and NAME/labels. Imports no torch.

A line is `class cx cy w h`, in fractions of the image as a viewer shows it (EXIF rotation applied);
`class x1 y1 x2 y2 x3 y3 ...`, a polygon, whose bounding box is taken; or, where data.yaml has `kpt_shape`, `class cx cy
w h` and keypoints, which are passed over. The class is a number that counts from 0; its name comes from data.yaml,
classes.txt or obj.names beside the folders. An image without a text file has no objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError, counted, did_you_mean, printable_logger
from configs.files import is_file, is_folder, read_lines, read_text
from configs.loading import parse_yaml
from datasets.columns import number_in, short
from datasets.findings import Mistakes, find
from datasets.images import image_file_size
from datasets.listing import by_plain_name, list_files, list_images, plain_name
from datasets.make_records import make_records
from datasets.records import Records

logger = printable_logger(__name__)

_LARGEST_FRACTION = 1.5
"""A centre or a side beyond this is not a fraction of the image that is a little too large, but pixels."""


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
    paths = list_images(images_folder)
    if not paths:
        raise UserError(f"{images_folder}: holds no image")
    names = [path.relative_to(images_folder).with_suffix("").as_posix() for path in paths]
    files = {
        path.relative_to(labels_folder).as_posix()[: -len(".txt")]: path
        for path in list_files(labels_folder, (".txt",))
    }
    left = by_plain_name(set(files) - set(names))
    for path, name in zip(paths, names, strict=True):
        for other in (name, f"{name}{path.suffix}"):  # a.jpg.txt
            if name not in files and (same := left.pop(plain_name(other), None)) is not None:
                files[name] = files.pop(same)
    lines = LabelReader(len(class_names), keypoint_numbers(root))
    images, boxes, labels, counts = [], [], [], []
    appear, mistakes = Counter(names), Mistakes()
    for path, name in zip(paths, names, strict=True):
        size, objects = (0, 0), []
        with mistakes.of("annotation-broken", files.get(name, path), image=path):
            size = image_file_size(path)
            objects = lines.read(files[name], size) if name in files else []
        # Images that differ in suffix only share a label file, but not an id.
        images.append((str(path), name if appear[name] == 1 else path.relative_to(images_folder).as_posix(), size))
        labels += [label for label, _ in objects]
        boxes += [box for _, box in objects]
        counts.append(len(objects))
    mistakes.raise_first()
    lines.report(f"{root}/{image_set}")
    _report_lonely(labels_folder, [files[name] for name in sorted(set(files) - set(names) - {"classes"})])
    return make_records(
        images=images,
        boxes=boxes,
        labels=labels,
        counts=counts,
        class_names=class_names,
        source=f"{root}/{image_set}",
        annotation_file=str(labels_folder / "{}.txt"),
        annotated=is_folder(labels_folder),
    )


def _report_lonely(folder: Path, files: list[Path]) -> None:
    for file in files:
        find("annotation-lonely", file)
    if files:
        unfit = counted(len(files), "label file", " fits no image", " fit no image")
        logger.warning("%s: %s, the first: %s", folder, unfit, files[0])


def read_class_names(root: Path, image_set: str) -> list[str] | None:
    """The folder's own class names in the order of their numbers, or None where it lists none.

    Of several files that do not list the same ones the first counts, which is said.
    """
    found: dict[Path, list[str]] = {}
    file, content = _data_yaml(root)
    if file is not None and content.get("names") is not None:
        found[file] = listed_names(content, file)
    labels = root / "labels"
    for file in (root / "classes.txt", root / "obj.names", labels / "classes.txt", labels / image_set / "classes.txt"):
        lines = [line.strip() for line in read_lines(file, "list of classes")] if is_file(file) else []
        while lines and not lines[-1]:
            lines.pop()
        if lines:
            found[file] = lines if found else checked_names(lines, file)
    first = next(iter(found), None)
    if first is None:
        return None
    if other := next((file for file, names in found.items() if names != found[first]), None):
        logger.warning("%s and %s do not list the same classes in the same order: the first counts", first, other)
    return found[first]


def image_folder(root: Path, image_set: str) -> Path:
    """Where the images of a set lie: images/NAME or NAME/images."""
    return _folders(root, image_set)[0]


def listed_names(content: Mapping[str, Any], file: Path) -> list[str]:
    """The class names of a data.yaml, of which `nc`, where it is there, is the number.

    Raises:
        UserError: it is not, or see `checked_names`.
    """
    names, count = checked_names(content["names"], file), content.get("nc")
    if count is not None and str(count).strip() not in (str(len(names)), f"{len(names)}.0"):
        raise UserError(f"{file}: nc is {short(count)}, but names lists {len(names)}: correct one of them")
    return names


def checked_names(names: Any, file: Path) -> list[str]:
    """The class names in a list, or in a mapping from their numbers.

    Raises:
        UserError: something else, a number is missing, or a name is empty, appears twice or is no text or number.
    """
    if isinstance(names, dict):
        numbered = {
            int(key) if isinstance(key, str) and key.isdecimal() else key: value for key, value in names.items()
        }
        if len(numbered) < len(names) or set(numbered) != set(range(len(names))):
            gap = min(set(range(len(names))) - set(numbered), default="a number")
            raise UserError(f"{file}: names must be numbered 0 to {len(names) - 1}: {gap} is missing or given twice")
        names = [numbered[number] for number in range(len(numbered))]
    if not isinstance(names, list):
        raise UserError(f"{file}: names is {short(names)}: give a list of names, or a mapping from their numbers")
    for number, name in enumerate(names):
        if type(name) not in (str, int, float) or not str(name).strip():
            raise UserError(f"{file}: the name of class {number} is {short(name)}: give a text")
    texts = [str(name).strip() for name in names]
    if len(set(texts)) < len(texts):
        twice = next(name for name in texts if texts.count(name) > 1)
        raise UserError(f"{file}: lists the class {short(twice)} more than once")
    return texts


def _data_yaml(root: Path) -> tuple[Path | None, dict[str, Any]]:
    """data.yaml and its content; (None, {}) where there is none."""
    for file in (root / "data.yaml", root / "data.yml"):
        if is_file(file):
            content = parse_yaml(read_text(file, "list of classes"), str(file))
            if content is not None and not isinstance(content, dict):
                raise UserError(f"{file}: is {short(content)}, not a mapping with names")
            return file, content or {}
    return None, {}


def keypoint_numbers(root: Path) -> int | None:
    """How many numbers of keypoints follow a box, by data.yaml's kpt_shape; None: the set has no keypoints."""
    file, content = _data_yaml(root)
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or any(type(n) is not int for n in shape)
        or shape[0] < 1
        or shape[1] not in (2, 3)
    ):
        raise UserError(f"{file}: kpt_shape is {short(shape)}: give [number of keypoints, 2 or 3]")
    return shape[0] * shape[1]


def _folders(root: Path, image_set: str) -> tuple[Path, Path]:
    pairs = [
        (root / "images" / image_set, root / "labels" / image_set),
        (root / image_set / "images", root / image_set / "labels"),
    ]
    for images, labels in pairs:
        if is_folder(images):
            return images, labels
    there = (
        sorted(path.name for path in (root / "images").iterdir() if path.is_dir()) if (root / "images").is_dir() else []
    )
    raise UserError(
        f"{pairs[0][0]}: there is no such folder{did_you_mean(image_set, there)}: "
        "a YOLO folder holds images/NAME/ and labels/NAME/"
    )


@dataclass
class LabelReader:
    """Reads label files, and gathers what is to be told about the whole set."""

    num_classes: int
    keypoint_numbers: int | None
    repeated: list[str] = field(default_factory=list)
    in_pixels: list[str] = field(default_factory=list)
    polygon: str = ""
    """The first line with a polygon."""
    polygon_lengths: set[int] = field(default_factory=set)
    all_keypoints: bool = True
    """Whether each polygon could be a box with keypoints."""
    keypoints: float = 0.0
    """How many these would be; one alone in its line says little, for it may be the third corner of a triangle."""
    all_tracks: bool = True
    """Whether each polygon could be a box with a score and the number of a track."""
    last_track: float = 0.0
    """The greatest of these numbers."""

    def read(self, path: Path, size: tuple[int, int]) -> list[tuple[int, tuple[float, ...]]]:
        """(label, box in pixels) of each line of a label file; a line that comes again is taken once."""
        objects: dict[tuple[int, tuple[float, ...]], None] = {}
        for number, line in enumerate(read_lines(path, "label file"), 1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            found = self._read_line(line, where, size)
            if found in objects:
                self.repeated.append(where)
                find("box-repeated", path, f"line {number}")
            objects[found] = None
        return list(objects)

    def _read_line(self, line: str, where: str, size: tuple[int, int]) -> tuple[int, tuple[float, ...]]:
        try:
            category, *numbers = map(number_in, line.split())
        except ValueError:
            raise UserError(f"{where}: {short(line.strip())} has something that is not a number") from None
        if not (category.is_integer() and 0 <= category < self.num_classes):
            raise UserError(f"{where}: class {category:g} is not one of 0 to {self.num_classes - 1}")
        if not all(abs(number) < 1e6 for number in numbers):
            raise UserError(f"{where}: {short(line.strip())}: a coordinate is not a finite number or no fraction")
        height, width = size
        count, expected = len(numbers), 4 + (self.keypoint_numbers or 0)
        if self.keypoint_numbers is not None and count not in (4, expected):
            raise UserError(f"{where}: has {count} numbers after the class, not {expected} (data.yaml's kpt_shape)")
        if count == 4 or self.keypoint_numbers is not None:
            cx, cy, w, h = numbers[:4]
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        elif count >= 6 and count % 2 == 0:
            box = (min(numbers[0::2]), min(numbers[1::2]), max(numbers[0::2]), max(numbers[1::2]))
        else:
            hint = ""
            if count > 4:
                hint = "; is the last a confidence?" if count == 5 else "; keypoints need kpt_shape in data.yaml"
            raise UserError(f"{where}: has {count} numbers after the class, not 4 (cx cy w h){hint}")
        if count > 4 and self.keypoint_numbers is None:
            self.polygon = self.polygon or where
            self.polygon_lengths.add(count)
            points = _keypoints(numbers)
            self.all_keypoints &= points > 0
            self.keypoints += points if points > 1 else 0.5
            self.all_tracks &= count == 6 and max(numbers[:5]) <= 1 <= numbers[5] and numbers[5].is_integer()
            self.last_track = max(self.last_track, numbers[-1])
        if max(map(abs, numbers[:4] if count in (4, expected) else numbers)) > _LARGEST_FRACTION:
            self.in_pixels.append(where)
        return int(category) + 1, (box[0] * width, box[1] * height, box[2] * width, box[3] * height)

    def report(self, source: str) -> None:
        """Log what was found in all files.

        Raises:
            UserError: the polygons are boxes with keypoints.
        """
        if self.repeated:
            logger.warning(
                "%s: %s twice in their file, taken once; the first: %s",
                source, counted(len(self.repeated), "line", " comes", " come"), self.repeated[0],
            )  # fmt: skip
        if self.in_pixels:
            logger.warning(
                "%s: %s to be in pixels, the first: %s: a YOLO line holds fractions of the image (divide x and w by "
                "its width, y and h by its height)",
                source, counted(len(self.in_pixels), "object", " seems", " seem"), self.in_pixels[0],
            )  # fmt: skip
        if self.polygon and self.all_tracks and self.last_track > 1:
            raise UserError(
                f"{self.polygon}: seems to hold a box, a score and the number of a track, not a polygon, as all such "
                "lines of this set: keep the first five numbers of each line"
            )
        if self.polygon and self.all_keypoints and self.keypoints >= 2 and len(self.polygon_lengths) == 1:
            raise UserError(
                f"{self.polygon}: holds a box and keypoints inside it, not a polygon, as all such lines of this set: "
                "give kpt_shape: [number of keypoints, 2 or 3] in data.yaml"
            )


def _keypoints(numbers: list[float]) -> int:
    """How many points follow the box that the first four numbers describe; 0: they do not all lie inside it.

    A point at 0 0 is absent. Four corners of a turned box (YOLO OBB) are no box and two points.
    """
    corners = zip(*(numbers[i : i + 2] for i in range(0, 8, 2)), strict=True)
    if len(numbers) == 8 and all(abs(a - b + c - d) < 1e-3 for a, b, c, d in corners):  # a parallelogram
        return 0
    cx, cy, w, h = numbers[:4]
    rest = numbers[4:]
    for step in (2, 3):
        if len(rest) % step:
            continue
        points = [(rest[i], rest[i + 1]) for i in range(0, len(rest), step)]
        visible = step == 2 or all(v in (0.0, 1.0, 2.0) for v in rest[2::3])
        seen = [(x, y) for x, y in points if x or y]
        if visible and all(abs(x - cx) <= w / 2 and abs(y - cy) <= h / 2 for x, y in seen):
            return len(points)
    return 0
