"""The evaluators on real data, through the command that people use, against published and measured figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datasets.coco import read_coco
from datasets.voc import read_voc
from detection.evaluation.coco import evaluate_coco, plain_pycocotools
from detection.evaluation.data import Detections, GroundTruth, align
from detection.evaluation.evaluate import evaluate
from detection.evaluation.ground_truth import read_coco_ground_truth, read_voc_ground_truth
from detection.evaluation.results import read_detections

COCO_API_FIGURES = {
    "AP": 0.5045806987249628, "AP50": 0.6969727247299577, "AP75": 0.5729816669904824,
    "APs": 0.5856257209410443, "APm": 0.5193996948036719, "APl": 0.5013978986347466,
    "AR1": 0.38681277964578054, "AR10": 0.5936795762842003, "AR100": 0.595352982877607,
    "ARs": 0.6398109626113442, "ARm": 0.5664205978994309, "ARl": 0.5642905982905982,
}  # fmt: skip
"""Of the COCO API's own sample, to the last digit."""

PRINTED = {
    "AP": 0.5045806987, "AP50": 0.6969727247, "AP75": 0.5729816670, "APs": 0.5856, "APm": 0.5194, "APl": 0.5014,
    "AR1": 0.3868, "AR10": 0.5937, "AR100": 0.5954, "ARs": 0.6398, "ARm": 0.5664, "ARl": 0.5643,
}  # fmt: skip
"""The same as the COCO API's authors print them."""


def eval_det(root: Path, *arguments: object) -> dict:
    """metrics.json of one run of the script."""
    out = Path(str(arguments[-1]))
    subprocess.run([sys.executable, root / "tools/eval_det.py", *map(str, arguments)], check=True, capture_output=True)
    return json.loads(out.read_text())


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_coco_apis_own_sample(root: Path, data_dir: Path, tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    folder = data_dir / "coco_val2014_100"
    truth, found = folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    metrics = eval_det(
        root, "--format", "coco", "--gt", truth, "--dt", found, "--backend", backend, "--out", tmp_path / "m.json"
    )
    numbers = [metrics["coco"][name] for name in COCO_API_FIGURES]
    assert numbers == pytest.approx(list(COCO_API_FIGURES.values()), abs=1e-9)
    assert numbers == pytest.approx(list(PRINTED.values()), abs=5.1e-5)
    assert numbers[:3] == pytest.approx(list(PRINTED.values())[:3], abs=5.1e-11)
    assert metrics["coco_backend"].startswith(backend)
    ground_truth = read_coco_ground_truth(truth)
    result = evaluate_coco(align(ground_truth, read_detections(found, ground_truth)), backend)  # type: ignore[arg-type]
    precision, recall = plain_pycocotools(truth, found)
    np.testing.assert_array_equal(result.precision, precision)
    np.testing.assert_array_equal(result.recall, recall)


def other_detectors_list(folder: Path) -> list[dict]:
    """voc2012_100's detections as VOC's list: joined by name, corners as they are (x + w is xmax there)."""
    content = json.loads((folder / "detections" / "coco_dets.json").read_text())
    image_of = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
    class_of = {category["id"]: category["name"] for category in content["categories"]}
    found = []
    for item in content["annotations"]:
        x, y, width, height = item["bbox"]
        place = {"image_id": image_of[item["image_id"]], "category": class_of[item["category_id"]]}
        found.append({**place, "bbox": [x, y, x + width, y + height], "score": item["score"]})
    return found


def test_another_detectors_detections_on_voc2012(root: Path, data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "voc2012_100"
    (tmp_path / "dt.json").write_text(json.dumps(other_detectors_list(folder)))
    metrics = eval_det(
        root, "--format", "voc", "--gt", folder, "--image-set", "all", "--dt", tmp_path / "dt.json",
        "--out", tmp_path / "m.json",
    )  # fmt: skip
    figures = [metrics["coco"][name] for name in ("AP", "AP50", "AP75")]
    assert figures == pytest.approx([0.348982, 0.610030, 0.356540], abs=5e-7)
    assert len(metrics["voc12"]["per_class"]) == 20
    # Not the same rule, but the same detector: VOC's AP of 2012 lies near COCO's at IoU .5.
    assert metrics["voc12"]["mAP"] == pytest.approx(metrics["coco"]["AP50"], abs=0.02)


def test_difficult_objects_as_crowd_give_the_other_figures(data_dir: Path, tmp_path: Path) -> None:
    """Not what we report; it shows that difficult objects are what the two conventions differ in."""
    folder = data_dir / "voc2012_100"
    (tmp_path / "dt.json").write_text(json.dumps(other_detectors_list(folder)))
    truth = read_voc_ground_truth(folder, "all")
    truth.iscrowd[:] = truth.difficult
    metrics = evaluate(truth, read_detections(tmp_path / "dt.json", truth), ["coco"])["coco"]
    figures = [metrics[name] for name in ("AP", "AP50", "AP75")]
    assert figures == pytest.approx([0.360007, 0.615259, 0.373306], abs=5e-7)


def test_the_data_sets_reader_and_the_evaluators_reader_agree_on_voc(data_dir: Path) -> None:
    folder = data_dir / "voc2012_100"
    ours, files = GroundTruth.from_records(read_voc(folder, "all")), read_voc_ground_truth(folder, "all")
    for name in ("frame", "image_ids", "class_names", "image_index", "labels", "boxes", "difficult", "area"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(files, name), err_msg=name)
    assert files.difficult.sum() == 38
    assert len(files.labels) == 273


def as_detections(truth: GroundTruth) -> Detections:
    """The objects themselves, found with certainty."""
    names = ("frame", "image_ids", "class_names", "image_index", "labels", "boxes")
    columns = {name: getattr(truth, name) for name in names}
    return Detections(**columns, scores=np.ones(len(truth.labels)))


def test_the_data_sets_reader_and_the_evaluators_reader_agree_on_coco(data_dir: Path) -> None:
    annotations = data_dir / "coco128" / "annotations" / "instances_train2017.json"
    images = next(path for path in (data_dir / "coco128").rglob("*") if path.is_dir() and any(path.glob("*.jpg")))
    ours, files = GroundTruth.from_records(read_coco(annotations, images)), read_coco_ground_truth(annotations)
    assert ours.frame == files.frame == "coco"
    assert (ours.class_names, ours.category_ids) == (files.class_names, files.category_ids)
    assert sorted(ours.image_ids) == files.image_ids

    found = as_detections(files)
    by_ours, by_files = evaluate(ours, found), evaluate(files, found)
    for name in ("voc07", "voc12", "coco"):
        assert by_ours[name].pop("per_class") == pytest.approx(by_files[name].pop("per_class"), abs=1e-12)
        assert by_ours[name] == pytest.approx(by_files[name], abs=1e-12)
    assert by_files["coco"]["AP"] > 0.99


def test_two_real_records_without_an_area_are_scored(data_dir: Path) -> None:
    """bccd holds boxes of no extent; the official tools count such objects, and so do these."""
    truth = read_voc_ground_truth(data_dir / "bccd", "trainval")
    metrics = evaluate(truth, as_detections(truth))
    assert len(truth) == 292
    assert all(0.97 < value <= 1.0 for value in metrics["voc12"]["per_class"].values())
