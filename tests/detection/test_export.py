"""Exported files say what PyTorch says; what differs is noticed; the examples of docs/examples/ find the same."""

from __future__ import annotations

import ast
import copy
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import parse_config
from datasets.batch import Batch, stack_images
from detection import Predictor, export_check, exported
from detection.export import (
    OPSET,
    OUTPUTS,
    ExportGraph,
    _nms,
    _onnx_nms,
    describe,
    model_card,
    save_onnx,
    save_torch_export,
    trace,
)
from detection.export_check import Differences, check, check_feeds, compare, export_detector
from detection.exported import open_exported
from detection.model import Detector, build_detector
from detection.nms import nms
from detection.prediction import to_numpy
from tests.detection.made import VALUES, make_image

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TINY = {
    "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": True},
    "stages": [{"units": 1, "width": width, "stride": stride} for width, stride in ((8, 1), (8, 2), (16, 2), (16, 2))],
    "unit": "basic", "shortcut": "B",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "fpn": {
        "backbone": TINY, "norm": "batch", "neck": "fpn", "fpn_channels": 16,
        "anchors": {"sizes": [[12], [24], [48], [96], [160]]},
        "rpn": {"hidden_channels": 16, "pre_nms_top_n_test": 60, "post_nms_top_n_test": 30},
        "box": {"pool_size": 7, "fc_width": 16, "sampling_ratio": 2},
    },
    "c4": {"backbone": TINY, "norm": "batch", "box": {"pool_size": 2, "class_agnostic": True}},
    "vgg": {"backbone": "vgg16", "norm": "none", "box": {"pool_size": 7, "pool": "roi_pool", "fc_width": 16}},
}  # fmt: skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def make_detector(kind: str) -> tuple[Detector, DetectionConfig]:
    values = copy.deepcopy(VALUES)
    values["model"].update(copy.deepcopy(MODELS[kind]))
    if kind == "vgg":
        del values["model"]["norm"]
    values["data"].update(test_min_size=96, test_max_size=128)  # not below what a graph takes
    config = parse_config(values, [], DetectionConfig, "made")
    torch.manual_seed(0)
    return build_detector(config.model, ["red", "blue"], test=config.test).eval(), config


def save_checkpoint(path: Path, kind: str) -> Path:
    detector, config = make_detector(kind)
    content = {
        "format": 1, "kind": "detector", "config": config.model_dump(mode="json"), "class_names": ["red", "blue"],
        "preprocessing": detector.preprocessing.to_dict(), "model": detector.state_dict(),
        "card": {"licence": "CC0 | free"},
    }  # fmt: skip
    torch.save(content, path)
    return path


# ---------------------------------------------------------------------------------------------- whole detectors


@pytest.mark.parametrize("kind", ["fpn", "vgg"])
def test_files_say_what_pytorch_says(kind: str, tmp_path: Path) -> None:
    detector, config = make_detector(kind)
    metadata = describe(detector, config, 1)
    graph = ExportGraph(detector, config)
    program = trace(graph, 32)
    save_onnx(program, tmp_path / "a.onnx", metadata)
    save_torch_export(program, tmp_path / "a.pt2", metadata)
    feeds = check_feeds(metadata)
    assert len({images.shape for images, _ in feeds[:3]}) == 3
    for name in ("a.onnx", "a.pt2"):
        run, stored = open_exported(tmp_path / name)
        assert stored == metadata
        found = check(run, graph, feeds)
        assert found.detections > 30
        assert found.within_tolerance, (name, found)
    # Nothing of the traces is left in the detector.
    anchors, _ = detector.rpn.anchors([(7, 9)] * len(detector.backbone.strides), torch.device("cpu"))
    assert type(anchors) is Tensor
    assert torch.isfinite(anchors).all()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a C4 detector's checkpoint and its exported files, for batches of two."""
    folder = tmp_path_factory.mktemp("export")
    save_checkpoint(folder / "w.pt", "c4")
    traced: list[Any] = []

    def trace_once(*given: Any) -> Any:  # what it is a trace of is the same for both files
        if not traced:
            traced.append(trace(*given))
        return traced[0]

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(export_check, "trace", trace_once)
        for name, kind in {"c4.onnx": "onnx", "c4.pt2": "torch_export"}.items():
            export(folder / "w.pt", folder / name, "--format", kind, "--batch", "2")
    return folder


