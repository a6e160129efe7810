"""Non-maximum suppression and RoIAlign for CUDA, in Triton: outputs of fixed size, nothing that the host waits for.

Imported only where Triton is installed (`backbones.kernels`). The CPU's operators are the oracle: with
TRITON_INTERPRET=1 the kernels run on the CPU, and the tests compare them there.

Shapes: B images, N boxes, R RoIs an image, C channels, S bins a side, T = ceil(S / step) that are computed.
"""

# Launches have options that a kernel's signature lacks, and Triton types its own functions as never returning.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096
"""Candidates of NMS that are compared with each other at a time; the later ones only with the survivors before them."""
ROWS = 128
"""Candidates, one a thread, that a program compares with 64 others."""
MAX_CHANNELS = 512
"""Channels that one program of RoIAlign holds, 16 a thread."""
TILE = 16
"""Pixels of a row whose gradients one program gathers."""
GATHERED_CHANNELS = 256
"""And the channels: 32 sums a thread. Both are at least what a matrix product takes, 16."""

GATHER_REGISTERS = 128
"""Registers a thread of that program: with a choice of its own NVIDIA's assembler takes fewer and spills."""


@triton.jit
def _exceeds(overlap, union, MIDDLE: tl.constexpr, ODD: tl.constexpr):
    """Whether float32(overlap / union) > threshold, without a division; see `_middle`.

    `MIDDLE` lies between the last float32 that is not above the threshold and the next one, and its product with a
    float32 is exact in float64. A quotient right at the middle is rounded to the even neighbour, the upper one if the
    lower is odd.
    """
    exact = overlap.to(tl.float64)
    bound = union.to(tl.float64) * MIDDLE  # a constant, for arguments are float32
    return ((exact > bound) | ((exact == bound) & ODD)) & (union > 0)


