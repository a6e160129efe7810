"""Compiled regions compute what they computed before, and go on without the compiler where it fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from backbones.batch_norm import FrozenBatchNorm2d
from backbones.compilation import GraphedStep
from backbones.weights import IMAGENET
from configs.detection import ModelConfig, TestConfig
from datasets.batch import Batch, ScaledImages
from detection.compilation import compile_regions, graph_detections, graphed_gradients
from detection.inference import Inference
from detection.model import Detector, build_detector
from detection.postprocess import BatchDetections


def tiny_detector(backbone: str = "resnet50") -> Detector:
    """With ResNet-50, whose conv5 takes both ways, and weights that keep activations in range."""
    config = {
        "backbone": backbone, "weights": "unused", "norm": "frozen", "frozen_stages": 2,
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


def tiny_batch(height: int = 64, width: int = 96, seed: int = 1) -> Batch:
    sizes = torch.tensor([[height, width]])
    generator = torch.Generator().manual_seed(seed)
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
    fast = compile_regions(tiny_detector().optimize_for_inference())
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


def assert_equal_detections(found: BatchDetections, expected: BatchDetections, tolerance: float = 0.0) -> None:
    assert expected.valid.any()
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=name)


WAYS = {
    "plain": {},
    "all": {"refine_rounds": 1, "vote_iou": 0.5, "tta": {"hflip": True}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_of_a_detection_finds_the_same(graphs_on_the_cpu, way):
    """On other images than those that were captured, of another size within the same padding, with other objects."""
    test = TestConfig.model_validate({"score_thresh": 0.01, **WAYS[way]})
    inference = Inference([tiny_detector("resnet18").optimize_for_inference()], test).eval()
    detect = graph_detections(inference)
    with torch.no_grad():
        for k in range(3):
            batch = tiny_batch(seed=k)
            sizes = batch.image_sizes - 7 * k
            more = replace(batch, image_sizes=sizes, original_sizes=2 * sizes, boxes=batch.boxes.repeat(1, 1 + k, 1))
            assert_equal_detections(detect(more), inference(more))
    assert len(graphs_on_the_cpu) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("way", [*WAYS, "scales"])
def test_a_graph_of_a_detection_finds_the_same_on_a_gpu(caplog, way):
    values = WAYS.get(way, {"scales": [64, 96]})
    test = TestConfig.model_validate({"score_thresh": 0.01, **values})
    inference = Inference([tiny_detector().optimize_for_inference().cuda()] * 2, test).eval()
    detect = graph_detections(inference)
    with torch.no_grad():
        for k in range(6):
            batch = tiny_batch(*((64, 96), (96, 64))[k % 2], seed=k)
            scaled = (None, ScaledImages(batch.images.repeat_interleave(2, 2), batch.image_sizes * 2))
            batch = replace(batch, scaled=scaled if way == "scales" else ()).to("cuda")
            assert_equal_detections(detect(batch), inference(batch), 1e-4)
    assert not caplog.records


def assert_equal_steps(device: str, tolerance: float, *, parts: int) -> None:
    """Five updates at two sizes, with graphs and without: losses and gradients are the same, and so are the weights."""
    nets = [tiny_detector("resnet18").train().to(device) for _ in range(2)]
    parameters = [[p for p in net.parameters() if p.requires_grad] for net in nets]
    graphed = GraphedStep("a step", parameters[1])
    samples = []
    for iteration in range(5):
        for part in range(parts):
            batch = tiny_batch(*((64, 96), (96, 64))[iteration % 2], seed=parts * iteration + part)
            batch = replace(batch, index=torch.tensor([iteration])).to(device)
            losses = nets[0](batch, seed=5, iteration=iteration)
            (sum(losses.values()) / parts).backward()
            forward = lambda given, number: nets[1](given, seed=5, iteration=number)  # noqa: E731
            found = graphed_gradients(graphed, forward, batch, iteration, parts)
            assert found.keys() == losses.keys()
            for name, loss in losses.items():
                torch.testing.assert_close(found[name], loss.detach(), rtol=tolerance, atol=tolerance, msg=name)
            samples.append(losses["loss_rpn_box_reg"].item())
        for plain, mine in zip(*parameters, strict=True):
            torch.testing.assert_close(mine.grad, plain.grad, rtol=tolerance, atol=tolerance)
            for parameter in (plain, mine):
                parameter.data.sub_(parameter.grad, alpha=1e-3)
                parameter.grad = None
    assert len(set(samples)) == len(samples)


def test_training_steps_as_graphs_are_the_same(graphs_on_the_cpu):
    """Bit for bit; later steps sample otherwise than the one that was captured."""
    assert_equal_steps("cpu", 0.0, parts=1)
    assert len(graphs_on_the_cpu) == 2


@pytest.mark.gpu
def test_training_steps_as_graphs_are_the_same_on_a_gpu(caplog):
    assert_equal_steps("cuda", 1e-3, parts=2)
    assert not caplog.records
