"""One annotation file for each image, wherever it lies: VOC's XML, YOLO's and KITTI's text, labelme's and
Supervisely's JSON.

`read_folder` takes all images below a folder and finds each one's annotation by its name: beside it (labelImg,
Roboflow, labelme, CVAT's YOLO), or in a folder that mirrors the images' (images/a.jpg and labels/a.txt,
JPEGImages/a.jpg and Annotations/a.xml). Boxes: VOC's count from 1, unless `zero_based`; all others are continuous and
count from 0. Imports no torch.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from configs.errors import UserError, counted, did_you_mean
from configs.files import is_file, read_json, read_lines, read_text
from datasets.collect import ImageFinder, Item, Object, Unlabelled, images_below, records_of, walk
from datasets.columns import LARGEST, number_in, short
from datasets.findings import Mistakes, find
from datasets.images import image_file_size
from datasets.listing import IMAGE_SUFFIXES, list_files, plain_name, without_image_suffix, without_upload_prefix
from datasets.records import Records, logger
from datasets.voc import read_annotation, read_image_set
from datasets.yolo import LabelReader, keypoint_numbers, read_class_names

FileFormat = Literal["voc", "yolo", "labelme", "supervisely", "kitti"]
Value = TypeVar("Value")

SUFFIXES: dict[str, str] = {
    "voc": ".xml", "yolo": ".txt", "labelme": ".json", "supervisely": ".json", "kitti": ".txt",
}  # fmt: skip

_PNG_HEADER = 64
"""Bytes of a PNG, within which its size lies."""

_CONTENT_WORDS = {
    "images", "image", "img", "imgs", "jpegimages", "photos", "pictures", "labels", "label", "annotations",
    "annotation", "ann", "anns", "xml", "xmls", "txt", "json", "data", "image_2", "label_2",
}  # fmt: skip
"""Folder names that say what lies in them and not which part of the set: they differ between image and annotation."""

_NOT_LABELS = {"classes.txt", "labelmap.txt", "obj.names", "notes.json", "meta.json", "readme.txt"}


def read_folder(
    root: Path,
    file_format: FileFormat,
    *,
    images: Path | None = None,
    image_list: Path | None = None,
    only: Sequence[str] | None = None,
    zero_based: bool = False,
    unlabelled: Unlabelled | None = None,
    class_names: Sequence[str] | None = None,
) -> Records:
    """The images below a folder with the objects of their annotation files.

    Args:
        root: where images and annotation files lie, at any depth.
        file_format: of the annotation files.
        images: the folder below `root` whose images are the set; `folder/*`: only those directly in it. Default: all.
        image_list: text file that names the set's images, one a line.
        only: of these images those with these names (without suffix), in this order.
        zero_based: voc: the XML counts pixels from 0.
        unlabelled: what images without annotation file are. Default: a mistake; yolo: images without objects.
        class_names: yolo: names of the class numbers where the folder lists none.

    Raises:
        UserError: an image or annotation is missing or broken; names file and object (from 0) or line (from 1).
    """
    chosen = chosen_images(root, images, image_list)
    if only is not None:
        chosen = _named(chosen, only, images or root)
    everything = images_below(root)
    candidates = annotation_files(root, file_format)
    files = pair(everything, candidates, root, named=file_format == "supervisely")
    if file_format == "yolo":
        class_names = read_class_names(root, "train") or class_names
        if not class_names and any(image in files for image in chosen):
            raise UserError(
                f"{root}: has no data.yaml, classes.txt or obj.names: "
                "list the names in data.classes, in the order of their numbers"
            )
        unlabelled = unlabelled or ("empty" if any(image in files for image in chosen) else None)
    source = str(image_list or images or root)
    if file_format == "yolo":
        names = list(class_names or [])
        labels = LabelReader(len(names), keypoint_numbers(root))
        items = _read_all(chosen, files, lambda image, file: _read_yolo(image, file, labels, names))
        labels.report(source)
    else:
        known = _supervisely_names(root) if file_format == "supervisely" else None
        items = _read_all(chosen, files, lambda image, file: _read_item(image, file, file_format, zero_based, known))
        class_names = known
    _find_lonely(candidates, files)
    pattern = _common_pattern([image for image in chosen if image in files], files, SUFFIXES[file_format], root)
    return records_of(
        items,
        root=root,
        source=source,
        annotation_file=pattern,
        unlabelled=unlabelled,
        class_names=class_names if file_format in ("yolo", "supervisely") else None,
    )


def chosen_images(root: Path, images: Path | None, image_list: Path | None) -> list[Path]:
    """The set's images: all below a folder, those directly in it (`folder/*`), or those that a list names."""
    if image_list is not None:
        return listed_images(image_list, root)
    if images is None:
        return images_below(root)
    return images_below(images.parent, "*") if images.name == "*" else images_below(images)


