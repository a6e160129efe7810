"""The per-class RPN: arithmetic by hand, losses against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from backbones.weights import IMAGENET
from backbones.zoo import build_backbone
from configs.errors import UserError
from configs.localisation import PerClassRpnConfig
from detection.localisation.layers import to_view
from detection.localisation.rpn import ANCHOR_PURPOSE, PerClassRpn, sample_evenly
from detection.matching import match
from detection.sampling import random_keys
from tests.detection.localisation.made import (
    INDEX,
    LABELS,
    NET,
    OBJECTS,
    VALID,
    frame_of,
    make_images,
    make_rpn,
    plain_iou,
    plain_losses,
    whole_outputs,
)


def test_the_siblings_may_stand_on_an_earlier_map():
    """Its stride is the anchors'; what is behind it is dropped, unless it classifies along."""
    rpn, along = make_rpn(stage="conv2"), make_rpn(stage="conv2", classification_loss_weight=1.0)
    assert rpn.anchors.strides == [2]
    assert not hasattr(rpn.net, "layer2")
    for net in (rpn, along):
        losses = net(make_images(), LABELS, OBJECTS, VALID, INDEX, seed=0, iteration=0)
        sum(losses.values()).backward()
        assert all(p.grad is not None for p in net.parameters())
        with torch.no_grad():
            found = net.eval().candidates(make_images(1), frame_of(1), torch.tensor([[3]]), 4000, mirror=False)
            feature = net.net.forward_stages(net.normalize(make_images(1)), ["conv2"])["conv2"]
            logits, _ = net.siblings(feature, torch.tensor([[3]]))
        assert found.scores.shape == (1, 1, 12 * 20 * 4)
        torch.testing.assert_close(found.scores[0, 0], logits[0, 0].sigmoid().sort(descending=True).values)
    scores = along.net(along.normalize(make_images()))
    torch.testing.assert_close(
        along(make_images(), LABELS, OBJECTS, VALID, INDEX, seed=0, iteration=0)["loss_classifier"],
        F.cross_entropy(scores, LABELS),
    )
    with pytest.raises(UserError, match=r"model\.rpn\.stage is conv9, but the net has conv1, conv2, conv3"):
        make_rpn(stage="conv9")


def test_anchors_and_decoding_by_hand_where_the_map_is_wider_than_high():
    rpn = make_rpn().eval()
    with torch.no_grad():
        for parameter in rpn.siblings.parameters():
            parameter.zero_()
        # Class 3: the second anchor (ratio 0.5, size 16) wins; its boxes move by a quarter of their width.
        rpn.siblings.cls_logits.bias.view(5, 4)[3] = torch.tensor([0.0, 2.0, 1.0, 0.0])
        rpn.siblings.bbox_pred.bias.view(5, 4, 4)[3, 1, 0] = 0.25
        found = rpn.candidates(make_images(1), frame_of(1), torch.tensor([[3]]), 60, mirror=False)
    height, width = 16 * math.sqrt(0.5), 16 / math.sqrt(0.5)
    cells = [(4 * (column + 0.5), 4 * (row + 0.5)) for row in range(6) for column in range(10)]
    expected = [
        (x + 0.25 * width - width / 2, y - height / 2, x + 0.25 * width + width / 2, y + height / 2) for x, y in cells
    ]
    boxes, order = found.boxes[0, 0], found.boxes[0, 0, :, 1] * 1000 + found.boxes[0, 0, :, 0]
    torch.testing.assert_close(boxes[order.argsort()], torch.tensor(expected))
    torch.testing.assert_close(found.scores[0, 0], torch.full((60,), 1 / (1 + math.exp(-2))))


def test_mirror_images_and_frames_lead_back_to_the_original():
    rpn = make_rpn().eval()
    images, classes = make_images(), torch.tensor([[1, 2], [3, 1]])
    with torch.no_grad():
        plain = rpn.candidates(images, frame_of(2), classes, 240, mirror=False)
        mirrored = rpn.candidates(images.flip(-1), frame_of(2), classes, 240, mirror=True)
        framed = rpn.candidates(images, frame_of(2, 7.0, 3.0, 2.0, 0.5), classes, 240, mirror=False)
    torch.testing.assert_close(mirrored.boxes, torch.stack((
        40 - plain.boxes[..., 2], plain.boxes[..., 1], 40 - plain.boxes[..., 0], plain.boxes[..., 3]), -1))  # fmt: skip
    torch.testing.assert_close(mirrored.scores, plain.scores)
    x1, y1, x2, y2 = plain.boxes.unbind(-1)
    torch.testing.assert_close(framed.boxes, torch.stack((2 * x1 + 7, 0.5 * y1 + 3, 2 * x2 + 7, 0.5 * y2 + 3), -1))
    torch.testing.assert_close(to_view(framed.boxes, frame_of(2, 7.0, 3.0, 2.0, 0.5)), plain.boxes)


