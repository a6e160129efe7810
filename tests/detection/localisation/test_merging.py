"""From proposals to one box a class: arithmetic by hand, identities of ensembles."""

from __future__ import annotations

import pytest
import torch

from detection.localisation.layers import Candidates, to_original, to_view
from detection.localisation.merging import merge, propose, rescore, suppress
from tests.detection.localisation.made import (
    INDEX,
    LABELS,
    OBJECTS,
    VALID,
    frame_of,
    make_images,
    make_rcnn,
    make_rpn,
)
from tools.benchmarks.counting import count


def test_no_step_waits_for_the_device():
    images, rpn, rcnn = make_images(), make_rpn(classification_loss_weight=1.0).train(), make_rcnn().train()
    whole, frames = torch.tensor([[24, 40]] * 2), frame_of(2)

    def step() -> None:
        losses = rpn(images, LABELS, OBJECTS, VALID, INDEX, seed=0, iteration=0)
        sum(losses.values()).backward()
        with torch.no_grad():
            found = propose([rpn], [(images, frames)], LABELS[:, None], whole, 20, mirror=True)
            found = suppress(found, 0.7)
        losses = rcnn(images, LABELS, OBJECTS, VALID, INDEX, found, seed=0, iteration=0)
        sum(losses.values()).backward()

    step()
    counts = count(step)
    assert counts.syncs == 0, counts.sync_sources
    assert all(p.grad is not None and p.grad.isfinite().all() for net in (rpn, rcnn) for p in net.parameters())


def test_merging_by_hand():
    """Two agreeing boxes beat a better one that stands alone; they become their score-weighted mean."""
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [0.0, 2.0, 10.0, 12.0], [30.0, 30.0, 40.0, 50.0], [0.0, 0.0, 0.0, 0.0]]
    )
    scores = torch.tensor([0.6, 0.3, 0.8, 0.0])
    candidates = Candidates(boxes.expand(1, 2, 4, 4), torch.stack((scores, scores.flip(0)))[None])
    merged, best = merge(Candidates(candidates.boxes[:, :1], candidates.scores[:, :1]), 0.5)
    torch.testing.assert_close(merged[0, 0], torch.tensor([0.0, 2 / 3, 10.0, 10 + 2 / 3]))  # IoU 8/12
    assert best.item() == pytest.approx(0.6)
    alone, best = merge(Candidates(candidates.boxes[:, :1], candidates.scores[:, :1]), 1.0)
    assert alone[0, 0].tolist() == [30, 30, 40, 50]
    assert best.item() == pytest.approx(0.8)
    apart, _ = merge(Candidates(candidates.boxes[:, :1], candidates.scores[:, :1]), 0.7)
    assert apart[0, 0].tolist() == [30, 30, 40, 50], "at 0.7 the two do not agree"
    both, _ = merge(candidates, 0.5)
    torch.testing.assert_close(both[0, 0], merged[0, 0])
    # The second class scores them 0, 0.8, 0.3 and, without an extent, 0.6.
    assert both[0, 1].tolist() == pytest.approx([0, 2, 10, 12])


def test_proposals_of_several_scales_are_joined_best_first_and_cut_to_the_image():
    rpn = make_rpn().eval()
    classes, sizes = torch.tensor([[0, 2], [4, 4]]), torch.tensor([[48, 80], [48, 80]])
    small, large = make_images(2, (24, 40)), make_images(2, (48, 80), seed=1)
    views = [(small, frame_of(2, 0.0, 0.0, 2.0, 2.0)), (large, frame_of(2))]
    with torch.no_grad():
        found = propose([rpn], views, classes, sizes, 50, mirror=True)
        parts = [rpn.candidates(*view, classes, 2000, mirror=flip) for view in views for flip in (False, True)]
    boxes, scores = (torch.cat([part[i] for part in parts], 2) for i in (0, 1))
    top = scores.sort(-1, descending=True)
    expected = boxes.gather(2, top.indices[..., :50, None].expand(-1, -1, -1, 4))
    limits = torch.tensor([80.0, 48.0, 80.0, 48.0])
    cut = expected.clamp(min=0).minimum(limits)
    torch.testing.assert_close(found.boxes, cut)
    there = (cut[..., 2:] - cut[..., :2] >= 0.01).all(-1)
    assert not there.all(), "some lie outside: they count as none"
    torch.testing.assert_close(found.scores, top.values[..., :50] * there)


