"""The RPN by hand: anchors' order, proposals, and which anchors pay what; torchvision's head with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RPNHead as TorchvisionRpnHead

from configs.detection import AnchorConfig, RpnConfig
from detection.anchors import AnchorGenerator
from detection.rpn import Rpn, RpnHead, RpnOutput

DRAW = {"image_index": torch.tensor([0]), "seed": 0, "iteration": 0}


def made_rpn(
    sizes: list[int] | list[list[int]], strides: list[int], ratios: tuple[float, ...] = (1.0,), **options
) -> Rpn:
    anchors = AnchorGenerator(AnchorConfig(sizes=sizes, aspect_ratios=list(ratios), offset=0.5), strides)
    return Rpn(RpnConfig(**{"hidden_channels": 4, "batch_size_per_image": 1000} | options), 3, anchors)


def said(
    rpn: Rpn, map_sizes: list[tuple[int, int]], logits: list[list[float]], deltas: Tensor | None = None
) -> RpnOutput:
    """An output of one image with the given logits for each level; no deltas: zeros."""
    anchors, codes = rpn.anchors(map_sizes, torch.device("cpu"))
    moves = torch.zeros(1, len(anchors), 4) if deltas is None else deltas
    values = torch.tensor([[value for level in logits for value in level]])
    return RpnOutput(values, moves, [len(level) for level in logits], anchors, codes)


@pytest.mark.parametrize("num_convs", [1, 2])
def test_head_is_torchvisions(num_convs):
    ours, theirs = RpnHead(5, 5, 3, num_convs), TorchvisionRpnHead(5, 3, conv_depth=num_convs)
    theirs.load_state_dict(ours.state_dict())
    features = [torch.randn(2, 5, 4, 6), torch.randn(2, 5, 2, 3)]
    for found, expected in zip(ours(features), theirs(features), strict=True):
        for level, (one, other) in enumerate(zip(found, expected, strict=True)):
            height, width = features[level].shape[-2:]
            # (B, A * D, H, W) -> a row for each anchor, position by position
            rows = other.unflatten(1, (3, -1)).permute(0, 3, 4, 1, 2).reshape(2, height * width * 3, -1)
            torch.testing.assert_close(one, rows.squeeze(-1))


def test_head_starts_near_zero():
    """N(0, 0.01) for all new layers (Faster R-CNN, Sec. 3.1.3), and no bias: every anchor starts at a score of 1/2."""
    torch.manual_seed(0)
    head = RpnHead(64, 128, 9, 1)
    for name, value in head.named_parameters():
        if name.endswith("bias"):
            assert (value == 0).all()
        else:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)


def test_each_answer_belongs_to_its_anchor():
    """A 1x1 response at one position and one of two anchors moves that anchor and no other; H != W."""
    rpn = made_rpn([8, 16], [4])
    head = rpn.head
    with torch.no_grad():
        for layer in (head.conv[0][0], head.cls_logits, head.bbox_pred):
            layer.weight.zero_()
        head.conv[0][0].weight[0, 0, 1, 1] = 1.0  # hidden channel 0 is the map's channel 0
        head.cls_logits.weight[1, 0] = 5.0  # second anchor of a position
        head.bbox_pred.weight[4, 0] = 2.0  # its dx
    feature = torch.zeros(1, 3, 3, 5)
    feature[0, 0, 2, 4] = 1.0  # row 2, column 4: centre (18, 10)
    output = rpn.predict([feature])
    index = int(output.logits.argmax())
    assert output.logits[0, index] == 5
    assert output.logits.count_nonzero() == 1
    assert output.anchors[index].tolist() == [10, 2, 26, 18]
    assert output.deltas.nonzero().tolist() == [[0, index, 0]]
    assert output.deltas[0, index, 0] == 2


def test_proposals_by_hand():
    """Four anchors 8 x 8 on a 2 x 2 map of stride 8, image 12 high and 14 wide."""
    rpn = made_rpn([8], [8], pre_nms_top_n_test=3, post_nms_top_n_test=3)
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0] = torch.tensor([0.5, 0.0, 0.0, math.log(0.5)])  # right by 4, half as high
    deltas[0, 2] = torch.tensor([0.0, 0.0, math.log(3), 0.0])  # three times as wide: cut at the image's edges
    output = said(rpn, [(2, 2)], [[0.1, -9.0, 0.7, 0.4]], deltas)
    found = rpn.propose(output, torch.tensor([[12, 14]]), training=False)
    assert found.valid.tolist() == [[True, True, True]]
    torch.testing.assert_close(
        found.boxes, torch.tensor([[[0.0, 8, 14, 12], [8, 8, 14, 12], [4, 2, 12, 6]]]), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(found.logits, torch.tensor([[0.7, 0.4, 0.1]]))


def test_the_better_of_two_that_overlap_by_more_than_the_threshold():
    """Neighbours 8 x 8 at a distance of 2 overlap by 48 / 80 = 0.6."""
    for threshold, survivors in ((0.59, 1), (0.61, 2)):
        rpn = made_rpn([8], [2], nms_thresh=threshold)
        anchors = torch.tensor([[1.0, 3, 9, 11], [3.0, 3, 11, 11]])
        output = said(rpn, [(1, 2)], [[0.3, 0.5]])._replace(anchors=anchors)
        found = rpn.propose(output, torch.tensor([[30, 30]]), training=False)
        assert found.boxes[found.valid].tolist() == anchors.flip(0)[:survivors].tolist()
        assert (found.boxes[~found.valid] == 0).all()


def test_levels_do_not_suppress_each_other_and_have_their_own_limit():
    """Both levels' anchors are the same box; of each level only the best goes on."""
    rpn = made_rpn([[8], [8]], [8, 16], pre_nms_top_n_test=1)
    output = said(rpn, [(1, 2), (1, 1)], [[0.2, 0.9], [0.4]])
    same = torch.tensor([[2.0, 2, 10, 10]]).repeat(3, 1)
    found = rpn.propose(output._replace(anchors=same), torch.tensor([[30, 30]]), training=False)
    assert found.logits[found.valid].tolist() == pytest.approx([0.9, 0.4])


