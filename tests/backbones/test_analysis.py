"""The counter of multiply-adds and the layer responses against arithmetic. Published counts: test_zoo.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.analysis import cost, layer_responses, stage_costs
from backbones.zoo import build_backbone
from tests.backbones.test_staged import small_net


def test_multiply_adds_in_numbers():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (1, 3), groups=2),
        nn.Flatten(),
        nn.Linear(6 * 5 * 6, 4),
    )
    counted = cost(net, (10, 16))
    first = 5 * 8 * 8 * 3 * 9
    second = 5 * 6 * 6 * 4 * 3
    assert counted.multiply_adds == first + second + 6 * 5 * 6 * 4
    assert counted.parameters == (8 * 27 + 8) + 16 + (6 * 4 * 3 + 6) + (180 * 4 + 4)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_counting_leaves_the_net_as_it_was(norm):
    net = build_backbone("cifar_resnet20", norm=norm).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    expected = net.eval()(x)
    net.train()
    # Sec. 4.2's net at 32x32: the stem, then 3 stages of 6 layers of equal cost but for the first of a stage
    layer = 32 * 32 * 16 * 16 * 9
    assert cost(net, (32, 32)).multiply_adds == 32 * 32 * 16 * 27 + (6 + 5.5 + 5.5) * layer + 64 * 10
    assert net.training
    assert torch.equal(net.eval()(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_responses_are_the_deviations_of_the_normalised_outputs():
    torch.manual_seed(0)
    net = build_backbone("resnet50").train()
    batches = [torch.randn(size, 3, 32, 48) for size in (1, 3)]
    seen = []
    hook = net.layer2[0].bn2.register_forward_hook(lambda module, inputs, out: seen.append(out.flatten().clone()))
    responses = layer_responses(net, batches)
    hook.remove()
    assert responses["layer2.0.conv2"] == pytest.approx(torch.cat(seen).double().std(correction=0).item(), rel=1e-5)
    # in layer order, the 3x3 layers alone: the 7x7 stem and the 1x1 layers are not among them
    expected = [f"layer{stage}.{unit}.conv2" for stage, units in enumerate((3, 4, 6, 3), 1) for unit in range(units)]
    assert list(responses) == expected
    assert net.training
    assert net.bn1.num_batches_tracked.item() == 0


def test_cifar_nets_have_one_response_for_each_layer_but_the_last():
    responses = layer_responses(build_backbone("cifar_resnet20"), [torch.randn(2, 3, 16, 16)])
    assert len(responses) == 19
    assert next(iter(responses)) == "conv1"


def test_nets_without_batch_norm_have_no_responses():
    with pytest.raises(ValueError, match="trained batch norm"):
        layer_responses(build_backbone("cifar_resnet20", norm="frozen"), [torch.randn(2, 3, 16, 16)])
    with pytest.raises(ValueError, match="batches"):
        layer_responses(build_backbone("cifar_resnet20"), [])


def test_costs_of_stages_by_hand():
    """An image of 8 x 12 pixels. Convolutions, batch norms and poolings put out numbers that are kept; a companion is
    for training alone."""
    image = 8 * 12
    assert stage_costs(small_net(), (8, 12)) == [
        ("a", 4 * 27 + 4 + 8, image * 4 * 27, 2 * image * 4, (4, 8, 12)),
        ("b", 4 * 6 + 6 + 12, image // 4 * 6 * 4, image // 4 * (4 + 6 + 6), (6, 4, 6)),
        ("c", 5 * 54 + 5, 2 * 3 * 5 * 54, 2 * 3 * 5, (5, 2, 3)),
        ("classifier", 5 * 3 + 3, 5 * 3, 3, (3,)),
    ]
    net = small_net()
    net.pop_classifier()
    net.pop_stage("c")
    assert [part.name for part in stage_costs(net, (8, 12), classifier=False)] == ["a", "b"]
