"""COCO's JSON annotations. Imports no torch.

Ids of categories are sparse (1..90 for COCO's 80 classes): labels are 1..K in the order of the ids, and
`Records.category_ids` leads back. Boxes are x, y, width, height in continuous pixels that count from 0.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from configs.errors import UserError
from datasets.images import image_file_size
from datasets.records import Records, make_records


def read_coco(annotations: str | Path, images: str | Path) -> Records:
    """The images and objects of a COCO JSON file, with its categories in the order of their ids.

    A file without a list of annotations (COCO's image_info_test-dev2017.json) is taken as images only.

    Args:
        annotations: the JSON file.
        images: the folder that the images' file_name is relative to.

    Raises:
        UserError: a file is missing, the JSON is broken, or an annotation lacks something; names the annotation's id.
    """
    annotations, images = Path(annotations), Path(images)
    content = _load(annotations, images)
    categories = sorted(content.get("categories", []), key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories, 1)}
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    known_images = _image_ids(content["images"], annotations)
    for annotation in content.get("annotations", []):
        _check(annotation, annotations, known_images, label_of)
        of_image[annotation["image_id"]].append(annotation)

    ordered = [annotation for image in content["images"] for annotation in of_image[image["id"]]]
    corners = [(x, y, x + w, y + h) for x, y, w, h in (annotation["bbox"] for annotation in ordered)]
    return make_records(
        images=[_image(image, images) for image in content["images"]],
        boxes=corners,
        labels=[label_of[annotation["category_id"]] for annotation in ordered],
        counts=[len(of_image[image["id"]]) for image in content["images"]],
        class_names=[category["name"] for category in categories],
        source=str(annotations),
        annotation_file=f"{annotations} image {{}}",
        area=[annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]) for annotation in ordered],
        iscrowd=[bool(annotation.get("iscrowd", 0)) for annotation in ordered],
        annotation_ids=[annotation.get("id", number) for number, annotation in enumerate(ordered, 1)],
        category_ids=[category["id"] for category in categories],
        annotated="annotations" in content,
    )


def _load(annotations: Path, images: Path) -> dict[str, Any]:
    for path in (images, annotations):
        if not path.exists():
            year = next((year for year in ("2017", "2014") if year in path.name), None)
            official = year and ("coco" in str(path).lower() or path.name.startswith("instances_"))
            parts = path.parts
            data_root = f" --data-root {Path(*parts[: parts.index('coco')])}" if "coco" in parts else ""
            mend = f": get it with: python tools/prepare_data.py coco{year}{data_root}" if official else ""
            kind = "folder" if path == images else "annotation file"
            raise UserError(f"{path}: there is no such {kind}{mend}")
    try:
        content = json.loads(annotations.read_bytes())
    except ValueError as error:
        raise UserError(f"{annotations}: not valid JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{annotations}: not a COCO annotation file: it has no list of images")
    if not content["images"]:
        raise UserError(f"{annotations}: lists no image")
    return content


def _image_ids(images: list[dict[str, Any]], path: Path) -> set[int]:
    """The images' ids, each checked to be there once and to have a file name."""
    ids: set[int] = set()
    for image in images:
        image_id = image.get("id")
        if image_id is None:
            raise UserError(f"{path}: image {image.get('file_name', len(ids))} has no id")
        if image_id in ids:
            raise UserError(f"{path}: image id {image_id} occurs more than once")
        if "file_name" not in image:
            raise UserError(f"{path} image {image_id}: has no file_name")
        ids.add(image_id)
    return ids


def _check(annotation: dict[str, Any], path: Path, image_ids: set[int], label_of: dict[int, int]) -> None:
    where = f"{path} annotation {annotation.get('id', '?')}"
    for key in ("image_id", "category_id", "bbox"):
        if key not in annotation:
            raise UserError(f"{where}: has no {key}")
    if annotation["image_id"] not in image_ids:
        raise UserError(f"{where}: image_id {annotation['image_id']} is not among the images")
    if annotation["category_id"] not in label_of:
        raise UserError(
            f"{where}: category_id {annotation['category_id']} is not among the categories {sorted(label_of)}"
        )
    box = annotation["bbox"]
    if len(box) != 4:
        raise UserError(f"{where}: bbox has {len(box)} numbers, not 4 (x, y, width, height)")
    if not all(isinstance(number, (int, float)) for number in box):
        raise UserError(f"{where}: bbox {box} has something that is not a number")


def _image(image: dict[str, Any], folder: Path) -> tuple[str, int, tuple[int, int]]:
    path = folder / image["file_name"]
    if not path.is_file():
        raise UserError(f"{path}: there is no such image, though the annotation file lists it")
    declared = (int(image.get("height") or 0), int(image.get("width") or 0))
    return str(path), image["id"], declared if min(declared) > 0 else image_file_size(path)