def export(weights: Path, out: Path, *options: str) -> None:
    from tools.export import main, make_parser

    main(make_parser().parse_args(["--weights", str(weights), *options, str(out)]))


def test_script_writes_files_and_model_cards(written: Path) -> None:
    assert {"c4.onnx", "c4.onnx.md", "c4.pt2", "c4.pt2.md", "w.pt"} == {path.name for path in written.iterdir()}
    card = (written / "c4.onnx.md").read_text()
    assert "red, blue" in card
    assert f"| weights | {written.name}/w.pt |" in card  # no path of the machine that made it
    assert "| precision | float32 |" in card
    assert r"| licence | CC0 \| free |" in card
    _, metadata = open_exported(written / "c4.onnx")
    assert metadata["card"]["licence"] == "CC0 | free"
    assert metadata["thresholds"] == {"score": 0.05, "nms": 0.5, "detections_per_img": 100}


def found_by_example(script: str, file: Path, image: np.ndarray) -> list[tuple[str, float, list[float]]]:
    """What an example prints, run where this project is not."""
    photo = file.parent / "photo.png"
    Image.fromarray(image).save(photo)
    command = [sys.executable, str(EXAMPLES / script), str(file), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parent, timeout=300)
    photo.unlink()
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(name, float(score), [float(value) for value in box]) for name, score, *box in rows]


def assert_example_finds_the_same(script: str, file: Path) -> None:
    image = make_image(3, (50, 90))
    expected = Predictor(file.parent / "w.pt", device="cpu", threshold=0.05)(image)[0]
    found = found_by_example(script, file, image)
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores, atol=2e-3)
    assert sorted(name for name, _, _ in found) == sorted(expected.names)
    for name, score, box in found:
        same = expected.boxes[[one == name for one in expected.names]]
        assert np.abs(same - box).max(1).min() <= 0.1, (name, score, box)


