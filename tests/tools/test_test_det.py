"""Evaluation of checkpoints: class names, splits, submissions. (test_train_det: results are the training's own.)"""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from configs.detection import DetectionConfig, TestConfig
from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from detection.inference import Inference
from detection.model import build_detector
from detection.prediction import ImageDetections
from tools import test_det, train_det
from tools.runtime import evaluation
from tools.runtime.checkpoint import save_checkpoint
from tools.runtime.pictures import choose_images


@pytest.fixture(autouse=True)
def report(monkeypatch):
    """The report takes a second: one test writes it, the others do without."""
    real = evaluation.write_report
    monkeypatch.setattr(evaluation, "write_report", lambda folder, *_, **__: folder / "index.html")
    return real


def save_weights(config: DetectionConfig, path: Path, names: tuple[str, ...] = ("red", "blue"), seed: int = 0) -> Path:
    torch.manual_seed(seed)
    detector = build_detector(config.model, list(names))
    content = {
        "format": 1, "kind": "detector", "config": config.model_dump(mode="json"), "class_names": list(names),
        "preprocessing": detector.preprocessing.to_dict(), "model": detector.state_dict(),
    }  # fmt: skip
    save_checkpoint(path, content)
    return path


def load_split_ids(config: Path) -> list[str]:
    return build_dataset(load_config(config).data, "test", config.parent / "data").records.image_ids.tolist()


@pytest.fixture
def weights(tiny_config, tmp_path) -> Path:
    """An untrained detector of the tiny set's classes."""
    return save_weights(load_config(tiny_config), tmp_path / "weights.pt")


def run(config: Path, weights: Path | list[Path], *more: str) -> None:
    members = [str(path) for path in (weights if isinstance(weights, list) else [weights])]
    command = ["--cfg", str(config), "--weights", *members, "--device", "cpu", *more]
    test_det.main(test_det.make_parser().parse_args(command))


def perfect(records, *, shift: float = 0.0):
    """A detector that knows the truth."""

    def detect(batch) -> list[ImageDetections]:
        found = []
        for index in batch.index.tolist():
            target = records.target(index)
            found.append(ImageDetections(target.boxes + shift, np.linspace(1, 0.9, len(target)), target.labels))
        return found

    return detect


def test_perfect_detections_score_one(tiny_config, weights, tmp_path, monkeypatch, capsys):
    """Through the loader, the shards, the files and the evaluators: AP 1.0 by every protocol."""
    real = evaluation.run_detector

    def with_truth(detectors, dataset, *args, **options):
        detect = perfect(dataset.records)
        monkeypatch.setattr(detectors[0], "detect", lambda batch, test: detect(batch))
        monkeypatch.setattr(evaluation, "to_numpy", lambda found: found)
        return real(detectors, dataset, *args, **options)

    monkeypatch.setattr(test_det, "run_detector", with_truth)
    run(tiny_config, weights, "--out", str(tmp_path / "out"), "--set", "data.test.0.image_set=train")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    for protocol in ("voc07", "voc12"):
        assert metrics[protocol]["mAP"] == pytest.approx(1.0)
        assert metrics[protocol]["per_class"] == pytest.approx({"red": 1.0, "blue": 1.0})
    assert metrics["coco"]["AP"] == pytest.approx(1.0)
    assert "100.0" in capsys.readouterr().out
    (tmp_path / "out/pictures/mine.png").write_text("a person's")
    run(tiny_config, weights, "--out", str(tmp_path / "out"))  # of other images: those of the training set go
    names = {path.stem for path in (tmp_path / "out/pictures").iterdir()}
    assert names == {"overview", "mine", *load_split_ids(tiny_config)}
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    xml = (tiny_config.parent / "data/tiny/Annotations" / f"{rows[0]['image_id']}.xml").read_text()
    for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), rows[0]["bbox"], strict=True):
        assert f"<{tag}>{value:.0f}</{tag}>" in xml  # VOC's own pixels


