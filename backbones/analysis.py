"""What a net costs, and how strongly its layers respond (He et al. 2016, Table 1 and Fig. 7)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from backbones.batch_norm import TRAINED_BATCH_NORMS, Moments, conv_bn_pairs, eval_mode, running_statistics
from backbones.staged import StagedNet


class Cost(NamedTuple):
    """Size of a net and of one forward pass."""

    parameters: int
    """Numbers in all layers, batch norm's scale and offset among them (running statistics are none); auxiliary
    classifiers, which serve training only, are left out."""
    multiply_adds: int
    """What convolutions and fully connected layers do for one image, as the paper counts; no biases, pooling, ReLU."""


@torch.no_grad()
def cost(net: nn.Module, image_size: tuple[int, int] = (224, 224)) -> Cost:
    """Parameters, and multiply-adds for one image of `image_size` (H, W). Nothing is computed: tensors have no data."""
    shapes = {
        name: torch.empty_like(value, device="meta") for name, value in (*net.named_parameters(), *net.named_buffers())
    }
    with eval_mode(net), FlopCounterMode(display=False) as counter:
        functional_call(net, shapes, (torch.empty(1, 3, *image_size, device="meta"),))
    parameters = sum(each.numel() for name, each in net.named_parameters() if not name.startswith("companions."))
    return Cost(parameters, counter.get_total_flops() // 2)


class PartCost(NamedTuple):
    """What a part of a net costs for one image."""

    name: str
    parameters: int
    """Batch norm's scale and offset among them."""
    multiply_adds: int
    """What convolutions and fully connected layers do."""
    activations: int
    """Numbers that convolutions, batch norms, pooling and fully connected layers put out: in training most are kept."""
    output: tuple[int, ...]
    """The part's map (C, H, W), or (K,)."""


_KEPT = (nn.Conv2d, nn.Linear, *TRAINED_BATCH_NORMS, nn.MaxPool2d, nn.AvgPool2d, nn.PReLU)


class _Trace(NamedTuple):
    modules: dict[nn.Module, None]
    multiply_adds: int
    activations: int
    output: Tensor


@torch.no_grad()
def _trace(net: nn.Module, call: Callable[[], Tensor]) -> _Trace:
    """What `call` runs of the net's layers, on the meta device."""
    seen: dict[nn.Module, None] = {}
    numbers = [0]

    def look(module: nn.Module, _: object, output: Tensor) -> None:
        seen[module] = None
        numbers[0] += output.numel() if isinstance(module, _KEPT) else 0

    layers = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look) for module in layers]
    try:
        with eval_mode(net), FlopCounterMode(display=False) as counter:
            output = call()
    finally:
        for hook in hooks:
            hook.remove()
    return _Trace(seen, counter.get_total_flops() // 2, numbers[0], output)


def part_cost(name: str, net: nn.Module, call: Callable[[], Tensor]) -> PartCost:
    """The cost of what `call` runs of a net on the meta device."""
    return _cost_of(name, _trace(net, call), None)


def _cost_of(name: str, trace: _Trace, before: _Trace | None) -> PartCost:
    """The cost of what was run, less what an earlier call ran."""
    done = before.modules if before is not None else {}
    parameters = sum(
        each.numel() for module in trace.modules if module not in done for each in module.parameters(recurse=False)
    )
    multiply_adds = trace.multiply_adds - (before.multiply_adds if before is not None else 0)
    activations = trace.activations - (before.activations if before is not None else 0)
    return PartCost(name, parameters, multiply_adds, activations, tuple(trace.output.shape[1:]))


def stage_costs(
    net: nn.Module | StagedNet, image_size: tuple[int, int] = (224, 224), *, classifier: bool = True
) -> list[PartCost]:
    """The cost of each stage for one image of `image_size` (H, W), and of what follows the last one.

    Args:
        net: a `StagedNet` with trained batch norm (a frozen one is no layer of its own).
        image_size: pixels.
        classifier: whether the net still has its classifier, which is then the last part.
    """
    staged: Any = copy.deepcopy(net)
    staged.to("meta")
    x = torch.empty(1, 3, *image_size, device="meta")
    parts, before = [], None
    for name in staged.stage_channels:

        def up_to_here(name: str = name) -> Tensor:
            return staged.forward_stages(x, [name])[name]

        try:
            trace = _trace(staged, up_to_here)
        except ValueError:  # taken out of the net: a detector's head
            break
        parts.append(_cost_of(name, trace, before))
        before = trace
    if classifier:
        parts.append(_cost_of("classifier", _trace(staged, lambda: staged(x)), before))
    return parts


@torch.no_grad()
def layer_responses(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Standard deviation of each 3x3 layer's response, in layer order (He et al. 2016, Sec. 4.2, Fig. 7).

    The response is the output after batch norm, before ReLU and addition; its standard deviation is taken over all
    images, channels and positions, with the net in eval mode.

    Args:
        net: with trained batch norm (a frozen or folded one has no output of its own).
        batches: (B, 3, H, W), normalised, on the net's device.

    Returns:
        Name of the convolution -> standard deviation.

    Raises:
        ValueError: the net has no 3x3 convolution followed by a trained batch norm, or no batch came.
    """
    layers: dict[str, nn.BatchNorm2d | nn.SyncBatchNorm] = {}
    names = {module: name for name, module in net.named_modules()}
    for parent, conv, bn_name in conv_bn_pairs(net):
        bn = getattr(parent, bn_name)
        if conv.kernel_size == (3, 3) and isinstance(bn, TRAINED_BATCH_NORMS):
            layers[names[conv]] = bn
    moments: dict[nn.Module, Moments] = {bn: Moments(1, running_statistics(bn)[0].device) for bn in layers.values()}
    hooks = [
        bn.register_forward_hook(lambda bn, _, output: moments[bn].add(output.reshape(-1, 1, 1, 1)))
        for bn in layers.values()
    ]
    try:
        with eval_mode(net):
            for batch in batches:
                net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not moments or not all(each.count for each in moments.values()):
        raise ValueError("layer_responses needs a net with trained batch norm after 3x3 convolutions, and batches")
    return {name: float((moments[bn].squares / moments[bn].count).sqrt()) for name, bn in layers.items()}
