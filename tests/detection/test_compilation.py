"""Compiled regions compute what they computed before, and go on without the compiler where it fails."""

from __future__ import annotations

import pytest
import torch

from backbones.batch_norm import FrozenBatchNorm2d
from backbones.weights import IMAGENET
from configs.detection import ModelConfig, TestConfig
from datasets.batch import Batch
from detection.compilation import compile_regions
from detection.model import Detector, build_detector


def tiny_detector() -> Detector:
    """ResNet-50, whose conv5 takes both ways, with weights that keep activations in range."""
    config = {
        "backbone": "resnet50", "weights": "unused", "norm": "frozen", "frozen_stages": 2,
        "anchors": {"sizes": [32, 64]}, "rpn": {"hidden_channels": 16, "post_nms_top_n_test": 10},
        "box": {"batch_size_per_image": 10},
    }  # fmt: skip
    torch.manual_seed(0)
    detector = build_detector(
        ModelConfig.model_validate(config), ["a", "b"], test=TestConfig(score_thresh=0.01), preprocessing=IMAGENET
    )
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)
    return detector


def tiny_batch(height: int = 64, width: int = 96) -> Batch:
    sizes = torch.tensor([[height, width]])
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator),
        image_sizes=sizes, original_sizes=sizes, boxes=torch.tensor([[[8.0, 8.0, 50.0, 60.0]]]),
        labels=torch.tensor([[1]]), valid=torch.tensor([[True]]), index=torch.tensor([0]),
    )  # fmt: skip


@pytest.mark.slow
def test_training_computes_the_same():
    detector, batch = tiny_detector().train(), tiny_batch()
    names = list(detector.state_dict())
    results = []
    for compiled in (False, True):
        if compiled:
            compile_regions(detector)
        detector.zero_grad()
        losses = detector(batch, seed=0, iteration=0)
        sum(losses.values()).backward()
        gradients = [parameter.grad.clone() for parameter in detector.parameters() if parameter.requires_grad]
        results.append(({name: loss.item() for name, loss in losses.items()}, gradients))
    assert list(detector.state_dict()) == names
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-4)
    for eager, compiled in zip(results[0][1], results[1][1], strict=True):
        assert (eager - compiled).norm() <= 1e-3 * eager.norm()


@pytest.mark.slow
def test_detection_computes_the_same_at_every_padded_size():
    eager = tiny_detector().optimize_for_inference()
    fast = compile_regions(tiny_detector().optimize_for_inference(), graphs=True)
    with torch.inference_mode():
        for size in ((64, 96), (96, 64)):
            expected, found = eager(tiny_batch(*size)), fast(tiny_batch(*size))
            assert expected.valid.any()
            assert torch.equal(found.valid, expected.valid)
            assert torch.equal(found.labels, expected.labels)
            assert torch.allclose(found.scores, expected.scores, atol=1e-5)
            assert torch.allclose(found.boxes, expected.boxes, atol=1e-2)


def test_regions_are_those_whose_shapes_are_few():
    """Names of parameters stay; both ways through conv5 are compiled."""
    detector = tiny_detector()
    names = list(detector.state_dict())
    assert compile_regions(detector) is detector
    assert list(detector.state_dict()) == names
    head = detector.roi_heads.box_head
    for module, name in (
        (detector.backbone, "forward"), (detector.rpn.head, "forward"), (head, "forward"),
        (head, "before_pooling"), (head, "after_pooling"),
    ):  # fmt: skip
        assert getattr(module, name).__wrapped__ == getattr(type(module), name).__get__(module)
