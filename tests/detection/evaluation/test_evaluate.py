"""The layout of metrics.json and the printed table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from detection.evaluation.coco import NUMBERS
from detection.evaluation.data import align
from detection.evaluation.evaluate import evaluate, format_table, headline, write_metrics
from detection.evaluation.voc import average_precisions, match, mean_of_classes
from tools.benchmarks.synthetic import make_set


def test_only_the_protocols_that_are_asked_for_are_there() -> None:
    truth, found = make_set("voc", images=5, classes=2, objects=9, detections=30)
    assert set(evaluate(truth, found, ["voc07"])) == {"voc07"}
    assert set(evaluate(truth, found, ["coco"])) == {"coco", "coco_backend"}
    assert set(evaluate(truth, found)) == {"voc07", "voc12", "voc_by_iou", "coco", "coco_backend"}
    with pytest.raises(UserError, match="voc10"):
        evaluate(truth, found, ["voc10"])  # type: ignore[list-item]


def test_other_overlaps_are_vocs_own_rule() -> None:
    truth, found = make_set("voc", images=20, classes=3, objects=60, detections=300)
    part = evaluate(truth, found, ["voc12"])["voc_by_iou"]
    values = [mean_of_classes(average_precisions(match(align(truth, found)), 0.5 + 0.05 * n)[1]) for n in range(10)]
    assert list(part["mAP"]) == ["0.50", "0.55", "0.60", "0.65", "0.70", "0.75", "0.80", "0.85", "0.90", "0.95"]
    assert list(part["mAP"].values()) == pytest.approx(values, abs=1e-12)
    assert part["voc12_mean_iou50_95"] == pytest.approx(np.mean(values), abs=1e-12)
    assert part["mAP"]["0.50"] > part["mAP"]["0.95"]


def test_coco_files_can_be_scored_by_vocs_rule_too() -> None:
    truth, found = make_set("coco", images=20, classes=3, objects=60, detections=300)
    metrics = evaluate(truth, found)
    assert 0 < metrics["voc12"]["mAP"] < 1
    assert metrics["voc12"]["mAP"] == pytest.approx(metrics["coco"]["AP50"], abs=0.1)


def test_metrics_are_written_to_the_last_digit(tmp_path: Path) -> None:
    truth, found = make_set("voc", images=20, classes=3, objects=60, detections=300)
    metrics = evaluate(truth, found)
    write_metrics(tmp_path / "new" / "metrics.json", metrics)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == metrics
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]


def test_the_number_by_which_a_protocol_is_known() -> None:
    truth, found = make_set("voc", images=20, classes=3, objects=60, detections=300)
    metrics = evaluate(truth, found)
    assert headline(metrics["voc07"]) == metrics["voc07"]["mAP"]
    assert headline(metrics["coco"]) == metrics["coco"]["AP"] != metrics["coco"]["AP50"]
    assert headline({"mAP": None, "per_class": {}}) is None
    assert tuple(name for name in metrics["coco"] if name != "per_class") == NUMBERS


def test_table() -> None:
    per_class = {"cat": 0.5, "traffic light": None}
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    coco = {**dict.fromkeys(names, 0.123), "per_class": {"cat": 1.0}}
    table = format_table({"voc07": {"mAP": 0.5, "per_class": per_class}, "coco": coco, "coco_backend": "x 1.0"})
    assert table.splitlines()[:6] == [
        "class          VOC07 AP  COCO AP",
        "--------------------------------",
        "cat                50.0    100.0",
        "traffic light         -        -",
        "--------------------------------",
        "mean               50.0     12.3",
    ]
    assert "COCO (by x 1.0):" in table
    assert "ARl 12.3" in table
