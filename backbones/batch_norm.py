"""Batch norm in its three roles: trained, frozen to a constant scale and offset, and folded into the convolution.

Every network here calls `conv_bn(conv, bn, x)` in place of `bn(conv(x))`, and `conv_bn_relu` with a ReLU behind it, so
that a frozen batch norm costs no pass over the activations: its scale goes into the weight and its offset becomes the
convolution's bias.

Shapes: B images, C channels, H x W positions.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from backbones.convolution import convolve


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """Batch norm as a constant scale and offset per channel (He et al. 2016, App. A).

    Buffers weight, bias, running_mean, running_var, each (C,): a `BatchNorm2d`'s state dict loads strictly, and back.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self._source: list[tuple[Tensor, int]] = []
        self._constants: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

    def constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Scale and offset, each (C,), in `dtype` on the buffers' device: the layer is x * scale + offset.

        They are computed once and kept as plain tensors; `.to()`, `load_state_dict` and any in-place change of a
        buffer make them anew.
        """
        if torch.compiler.is_compiling():
            return self._compute(dtype)
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if any(buffer.is_inference() for buffer in buffers):  # inference tensors carry no version to compare
            return self._compute(dtype)
        fresh = len(self._source) == len(buffers) and all(
            kept is buffer and version == buffer._version
            for (kept, version), buffer in zip(self._source, buffers, strict=True)
        )
        if not fresh:
            self._source = [(buffer, buffer._version) for buffer in buffers]
            self._constants = {}
        if dtype not in self._constants:
            # Kept tensors made in inference mode could not take part in training afterwards.
            with torch.inference_mode(False):
                self._constants[dtype] = self._compute(dtype)
        return self._constants[dtype]

    @torch.no_grad()
    def _compute(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(self.weight.dtype, torch.float32)  # of a bf16 model too
        scale = self.weight.to(exact) * (self.running_var.to(exact) + self.eps).rsqrt()
        offset = self.bias.to(exact) - self.running_mean.to(exact) * scale
        return scale.to(dtype), offset.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same shape and dtype: under autocast bf16 stays bf16."""
        scale, offset = self.constants(x.dtype)
        return x * scale[:, None, None] + offset[:, None, None]


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: any
        return _SumOverProcesses.forward(ctx, gradient)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm whose statistics are those of all processes' batches together; unlike PyTorch's, also on the CPU."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: `input`
        """(B, C, H, W) -> same shape; B may differ between the processes."""
        synced = self.training and dist.is_available() and dist.is_initialized()
        if not synced or x.device.type != "cpu":
            return super().forward(x)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # bf16 can count to 256
        total = _SumOverProcesses.apply(exact.new_tensor(x.numel() // x.shape[1]))
        mean = _SumOverProcesses.apply(exact.sum((0, 2, 3))) / total
        centred = exact - mean[:, None, None]
        var = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / total
        with torch.no_grad():
            running_mean, running_var, tracked = running_statistics(self)
            tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1.0 / float(tracked)
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * total / (total - 1), momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def running_statistics(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """running_mean (C,), running_var (C,) and num_batches_tracked () of a batch norm that keeps them."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.num_batches_tracked is not None
    return bn.running_mean, bn.running_var, bn.num_batches_tracked


TRAINED_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
BATCH_NORMS = (*TRAINED_BATCH_NORMS, TorchvisionFrozenBatchNorm2d)
NORMS: dict[str, type[nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "sync": SyncBatchNorm2d,
}


def conv_bn(conv: nn.Conv2d, bn: nn.Module | None, x: Tensor) -> Tensor:
    """`bn(conv(x))`, (B, C, H, W) -> (B, C', H', W').

    A frozen batch norm is folded into the weight on the fly (the gradient reaches the weight through the scale): one
    convolution with a bias and no pass over the activations, in bf16 throughout under bf16 autocast. None or Identity
    (after `fold_batch_norm`): the convolution alone.
    """
    weight, bias, rest = folded(conv, bn, x)
    out = convolve(conv, x, weight, bias)
    return out if rest is None else rest(out)


def conv_bn_relu(
    conv: nn.Conv2d, bn: nn.Module | None, x: Tensor, residual: Tensor | None = None, *, overwrite: bool = False
) -> Tensor:
    """`relu(bn(conv(x)) + residual)`, the residual (B, C', H', W') or none; see `conv_bn`.

    `overwrite`: the residual's memory may become the output's where no gradient is wanted.
    """
    weight, bias, rest = folded(conv, bn, x)
    if rest is None:
        return convolve(conv, x, weight, bias, residual, relu=True, overwrite=overwrite)
    out = rest(convolve(conv, x, weight, bias))
    if residual is not None:
        out += residual
    return F.relu(out, inplace=True)


def folded(conv: nn.Conv2d, bn: nn.Module | None, x: Tensor) -> tuple[Tensor, Tensor | None, nn.Module | None]:
    """Weight and bias of a convolution with its batch norm in them; and the batch norm where it cannot be folded."""
    if bn is None or isinstance(bn, nn.Identity):
        return conv.weight, conv.bias, None
    if not isinstance(bn, FrozenBatchNorm2d):
        return conv.weight, conv.bias, bn
    scale, _ = bn.constants(conv.weight.dtype)
    # The bias goes in already in the dtype of the convolution, which saves autocast one cast for each layer.
    kind = x.device.type
    autocast = kind != "meta" and torch.is_autocast_enabled(kind)
    _, bias = bn.constants(torch.get_autocast_dtype(kind) if autocast else conv.weight.dtype)
    if conv.bias is not None:
        bias = torch.addcmul(bias, conv.bias, scale)
    return conv.weight * scale[:, None, None, None], bias, None


def conv_bn_pairs(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, str]]:
    """(parent, convolution, name of its batch norm) for every convolution directly followed by a batch norm.

    Followed in the order in which the parent registered its children, which is the order of the layers.
    """
    for parent in list(module.modules()):
        for (_, conv), (name, bn) in itertools.pairwise(parent.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, BATCH_NORMS):
                yield parent, conv, name


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """The same module, in eval mode, with every batch norm folded into the convolution registered right before it.

    In place and for inference only: convolutions get a bias, batch norms become Identity, nothing requires a gradient.
    Trained and frozen batch norms alike; the result equals the module in eval mode up to rounding.
    """
    module.eval().requires_grad_(False)
    for parent, conv, name in list(conv_bn_pairs(module)):
        bn = getattr(parent, name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        conv.requires_grad_(False)
        setattr(parent, name, nn.Identity())
    return module


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Inside, the net is in eval mode; afterwards each module is in the mode it was in."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


class Moments:
    """Count, mean and sum of squared deviations per channel over all that was added, in float64 (Chan et al. 1983)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Takes in the activations x (B, C, H, W)."""
        var, mean = torch.var_mean(x.detach().float(), (0, 2, 3), correction=0)
        count = x.numel() // x.shape[1]
        self.merge(count, mean.double(), var.double() * count)

    def merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Takes in another set's moments."""
        total = self.count + count
        if not count:
            return
        delta = mean - self.mean
        self.mean += delta * (count / total)
        self.squares += squares + delta.square() * (self.count * count / total)
        self.count = total

    def merge_processes(self) -> None:
        """Takes in what the other processes have seen."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        mine = torch.cat([self.mean.new_tensor([self.count]), self.mean, self.squares])
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine)
        self.count, self.mean, self.squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for other in gathered:
            mean, squares = other[1:].chunk(2)
            self.merge(int(other[0]), mean, squares)


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Tensor], device: torch.device | str) -> None:
    """Gives every trained batch norm the true mean and variance over a set, in place of running averages.

    What is computed: the set goes through the net once, every batch norm normalising with the statistics of its batch
    as in training, all other layers (dropout) as at test. running_mean and running_var then become the mean and the
    population variance (divided by N, not N - 1) of the layer's input over all images and positions of the set, each
    position weighing the same whatever the size of its batch (He et al. 2016, App. A: "we compute the BN statistics
    for each layer on the training set"). With several processes each feeds its share, and all get the same result.

    Args:
        net: moved to `device`; training flags and num_batches_tracked are left as they were.
        batches: (B, 3, H, W) inputs as the net takes them, that is normalised.
        device: where it runs.

    Raises:
        ValueError: no batch came.
    """
    net.to(device)
    norms = [module for module in net.modules() if isinstance(module, TRAINED_BATCH_NORMS)]
    statistics = {bn: running_statistics(bn) for bn in norms}
    kept = {bn: (bn.momentum, tracked.clone()) for bn, (_, _, tracked) in statistics.items()}
    moments: dict[nn.Module, Moments] = {
        bn: Moments(bn.num_features, mean.device) for bn, (mean, _, _) in statistics.items()
    }
    hooks = [bn.register_forward_pre_hook(lambda bn, inputs: moments[bn].add(inputs[0])) for bn in norms]
    with eval_mode(net):
        try:
            for bn in norms:
                bn.training = True
                bn.momentum = 0.0  # the running statistics stay as they are until the end
            for batch in batches:
                net(batch.to(device, non_blocking=True))
        finally:
            for hook in hooks:
                hook.remove()
            for bn, (momentum, tracked) in kept.items():
                bn.momentum = momentum
                statistics[bn][2].copy_(tracked)
    for bn, (mean, var, _) in statistics.items():
        moments[bn].merge_processes()
        if not moments[bn].count:
            raise ValueError("recalibrate: there is no batch to take statistics from")
        mean.copy_(moments[bn].mean)
        var.copy_(moments[bn].squares / moments[bn].count)