def test_classes_follow_the_checkpoint(tiny_config, weights, tmp_path):
    """Another order in the config is no matter; other names are refused, with the names."""
    run(tiny_config, weights, "--set", "data.classes=[blue, red]")
    assert (tmp_path / "test_weights/metrics.json").exists()  # the default folder
    run(tiny_config, weights, "--set", "data.classes=auto")
    with pytest.raises(UserError, match="the data has green, which the weights lack; the weights have blue"):
        run(tiny_config, weights, "--set", "data.classes=[red, green]")
    with pytest.raises(UserError, match="the data has green"):
        run(tiny_config, weights, "--set", "data.classes=[red, blue, green]")


def test_another_size_than_the_trainings_is_told(tiny_config, weights, tmp_path, capsys):
    size = load_config(tiny_config).data.test_min_size
    run(tiny_config, weights, "--out", str(tmp_path / "same"))
    assert "comes from a training" not in capsys.readouterr().out
    run(tiny_config, weights, "--out", str(tmp_path / "out"), "--set", f"data.test_min_size={size - 8}")
    assert f"weights.pt comes from a training with test_min_size {size}, not {size - 8}" in capsys.readouterr().out


def test_annotated_classes_that_the_weights_lack_are_refused_with_auto(tiny_config, tiny_voc, weights):
    xml = tiny_voc / "Annotations/image_7.xml"
    xml.write_text(xml.read_text().replace(">red<", ">green<"))
    with pytest.raises(UserError, match=r"image_7\.xml object 0 \(green\)"):
        run(tiny_config, weights, "--set", "data.classes=auto")


def test_weights_of_another_model_are_refused(tiny_config, weights):
    with pytest.raises(UserError, match=r"weights\.pt: rpn\.head"):
        run(tiny_config, weights, "--set", "model.rpn.hidden_channels=32")
    with pytest.raises(UserError, match="there is no such"):
        run(tiny_config, weights.with_name("missing.pt"))


