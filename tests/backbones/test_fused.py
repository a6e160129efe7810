"""Stages as one operator compute what their units compute, with every gradient; the kernels equal torch's operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backbones import fused
from backbones.batch_norm import FrozenBatchNorm2d, fold_batch_norm
from backbones.epilogue import bias_relu, relu_backward, sum_relu_backward
from backbones.fused import Chain
from backbones.resnet import ResNet
from backbones.resnet_spec import ResNetSpec, StageSpec, StemSpec
from backbones.staged import Stage


def make_stages(unit: str, *, shortcut: str = "B", plain: bool = False, norm: str = "frozen") -> list[Stage]:
    """Two stages with offsets and scales that a wrong order would show."""
    torch.manual_seed(0)
    stages = (StageSpec(units=2, width=8, stride=1), StageSpec(units=3, width=12, stride=2))
    stem = StemSpec(width=64 if shortcut != "A" else 8)
    spec = ResNetSpec(unit=unit, stem=stem, stages=stages, shortcut=shortcut, plain=plain)
    net = ResNet(spec, norm=norm)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for buffer in (module.weight, module.running_var):
                nn.init.uniform_(buffer, 0.5, 1.5)
            for buffer in (module.bias, module.running_mean):
                nn.init.normal_(buffer, std=0.3)
    return [net.layer1, net.layer2]


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return list(torch.autograd.grad((output.float() * weights).sum(), inputs))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("unit", "shortcut", "plain"),
    [("bottleneck", "B", False), ("basic", "B", False), ("basic", "C", False), ("bottleneck", "B", True)],
)
def test_a_stage_equals_its_units(unit, shortcut, plain, memory_format):
    """Values, and the gradients of the input and of every weight, which lie in memory as the weights do."""
    stages = make_stages(unit, shortcut=shortcut, plain=plain)
    stages = [stage.to(memory_format=memory_format) for stage in stages]
    x = torch.randn(2, 64, 9, 7).to(memory_format=memory_format).requires_grad_()
    weights = [parameter for stage in stages for parameter in stage.parameters()]
    expected = stages[1](stages[0](x))
    output = fused.run(Chain(list(stages[1])), fused.run(Chain(list(stages[0])), x))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs, of in zip(
        gradients(output, [x, *weights]), gradients(expected, [x, *weights]), [x, *weights], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        assert all(a == b for n, a, b in zip(of.shape, ours.stride(), of.stride(), strict=True) if n > 1)


def test_under_autocast_it_computes_in_bf16():
    """About as near to float32 as the units one by one under autocast; gradients are float32."""
    stage = make_stages("bottleneck")[0]
    x = torch.randn(2, 64, 9, 7, requires_grad=True)
    inputs = [x, *stage.parameters()]
    exact = stage(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, unit_by_unit = fused.run(Chain(list(stage)), x), stage(x)
    assert output.dtype == unit_by_unit.dtype == torch.bfloat16
    assert (output - exact).norm() <= 1.5 * (unit_by_unit - exact).norm()
    found = [gradients(of, inputs) for of in (output, unit_by_unit, exact)]
    for ours, theirs, expected in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() <= 1.5 * (theirs - expected).norm() + 0.01 * expected.norm()


def test_weights_and_inputs_that_do_not_train_get_no_gradient():
    stage = make_stages("bottleneck")[0]
    stage[0].conv2.weight.requires_grad_(False)
    output = fused.run(Chain(list(stage)), torch.randn(1, 64, 5, 5))
    output.sum().backward()
    assert {name for name, parameter in stage.named_parameters() if parameter.grad is None} == {"0.conv2.weight"}


def test_the_backward_pass_is_for_the_weights_of_the_forward_pass():
    """Kept maps are given up on the way, and folded weights lie where the next forward pass puts its own."""
    stage = make_stages("bottleneck")[0]
    output = fused.run(Chain(list(stage)), torch.randn(1, 64, 5, 5)).sum()
    output.backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.backward()
    output = fused.run(Chain(list(stage)), torch.randn(1, 64, 5, 5)).sum()
    with torch.no_grad():
        stage[0].conv1.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="was changed"):
        output.backward()
    output = fused.run(Chain(list(stage)), torch.randn(1, 64, 5, 5))
    output.add_(1.0)
    with pytest.raises(RuntimeError, match="was changed"):
        output.sum().backward()


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_a_retained_graph_gives_the_same_gradients_again(unit):
    """As often as asked, over several stages; afterwards maps are given up as ever."""
    stages = make_stages(unit)
    weights = [parameter for stage in stages for parameter in stage.parameters()]
    output = fused.run(Chain(list(stages[1])), fused.run(Chain(list(stages[0])), torch.randn(1, 64, 5, 5))).sum()
    found = [torch.autograd.grad(output, weights, retain_graph=retained) for retained in (True, True, False)]
    for first, second, third in zip(*found, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, weights)


def test_a_change_is_noticed():
    """A checkpoint that is loaded, another layout or dtype, folding; a step of the optimiser is none."""
    stage = make_stages("basic")[1].requires_grad_(False)
    x = torch.randn(1, 8, 5, 5)
    chain = Chain(list(stage))
    before = fused.run(chain, x)
    stage[0].conv1.weight.mul_(1.1)
    assert chain.is_current()
    assert not torch.equal(fused.run(chain, x), before)
    changes = [
        lambda: stage.load_state_dict({name: value + 0.1 for name, value in stage.state_dict().items()}),
        lambda: stage.to(memory_format=torch.channels_last),
        lambda: fold_batch_norm(stage),
        lambda: stage[0].conv1.bias.add_(1.0),
        lambda: stage.to(torch.bfloat16),
    ]
    for change in changes:
        change()
        assert not chain.is_current()
        chain = Chain(list(stage))
        assert chain.is_current()
        output, expected = fused.run(chain, x), stage(x.to(stage[0].conv1.weight.dtype))
        assert output.dtype == expected.dtype
        assert (output - expected).norm() <= (0.02 if output.dtype == torch.bfloat16 else 1e-5) * expected.norm()


def test_what_is_fused():
    """Only constant batch norm, without padded shortcuts."""
    assert Chain(list(make_stages("basic")[1])).constant
    assert not Chain(list(make_stages("basic", shortcut="A")[1])).constant
    trained = make_stages("basic", norm="batch")[1]
    assert not Chain(list(trained)).constant
    fold_batch_norm(trained)
    assert Chain(list(trained)).constant
    assert Chain(list(trained)).folded
    assert fused.chain_for(trained, torch.zeros(1, 1, 1, 1)) is None  # on the CPU


def test_bias_relu_and_its_gradient_are_torchs():
    x, residual, bias = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(5)
    expected = torch.relu(x + bias[:, None, None] + residual)
    assert torch.equal(bias_relu(x, bias, residual.to(memory_format=torch.channels_last)), expected)
    y = x.clone()
    assert bias_relu(y, bias, inplace=True) is y
    assert torch.equal(y, torch.relu(x + bias[:, None, None]))
    masked, summed = residual * (expected > 0), (residual + x) * (expected > 0)
    assert torch.equal(relu_backward(residual, expected), masked)
    assert torch.equal(sum_relu_backward(residual.clone(), x, expected), summed)
    given = residual.clone()
    assert relu_backward(given, expected, inplace=True) is given
    assert torch.equal(given, masked)


KERNELS = """
import itertools, torch
from backbones import triton_kernels
from backbones.epilogue import add_bias, bias_relu, relu_backward, sum_relu_backward
generator = torch.Generator().manual_seed(0)
formats, dtypes = (torch.contiguous_format, torch.channels_last), (torch.float32, torch.bfloat16)
shapes = (2, 5, 3, 4), (1, 64, 7, 9), (0, 8, 3, 3), (3, 1, 1, 1)
for shape, layout, dtype in itertools.product(shapes, formats, dtypes):
    x, residual = (torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    if x.numel():
        x[0, 0, 0, 0] = float("nan")
    bias = torch.randn(shape[1], generator=generator)
    tolerance = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for other in (None, residual):
        output = torch.empty_like(x)
        triton_kernels.bias_relu(x, bias, other, output)
        torch.testing.assert_close(output, bias_relu(x, bias, other), equal_nan=True, **tolerance)
        assert output.isnan().sum() == x.isnan().sum()
    got, other = torch.empty_like(output), residual.flip(0).contiguous(memory_format=layout)
    triton_kernels.sum_relu_backward(residual, other, output, got)
    expected = sum_relu_backward(residual, other, output)
    torch.testing.assert_close(got, expected, equal_nan=True, **tolerance)
    without = torch.empty_like(x)
    triton_kernels.bias_relu(x, bias, None, without, relu=False)
    torch.testing.assert_close(without, add_bias(x.clone(), bias), equal_nan=True, **tolerance)
    if layout == torch.channels_last and x.numel():
        means = residual[:, :, 0, 0].contiguous()
        triton_kernels.spread_relu_backward(means, output, got)
        assert torch.equal(got, relu_backward(means[:, :, None, None].expand(shape), output))

from backbones.scaling import ScaledWeights, _addresses
weights = [torch.randn(shape, generator=generator) for shape in ((5, 7, 3, 3), (64, 40, 1, 1), (3, 1, 1, 1))]
weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
scaled = ScaledWeights(weights, [torch.rand(len(weight), generator=generator) for weight in weights])
plan = scaled._plan((0, 1, 2))
for given, dtype in itertools.product(dtypes, dtypes):
    sources = [torch.empty_like(weight, dtype=given).copy_(weight) for weight in weights]
    output = plan.empty(dtype)
    triton_kernels.scale(_addresses(sources), sources[0], plan, output[0])
    for ours, source, scale, weight in zip(output, sources, scaled.scales, weights):
        assert ours.stride() == weight.stride() and ours.data_ptr() % 16 == 0
        tolerance = 0 if dtype == torch.float32 else 0.008  # the interpreter cuts bf16 off
        torch.testing.assert_close(ours.float(), source.float() * scale[:, None, None, None], rtol=tolerance, atol=0)
"""


def test_triton_kernels_equal_torchs_operators(root: Path):
    """In Triton's interpreter, which runs kernels on the CPU."""
    pytest.importorskip("triton", minversion="3.7")  # 3.6's interpreter fails with NumPy 2.4, its compiler does not
    env = dict(os.environ, TRITON_INTERPRET="1", PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, "-c", KERNELS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
