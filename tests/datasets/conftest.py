"""Tiny data sets on disk, written anew for each test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.make_records import make_records
from datasets.records import Records
from tests.serving import Server, serving

Objects = list[tuple]
"""(name, (xmin, ymin, xmax, ymax)[, flags]) of each object; flags: a set of words such as difficult."""


def write_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    """An image of (H, W) with smooth random content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))
    return path


def annotation_xml(objects: Objects, size: tuple[int, int] | None, extra: str = "") -> str:
    """The text of a VOC annotation file."""
    lines = ["<annotation>", extra]
    if size is not None:
        lines.append(f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>")
    for name, (xmin, ymin, xmax, ymax), *flags in objects:
        words = flags[0] if flags else set()
        lines.append(
            f"<object><name>{name}</name><difficult>{int('difficult' in words)}</difficult>"
            f"<truncated>{int('truncated' in words)}</truncated><bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
            f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>"])


@pytest.fixture
def write_voc(tmp_path: Path) -> Callable[..., Path]:
    """write_voc({image id: (size, objects)}, folder, image_set): a VOC folder; returns its root."""

    def write(images: dict[str, tuple], folder: str = "voc", image_set: str = "train", suffix: str = ".jpg") -> Path:
        root = tmp_path / folder
        for path in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (root / path).mkdir(parents=True, exist_ok=True)
        for number, (image_id, (size, objects)) in enumerate(images.items()):
            write_image(root / "JPEGImages" / f"{image_id}{suffix}", size, number)
            (root / "Annotations" / f"{image_id}.xml").write_text(annotation_xml(objects, size))
        (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(images) + "\n")
        return root

    return write


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """write_coco(content, sizes): a COCO file and its image folder; images named in `content` are written."""

    def write(content: dict, name: str = "instances.json") -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content["images"]:
            write_image(folder / image["file_name"], (image.get("height", 30), image.get("width", 40)), image["id"])
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path, folder

    return write


@pytest.fixture
def random_records(tmp_path: Path) -> Callable[..., Records]:
    """random_records(sizes): real image files with random objects of three classes; image 0 has none."""

    def make(sizes: list[tuple[int, int]], seed: int = 0, suffix: str = ".png") -> Records:
        rng = np.random.default_rng(seed)
        images, boxes, counts = [], [], []
        for i, (height, width) in enumerate(sizes):
            path = write_image(tmp_path / "random" / f"{i}{suffix}", (height, width), seed + i)
            images.append((str(path), i, (height, width)))
            count = 0 if i == 0 else int(rng.integers(1, 12))
            low = rng.uniform(0, 0.6, (count, 2))
            high = low + rng.uniform(0.1, 0.4, (count, 2))
            boxes += list(np.concatenate([low, high], axis=1) * [width, height, width, height])
            counts.append(count)
        total = len(boxes)
        return make_records(
            images=images,
            boxes=boxes,
            labels=list(rng.integers(1, 4, total)),
            counts=counts,
            class_names=["a", "b", "c"],
            source="random",
            annotation_file="{}",
            difficult=list(rng.random(total) < 0.2),
            iscrowd=list(rng.random(total) < 0.1),
        )

    return make


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running
