"""Files of predictions: names that never clash, what an interrupted run leaves."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from detection.prediction import ImageDetections
from tools.runtime.prediction import PredictionFiles, picture_paths

FOUND = ImageDetections(
    np.array([[0.0, 1.0, 10.5, 20.0]], np.float32), np.array([0.75], np.float32), np.array([2]), ("cat", "dog"),
    name="a.png", image_size=(30, 40),
)  # fmt: skip


def test_each_file_gets_a_picture_of_its_own(tmp_path: Path) -> None:
    names = ["a.bmp", "a.bmp.png", "A.BMP.png", "deep/a.bmp", "clip.MOV", "clip.mp4", "x.jpg", "x.webp"]
    paths = picture_paths(tmp_path, [(f"/in/{name}", name) for name in names])
    assert [path.relative_to(tmp_path).as_posix() for path in paths.values()] == [
        "a.bmp.png", "a.bmp-2.png", "A.BMP-3.png", "deep/a.bmp.png", "clip.mp4", "clip-2.mp4", "x.jpg", "x.webp.png",
    ]  # fmt: skip


def test_no_picture_takes_the_place_of_any_input(tmp_path: Path) -> None:
    """Not only of its own: a.bmp's picture would be the input a.bmp.png."""
    files = [("/in/a.bmp", "a.bmp"), (str(tmp_path / "a.bmp.png"), "b.png")]
    with pytest.raises(UserError, match=r"a\.bmp\.png: a picture would overwrite this input"):
        picture_paths(tmp_path, files)


def test_files_by_hand(tmp_path: Path) -> None:
    with PredictionFiles(tmp_path, ["cat", "dog"], coco=True, csv=True) as files:
        files.add(FOUND)
        # The line is there before the run has ended.
        (line,) = (tmp_path / "detections.jsonl").read_text().splitlines()
    assert (files.images, files.objects) == (1, 1)
    voc = {"category": "dog", "bbox": [1.0, 2.0, 10.5, 20.0], "score": 0.75}
    assert json.loads(line) == {"image_id": "a.png", "height": 30, "width": 40, "detections": [voc]}
    assert json.loads((tmp_path / "detections.json").read_text()) == [{"image_id": "a.png", **voc}]
    assert json.loads((tmp_path / "detections_coco.json").read_text()) == [
        {"image_id": "a.png", "category_id": 2, "bbox": [0.0, 1.0, 10.5, 19.0], "score": 0.75}
    ]
    assert (tmp_path / "detections.csv").read_text().splitlines()[1] == "a.png,dog,1.0,2.0,10.5,20.0,0.75"


def test_names_that_are_not_utf8_are_written_with_escapes(tmp_path: Path) -> None:
    with PredictionFiles(tmp_path, ["cat", "dog"], coco=True, csv=True) as files:
        files.add(replace(FOUND, name=os.fsdecode(b"Mu\xf1oz.png")))
    for name in ("detections.json", "detections.jsonl", "detections_coco.json"):
        assert "Mu\\\\udcf1oz.png" in (tmp_path / name).read_text()
    assert "Mu\\udcf1oz.png,dog" in (tmp_path / "detections.csv").read_text()


def test_without_images_the_lists_are_empty(tmp_path: Path) -> None:
    with PredictionFiles(tmp_path, ["cat"]):
        pass
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.json", "detections.jsonl"]


def test_an_error_leaves_the_older_lists(tmp_path: Path) -> None:
    (tmp_path / "detections.json").write_text("older")

    def stop_in_the_middle() -> None:
        with PredictionFiles(tmp_path, ["cat", "dog"]) as files:
            files.add(FOUND)
            raise KeyError

    with pytest.raises(KeyError):
        stop_in_the_middle()
    assert (tmp_path / "detections.json").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.json", "detections.jsonl"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out"), PredictionFiles(tmp_path / "out", ["cat"]):
        pass
