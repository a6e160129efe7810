"""The published VOC recipes on a VOCdevkit tree of 100 real images: train, resume, test, submission files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """A script, as a person runs it."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def devkit(tmp_path_factory, data_dir) -> Path:
    """A --data-root with VOCdevkit/VOC2007 and VOC2012 made of the 100 real images."""
    root = tmp_path_factory.mktemp("voc")
    source = data_dir / "voc2012_100"
    ids = (source / "ImageSets/Main/all.txt").read_text().split()
    parts = {"VOC2007": {"trainval": ids[:40], "test": ids[40:46]}, "VOC2012": {"trainval": ids[46:100]}}
    for year, sets in parts.items():
        folder = root / "VOCdevkit" / year
        (folder / "ImageSets/Main").mkdir(parents=True)
        for name in ("Annotations", "JPEGImages"):
            (folder / name).symlink_to(source / name)
        for name, members in sets.items():
            (folder / f"ImageSets/Main/{name}.txt").write_text("\n".join(members) + "\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frcnn_r101_voc", "frcnn_vgg16_voc"])
def test_recipe_runs_from_training_to_submission(name, devkit, tmp_path):
    config, out = f"configs/{name}.yaml", tmp_path / "run"
    # Random weights need trained batch norm and nothing frozen; the rest of the recipe stays.
    settings = ["model.weights=random", "model.norm=batch", "model.frozen_stages=0", "data.num_workers=0"]
    settings += ["data.min_size=96", "data.max_size=128", "data.test_min_size=96", "data.test_max_size=128"]
    common = ["--cfg", config, "--data-root", str(devkit), "--device", "cpu"]
    length = ["schedule.iterations=2", "schedule.milestones=[1]"]
    done = run("tools/train_det.py", *common, "--out", str(out), "--set", *settings, *length)
    assert done.returncode == 0, done.stderr
    assert {"config.yaml", "metrics.jsonl", "last.pt", "metrics.json"} <= {path.name for path in out.iterdir()}
    assert len(yaml.safe_load((out / "config.yaml").read_text())["data"]["train"]) == 2

    length = ["schedule.iterations=3", "schedule.milestones=[1]"]
    resumed = run("tools/train_det.py", *common, "--out", str(out), "--resume", "--set", *settings, *length)
    assert resumed.returncode == 0, resumed.stderr
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["iteration"] == 3

    tested = tmp_path / "tested"
    weights = ["--weights", str(out / "last.pt"), "--out", str(tested)]
    done = run("tools/test_det.py", *common, *weights, "--set", *settings)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tested / "metrics.json").read_text())
    assert {"voc07", "voc12", "coco"} <= metrics.keys()
    assert metrics["voc07"] == json.loads((out / "metrics.json").read_text())["voc07"]
    assert len(list(tested.rglob("comp4_det_test_*.txt"))) == 20
    assert isinstance(json.loads((tested / "detections.json").read_text()), list)


@pytest.mark.slow
def test_bccd_as_coco_trains_an_epoch(data_dir, bccd_as_coco, tmp_path):
    """The same images as a COCO file: an epoch, tested on the VOC folder's test set."""
    source = f"{{format: coco, images: bccd/JPEGImages, annotations: {bccd_as_coco}}}"
    settings = [f"data.train=[{source}]", "schedule.epochs=1", "schedule.warmup_iterations=5", "data.num_workers=0"]
    settings += ["data.min_size=120", "data.max_size=160", "data.test_min_size=120", "data.test_max_size=160"]
    arguments = ["--cfg", "configs/bccd_r18_fpn.yaml", "--data-root", str(data_dir), "--device", "cpu"]
    done = run("tools/train_det.py", *arguments, "--out", str(tmp_path / "run"), "--set", *settings)
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert last["iteration"] == 36  # 292 images are 36.5 steps of 8
    assert (tmp_path / "run/metrics.json").exists()


def test_without_the_data_one_line_says_what_to_do(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "DATA_DIR"}
    arguments = ["--cfg", "configs/frcnn_r101_voc.yaml", "--data-root", str(tmp_path), "--device", "cpu"]
    done = run("tools/train_det.py", *arguments, "--out", str(tmp_path / "run"), environment=environment)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert str(tmp_path / "VOCdevkit/VOC2007") in lines[0]
    assert "prepare_data.py" in lines[0]
    assert "Traceback" not in done.stderr