def test_an_exported_file_is_tested_as_it_is(tiny_config, weights, tmp_path, monkeypatch, capsys):
    """By the same loader, evaluators and files; alone, for only checkpoints make an ensemble."""

    class Knowing(torch.nn.Module):
        scales, class_names, thresholds = (), ("red", "blue"), {"score": 0.75, "detections_per_img": 100}

        def __init__(self, path, data):
            super().__init__()
            assert (path, data.test_min_size) == (tmp_path / "a.xml", load_config(tiny_config).data.test_min_size)
            config = load_config(tiny_config).data
            self.detect = perfect(build_dataset(config, "test", tmp_path, class_names=["red", "blue"]).records)

        def forward(self, batch):
            return self.detect(batch)

    monkeypatch.setattr(test_det, "ExportedDetector", Knowing)
    monkeypatch.setattr(evaluation, "ExportedDetector", Knowing)
    monkeypatch.setattr(evaluation, "to_numpy", lambda found: found)
    run(tiny_config, tmp_path / "a.xml", "--out", str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["voc12"]["mAP"] == pytest.approx(1.0)
    assert "its own thresholds count: score 0.75 (the config's" in capsys.readouterr().out
    folders = {name: test_det.default_folder([tmp_path / name]).name for name in ("a.pt", "a.pt2", "a.xml")}
    assert folders == {"a.pt": "test_a", "a.pt2": "test_a_pt2", "a.xml": "test_a_xml"}
    with pytest.raises(UserError, match="--compile and --graphs: are for checkpoints"):
        run(tiny_config, tmp_path / "a.xml", "--graphs")
    with pytest.raises(UserError, match=r"a\.xml: an exported file is tested alone"):
        run(tiny_config, [weights, tmp_path / "a.xml"])


def test_validation_split_where_there_is_no_test_set(tiny_config, weights, tiny_voc, tmp_path, capsys):
    val = f"data.val=[{{format: voc, root: {tiny_voc}, image_set: train}}]"
    run(tiny_config, weights, "--set", val, "data.test=[]")
    assert "val set, 6 images" in capsys.readouterr().out
    run(tiny_config, weights, "--split", "val", "--set", val)
    assert "val set, 6 images" in capsys.readouterr().out
    with pytest.raises(UserError, match="lists no source"):
        run(tiny_config, weights, "--split", "val")


def test_a_place_of_results_that_cannot_be_written_is_refused_before_the_test(tiny_config, weights, monkeypatch):
    monkeypatch.setattr(test_det, "run_detector", lambda *_, **__: pytest.fail("it was tested"))
    weights.with_name("test_weights").write_text("")
    for more in ((), ("--out", f"{weights}/x")):
        with pytest.raises(UserError, match=r"cannot be written: .*(is a file|is not a folder)"):
            run(tiny_config, weights, *more)


def test_voc_set_without_annotations_gives_a_submission(tiny_config, tiny_voc, weights, tmp_path, capsys):
    for name in ("image_6", "image_7"):
        (tiny_voc / f"Annotations/{name}.xml").unlink()
    run(tiny_config, weights, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out/metrics.json").exists()
    with tarfile.open(tmp_path / "out/submission.tar.gz") as archive:
        assert sorted(archive.getnames()) == [f"results/VOC2012/Main/comp4_det_test_{n}.txt" for n in ("blue", "red")]
    assert "submission.tar.gz" in capsys.readouterr().out
    assert (tmp_path / "out/pictures/overview.png").exists()


def coco_file(root: Path, *, annotated: bool) -> Path:
    images = [
        {"id": 70 + i, "file_name": f"image_{i}.png", "height": (48, 64)[i % 2], "width": (64, 48)[i % 2]}
        for i in (6, 7)
    ]
    box = {"id": 1, "image_id": 76, "category_id": 90, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    content = {"images": images, "categories": [{"id": 90, "name": "red"}, {"id": 17, "name": "blue"}]}
    path = root / ("instances_test.json" if annotated else "image_info_test.json")
    path.write_text(json.dumps(content | ({"annotations": [box]} if annotated else {})))
    return path


@pytest.mark.parametrize("annotated", [True, False])
def test_coco_set_gives_coco_results(tiny_config, tiny_voc, weights, tmp_path, annotated):
    file = coco_file(tmp_path, annotated=annotated)
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["test"] = [{"format": "coco", "images": str(tiny_voc / "JPEGImages"), "annotations": str(file)}]
    tiny_config.write_text(yaml.safe_dump(config))
    run(tiny_config, weights, "--out", str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    assert {row["image_id"] for row in rows} == {76, 77}
    assert {row["category_id"] for row in rows} <= {90, 17}
    assert not list((tmp_path / "out").glob("comp4*"))
    assert (tmp_path / "out/metrics.json").exists() == annotated
    if not annotated:
        with zipfile.ZipFile(tmp_path / "out/submission.zip") as archive:
            (name,) = archive.namelist()
            assert json.loads(archive.read(name)) == rows


def test_pictures_show_images_with_objects_first(tiny_config, tmp_path):
    from datasets.build import build_records

    records = build_records(load_config(tiny_config).data, "train", tmp_path)
    offsets = np.array([0, 0, 1, 1, 2, 2, 3])  # images 1, 3 and 5 have objects
    records = type(records)(**{**records.__dict__, "offsets": offsets})
    assert choose_images(records, 3) == [1, 3, 5]
    assert choose_images(records, 2) == [1, 5]
    assert choose_images(records, 100) == [0, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------- improvements


def found(folder: Path) -> list[tuple]:
    rows = json.loads((folder / "detections.json").read_text())
    return [(row["image_id"], row["category"], row["score"], *row["bbox"]) for row in rows]


@pytest.mark.parametrize(
    "options",
    [
        ["test.refine_rounds=1", "test.vote_iou=0.5"],
        ["test.scales=[32,48,80]"],
        ["test.tta={hflip: true, scales: [32, 48], merge: vote}"],
        ["test.refine_rounds=2", "test.scales=[32,48]", "test.tta.hflip=true"],
    ],
)
def test_improvements_run_and_change_what_is_found(tiny_config, weights, tmp_path, options):
    run(tiny_config, weights, "--out", str(tmp_path / "plain"))
    run(tiny_config, weights, "--out", str(tmp_path / "out"), "--set", *options)
    assert found(tmp_path / "out")
    assert found(tmp_path / "out") != found(tmp_path / "plain")
    assert json.loads((tmp_path / "out/metrics.json").read_text())["voc12"]["mAP"] is not None


def test_an_ensemble_of_different_nets(tiny_config, weights, tmp_path, capsys):
    """Each member by its own stored config, with the thresholds of --cfg; the same one twice is itself."""
    other = {"model.neck": "fpn", "model.anchors.sizes": "[[8],[12],[16],[24],[32]]", "model.fpn_channels": 16,
             "model.box.class_agnostic": "true", "test.score_thresh": 0.9,
             "model.box.global_context": "true"}  # fmt: skip
    config = load_config(tiny_config, [f"{key}={value}" for key, value in other.items()])
    fpn = save_weights(config, tmp_path / "fpn.pt", seed=1)
    run(tiny_config, weights, "--out", str(tmp_path / "one"))
    run(tiny_config, [weights, weights], "--out", str(tmp_path / "twice"))
    one, twice = found(tmp_path / "one"), found(tmp_path / "twice")
    assert [row[:2] for row in one] == [row[:2] for row in twice]
    np.testing.assert_allclose([row[2:] for row in one], [row[2:] for row in twice], rtol=1e-3, atol=0.02)
    run(tiny_config, [fpn, weights], "--set", "test.detections_per_img=7")
    assert {len([row for row in found(tmp_path / "test_ensemble") if row[0] == name]) for name in ("image_6", "image_7")
            } == {7}  # fmt: skip
    assert "fpn.pt, " in capsys.readouterr().out


def test_members_of_other_classes_are_refused(tiny_config, weights, tmp_path):
    green = save_weights(load_config(tiny_config), tmp_path / "green.pt", ("red", "green"))
    with pytest.raises(UserError, match=r"green\.pt: other classes than .*weights\.pt's \(blue, green in one"):
        run(tiny_config, [weights, green])


def test_the_end_of_a_training_is_this_test(tiny_config, tmp_path):
    """`test` in the config holds for the final test of train_det.py too."""
    options = ["--set", "test.refine_rounds=1", "test.vote_iou=0.5"]
    training = ["--cfg", str(tiny_config), "--out", str(tmp_path / "run"), "--device", "cpu", *options]
    train_det.main(train_det.make_parser().parse_args(training))
    run(tiny_config, tmp_path / "run/last.pt", "--out", str(tmp_path / "again"), *options)
    run(tiny_config, tmp_path / "run/last.pt", "--out", str(tmp_path / "plain"))
    assert found(tmp_path / "run") == found(tmp_path / "again") != found(tmp_path / "plain")


def test_validations_take_the_thresholds_of_the_config_and_no_improvements(tiny_config, tmp_path, monkeypatch):
    config = load_config(tiny_config, ["test.nms_thresh=0.1", "test.refine_rounds=1", "test.tta.hflip=true"])
    detector = build_detector(config.model, ["red", "blue"])
    dataset = build_dataset(config.data, "test", tmp_path)
    seen = []
    monkeypatch.setattr(evaluation, "Inference", lambda *given: seen.append(given[1]) or Inference(*given))
    evaluation.run_detector(detector, dataset, config, torch.device("cpu"), what="validation")
    assert seen == [TestConfig(score_thresh=0.0, nms_thresh=0.1)]
