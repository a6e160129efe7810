from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection._utils import Matcher

import detection.matching
from detection.matching import inside_image, match


def batch(seed: int, counts: list[int], num_candidates: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded ground truth with the given numbers of objects, and candidates, on a grid so coarse that ties happen."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        corner = torch.randint(0, 12, (*shape, 2), generator=generator) * 8.0
        return torch.cat((corner, corner + torch.randint(1, 6, (*shape, 2), generator=generator) * 8.0), dim=-1)

    objects = boxes(len(counts), 8)
    valid = torch.arange(8) < torch.tensor(counts)[:, None]
    return objects * valid[..., None], valid, boxes(len(counts), num_candidates)


@pytest.mark.parametrize("max_elements", [1, 1 << 25])
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 8), min_size=1, max_size=3))
def test_equals_torchvisions_matcher_image_by_image(max_elements, seed, counts):
    objects, valid, candidates = batch(seed, counts, 40)
    before, detection.matching.MAX_ELEMENTS = detection.matching.MAX_ELEMENTS, max_elements
    try:
        matches = match(objects, valid, candidates)
    finally:
        detection.matching.MAX_ELEMENTS = before
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    for image, count in enumerate(counts):
        positive = (matches.iou[image] >= 0.7) | matches.is_best_of_object[image]
        negative = (matches.iou[image] < 0.3) & ~positive
        if count == 0:
            assert negative.all()
            continue
        quality = torchvision.ops.box_iou(objects[image, :count], candidates[image])
        if (quality.amax(1) == 0).any():
            continue  # torchvision makes every candidate positive for an object that overlaps none
        expected = matcher(quality)
        assert torch.equal(positive, expected >= 0)
        assert torch.equal(negative, expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(matches.index[image][positive], expected[positive])


def test_an_object_that_overlaps_nothing_claims_nothing():
    objects = torch.tensor([[[500.0, 500.0, 510.0, 510.0]]])
    candidates = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]]])
    assert not match(objects, torch.tensor([[True]]), candidates).is_best_of_object.any()


def test_candidates_that_are_not_valid_are_best_for_nothing():
    objects = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    candidates = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]]])
    matches = match(objects, torch.tensor([[True]]), candidates, torch.tensor([[False, True]]))
    assert matches.is_best_of_object.tolist() == [[False, True]]
    assert matches.iou[0, 0] == -1


def test_inside_image_knows_height_from_width():
    anchors = torch.tensor([[0.0, 0.0, 30.0, 10.0], [0.0, 0.0, 10.0, 30.0], [-1.0, 0.0, 5.0, 5.0]])
    sizes = torch.tensor([[10, 30], [30, 10]])  # (H, W)
    assert inside_image(anchors, sizes).tolist() == [[True, False, False], [False, True, False]]


