"""The report's tables, cell by cell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from detection.evaluation.coco import NUMBERS
from detection.evaluation.report.analysis import Analysis
from detection.evaluation.report.run import Run
from detection.evaluation.report.tables import (
    Cell,
    cards,
    coco_table,
    error_table,
    iou_table,
    per_class_table,
)
from tests.detection.evaluation.report.made import BOX, FAR, analysis_of


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """Two cats of which one is found, with a false cat of a better score; one dog, found; a cow that is none."""
    objects = [(0, 1, BOX), (1, 1, BOX), (2, 2, BOX)]
    found = [(0, 1, FAR, 0.95), (0, 1, BOX, 0.9), (2, 2, BOX, 0.8), (1, 3, FAR, 0.1)]
    return analysis_of(objects, found)


def run(analysis: Analysis, name: str = "new", **changes) -> Run:
    """Metrics with numbers of their own, so that each cell shows where it comes from."""
    metrics = {
        "voc07": {"mAP": 0.5, "per_class": {"cat": 0.25, "dog": 0.75, "cow": None}},
        "voc12": {"mAP": 0.6004, "per_class": {"cat": 0.2, "dog": 1.0, "cow": None}},
        "coco": {number: index / 100 for index, number in enumerate(NUMBERS)} | {"per_class": {"cat": 0.1}},
        "voc_by_iou": {"mAP": {"0.50": 0.6, "0.55": None}, "voc12_mean_iou50_95": 0.3},
    }
    return Run(name, analysis.data.detections, metrics | changes)


def texts(cells: list[Cell]) -> list[str]:
    return [cell.text for cell in cells]


def test_cards_and_differences(analysis: Analysis) -> None:
    one = cards([run(analysis)])
    assert [(card.name, texts(card.values), card.difference) for card in one] == [
        ("VOC07 mAP", ["50.0"], None), ("VOC12 mAP", ["60.0"], None), ("COCO AP", ["0.0"], None),
    ]  # fmt: skip
    old = run(analysis, "old", voc07={"mAP": 0.55}, voc12={"mAP": 0.6}, coco={"AP": None}, imagenet_det={"mAP": 0.4})
    found = cards([run(analysis), old])
    assert [texts(card.values) for card in found] == [["50.0", "55.0"], ["60.0", "60.0"], ["0.0", "–"], ["–", "40.0"]]
    differences = [(card.difference.text, card.difference.style) for card in found if card.difference]
    # 0.04 points are printed as no difference, and are coloured as none
    assert differences == [("-5.0", "down"), ("+0.0", "none"), ("", ""), ("", "")]
    better = cards([old, run(analysis)])[0].difference
    assert better == Cell("+5.0", "up", "0.050000")


def test_cocos_numbers_in_their_order(analysis: Analysis) -> None:
    table = coco_table([run(analysis), run(analysis, "old", coco=dict.fromkeys(NUMBERS, 0.5))])
    assert table is not None
    assert table.heads == ["", *NUMBERS]
    assert texts(table.rows[0]) == ["new", *(f"{index}.0" for index in range(12))]
    assert texts(table.rows[1]) == ["old", *["50.0"] * 12]
    without = Run("x", analysis.data.detections, {"voc12": {"mAP": 0.5, "per_class": {}}})
    assert coco_table([without]) is None
    assert iou_table([without]) is None


def test_other_overlaps(analysis: Analysis) -> None:
    table = iou_table([run(analysis)])
    assert table is not None
    assert table.heads == ["", "IoU 0.50", "IoU 0.55", "mean"]
    assert [texts(row) for row in table.rows] == [["new", "60.0", "–", "30.0"]]


def test_classes_by_hand(analysis: Analysis) -> None:
    """At the threshold 0.8: one of two cats found by two detections, the dog by one, no cow."""
    assert analysis.threshold == 0.8
    table = per_class_table([run(analysis)], [analysis])
    assert table.heads == [
        "class", "objects", "VOC07 AP", "VOC12 AP", "COCO AP", "recall", "precision", "detections"
    ]  # fmt: skip
    assert [texts(row) for row in table.rows] == [
        ["cat", "2", "25.0", "20.0", "10.0", "50.0", "50.0", "2"],
        ["dog", "1", "75.0", "100.0", "–", "100.0", "100.0", "1"],
        ["cow", "0", "–", "–", "–", "–", "–", "1"],
    ]
    assert texts(table.foot) == ["mean", "3", "50.0", "60.0", "0.0", "", "", "4"]
    assert [cell.bar for cell in table.rows[0]] == [None, None, 0.25, 0.2, 0.1, None, None, None]


def test_detections_that_are_not_counted_have_no_part_in_the_precision() -> None:
    objects, found = [(0, 1, BOX), (1, 1, BOX)], [(0, 1, BOX, 0.9), (1, 1, BOX, 0.9)]
    analysis = analysis_of(objects, found, difficult=[False, True])
    row = texts(per_class_table([run(analysis)], [analysis]).rows[0])
    assert row[1] == "1"
    assert row[-3:] == ["100.0", "100.0", "2"]


def test_two_runs_class_by_class(analysis: Analysis) -> None:
    other = run(analysis, "old", voc12={"mAP": 0.5, "per_class": {"cat": 0.1, "dog": None}})
    other = replace(other, metrics={"voc12": other.metrics["voc12"]})
    table = per_class_table([run(analysis), other], [analysis, analysis])
    assert table.heads[2:5] == ["VOC12 AP", "other", "difference"]
    assert [texts(row)[2:5] for row in table.rows] == [["20.0", "10.0", "+10.0"], ["100.0", "–", ""], ["–", "–", ""]]
    assert texts(table.foot)[2:5] == ["60.0", "50.0", "+10.0"]


def test_errors_and_what_they_cost(analysis: Analysis) -> None:
    """Without the false cat the found one is alone: cats go from 1/4 to 1/2, the mean of two classes by 1/8."""
    table = error_table([run(analysis)], [analysis])
    assert table.heads == ["error", "mAP it would give back", "number"]
    rows = {row[0].text: texts(row)[1:] for row in table.rows}
    assert list(rows) == ["classification", "localisation", "both", "duplicate", "background", "missed"]
    assert rows["background"] == ["+12.50", "1"]
    assert rows["missed"] == ["+12.50", "1"]  # one cat less to be found: 1 / 2 again
    assert rows["duplicate"] == ["+0.00", "0"]
    assert error_table([run(analysis), run(analysis, "old")], [analysis] * 2).heads == [
        "error", "mAP, new", "number", "mAP, old", "number"
    ]  # fmt: skip


def test_thousands_are_parted_and_sorted_as_numbers() -> None:
    many = analysis_of([(0, 1, BOX)] * 1200, [])
    cell = per_class_table([run(many)], [many]).rows[0][1]
    assert (cell.text, cell.key) == ("1,200", "1200")
