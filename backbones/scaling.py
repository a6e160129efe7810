"""The weights of many convolutions times a constant scale for each output channel, all by one kernel, and back.

Convolution by convolution that is a multiplication and a cast each, and two more backward; torch's multi-tensor kernels
want scales as large as the weights. Elsewhere than on CUDA with Triton it is torch's operators, weight by weight.

Shapes: a weight is (O, I, kh, kw), dense with O outermost; its scale (O,).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backbones.kernels import kernels_for, on_device

ALIGNMENT = 64
"""Elements that a weight's place in the common memory is a multiple of: 128 bytes in bf16."""


class ScaledWeights:
    """Weights and their scales, kept in the order in which they were given.

    Args:
        weights: of one dtype and device, float32 or larger.
        scales: float32.
    """

    def __init__(self, weights: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self.scales = list(scales)
        self._sources: Tensor | None = None
        self._folded: dict[torch.dtype, list[Tensor]] = {}
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def fold(self, dtype: torch.dtype) -> list[Tensor]:
        """The weights times their scales, in `dtype`, laid out as they are. On CUDA always in the same memory: they
        hold until the next call, and then again if no weight was changed."""
        everything = tuple(range(len(self.weights)))
        if not everything:
            return []
        if (kernels := kernels_for(self.weights[0], "backbones.triton_kernels")) is None:
            pairs = zip(self.weights, self.scales, strict=True)
            return [(weight * scale[:, None, None, None]).to(dtype) for weight, scale in pairs]
        plan = self._plan(everything)
        # Kept tensors made in inference mode could not take part in training afterwards.
        with torch.inference_mode(False):
            if self._sources is None:
                self._sources = _addresses(self.weights)
            if dtype not in self._folded:
                self._folded[dtype] = plan.empty(dtype)
        folded = self._folded[dtype]
        kernels.scale(self._sources, self.weights[0], plan, folded[0])
        return folded

    def unfold(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the weights, from those of the folded ones: in the weights' dtype and layout."""
        wanted = tuple(k for k, gradient in enumerate(gradients) if gradient is not None)
        result: list[Tensor | None] = [None] * len(gradients)
        if not wanted:
            return result
        given = [_in_order(gradients[k], self.weights[k]) for k in wanted]  # pyright: ignore[reportArgumentType]  # wanted
        if kernels := kernels_for(given[0], "backbones.triton_kernels"):
            plan = self._plan(wanted)
            exact = plan.empty(self.weights[0].dtype)
            kernels.scale(_addresses(given), given[0], plan, exact[0])
        else:
            exact = [
                torch.empty_like(self.weights[k]).copy_(gradient).mul_(self.scales[k][:, None, None, None])
                for k, gradient in zip(wanted, given, strict=True)
            ]
        for k, gradient in zip(wanted, exact, strict=True):
            result[k] = gradient
        return result

    def _plan(self, which: tuple[int, ...]) -> _Plan:
        if which not in self._plans:
            with torch.inference_mode(False):
                self._plans[which] = _Plan([self.weights[k] for k in which], [self.scales[k] for k in which])
        return self._plans[which]


class _Plan:
    """Where some of the weights go in a common memory, and which program of the kernel does what."""

    def __init__(self, weights: list[Tensor], scales: list[Tensor]) -> None:
        device = weights[0].device
        self.places: list[tuple[torch.Size, tuple[int, ...], int]] = []
        self.size = 0
        rows, first = [], 0
        for weight in weights:
            self.places.append((weight.shape, weight.stride(), self.size))
            rows.append((self.size, weight.numel(), weight[0].numel(), first))
            self.size += -(-weight.numel() // ALIGNMENT) * ALIGNMENT
            first += len(weight)
        self.rows = on_device(torch.tensor(rows), device)
        """(T, 4) int64: offset, elements, elements of an output channel, the first one's scale."""
        self.scales = torch.cat(scales)
        self.programs: dict[int, Tensor] = {}
        self._counts = [weight.numel() for weight in weights]

    def owners(self, block: int) -> Tensor:
        """(P, 2) int32: each program's weight, and which of its runs of `block` elements."""
        if block not in self.programs:
            runs = [-(-count // block) for count in self._counts]
            weight = torch.arange(len(runs), dtype=torch.int32).repeat_interleave(torch.tensor(runs))
            run = torch.cat([torch.arange(count, dtype=torch.int32) for count in runs])
            self.programs[block] = on_device(torch.stack((weight, run), 1), self.scales.device)
        return self.programs[block]

    def empty(self, dtype: torch.dtype) -> list[Tensor]:
        """The weights' places in new memory, which the first one begins."""
        memory = torch.empty(self.size, dtype=dtype, device=self.scales.device)
        return [memory.as_strided(shape, stride, offset) for shape, stride, offset in self.places]


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    """(T,) int64 on their device."""
    return on_device(torch.tensor([tensor.data_ptr() for tensor in tensors]), tensors[0].device)


def _in_order(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient itself where its numbers lie in memory in the weight's order, else a copy that does."""
    mine, its = gradient.stride(), weight.stride()
    # Of sides of length 1 strides say nothing; libraries fill in others than torch.
    if mine == its or (mine[:2] == its[:2] and weight.shape[2] == weight.shape[3] == 1):
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
