"""The exports of common labelling tools, each read exactly by the config that init_data.py writes for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.loading import load_config
from datasets.build import build_dataset
from tools import init_data

TOOLS = (
    "labelimg", "label_studio_voc", "label_studio_yolo", "label_studio_coco", "cvat_yolo", "cvat_voc", "cvat_coco",
    "roboflow_voc", "roboflow_coco", "roboflow_yolo", "ultralytics", "labelme", "via", "tensorflow_csv",
)  # fmt: skip
WITH_PARTS = ("roboflow_voc", "roboflow_coco", "roboflow_yolo", "ultralytics")


@pytest.mark.parametrize("tool", TOOLS)
def test_what_init_data_writes_reads_the_export(tool: str, data_dir: Path, tmp_path: Path, capsys) -> None:
    folder = data_dir / "exports" / tool
    expected = json.loads((data_dir / "exports/expected.json").read_text())
    out = tmp_path / "my.yaml"
    init_data.main(init_data.make_parser().parse_args([str(folder), "--out", str(out), "--start", "scratch"]))
    assert "layout" in capsys.readouterr().out
    assert (tmp_path / "my_sheet.jpg").stat().st_size > 10_000
    data = load_config(out).data
    assert not data.test
    found: dict[str, list] = {}
    parts = {}
    for split in ("train", "val"):
        records = build_dataset(data, split, tmp_path).records
        assert records.class_names == expected["names"]
        names = [Path(path).stem.split("_jpg.rf.")[0] for path in records.image_paths.tolist()]
        parts[split] = names
        for i, name in enumerate(names):
            part = records.objects(i)
            labels = [records.class_names[label - 1] for label in records.labels[part]]
            found[name] = [[label, *box] for label, box in zip(labels, records.boxes[part].tolist(), strict=True)]
    if tool in WITH_PARTS:
        assert {split: sorted(names) for split, names in parts.items()} == {s: expected[s] for s in ("train", "val")}
    else:
        assert len(parts["train"]) in (6, 7)
    assert sorted([*parts["train"], *parts["val"]]) == sorted(expected["boxes"])
    # YOLO's fractions have six digits: half of the last one is 3.2e-4 pixels of 640
    tolerance = {"voc": 1.0, "yolo": 1e-3}.get(data.train[0].format, 0.0)
    for name, boxes in expected["boxes"].items():
        got, want = _sorted(found[name]), _sorted(boxes)
        assert [item[0] for item in got] == [item[0] for item in want], name
        difference = np.array([item[1:] for item in got]) - np.array([item[1:] for item in want])
        assert np.abs(difference).max(initial=0.0) <= tolerance, name


def _sorted(boxes: list[list]) -> list[list]:
    return sorted(boxes, key=lambda item: [item[0], *map(round, item[1:])])


def test_the_plan_for_bccd_is_the_proven_recipe(data_dir: Path) -> None:
    """configs/bccd_r18_fpn.yaml: 240x320, 16 epochs of 292 photos in steps of 8, 16 minutes on two cores."""
    from tools.runtime.own_data import divide, read_own_data
    from tools.runtime.suggest import Machine, make_plan

    own = divide(read_own_data(data_dir / "bccd"))
    assert {part: len(records) for part, records in own.records.items()} == {"train": 205, "val": 87, "test": 72}
    plan = make_plan(own.records["train"], Machine(2))
    assert (plan.min_size, plan.max_size, plan.batch_size, plan.num_workers) == (240, 320, 8, 1)
    assert plan.epochs * 205 == pytest.approx(16 * 292, rel=0.05)
    assert 10 < plan.minutes < 20
    assert plan.anchor_sizes[0] < 25  # platelets measure about 19
    assert 80 < plan.anchor_sizes[-1] < 200  # white cells about 100