def test_training_and_test_have_their_own_numbers():
    numbers = {
        "pre_nms_top_n_train": 6, "post_nms_top_n_train": 4, "pre_nms_top_n_test": 3, "post_nms_top_n_test": 2,
        "nms_thresh": 1.0,
    }  # fmt: skip
    rpn = made_rpn([4], [8], **numbers)
    output = said(rpn, [(2, 4)], [[float(k) for k in range(8)]])
    for training, expected in ((True, [7.0, 6, 5, 4]), (False, [7.0, 6])):
        found = rpn.propose(output, torch.tensor([[64, 64]]), training=training)
        assert found.logits[found.valid].tolist() == expected


def test_boxes_outside_or_too_small_are_no_proposals():
    """The image is 4 wide: the second anchor lies beyond it, the first is cut to 4 x 8."""
    rpn = made_rpn([8], [8], min_size=3.0)
    found = rpn.propose(said(rpn, [(1, 2)], [[0.1, 0.9]]), torch.tensor([[8, 4]]), training=False)
    assert found.boxes[found.valid].tolist() == [[0, 0, 4, 8]]
    rpn = made_rpn([8], [8], min_size=5.0)
    found = rpn.propose(said(rpn, [(1, 2)], [[0.1, 0.9]]), torch.tensor([[8, 4]]), training=False)
    assert not found.valid.any()


# Anchors 10 x 10 in a row at stride 10 over an image 10 high; the object covers 8 of the first and 2 of the second.
OBJECT = torch.tensor([[[2.0, 0.0, 12.0, 10.0]]])
OVERLAPS = (80 / 120, 20 / 180, 0.0)


def losses_of(rpn: Rpn, logits: list[float], deltas: Tensor | None = None, boxes: Tensor = OBJECT, **changes) -> dict:
    valid = changes.pop("valid", torch.ones(boxes.shape[:2], dtype=torch.bool))
    output = said(rpn, [(1, len(logits))], [logits], deltas)
    return rpn.losses(output, torch.tensor([[10, 10 * len(logits)]]), boxes, valid, **DRAW | changes)


def entropy(logit: float, positive: bool) -> float:
    return math.log1p(math.exp(-logit if positive else logit))


