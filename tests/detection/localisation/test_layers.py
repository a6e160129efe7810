"""The sibling outputs: only the rows of the classes asked for, equal to whole convolutions."""

from __future__ import annotations

import math

import pytest
import torch

from configs.localisation import PerClassRpnConfig
from detection.localisation.layers import PerClassLayers, sample_losses, to_original, to_view
from detection.sampling import Sampled
from tests.detection.localisation.made import whole_outputs


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


def test_a_class_s_own_part_starts_at_zero():
    layers = PerClassLayers(64, num_classes=5, num_anchors=16)
    for layer in (layers.cls_logits, layers.bbox_pred):
        assert (layer.weight == 0).all()
    for layer in (layers.shared_logits, layers.shared_pred):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert all((value == 0).all() for name, value in layers.named_parameters() if name.endswith("bias"))


def test_a_classifier_s_weights_less_their_mean():
    classifier = torch.nn.Linear(2, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 2.0]]))  # means over classes 3 and 4
        classifier.bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    layers = PerClassLayers(2, num_classes=3)
    layers.start_from(classifier)
    assert layers.cls_logits.weight.flatten(1).tolist() == [[-2, 1], [-1, 1], [3, -2]]
    assert layers.cls_logits.bias.tolist() == [2, -1, -1]


def test_losses_of_a_sample_by_hand():
    """Of four boxes the third and the first: a positive at a score of 3/4 that should move by dx = 0.2 * 10 = 2, and a
    negative at 1/2; the last place is empty."""
    logits = torch.tensor([[0.0, 9.0, math.log(3), 9.0]])
    deltas = torch.full((1, 4, 4), 7.0)
    deltas[0, 2] = 0
    references = torch.tensor([[[0.0, 0, 10, 20], [50, 50, 60, 60], [3, 3, 3, 3]]])
    objects = references + torch.tensor([2.0, 0, 2, 0])
    chosen = Sampled(
        torch.tensor([[2, 0, 1]]), torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]])
    )
    config = PerClassRpnConfig(smooth_l1_beta=1.0, box_loss_weight=3.0)
    weights = torch.tensor([10.0, 10.0, 5.0, 5.0])
    losses = sample_losses(logits, deltas, references, objects, chosen, config, weights)
    assert losses["loss_objectness"].item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-6)
    assert losses["loss_box_reg"].item() == pytest.approx(3.0 * (2 - 0.5) / 2, rel=1e-6)


def test_boxes_of_views_and_of_images():
    """A view from (7, 3) on, whose pixels are 2 x 0.5 of the image's; another one that is the image."""
    frames = torch.tensor([[7.0, 3.0, 2.0, 0.5], [0.0, 0.0, 1.0, 1.0]])
    boxes = torch.tensor([[[[1.0, 2, 3, 4]]], [[[1.0, 2, 3, 4]]]])
    original = to_original(boxes, frames)
    assert original.tolist() == [[[[9, 4, 13, 5]]], [[[1, 2, 3, 4]]]]
    assert torch.equal(to_view(original, frames), boxes)
