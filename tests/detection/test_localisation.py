"""The per-class RPN and the R-CNN: arithmetic by hand, plain references, identities of ensembles."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.classification import Normalize
from backbones.weights import IMAGENET
from backbones.zoo import build_backbone
from configs.errors import UserError
from configs.localisation import LocaliserConfig, PerClassRcnnConfig, PerClassRpnConfig
from detection.localisation import (
    ANCHOR_PURPOSE,
    Candidates,
    PerClassLayers,
    PerClassRcnn,
    PerClassRpn,
    build_localiser,
    load_localiser,
    merge,
    propose,
    rescore,
    sample_evenly,
    suppress,
    to_original,
    to_view,
)
from detection.matching import match
from detection.sampling import random_keys
from tools.benchmarks.counting import count

NET = {
    "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": False},
    "stages": [{"units": 1, "width": 8, "stride": 1}, {"units": 1, "width": 16, "stride": 2}],
    "unit": "basic",
}
"""Stride 4."""


def make_rpn(seed: int = 0, **changes: object) -> PerClassRpn:
    torch.manual_seed(seed)
    values = {"anchors": {"sizes": [8, 16], "aspect_ratios": [0.5, 2.0], "offset": 0.5}, **changes}
    rpn = PerClassRpn(build_backbone(NET, num_classes=5), PerClassRpnConfig(**values), 5, IMAGENET)
    for parameter in rpn.siblings.parameters():  # large enough that every score and delta differs
        torch.nn.init.normal_(parameter, std=0.1)
    return rpn


def make_rcnn(seed: int = 1, context: int = 0, **changes: object) -> PerClassRcnn:
    torch.manual_seed(seed)
    config = PerClassRcnnConfig(warp_size=12, context=context, **changes)
    return PerClassRcnn(build_backbone(NET, num_classes=5), config, 5, IMAGENET)


def make_images(count: int = 2, size: tuple[int, int] = (24, 40), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def whole_outputs(layers: PerClassLayers, features: Tensor, anchors: int) -> tuple[Tensor, Tensor]:
    """Of all classes, as plain convolutions: (B, K, A, H, W) and (B, K, A, 4, H, W)."""
    own, shared = layers.cls_logits(features), layers.shared_logits(features)
    logits = own.unflatten(1, (-1, anchors)) + shared[:, None]
    own, shared = layers.bbox_pred(features), layers.shared_pred(features)
    return logits, own.unflatten(1, (-1, anchors, 4)) + shared.unflatten(1, (anchors, 4))[:, None]


def frame_of(count: int, *values: float) -> Tensor:
    return torch.tensor([values or (0.0, 0.0, 1.0, 1.0)]).repeat(count, 1)


# ---------------------------------------------------------------------------------------------- the siblings


def test_only_the_asked_classes_rows_are_multiplied():
    """The same numbers as the whole convolutions give, in the anchors' order: row, column, anchor."""
    torch.manual_seed(0)
    layers = PerClassLayers(6, num_classes=5, num_anchors=3)
    features, classes = torch.randn(2, 6, 2, 4), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(layers(features, classes)[0][:, 0], layers(features, classes[:, [1]])[0][:, 0]), "at first alike"
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter)
    logits, deltas = layers(features, classes)
    all_logits, all_deltas = whole_outputs(layers, features, 3)
    for b in range(2):
        for t in range(2):
            k = int(classes[b, t])
            torch.testing.assert_close(logits[b, t], all_logits[b, k].permute(1, 2, 0).flatten())
            torch.testing.assert_close(deltas[b, t], all_deltas[b, k].permute(2, 3, 0, 1).reshape(-1, 4))
    logits[:, 0].sum().backward()
    learns = layers.cls_logits.weight.grad.view(5, -1).abs().sum(1) > 0
    assert learns.tolist() == [False, True, False, False, True], "of each image its own class alone learns"
    own = layers.cls_logits.weight.grad.view(5, 3, 6).sum(0)
    torch.testing.assert_close(layers.shared_logits.weight.grad.view(3, 6), own)


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