def test_an_ensemble_of_one_model_twice_is_that_model():
    rpn, rcnn = make_rpn().eval(), make_rcnn().eval()
    images, classes, sizes = make_images(), torch.tensor([[0, 2], [4, 4]]), torch.tensor([[24, 40]] * 2)
    view = (images, frame_of(2))
    with torch.no_grad():
        one = propose([rpn], [view], classes, sizes, 100, mirror=False)
        two = propose([rpn, rpn], [view], classes, sizes, 200, mirror=False)
        torch.testing.assert_close(merge(two, 0.5), merge(one, 0.5))
        torch.testing.assert_close(suppress(two, 0.7).boxes[:, :, :5], suppress(one, 0.7).boxes[:, :, :5])
        proposals = suppress(propose([rpn], [view], classes, sizes, 30, mirror=False), 0.7)
        single = rescore([rcnn], *view, classes, sizes, proposals)
        double = rescore([rcnn, rcnn], *view, classes, sizes, proposals)
        torch.testing.assert_close(double, single)
        other = make_rcnn(seed=5).eval()
        alone = rescore([other], *view, classes, sizes, proposals)
        mixed = rescore([rcnn, other], *view, classes, sizes, proposals)
    torch.testing.assert_close(mixed.scores, (single.scores + alone.scores) / 2)
    inside = (torch.minimum(single.boxes, alone.boxes) > 0).all(-1)  # cut after the mean, not before
    inside &= (torch.maximum(single.boxes, alone.boxes) < torch.tensor([40.0, 24.0, 40.0, 24.0])).all(-1)
    assert inside.any()
    torch.testing.assert_close(mixed.boxes[inside], ((single.boxes + alone.boxes) / 2)[inside])
    assert not torch.equal(single.scores, proposals.scores)
    assert (single.scores[proposals.scores == 0] == 0).all()


def test_an_rcnn_that_says_nothing_leaves_the_boxes():
    rcnn = make_rcnn().eval()
    boxes = torch.tensor([[[[2.0, 3.0, 20.0, 12.0], [0.0, 0.0, 40.0, 24.0]]]])
    with torch.no_grad():
        for parameter in rcnn.siblings.parameters():
            parameter.zero_()
        frames = frame_of(1, 4.0, 2.0, 0.5, 0.25)
        view = to_view(boxes, frames)
        proposals = Candidates(boxes, torch.tensor([[[0.9, 0.4]]]))
        found = rescore([rcnn], make_images(1), frames, torch.tensor([[2]]), torch.tensor([[24, 40]]), proposals)
    torch.testing.assert_close(to_original(view, frames), boxes)
    torch.testing.assert_close(found.boxes, boxes)
    assert found.scores.flatten().tolist() == [0.5, 0.5]


def test_suppression_keeps_the_best_of_those_that_overlap():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 1.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    found = suppress(Candidates(boxes[None, None], torch.tensor([[[0.5, 0.7, 0.6]]])), 0.7)
    assert found.scores[0, 0].tolist() == pytest.approx([0.7, 0.6, 0.0])
    assert found.boxes[0, 0].tolist() == [[0, 1, 10, 10], [20, 0, 30, 10], [0, 0, 0, 0]]
    first = suppress(Candidates(boxes[None, None], torch.tensor([[[0.5, 0.7, 0.6]]])), 0.7, count=1)
    assert torch.equal(first.boxes, found.boxes[:, :, :1])
    assert torch.equal(first.scores, found.scores[:, :, :1])
