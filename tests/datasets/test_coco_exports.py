"""Roboflow's placeholder category, and images that a COCO file does not list."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from datasets.coco import read_coco
from datasets.coco_exports import add_unlisted
from tests.datasets.conftest import write_image


def export(tmp_path: Path, categories: list[tuple], category: int | str) -> Path:
    """A COCO file with one object on one of two images."""
    for number, name in enumerate(("a.jpg", "b.jpg")):
        write_image(tmp_path / name, (30, 40), number)
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": category, "bbox": [1, 2, 9, 8], "area": 72}],
        "categories": [{"id": i, "name": name, "supercategory": above} for i, name, above in categories],
    }
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    return path


def test_a_class_with_the_placeholders_name_keeps_it(tmp_path: Path) -> None:
    path = export(tmp_path, [(0, "cat", "none"), (1, "cat", "cat"), (2, "dog", "cat")], 1)
    records = read_coco(path, tmp_path)
    assert (records.class_names, records.category_ids.tolist(), records.labels.tolist()) == (
        ["cat", "dog"],
        [1, 2],
        [1],
    )


@pytest.mark.parametrize(
    ("categories", "category", "names"),
    [
        ([(0, "things", "none"), (1, "cat", "things"), (2, "dog", "things")], 2, ["cat", "dog"]),
        ([(0, "things", "none"), (1, "cat", "things"), (2, "dog", "animal")], 2, ["things", "cat", "dog"]),
        ([(0, "cat", "animal"), (1, "dog", "animal")], 1, ["cat", "dog"]),  # a class without an object
        ([(0, "things", "none"), (1, "cat", "things")], 0, ["things", "cat"]),  # it has one
        ([(1, "things", "none"), (2, "cat", "things")], 2, ["things", "cat"]),  # COCO's own ids begin at 1
        ([("n1", "cat", "things"), ("n2", "dog", "things")], "n2", ["cat", "dog"]),  # ids may be texts
        ([("0", "things", "none"), ("1", "cat", "things"), ("2", "dog", "things")], "2", ["cat", "dog"]),
        ([(0, "things", "none"), (1, "cat", ["things"]), (2, "dog", {})], 2, ["things", "cat", "dog"]),
        ([(0, "_background_", None), (1, "cat", None)], 1, ["cat"]),  # labelme's converter
    ],
)
def test_placeholder(tmp_path: Path, categories, category, names) -> None:
    path = export(tmp_path, categories, category)
    records = read_coco(path, tmp_path)
    assert records.class_names == names
    assert records.category_ids.tolist() == [i for i, name, _ in categories if name in names]
    assert records.category_ids[records.labels[0] - 1] == category


def test_unlisted_images(tmp_path: Path) -> None:
    path = export(tmp_path, [(1, "cat", "")], 1)
    records = read_coco(path, tmp_path)
    assert len(add_unlisted(records, tmp_path, None)) == len(add_unlisted(records, tmp_path, "skip")) == 1
    joined = add_unlisted(records, tmp_path, "empty")
    assert joined.image_ids.tolist() == [7, 1]
    assert joined.offsets.tolist() == [0, 1, 1]
    assert joined.image_paths[1] == str(tmp_path / "b.jpg")
    assert joined.sizes.tolist() == [[30, 40]] * 2
    with pytest.raises(UserError, match=r"does not list 1 image of .*b\.jpg: .*unlabelled: empty"):
        add_unlisted(records, tmp_path, "error")


def test_unlisted_images_take_ids_that_are_free(tmp_path: Path) -> None:
    path = export(tmp_path, [(1, "cat", "")], 1)
    records = read_coco(path, tmp_path)
    for listed, free in ((2**63 - 1, 1), (1, 2)):
        joined = add_unlisted(replace(records, image_ids=np.array([listed])), tmp_path, "empty")
        assert joined.image_ids.dtype == np.int64
        assert joined.image_ids.tolist() == [listed, free]