def test_one_positive_has_one_negative():
    """1:1: at most four of each of eight; one positive has one negative; none has none."""
    positive = torch.zeros(4, 30, dtype=torch.bool)
    positive[0, 7] = True
    positive[1, :20] = True
    positive[3, :28] = True
    keys = torch.rand(4, 30).argsort(1)
    chosen = sample_evenly(positive, ~positive, keys, 8)
    assert chosen.valid.sum(1).tolist() == [2, 8, 0, 6]
    assert (chosen.positive & chosen.valid).sum(1).tolist() == [1, 4, 0, 4]
    assert int(chosen.index[0][chosen.positive[0]]) == 7
    taken = positive.gather(1, chosen.index)
    assert torch.equal(taken & chosen.valid, chosen.positive)


def test_rpn_losses_equal_a_plain_loop_over_the_images():
    rpn = make_rpn(fg_iou_thresh=0.5, bg_iou_thresh=0.3, smooth_l1_beta=0.2, batch_size_per_image=1000).train()
    images = make_images()
    losses = rpn(images, LABELS, OBJECTS, VALID, INDEX, seed=0, iteration=0)
    feature = rpn.net.forward_stages(rpn.normalize(images), ["conv3"])["conv3"]
    logits, deltas = whole_outputs(rpn.siblings, feature, 4)
    anchors, _ = rpn.anchors([(6, 10)], torch.device("cpu"))
    anchors = anchors.tolist()
    sums = [0.0, 0.0, 0]
    with torch.no_grad():
        for b in range(2):
            k = int(LABELS[b])
            own_logits = logits[b, k].permute(1, 2, 0).flatten()
            own_deltas = deltas[b, k].permute(2, 3, 0, 1).reshape(-1, 4)
            objects = OBJECTS[b][VALID[b]].tolist()
            overlaps = [[plain_iou(anchor, item) for item in objects] for anchor in anchors]
            best = [max(row[g] for row in overlaps) for g in range(len(objects))]
            positive = {
                n: row.index(max(row))
                for n, row in enumerate(overlaps)
                if max(row) >= 0.5 or any(row[g] >= best[g] - 1e-6 for g in range(len(objects)))
            }
            negative = [n for n, row in enumerate(overlaps) if max(row) < 0.3 and n not in positive]
            assert 0 < len(positive) < len(negative)
            chosen = chosen_negatives(rpn, b, negative, positive, len(anchors))
            taken = [*positive.items(), *((n, None) for n in chosen)]
            part = plain_losses(own_logits, own_deltas, anchors, objects, taken, (1, 1, 1, 1), 0.2)
            sums = [a + c for a, c in zip(sums, part, strict=True)]
    assert losses["loss_objectness"].item() == pytest.approx(sums[0] / sums[2], rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(sums[1] / sums[2], rel=1e-4)


def chosen_negatives(rpn: PerClassRpn, b: int, negative: list[int], positive: dict, count: int) -> list[int]:
    """As many negatives as positives, those with the largest random keys."""
    _, codes = rpn.anchors([(6, 10)], torch.device("cpu"))
    keys = random_keys(0, 0, ANCHOR_PURPOSE, INDEX[b : b + 1], codes)[0]
    return sorted(negative, key=lambda n: -int(keys[n]))[: len(positive)]


def test_an_image_without_an_object_in_its_crop_weighs_nothing():
    rpn = make_rpn(classification_loss_weight=0.5).eval()  # batch norm by image
    images, none = make_images(), torch.zeros_like(VALID[:1])
    together = rpn(images, LABELS, OBJECTS, torch.cat((VALID[:1], none)), INDEX, seed=0, iteration=0)
    alone = rpn(images[:1], LABELS[:1], OBJECTS[:1], VALID[:1], INDEX[:1], seed=0, iteration=0)
    for name in ("loss_objectness", "loss_box_reg"):
        torch.testing.assert_close(together[name], alone[name])
    empty = rpn(images, LABELS, OBJECTS, torch.zeros_like(VALID), INDEX, seed=0, iteration=0)
    assert empty["loss_objectness"] == empty["loss_box_reg"] == 0
    scores = rpn.net(rpn.normalize(images))
    torch.testing.assert_close(together["loss_classifier"], 0.5 * F.cross_entropy(scores, LABELS))


def test_negatives_fill_the_sample_where_the_config_says_so():
    """With all anchors in the sample its loss is the mean over all that are positive or negative."""
    rpn = make_rpn(batch_size_per_image=480, shortage="fill", fg_iou_thresh=0.5, bg_iou_thresh=0.5).eval()
    images = make_images()
    losses = rpn(images, LABELS, OBJECTS, VALID, INDEX, seed=0, iteration=0)
    everyone = 2 * 6 * 10 * 4
    logits, _ = rpn.siblings(rpn.net.forward_stages(rpn.normalize(images), ["conv3"])["conv3"], LABELS[:, None])
    anchors, _ = rpn.anchors([(6, 10)], torch.device("cpu"))
    matches = match(OBJECTS, VALID, anchors[None])
    positive = (matches.iou >= 0.5) | matches.is_best_of_object
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], positive.float(), reduction="sum") / everyone
    torch.testing.assert_close(losses["loss_objectness"], expected)
    nothing = rpn(images, LABELS, OBJECTS, torch.zeros_like(VALID), INDEX, seed=0, iteration=0)
    assert nothing["loss_objectness"] == 0, "a crop without an object has no negatives"


