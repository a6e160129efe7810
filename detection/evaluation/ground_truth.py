"""Ground truth from the files that the official tools read, with the official tools' meaning to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.errors import UserError, counted, did_you_mean, printable_logger
from datasets.coco import read_coco_file
from datasets.columns import last_of_equal_ids
from datasets.listing import list_images, plain_name
from datasets.voc import corners_from_zero, listed_images, read_annotation
from detection.evaluation.boxes import continuous_to_voc
from detection.evaluation.data import GroundTruth

logger = printable_logger(__name__)

# ---------------------------------------------------------------------------------------------- VOC


def read_voc_ground_truth(root: Path, image_set: str = "test", *, zero_based: bool = False) -> GroundTruth:
    """The annotations of ImageSets/Main/`image_set`.txt, boxes as the files have them. Images are not needed.

    Args:
        root: folder that holds Annotations/ and ImageSets/Main/.
        image_set: name of the list.
        zero_based: the files count pixels from 0 and give edges, as sets of one's own often do.

    Raises:
        UserError: a folder, the list or an annotation is missing or broken.
    """
    root = Path(root)
    image_ids = _read_image_set(root, image_set)
    annotations = [read_annotation(root / "Annotations" / f"{image_id}.xml") for image_id in image_ids]
    objects = [item for annotation in annotations for item in annotation.objects]
    class_names = sorted({item.name for item in objects})
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    boxes = np.array([item.box for item in objects], dtype=np.float64).reshape(-1, 4)
    image_index = np.repeat(np.arange(len(image_ids)), [len(annotation.objects) for annotation in annotations])
    seen = corners_from_zero(boxes[:, :2])
    if seen is not None and seen != zero_based:
        logger.warning(
            "%s: objects at the border begin at %d, so its XML seems to count pixels from there: %s zero_based "
            "(--zero-based)", root, 1 - seen, "set" if seen else "leave out",
        )  # fmt: skip
    if zero_based:
        boxes = continuous_to_voc(boxes)
    if not len(objects):
        logger.warning("%s/%s: no image has an object: every metric will be empty", root, image_set)
    corner = boxes[:, :2] - 1.0
    return GroundTruth(
        frame="voc",
        image_ids=list(image_ids),
        class_names=class_names,
        image_index=image_index,
        labels=np.array([label_of[item.name] for item in objects], dtype=np.int64),
        boxes=boxes,
        area=(boxes[:, 2:] - corner).prod(axis=1),
        iscrowd=np.zeros(len(objects), dtype=bool),
        difficult=np.array([item.difficult for item in objects], dtype=bool),
        image_sizes=np.array([annotation.size or (0, 0) for annotation in annotations], dtype=np.int64).reshape(-1, 2),
        image_files=_image_files(root, image_ids, [annotation.filename for annotation in annotations]),
        source=f"{root} ({image_set})",
    )


def _image_files(root: Path, image_ids: list[str], filenames: list[str]) -> list[str]:
    """The image files' names: those of the annotations, but where one has another name than its own and the image of
    its own name is there (copied or renamed), or the other is not."""
    stems: set[str] | None = None
    files = []
    for image_id, filename in zip(image_ids, filenames, strict=True):
        last = filename.replace("\\", "/").rpartition("/")[2]
        if plain_name(image_id.rpartition("/")[2]) not in map(plain_name, (last, Path(last).stem)):
            if stems is None:
                stems = {path.stem for path in list_images(root / "JPEGImages", recursive=False)}
            if image_id in stems or Path(last).stem not in stems:
                filename = ""
        files.append(filename or f"{image_id}.jpg")
    return files


def _read_image_set(root: Path, image_set: str) -> list[str]:
    for folder in (root, root / "Annotations", root / "ImageSets" / "Main"):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: there is no such folder: --gt of format voc is a folder that holds Annotations/ and "
                "ImageSets/Main/ (for COCO's JSON: --format coco; other layouts: make one with tools/convert_data.py)"
            )
    path = root / "ImageSets" / "Main" / f"{image_set}.txt"
    if not path.is_file():
        there = sorted(item.stem for item in path.parent.glob("*.txt"))
        raise UserError(
            f"{path}: there is no such image set{did_you_mean(image_set, there)}: give --image-set with one of: "
            f"{', '.join(there[:10]) or 'none'}"
        )
    return listed_images(path, root)


# ---------------------------------------------------------------------------------------------- COCO


def read_coco_ground_truth(path: Path) -> GroundTruth:
    """The annotations of a COCO JSON file, as pycocotools takes them.

    Images and classes are in the order of their sorted ids. What pycocotools passes over is passed over with a
    warning: annotations of images or categories that the file does not list.

    Raises:
        UserError: the file is missing or broken, or an annotation lacks something; names the annotation's place.
    """
    path = Path(path)
    file = read_coco_file(path)
    if not file.annotated:
        raise UserError(f"{path}: has no list of annotations: a test set without them cannot be scored")
    if not file.category_ids:
        raise UserError(f"{path}: has no list of categories: is it a results file?")
    if file.lacks_area:
        logger.warning("%s: annotations without an area (pycocotools refuses them): width * height is taken", path)
    if 0 in file.annotation_ids:
        logger.warning(
            "%s: annotation id 0: it is scored like any other (pycocotools itself would lose its match, so its numbers "
            "can be lower)", path,
        )  # fmt: skip
    last = last_of_equal_ids(file.annotation_ids)
    known = (file.image_index >= 0) & (file.labels > 0)
    if not known.all():
        logger.warning(
            "%s: %s of an image or a category that the file does not list; like pycocotools, this passes over them "
            "(first: annotation number %d)",
            path, counted(int((~known).sum()), "annotation"), int(np.argmin(known)),
        )  # fmt: skip
    keep = last[known & known[last]]
    order = sorted(range(len(file.image_ids)), key=file.image_ids.__getitem__)
    position = np.argsort(order)
    return GroundTruth(
        frame="coco",
        image_ids=[file.image_ids[i] for i in order],
        class_names=file.class_names,
        image_index=position[file.image_index[keep]],
        labels=file.labels[keep],
        boxes=file.boxes[keep],
        area=file.area[keep],
        iscrowd=file.iscrowd[keep],
        difficult=np.zeros(len(keep), dtype=bool),
        image_sizes=file.sizes[order],
        image_files=[file.file_names[i] for i in order],
        category_ids=file.category_ids,
        source=str(path),
    )