@pytest.mark.parametrize(("script", "name"), [("onnx_runtime.py", "c4.onnx"), ("torch_export.py", "c4.pt2")])
def test_examples_find_what_the_predictor_finds(script: str, name: str, written: Path) -> None:
    assert_example_finds_the_same(script, written / name)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_need_nothing_of_ours(script: Path) -> None:
    tree = ast.parse(script.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"json", "sys", "warnings", "cv2", "numpy", "torch", "torchvision", "onnxruntime", "openvino"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed ([export])")
@pytest.mark.parametrize("kind", list(MODELS))
def test_openvino_says_what_pytorch_says(kind: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", kind)
    export(tmp_path / "w.pt", tmp_path / "o.xml", "--format", "openvino")
    assert {"o.xml", "o.bin", "o.xml.md", "w.pt"} == {path.name for path in tmp_path.iterdir()}
    assert_example_finds_the_same("openvino_runtime.py", tmp_path / "o.xml")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="nncf is not installed ([export])")
def test_int8_is_near(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "w.pt", "fpn")
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.fromarray(make_image(number, (96, 128))).save(tmp_path / "photos" / f"{number}.png")
    options = ("--format", "openvino", "--int8", "--calibrate", str(tmp_path / "photos"))
    export(tmp_path / "w.pt", tmp_path / "o.xml", *options)
    assert "compared with PyTorch on" in capsys.readouterr().out
    assert 'type="FakeQuantize"' in (tmp_path / "o.xml").read_text()
    run, metadata = open_exported(tmp_path / "o.xml")
    for feed in check_feeds(metadata):
        answers = run(*feed)
        assert answers["valid"].any() == (feed[1].sum() > 0)
    # Boxes and scores are computed in float32: only the net's layers take numbers of 8 bits.
    model = importlib.import_module("openvino").Core().read_model(tmp_path / "o.xml")
    rounded = [each for each in model.get_ordered_ops() if each.get_type_name() == "FakeQuantize"]
    takers = {input.get_node() for each in rounded for input in each.output(0).get_target_inputs()}
    kinds = {each.get_type_name() for each in takers}
    assert {"Convolution", "MatMul"} <= kinds
    assert not kinds & {"Multiply", "Divide", "Sqrt", "Exp", "Minimum", "Maximum", "GatherElements"}, kinds


# ---------------------------------------------------------------------------------------------- NMS


class OnlyNms(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor) -> Tensor:
        return nms(boxes, scores, valid, groups, 0.5, 12)


def nms_inputs(seed: int, count: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two images of boxes that overlap much; the second has none that take part if the seed is 0."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, count, 2, generator=random) * 40
    boxes = torch.cat((corners, corners + 10 + torch.rand(2, count, 2, generator=random) * 20), dim=-1)
    valid = torch.rand(2, count, generator=random) > 0.3
    valid[1] &= seed != 0
    groups = torch.randint(0, 3, (2, count), generator=random)
    return boxes, torch.randn(2, count, generator=random), valid, groups


@pytest.mark.parametrize("seed", range(6))
def test_torchvisions_nms_in_place_of_ours(seed: int) -> None:
    inputs = nms_inputs(seed)
    for most in (1, 12, 60):
        assert torch.equal(_nms(*inputs, 0.5, most), nms(*inputs, 0.5, most))


def test_onnx_nms_in_place_of_ours(tmp_path: Path) -> None:
    import onnxruntime

    program = torch.export.export(OnlyNms(), nms_inputs(1))
    table = {torch.ops.detection.nms.default: _onnx_nms()}
    exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, custom_translation_table=table)
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    for seed in range(6):
        inputs = nms_inputs(seed)
        answer = session.run(None, dict(zip(names, (part.numpy() for part in inputs), strict=True)))[0]
        np.testing.assert_array_equal(answer, OnlyNms()(*inputs).numpy())


# ---------------------------------------------------------------------------------------------- the comparison


def answers(boxes: list[list[float]], scores: list[float], places: int = 4) -> dict[str, np.ndarray]:
    rest = places - len(boxes)
    return {
        "boxes": np.array(boxes + [[0.0] * 4] * rest, np.float32),
        "scores": np.array(scores + [0.0] * rest, np.float32),
        "labels": np.array([1] * len(boxes) + [0] * rest),
        "valid": np.array([True] * len(boxes) + [False] * rest),
    }


def test_comparison_measures_what_differs() -> None:
    one, two = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
    expected = answers([one, two], [0.9, 0.9])
    assert compare(expected, answers([two, one], [0.9, 0.9]), 0.05) == Differences(2, 0, 0.0, 0.0)
    moved = compare(expected, answers([one, [20.0, 0.0, 30.0, 10.5]], [0.9, 0.9]), 0.05)
    assert (moved.unmatched, moved.boxes) == (0, 0.5)
    assert not moved.within_tolerance
    assert compare(expected, answers([one], [0.9]), 0.05).unmatched == 1
    assert compare(answers([one], [0.9]), expected, 0.05).unmatched == 1
    # At the threshold, and at the end of a full list, rounding decides.
    assert compare(answers([one, two], [0.9, 0.05001]), answers([one], [0.9]), 0.05).unmatched == 0
    full = answers([one, two], [0.9, 0.5], places=2)
    assert compare(full, answers([one, [50.0, 0, 60, 10]], [0.9, 0.5], places=2), 0.05).unmatched == 0


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, config = make_detector("c4")
    graph = ExportGraph(detector, config)

    def wrong(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            boxes, scores, labels, valid = graph(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {
            "boxes": (boxes + 0.1).numpy(), "scores": scores.numpy(), "labels": labels.numpy(), "valid": valid.numpy()
        }  # fmt: skip

    monkeypatch.setattr(export_check, "trace", lambda *_: None)
    monkeypatch.setattr(export_check, "save_onnx", lambda program, path, metadata: path.write_bytes(b""))
    monkeypatch.setattr(export_check, "open_exported", lambda path: (wrong, {}))
    with pytest.raises(UserError, match=r"a\.onnx: not written: it differs from PyTorch: boxes by 0\.1 px"):
        export_detector(detector, config, describe(detector, config, 1), "onnx", tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- in a detector's place


def test_an_exported_file_stands_in_for_its_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images of different sizes by a graph of two: padded, in turns, and back in pixels of the files."""
    detector, config = make_detector("c4")
    graph = ExportGraph(detector, config)
    least = describe(detector, config, 2)["preprocessing"]["least_side"]
    asked = []

    def run(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(images.shape)
        with torch.no_grad():
            values = graph(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {name: value.numpy() for name, value in zip(OUTPUTS, values, strict=True)}

    monkeypatch.setattr(exported, "open_exported", lambda path: (run, describe(detector, config, 2)))
    images = [make_image(seed, size) for seed, size in enumerate([(96, 128), (96, 70), (60, 96)])]
    sizes = torch.tensor([image.shape[:2] for image in images])
    nothing = torch.zeros(3, 0)
    batch = Batch(
        stack_images(images, (96, 128)), sizes, sizes * 2, nothing[..., None].expand(-1, -1, 4), nothing.long(),
        nothing.bool(), torch.arange(3),
    )  # fmt: skip
    found = exported.ExportedDetector(tmp_path / "a.onnx", config.data)(batch)
    with torch.no_grad():
        expected = graph.inference(batch)
    assert asked == [(2, 3, max(96, least), max(128, least))] * 2
    for ours, theirs in zip(to_numpy(found), to_numpy(expected), strict=True):
        assert len(ours) > 5
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.02)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    other = config.data.model_copy(update={"test_min_size": 64})
    with pytest.raises(UserError, match=r"a\.onnx: was made for test_min_size 96, the config's data section says 64"):
        exported.ExportedDetector(tmp_path / "a.onnx", other)


@pytest.mark.parametrize("name", ["c4.onnx", "c4.pt2"])
def test_predictor_takes_exported_files(written: Path, name: str) -> None:
    images = [make_image(seed, size) for seed, size in enumerate([(50, 90), (40, 40), (90, 50)])]
    expected = Predictor(written / "w.pt", device="cpu", threshold=0.2)(images)
    found = Predictor(written / name, threshold=0.2)(images)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 5
        assert ours.image_size == theirs.image_size
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        for box, label in zip(ours.boxes, ours.labels, strict=True):
            assert np.abs(theirs.boxes[theirs.labels == label] - box).max(1).min() < 0.02


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threshold": 0.01}, "the file gives no score below 0.05: ask for that or more, or export it with --set"),
        ({"overrides": ["test.refine_rounds=1"]}, r"overrides \(--set\): an exported file runs as it was exported"),
        ({"graphs": True}, "graphs: an exported file runs as it was exported"),
    ],
)
def test_predictor_says_what_exported_files_cannot(written: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"c4\.onnx: .*{said}"):
        Predictor(written / "c4.onnx", **options)


def test_exported_files_are_no_members_of_ensembles(written: Path) -> None:
    with pytest.raises(UserError, match=r"c4\.onnx: an exported file detects alone"):
        Predictor([written / "w.pt", written / "c4.onnx"])


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (("--format", "onnx"), "a.pt2", "ends with .onnx"),
        (("--format", "onnx", "--int8"), "a.onnx", "--int8 goes with --format openvino"),
        (("--format", "openvino", "--int8"), "a.xml", "--int8 and --calibrate go together"),
        (("--format", "onnx", "--images", "nowhere"), "a.onnx", "nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_told(options: tuple[str, ...], name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(tmp_path / "w.pt", tmp_path / name, *options)


def test_several_sizes_cannot_be_exported() -> None:
    detector, config = make_detector("c4")
    config = config.model_copy(update={"test": config.test.model_copy(update={"scales": [48, 64]})})
    with pytest.raises(UserError, match="one size"):
        ExportGraph(detector, config)


@pytest.mark.parametrize("name", ["c4.onnx", "c4.pt2"])
def test_damaged_files_are_told(written: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((written / name).read_bytes()[:3000])
    with pytest.raises(UserError, match=rf"{name}: cannot be opened: it is damaged or lacks a part"):
        open_exported(tmp_path / name)


def test_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ends with"):
        open_exported(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no such file"):
        open_exported(tmp_path / "a.onnx")


def test_model_card_has_no_broken_table() -> None:
    detector, config = make_detector("c4")
    card = model_card(describe(detector, config, 1, {"note": "a|b\nc"}), "a.onnx", {"boxes": 1.2345e-5})
    assert r"| note | a\|b c |" in card
    assert "| boxes | 1.23e-05 |" in card
