"""The detections of an image in other people's forms, by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from detection.postprocess import BatchDetections
from detection.prediction import ImageDetections, to_numpy

FOUND = ImageDetections(
    np.array([[1.0, 2.0, 31.0, 12.0], [0.5, 0.0, 8.0, 4.25]], np.float32),
    np.array([0.75, 0.5], np.float32), np.array([2, 1]), ("cat", "dog"),
)  # fmt: skip


def test_plain_values() -> None:
    assert FOUND.names == ["dog", "cat"]
    assert len(FOUND) == 2
    assert FOUND.to_dicts() == [
        {"name": "dog", "label": 2, "score": 0.75, "box": [1.0, 2.0, 31.0, 12.0]},
        {"name": "cat", "label": 1, "score": 0.5, "box": [0.5, 0.0, 8.0, 4.25]},
    ]
    first = FOUND.select(FOUND.scores > 0.6)
    assert (first.names, first.boxes.shape) == (["dog"], (1, 4))


def test_coco_results() -> None:
    assert FOUND.to_coco(7)[0] == {"image_id": 7, "category_id": 2, "bbox": [1.0, 2.0, 30.0, 10.0], "score": 0.75}
    assert [row["category_id"] for row in FOUND.to_coco("a", {"cat": 17, "dog": 18})] == [18, 17]


def test_supervision_counts_classes_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=lambda **values: values))
    values = FOUND.to_supervision()
    assert values["class_id"].tolist() == [1, 0]
    assert values["data"]["class_name"].tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(values["xyxy"], FOUND.boxes)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"pip install -e .\[supervision\]"):
        FOUND.to_supervision()


def test_drawing_reads_the_image_again(tmp_path: Path) -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(image).save(path)
    of_file = ImageDetections(FOUND.boxes, FOUND.scores, FOUND.labels, FOUND.class_names, path=str(path))
    of_pixels = ImageDetections(FOUND.boxes, FOUND.scores, FOUND.labels, FOUND.class_names, pixels=image)
    np.testing.assert_array_equal(of_file.draw(), of_pixels.draw())
    assert (of_file.draw() != image).any()
    assert (of_file.draw(names=False) != of_file.draw()).any()
    np.testing.assert_array_equal(of_file.draw(names=True, thickness=1, scale=1), of_file.draw())
    assert (of_file.draw(thickness=9) != of_file.draw()).any()
    assert of_file.draw(scale=2).shape == (80, 120, 3)
    with pytest.raises(UserError, match="do not know their image"):
        FOUND.draw()


def test_a_batch_is_taken_apart_without_its_padding() -> None:
    boxes = torch.arange(24.0).view(2, 3, 4)
    valid = torch.tensor([[True, False, True], [False, False, False]])
    first, second = to_numpy(
        BatchDetections(boxes, torch.tensor([[0.9, 0.8, 0.7]] * 2), torch.tensor([[3, 2, 1]] * 2), valid)
    )
    assert first.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert first.scores.tolist() == pytest.approx([0.9, 0.7])
    assert first.labels.tolist() == [3, 1]
    assert first.labels.dtype == np.int64
    assert second.boxes.shape == (0, 4)
