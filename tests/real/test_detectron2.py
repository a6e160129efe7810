"""detectron2's own numbers: its C4 detector with weights that the recipe makes again, through the scripts.

The file holds what detectron2 computed for one image; it is converted from the zoo's form by `convert_weights.py`,
and every stage is compared: features, RPN, logits, detections, losses and gradients.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from configs.detection import AnchorConfig
from datasets.batch import Batch
from detection.anchors import AnchorGenerator
from detection.checkpoint import load_detector
from detection.conversion import detectron2_name
from tools import convert_weights, predict
from tools.runtime.cli import run

ANCHOR_ORDER = torch.arange(15).view(5, 3).T.flatten()
"""For each anchor in our order (ratio by ratio) its place in detectron2's (size by size)."""
LOSSES = {
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_loc",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_box_reg",
}
TEST = ["model.rpn.pre_nms_top_n_test=1000", "model.rpn.post_nms_top_n_test=100"]
SIZE = ["data.test_min_size=320", "data.test_max_size=480"]


def made_weight(name: str, shape: list[int]) -> np.ndarray:
    """A weight by the recipe that comes with the file."""
    rng = np.random.Generator(np.random.PCG64(int(hashlib.sha1(f"0{name}".encode()).hexdigest()[:8], 16)))
    if name.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = rng.normal(0, 0.1, shape)
    elif "norm.weight" in name:
        value = rng.uniform(0.8, 1.2, shape) * (0.25 if "conv3.norm" in name else 1.0)
    elif "norm.bias" in name:
        value = rng.normal(0, 0.05, shape)
    elif name.endswith("bias"):
        value = rng.normal(0, 0.01, shape)
    elif spread := next((s for part, s in SPREADS.items() if part in name), None):
        value = rng.normal(0, spread, shape)
    else:
        value = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape) / (60 if "stem" in name else 1)
    return value.astype(np.float32)


SPREADS = {"objectness": 0.02, "anchor_deltas": 0.005, "cls_score": 0.03, "bbox_pred": 0.005}


@pytest.fixture(scope="module")
def expected(data_dir: Path) -> dict[str, np.ndarray]:
    path = data_dir / "detectron2_parity" / "rcnn_r50_c4.npz"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return dict(np.load(path))


