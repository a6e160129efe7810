"""The R-CNN: crops, context, losses against a plain loop."""

from __future__ import annotations

import pytest
import torch

from backbones.preprocess import Normalize
from backbones.weights import IMAGENET
from backbones.zoo import build_backbone
from configs.localisation import PerClassRcnnConfig
from detection.localisation.layers import Candidates
from detection.localisation.rcnn import ROI_PURPOSE, PerClassRcnn
from detection.sampling import random_keys
from tests.detection.localisation.made import (
    INDEX,
    LABELS,
    NET,
    OBJECTS,
    VALID,
    make_images,
    make_rcnn,
    plain_losses,
)


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


def test_of_a_net_with_several_linear_layers_the_last_makes_room():
    """As VGG's fc8."""
    net = torch.nn.Module()
    net.classifier = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Linear(6, 5))
    last = net.classifier[1].weight.detach().clone()
    rcnn = PerClassRcnn(net, PerClassRcnnConfig(), 5, IMAGENET)
    assert isinstance(rcnn.net.classifier[1], torch.nn.Identity)
    assert rcnn.net.classifier[0].out_features == 6
    torch.testing.assert_close(rcnn.siblings.cls_logits.weight.flatten(1), last - last.mean(0))
    assert "delta_weights" not in rcnn.state_dict(), "they are the config's"


def test_auxiliary_classifiers_stay_out():
    """In training such a net gives their logits too."""
    for name in ({"net": "dsn", "width": 1 / 32}, {"net": "googlenet", "auxiliary": True}):
        with torch.device("meta"):
            rcnn = PerClassRcnn(build_backbone(name, num_classes=5), PerClassRcnnConfig(warp_size=64), 5, IMAGENET)
            rcnn.train()
            images, rois = torch.zeros(2, 3, 64, 64), torch.zeros(2, 1, 4)
            crops = rcnn.net(images)
            logits, _ = rcnn.siblings(crops[:, :, None, None], torch.zeros(len(rois), 1, dtype=torch.int64))
        assert logits.shape[:2] == (2, 1)
        assert not [key for key in rcnn.state_dict() if "companions" in key]


def test_roi_centric_steps_take_one_roi_of_each_image():
    """Of 6,000 images that have both kinds a quarter of the RoIs are positive, and within a kind each is as likely."""
    rcnn = make_rcnn(sampling="roi", rois_per_image=1, positive_fraction=0.25)
    images, candidates = 6000, 7
    positive = torch.zeros(images, candidates, dtype=torch.bool)
    negative = torch.zeros_like(positive)
    positive[:, [1, 4]] = True
    negative[:, [0, 2, 6]] = True  # 3 and 5 are no proposals
    positive[:2] = False  # two images without a positive one, two without a negative one
    negative[2:4] = False

    def draw(index: torch.Tensor, iteration: int = 5):
        keys = random_keys(0, iteration, ROI_PURPOSE, index, torch.arange(candidates))
        return rcnn._one_each(positive[: len(index)], negative[: len(index)], keys, 0, iteration, index)

    chosen = draw(torch.arange(images))
    assert chosen.index.shape == (images, 1)
    assert chosen.valid.all()
    assert chosen.positive[:4, 0].tolist() == [False, False, True, True]
    took = torch.bincount(chosen.index[4:, 0], minlength=candidates)
    assert took[[3, 5]].tolist() == [0, 0]
    assert chosen.positive[4:].sum() == took[[1, 4]].sum()
    share = took / (images - 4)
    expected = torch.tensor([0.25, 0.125, 0.25, 0.0, 0.125, 0.0, 0.25])
    assert (share - expected).abs().max() < 4 * (0.25 * 0.75 / images) ** 0.5  # four standard deviations

    # an image's RoI is its own, whatever batch it is in; another step draws another
    part = draw(torch.arange(40)).index
    assert torch.equal(part, chosen.index[:40])
    assert not torch.equal(draw(torch.arange(40), iteration=6).index, part)


def test_a_roi_centric_loss_is_that_of_the_chosen_rois():
    rcnn = make_rcnn(sampling="roi", rois_per_image=1, positive_fraction=1.0, smooth_l1_beta=0.7).eval()
    images = make_images()
    boxes = torch.tensor([[4.0, 2.0, 19.0, 11.0], [0.0, 12.0, 12.0, 24.0], [30.0, 0.0, 40.0, 9.0]])
    proposals = Candidates(boxes.repeat(2, 1, 1, 1), torch.tensor([0.9, 0.7, 0.6]).repeat(2, 1, 1))
    objects = OBJECTS[:1].repeat(2, 1, 1)
    losses = rcnn(images, LABELS, objects, VALID[:1].repeat(2, 1), INDEX, proposals, seed=0, iteration=0)
    with torch.no_grad():
        logits, deltas = rcnn.answers(images, proposals.boxes[:, 0, :1], LABELS[:, None])
    parts = [
        plain_losses(logits[b], deltas[b], boxes.tolist(), objects[b].tolist(), [(0, 0)], (10, 10, 5, 5), 0.7)
        for b in range(2)
    ]
    assert losses["loss_objectness"].item() == pytest.approx(sum(part[0] for part in parts) / 2, rel=1e-4)
    assert losses["loss_box_reg"].item() == pytest.approx(sum(part[1] for part in parts) / 2, rel=1e-4)
