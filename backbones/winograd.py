"""3x3 convolutions in float32 on the CPU with a quarter of the multiplications: F(4x4, 3x3) of Winograd's minimal
filtering (Lavin & Gray 2016), the algorithm that cuDNN takes on GPUs and oneDNN does not have.

Each tile of 6x6 inputs gives 4x4 outputs by 36 products in place of 144: both operands are evaluated at points,
multiplied there, and interpolated. The points are those with the least rounding error (multiples of 3/4; Barabasz et
al. 2020): the result is nearly as exact as oneDNN's. The products are a batched product in training; packed
for inference they are a grouped 1x1 convolution, which oneDNN computes at full speed on weights laid out for it. Maps
are worked on in pieces that stay in the cache.

Shapes: x (B, C, H, W), weights (K, C, 3, 3), T tiles, S x S points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

OUT, KERNEL, SIDE = 4, 3, 6
"""Sides of a tile of outputs, of the kernel, and of a tile of inputs (S)."""
POINTS = tuple(Fraction(n, 4) for n in (0, 3, -3, 6, -6))
"""Where polynomials are evaluated, besides infinity."""
LEAST_CHANNELS = 128
"""C and K from which on it pays: with fewer, moving tiles takes longer than the products."""
LEAST_TILES = 64
"""T from which on it pays to transform the weights."""
PIECE = 4 << 20
"""Numbers in a piece of a map, transformed: 16 MiB, which malloc keeps, and the cache holds."""


def _interpolation() -> tuple[Tensor, Tensor, Tensor]:
    """Toom-Cook's matrices in float64 for one axis: of outputs (4, 6), kernel (6, 3) and inputs (6, 6)."""

    def product(points: list[Fraction]) -> list[Fraction]:
        """The coefficients of the product of (x - p), lowest first, filled up to 6."""
        result = [Fraction(1)]
        for p in points:
            result = [a - p * b for a, b in zip([Fraction(0), *result], [*result, Fraction(0)], strict=True)]
        return result + [Fraction(0)] * (SIDE - len(result))

    rest = [[q for q in POINTS if q != p] for p in POINTS]
    inputs = [product(others) for others in rest] + [product(list(POINTS))]
    kernel = []
    for p, others in zip(POINTS, rest, strict=True):
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        kernel.append([p**k / scale for k in range(KERNEL)])
    kernel.append([Fraction(k == KERNEL - 1) for k in range(KERNEL)])
    outputs = [[p**k for p in POINTS] + [Fraction(k == OUT - 1)] for k in range(OUT)]
    return tuple(  # pyright: ignore[reportReturnType]  # three of them
        torch.tensor([[float(value) for value in row] for row in matrix], dtype=torch.float64)
        for matrix in (outputs, kernel, inputs)
    )


_OUTPUTS, _KERNEL, _INPUTS = (torch.kron(matrix, matrix).float() for matrix in _interpolation())
"""The same for both axes: (16, 36), (36, 9), (36, 36)."""