def _named(images: Sequence[Path], names: Sequence[str], folder: Path) -> list[Path]:
    path_of = {image.stem: image for image in images}
    path_of |= {image.relative_to(folder).with_suffix("").as_posix(): image for image in images}
    missing = next((name for name in names if name not in path_of), None)
    if missing is not None:
        raise UserError(f"{folder}: has no image {missing}, though its list names it")
    return [path_of[name] for name in names]


def unlisted_images(root: Path) -> list[str]:
    """The names of the images in JPEGImages/ that no list in ImageSets/Main names."""
    sets = sorted(path.stem for path in list_files(root / "ImageSets/Main", (".txt",), recursive=False))
    listed = {name for image_set in sets for name in read_image_set(root, image_set)}
    folder = root / "JPEGImages"
    names = [image.relative_to(folder).with_suffix("").as_posix() for image in images_below(folder)]
    return [name for name in names if name not in listed]


def listed_images(path: Path, root: Path) -> list[Path]:
    """The images that a text file names, one a line, by their paths (of any machine) or bare names.

    Raises:
        UserError: the file is missing or empty, or an image is not there; names the line.
    """
    finder, found, times = ImageFinder(root), {}, 0
    for number, line in enumerate(read_lines(path, "image list"), 1):
        if line.strip():
            image = finder(line.strip()) or finder(line.strip().strip("\"'"))
            if image is None:
                raise UserError(f"{path} line {number}: {line.strip()} is not among the images below {root}")
            found[image] = None
            times += 1
    if not found:
        raise UserError(f"{path}: lists no image")
    if times > len(found):
        again = counted(times - len(found), "image")
        logger.warning("%s: lists %s more than once; each is taken once", path, again)
    return list(found)


# ---------------------------------------------------------------------------------------------- pairs


def annotation_files(root: Path, file_format: str) -> list[Path]:
    """The files below a folder that may be annotations of a format, by their names."""
    suffix = SUFFIXES[file_format]
    return [path for path in walk(root) if path.suffix.lower() == suffix and path.name.lower() not in _NOT_LABELS]


def pair(images: Sequence[Path], files: Sequence[Path], root: Path, *, named: bool = False) -> dict[Path, Path]:
    """Image -> its annotation file: beside it, in a folder that mirrors its own, or the only one of its name.

    The last is found too where case or the composition of letters differ, behind an image's suffix (a.jpg.xml), or with
    the prefix of an upload.

    Args:
        images, files: what there is below `root`.
        root: the folder.
        named: the annotation's name is the image's whole name and a suffix (a.jpg.json), where any file's is.
    """
    named = named and any(plain_name(path.stem).endswith(IMAGE_SUFFIXES) for path in files)
    beside = {(path.parent, path.stem): path for path in files}
    mirrored: dict[tuple, list[Path]] = defaultdict(list)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        mirrored[_part_of_set(path, root), path.stem].append(path)
        whole = plain_name(path.stem)
        bare = without_image_suffix(whole)  # a.jpg.xml
        for stem in {whole, bare, without_upload_prefix(bare)}:
            by_stem[stem].append(path)
    key_of = {image: image.name if named else image.stem for image in images}
    times = Counter(map(plain_name, key_of.values()))
    pairs = {}
    for image, key in key_of.items():
        places = mirrored.get((_part_of_set(image, root), key), [])
        if (image.parent, key) in beside:
            pairs[image] = beside[image.parent, key]
        elif len(places) == 1:
            pairs[image] = places[0]
        elif times[plain := plain_name(key)] == 1 and len(by_stem.get(plain, [])) == 1:
            pairs[image] = by_stem[plain][0]
    return _as_named(pairs)


def _find_lonely(candidates: Iterable[Path], pairs: dict[Path, Path]) -> None:
    """Find the annotation files that fit no image, beside others that do."""
    paired = set(pairs.values())
    folders = {path.parent for path in paired}
    for path in candidates:
        if path not in paired and path.parent in folders:
            find("annotation-lonely", path)


def _as_named(pairs: dict[Path, Path]) -> dict[Path, Path]:
    """The pairs; where images that differ in suffix share a file that names one of them, that one alone has it."""
    shared = {file for file, times in Counter(pairs.values()).items() if times > 1 and file.suffix.lower() != ".txt"}
    for file in shared:
        owners = {image.name for image, its_file in pairs.items() if its_file == file}
        with suppress(UserError):  # its reader says what is wrong
            found = re.search(r"<filename>\s*(.*?)\s*</filename>|\"imagePath\"\s*:\s*\"(.*?)\"", read_text(file))
            named = re.split(r"[/\\]", (found[1] or found[2]) if found else "")[-1]
            if named in owners:
                pairs = {image: its for image, its in pairs.items() if its != file or image.name == named}
    return pairs


