"""Kernel launches and host syncs of frcnn_r101_voc: the regression test of GPU speed that needs no GPU.

On fake tensors, at the true shapes: nothing is computed, and an operator that needs a value on the host is an error.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from backbones.weights import IMAGENET
from configs.detection import DetectionConfig
from configs.loading import load_config
from datasets.batch import Batch
from detection.model import Detector, build_detector
from detection.prediction import to_numpy
from tools.benchmarks.counting import Counts, count, make_fake
from tools.runtime.optimizer import build_optimizer

NAMES = [f"class{k}" for k in range(20)]


@pytest.fixture(scope="module")
def config(root: Path) -> DetectionConfig:
    return load_config(root / "configs" / "frcnn_r101_voc.yaml")


def make_batch(size: int) -> Batch:
    sizes = torch.tensor([[600, 1000]] * size)
    return Batch(
        images=torch.zeros(size, 3, 608, 1024, dtype=torch.uint8).to(memory_format=torch.channels_last),
        image_sizes=sizes,
        original_sizes=sizes,
        boxes=torch.zeros(size, 8, 4),
        labels=torch.ones(size, 8, dtype=torch.int64),
        valid=torch.ones(size, 8, dtype=torch.bool),
        index=torch.arange(size),
    )


def fake_detector(config: DetectionConfig, mode: FakeTensorMode, *, dtype: torch.dtype | None = None) -> Detector:
    """In training mode; with `dtype` prepared for inference."""
    detector = build_detector(config.model, NAMES, preprocessing=IMAGENET)
    detector.train().to(memory_format=torch.channels_last)
    # As after a first batch: tensors without values, which `mode` makes, are not remembered.
    detector.rpn.anchors([(38, 64)], torch.device("cpu"))
    return make_fake(detector if dtype is None else detector.optimize_for_inference(dtype), mode)


def test_training_step(config):
    """Forward, backward, fused update, gradients to None: at batch 8 at most 1,300 launches, no sync, in fp32 and bf16;
    more images cost no more launches."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    detector = fake_detector(config, mode)
    optimizer = build_optimizer(detector, config.optim)

    def counts(size: int, amp: bool) -> Counts:
        batch = make_batch(size)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                losses = detector(batch, seed=0, iteration=0)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        step()
        return count(step)

    with mode:
        eight, nine, mixed = counts(8, False), counts(9, False), counts(8, True)
    assert 500 < eight.launches <= 1300, eight.operators.most_common()
    assert 500 < mixed.launches <= 1300, mixed.operators.most_common()
    assert nine.launches - eight.launches <= 5
    assert eight.syncs == mixed.syncs == 0, (eight.sync_sources, mixed.sync_sources)
    assert eight.flops == pytest.approx(8380e9, rel=0.01)  # 467 + 68 + 3 * 171 GF an image, roughly


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference(config, dtype):
    """One image, from uint8 pixels to detections on the device: at most 350 launches with the copy to the host."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    detector = fake_detector(config, mode, dtype=dtype)
    with mode, torch.no_grad():
        batch = make_batch(1)
        detector(batch)
        counts = count(lambda: detector(batch))
    packing = 4  # `to_numpy` casts and joins before its copy
    assert 200 < counts.launches + packing <= 350, counts.operators.most_common()
    assert counts.syncs == 0, counts.sync_sources


@torch.no_grad()
def test_one_sync_a_batch(config):
    rpn = {"post_nms_top_n_test": 3}
    changes = {"backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0, "rpn": rpn}
    detector = build_detector(config.model.model_validate(config.model.model_dump() | changes), NAMES)
    detector.eval().optimize_for_inference()
    batch = make_batch(2)
    small = Batch(**{name: getattr(batch, name) for name in batch.__dataclass_fields__ if name != "images"},
                  images=batch.images[:, :, :64, :96])  # fmt: skip
    detections = detector(small)
    counts = count(lambda: to_numpy(detections))
    assert counts.syncs == 1, counts.sync_sources
    assert counts.launches <= 4
    assert count(lambda: detector(small)).syncs == 0
