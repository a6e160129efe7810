"""A feature map on its place of a canvas with a border of repeated pixels, and its gradient, in Triton.

Imported only where Triton is installed (`backbones.kernels`); the oracle is `roi_features.pack_pyramid` on the CPU,
with which the tests compare these in Triton's interpreter. Maps and canvases lie channels_last.
"""

# Launches have options that a kernel's signature lacks, and constants are given as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 256
"""Channels that a program copies at a time."""
PIXELS = 8
"""Pixels of a row that a program copies: 16 elements a thread."""
BEFORE, BEHIND = 1, 2
"""Pixels of the border; of both axes."""


@triton.jit
def _fill_kernel(
    level, canvas, height, width, channels, canvas_height, canvas_width, left, top,
    BEFORE: tl.constexpr, BEHIND: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A run of pixels of a row of the bordered map, which begins at (left, top) of the canvas."""
    rows = height + BEFORE + BEHIND
    image, y = (tl.program_id(1) // rows).to(tl.int64), tl.program_id(1) % rows
    x = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    here = (x < width + BEFORE + BEHIND)[:, None] & (channel < channels)[None, :]
    from_y = tl.minimum(tl.maximum(y - BEFORE, 0), height - 1)
    from_x = tl.minimum(tl.maximum(x - BEFORE, 0), width - 1)
    source = ((image * height + from_y) * width + from_x)[:, None] * channels + channel[None, :]
    target = ((image * canvas_height + top + y) * canvas_width + left + x)[:, None] * channels + channel[None, :]
    tl.store(canvas + target, tl.load(level + source, mask=here), mask=here)


@triton.jit
def _gather_kernel(
    canvas, level, height, width, channels, canvas_height, canvas_width, left, top,
    BEFORE: tl.constexpr, BEHIND: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The transpose: each pixel of the map is the float32 sum over its repetitions."""
    image, y = (tl.program_id(1) // height).to(tl.int64), tl.program_id(1) % height
    start = tl.program_id(0) * PIXELS
    x = start + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    here = (x < width)[:, None] & (channel < channels)[None, :]
    first_y, last_y = tl.where(y == 0, -BEFORE, 0), tl.where(y == height - 1, BEHIND, 0)
    first_x, last_x = tl.where(start == 0, -BEFORE, 0), tl.where(start + PIXELS >= width, BEHIND, 0)
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for along_y in range(first_y, last_y + 1):
        row = (image * canvas_height + top + BEFORE + y + along_y) * canvas_width + left + BEFORE
        for along_x in range(first_x, last_x + 1):
            counts = (along_x == 0) | ((along_x < 0) & (x == 0)) | ((along_x > 0) & (x == width - 1))
            source = (row + x + along_x)[:, None] * channels + channel[None, :]
            total += tl.load(canvas + source, mask=here & counts[:, None], other=0.0).to(tl.float32)
    target = ((image * height + y) * width + x)[:, None] * channels + channel[None, :]
    tl.store(level + target, total.to(level.dtype.element_ty), mask=here)


def fill(canvas: Tensor, level: Tensor, x: int, y: int) -> None:
    """Copy a map (B, C, H, W) to the canvas (B, C, H', W'), its first pixel to (x, y), and its border around it."""
    level = level.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = level.shape
    border = BEFORE + BEHIND
    grid = triton.cdiv(width + border, PIXELS), batch * (height + border), triton.cdiv(channels, CHANNELS)
    _fill_kernel[grid](
        level, canvas, height, width, channels, *canvas.shape[2:], x - BEFORE, y - BEFORE,
        BEFORE=BEFORE, BEHIND=BEHIND, PIXELS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip


def gather(canvas: Tensor, size: tuple[int, int], x: int, y: int) -> Tensor:
    """The gradient (B, C, *size) of the map that `fill` copied, from the canvas's."""
    (batch, channels), (height, width) = canvas.shape[:2], size
    level = torch.empty(
        batch, channels, height, width, dtype=canvas.dtype, device=canvas.device, memory_format=torch.channels_last
    )
    grid = triton.cdiv(width, PIXELS), batch * height, triton.cdiv(channels, CHANNELS)
    _gather_kernel[grid](
        canvas, level, height, width, channels, *canvas.shape[2:], x - BEFORE, y - BEFORE,
        BEFORE=BEFORE, BEHIND=BEHIND, PIXELS=PIXELS, CHANNELS=CHANNELS,
    )  # fmt: skip
    return level