@triton.jit
def _overlaps_kernel(
    boxes, groups, valid, order, output, survivors, fallen, words,
    num_boxes, order_stride, start, chunk, max_output,
    MIDDLE: tl.constexpr, ODD: tl.constexpr, NUM_WORDS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """128 candidates of a chunk against 64 boxes: later ones of the chunk, or (words from NUM_WORDS on) survivors.

    words[image, i, w]: bit j is set if the chunk's box i removes its box 64 * w + j. fallen[image, i] becomes 1 if an
    earlier survivor removes candidate i.
    """
    image = tl.program_id(2).to(tl.int64)
    first_row = tl.program_id(0) * ROWS
    word = tl.program_id(1)
    found = tl.load(survivors + image)
    if found >= max_output:
        return
    boxes += image * num_boxes * 4
    groups += image * num_boxes
    valid += image * num_boxes
    order += image * order_stride + start
    output += image * max_output
    row = first_row + tl.arange(0, ROWS)
    within = word < NUM_WORDS
    if within:
        others = order + word * 64
        limit = tl.minimum(chunk - word * 64, 64)
        last = word * 64 + 63
    else:
        others = output + (word - NUM_WORDS) * 64
        limit = tl.minimum(found - (word - NUM_WORDS) * 64, 64)
        last = chunk
    if (limit <= 0) | (first_row >= tl.minimum(chunk, last)):
        return
    here = row < chunk
    box = tl.load(order + row, mask=here, other=0)
    here = here & (tl.load(valid + box, mask=here, other=0) != 0)
    if tl.max(here.to(tl.int32), axis=0) == 0:
        return
    x1 = tl.load(boxes + box * 4, mask=here, other=0.0)
    y1 = tl.load(boxes + box * 4 + 1, mask=here, other=0.0)
    x2 = tl.load(boxes + box * 4 + 2, mask=here, other=0.0)
    y2 = tl.load(boxes + box * 4 + 3, mask=here, other=0.0)
    group = tl.load(groups + box, mask=here, other=0)
    area = (x2 - x1) * (y2 - y1)
    bits = tl.zeros((ROWS,), tl.int64)
    for j in range(limit):
        other = tl.load(others + j)
        a1, b1 = tl.load(boxes + other * 4), tl.load(boxes + other * 4 + 1)
        a2, b2 = tl.load(boxes + other * 4 + 2), tl.load(boxes + other * 4 + 3)
        width = tl.maximum(tl.minimum(x2, a2) - tl.maximum(x1, a1), 0.0)
        height = tl.maximum(tl.minimum(y2, b2) - tl.maximum(y1, b1), 0.0)
        overlap = width * height
        over = _exceeds(overlap, area + (a2 - a1) * (b2 - b1) - overlap, MIDDLE, ODD)
        over = over & (tl.load(groups + other) == group)
        over = over & ((word * 64 + j > row) | (word >= NUM_WORDS))
        bits |= over.to(tl.int64) << j
    if within:
        tl.store(words + (image * NUM_WORDS * 64 + row) * NUM_WORDS + word, bits, mask=here)
    else:  # several programs may write here, all of them the same
        tl.store(fallen + image * num_boxes + start + row, 1, mask=here & (bits != 0))


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _scan_kernel(
    valid, order, output, survivors, fallen, words,
    num_boxes, order_stride, start, chunk, max_output, NUM_WORDS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One program an image: 64 candidates of the chunk at a time, who survives, and whom the survivors remove."""
    image = tl.program_id(0).to(tl.int64)
    words += image * NUM_WORDS * 64 * NUM_WORDS
    valid += image * num_boxes
    order += image * order_stride + start
    fallen += image * num_boxes + start
    output += image * max_output
    lane, column = tl.arange(0, 64), tl.arange(0, NUM_WORDS)
    removed = tl.zeros((NUM_WORDS,), tl.int64)
    found = tl.load(survivors + image)
    block = 0
    while (block * 64 < chunk) & (found < max_output):
        at = block * 64 + lane
        box = tl.load(order + at, mask=at < chunk, other=0)
        here = (at < chunk) & (tl.load(valid + box, mask=at < chunk, other=0) != 0)
        mine = tl.reduce(tl.where(column == block, removed, 0), 0, _either)
        candidates = here & (((mine >> lane) & 1) == 0) & (tl.load(fallen + at, mask=here, other=0) == 0)
        beats = tl.load(words + at * NUM_WORDS + block, mask=here, other=0)
        # A box survives if no earlier survivor removes it. Repeated from all on, this settles from the first box
        # onwards, in as many rounds as the longest chain of boxes that remove each other.
        alive = candidates
        changed = 1
        while changed > 0:
            falls = tl.reduce(tl.where(alive, beats, 0), 0, _either)
            settled = candidates & (((falls >> lane) & 1) == 0)
            changed = tl.max((settled != alive).to(tl.int32), axis=0)
            alive = settled
        place = found + tl.cumsum(alive.to(tl.int32), axis=0) - 1
        tl.store(output + place, box, mask=alive & (place < max_output))
        bits = tl.reduce(tl.where(alive, tl.full((64,), 1, tl.int64) << lane, 0), 0, _either)
        for part in range(64 // PART):
            row = part * PART + tl.arange(0, PART)
            lives = ((bits >> row) & 1) != 0
            ahead = (column > block) & (column * 64 < chunk)
            reach = tl.load(
                words + (block * 64 + row)[:, None] * NUM_WORDS + column[None, :],
                mask=lives[:, None] & ahead[None, :], other=0,
            )  # fmt: skip
            removed |= tl.reduce(reach, 0, _either)
        found += tl.sum(alive.to(tl.int32), axis=0)
        block += 1
    tl.store(survivors + image, tl.minimum(found, max_output))


def nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float, max_output: int,
    is_sorted: bool,
) -> Tensor:  # fmt: skip
    """`detection.nms.nms` on CUDA: (B, max_output) int64, -1 after the last survivor.

    By chunks of candidates: a matrix of bits says who would remove whom, then one program an image walks along it.
    Chunks after the `max_output`-th survivor cost two empty launches.
    """
    batch_size, num_boxes = scores.shape
    output = torch.full((batch_size, max_output), -1, dtype=torch.int64, device=boxes.device)
    if output.numel() == 0 or num_boxes == 0:
        return output
    if is_sorted:
        order, stride = torch.arange(num_boxes, device=boxes.device), 0  # the same for all images
    else:  # invalid boxes stay where their scores put them, and are passed over
        order, stride = scores.sort(dim=1, descending=True, stable=True).indices.contiguous(), num_boxes
    boxes, groups, valid = boxes.contiguous(), groups.contiguous(), valid.contiguous().view(torch.uint8)
    state = torch.zeros(batch_size * (num_boxes + 1), dtype=torch.int32, device=boxes.device)
    fallen, survivors = state[: batch_size * num_boxes], state[batch_size * num_boxes :]
    size = max(64, min(CHUNK, triton.next_power_of_2(num_boxes)))
    num_words = size // 64
    words = torch.empty(batch_size, size, num_words, dtype=torch.int64, device=boxes.device)
    middle, odd = _middle(iou_threshold)
    for start in range(0, num_boxes, size):
        chunk = min(size, num_boxes - start)
        earlier = triton.cdiv(min(start, max_output), 64)
        _overlaps_kernel[(triton.cdiv(chunk, ROWS), num_words + earlier, batch_size)](
            boxes, groups, valid, order, output, survivors, fallen, words, num_boxes, stride, start, chunk, max_output,
            MIDDLE=middle, ODD=odd, NUM_WORDS=num_words, ROWS=ROWS, num_warps=ROWS // 32,
            enable_fp_fusion=False,  # a fused multiply-add rounds otherwise than torchvision
        )  # fmt: skip
        _scan_kernel[(batch_size,)](
            valid, order, output, survivors, fallen, words, num_boxes, stride, start, chunk, max_output,
            NUM_WORDS=num_words, PART=16, num_warps=4,
        )  # fmt: skip
    return output


@functools.cache
def _middle(threshold: float) -> tuple[float, bool]:
    """Half way between the last float32 that is not above a threshold and the next one; whether the former is odd."""
    lower = np.float32(threshold)
    if float(lower) > threshold:
        lower = np.nextafter(lower, np.float32(-np.inf))
    upper = np.nextafter(lower, np.float32(np.inf))
    return (float(lower) + float(upper)) / 2, bool(lower.view(np.int32) & 1)


@triton.jit
def _edge(position, length):
    """Both pixels along one axis that a sample lies between, the second one's weight, and whether it counts."""
    counts = (position >= -1.0) & (position <= length)
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    first = position.to(tl.int32)
    second = tl.minimum(first + 1, length - 1)
    return first, second, position - first.to(tl.float32), counts


@triton.jit
def _axis(low, high, SIZE: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr):
    """Start of an RoI along one axis, size of a bin, samples a bin; in feature pixels."""
    extent = high - low
    if ALIGNED:
        low -= 0.5
    else:
        extent = tl.maximum(extent, 1.0)
    size = tl.div_rn(extent, SIZE * 1.0)
    if RATIO > 0:
        samples = RATIO
    else:
        samples = tl.ceil(size).to(tl.int32)
    return low, size, samples


@triton.jit
def _roi_align_kernel(
    feature, rois, output, num_rois, channels, height, width, scale,
    SIZE: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, a single warp, a bin and block of channels: what is the same for all channels is computed once."""
    bin_index = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    roi = bin_index // (SIDE * SIDE)
    bin_y = bin_index // SIDE % SIDE
    bin_x = bin_index % SIDE
    rois += roi * 4
    top, bin_height, samples_y = _axis(tl.load(rois + 1) * scale, tl.load(rois + 3) * scale, SIZE, RATIO, ALIGNED)
    left, bin_width, samples_x = _axis(tl.load(rois) * scale, tl.load(rois + 2) * scale, SIZE, RATIO, ALIGNED)
    top += bin_y * STEP * bin_height
    left += bin_x * STEP * bin_width
    feature += (roi // num_rois).to(tl.int64) * height * width * channels
    total = tl.zeros((BLOCK,), tl.float32)
    for sample in range(samples_y * samples_x):
        y = top + (sample // samples_x + 0.5) * bin_height / samples_y
        x = left + (sample % samples_x + 0.5) * bin_width / samples_x
        y_low, y_high, down, y_counts = _edge(y, height)
        x_low, x_high, right, x_counts = _edge(x, width)
        if y_counts & x_counts:
            a = feature + (y_low * width + x_low) * channels + channel
            b = feature + (y_low * width + x_high) * channels + channel
            c = feature + (y_high * width + x_low) * channels + channel
            d = feature + (y_high * width + x_high) * channels + channel
            total += tl.load(a, mask=mask, other=0.0).to(tl.float32) * ((1 - down) * (1 - right))
            total += tl.load(b, mask=mask, other=0.0).to(tl.float32) * ((1 - down) * right)
            total += tl.load(c, mask=mask, other=0.0).to(tl.float32) * (down * (1 - right))
            total += tl.load(d, mask=mask, other=0.0).to(tl.float32) * (down * right)
    total = total / tl.maximum(samples_y * samples_x, 1)
    tl.store(output + bin_index.to(tl.int64) * channels + channel, total.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _reaching(start, stop, low, size, length, STEP: tl.constexpr, SIDE: tl.constexpr):
    """The first of the bins along one axis whose samples may weigh on pixels start..stop - 1, and the last + 1.

    Samples up to a pixel beyond the map count at its edge, so the outer pixels reach further.
    """
    lowest = tl.where(start <= 0, -2.0, start - 1.0)
    highest = tl.where(stop >= length, length + 1.0, stop * 1.0)
    pace = size * STEP
    first = tl.floor((lowest - low - size) / pace)
    last = tl.floor((highest - low) / pace) + 1
    # An RoI without extent, or turned inside out (RATIO > 0 samples it): any bin may.
    first = tl.where(pace > 0, tl.minimum(tl.maximum(first, 0.0), SIDE * 1.0), 0.0)
    last = tl.where(pace > 0, tl.minimum(tl.maximum(last, 0.0), SIDE * 1.0), SIDE * 1.0)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit
def _weight(pixel, position, length):
    """What a sample at `position` along one axis takes of a pixel, or of each of several."""
    counts = (position >= -1.0) & (position <= length)
    place = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    return tl.where(counts, tl.maximum(1.0 - tl.abs(place - pixel), 0.0), 0.0)


@triton.jit
def _reach_kernel(
    rois, words, summaries, num_rois, height, width, scale, tiles,
    SIZE: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """One program a row of an image: which RoIs may weigh on each run of TILE pixels.

    words[run, g]: bit k is set if RoI 32 * g + k does. summaries[run, h]: bit k is set if word 32 * h + k is not 0.
    """
    row = tl.program_id(0)
    image = row // height
    y = row % height
    run, lane = tl.arange(0, RUNS), tl.arange(0, 32)
    one = tl.full((32,), 1, tl.int32)
    num_words = (num_rois + 31) // 32
    num_summaries = (num_words + 31) // 32
    within = run < tiles
    run_of_all = row.to(tl.int64) * tiles + run
    summary = tl.zeros((RUNS,), tl.int32)
    for word in range(num_words):
        roi = word * 32 + lane
        here = roi < num_rois
        box = rois + (image * num_rois + roi) * 4
        x1, y1 = tl.load(box, mask=here, other=0.0) * scale, tl.load(box + 1, mask=here, other=0.0) * scale
        x2, y2 = tl.load(box + 2, mask=here, other=0.0) * scale, tl.load(box + 3, mask=here, other=0.0) * scale
        top, bin_height, samples_y = _axis(y1, y2, SIZE, RATIO, ALIGNED)
        left, bin_width, samples_x = _axis(x1, x2, SIZE, RATIO, ALIGNED)
        first_y, last_y = _reaching(y, y + 1, top, bin_height, height, STEP, SIDE)
        start = (run * TILE)[:, None]
        first_x, last_x = _reaching(start, start + TILE, left[None, :], bin_width[None, :], width, STEP, SIDE)
        here = here & (samples_y > 0) & (samples_x > 0) & (first_y < last_y)
        bits = tl.reduce(tl.where(here[None, :] & (first_x < last_x), (one << lane)[None, :], 0), 1, _either)
        tl.store(words + run_of_all * num_words + word, bits, mask=within)
        summary |= tl.where(bits != 0, 1, 0) << (word % 32)
        if (word % 32 == 31) | (word == num_words - 1):
            tl.store(summaries + run_of_all * num_summaries + word // 32, summary, mask=within)
            summary = tl.zeros((RUNS,), tl.int32)


@triton.jit
def _lowest(bits):
    """The place of the lowest bit of a positive int64 under 2^32: the exponent of a power of two as a float32."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _roi_align_backward_kernel(
    bins, rois, words, summaries, output, num_rois, channels, height, width, scale, tiles,
    SIZE: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    TILE: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a run of TILE pixels of a row and block of channels gathers what all bins send there, RoI by RoI.

    The sum of one pixel is one program's, always in the same order: no atomics, no float32 map, and deterministic.
    The weight of a pixel in a bin is a product of one along y and one along x: the bins of an RoI that reach the row
    are summed along y first, and a small matrix product does the rest.
    """
    run = tl.program_id(0)
    image = run // (height * tiles)
    y = run // tiles % height
    start = run % tiles * TILE
    x = start + tl.arange(0, TILE)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    column = tl.arange(0, BINS)
    total = tl.zeros((TILE, BLOCK), tl.float32)
    num_words = (num_rois + 31) // 32
    num_summaries = (num_words + 31) // 32
    for part in range(num_summaries):
        summary = tl.load(summaries + run.to(tl.int64) * num_summaries + part).to(tl.int64) & 0xFFFFFFFF
        while summary != 0:
            word = part * 32 + _lowest(summary)
            summary &= summary - 1
            bits = tl.load(words + run.to(tl.int64) * num_words + word).to(tl.int64) & 0xFFFFFFFF
            while bits != 0:
                roi = image * num_rois + word * 32 + _lowest(bits)
                bits &= bits - 1
                box = rois + roi * 4
                top, bin_height, samples_y = _axis(
                    tl.load(box + 1) * scale, tl.load(box + 3) * scale, SIZE, RATIO, ALIGNED
                )
                left, bin_width, samples_x = _axis(tl.load(box) * scale, tl.load(box + 2) * scale, SIZE, RATIO, ALIGNED)
                first_y, last_y = _reaching(y, y + 1, top, bin_height, height, STEP, SIDE)
                first_x, last_x = _reaching(start, start + TILE, left, bin_width, width, STEP, SIDE)
                reaches = (column >= first_x) & (column < last_x)
                across = tl.zeros((TILE, BINS), tl.float32)
                for sample in range(samples_x):
                    position = left + column * STEP * bin_width + (sample + 0.5) * bin_width / samples_x
                    across += _weight(x[:, None], position[None, :], width)
                across = tl.where(reaches[None, :], across / (samples_y * samples_x), 0.0)
                value = tl.zeros((BINS, BLOCK), tl.float32)
                for i in range(first_y, last_y):
                    down = 0.0
                    for sample in range(samples_y):
                        position = top + i * STEP * bin_height + (sample + 0.5) * bin_height / samples_y
                        down += _weight(y, position, height)
                    cell = ((roi * SIDE + i) * SIDE + column).to(tl.int64) * channels
                    sent = tl.load(
                        bins + cell[:, None] + channel[None, :], mask=reaches[:, None] & inside[None, :], other=0.0
                    )
                    value += sent.to(tl.float32) * down
                total = tl.dot(across, value, total, input_precision=PRECISION)
    place = ((image * height + y) * width + x).to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(output + place, total.to(output.dtype.element_ty), mask=(x < width)[:, None] & inside[None, :])


def roi_align(
    feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """`detection.roi_align.roi_align` on CUDA."""
    _, channels, height, width = feature.shape
    rows = feature.permute(0, 2, 3, 1).contiguous()  # no copy of a channels_last map
    side = -(-size // step)
    shape = (rois.shape[0] * rois.shape[1], channels, side, side)
    bins = torch.empty(shape, dtype=feature.dtype, device=feature.device, memory_format=torch.channels_last)
    if bins.numel() == 0:
        return bins
    block = min(MAX_CHANNELS, triton.next_power_of_2(channels))
    _roi_align_kernel[(shape[0] * side * side, triton.cdiv(channels, block))](
        rows, rois.contiguous(), bins, rois.shape[1], channels, height, width, scale,
        SIZE=size, SIDE=side, STEP=step, RATIO=sampling_ratio, ALIGNED=aligned, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return bins


def roi_align_backward(
    gradient: Tensor, feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int,
    aligned: bool,
) -> Tensor:  # fmt: skip
    """`detection.roi_align.roi_align_backward` on CUDA; sums are float32, in a fixed order."""
    batch, channels, height, width = feature.shape
    bins = gradient.permute(0, 2, 3, 1).contiguous()
    result = torch.empty(feature.shape, dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
    rows, tiles = batch * height, triton.cdiv(width, TILE)
    block = min(GATHERED_CHANNELS, max(16, triton.next_power_of_2(channels)))
    if not result.numel():
        return result
    rois, num_rois, side = rois.contiguous(), rois.shape[1], -(-size // step)
    num_words = triton.cdiv(num_rois, 32)
    found = torch.empty(rows * tiles * (num_words + triton.cdiv(num_words, 32)), dtype=torch.int32, device=rois.device)
    words, summaries = found[: rows * tiles * num_words], found[rows * tiles * num_words :]
    constants = {"SIZE": size, "SIDE": side, "STEP": step, "RATIO": sampling_ratio, "ALIGNED": aligned, "TILE": TILE}
    if num_rois:
        _reach_kernel[(rows,)](
            rois, words, summaries, num_rois, height, width, scale, tiles,
            **constants, RUNS=triton.next_power_of_2(tiles), num_warps=4,
        )  # fmt: skip
    _roi_align_backward_kernel[(rows * tiles, triton.cdiv(channels, block))](
        bins, rois, words, summaries, result, num_rois, channels, height, width, scale, tiles,
        **constants, BINS=max(16, triton.next_power_of_2(side)), BLOCK=block,
        PRECISION="ieee" if gradient.dtype == torch.float32 else "tf32", num_warps=4, maxnreg=GATHER_REGISTERS,
    )  # fmt: skip
    return result
