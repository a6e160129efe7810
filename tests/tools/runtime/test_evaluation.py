"""A detector over a set: image by image, means of losses, and the files of results."""

from __future__ import annotations

import json
import tarfile
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import load_config
from datasets.batch import Collate
from datasets.build import build_dataset
from datasets.imagenet_det import read_imagenet_det
from datasets.target import SampleKey
from detection.evaluation.data import Detections, GroundTruth
from detection.model import build_detector
from detection.prediction import ImageDetections, to_numpy
from tools.runtime import evaluation
from tools.runtime.evaluation import _LossSums, run_detector, score, write_results

CPU = torch.device("cpu")


def test_losses_are_means_over_the_images():
    """Batches of 3 and 1 with 2 and 6: (3 * 2 + 6) / 4 = 3."""
    sums = _LossSums()
    sums.add({}, 2)
    assert sums.means() == {}
    sums = _LossSums()
    sums.add({"a": torch.tensor(2.0), "b": torch.tensor(1.0)}, 3)
    sums.add({"a": torch.tensor(6.0), "b": torch.tensor(1.0)}, 1)
    assert sums.means() == {"a": 3.0, "b": 1.0, "loss": 4.0}


def test_losses_of_processes_count_by_their_images(monkeypatch):
    monkeypatch.setattr(evaluation.distributed, "all_gather", lambda mine: [mine, ({"a": 10.0}, 4)])
    sums = _LossSums()
    sums.add({"a": torch.tensor(2.0)}, 1)
    assert sums.means() == {"a": 12 / 5, "loss": 12 / 5}


@pytest.fixture
def made(tiny_config, tmp_path):
    config = load_config(tiny_config, ["train.batch_size=3"])
    torch.manual_seed(0)
    dataset = build_dataset(config.data, "test", tmp_path)
    return config, dataset, build_detector(config.model, dataset.class_names, test=config.test)


def test_each_image_as_if_it_were_alone(made):
    """The first ones are padded to another size in the batch; the mode comes back; the losses are the detector's."""
    config, dataset, detector = made
    detector.train()
    outcome = run_detector(detector, dataset, config, CPU, what="test", losses=True)
    assert detector.training
    detector.eval()
    collate = Collate(config.data.size_divisor)
    per_image = []
    with torch.no_grad():
        for index in range(len(dataset)):
            per_image += to_numpy(detector(collate([dataset[SampleKey(0, index)]])))
    ids = dataset.records.image_ids.tolist()
    expected = Detections.from_images(ids, per_image, detector.class_names, frame="voc")
    assert len(expected) > 0
    assert outcome.detections.image_ids == ids
    assert outcome.detections.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(outcome.detections.boxes, expected.boxes, atol=2e-3)
    assert outcome.losses["loss"] == pytest.approx(sum(v for k, v in outcome.losses.items() if k != "loss"))
    assert run_detector(detector, dataset, config, CPU, what="test", losses=True).losses == outcome.losses
    assert run_detector(detector, dataset, config, CPU, what="test").losses == {}


def perfect(records) -> Detections:
    truth = GroundTruth.from_records(records)
    return Detections(
        truth.frame, truth.image_ids, truth.class_names, truth.image_index, truth.labels, truth.boxes,
        np.ones(len(truth.labels)),
    )  # fmt: skip


def test_perfect_detections_score_one_and_are_written(made, tmp_path):
    _, dataset, _ = made
    records, found = dataset.records, perfect(dataset.records)
    metrics = score(records, found, ["voc12"])
    assert metrics["voc12"]["mAP"] == 1
    files = write_results(tmp_path / "out", records, found, metrics, report=False)
    assert files == [tmp_path / "out/metrics.json", tmp_path / "out/detections.json"]
    assert json.loads(files[0].read_text())["voc12"]["mAP"] == 1
    assert len(json.loads(files[1].read_text())) == len(found)
    assert (tmp_path / "out/comp4_det_test_red.txt").is_file()


def test_a_set_without_annotations_gives_a_submission_in_place_of_metrics(made, tmp_path):
    _, dataset, _ = made
    found = perfect(dataset.records)
    bare = replace(dataset.records, annotated=False)
    with pytest.raises(UserError, match="has no annotations, so nothing can be validated on it"):
        score(bare, found, ["voc12"])
    submission, saved = write_results(tmp_path / "voc", bare, found, None)
    with tarfile.open(submission) as archive:
        assert archive.getnames() == [
            "results/VOC2012/Main/comp4_det_test_red.txt", "results/VOC2012/Main/comp4_det_test_blue.txt"
        ]  # fmt: skip
    as_coco = replace(bare, form="coco", image_ids=np.arange(len(bare)))
    submission, saved = write_results(tmp_path / "coco", as_coco, perfect(as_coco), None)
    with zipfile.ZipFile(submission) as archive:
        assert archive.namelist() == ["detections_test-dev2017_frcnn_results.json"]
        assert archive.read(archive.namelist()[0]) == saved.read_bytes()


def test_imagenet_dets_submission_counts_images_as_the_list_does(tmp_path):
    """<image_index> is the number beside the image's name in ImageSets/DET/test.txt, whatever the name."""
    lists = tmp_path / "ImageSets/DET"
    lists.mkdir(parents=True)
    numbers = {"ILSVRC2012_test_00000030": 1, "ILSVRC2012_test_00000004": 2, "ILSVRC2013_test_00000001": 3}
    (lists / "test.txt").write_text("".join(f"{name} {number}\n" for name, number in numbers.items()))
    (tmp_path / "Data/DET/test").mkdir(parents=True)
    for name in numbers:
        cv2.imwrite(str(tmp_path / f"Data/DET/test/{name}.JPEG"), np.zeros((30, 40, 3), np.uint8))
    records = read_imagenet_det(tmp_path, "test")
    assert not records.annotated
    per_image = [
        ImageDetections(np.array([[k, 2, 11, 21]], np.float32), np.array([0.5], np.float32), np.array([k]))
        for k in (1, 2, 3)
    ]
    found = Detections.from_images(records.image_ids.tolist(), per_image, ["ant", "zebra", "accordion"], frame="voc")
    submission, _ = write_results(tmp_path / "out", records, found, None)
    assert [line.split() for line in submission.read_text().splitlines()] == [
        ["1", "3", "0.5", "1.0", "2.0", "10.0", "20.0"],
        ["2", "200", "0.5", "2.0", "2.0", "10.0", "20.0"],
        ["3", "1", "0.5", "3.0", "2.0", "10.0", "20.0"],
    ]
