"""The sibling outputs: only the rows of the classes asked for, equal to whole convolutions."""

from __future__ import annotations

import torch

from detection.localisation.layers import PerClassLayers
from tests.detection.localisation.made import (
    whole_outputs,
)


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