def _part_of_set(path: Path, root: Path) -> tuple[str, ...]:
    """The folders of a path without those that only tell images from annotations."""
    return tuple(name for name in path.relative_to(root).parts[:-1] if name.lower() not in _CONTENT_WORDS)


def _common_pattern(images: list[Path], files: dict[Path, Path], suffix: str, root: Path) -> str:
    """The annotation files' path with `{}` for the image's name, for messages."""
    folders = {files[image].parent for image in images}
    folder = folders.pop() if len(folders) == 1 else root
    return str(folder / f"{{}}{suffix}")


# ---------------------------------------------------------------------------------------------- one file


def _read_all(images: Sequence[Path], files: dict[Path, Path], read: Callable[[Path, Path | None], Item]) -> list[Item]:
    items, mistakes = list[Item](), Mistakes()
    for image in images:
        file = files.get(image)
        with mistakes.of("annotation-broken", file or image, image=image):
            items.append(read(image, file))
    mistakes.raise_first()
    return items


def _read_item(image: Path, file: Path | None, file_format: str, zero_based: bool, known: Sequence[str] | None) -> Item:
    if file is None:
        return Item(image, None)
    if file_format == "voc":
        return _read_voc(image, file, zero_based)
    if file_format == "kitti":
        return _read_kitti(image, file)
    content = read_json(file, "annotation file")
    if file_format == "labelme":
        return _read_labelme(image, file, content)
    return _read_supervisely(image, file, content, known)


def _read_yolo(image: Path, file: Path | None, labels: LabelReader, names: Sequence[str]) -> Item:
    size = image_file_size(image)  # the fractions are of the image as a viewer shows it
    if file is None:
        return Item(image, None, size)
    lines = labels.read(file, size)
    return Item(image, [Object(names[label - 1], (x1, y1, x2, y2)) for label, (x1, y1, x2, y2) in lines], size)


def _read_voc(image: Path, file: Path, zero_based: bool) -> Item:
    annotation = read_annotation(file)
    shift = 0 if zero_based else 1
    objects = []
    for thing in annotation.objects:
        x1, y1, x2, y2 = thing.box
        objects.append(Object(thing.name, (x1 - shift, y1 - shift, x2, y2), thing.difficult, thing.truncated))
    return Item(image, objects, annotation.size)


def _read_labelme(image: Path, file: Path, content: Any) -> Item:
    """Rectangles whichever corners were clicked; circles and outlines as boxes around them; points are no objects."""
    named = re.split(r"[/\\]", str(content.get("imagePath") or image.name) if isinstance(content, dict) else "")[-1]
    if named and Path(named).stem != image.stem and is_file(image.parent / named):  # else the image was renamed
        logger.warning("%s: is taken for %s, whose name it has, but is of %s by its imagePath", file, image.name, named)
        find("filename-differs", file, value=named)
    objects, passed_over = [], Counter()
    for number, shape in enumerate(typed(content, "shapes", list, f"{file}: not a labelme file")):
        where = f"{file} object {number}"
        name = class_in(typed(shape, "label", object, where), f"{where}: has no label")
        kind = typed(shape, "shape_type", str, where, default="polygon")
        if kind in ("point", "points", "line", "linestrip"):
            passed_over[kind] += 1
            continue
        points = points_of(shape.get("points"), where)
        if kind == "circle" and len(points) == 2:
            (x, y), (edge_x, edge_y) = points
            radius = ((edge_x - x) ** 2 + (edge_y - y) ** 2) ** 0.5
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        objects.append(Object(name, box_around(points, where)))
    if passed_over:
        logger.warning(
            "%s: %s without a box (points, lines): passed over", file, counted(sum(passed_over.values()), "shape")
        )
    return Item(image, objects, declared_size(content.get("imageHeight"), content.get("imageWidth")))


def _read_supervisely(image: Path, file: Path, content: Any, known: Sequence[str] | None) -> Item:
    """Any figure with an outer outline, and bitmaps, as the box around it; points are no objects."""
    objects = []
    for number, thing in enumerate(typed(content, "objects", list, f"{file}: not a Supervisely annotation")):
        where = f"{file} object {number}"
        name = class_in(typed(thing, "classTitle", object, where), f"{where}: has no classTitle")
        if known is not None and name not in known:
            raise UserError(f"{where}: class {name} is not among the classes of meta.json{did_you_mean(name, known)}")
        outline = typed(typed(thing, "points", dict, where, default={}), "exterior", list, where, default=[])
        kind = typed(thing, "geometryType", str, where, default="figure")
        if not outline and thing.get("bitmap") is not None:  # older files have no geometryType
            objects.append(Object(name, _bitmap_box(typed(thing, "bitmap", dict, where), where)))
        elif not outline:
            raise UserError(f"{where}: is a {kind} without outline: only rectangles, polygons and bitmaps are read")
        elif kind != "point":
            objects.append(Object(name, box_around(points_of(outline, where), where)))
    size = typed(content, "size", dict, str(file), default={})
    return Item(image, objects, declared_size(size.get("height"), size.get("width")))