@pytest.fixture(scope="module")
def checkpoint(expected: dict[str, np.ndarray], root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights in the zoo's form, converted by the script."""
    folder = tmp_path_factory.mktemp("zoo")
    shapes = json.loads(str(expected["weight_shapes"]))
    model = {name: made_weight(name, shape) for name, shape in shapes.items()}
    with (folder / "model_final.pkl").open("wb") as file:
        pickle.dump({"model": model, "__author__": "Detectron2 Model Zoo"}, file)
    cfg = root / "configs" / "zoo" / "detectron2_r50_c4_coco.yaml"
    arguments = ["--source", "detectron2", folder / "model_final.pkl", folder / "converted.pt", "--cfg", cfg]
    with pytest.raises(SystemExit) as caught:
        run(
            convert_weights.main,
            convert_weights.make_parser(),
            [*map(str, arguments), "--set", "data.classes=voc"],
        )
    assert caught.value.code == 0
    return folder / "converted.pt"


def make_batch(expected: dict[str, np.ndarray]) -> Batch:
    image = torch.from_numpy(expected["image"][::-1].copy())[None]  # RGB
    size = torch.tensor([image.shape[-2:]])
    return Batch(
        images=image,
        image_sizes=size,
        original_sizes=size,
        boxes=torch.from_numpy(expected["gt"])[None],
        labels=torch.from_numpy(expected["labels"])[None] + 1,
        valid=torch.ones(1, 3, dtype=torch.bool),
        index=torch.tensor([0]),
    )


def assert_relative(found: Tensor, wanted: np.ndarray, tolerance: float = 1e-4) -> None:
    """The largest difference, as a share of the largest value."""
    reference = torch.from_numpy(wanted)
    assert found.shape == reference.shape
    assert (found - reference).abs().max() <= tolerance * reference.abs().max()


def test_each_stage_of_the_detector(expected, checkpoint):
    detector, _ = load_detector(checkpoint, overrides=TEST)
    batch = make_batch(expected)
    with torch.no_grad():
        features = detector.features(batch)
        proposals, output = detector.rpn(features, batch.image_sizes, training=False)
        rois = torch.from_numpy(expected["eval/rois"])[None]
        logits, deltas = detector.roi_heads(features, rois, batch.image_sizes)
        found = detector(batch)
    assert_relative(features[0], expected["eval/features"])
    theirs = expected["eval/rpn_logits"][:, ANCHOR_ORDER]
    assert_relative(output.logits[0].view(1, 20, 30, 15).permute(0, 3, 1, 2), theirs)
    theirs = expected["eval/rpn_deltas"].reshape(1, 15, 4, 20, 30)[:, ANCHOR_ORDER]
    assert_relative(output.deltas[0].view(1, 20, 30, 15, 4).permute(0, 3, 4, 1, 2), theirs)
    assert proposals.valid.all()
    np.testing.assert_allclose(proposals.boxes[0].numpy(), expected["eval/rois"], atol=0.01)
    assert_relative(logits[0].roll(-1, dims=1), expected["eval/cls_logits"])
    assert_relative(deltas[0, :, 1:].flatten(1), expected["eval/box_deltas"])
    assert (deltas[0, :, 0] == 0).all()
    assert found.valid.all()
    np.testing.assert_array_equal(found.labels[0].numpy() - 1, expected["det/classes"])
    np.testing.assert_allclose(found.scores[0].numpy(), expected["det/scores"], atol=1e-4)
    np.testing.assert_allclose(found.boxes[0].numpy(), expected["det/boxes"], atol=0.01)


def test_losses_and_gradients(expected, checkpoint):
    everything = [f"model.{part}.batch_size_per_image=1000000" for part in ("rpn", "box")]
    everything += ["model.rpn.pre_nms_top_n_train=2000", "model.rpn.post_nms_top_n_train=60"]
    # A sample of all has no lack of negatives to fill up: every positive takes part too.
    everything += ["model.rpn.positive_fraction=1.0", "model.box.positive_fraction=1.0"]
    detector, _ = load_detector(checkpoint, overrides=everything)
    detector.train()
    losses = detector(make_batch(expected), seed=0, iteration=0)
    anchors = 20 * 30 * 15
    # detectron2 divides the RPN's losses by the size of the sample that was asked for.
    asked = {"loss_objectness": 1e6, "loss_rpn_box_reg": 1e6}
    counts = rpn_sample_size(expected, anchors)
    total = torch.zeros(())
    for name, other in LOSSES.items():
        loss = losses[name] * (counts / asked[name] if name in asked else 1.0)
        assert loss.item() == pytest.approx(float(expected[f"loss/{other}"]), rel=1e-4), name
        total = total + loss
    total.backward()
    parameters = dict(detector.named_parameters())
    gradients = {key.removeprefix("grad/"): value for key, value in expected.items() if key.startswith("grad/")}
    assert len(gradients) == 52
    for theirs, (norm, total_sum) in gradients.items():
        gradient = parameters[detectron2_name(theirs)].grad.double()  # float32 loses 6e-4 of a norm of millions
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), theirs
        # A sum may cancel out: its error is measured by the largest sum that a gradient of this norm can have.
        assert gradient.sum().item() == pytest.approx(total_sum, abs=1e-4 * norm * gradient.numel() ** 0.5)


def rpn_sample_size(expected: dict[str, np.ndarray], anchors: int) -> int:
    """Anchors that take part: all but those whose best overlap is neither low nor high."""
    made, _ = AnchorGenerator(AnchorConfig(sizes=[32, 64, 128, 256, 512]), [16])([(20, 30)], torch.device("cpu"))
    assert len(made) == anchors
    iou = box_iou(torch.from_numpy(expected["gt"]), made)
    positive = (iou.amax(0) >= 0.7) | (iou == iou.amax(1, keepdim=True)).any(0)
    return int((positive | (iou.amax(0) < 0.3)).sum())


def test_predict_finds_the_same(expected, checkpoint, tmp_path):
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.ascontiguousarray(expected["image"].transpose(1, 2, 0)))
    arguments = ["--weights", str(checkpoint), str(image), "--out", str(tmp_path / "out"), "--threshold", "0.05"]
    overrides = [part for override in (*SIZE, *TEST) for part in ("--set", override)]
    with pytest.raises(SystemExit) as caught:
        run(predict.main, predict.make_parser(), [*arguments, "--device", "cpu", *overrides], intermixed=True)
    assert caught.value.code == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(found) == 100
    boxes = np.array([one["bbox"] for one in found]) - [1, 1, 0, 0]  # VOC's pixels count from 1, both ends included
    np.testing.assert_allclose(boxes, expected["det/boxes"], atol=0.02)
    np.testing.assert_allclose([one["score"] for one in found], expected["det/scores"], atol=1e-4)