# ---------------------------------------------------------------------------------------------- samples and losses


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


OBJECTS = torch.tensor(
    [[[4.1, 2.3, 20.2, 10.6], [21.8, 4.3, 30.1, 21.9]], [[1.3, 0.4, 37.1, 22.8], [0.0, 0.0, 0.0, 0.0]]]
)
VALID = torch.tensor([[True, True], [True, False]])
LABELS, INDEX = torch.tensor([3, 1]), torch.tensor([10, 4])


def plain_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)


def plain_losses(logits, deltas, references, objects, taken, weights, beta) -> tuple[float, float, int]:
    """Sums over one image's sample: (reference, its object or None) pairs, one by one."""
    classification = box = 0.0
    for index, item in taken:
        z, (x1, y1, x2, y2) = float(logits[index]), references[index]
        classification += math.log1p(math.exp(-z)) if item is not None else math.log1p(math.exp(z))
        if item is None:
            continue
        a1, b1, a2, b2 = objects[item]
        width, height = x2 - x1, y2 - y1
        target = (
            ((a1 + a2) / 2 - (x1 + x2) / 2) / width, ((b1 + b2) / 2 - (y1 + y2) / 2) / height,
            math.log((a2 - a1) / width), math.log((b2 - b1) / height),
        )  # fmt: skip
        for t, w, d in zip(target, weights, deltas[index].tolist(), strict=True):
            difference = abs(d - t * w)
            box += 0.5 * difference**2 / beta if difference < beta else difference - 0.5 * beta
    return classification, box, len(taken)


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