def _bitmap_box(bitmap: Mapping[str, Any], where: str) -> tuple[float, float, float, float]:
    """The box of a mask: a PNG as large as the object, compressed, and the place of its corner."""
    ((x, y),) = points_of([typed(bitmap, "origin", list, where)], where)
    try:
        png = zlib.decompressobj().decompress(base64.b64decode(typed(bitmap, "data", str, where)), _PNG_HEADER)
        width, height = struct.unpack(">II", png[16:24])
    except (ValueError, zlib.error, struct.error):
        raise UserError(f"{where}: its bitmap is no compressed PNG") from None
    return x, y, x + width, y + height


def _read_kitti(image: Path, file: Path) -> Item:
    """KITTI's lines: class, truncation, occlusion, angle, four sides of the box, and what belongs to three dimensions.

    Regions that are only said to hold unlabelled objects (DontCare) are no objects.
    """
    objects = []
    for number, line in enumerate(read_lines(file, "label file"), 1):
        words = line.split()
        if not words or words[0] == "DontCare":
            continue
        try:
            if len(words) not in (15, 16):
                raise ValueError
            truncated, x1, y1, x2, y2 = numbers_in(map(number_in, (words[1], *words[4:8])))
        except ValueError:
            raise UserError(f"{file} line {number}: {short(line.strip())}: a line of KITTI has 15 values") from None
        objects.append(Object(words[0], (x1, y1, x2, y2), truncated=truncated > 0))
    return Item(image, objects)


def _supervisely_names(root: Path) -> list[str] | None:
    """The project's classes in the order of its meta.json; None where there is none."""
    for folder in (root, *root.parents[:2]):
        if is_file(folder / "meta.json"):
            file = folder / "meta.json"
            classes = typed(read_json(file, "project file"), "classes", list, str(file), default=[])
            places = [f"{file} class {number}" for number in range(len(classes))]
            return [typed(item, "title", str, place) for item, place in zip(classes, places, strict=True)]
    return None


# ---------------------------------------------------------------------------------------------- values


def points_of(values: Any, where: str) -> list[tuple[float, float]]:
    """Pairs of numbers.

    Raises:
        UserError: they are none.
    """
    try:
        return [(x, y) for x, y in map(numbers_in, values)]
    except (TypeError, ValueError):
        raise UserError(f"{where}: points {short(values)} are not pairs of numbers") from None


def numbers_in(values: Iterable[Any]) -> list[float]:
    """Values of JSON that are finite numbers no larger than an image may be; ValueError: another value."""
    numbers = list(values)
    if any(type(value) not in (int, float) or not abs(value) <= LARGEST for value in numbers):
        raise ValueError(f"{short(numbers)} are not numbers of pixels")
    return list(map(float, numbers))


def typed(content: Any, key: str, kind: type[Value], where: str, default: Value | None = None) -> Value:
    """The value of a key of a JSON object.

    Args:
        content: the object.
        key: its key.
        kind: what the value must be; of bool and int each is taken for itself only.
        where: for messages: the file and the place in it.
        default: in place of a missing key and of null; None: these are mistakes.

    Raises:
        UserError: `content` is no object, or its value another one.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: is {short(content)}, not an object {{...}}")
    value = content.get(key)
    if value is None and default is not None:
        return default
    if value is None or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = {str: "a text", dict: "an object {...}", list: "a list [...]"}.get(kind, "a value")
        raise UserError(f"{where}: {key} is {short(value) if key in content else 'missing'}: give {what}")
    return value


def class_in(value: Any, fault: str) -> str:
    """The class that a value of JSON names: a text or a whole number; `fault` is the message where it is none."""
    if type(value) not in (str, int) or not str(value).strip():
        raise UserError(fault)
    return str(value).strip()


def box_around(points: Sequence[tuple[float, float]], where: str) -> tuple[float, float, float, float]:
    """The box around some points, whatever their order."""
    if len(points) < 2:
        raise UserError(f"{where}: has {len(points)} points: a box needs two corners, an outline three points")
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def declared_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(H, W) as a file declares it; None where it does not."""
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 and max(size) <= LARGEST else None
