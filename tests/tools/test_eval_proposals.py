"""Recall of saved proposals against arithmetic; of an RPN against its own saved proposals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from configs.detection import DetectionConfig
from configs.loading import load_config
from detection.model import build_detector
from tools import eval_proposals as script
from tools.runtime import cli


def run(*words) -> None:
    script.main(script.make_parser().parse_args([str(word) for word in words]))


def test_saved_proposals_of_coco(tmp_path):
    truth = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 0},
        ],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    proposals = [
        {"image_id": 7, "bbox": [10, 10, 20, 14], "score": 0.2},  # IoU 0.7: recalled at .5 to .7
        {"image_id": 7, "bbox": [50, 50, 40, 40], "score": 0.9},
    ]
    (tmp_path / "p.json").write_text(json.dumps(proposals))
    words = ("--format", "coco", "--gt", tmp_path / "gt.json", "--proposals", tmp_path / "p.json")
    run(*words, "--counts", 1, 2, "--out", tmp_path / "recall.json", "--save", tmp_path / "again.json")
    recall = json.loads((tmp_path / "recall.json").read_text())
    assert recall["AR@1"]["all"] == pytest.approx(0.5)
    assert recall["AR@2"]["small"] == pytest.approx(0.5)
    assert recall["AR@2"]["all"] == pytest.approx((1.0 + 0.5) / 2)
    assert recall["AR@2"]["recall50"] == 1.0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == [proposals[1], proposals[0]]


def test_pixels_of_voc_files_that_count_from_zero(tmp_path):
    """The edges 0 and 10 are the pixels 1 to 10 in VOC's count: the proposal is the object."""
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("a\n")
    sides = "<xmin>0</xmin><ymin>0</ymin><xmax>10</xmax><ymax>10</ymax>"
    objects = f"<object><name>x</name><bndbox>{sides}</bndbox></object>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": "a", "bbox": [1, 1, 10, 10], "score": 0.9}]))
    words = ("--format", "voc", "--gt", tmp_path, "--proposals", tmp_path / "p.json", "--out", tmp_path / "r.json")
    for more, recall in (("--zero-based",), 1.0), ((), 0.7):  # 100 of 121 pixels: .5 to .8, IoU .826
        run(*words, *more)
        assert json.loads((tmp_path / "r.json").read_text())["AR@100"]["all"] == pytest.approx(recall)


def test_a_checkpoints_rpn(tmp_path, tiny_voc, tiny_config, capsys):
    config = load_config(tiny_config, [], DetectionConfig)
    torch.manual_seed(0)
    detector = build_detector(config.model, ["red", "blue"])
    preprocessing = detector.preprocessing.to_dict()
    checkpoint = {
        "format": 1,
        "kind": "detector",
        "config": config.model_dump(mode="json"),
        "model": detector.state_dict(),
    }
    torch.save({**checkpoint, "class_names": ["red", "blue"], "preprocessing": preprocessing}, tmp_path / "last.pt")
    common = ("--counts", 10, 50, "--out", tmp_path / "recall.json")
    run("--cfg", tiny_config, "--weights", tmp_path / "last.pt", "--data-root", tiny_voc.parent, "--device", "cpu",
        "--save", tmp_path / "proposals.json", "--split", "test", *common)  # fmt: skip
    recall = json.loads((tmp_path / "recall.json").read_text())
    saved = json.loads((tmp_path / "proposals.json").read_text())
    boxes = np.array([item["bbox"] for item in saved])
    assert len({item["image_id"] for item in saved}) == 2
    assert 10 < len(saved) <= 100
    assert (boxes[:, :2] >= 1).all()
    assert (boxes[:, 2:] <= 64).all()
    assert 0 < recall["AR@50"]["recall50"] <= 1
    run("--format", "voc", "--gt", tiny_voc, "--proposals", tmp_path / "proposals.json", *common)
    again = json.loads((tmp_path / "recall.json").read_text())
    for count in recall:
        for name, value in recall[count].items():
            assert again[count][name] == pytest.approx(value, abs=1e-9), (count, name)
    assert "AR@50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ({}, "not a list"),
        ([{"image_id": 1, "bbox": [1, 2, 3], "score": 1}], "not four numbers"),
        ([{"image_id": 1, "bbox": "1234", "score": 1}], "bbox is '1234', not four numbers"),  # was 1, 2, 3, 4
        ([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": "1"}], "score is the text '1'"),
        ([{"image_id": 1, "score": 1}], "detection 0 (line 1): has no bbox"),
        ([{"image_id": [1], "bbox": [1, 2, 3, 4], "score": 1}], "image_id [1] is not in"),  # was a traceback
        ([{"image_id": True, "bbox": [1, 2, 3, 4], "score": 1}], "image_id True is not in"),  # was image 1
        ([{"image_id": 9, "bbox": [1, 2, 3, 4], "score": 1}], "image_id 9 is not in"),
    ],
)
def test_mistakes_are_named(tmp_path, items, words, monkeypatch, capsys):
    truth = {"images": [{"id": 1, "width": 9, "height": 9}], "categories": [{"id": 1, "name": "x"}], "annotations": []}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "p.json").write_text(json.dumps(items))
    argv = ["x", "--format", "coco", "--gt", str(tmp_path / "gt.json"), "--proposals", str(tmp_path / "p.json")]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.make_parser())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_predictions_of_other_frames_and_names(tmp_path):
    truth = {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 90, "height": 90}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "p.json").write_text('[{"image_id": "a.jpg", "category": "x", "bbox": [11, 11, 30, 30], "score": 1}]')
    paths = ("--gt", tmp_path / "gt.json", "--proposals", tmp_path / "p.json", "--out", tmp_path / "recall.json")
    run("--format", "coco", *paths, "--counts", 1)
    assert json.loads((tmp_path / "recall.json").read_text())["AR@1"]["all"] == pytest.approx(1)


def test_half_a_command_says_what_is_missing(tmp_path):
    for words in (["--format", "voc"], ["--weights", "x.pt"], []):
        with pytest.raises(script.UserError, match="--cfg"):
            run(*words)
    with pytest.raises(script.UserError, match="leave one of the two out"):
        run("--cfg", "x.yaml", "--weights", "x.pt", "--proposals", "p.json")
    with pytest.raises(script.UserError, match="goes with --format voc"):
        run("--format", "coco", "--gt", "g.json", "--proposals", "p.json", "--zero-based")
