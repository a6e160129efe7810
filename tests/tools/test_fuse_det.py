"""Weighted box fusion of saved detections, by hand, in both forms, and mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from tools import fuse_det

pytest.importorskip("ensemble_boxes", reason="the extra `fusion` is not installed")


def coco(image: int, category: int, box: list[float], score: float) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def run(tmp_path: Path, files: dict[str, list[dict]], *options: str) -> list[dict]:
    for name, rows in files.items():
        (tmp_path / name).write_text(json.dumps(rows))
    paths = [str(tmp_path / name) for name in files]
    out = tmp_path / "fused.json"
    fuse_det.main(fuse_det.make_parser().parse_args(["--dt", *paths, "--out", str(out), *options]))
    return json.loads(out.read_text())


A = [
    coco(7, 18, [10, 10, 20, 20], 0.8),  # with the first of B: overlap 18 * 20 / 440 = 0.82
    coco(7, 18, [200, 100, 50, 30], 0.9),  # nobody else sees it
    coco(9, 1, [0, 0, 10, 10], 0.5),
]
B = [
    coco(7, 18, [12, 10, 20, 20], 0.4),
    coco(7, 44, [10, 10, 20, 20], 0.6),  # another class
]


def by_hand(rows: list[dict]) -> dict[tuple, tuple]:
    return {(r["image_id"], r["category_id"], round(r["bbox"][0])): (r["bbox"], r["score"]) for r in rows}


def test_boxes_and_scores_by_hand(tmp_path):
    """x = (0.8 * 10 + 0.4 * 12) / 1.2 = 10.667 with score 0.6; what one of two has seen counts half."""
    found = by_hand(run(tmp_path, {"a.json": A, "b.json": B}))
    assert found == {
        (7, 18, 11): ([10.667, 10, 20, 20], pytest.approx(0.6)),
        (7, 18, 200): ([200, 100, 50, 30], pytest.approx(0.45)),
        (7, 44, 10): ([10, 10, 20, 20], pytest.approx(0.3)),
        (9, 1, 0): ([0, 0, 10, 10], pytest.approx(0.25)),
    }


def test_options_reach_the_fusion(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fuse_det, "fuse", lambda parts, **options: asked.append(options) or parts[0])
    run(tmp_path, {"a.json": A, "b.json": B}, "--method", "nmw", "--iou", "0.9", "--weights", "2", "1")
    assert asked == [{"method": "nmw", "iou": 0.9, "weights": [2.0, 1.0]}]


def test_a_detector_with_itself_is_itself(tmp_path):
    """Boxes that do not overlap each other, written as VOC's lists, with inclusive pixels and text for image ids."""
    rows = [
        {"image_id": "000007", "category": "cat", "bbox": [1, 1, 50.5, 40], "score": 0.9},
        {"image_id": "000007", "category": "dog", "bbox": [1, 1, 50, 40], "score": 0.75},
        {"image_id": "000007", "category": "cat", "bbox": [100, 60, 150, 90], "score": 0.1},
        {"image_id": "b", "category": "cat", "bbox": [3, 4, 5, 6], "score": 0.5},
    ]
    found = run(tmp_path, {"a.json": rows, "b.json": rows})
    assert len(found) == len(rows)
    for row in rows:
        same = next(r for r in found if all(r[key] == row[key] for key in ("image_id", "category", "bbox")))
        assert same["score"] == pytest.approx(row["score"], rel=1e-6)  # the library counts in float32


def test_the_result_is_scored(root: Path, tmp_path: Path):
    """eval_det.py reads what fuse_det.py writes."""
    box = {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    truth = {"images": [{"id": 7}, {"id": 9}], "annotations": [box], "categories": [{"id": i} for i in (1, 18, 44)]}
    for category in truth["categories"]:
        category["name"] = f"class {category['id']}"
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    run(tmp_path, {"a.json": A, "b.json": B})
    files = ["--gt", tmp_path / "gt.json", "--dt", tmp_path / "fused.json", "--out", tmp_path / "metrics.json"]
    done = subprocess.run(
        [sys.executable, root / "tools/eval_det.py", "--format", "coco", *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["coco"]["AP50"] == pytest.approx(1.0)


def test_mistakes_are_told(tmp_path):
    voc = [{"image_id": "7", "category": "cat", "bbox": [1, 1, 9, 9], "score": 0.5}]
    cases = [
        ({"a.json": A}, (), "two or more"),
        ({"a.json": A, "b.json": voc}, (), r"a\.json holds COCO results, .*b\.json VOC's list"),
        ({"a.json": A, "b.json": B}, ("--weights", "1"), "give 2 positive numbers"),
        ({"a.json": A, "b.json": B}, ("--iou", "1.5"), "not between 0 and 1"),
        ({"a.json": A, "b.json": [{**B[0], "score": 3.5}]}, (), r"b\.json: detection 0: score 3\.5 is not in \[0, 1\]"),
        (
            {"a.json": A, "b.json": [{**B[0], "category_id": "cat"}]},
            (),
            r"b\.json: detection 0 .*category_id is the text 'cat'",
        ),
    ]
    for files, options, message in cases:
        with pytest.raises(UserError, match=message) as error:
            run(tmp_path, files, *options)
        assert "\n" not in str(error.value)


def test_ids_of_text_come_back_and_inputs_are_not_overwritten(tmp_path):
    rows = [{"image_id": "i-1", "category_id": name, "bbox": [1, 1, 9, 9], "score": 0.5} for name in ("n01", "n02")]
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    fuse_det.main(fuse_det.make_parser().parse_args(["--dt", *files, "--out", str(tmp_path / "out.json")]))
    fused = json.loads((tmp_path / "out.json").read_text())
    assert sorted(row["category_id"] for row in fused) == ["n01", "n02"]
    with pytest.raises(UserError, match="would overwrite the input"):
        fuse_det.main(fuse_det.make_parser().parse_args(["--dt", *files, "--out", files[1]]))
