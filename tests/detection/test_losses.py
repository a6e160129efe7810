"""The losses by hand, and torchvision's per-image sums."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from detection.losses import box_loss, classification_loss, mean_count, objectness_loss


def test_the_count_is_at_least_one():
    assert mean_count(torch.tensor([[True, False], [True, True]])).item() == 3
    none = mean_count(torch.zeros(2, 3, dtype=torch.bool))
    assert none.item() == 1
    assert none.dtype == torch.float32


def test_the_count_is_the_mean_of_all_processes_in_training_alone(monkeypatch: pytest.MonkeyPatch):
    """Two processes that hold 3 and 7: 5. Validation waits for nobody."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(7))
    assert mean_count(torch.ones(3, dtype=torch.bool)).item() == 5
    with torch.no_grad():
        assert mean_count(torch.ones(3, dtype=torch.bool)).item() == 3


def test_objectness_by_hand():
    """At a logit of 0 either answer costs ln 2; at ln 3 (a score of 3/4) yes costs ln 4/3 and no ln 4."""
    logits = torch.tensor([[0.0, math.log(3), math.log(3), 50.0]])
    positive = torch.tensor([[True, True, False, False]])
    valid = torch.tensor([[True, True, True, False]])
    loss = objectness_loss(logits, positive, valid, torch.tensor(5.0))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 5, rel=1e-6)


def test_classification_by_hand():
    """Scores (1/2, 1/4, 1/4): label 0 costs ln 2, label 2 ln 4; the RoI that is not valid costs nothing."""
    logits = torch.tensor([[math.log(2), 0.0, 0.0]]).repeat(3, 1)
    loss = classification_loss(logits, torch.tensor([0, 2, 1]), torch.tensor([True, True, False]), torch.tensor(2.0))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.5 * 0.25 + 1.5), (0.5, 0.5 * 0.25 / 0.5 + 1.75), (0.0, 2.5)])
def test_box_loss_by_hand(beta, expected):
    """Differences of -0.5 and 2: quadratic below beta (d^2 / 2 beta), |d| - beta / 2 above; the sum of coordinates."""
    deltas = torch.tensor([[[0.5, 0.0, 2.0, 1.0], [9.0, 9.0, 9.0, 9.0]]])
    targets = torch.tensor([[[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]])
    loss = box_loss(deltas, targets, torch.tensor([[True, False]]), torch.tensor(4.0), beta)
    assert loss.item() == pytest.approx(expected / 4, rel=1e-6)


def test_what_does_not_count_has_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    deltas = torch.ones(2, 4, requires_grad=True)
    first = torch.tensor([True, False])
    loss = classification_loss(logits, torch.tensor([1, 1]), first, torch.tensor(1.0))
    (loss + box_loss(deltas, torch.zeros(2, 4), first, torch.tensor(1.0), 1.0)).backward()
    for gradient in (logits.grad, deltas.grad):
        assert (gradient[0] != 0).any()
        assert (gradient[1] == 0).all()


def test_a_batch_is_torchvisions_mean_over_all_samples():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator)
    labels = torch.randint(0, 4, (12,), generator=generator)
    deltas = torch.randn(12, 4, generator=generator)
    targets = torch.randn(12, 4, generator=generator)
    everyone = torch.ones(12, dtype=torch.bool)
    count = mean_count(everyone)
    torch.testing.assert_close(classification_loss(logits, labels, everyone, count), F.cross_entropy(logits, labels))
    positive = labels > 0
    expected = F.smooth_l1_loss(deltas[positive], targets[positive], beta=1 / 9, reduction="sum") / labels.numel()
    torch.testing.assert_close(box_loss(deltas, targets, positive, count, 1 / 9), expected)
