"""Residual units whose batch norm is constant, a stage of them as one operator on CUDA.

Unit by unit, each layer is a multiplication of the weight, a cast, a convolution, an addition, a ReLU and a node of
autograd, and all of it again backward: small kernels, and more work for the host than for the GPU. Here the weights of
all layers are scaled and cast by one kernel (`backbones.scaling`), bias, residual and ReLU are part of the convolution
or one pass (`backbones.convolution`), and the backward pass is written out, so that the two gradients that meet at the
input of a unit are added where they are masked. What is computed is the same; bf16 is rounded less often.

The weights' gradients of a stage come together, behind its last convolution.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from backbones.batch_norm import FrozenBatchNorm2d
from backbones.convolution import Geometry, convolve_on_cuda
from backbones.epilogue import bias_relu, relu_backward, sum_relu_backward
from backbones.kernels import kernels_for
from backbones.scaling import ScaledWeights

_version = operator.attrgetter("_version")
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

    def modules(self) -> Iterator[nn.Module]: ...


class Stage(Protocol):
    """What keeps a chain of its units (`backbones.staged.Stage`)."""

    chain: Chain | None

    def __iter__(self) -> Iterator[Any]: ...


class _Layers(NamedTuple):
    """A unit's layers, as numbers of the chain's pairs."""

    main: tuple[int, ...]
    """The residual function's layers, in order."""
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
        self.scaled: ScaledWeights | None = None
        """The weights with their scales; None where all are folded."""
        self.biases: dict[torch.dtype, list[Tensor]] = {}
        """What is added behind each pair, (C,) float32 and for bfloat16; a projection's is in its unit's last one."""
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
        modules = [module for pair in every for module in pair]
        self._holders, self._names, self._kept = _watched(units, modules)
        tensors = [tensor for module in modules for tensor in module.buffers(recurse=False)]
        self._parameters = [tensor for module in modules for tensor in module.parameters(recurse=False)]
        biases = [conv.bias for conv, _ in every if conv.bias is not None]
        # Inference tensors carry no version, and nothing but inference mode can write to them.
        self._constants = [tensor for tensor in (*tensors, *biases) if not tensor.is_inference()]
        self._state = self._now()
        self.folded = all(_is_identity(bn) for _, bn in every)
        self.constant = fits and (
            self.folded
            # Triton's kernel reads 16 bytes at a time; a weight that is a part of something may lie elsewhere.
            or all(isinstance(bn, FrozenBatchNorm2d) and conv.bias is None and _fits(conv.weight) for conv, bn in every)
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
            self.scaled = ScaledWeights(self.weights(), scales)
        biases = [_bias(*pair) for pair in self.pairs]
        for unit in self.units:
            if unit.shortcut is not None:
                biases[unit.main[-1]] = biases[unit.main[-1]] + biases[unit.shortcut]
        if entry is not None:
            self.entry_bias = _bias(*entry[0])
            biases[self.units[0].main[-1]] = biases[self.units[0].main[-1]] + _bias(*entry[1])
        self.biases = {dtype: [bias.to(dtype) for bias in biases] for dtype in (torch.float32, torch.bfloat16)}
        self._geometries = [
            cast(Geometry, (conv.stride, conv.padding, conv.dilation, conv.groups)) for conv, _ in self.pairs
        ]
        self._options: list[tuple[Any, ...]] = [
            (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups) for conv, _ in self.pairs
        ]

    def is_current(self) -> bool:
        """Whether modules and constants are still those that this was made from."""
        found = map(operator.getitem, self._holders, self._names)  # several hundred a step: without Python's loops
        return all(map(operator.is_, found, self._kept)) and self._state == self._now()

    def _now(self) -> tuple[list[int], list[int]]:
        """What differs after a constant was written to, or a parameter moved or cast in place; not after a step."""
        return list(map(_version, self._constants)), list(map(Tensor.data_ptr, self._parameters))

    def weights(self) -> list[Tensor]:
        # Without nn.Module's slow look-up; a convolution has a weight.
        return [conv._parameters["weight"] for conv, _ in self.pairs]  # pyright: ignore[reportReturnType]

    def fold(self, dtype: torch.dtype) -> list[Tensor]:
        """The weights times their scales, in `dtype`."""
        if self.scaled is None:
            return [weight.to(dtype) for weight in self.weights()]
        return self.scaled.fold(dtype)

    def convolve(self, number: int, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """One layer's convolution, without its bias."""
        return torch.convolution(x, weights[number], None, *self._options[number])

    def convolve_relu(self, number: int, x: Tensor, weights: Sequence[Tensor], residual: Tensor | None) -> Tensor:
        """One layer with what follows it."""
        bias = self.biases.get(x.dtype, self.biases[torch.float32])[number]
        return convolve_on_cuda(x, weights[number], bias, residual, self._geometries[number], relu=True)

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
        return _forward(chain, x, shortcut, chain.fold(dtype), None)


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
            x = chain.convolve_relu(k, x, weights, residual if k == unit.main[-1] else None)
            if kept is not None:
                kept.append(x)
    return x


class _Run(torch.autograd.Function):
    """`run` with its gradient.

    Of the maps between the layers nobody else knows: they are kept here, not by autograd, and each is given up as soon
    as the backward pass has used it, unless the graph is retained.
    """

    @staticmethod
    def forward(
        ctx: Any, chain: Chain, dtype: torch.dtype, x: Tensor, shortcut: Tensor | None, *weights: Tensor
    ) -> Tensor:
        ctx.chain = chain
        ctx.folded = chain.fold(dtype)
        kept: list[Tensor] = []
        output = _forward(chain, x, shortcut, ctx.folded, kept)
        ctx.save_for_backward(kept[0])
        # Not the output itself, which would keep this, which would keep it.
        ctx.kept = [*kept[1:-1], output.detach()]
        ctx.versions = list(map(_version, (ctx.kept[-1], *weights)))
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch takes any number
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        chain: Chain = ctx.chain
        kept = [*ctx.saved_tensors, *ctx.kept]  # autograd raises its error where these are freed
        if not _retained():
            ctx.kept = None
        if ctx.versions != list(map(_version, (kept[-1], *chain.weights()))):
            raise RuntimeError("a stage's output or a weight was changed in place before the stage's gradient was made")
        wanted = ctx.needs_input_grad[2], ctx.needs_input_grad[4:]
        of_x, of_shortcut, of_folded = _backward(chain, gradient, kept, ctx.folded, *wanted)
        unfolded = chain.scaled.unfold(of_folded) if chain.scaled is not None else of_folded
        return None, None, of_x, of_shortcut, *unfolded


def _retained() -> bool:
    """Whether the backward pass that runs was asked to retain the graph."""
    return torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]  # no stub


def _backward(
    chain: Chain, gradient: Tensor, kept: list[Tensor], folded: Sequence[Tensor], wanted_x: bool, trains: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """The gradients of input, shortcut and folded weights, where they are wanted.

    Args:
        chain: what ran.
        gradient: of the last output.
        kept: by `_forward`; is emptied on the way.
        folded: the weights.
        wanted_x, trains: whether input and weights want theirs.
    """
    of_folded: list[Tensor | None] = [None] * len(folded)
    of_shortcut: Tensor | None = None
    first: Any = gradient  # None where the input needs none
    second: Tensor | None = None
    for number in reversed(range(len(chain.units))):
        unit = chain.units[number]
        output = kept.pop()
        own = number < len(chain.units) - 1  # the gradient of the last unit's output is somebody else's
        masked = (
            relu_backward(first, output, inplace=own) if second is None else sum_relu_backward(first, second, output)
        )
        del output
        needs_input = number > 0 or wanted_x or chain.entered
        first, second = masked, None
        for place in reversed(range(1, len(unit.main))):
            k, x = unit.main[place], kept.pop()
            first, of_folded[k] = chain.convolve_backward(k, first, x, folded, (True, trains[k]))
            first = relu_backward(first, x, inplace=True)
        x = kept[-1]  # the unit's input, which the unit before masks with
        if unit.shortcut is not None:
            second, of_folded[unit.shortcut] = chain.convolve_backward(
                unit.shortcut, masked, x, folded, (needs_input, trains[unit.shortcut])
            )
        elif chain.entered and number == 0:
            of_shortcut = masked
        elif not unit.plain:
            second = masked
        k = unit.main[0]
        first, of_folded[k] = chain.convolve_backward(k, first, x, folded, (needs_input, trains[k]))
    if not wanted_x:
        return None, of_shortcut, of_folded
    if chain.entry_bias is not None:
        first = relu_backward(first, kept[0], inplace=True)
    elif second is not None:
        first = first + second
    return first, of_shortcut, of_folded


def _watched(units: Sequence[Unit], modules: Sequence[nn.Module]) -> tuple[list[dict[str, Any]], list[str], list[Any]]:
    """Dicts, keys, what lies there: the layers, which folding replaces, and the constants they hold."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    for unit in units:
        for parent in unit.modules():
            layers = [name for name, child in parent._modules.items() if any(child is module for module in modules)]
            found += [(parent._modules, name, parent._modules[name]) for name in layers]
    for module in modules:
        for kind in (module._buffers, module._parameters):
            found += [(kind, name, kept) for name, kept in kind.items()]
    return [holder for holder, _, _ in found], [name for _, name, _ in found], [kept for _, _, kept in found]


def _is_identity(module: object) -> bool:
    return isinstance(module, nn.Identity)


def _fits(weight: Tensor) -> bool:
    """Whether the weight begins at a multiple of 16 bytes and is dense, its output channels outermost."""
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return dense and weight.data_ptr() % 16 == 0


def _bias(conv: nn.Conv2d, bn: nn.Module) -> Tensor:
    """(C,) float32: what a pair adds."""
    if isinstance(bn, FrozenBatchNorm2d):
        return bn.constants(torch.float32)[1]
    return conv.weight.new_zeros(len(conv.weight), dtype=torch.float32) if conv.bias is None else conv.bias.float()
