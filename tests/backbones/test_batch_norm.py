"""Frozen, folded, synchronised and recalibrated batch norm against plain arithmetic and PyTorch's own."""

from __future__ import annotations

import collections
import subprocess
import sys
import textwrap

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.batch_norm import (
    FrozenBatchNorm2d,
    Moments,
    SyncBatchNorm2d,
    conv_bn,
    conv_bn_pairs,
    fold_batch_norm,
    recalibrate,
)
from backbones.zoo import build_backbone


def randomise(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low, high in (
                (module.weight, -0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.3, 2.0),
            ):
                nn.init.uniform_(tensor, low, high)
    return net


class Launches(TorchDispatchMode):
    """Counts the operators that do work."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in ("detach", "empty", "_unsafe_view"):
            self.counts[func.overloadpacket.__name__] += 1
            if isinstance(out, torch.Tensor) and out.dim() == 4:
                self.dtypes.add(out.dtype)
        return out


def test_frozen_batch_norm_in_numbers():
    bn = FrozenBatchNorm2d(2, eps=0.0)
    bn.load_state_dict(
        {
            "weight": torch.tensor([2.0, 3.0]),
            "bias": torch.tensor([1.0, -1.0]),
            "running_mean": torch.tensor([5.0, 0.0]),
            "running_var": torch.tensor([4.0, 9.0]),
        }
    )
    x = torch.tensor([7.0, 6.0]).reshape(1, 2, 1, 1)
    assert bn(x).flatten().tolist() == [2 * (7 - 5) / 2 + 1, 3 * 6 / 3 - 1]


def test_state_dicts_go_both_ways():
    trained = randomise(nn.Sequential(nn.BatchNorm2d(3))).eval()
    frozen = nn.Sequential(FrozenBatchNorm2d(3))
    frozen.load_state_dict(trained.state_dict(), strict=True)
    x = torch.randn(2, 3, 4, 5)
    assert torch.allclose(frozen(x), trained(x), atol=1e-6)
    back = nn.Sequential(nn.BatchNorm2d(3)).eval()
    back.load_state_dict(frozen.state_dict(), strict=True)
    assert torch.equal(back(x), trained(x))
    assert not list(frozen.parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_conv_bn_is_batch_norm_after_the_convolution(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=bias)
    trained = randomise(nn.BatchNorm2d(6)).eval()
    frozen = FrozenBatchNorm2d(6)
    frozen.load_state_dict(trained.state_dict())
    x = torch.randn(2, 4, 9, 12, requires_grad=True)
    weights = torch.randn(2, 6, 4, 5)
    expected = torch.autograd.grad((trained(conv(x)) * weights).sum(), [x, *conv.parameters()])
    actual = torch.autograd.grad((conv_bn(conv, frozen, x) * weights).sum(), [x, *conv.parameters()])
    assert torch.allclose(conv_bn(conv, frozen, x), trained(conv(x)), atol=1e-5)
    for mine, other in zip(actual, expected, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(conv_bn(conv, trained, x), trained(conv(x)))
    assert torch.equal(conv_bn(conv, None, x), conv(x))


def test_constants_follow_every_change_of_the_buffers():
    bn = FrozenBatchNorm2d(1, eps=0.0)
    x = torch.ones(1, 1, 1, 1)
    assert bn(x).item() == 1.0
    bn.weight.fill_(2.0)
    assert bn(x).item() == 2.0
    bn.load_state_dict({**bn.state_dict(), "bias": torch.tensor([5.0])})
    assert bn(x).item() == 7.0
    bn.running_mean = torch.tensor([1.0])
    assert bn(x).item() == 5.0
    bn.double()
    assert bn(x.double()).dtype == torch.float64
    kept = bn.constants(torch.float64)
    assert all(a is b for a, b in zip(bn.constants(torch.float64), kept, strict=True))


def test_constants_made_in_inference_mode_serve_training_too():
    conv, bn = nn.Conv2d(2, 3, 1), FrozenBatchNorm2d(3)
    x = torch.randn(1, 2, 4, 5)
    with torch.inference_mode():
        expected = conv_bn(conv, bn, x)
    out = conv_bn(conv, bn, x)
    out.sum().backward()
    assert torch.equal(out, expected)
    assert conv.weight.grad.any()


def test_bf16_autocast_stays_bf16():
    net = build_backbone("cifar_resnet20", norm="frozen").eval()
    x = torch.randn(1, 3, 8, 8)
    net(x)
    with torch.autocast("cpu", torch.bfloat16), Launches() as launches:
        maps = net.forward_stages(x, ["conv4"])
        standalone = net.bn1(torch.randn(1, 16, 4, 4, dtype=torch.bfloat16))
    assert maps["conv4"].dtype == standalone.dtype == torch.bfloat16
    assert launches.counts["convolution"] == 19
    assert launches.counts["_to_copy"] <= 19 + 1 + 19 * 2  # weights, the image, and the constants once

    biased = torch.nn.Conv2d(3, 4, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv_bn(biased, FrozenBatchNorm2d(4), x)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), biased(x), atol=0.05)

    with torch.autocast("cpu", torch.bfloat16), Launches() as second:
        net.forward_stages(x, ["conv4"])
    assert second.counts["_to_copy"] == 19 + 1


def test_a_frozen_net_compiles_as_one_graph():
    stages = [{"units": 1, "width": 8, "stride": 1}, {"units": 1, "width": 8, "stride": 2}]
    net = build_backbone({"stages": stages, "unit": "bottleneck"}, norm="frozen")
    net.freeze_stages(2)
    x = torch.randn(1, 3, 16, 24)
    compiled = torch.compile(lambda x: net.forward_stages(x, ["conv3"])["conv3"], backend="eager", fullgraph=True)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(compiled(x), net.forward_stages(x, ["conv3"])["conv3"])


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_folding_keeps_the_output(name, norm):
    torch.manual_seed(0)
    net = randomise(build_backbone(name, norm=norm, num_classes=7)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = net(x)
        folded = fold_batch_norm(net.train())
        assert folded is net
        assert torch.allclose(folded(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert not any("bn" in key or "running" in key for key in net.state_dict())


def test_folding_vgg_and_foreign_modules():
    torch.manual_seed(0)
    foreign = randomise(torchvision.ops.Conv2dNormActivation(3, 5)).eval()
    x = torch.randn(1, 3, 8, 10)
    with torch.no_grad():
        expected = foreign(x)
        assert torch.allclose(fold_batch_norm(foreign)(x), expected, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in foreign.modules())


def test_resnet101_folded_is_convolutions_relus_additions_and_a_pooling():
    net = fold_batch_norm(build_backbone("resnet101", norm="frozen"))
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad(), Launches() as launches:
        net.forward_stages(x, ["conv5"])
    assert launches.counts == {"convolution": 104, "relu_": 100, "add_": 33, "max_pool2d_with_indices": 1}


def test_a_frozen_net_trains_with_one_multiplication_for_each_convolution():
    net = build_backbone("resnet50", norm="frozen")
    net.freeze_stages(2)
    x = torch.randn(1, 3, 32, 48)
    net.forward_stages(x, ["conv5"])
    with Launches() as launches:
        net.forward_stages(x, ["conv5"])
    assert launches.counts["convolution"] == launches.counts["mul"] == 53
    assert launches.counts.total() == 53 * 2 + 49 + 16 + 1


# ---------------------------------------------------------------------------------------------- recalibration


def test_recalibration_is_the_mean_and_variance_over_the_set():
    torch.manual_seed(0)
    net = randomise(build_backbone("cifar_resnet20", dropout=0.5))
    net.layer2.eval()  # an odd state, to be found again afterwards
    batches = [torch.randn(size, 3, 12, 8) * 3 + 1 for size in (5, 2, 4)]
    inputs = {name: [] for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    reference = build_backbone("cifar_resnet20").train()
    reference.load_state_dict(net.state_dict())
    for name in inputs:
        reference.get_submodule(name).register_forward_pre_hook(
            lambda module, x, name=name: inputs[name].append(x[0].detach().double())
        )
    for batch in batches:
        reference(batch)
    modes = [module.training for module in net.modules()]
    parameters = {name: value.clone() for name, value in net.named_parameters()}

    recalibrate(net, iter(batches), "cpu")

    for name, seen in inputs.items():
        bn = net.get_submodule(name)
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in seen], dim=1)
        mean = values.mean(dim=1)
        var = (values - mean[:, None]).square().mean(dim=1)
        assert torch.allclose(bn.running_mean.double(), mean, rtol=1e-5, atol=1e-5), name
        assert torch.allclose(bn.running_var.double(), var, rtol=1e-5, atol=1e-5), name
        assert bn.num_batches_tracked.item() == 0
        assert bn.momentum == 0.1
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, parameters[name]) for name, value in net.named_parameters())


def test_recalibration_on_one_batch_makes_eval_equal_training():
    torch.manual_seed(0)
    net = randomise(build_backbone("cifar_resnet20"))
    x = torch.randn(6, 3, 16, 16)
    recalibrate(net, [x], "cpu")
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), net.train()(x), rtol=1e-3, atol=1e-4)


def test_recalibration_needs_batches():
    with pytest.raises(ValueError, match="no batch"):
        recalibrate(build_backbone("cifar_resnet20"), [], "cpu")


# ---------------------------------------------------------------------------------------------- processes

PROCESS = textwrap.dedent("""
    import os
    import sys
    import torch
    import torch.distributed as dist
    from torch import nn
    from backbones.batch_norm import SyncBatchNorm2d, recalibrate

    child = os.fork()
    rank = 0 if child else 1
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 6)
    share = slice(0, 3) if rank == 0 else slice(3, 5)
    weights = torch.randn_like(x)

    single, synced = nn.BatchNorm2d(3), SyncBatchNorm2d(3)
    whole = x.clone().requires_grad_()
    expected = single(whole)
    (expected * weights).sum().backward()
    mine = x[share].clone().requires_grad_()
    out = synced(mine)
    (out * weights[share]).sum().backward()
    assert torch.allclose(out, expected[share], atol=1e-5)
    assert torch.allclose(mine.grad, whole.grad[share], atol=1e-5)
    for name, value in single.state_dict().items():
        assert torch.allclose(synced.state_dict()[name], value, atol=1e-5), name
    scale_grad = synced.weight.grad.clone()
    dist.all_reduce(scale_grad)
    assert torch.allclose(scale_grad, single.weight.grad, atol=1e-4)
    assert torch.equal(synced.eval()(x), nn.BatchNorm2d.forward(synced, x))

    coarse = SyncBatchNorm2d(3)(x[share].bfloat16())
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(coarse.float(), expected[share], atol=0.05)

    net = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(net, [x[share]], "cpu")
    assert torch.allclose(net[0].running_mean, x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(net[0].running_var, x.var((0, 2, 3), correction=0), atol=1e-6)
    dist.destroy_process_group()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        print("both done")
""")


def test_two_processes_count_as_one(root, tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "meeting")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout == "both done\n", done.stderr


def test_one_process_is_plain_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 7)
    synced, plain = SyncBatchNorm2d(3), nn.BatchNorm2d(3)
    assert torch.equal(synced(x), plain(x))
    assert torch.equal(synced.running_var, plain.running_var)


def test_moments_by_hand():
    """Of the numbers 1, 3, 5 | 7 in one channel: a mean of 4, deviations 9 + 1 + 1 + 9."""
    moments = Moments(2, torch.device("cpu"))
    for values in ([1.0, 3.0, 5.0], [7.0]):
        row = torch.tensor(values).reshape(1, 1, 1, -1)
        moments.add(torch.cat((row, 2 * row), dim=1))
    assert (moments.count, moments.mean.tolist()) == (4, [4, 8])
    assert moments.squares.tolist() == pytest.approx([20, 80])
    moments.merge(0, torch.full((2,), torch.nan), torch.zeros(2))
    assert moments.mean.tolist() == [4, 8]


def test_only_what_directly_follows_a_convolution_is_folded():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    assert [(id(conv), name) for _, conv, name in conv_bn_pairs(net)] == [(id(net[3]), "4")]
    folded = fold_batch_norm(net)
    assert [type(layer).__name__ for layer in folded] == ["Conv2d", "ReLU", "BatchNorm2d", "Conv2d", "Identity"]
    assert not any(parameter.requires_grad for parameter in folded.parameters())
