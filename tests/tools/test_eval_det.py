"""tools/eval_det.py as people run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_records
from detection.evaluation.data import Detections, GroundTruth
from detection.evaluation.evaluate import evaluate
from detection.evaluation.write import category_ids_of, write_comp4, write_detections_json
from detection.prediction import ImageDetections
from tools import eval_det as script
from tools.benchmarks.synthetic import make_set, write_coco_annotations


def run(root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "tools" / "eval_det.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def write_voc_folder(folder: Path, truth: GroundTruth) -> None:
    """The annotations of a made-up set as a VOC folder without images."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (lists / "test.txt").write_text("\n".join(map(str, truth.image_ids)))
    for index, name in enumerate(truth.image_ids):
        objects = ""
        for number in (truth.image_index == index).nonzero()[0]:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), truth.boxes[number].tolist(), strict=True)
            objects += f"<object><name>{truth.class_names[truth.labels[number] - 1]}</name>"
            objects += f"<difficult>{int(truth.difficult[number])}</difficult><bndbox>"
            objects += "".join(f"<{side}>{value!r}</{side}>" for side, value in sides) + "</bndbox></object>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder with a VOC set and detections in both forms, and the metrics in memory."""
    folder = tmp_path_factory.mktemp("voc")
    truth, found = make_set("voc", images=30, classes=4, objects=90, detections=400, seed=5)
    write_voc_folder(folder / "set", truth)
    write_detections_json(folder / "detections.json", found)
    write_comp4(folder / "comp4", found)
    return folder, evaluate(truth, found)


def test_both_forms_of_voc_detections_give_the_numbers_in_memory(root: Path, voc: tuple[Path, dict]) -> None:
    folder, expected = voc
    for name in ("detections.json", "comp4"):
        out = folder / f"metrics_{name}"
        done = run(root, "--format", "voc", "--gt", folder / "set", "--dt", folder / name, "--out", out)
        assert done.returncode == 0, done.stderr
        metrics = json.loads(out.read_text())
        for protocol in ("voc07", "voc12", "coco"):
            assert metrics[protocol] == expected[protocol]
        assert "VOC07 AP" in done.stdout
        assert "COCO (by " in done.stdout


