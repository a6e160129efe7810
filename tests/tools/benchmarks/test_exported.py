"""`benchmark.py infer --exported`: the same images for all, no ratio where outputs differ, files of other weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from detection.checkpoint import load_detector
from detection.export import ExportGraph, describe
from tests.detection.made import make_image, save_detector
from tools import benchmark
from tools.benchmarks import exported
from tools.benchmarks.cases import CASES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a checkpoint, and photos."""
    import cv2

    save_detector(tmp_path / "w.pt")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), make_image(number, (60, 90)))
    return tmp_path


def fake_files(folder: Path, monkeypatch: pytest.MonkeyPatch, *, shift: float = 0.0, **changes: object) -> list:
    """Files that answer as the checkpoint does, boxes shifted; returns the threads that were asked for."""
    detector, config = load_detector(folder / "w.pt")
    exact, asked = exported.as_runner(ExportGraph(detector, config)), []

    def run(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        answers = exact(images, image_sizes)
        return {**answers, "boxes": answers["boxes"] + np.float32(shift)}

    def open_exported(path: Path, threads: int) -> tuple:
        asked.append(threads)
        return run, {**describe(detector, config, 1), **changes}

    monkeypatch.setattr(exported, "open_exported", open_exported)
    return asked


def measure(folder: Path, *files: str) -> dict:
    return exported.exported_mode(
        files, weights=folder / "w.pt", case=CASES["tiny"], images=folder / "photos", threads=1, repetitions=2, warmup=0
    )


def test_equal_files_get_a_ratio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_files(folder, monkeypatch)
    report = measure(folder, "a.onnx", "b.xml")
    assert asked == [1, 1]
    assert report["images"] == 2
    assert set(report["seconds"]) == {"ours", "a.onnx", "b.xml"}
    assert report["seconds"]["b.xml"]["ratio"]["median"] > 0
    assert report["differences"]["a.onnx"]["detections"] > 5
    assert report["differences"]["a.onnx"]["boxes"] == 0
    assert report["differences"]["a.onnx"]["resembling_detections"] == 1


def test_no_ratio_where_outputs_differ_but_for_8_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(folder, monkeypatch, shift=0.1)
    (folder / "a.xml").write_text("<layer/>")
    with pytest.raises(UserError, match=r"no ratio: .*a\.xml differs from PyTorch: boxes by 0\.1 px"):
        measure(folder, str(folder / "a.xml"))
    (folder / "a.xml").write_text('<layer type="FakeQuantize"/>')
    report = measure(folder, str(folder / "a.xml"))
    assert report["differences"]["a.xml"]["boxes"] == pytest.approx(0.1, abs=1e-3)
    assert "ratio" in report["seconds"]["a.xml"]


def test_files_of_other_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_files(folder, monkeypatch, batch=2)
    with pytest.raises(UserError, match=r"a\.onnx: its batch is not that of the weights and a batch of 1"):
        measure(folder, "a.onnx")


def test_a_case_has_a_detector_of_its_size() -> None:
    detector, config = exported.random_detector(CASES["tiny"])
    rule = describe(detector, config, 1)["preprocessing"]
    assert (rule["min_size"], rule["max_size"]) == CASES["tiny"].image_size
    (feed,) = exported.make_feeds(None, rule)
    assert feed[1].tolist() == [[64, 96]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["infer", "--exported", "a.onnx"], "--exported a.onnx: give the --weights that it was made of"),
        (["train", "--exported", "onnx"], "--exported goes with infer on the CPU"),
        (["infer", "--exported", "onnx", "--case", "tiny", "--images", "nowhere"], "--images nowhere: there is no"),
    ],
)
def test_mistakes(options: list[str], message: str) -> None:
    args = benchmark.make_parser().parse_args([*options, "--device", "cpu"])
    with pytest.raises(UserError, match=message):
        benchmark.main(args)


@pytest.mark.slow
def test_files_that_are_made_on_the_spot() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed ([export])")
    pytest.importorskip("nncf", reason="nncf is not installed ([export])")
    report = exported.exported_mode(
        exported.KINDS, weights=None, case=CASES["tiny"], images=None, threads=1, repetitions=2, warmup=1
    )
    assert set(report["seconds"]) == {"ours", *exported.KINDS}
    assert report["differences"]["onnx"]["resembling_detections"] == 1
    assert report["differences"]["openvino_int8"]["resembling_detections"] > 0.5
