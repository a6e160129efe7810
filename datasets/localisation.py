"""Localisation sets: images of one class each with the boxes of its objects (He et al. 2016, App. C). Imports no torch.

Coordinates: ImageNet's XML counts pixels from 0 and includes both ends, as its official evaluation does: pixel p covers
[p, p + 1], so 1 is added to the far corner. Tiny-ImageNet's are ImageNet's, scaled down: edges, taken as they are. Of
what the files hold,
- boxes of at most one pixel's width or height are not trained on, and count as they are in the evaluation;
- images without an object are left out;
- grey images are read as RGB, three equal channels.
Each is reported once, in one line (of grey images, where reading their headers is cheap: Tiny-ImageNet).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from configs.errors import UserError, counted, did_you_mean
from configs.files import read_lines
from configs.localisation import LocalisationSourceConfig
from datasets.columns import number_in
from datasets.folders import find_class, list_folder, read_unlabelled
from datasets.images import image_file_size
from datasets.listing import is_hidden, is_image, leads_to_folder, list_files
from datasets.make_records import make_records
from datasets.records import Records, logger
from datasets.voc import read_annotation


class _Found(NamedTuple):
    """One annotated image."""

    path: Path
    size: tuple[int, int]
    objects: list[tuple[str, tuple[float, float, float, float]]]
    """Class and box of each, x1 y1 x2 y2 in continuous pixels."""


def read_localisation(
    source: LocalisationSourceConfig, data_root: Path, class_names: list[str] | None = None
) -> Records:
    """The annotated images of a split, in the order of their classes and names; of split test all, without boxes.

    Args:
        source: layout and place.
        data_root: where relative paths start.
        class_names: wnids in the order of their labels; None: those that are annotated, sorted.

    Raises:
        UserError: a file is missing or broken; names the file and the object (from 0).
    """
    root = data_root / source.root
    if source.split == "test":
        return _read_test(_folder(source.images, root / "Data/CLS-LOC/test", data_root), class_names or [])
    if source.format == "tiny_imagenet":
        found, annotation_file = list(_read_tiny(root, source.split)), f"{root}/{source.split} {{}}"
    else:
        annotations = _folder(source.annotations, root / "Annotations/CLS-LOC" / source.split, data_root)
        images = _folder(source.images, root / "Data/CLS-LOC" / source.split, data_root)
        found, annotation_file = list(_read_xml(annotations, images)), f"{annotations}/{{}}.xml"
    name = f"{root}/{source.split}"
    annotated = [image for image in found if image.objects]
    if not annotated:
        raise UserError(f"{name}: holds no image with a box")
    if len(annotated) < len(found):
        first = next(image for image in found if not image.objects)
        without = counted(len(found) - len(annotated), "image")
        logger.warning("%s: %s without a box left out: %s, ...", name, without, first[0])
    objects = [item for image in annotated for item in image.objects]
    names = list(class_names) if class_names is not None else sorted({wnid for wnid, _ in objects})
    label_of = {wnid: find_class(wnid, names, name) + 1 for wnid in sorted({wnid for wnid, _ in objects})}
    return make_records(
        images=[(str(image.path), image.path.stem, image.size) for image in annotated],
        boxes=[box for _, box in objects],
        labels=[label_of[wnid] for wnid, _ in objects],
        counts=[len(image.objects) for image in annotated],
        class_names=names,
        source=name,
        annotation_file=annotation_file,
    )


def _read_test(folder: Path, class_names: list[str]) -> Records:
    """The images of a folder in the order of their names."""
    files = read_unlabelled(folder, class_names)
    paths = [files.path(index) for index in range(len(files))]
    return make_records(
        images=[(str(path), path.stem, image_file_size(path)) for path in paths],
        boxes=[],
        labels=[],
        counts=[0] * len(paths),
        class_names=class_names,
        source=str(folder),
        annotation_file=f"{folder}/{{}}",
        annotated=False,
    )


def image_labels(records: Records) -> np.ndarray:
    """(N,) int64, 0..K-1: the class of each image, which is that of its first object; 0 where no boxes are known."""
    if not records.annotated:
        return np.zeros(len(records), np.int64)
    return records.labels[records.offsets[:-1]] - 1


def _folder(given: str | None, usual: Path, data_root: Path) -> Path:
    return usual if given is None else data_root / given


def _read_xml(annotations: Path, images: Path) -> Iterator[_Found]:
    """ImageNet: an XML file for each image, in a folder for each class (train) or in one folder (val)."""
    files = list_files(annotations, (".xml",))
    if not files:
        list_folder(annotations)  # says so where it is missing
        raise UserError(f"{annotations}: has no XML files: unpack the bounding boxes there")
    present: dict[Path, dict[str, str]] = {}
    for file in files:
        folder = images / file.parent.relative_to(annotations)
        if folder not in present:
            names = (entry.name for entry in list_folder(folder) if not is_hidden(entry.name) and is_image(entry.path))
            present[folder] = {Path(name).stem: name for name in names}
        name = present[folder].get(file.stem)
        if name is None:
            raise UserError(f"{file}: its image {folder / file.stem}.JPEG is missing")
        annotation = read_annotation(file)
        path = folder / name
        size = annotation.size or image_file_size(path)
        boxes = [(x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in (item.box for item in annotation.objects)]
        yield _Found(path, size, [(item.name, box) for item, box in zip(annotation.objects, boxes, strict=True)])


def _read_tiny(root: Path, split: str) -> Iterator[_Found]:
    """Tiny-ImageNet: a line for each image, of its name, in val its class, and x0 y0 x1 y1."""
    grey, unlisted = [], []
    for file, folder, wnid in _tiny_files(root, split):
        present = {entry.name for entry in list_folder(folder)}
        found: dict[str, _Found] = {}
        lines = [line for line in read_lines(file, "file of boxes") if line.strip()]
        for number, line in enumerate(lines, 1):
            fields = line.strip().rsplit(None, 4 if wnid else 5)  # a name may hold blanks
            if fields[0] not in present:
                fields = line.split()
            name, label = fields[0], wnid or (fields[1] if len(fields) > 1 else "")
            where = f"{file}:{number} ({name})"
            if name not in present:
                raise UserError(f"{where}: no such image in {folder}{did_you_mean(name, sorted(present)[:1000])}")
            item = label, _tiny_box(fields[1 if wnid else 2 :], where)
            if name in found:  # another object of the image, or the same line again
                if label != found[name].objects[0][0]:
                    raise UserError(f"{where}: is of {label} here, but of {found[name].objects[0][0]} above")
                found[name].objects.extend([item] * (item not in found[name].objects))
                continue
            size, is_grey = _header(folder / name)
            grey += [name] * is_grey
            found[name] = _Found(folder / name, size, [item])
        yield from found.values()
        unlisted += sorted(
            str(folder / name) for name in present - found.keys() if not is_hidden(name) and is_image(name)
        )
    if unlisted:
        without = counted(len(unlisted), "image")
        logger.warning("%s/%s: %s without a line left out: %s, ...", root, split, without, unlisted[0])
    if grey:
        logger.warning("%s/%s: %s, read as RGB: %s, ...", root, split, counted(len(grey), "grey image"), grey[0])


def _tiny_files(root: Path, split: str) -> Iterator[tuple[Path, Path, str | None]]:
    """(file of boxes, folder of images, class; None: the file names it)."""
    listed = root / split / "val_annotations.txt"
    if listed.is_file():
        yield listed, root / split / "images", None
        return
    entries = [entry for entry in list_folder(root / split) if not is_hidden(entry.name)]
    wnids = sorted(entry.name for entry in entries if leads_to_folder(entry))
    if not wnids:
        raise UserError(f"{root / split}: has neither class folders nor val_annotations.txt")
    for wnid in wnids:
        yield root / split / wnid / f"{wnid}_boxes.txt", root / split / wnid / "images", wnid


def _tiny_box(fields: list[str], where: str) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = map(number_in, fields)
    except ValueError:
        raise UserError(
            f"{where}: {' '.join(fields) or 'nothing'} is not a box: four numbers x0 y0 x1 y1 are needed"
        ) from None
    if x2 < x1 or y2 < y1:
        raise UserError(f"{where}: the box {' '.join(fields)} ends before it begins: the order is x0 y0 x1 y1")
    return x1, y1, x2, y2


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """(H, W), and whether the image is grey."""
    try:
        with Image.open(path) as image:
            return (image.height, image.width), image.mode == "L"
    except Exception as error:  # Pillow's plugins raise many kinds for broken headers
        raise UserError(f"{path}: cannot be read as an image: {error}") from None
