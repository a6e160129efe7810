"""The mode `records`: tiny sets are made, and each figure comes from a process of its own."""

from __future__ import annotations

import json

import pytest

from configs.detection import DataConfig
from datasets import json_lists
from datasets.build import build_dataset
from tools.benchmarks import annotations


def test_the_set_that_is_made_is_sound(tmp_path, monkeypatch, caplog) -> None:
    """Nothing is warned of, every image exists, and the file is of the kind that is read in parts."""
    monkeypatch.setattr(annotations, "_LINKS", 3)
    monkeypatch.setattr(annotations, "_PART", 20)
    annotations._write_set(tmp_path, 7, 50, outlines=True)
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [len(content[key]) for key in ("images", "annotations", "categories")] == [7, 50, 80]
    assert all(len(item["segmentation"][0]) >= 8 for item in content["annotations"])
    wanted = ("images", "categories", "annotations")
    assert json_lists.read_lists(tmp_path / "annotations.json", "file", wanted, limit=0).content is None
    records = build_dataset(DataConfig(train=[annotations._source()]), "train", tmp_path).records
    assert [record for record in caplog.records if "without an object" not in record.getMessage()] == []
    assert (len(records), len(records.labels), records.trainable().sum()) == (7, 50, 50)


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_figures(train: bool) -> None:
    results = annotations.records_mode(scale=1e-4, names=("coco",), train=train)
    row = results["coco"]
    assert (row["images"], row["objects"]) == (12, 86)
    for what in ("first_reading", "later_start", *(["training_step"] if train else [])):
        assert 0 < row[what]["seconds"] < row[what]["process_seconds"]
        assert row[what]["peak_megabytes"] > 0
