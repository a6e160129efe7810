"""What only a GPU can show of whole networks: steps as on the CPU, compiled, distributed, at true shapes.

Its kernels, graphs, loaders and scripts are tested where the CPU tests them (`pytest -m gpu` collects all).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from detection.prediction import to_numpy
from tools.benchmarks.cases import Case, find_case, make_inputs
from tools.benchmarks.contestants import Ours, OursAsGraphs, OursCompiled, random_weights
from tools.benchmarks.detectors import exact_float32
from tools.benchmarks.gpu import make_step

pytestmark = pytest.mark.gpu
CONFIGS = ["frcnn_r101_voc", "frcnn_r101_fpn_coco_modern", "frcnn_vgg16_voc", "frcnn_r101_coco_context"]


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_are_those_of_the_cpu(name):
    """The losses of three updates in float32: the later ones depend on the gradients of the ones before.

    At a low rate, for large updates soon turn the order of proposals; dropout draws from each device's own generator.
    """
    losses = {}
    with exact_float32():
        for device in ("cpu", "cuda"):
            step = make_step(
                name,
                (64, 96),
                torch.device(device),
                tiny=True,
                amp="none",
                overrides=["model.box.dropout=0"],
                rate=2e-4,
            )
            losses[device] = [step().item() for _ in range(3)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=5e-3)


def compared(contestant: type[Ours], case: Case, batch_size: int, amp: str, *, training: bool) -> list:
    """The case's inputs, and ours and another way to run the same detector on them."""
    device = torch.device("cuda")
    weights = random_weights(case)
    return [
        make_inputs(case, batch_size, device),
        *(c(case, weights, device, amp, training) for c in (Ours, contestant)),
    ]


def test_compiled_steps_are_the_same():
    with exact_float32():
        inputs, plain, compiled = compared(OursCompiled, find_case("tiny"), 2, "none", training=True)
        expected, found = plain.losses(inputs), compiled.losses(inputs)
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-3), name


@pytest.mark.parametrize("case", ["r101_c4_voc", "r101_fpn_coco", "vgg16_voc"])
def test_graphs_at_true_shapes_find_the_same(case, caplog):
    """In bf16, as it is measured: the very same kernels run."""
    inputs, plain, graphs = compared(OursAsGraphs, find_case(case), 1, "bf16", training=False)
    with torch.inference_mode():
        expected = to_numpy(plain.detections(plain.batch(inputs)))
        for _ in range(3):
            found = to_numpy(graphs.detections(graphs.batch(inputs)))
    assert not caplog.records
    assert sum(len(image.scores) for image in expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.labels.tolist() == b.labels.tolist()
        assert a.boxes == pytest.approx(b.boxes, abs=0.5)


@pytest.mark.parametrize("name", ["r101_c4_voc", "r101_fpn_coco", "vgg16_voc"])
def test_training_steps_as_graphs_have_the_same_losses(name, caplog):
    """Five updates in bf16 at two sizes in turns, at true shapes: each size is captured and then replayed."""
    case, device = find_case(name), torch.device("cuda")
    sizes = [make_inputs(replace(case, image_size=size), 2, device) for size in (case.image_size, (480, 640))]
    weights, losses = random_weights(case), []
    for contestant in (Ours, OursAsGraphs):
        one = contestant(case, weights, device, "bf16", True)
        steps = [one.train_step(sizes[k % 2]) for k in range(5)]
        losses.append([{name: loss.item() for name, loss in step.items()} for step in steps])
    assert not caplog.records
    for plain, graphed in zip(*losses, strict=True):
        assert graphed == pytest.approx(plain, rel=1e-2)


DISTRIBUTED = """
import sys, torch
from tools.benchmarks.gpu import make_step
from tools.runtime import distributed
import torch.distributed as dist

device = torch.device("cuda", 0)
plain = make_step("frcnn_r101_voc", (64, 96), device, tiny=True, amp="none")
expected = [plain().item() for _ in range(2)]
dist.init_process_group("nccl", init_method="file://" + sys.argv[1], rank=0, world_size=1, device_id=device)
step = make_step("frcnn_r101_voc", (64, 96), device, tiny=True, amp="none", wrap=lambda model: distributed._Averaging(
    model, device_ids=[0], broadcast_buffers=False, gradient_as_bucket_view=True))
found = [step().item() for _ in range(2)]
dist.destroy_process_group()
assert all(abs(a - b) < 1e-2 * abs(b) for a, b in zip(found, expected)), (found, expected)
"""


def test_distributed_steps_are_the_same(root, tmp_path):
    """Through NCCL and DistributedDataParallel's buckets, with one process."""
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    command = [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(tmp_path / "store")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