KERNELS = """
import itertools, torch
from detection import triton_assignment as kernels
from detection.matching import match
from detection.sampling import _mix_int, _mix_step, random_keys
generator = torch.Generator().manual_seed(0)
kernels.BLOCK = 32

def random_boxes(*shape):
    corner = (torch.rand(*shape, 2, generator=generator) * 60).round()
    return torch.cat((corner, corner + (torch.rand(*shape, 2, generator=generator) * 40).round()), -1)

for shared, masked, objects, count in (
    (True, False, 5, 70), (False, True, 8, 33), (False, False, 1, 32), (True, True, 3, 5),
    (True, False, 0, 9),
):
    boxes = random_boxes(2, objects)
    candidates = random_boxes(1 if shared else 2, count)
    if count > 4 and objects:
        candidates[:, :2] = boxes[:1, :1]  # ties, at an overlap of 1
        candidates[:, 2] = 7.0  # no extent
    valid = torch.rand(2, objects, generator=generator) < 0.7
    valid[0] = False  # an image without objects
    usable = torch.rand(2, count, generator=generator) < 0.7 if masked else None
    expected = match(boxes, valid, candidates, usable)
    for ours, theirs in zip(kernels.match(boxes, valid, candidates, usable), expected, strict=True):
        assert torch.equal(ours, theirs), (shared, masked, objects, ours, theirs)

from detection.boxes import decode_clipped
for shared, weights, count in ((True, None, 40), (False, torch.tensor([10.0, 10, 5, 5]), 33), (False, None, 0)):
    deltas = torch.randn(2, 50, 4, generator=generator) * 3
    deltas[0, 3, 2], deltas[1, 5, 0] = 500.0, float("nan")
    references = random_boxes(1 if shared else 2, 20)
    rows, places = torch.randint(0, 50, (2, count), generator=generator), torch.randint(0, 20, (2, count))
    args = (deltas, rows, references, places, weights, torch.tensor([[50, 90], [70, 40]]), 2.0)
    for ours, theirs in zip(kernels.decode_clipped(*args), decode_clipped(*args), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)

images, codes = torch.tensor([0, 7, 123456789012]), torch.randint(0, 1 << 40, (77,), generator=generator)
for seed, iteration, purpose in ((0, 0, 0), (3, 90000, 1), (1 << 40, 5, 2), (11, 12, 0), (0, 1 << 25, 1)):
    expected = random_keys(seed, iteration, purpose, images, codes)
    assert torch.equal(kernels.random_keys(_mix_step(seed, iteration, purpose), images, codes), expected)
    on_device = torch.tensor(iteration), purpose  # as a CUDA graph has it
    assert torch.equal(kernels.random_keys(_mix_int(seed), images, codes, *on_device), expected)

from detection import triton_selection as selection
from detection.sampling import PLACE_BITS, sample
selection.BLOCK = 64
logits = torch.randn(2, 300, generator=generator)
logits[0, 10:60] = 0.25  # ties beyond a block
logits[1, 100:] = -1.5
logits[1, 5], logits[1, 7], logits[0, 0] = float("nan"), float("inf"), float("-inf")
for (sizes, count), selection.CHUNK in itertools.product((((200, 70, 30), 40), ((129, 171), 150)), (1 << 14, 96)):
    scores, index, levels = selection.best_of_levels(logits, sizes, count)
    place = first = 0
    for level, size in enumerate(sizes):
        here = slice(place, place + min(count, size))
        order = logits[:, first : first + size].sort(dim=1, descending=True, stable=True).indices[:, :count]
        assert torch.equal(index[:, here], order.sort(1).values + first), (sizes, count, level)
        assert (levels[:, here] == level).all()
        place, first = here.stop, first + size
    assert torch.equal(scores.nan_to_num(9.0), logits.gather(1, index).nan_to_num(9.0))
cases = (200, 16, 0.5, 0.02), (9, 16, 0.25, 0.5), (70, 64, 1.0, 1.0), (130, 130, 0.0, 0.3)
for (count, size, fraction, share), selection.CHUNK in itertools.product(cases, (1 << 14, 50)):
    keys = (torch.randint(0, 1 << 32, (3, count), generator=generator) << PLACE_BITS) | torch.arange(count)
    keys[2] = (7 << 40) | torch.arange(count)  # the place alone tells them apart
    positive = torch.rand(3, count, generator=generator) < share
    negative = (torch.rand(3, count, generator=generator) < 0.8) & ~positive
    negative[1, 3:] = False
    expected = sample(positive, negative, keys, size, fraction)
    size = min(size, count)
    index, taken, some = selection.sample(positive, negative, keys, size, int(size * fraction))
    assert torch.equal(taken, expected.positive) and torch.equal(some, expected.valid)
    assert torch.equal(index, expected.index * expected.valid), (count, size, fraction, share)

from detection import losses, triton_losses
triton_losses.BLOCK = 16
logits = (torch.randn(3, 21, generator=generator) * 8).requires_grad_()
deltas, targets = torch.randn(2, 5, 4, generator=generator).requires_grad_(), torch.randn(2, 5, 4, generator=generator)
targets[0, 0] = deltas.detach()[0, 0]  # no difference
draw = lambda *shape: torch.rand(*shape, generator=generator) < 0.6
number = torch.tensor(7.0)
cases = [
    (triton_losses.objectness, losses.objectness_loss, logits, (draw(3, 21), draw(3, 21), number)),
    (triton_losses.classification, losses.classification_loss, logits, (torch.tensor([0, 20, 7]), draw(3), number)),
    *((triton_losses.box, losses.box_loss, deltas, (targets, draw(2, 5), number, beta)) for beta in (0.0, 0.3, 1.0)),
]
for kernel, oracle, predicted, arguments in cases:
    ours, theirs = triton_losses.loss(kernel, predicted, *arguments), oracle(predicted, *arguments)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(2 * loss, predicted)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    broken = predicted.detach().clone()
    broken[0, 0] = float("nan")
    arguments = [torch.ones_like(part) if getattr(part, "dtype", 0) == torch.bool else part for part in arguments]
    assert triton_losses.loss(kernel, broken, *arguments).isnan()
empty = torch.zeros(2, 0, 4, requires_grad=True)
assert triton_losses.loss(triton_losses.box, empty, torch.zeros(2, 0, 4), torch.zeros(2, 0) > 0, number, 1.0) == 0
"""


def test_triton_kernels_equal_the_cpus_operators(root: Path):
    """In Triton's interpreter, bit for bit: ties, images without objects, boxes without extent, no candidate."""
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with NumPy 2.4, its compiler does not
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(root))
    command = [sys.executable, "-W", "ignore", "-c", KERNELS]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
