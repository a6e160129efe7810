"""What the localisation scripts share: figures by hand, and predictions in the set's order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.classification import Classifier
from backbones.weights import IMAGENET
from configs.loading import parse_config
from configs.localisation import LocalisationConfig
from datasets.localisation import read_localisation
from datasets.make_records import make_records
from datasets.records import Records
from detection.localisation import build_localiser
from tests.tools.made import localisation_values
from tools.runtime import localisation as module
from tools.runtime.localisation import (
    Members,
    Predictions,
    figures,
    mean_boxes,
    predict,
    say_table,
    trivial_figures,
    write_predictions,
)

CPU = torch.device("cpu")


@pytest.fixture
def records() -> Records:
    """A cat in the left half of 100 x 200 (H, W), and a dog in the whole of 50 x 50."""
    return make_records(
        images=[("a.jpg", "a", (100, 200)), ("b.jpg", "b", (50, 50))],
        boxes=[[0.0, 0, 100, 100], [0, 0, 50, 50]], labels=[1, 2], counts=[1, 1], class_names=["cat", "dog"],
        source="made", annotation_file="x.xml",
    )  # fmt: skip


def predictions(records: Records) -> Predictions:
    """True class, then dog and cat for both images; the cat's box is right, the dog's half too small."""
    cat, dog, small = [0.0, 0, 90, 100], [0.0, 0, 50, 50], [0.0, 0, 20, 20]
    return Predictions(
        np.array([[0, 1, 0], [1, 1, 0]]),
        np.array([[cat, dog, cat], [small, small, cat]], np.float32),
        np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]], np.float32),
    )


def test_errors_by_hand(records):
    assert figures(predictions(records), records) == {
        "true_class_error": 0.5,  # the dog's box
        "top1_error": 1.0,  # image a: wrong class; image b: wrong box
        "top5_error": 0.5,
        "top1_class_error": 0.5,
        "top5_class_error": 0.0,
        "images": 2,
    }
    alone = Predictions(*(part[:, :1] for part in vars(predictions(records)).values()))
    assert figures(alone, records) == {"true_class_error": 0.5, "images": 2}


def test_mean_boxes_are_shares_of_width_and_height(records):
    assert mean_boxes(records).tolist() == [[0, 0, 0.5, 1], [0, 0, 1, 1]]
    assert trivial_figures(mean_boxes(records), records)["mean_box_error"] == 0
    thin = np.array([[0, 0, 0.2, 1], [0, 0, 1, 1]])  # 40 of the cat's 100 columns
    assert trivial_figures(thin, records)["mean_box_error"] == 0.5


def test_the_table(capsys):
    say_table({"true_class_error": 0.125, "centre_box_error": 1.0, "images": 7}, "val")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "val"
    assert [line.split() for line in lines[3:]] == [
        ["true", "class,", "a", "box", "12.50"], ["true", "class,", "centred", "box", "100.00"]
    ]  # fmt: skip


def test_files_hold_the_predicted_classes(records, tmp_path):
    write_predictions(tmp_path / "p.json", predictions(records), records)
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [(row["image_id"], row["category"]) for row in rows] == [
        ("a", "dog"),
        ("a", "cat"),
        ("b", "dog"),
        ("b", "cat"),
    ]
    assert rows[1]["bbox"] == [0, 0, 90, 100]
    assert rows[1]["score"] == pytest.approx(0.7)
    alone = Predictions(*(part[:, :1] for part in vars(predictions(records)).values()))
    write_predictions(tmp_path / "p.json", alone, records)
    assert [row["category"] for row in json.loads((tmp_path / "p.json").read_text())] == ["cat", "dog"]


def test_predictions_are_in_the_sets_order_whatever_the_batches(tmp_path: Path):
    config = parse_config(localisation_values(tmp_path), [], LocalisationConfig, "made")
    records = read_localisation(config.data.val, tmp_path)
    torch.manual_seed(0)
    rpn = build_localiser(config.model, 2, preprocessing=IMAGENET).train()
    for parameter in rpn.siblings.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    members = Members([rpn], classifiers=[Classifier(rpn.net, rpn.normalize, ["n01", "n02"], None)])
    assert members.modules() == [rpn, rpn.net]
    found = [predict(members, records, config, CPU, view="center", batch_size=size) for size in (5, 12)]
    assert rpn.training
    assert found[0].labels[:, 0].tolist() == (records.labels - 1).tolist()
    assert sorted(found[0].labels[0, 1:].tolist()) == [0, 1]
    assert found[0].boxes.shape == (12, 3, 4)
    assert np.array_equal(found[0].labels, found[1].labels)
    np.testing.assert_allclose(found[0].boxes, found[1].boxes, atol=1e-3)
    assert len(np.unique(found[0].boxes[:, 0], axis=0)) > 6
    only = predict(Members([rpn]), records, config, CPU, view="center")
    np.testing.assert_allclose(only.boxes, found[0].boxes[:, :1], atol=1e-3)


def test_a_classifier_has_the_size_of_its_own_training_crop(tmp_path: Path, monkeypatch):
    """Not that of the localiser's config: the R-CNN's crops of the image are larger than a classifier's."""
    config = parse_config(localisation_values(tmp_path), [], LocalisationConfig, "made")
    records = read_localisation(config.data.val, tmp_path)
    rpn = build_localiser(config.model, 2, preprocessing=IMAGENET)
    windows, sides = [], []

    def noting(net, normalize, images, view, crop_size):
        windows.append((view, crop_size))
        sides.append(images[0].shape[-1])
        return torch.zeros(len(images[0]), 2)

    monkeypatch.setattr(module, "view_scores", noting)
    members = [Classifier(rpn.net, rpn.normalize, [], size) for size in (20, 28, None)]
    predict(Members([rpn], classifiers=members), records, config, CPU, view="dense", batch_size=12)
    assert windows == [("multiscale", 20), ("multiscale", 28), ("multiscale", 32)]
    windows.clear()
    sides.clear()
    predict(Members([rpn], classifiers=members), records, config, CPU, view="center", batch_size=12)
    assert windows == [("center", 20), ("center", 28), ("center", 32)]
    assert sides == [20, 28, 32]


def test_a_smaller_crop_for_a_classifier_shows_the_same():
    net = torch.nn.Identity()
    gradient = torch.arange(32, dtype=torch.uint8).expand(1, 3, 32, 32)
    smaller = module.seen_by(Classifier(net, net, [], 16), [gradient], "center")[0]
    assert torch.allclose(smaller[0, 0, 0, 1:-1], torch.arange(2.5, 29, 2), atol=0.01)
