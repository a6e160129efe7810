"""The scripts from end to end on the CUDA runtime whose kernels do nothing: nothing that only CUDA does stops them.

`scripts.py` runs their own `main` in one process, with an error where an update or a detection waits for the device.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cuda.conftest import run_cases

NAMES = re.findall(r"^@case\ndef (\w+)", (Path(__file__).parent / "scripts.py").read_text(), re.MULTILINE)
SLOW = {"train_in_phases"}
"""Depends on no other case."""
TRAINED = ("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "metrics.json", "metrics_val.json", "curves.png")
WRITTEN = {
    "train_a_detector": (*TRAINED, "detections.json", "pictures/overview.png"),
    "resume_it": TRAINED,
    "test_it": ("metrics.json", "detections.json", "report/index.html", "comp4_det_test_red.txt"),
    "predict_with_it": ("detections.json", "detections.jsonl", "image_7.png"),
    "predict_with_an_ensemble": ("detections.json", "image_7.png"),
    "train_in_phases": ("last.pt", "best.pt", "metrics.json"),
    "pretrain_in_memory": TRAINED,
    "pretrain_from_files": TRAINED,
    "train_a_localiser": TRAINED,
    "train_its_second_stage": TRAINED,
    "test_the_localiser": ("metrics.json", "predictions.json"),
}
UPDATES = {
    "train_a_detector": 4, "resume_it": 4, "train_in_phases": 4 * 3, "pretrain_in_memory": 6, "pretrain_from_files": 6,
    "train_a_localiser": 6, "train_its_second_stage": 6,
}  # fmt: skip


def run_scripts(runtime, folder, *cases):
    variables = {"SCRIPTS_FOLDER": str(folder)} | ({"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if runtime else {})
    return run_cases(runtime, "scripts.py", *cases, **variables)


@pytest.fixture(scope="module")
def scripts(runtime, tmp_path_factory):
    """Case -> what it gave, of all that are not slow."""
    names = [name for name in NAMES if name not in SLOW]
    return run_scripts(runtime, tmp_path_factory.mktemp("scripts"), *names)


def check(name, found, least_launches=100):
    assert "error" not in found, found["error"]
    assert set(WRITTEN[name]) <= set(found["files"])
    assert found.get("updates") == UPDATES.get(name)
    assert found["launches"] >= least_launches  # it was not the CPU that did it


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_a_script_runs_through(scripts, name):
    check(name, scripts[name])


def test_a_resumed_training_goes_on_as_graphs(scripts):
    """Of its 4 updates of two parts each; every padded size first runs as it is."""
    assert 2 <= scripts["resume_it"]["graphs"] <= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_a_slow_script_runs_through(runtime, tmp_path, name):
    check(name, run_scripts(runtime, tmp_path, name)[name])


@pytest.mark.gpu
def test_scripts_run_through_on_a_gpu(tmp_path):
    found = run_scripts(None, tmp_path)
    assert list(found) == NAMES
    for name in NAMES:
        check(name, found[name], least_launches=0)