def test_losses_by_hand():
    """One positive (its overlap is 0.667 >= 0.6) and two negatives; the answer should be dx = 0.2."""
    rpn = made_rpn([10], [10], fg_iou_thresh=0.6, smooth_l1_beta=0.1, box_loss_weight=3.0)
    losses = losses_of(rpn, [1.0, 2.0, -1.0])
    expected = (entropy(1, True) + entropy(2, False) + entropy(-1, False)) / 3
    assert losses["loss_objectness"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(3.0 * (0.2 - 0.05) / 3, rel=1e-5)
    right = torch.zeros(1, 3, 4)
    right[0, 0, 0] = 0.2
    assert losses_of(rpn, [1.0, 2.0, -1.0], right)["loss_rpn_box_reg"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("fg", "bg", "expected"),
    [
        (OVERLAPS[0] - 1e-4, 0.3, "+--"),
        (0.9, 0.3, "+--"),  # an object's best anchor is positive however small the overlap (Sec. 3.1.2, i)
        (0.1, 0.05, "++-"),
        (0.7, OVERLAPS[1] + 1e-4, "+--"),
        (0.7, OVERLAPS[1] - 1e-4, "+.-"),  # between the thresholds: takes no part
    ],
)
def test_thresholds(fg, bg, expected):
    rpn = made_rpn([10], [10], fg_iou_thresh=fg, bg_iou_thresh=bg, positive_fraction=1.0)
    logits = [1.0, 2.0, -1.0]
    parts = [entropy(x, sign == "+") for x, sign in zip(logits, expected, strict=True) if sign != "."]
    assert losses_of(rpn, logits)["loss_objectness"].item() == pytest.approx(sum(parts) / len(parts), rel=1e-5)


@pytest.mark.parametrize(("fg", "bg", "expected"), [(0.2, 0.1, "+++"), (0.7, 0.2, ".+.")])
def test_positive_from_the_threshold_on_and_negative_below_it(fg, bg, expected):
    """The object covers half of the first and of the third anchor, 50 / 250, and all of the second."""
    rpn = made_rpn([10], [10], fg_iou_thresh=fg, bg_iou_thresh=bg, positive_fraction=1.0)
    logits = [1.0, 2.0, -1.0]
    parts = [entropy(x, sign == "+") for x, sign in zip(logits, expected, strict=True) if sign != "."]
    loss = losses_of(rpn, logits, boxes=torch.tensor([[[5.0, 0.0, 25.0, 10.0]]]))["loss_objectness"]
    assert loss.item() == pytest.approx(sum(parts) / len(parts), rel=1e-5)


def test_losses_are_over_all_levels():
    """The object is the second level's anchor, which answers dy = 0.5 in place of 0."""
    rpn = made_rpn([[10], [20]], [10, 20], smooth_l1_beta=0.0)
    deltas = torch.zeros(1, 5, 4)
    deltas[0, 4, 1] = 0.5
    output = said(rpn, [(2, 2), (1, 1)], [[1.0, 1.0, 1.0, 1.0], [2.0]], deltas)
    boxes, valid = torch.tensor([[[0.0, 0.0, 20.0, 20.0]]]), torch.tensor([[True]])
    losses = rpn.losses(output, torch.tensor([[20, 20]]), boxes, valid, **DRAW)
    assert losses["loss_objectness"].item() == pytest.approx((4 * entropy(1, False) + entropy(2, True)) / 5, rel=1e-5)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(0.5 / 5)


def test_without_objects_all_are_negative():
    rpn = made_rpn([10], [10])
    losses = losses_of(rpn, [1.0, 2.0, -1.0], torch.ones(1, 3, 4), valid=torch.tensor([[False]]))
    expected = (entropy(1, False) + entropy(2, False) + entropy(-1, False)) / 3
    assert losses["loss_objectness"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["loss_rpn_box_reg"] == 0


def test_anchors_that_cross_the_border_are_dropped_where_asked():
    """Anchors 14 wide at stride 10 over 40: the first and the last of four stick out at the sides."""
    boxes = torch.tensor([[[8.0, 0.0, 22.0, 10.0]]])  # the second anchor's own columns
    logits = [1.0, 2.0, -1.0, 3.0]
    numbers = {"sizes": [10], "strides": [10], "ratios": (0.5,), "positive_fraction": 1.0}
    keep = losses_of(made_rpn(**numbers), logits, boxes=boxes)["loss_objectness"].item()
    drop = losses_of(made_rpn(**numbers, cross_boundary="drop"), logits, boxes=boxes)["loss_objectness"].item()
    assert keep == pytest.approx((entropy(1, False) + entropy(2, True) + entropy(-1, False) + entropy(3, False)) / 4)
    assert drop == pytest.approx((entropy(2, True) + entropy(-1, False)) / 2)


def test_the_sample_has_its_size_and_changes_with_the_step():
    rpn = made_rpn([10], [10], batch_size_per_image=4, positive_fraction=0.5)
    logits = [float(k) / 10 for k in range(60)]
    drawn = [losses_of(rpn, logits, iteration=step)["loss_objectness"].item() for step in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    sums = 4 * drawn[0] - entropy(0.0, True)  # the object's anchor is in every sample of its only positive
    possible = [entropy(x, False) for x in logits[1:]]
    assert 3 * min(possible) <= sums <= 3 * max(possible)


def test_forward_is_what_the_head_says_and_the_proposals_of_it():
    rpn = made_rpn([8], [8])
    features, sizes = [torch.randn(2, 3, 3, 4)], torch.tensor([[24, 32], [20, 30]])
    proposals, output = rpn(features, sizes, training=True)
    for found, expected in ((output, rpn.predict(features)), (proposals, rpn.propose(output, sizes, training=True))):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other