def test_rcnn_losses_equal_a_plain_loop():
    rcnn = make_rcnn(rois_per_image=4, smooth_l1_beta=0.7).eval()
    images = make_images()
    # Proposals of each image: two that fit the first object, two that fit none, one that is no proposal.
    boxes = torch.tensor(
        [[4.0, 2.0, 19.0, 11.0], [5.0, 2.0, 22.0, 10.0], [0.0, 12.0, 12.0, 24.0], [30.0, 0.0, 40.0, 9.0], [0, 0, 0, 0]]
    )
    proposals = Candidates(boxes.repeat(2, 1, 1, 1), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.0]).repeat(2, 1, 1))
    objects = OBJECTS[:1].repeat(2, 1, 1)
    losses = rcnn(images, LABELS, objects, VALID[:1].repeat(2, 1), INDEX, proposals, seed=0, iteration=0)
    with torch.no_grad():
        classes = LABELS[:, None].expand(-1, 5)
        logits, deltas = rcnn.answers(images, proposals.boxes[:, 0], classes)
    sums = [0.0, 0.0, 0]
    for b in range(2):  # all four proposals are the sample
        taken = [(0, 0), (1, 0), (2, None), (3, None)]
        part = plain_losses(logits[b], deltas[b], boxes.tolist(), objects[b].tolist(), taken, (10, 10, 5, 5), 0.7)
        sums = [a + c for a, c in zip(sums, part, strict=True)]
    assert sums[2] == 8
    assert losses["loss_objectness"].item() == pytest.approx(sums[0] / 8, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(sums[1] / 8, rel=1e-4)


def test_a_crop_is_the_resized_region():
    """An RoI that covers whole pixels is warped as those pixels alone would be: the region's mean is kept."""
    rcnn = make_rcnn().eval()
    images = make_images(1, (24, 40))
    images[:, :, 4:16, 10:34] = 200
    seen = []
    rcnn.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rcnn.answers(images, torch.tensor([[[11.0, 5.0, 33.0, 15.0]]]), torch.tensor([[0]]))
    expected = (200 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    assert seen[0].shape == (1, 3, 12, 12)
    torch.testing.assert_close(seen[0], expected[None, :, None, None].expand(1, 3, 12, 12))


def test_context_around_a_crop():
    """3 of 12 pixels on each side leave 6 for the proposal: the crop is that of a box twice as wide and high."""
    rcnn, plain = make_rcnn(context=3).eval(), make_rcnn().eval()
    images, classes = make_images(1, (24, 40)), torch.tensor([[0, 4]])
    rois = torch.tensor([[[10.0, 8.0, 16.0, 12.0], [36.0, 0.0, 40.0, 20.0]]])
    wider = torch.tensor([[[7.0, 6.0, 19.0, 14.0], [34.0, -10.0, 42.0, 30.0]]])
    seen = []
    rcnn.net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(rcnn.answers(images, rois, classes), plain.answers(images, wider, classes))
    assert not seen[0][1, :, :2].any(), "what is outside the image is the mean colour"
    assert seen[0][0].all()


def test_the_rcnns_scores_start_as_the_classifiers():
    """Each class's logit is its class score less the mean of all, which a softmax does not feel."""
    torch.manual_seed(4)
    net = build_backbone(NET, num_classes=5).eval()
    torch.nn.init.normal_(net.fc.weight)
    torch.nn.init.normal_(net.fc.bias)
    images = make_images(1, (24, 24))
    whole, classes = torch.tensor([[[0.0, 0.0, 24.0, 24.0]] * 5]), torch.arange(5)[None]
    expected = net(Normalize(IMAGENET)(images))
    rcnn = PerClassRcnn(net, PerClassRcnnConfig(warp_size=24, context=0), 5, IMAGENET).eval()
    torch.nn.init.zeros_(rcnn.siblings.shared_logits.weight)
    with torch.no_grad():
        logits, _ = rcnn.answers(images, whole, classes)
    torch.testing.assert_close(logits, expected - expected.mean(1, keepdim=True))


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


# ---------------------------------------------------------------------------------------------- merging


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


# ---------------------------------------------------------------------------------------------- nets


@pytest.mark.parametrize("backbone", ["resnet18", pytest.param("vgg16", marks=pytest.mark.slow)])
def test_both_stages_start_from_a_classifiers_weights(tmp_path, backbone):
    torch.manual_seed(3)
    classifier = build_backbone(backbone, num_classes=7)
    path = tmp_path / "classifier.pt"
    preprocessing = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "channel_order": "rgb"}
    torch.save(
        {"format": 1, "kind": "classifier", "config": {"model": {"backbone": backbone}}, "class_names": [],
         "preprocessing": preprocessing, "model": classifier.state_dict(), "training": {}}, path,
    )  # fmt: skip
    values = {"backbone": backbone, "weights": str(path)}
    rpn = build_localiser(LocaliserConfig(**values), 7)
    rcnn = build_localiser(LocaliserConfig(**values, stage="rcnn", rcnn={"proposals": "x.pt"}), 7)
    assert isinstance(rpn, PerClassRpn)
    assert isinstance(rcnn, PerClassRcnn)
    own = classifier.state_dict()
    for net in (rpn, rcnn):
        assert net.normalize.preprocessing.to_dict() == preprocessing
        state = net.net.state_dict()
        assert len(state) > 20
        assert all(torch.equal(value, own[name]) for name, value in state.items())
    dropped = {name for name in own.keys() - rcnn.net.state_dict().keys() if "num_batches" not in name}
    assert dropped == {"fc.weight", "fc.bias", "classifier.6.weight", "classifier.6.bias"} & own.keys()
    stride, channels = {"resnet18": (32, 512), "vgg16": (16, 512)}[backbone]
    assert rpn.anchors.strides == [stride]
    assert rpn.siblings.cls_logits.weight.shape == (7 * 9, channels, 1, 1)
    assert rcnn.siblings.bbox_pred.weight.shape == (7 * 4, {"resnet18": 512, "vgg16": 4096}[backbone], 1, 1)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"format": 1, "kind": "classifier", "model": {}}, path)
    with pytest.raises(
        UserError, match=r"x\.pt: a classifier's checkpoint: give last\.pt or best\.pt of a run of tools/train_loc"
    ):
        load_localiser(path, "rpn")
