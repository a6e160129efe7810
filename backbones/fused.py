"""Residual units whose batch norm is constant, a stage of them as one operator on CUDA.

Unit by unit, each layer is a multiplication of the weight, a cast, a convolution, an addition, a ReLU and a node of
autograd, and all of it again backward: small kernels, and more work for the host than for the GPU. Here the weights of
all layers are scaled and cast by one multi-tensor kernel, bias, residual and ReLU are one pass (`backbones.epilogue`),
and the backward pass is written out, so that the two gradients that meet at the input of a unit are added where they
are masked. What is computed is the same; bf16 is rounded less often.

The weights' gradients of a stage come together, behind its last convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.batch_norm import FrozenBatchNorm2d
from backbones.epilogue import bias_relu, relu_backward, sum_relu_backward
from backbones.kernels import kernels_for

Pair = tuple[nn.Conv2d, nn.Module]
"""A convolution and its batch norm, constant or (Identity) folded into it already."""


class Unit(Protocol):
    """What a chain is made of (`backbones.resnet.Unit`)."""

    plain: bool
    pads: bool
    dropout: nn.Module

    def pairs(self) -> list[Pair]:
        """The layers of the residual function, in order."""
        ...

    def projection(self) -> Pair | None:
        """The shortcut's."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """As every module's."""
        ...


class Stage(Protocol):
    """What keeps a chain of its units (`backbones.staged.Stage`)."""

    chain: Chain | None

    def __iter__(self) -> Iterator[Any]: ...


class _Layers(NamedTuple):
    """A unit's layers, as numbers of the chain's pairs."""

    main: tuple[int, ...]
    """Of the residual function, in order."""
    shortcut: int | None
    """The projection."""
    plain: bool


class Chain:
    """Units in a row, with all that is constant about them. It holds for the modules as they are; see `is_current`.

    Args:
        units: some `Unit`s.
        entered: the first unit's first convolution and its projection have run already, without their offsets; what
            they gave is the input (`detection.heads.Conv5Head`).
    """

    def __init__(self, units: Sequence[Unit], *, entered: bool = False) -> None:
        self.entered = entered
        self.units: list[_Layers] = []
        self.pairs: list[Pair] = []
        self.scales: list[Tensor] | None = None
        """Each weight's scale, as large as the weight; None where all are folded."""
        self.biases: list[Tensor] = []
        """What is added behind each pair, (C,) float32; a projection's is in its unit's last one."""
        self.entry_bias: Tensor | None = None
        entry: tuple[Pair, Pair] | None = None
        fits = all(hasattr(unit, "pairs") and not unit.pads and _is_identity(unit.dropout) for unit in units)
        for number, unit in enumerate(units if fits else ()):
            pairs, projection = unit.pairs(), unit.projection()
            if entered and number == 0 and projection is not None:
                entry, pairs, projection = (pairs[0], projection), pairs[1:], None
            start = len(self.pairs)
            self.pairs += pairs
            main = tuple(range(start, len(self.pairs)))
            if projection is not None:
                self.pairs.append(projection)
            self.units.append(_Layers(main, None if projection is None else len(self.pairs) - 1, unit.plain))
        every = [*self.pairs, *(entry or ())]
        self._watched = _watched(units, [module for pair in every for module in pair])
        self.folded = all(_is_identity(bn) for _, bn in every)
        self.constant = fits and (
            self.folded or all(isinstance(bn, FrozenBatchNorm2d) and conv.bias is None for conv, bn in every)
        )
        """Whether the chain can compute what the units do."""
        if self.constant:
            # Kept tensors made in inference mode could not take part in training afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._prepare(entry)

    def _prepare(self, entry: tuple[Pair, Pair] | None) -> None:
        """Scales and biases."""
        if not self.folded:
            scales = [bn.constants(torch.float32)[0] for _, bn in self.pairs if isinstance(bn, FrozenBatchNorm2d)]
            self.scales = [
                torch.empty_like(weight, dtype=torch.float32).copy_(scale[:, None, None, None])
                for weight, scale in zip(self.weights(), scales, strict=True)
            ]
        biases = [_bias(*pair) for pair in self.pairs]
        self.biases = list(biases)
        for unit in self.units:
            if unit.shortcut is not None:
                self.biases[unit.main[-1]] = biases[unit.main[-1]] + biases[unit.shortcut]
        if entry is not None:
            self.entry_bias = _bias(*entry[0])
            self.biases[self.units[0].main[-1]] = biases[self.units[0].main[-1]] + _bias(*entry[1])
        self._options: list[tuple[Any, ...]] = [
            (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups) for conv, _ in self.pairs
        ]

    def is_current(self) -> bool:
        """Whether modules and constants are still those that this was made from."""
        for holder, name, kept, state in self._watched:
            found = holder[name]
            if found is not kept or (state is not None and _state(found) != state):
                return False
        return self.scales is None or all(
            weight.stride() == scale.stride() and weight.dtype == scale.dtype
            for weight, scale in zip(self.weights(), self.scales, strict=True)
        )

    def weights(self) -> list[Tensor]:
        """Of the convolutions."""
        # Without nn.Module's slow look-up; a convolution has a weight.
        return [conv._parameters["weight"] for conv, _ in self.pairs]  # pyright: ignore[reportReturnType]

    def fold(self, weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The weights times their scales, in `dtype`."""
        if self.scales is None:
            return [weight.to(dtype) for weight in weights]
        scaled = torch._foreach_mul(list(weights), self.scales)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        if scaled[0].dtype == dtype:
            return list(scaled)
        folded = [torch.empty_like(weight, dtype=dtype) for weight in scaled]
        torch._foreach_copy_(folded, scaled)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        return folded

    def unfold(self, gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of the weights themselves, from those of the folded ones, laid out as the weights."""
        assert self.scales is not None
        wanted = [k for k, gradient in enumerate(gradients) if gradient is not None]
        given = [_restrided(gradient, weights[k]) for k, gradient in enumerate(gradients) if gradient is not None]
        exact = [torch.empty_like(weights[k], dtype=self.scales[k].dtype) for k in wanted]
        if wanted:
            torch._foreach_copy_(exact, given)  # pyright: ignore[reportPrivateImportUsage]  # no public name
            scales = [self.scales[k] for k in wanted]
            torch._foreach_mul_(exact, scales)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        result: list[Tensor | None] = [None] * len(gradients)
        for k, gradient in zip(wanted, exact, strict=True):
            result[k] = gradient
        return result

    def convolve(self, number: int, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """One layer's convolution, without its bias."""
        return torch.convolution(x, weights[number], None, *self._options[number])

    def convolve_backward(
        self, number: int, gradient: Tensor, x: Tensor, weights: Sequence[Tensor], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of one layer's input and folded weight, where they are wanted."""
        options = (*self._options[number], (*wanted, False))
        return torch.ops.aten.convolution_backward.default(gradient, x, weights[number], None, *options)[:2]


def chain_for(stage: Stage, x: Tensor, *, entered: bool = False) -> Chain | None:
    """The stage's units as a chain, where that serves: on CUDA with Triton, with constant batch norm; else None."""
    if torch.compiler.is_compiling() or kernels_for(x, "backbones.triton_kernels") is None:
        return None
    chain = stage.chain
    if chain is None or chain.entered != entered or not chain.is_current():
        chain = stage.chain = Chain(cast("list[Unit]", list(stage)), entered=entered)
    return chain if chain.constant and not (chain.folded and torch.is_grad_enabled()) else None


def run(chain: Chain, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """The last unit's output.

    Args:
        chain: `constant`.
        x: (B, C, H, W), the first unit's input; of an entered chain the first convolution's output without offset.
        shortcut: of an entered chain: the projection's output without offset.
    """
    weights = chain.weights()
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights[0].dtype
    x = x.to(dtype)
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled():
            return _Run.apply(chain, dtype, x, shortcut, *weights)
        return _forward(chain, x, shortcut, chain.fold(weights, dtype), None)


def _forward(
    chain: Chain, x: Tensor, shortcut: Tensor | None, weights: Sequence[Tensor], kept: list[Tensor] | None
) -> Tensor:
    """The last output; into `kept` go the first input and the output of each layer."""
    if chain.entry_bias is not None:
        x = bias_relu(x, chain.entry_bias)
    if kept is not None:
        kept.append(x)
    for number, unit in enumerate(chain.units):
        residual: Tensor | None = None if unit.plain else x
        if unit.shortcut is not None:
            residual = chain.convolve(unit.shortcut, x, weights)
        elif chain.entered and number == 0:
            residual = shortcut
        for k in unit.main:
            last = k == unit.main[-1]
            x = chain.convolve(k, x, weights)
            x = bias_relu(x, chain.biases[k], residual if last else None, inplace=True)
            if kept is not None:
                kept.append(x)
    return x


class _Run(torch.autograd.Function):
    """`run` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, chain: Chain, dtype: torch.dtype, x: Tensor, shortcut: Tensor | None, *weights: Tensor
    ) -> Tensor:
        folded = chain.fold(weights, dtype)
        kept: list[Tensor] = []
        output = _forward(chain, x, shortcut, folded, kept)
        ctx.chain = chain
        ctx.save_for_backward(*kept, *folded, *weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch takes any number
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        count = len(chain.pairs)
        saved = ctx.saved_tensors
        kept, folded, weights = saved[: -2 * count], saved[-2 * count : -count], saved[-count:]
        trains = ctx.needs_input_grad[4:]
        wanted_x = ctx.needs_input_grad[2]
        of_folded: list[Tensor | None] = [None] * count
        of_shortcut: Tensor | None = None
        first: Any = gradient  # None where the input needs none
        second: Tensor | None = None
        end = len(kept) - 1
        for number in reversed(range(len(chain.units))):
            unit = chain.units[number]
            masked = relu_backward(first, kept[end]) if second is None else sum_relu_backward(first, second, kept[end])
            start = end - len(unit.main)
            needs_input = number > 0 or wanted_x or chain.entered
            first = masked
            for place in reversed(range(len(unit.main))):
                k = unit.main[place]
                first, of_folded[k] = chain.convolve_backward(
                    k, first, kept[start + place], folded, (place > 0 or needs_input, trains[k])
                )
                if place > 0:
                    first = relu_backward(first, kept[start + place])
            second = None
            if unit.shortcut is not None:
                second, of_folded[unit.shortcut] = chain.convolve_backward(
                    unit.shortcut, masked, kept[start], folded, (needs_input, trains[unit.shortcut])
                )
            elif chain.entered and number == 0:
                of_shortcut = masked
            elif not unit.plain:
                second = masked
            end = start
        if wanted_x and chain.entry_bias is not None:
            first = relu_backward(first, kept[0])
        elif wanted_x and second is not None:
            first = first + second
        return (None, None, first if wanted_x else None, of_shortcut, *chain.unfold(of_folded, weights))


def _watched(units: Sequence[Unit], modules: Sequence[nn.Module]) -> list[tuple[dict[str, Any], str, Any, Any]]:
    """(dict, key, what lies there, its state): the layers, which folding replaces, and the constants they hold."""
    found: list[tuple[dict[str, Any], str, Any, Any]] = []
    for unit in units:
        for parent in unit.modules():
            for name, child in parent._modules.items():
                if any(child is module for module in modules):
                    found.append((parent._modules, name, child, None))
    for module in modules:
        for name, buffer in module._buffers.items():
            found.append((module._buffers, name, buffer, None if buffer is None else _state(buffer)))
        for name, parameter in module._parameters.items():
            state = _state(parameter) if name == "bias" and parameter is not None else None
            found.append((module._parameters, name, parameter, state))
    return found


def _is_identity(module: object) -> bool:
    return isinstance(module, nn.Identity)


def _state(tensor: Tensor) -> tuple[int, int]:
    """What differs after the tensor was written to, moved or cast in place."""
    # Inference tensors carry no version, and nothing but inference mode can write to them.
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _bias(conv: nn.Conv2d, bn: nn.Module) -> Tensor:
    """(C,) float32: what a pair adds."""
    if isinstance(bn, FrozenBatchNorm2d):
        return bn.constants(torch.float32)[1]
    return conv.weight.new_zeros(len(conv.weight), dtype=torch.float32) if conv.bias is None else conv.bias.float()


def _restrided(gradient: Tensor, weight: Tensor) -> Tensor:
    """A gradient under the weight's strides, without a copy where they differ along sides of length 1 only."""
    differs = any(
        a != b for size, a, b in zip(weight.shape, gradient.stride(), weight.stride(), strict=True) if size > 1
    )
    return gradient if differs else gradient.as_strided(weight.shape, weight.stride())
