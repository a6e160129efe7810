"""A deepened net says what the shallow one says, and can go on from there (He et al. 2016, Sec. 1)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from backbones.constructed import deepen
from backbones.zoo import build_backbone

TABLE = {
    "stem": {"kernel": 3, "width": 6, "stride": 1, "pool": False},
    "stages": [{"units": 1, "width": 6}, {"units": 2, "width": 8, "stride": 2, "pool": {"size": 2}}],
    "unit": "basic",
    "shortcut": "A",
    "num_classes": 3,
}


def trained(plain: bool, **changes):
    """A net that a few steps have moved away from its start, batch norm's statistics among the rest."""
    torch.manual_seed(0)
    net = build_backbone({**TABLE, **changes}, plain=plain)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(5):
        F.cross_entropy(net(torch.randn(8, 3, 16, 12) + 0.5), torch.arange(8) % 3).backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("unit", ["basic", [3, 1, 5]])
def test_outputs_are_equal_at_the_start(plain, unit):
    net = trained(plain, unit=unit)
    x = torch.randn(4, 3, 16, 12)
    deep = deepen(net, [4, 5], [torch.randn(16, 3, 16, 12)])
    assert [len([key for key in deep.state_dict() if key.startswith(f"layer{n}") and key.endswith("conv1.weight")])
            for n in (1, 2)] == [4, 5]  # fmt: skip
    assert torch.allclose(deep(x), net(x), atol=1e-5)
    assert (net(x)[0] - net(x)[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes", [{"shortcut": "C"}, {"unit": "bottleneck"}, {"unit": "bottleneck", "shortcut": "C"}]
)
def test_projections_and_bottlenecks(changes):
    net = trained(plain=False, **changes)
    x = torch.randn(4, 3, 16, 12)
    deep = deepen(net, [2, 4], [torch.randn(16, 3, 16, 12)])
    assert torch.allclose(deep(x), net(x), atol=1e-5)
    assert (net(x)[0] - net(x)[1]).abs().max() > 1e-3
    F.cross_entropy(deep.train()(x), torch.tensor([0, 1, 2, 0])).backward()
    assert deep.layer1[1].pairs()[-1][1].weight.grad.any()


@pytest.mark.parametrize("plain", [True, False])
def test_in_training_too_where_the_batch_is_what_was_measured(plain):
    """The new batch norms put back the batch's own mean and variance."""
    net = trained(plain)
    x = torch.randn(32, 3, 16, 12)
    deep = deepen(net, [3, 4], [x])
    reference = net(x)
    for number, old in ((1, 1), (2, 2)):
        for index, unit in enumerate(deep.get_submodule(f"layer{number}").children()):
            unit.train(index - (number == 2) >= old)  # the pooling of layer2 comes first
    assert torch.allclose(deep(x), reference, atol=1e-3)


def test_the_new_layers_can_learn():
    deep = deepen(trained(plain=True), [3, 3], [torch.randn(8, 3, 16, 12)]).train()
    F.cross_entropy(deep(torch.randn(4, 3, 16, 12)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(value.grad is not None and value.grad.any() for value in deep.layer1[2].parameters())


def test_what_cannot_be_deepened_is_said():
    net = trained(plain=True)
    with pytest.raises(ValueError, match="none below"):
        deepen(net, [1, 1], [])
    with pytest.raises(ValueError, match="needs batches"):
        deepen(net, [2, 2], [])
    with pytest.raises(ValueError, match="needs batches"):
        deepen(trained(plain=False, shortcut="C"), [2, 2], [])
    with pytest.raises(ValueError, match="plain net of bottlenecks"):
        deepen(build_backbone({**TABLE, "unit": "bottleneck"}, plain=True), [2, 2], [])
