"""What every net of stages does: first weights, taps, frozen stages, parts that come out, companions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones.classification import classification_loss
from backbones.staged import SequentialNet, Stage, WithCompanions, initialise, remove_stride
from backbones.zoo import build_backbone


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_he_initialisation(name):
    torch.manual_seed(0)
    net = build_backbone(name)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.1 * (2 / fan) ** 0.5
    assert net.fc.weight.std().item() == pytest.approx((1 / net.fc.in_features) ** 0.5, rel=0.1)
    assert not net.fc.bias.any()


def test_companions_count_by_their_weight_and_only_in_training():
    torch.manual_seed(0)
    net = build_backbone({"net": "dsn", "width": 1 / 16}, dropout=0.0)
    x, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 4, 9])
    outputs = net(x)
    losses = [nn.functional.cross_entropy(each, labels) for each in (outputs.logits, *outputs.companions)]
    assert len(losses) == 4
    assert torch.allclose(classification_loss(outputs, labels), losses[0] + 0.3 * sum(losses[1:]))
    assert torch.allclose(net.eval()(x), outputs.logits, atol=1e-6)


def small_net() -> SequentialNet:
    """Stages of strides 1, 2, 4 with batch norm, and a companion on the second."""
    torch.manual_seed(0)
    stages = {
        "a": ([nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()], 4, 1),
        "b": ([nn.MaxPool2d(2), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)], 6, 2),
        "c": ([nn.Conv2d(6, 5, 3, stride=2, padding=1)], 5, 4),
    }
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    companion = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return SequentialNet(stages, pool, nn.Linear(5, 3), {"b": companion}, companion_weight=0.5)


X = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12) / 100


def test_maps_are_the_stages_outputs_and_nothing_deeper_is_computed():
    net = small_net().eval()
    a = net.stages["a"](X)
    b = net.stages["b"](a)
    assert net.stage_channels == {"a": 4, "b": 6, "c": 5}
    assert net.stage_strides == {"a": 1, "b": 2, "c": 4}
    maps = net.forward_stages(X, ["b", "a"])
    assert list(maps) == ["a", "b"]
    assert torch.equal(maps["a"], a)
    assert torch.equal(maps["b"], b)
    net.stages["c"].forward = None  # would fail
    assert list(net.forward_stages(X, ["b"])) == ["b"]


def test_logits_and_companions():
    net = small_net()
    outputs = net(X)
    assert isinstance(outputs, WithCompanions)
    assert outputs.weight == 0.5
    assert len(outputs.companions) == 1
    assert not outputs.detach().requires_grad
    assert torch.equal(outputs.detach(), outputs.logits)
    net.eval()
    logits = net(X)
    assert torch.equal(logits, net.fc(net.neck(net.forward_stages(X, ["c"])["c"])))


@pytest.mark.parametrize("names", [[], ["d"], ["a", "d"]])
def test_stages_that_are_not_there_are_named(names):
    with pytest.raises(ValueError, match="name some of a, b, c"):
        small_net().forward_stages(X, names)
    assert list(small_net().forward_stages(X, iter(["b", "a", "b"]))) == ["a", "b"]


def test_frozen_stages_stay_frozen_whatever_train_says():
    net = small_net()
    net.freeze_stages(1)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net(X).logits.sum().backward()
    assert all(value.grad is None for value in net.stages["a"].parameters())
    assert all(value.grad is not None for value in net.stages["c"].parameters())
    assert [net.stages[name].training for name in "abc"] == [False, True, True]
    after = net.state_dict()
    assert torch.equal(after["stages.a.1.running_mean"], before["stages.a.1.running_mean"])
    assert not torch.equal(after["stages.b.2.running_mean"], before["stages.b.2.running_mean"])


def test_what_is_taken_out_is_gone_and_goes_on_alone():
    net = small_net()
    last = net.pop_stage("c")
    maps = net.eval().forward_stages(X, ["b"])
    assert last.eval()(maps["b"]).shape == (2, 5, 2, 3)
    with pytest.raises(ValueError, match="c was taken out of this net by pop_stage"):
        net.forward_stages(X, ["c"])
    assert "b" in net.companions
    net.pop_stage("b")
    assert not net.companions
    whole = small_net().eval()
    expected = whole(X)
    deepest = whole.forward_stages(X, ["c"])["c"]
    assert torch.equal(whole.pop_classifier()(deepest), expected)
    assert not hasattr(whole, "fc")
    assert not whole.companions


def test_activation_checkpointing_counts_statistics_once():
    """Gradients and running statistics equal those without, though the forward pass runs twice."""
    results = []
    for checkpointing in (False, True):
        net = small_net()
        net.stages["a"].activation_checkpointing = checkpointing
        net(X).logits.square().sum().backward()
        results.append((net.stages["a"][0].weight.grad, net.state_dict()))
    assert torch.equal(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name
    assert results[1][1]["stages.a.1.num_batches_tracked"] == 1


def test_without_stride_a_map_keeps_its_size():
    layers = nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1)))
    assert layers(torch.ones(1, 4, 8, 12)).shape[2:] == (2, 3)
    remove_stride(layers)
    assert layers(torch.ones(1, 4, 8, 12)).shape[2:] == (8, 12)
    assert layers[1][0].stride == (1, 1)


def test_first_weights_of_linear_layers():
    """2 / inputs before a ReLU, 1 / inputs for the last one; biases are 0, also of convolutions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 100, 3), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 200))
    nn.init.ones_(net[0].bias)
    initialise(net)
    assert net[0].weight.std().item() == pytest.approx((2 / 900) ** 0.5, rel=0.05)
    assert net[1].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
    assert net[3].weight.std().item() == pytest.approx((1 / 300) ** 0.5, rel=0.05)
    assert not any(layer.bias.any() for layer in (net[0], net[1], net[3]))


def test_a_stage_freezes_by_itself():
    stage = Stage(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    stage.freeze()
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert not stage.train().training
    assert not stage(torch.randn(1, 3, 2, 2, requires_grad=True)).requires_grad


def test_units_are_run_twice_only_where_that_is_asked_for_and_a_backward_pass_follows(monkeypatch):
    stage, calls = Stage(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), []
    monkeypatch.setattr(Stage, "_checkpointed", staticmethod(lambda unit, x: calls.append(unit) or unit(x)))
    x = torch.randn(2, 3, 4, 4)
    stage.train()(x)
    stage.activation_checkpointing = True
    stage.eval()(x)
    with torch.no_grad():
        stage.train()(x)
    assert calls == []
    stage(x)
    assert calls == list(stage)


def test_units_behind_the_first_own_their_inputs():
    stage = build_backbone("cifar_resnet20").pop_stage("conv4")
    stage.own_inputs()
    assert [unit.owns_input for unit in stage] == [False, True, True]
    Stage(nn.Conv2d(3, 4, 1), nn.ReLU()).own_inputs()  # of a net of one's own