def test_imagenet_det(root: Path, tmp_path: Path) -> None:
    """An ant of 10 x 10 pixels at 1..10 (the XML: 0..9), found in 15 x 15: true by ImageNet's rule, not by VOC's."""
    ilsvrc = tmp_path / "ILSVRC"
    for folder in ("Annotations/DET/val", "Data/DET/val", "ImageSets/DET"):
        (ilsvrc / folder).mkdir(parents=True)
    name = "ILSVRC2012_val_00000007"
    (ilsvrc / "ImageSets/DET/val.txt").write_text(f"{name} 7\n")
    (ilsvrc / "Data/DET/val" / f"{name}.JPEG").write_bytes(b"")
    (ilsvrc / "Annotations/DET/val" / f"{name}.xml").write_text(
        "<annotation><size><width>60</width><height>40</height></size><object><name>n02219486</name><bndbox>"
        "<xmin>0</xmin><ymin>0</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    found = [{"image_id": name, "category": "ant", "bbox": [1, 1, 15, 15], "score": 0.9}]
    (tmp_path / "dt.json").write_text(json.dumps(found))
    files = ["--gt", ilsvrc, "--dt", tmp_path / "dt.json", "--out", tmp_path / "out.json"]
    done = run(root, "--format", "imagenet_det", "--image-set", "val", *files)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out.json").read_text())
    assert (metrics["imagenet_det"]["mAP"], metrics["voc12"]["mAP"]) == (1.0, 0.0)
    assert metrics["imagenet_det"]["per_class"]["bee"] is None
    assert "DET AP" in done.stdout


def test_coco_files_give_the_numbers_in_memory(root: Path, tmp_path: Path) -> None:
    truth, found = make_set("coco", images=30, classes=4, objects=90, detections=400, seed=5)
    write_coco_annotations(tmp_path / "gt.json", truth)
    write_detections_json(tmp_path / "dt.json", found, category_ids_of(truth))
    out = tmp_path / "metrics.json"
    done = run(
        root, "--format", "coco", "--gt", tmp_path / "gt.json", "--dt", tmp_path / "dt.json", "--out", out,
        "--backend", "pycocotools",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics, expected = json.loads(out.read_text()), evaluate(truth, found)
    assert metrics["coco_backend"].startswith("pycocotools")
    assert {key: metrics[key] for key in ("voc07", "voc12", "coco")} == {
        key: expected[key] for key in ("voc07", "voc12", "coco")
    }


def test_metrics_json_has_the_fixed_layout(voc: tuple[Path, dict]) -> None:
    _, metrics = voc
    assert set(metrics["voc07"]) == set(metrics["voc12"]) == {"mAP", "per_class"}
    twelve = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(metrics["coco"]) == [*twelve, "per_class"]
    assert 0.0 < metrics["voc12"]["mAP"] < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dt", "missing.json"), "missing.json: there is no such file"),
        (("--image-set", "tets"), "did you mean test"),
        (("--format", "coco"), "is a folder"),
        (("--compare", "x.json"), "--report"),
        (("--names", "a", "b"), "--images and --names go with --report"),
        (("--format", "yolo"), "invalid choice"),
    ],
)
def test_mistakes_take_one_line_and_exit_code_2(
    root: Path, voc: tuple[Path, dict], arguments: tuple[str, ...], message: str
) -> None:
    folder, _ = voc
    done = run(root, "--format", "voc", "--gt", folder / "set", "--dt", folder / "detections.json", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_broken_line_writes_no_metrics(root: Path, voc: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = voc
    (tmp_path / "comp4_det_test_class01.txt").write_text("000001 0.5 1 1 5 5\n000002 0.5 1 1 5\n")
    done = run(root, "--format", "voc", "--gt", folder / "set", "--dt", tmp_path, "--out", tmp_path / "m.json")
    assert done.returncode == 2
    assert "comp4_det_test_class01.txt line 2" in done.stderr
    assert not (tmp_path / "m.json").exists()


def test_torch_is_not_loaded(root: Path, voc: tuple[Path, dict]) -> None:
    folder, _ = voc
    code = f"""
import sys, runpy
sys.argv = ["eval_det.py", "--format", "voc", "--gt", {str(folder / "set")!r}, "--dt", {str(folder / "comp4")!r},
            "--report", {str(folder / "report")!r}]
try:
    runpy.run_path({str(root / "tools" / "eval_det.py")!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
assert "torch" not in sys.modules and "albumentations" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_runs_are_told_apart_in_the_report(root: Path, voc: tuple[Path, dict]) -> None:
    folder, _ = voc
    other = folder / "other"
    other.mkdir()
    (other / "detections.json").write_bytes((folder / "detections.json").read_bytes())
    done = run(
        root, "--format", "voc", "--gt", folder / "set", "--dt", folder / "detections.json",
        "--compare", other / "detections.json", "--report", folder / "compared",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (folder / "compared" / "index.html").read_text()
    assert f"{folder.name}/detections" in page
    assert "other/detections" in page


def test_a_part_of_a_configs_data(tiny_voc: Path, tiny_config: Path, tmp_path: Path) -> None:
    """The validation part that `split` makes: its own objects as detections are perfect, and no other image counts."""
    source = f'[{{"format": "voc", "root": "{tiny_voc}", "image_set": "train", "split": 0.5}}]'
    overrides = [f"data.train={source}", f"data.val={source}", "data.test=[]"]
    config = load_config(tiny_config, overrides)
    parts = {part: build_records(config.data, part, tmp_path) for part in ("train", "val")}
    assert 0 < len(parts["val"]) < 6
    for part, records in parts.items():
        truth = GroundTruth.from_records(records)
        targets = [records.target(index) for index in range(len(records))]
        found = Detections.from_images(
            truth.image_ids,
            [ImageDetections(each.boxes, np.ones(len(each.labels), np.float32), each.labels) for each in targets],
            truth.class_names,
            frame=truth.frame,
        )
        write_detections_json(tmp_path / f"{part}.json", found)
        words = ["--cfg", tiny_config, "--dt", tmp_path / f"{part}.json", "--out", tmp_path / "m.json"]
        args = script.make_parser().parse_args([str(word) for word in [*words, "--set", *overrides]])
        if part == "val":
            script.main(args)
            assert json.loads((tmp_path / "m.json").read_text())["voc12"]["mAP"] == 1.0
        else:
            with pytest.raises(UserError, match="image_"):
                script.main(args)


@pytest.mark.parametrize("words", [[], ["--cfg", "a.yaml", "--gt", "b"], ["--format", "voc"]])
def test_the_ground_truth_is_named_once(words: list[str]) -> None:
    with pytest.raises(UserError, match="--format and --gt"):
        script.main(script.make_parser().parse_args([*words, "--dt", "d.json"]))