def serves(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` computes what the convolution does with these weights, and faster."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor  # counts and exports look at tensors of their own
        and x.dtype == weight.dtype == torch.float32
        and conv.kernel_size == (KERNEL, KERNEL)
        and conv.stride == conv.dilation == conv.padding == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and x.dim() == 4
        and len(x) * _tiles(x.shape[2]) * _tiles(x.shape[3]) >= LEAST_TILES
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with padding 1, (B, C, H, W) -> (B, K, H, W) channels_last, with its gradients."""
    return _Winograd.apply(x, weight, bias)


# ---------------------------------------------------------------------------------------------- transforms


def points_of(weight: Tensor) -> Tensor:
    """(36, K, C): the weights at the points."""
    outputs, inputs = weight.shape[:2]
    return (_KERNEL @ weight.permute(2, 3, 0, 1).reshape(KERNEL * KERNEL, -1)).view(-1, outputs, inputs)


def _tiles(side: int) -> int:
    return -(-side // OUT)


class _Piece(NamedTuple):
    """Some tiles: `rows` rows of them from `top` on, of each of `images` images from `first` on."""

    first: int
    images: int
    top: int
    rows: int


def _pieces(shape: torch.Size, channels: int) -> Iterator[_Piece]:
    """A map's tiles in pieces of the same size (but for the last), of at most `PIECE` numbers of so many channels."""
    batch, height, width = shape[0], _tiles(shape[2]), _tiles(shape[3])
    most = max(1, PIECE // (width * channels * SIDE * SIDE))
    images = _share(batch, most // height)
    rows = height if most >= height else _share(height, most)
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield _Piece(first, min(images, batch - first), top, min(rows, height - top))


def _share(count: int, most: int) -> int:
    """The size of the parts that `count` things are divided into, as equal as can be, of at most `most`."""
    parts = -(-count // max(1, most))
    return -(-count // max(1, parts))


def _padded(x: Tensor) -> Tensor:
    """(B, H', W', C): the map with its border of one pixel, up to whole tiles."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, _tiles(height) * OUT + 2, _tiles(width) * OUT + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    return padded


def _evaluated(padded: Tensor, piece: _Piece) -> Tensor:
    """(T, 36, C): a piece's tiles of inputs at the points."""
    part = padded[piece.first : piece.first + piece.images, piece.top * OUT :]
    b, y, x, c = padded.stride()
    columns = (padded.shape[2] - 2) // OUT
    tiles = part.as_strided(
        (piece.images, piece.rows, columns, SIDE, SIDE, padded.shape[3]), (b, y * OUT, x * OUT, y, x, c)
    )
    return _INPUTS @ tiles.reshape(-1, SIDE * SIDE, padded.shape[3])


def _product(values: Tensor, weight: Tensor) -> Tensor:
    """(T, 36, K): values at the points, (T, 36, C), times weights (36, C, K) there."""
    result = values.new_empty(len(values), SIDE * SIDE, weight.shape[2])
    torch.bmm(values.transpose(0, 1), weight, out=result.transpose(0, 1))
    return result


def _apply(
    x: Tensor, outputs: int, multiply: Callable[[Tensor], Tensor], bias: Tensor | None, *, relu: bool = False
) -> Tensor:
    """The convolution; `multiply` makes products (T, 36, K) of values (T, 36, C)."""
    batch, channels, height, width = x.shape
    padded = _padded(x)
    output = torch.empty((batch, outputs, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    rows = output.permute(0, 2, 3, 1)
    for piece in _pieces(x.shape, max(channels, outputs)):
        values = _OUTPUTS @ multiply(_evaluated(padded, piece))
        if bias is not None:
            values += bias
        if relu:
            values.relu_()
        columns = _tiles(width)
        maps = values.view(piece.images, piece.rows, columns, OUT, OUT, outputs).transpose(2, 3)
        into = _of_piece(rows, piece)
        into.copy_(maps.reshape(piece.images, piece.rows * OUT, columns * OUT, outputs)[:, : into.shape[1], :width])
    return output


def _of_piece(maps: Tensor, piece: _Piece) -> Tensor:
    """The part of maps (B, H, W, K) that a piece's outputs are; of its last tiles only what lies inside."""
    return maps[piece.first : piece.first + piece.images, piece.top * OUT : (piece.top + piece.rows) * OUT]


class PackedWeights:
    """A convolution's weights at the points as oneDNN wants them, for inference.

    How they must lie depends on the number of tiles in a piece: they are laid out anew when it changes. They take four
    times the memory of the weights.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._packed: tuple[int, Tensor] | None = None

    def convolve(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """As `convolve`, with a ReLU behind it if asked for; no gradient."""
        outputs = len(self.weight)
        if not _has_pointwise():
            weight = points_of(self.weight).transpose(1, 2)
            return _apply(x, outputs, lambda values: _product(values, weight), self.bias, relu=relu)
        largest = next(_pieces(x.shape, max(x.shape[1], outputs)))
        tiles = largest.images * largest.rows * _tiles(x.shape[3])
        packed = self._pack(tiles)
        return _apply(x, outputs, lambda values: self._multiply(values, packed, tiles), self.bias, relu=relu)

    def _pack(self, tiles: int) -> Tensor:
        """The weights for pieces of so many tiles."""
        if self._packed is None or self._packed[0] != tiles:
            points, inputs = SIDE * SIDE, self.weight.shape[1]
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                points_of(self.weight).view(-1, inputs, 1, 1), [0, 0], [1, 1], [1, 1], points,
                [1, points * inputs, tiles, 1],
            )  # fmt: skip
            self._packed = tiles, packed
        return self._packed[1]

    def _multiply(self, values: Tensor, packed: Tensor, tiles: int) -> Tensor:
        """`_product` as a grouped 1x1 convolution."""
        count, points, inputs = values.shape
        if count < tiles:  # of the last piece: another number could want another layout, and a slow conversion
            values = torch.cat((values, values.new_zeros(tiles - count, points, inputs)))
        maps = values.view(1, tiles, 1, points * inputs).permute(0, 3, 1, 2)
        product = torch.ops.mkldnn._convolution_pointwise(
            maps, packed, None, [0, 0], [1, 1], [1, 1], points, "none", [], ""
        )
        return product.permute(0, 2, 3, 1).reshape(tiles, points, -1)[:count]


def _has_pointwise() -> bool:
    """Whether oneDNN's operators can be had."""
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return known and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _Winograd(torch.autograd.Function):
    """`convolve` with its gradient: each step transposed, with as few products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        of_points = points_of(weight).transpose(1, 2)
        return _apply(x, len(weight), lambda values: _product(values, of_points), bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch takes any number
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        outputs, channels = weight.shape[:2]
        of_bias = gradient.sum((0, 2, 3)) if wants_bias else None
        if not (wants_x or wants_weight):
            return None, None, of_bias
        padded = _padded(x) if wants_weight else None
        of_padded = x.new_zeros(len(x), _tiles(x.shape[2]) + 1, OUT, _tiles(x.shape[3]) + 1, OUT, channels)
        of_points = weight.new_zeros(SIDE * SIDE, outputs, channels)
        weight_points = points_of(weight)
        maps = gradient.permute(0, 2, 3, 1)
        for piece in _pieces(x.shape, max(channels, outputs)):
            at_points = _outputs_transposed(_of_piece(maps, piece), piece)
            if padded is not None:
                of_points.baddbmm_(at_points.permute(1, 2, 0), _evaluated(padded, piece).transpose(0, 1))
            if wants_x:
                _add_tiles(of_padded, _INPUTS.T @ _product(at_points, weight_points), piece)
        of_x = of_padded.flatten(3, 4).flatten(1, 2)[:, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1].contiguous()
        of_weight = (_KERNEL.T @ of_points.view(SIDE * SIDE, -1)).view(KERNEL, KERNEL, outputs, channels)
        return (
            of_x.permute(0, 3, 1, 2) if wants_x else None,
            of_weight.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last) if wants_weight else None,
            of_bias,
        )


def _outputs_transposed(maps: Tensor, piece: _Piece) -> Tensor:
    """(T, 36, K): the gradient at the points from that of a piece's outputs, (B, H, W, K)."""
    batch, height, width, outputs = maps.shape
    columns = _tiles(width)
    whole = maps
    if (height, width) != (piece.rows * OUT, columns * OUT):
        whole = maps.new_zeros(batch, piece.rows * OUT, columns * OUT, outputs)
        whole[:, :height, :width] = maps
    tiles = whole.reshape(batch, piece.rows, OUT, columns, OUT, outputs).transpose(2, 3)
    return _OUTPUTS.T @ tiles.reshape(-1, OUT * OUT, outputs)


def _add_tiles(padded: Tensor, tiles: Tensor, piece: _Piece) -> None:
    """Add tiles (T, 36, C), which overlap by two pixels, into maps (B, rows + 1, 4, columns + 1, 4, C)."""
    columns = padded.shape[3] - 1
    tiles = tiles.view(piece.images, piece.rows, columns, SIDE, SIDE, -1).transpose(2, 3)
    images = padded[piece.first : piece.first + piece.images]
    for down in (0, 1):
        for right in (0, 1):
            rows = slice(piece.top + down, piece.top + down + piece.rows)
            ys, xs = slice(down * OUT, (down + 1) * OUT), slice(right * OUT, (right + 1) * OUT)
            part = tiles[:, :, ys, :, xs]
            images[:, rows, : part.shape[2], right : right + columns, : part.shape[4]] += part