def test_a_score_may_say_that_the_regressed_box_is_right():
    """All anchors of the images that show an object learn, each from its own box's overlap."""
    rpn = make_rpn(score="box").eval()
    with torch.no_grad():  # boxes of about an object's size, so that some are right
        rpn.siblings.shared_pred.bias.view(4, 4)[:, 2:] += 0.3
    images = make_images()
    valid = torch.tensor([[True, True], [False, False]])
    losses = rpn(images, LABELS, OBJECTS, valid, INDEX, seed=0, iteration=0)
    feature = rpn.net.forward_stages(rpn.normalize(images), ["conv3"])["conv3"]
    logits, deltas = (part[0, 0].detach() for part in rpn.siblings(feature, LABELS[:, None]))
    anchors, _ = rpn.anchors([(6, 10)], torch.device("cpu"))
    targets, total = 0, 0.0
    for anchor, delta, z in zip(anchors.tolist(), deltas.tolist(), logits.tolist(), strict=True):
        width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
        x, y = anchor[0] + width * (0.5 + delta[0]), anchor[1] + height * (0.5 + delta[1])
        half = 0.5 * width * math.exp(delta[2]), 0.5 * height * math.exp(delta[3])
        box = [x - half[0], y - half[1], x + half[0], y + half[1]]
        right = max(plain_iou(box, item) for item in OBJECTS[0].tolist()) >= 0.5
        targets += right
        total += math.log1p(math.exp(-z)) if right else math.log1p(math.exp(z))
    assert 0 < targets < 120
    assert losses["loss_objectness"].item() == pytest.approx(total / 240, rel=1e-4)


def test_the_sample_follows_the_image_not_the_batch_and_changes_with_the_iteration():
    rpn = make_rpn().eval()
    images = make_images(1).expand(2, -1, -1, -1)
    arguments = (LABELS[:1].expand(2), OBJECTS[:1].expand(2, -1, -1), VALID[:1].expand(2, -1))

    def loss(index: list[int], iteration: int) -> float:
        part = slice(0, len(index))
        inputs = (images[part], *(argument[part] for argument in arguments))
        return float(rpn(*inputs, torch.tensor(index), seed=0, iteration=iteration)["loss_objectness"].detach())

    assert loss([7], 0) == pytest.approx(loss([7, 7], 0), rel=1e-6)
    assert len({loss([7], 0), loss([8], 0), loss([7], 1)}) == 3


def test_a_net_without_a_linear_classifier_on_a_mean_cannot_classify_along():
    net = build_backbone("highway19", num_classes=4)
    fixed = build_backbone({**NET, "classifier_pool": {"size": 2}, "input_size": [32, 32]}, num_classes=4)
    for each in (net, fixed):
        with pytest.raises(UserError, match="classification_loss_weight: this net's classifier"):
            PerClassRpn(each, PerClassRpnConfig(classification_loss_weight=1.0), 4, IMAGENET)


def test_a_hidden_layer_starts_as_any_behind_a_relu():
    """He et al. 2015: variance 2 / (9 * 16 inputs), no bias."""
    conv = make_rpn(hidden_channels=64).conv[0]
    assert conv.weight.shape == (64, 16, 3, 3)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.05)
    assert (conv.bias == 0).all()
