"""Non-maximum suppression and RoIAlign for CUDA, in Triton: outputs of fixed size, nothing that the host waits for.

Imported only where Triton is installed (`backbones.kernels`). The CPU's operators are the oracle: with
TRITON_INTERPRET=1 the kernels run on the CPU, and the tests compare them there.

Shapes: B images, N boxes, R RoIs an image, C channels, S bins a side, T = ceil(S / step) that are computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Boxes that are judged together, and survivors that they are compared with at a time."""
MAX_CHANNELS = 512
"""Channels that one program holds."""


@triton.jit
def _load_boxes(boxes, at, mask):
    """x1, y1, x2, y2 and area of the boxes at the given rows."""
    x1 = tl.load(boxes + at * 4, mask=mask, other=0.0)
    y1 = tl.load(boxes + at * 4 + 1, mask=mask, other=0.0)
    x2 = tl.load(boxes + at * 4 + 2, mask=mask, other=0.0)
    y2 = tl.load(boxes + at * 4 + 3, mask=mask, other=0.0)
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


@triton.jit
def _overlaps(ax1, ay1, ax2, ay2, a_area, bx1, by1, bx2, by2, b_area, threshold):
    """(I, J) bool: intersection over union of a (I,) with b (J,) above the threshold, as torchvision computes it."""
    width = tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :])
    height = tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :])
    intersection = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    union = a_area[:, None] + b_area[None, :] - intersection
    return tl.div_rn(intersection, tl.maximum(union, 1e-30)) > threshold


@triton.jit
def _nms_kernel(boxes, groups, counts, order, output, kept, num_boxes, threshold, max_output, BLOCK: tl.constexpr):
    """One program an image: blocks of boxes by descending score, each against all survivors and then against itself.

    Ends with `max_output` survivors. `kept` (B, max_output) int64 is scratch: their positions in the sorted order.
    """
    image = tl.program_id(0).to(tl.int64)
    boxes += image * num_boxes * 4
    groups += image * num_boxes
    order += image * num_boxes
    output += image * max_output
    kept += image * max_output
    count = tl.load(counts + image)
    lane = tl.arange(0, BLOCK)
    survivors = 0
    start = 0
    while (start < count) & (survivors < max_output):
        at = start + lane
        here = at < count
        x1, y1, x2, y2, area = _load_boxes(boxes, at, here)
        group = tl.load(groups + at, mask=here, other=-1)
        alive = here.to(tl.int32)
        done = 0
        while done < survivors:
            earlier = done + lane < survivors
            row = tl.load(kept + done + lane, mask=earlier, other=0)
            kx1, ky1, kx2, ky2, k_area = _load_boxes(boxes, row, earlier)
            k_group = tl.load(groups + row, mask=earlier, other=-2)
            falls = _overlaps(kx1, ky1, kx2, ky2, k_area, x1, y1, x2, y2, area, threshold)
            falls = falls & (k_group[:, None] == group[None, :]) & earlier[:, None]
            alive = alive * (1 - tl.max(falls.to(tl.int32), axis=0))
            done += BLOCK
        beats = _overlaps(x1, y1, x2, y2, area, x1, y1, x2, y2, area, threshold)
        beats = beats & (group[:, None] == group[None, :]) & (lane[:, None] < lane[None, :])
        # A box survives if no earlier survivor beats it. Repeated from all on, this settles from the first box onwards,
        # in as many rounds as the longest chain of boxes that beat each other.
        candidates = alive
        changed = 1
        while changed > 0:
            # alive as a column: on the diagonal of a square, summed along its rows
            column = tl.sum(tl.where(lane[:, None] == lane[None, :], alive[None, :], 0), axis=1)
            settled = candidates * (1 - tl.max(beats.to(tl.int32) * column[:, None], axis=0))
            changed = tl.max(tl.abs(settled - alive), axis=0)
            alive = settled
        place = survivors + tl.cumsum(alive, axis=0) - 1
        wanted = (alive > 0) & (place < max_output)
        tl.store(kept + place, at.to(tl.int64), mask=wanted)
        tl.store(output + place, tl.load(order + at, mask=wanted, other=0), mask=wanted)
        tl.debug_barrier()  # the next block reads `kept`, written by other threads
        survivors += tl.sum(alive, axis=0)
        start += BLOCK


def nms(boxes: Tensor, scores: Tensor, valid: Tensor, groups: Tensor, iou_threshold: float, max_output: int) -> Tensor:
    """`detection.nms.nms` on CUDA: (B, max_output) int64, -1 after the last survivor."""
    batch_size, num_boxes = scores.shape
    output = torch.full((batch_size, max_output), -1, dtype=torch.int64, device=boxes.device)
    if output.numel() == 0 or num_boxes == 0:
        return output
    order = torch.where(valid, scores, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    _nms_kernel[(batch_size,)](
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        groups.gather(1, order),
        valid.sum(1),
        order,
        output,
        torch.empty_like(output),
        num_boxes,
        iou_threshold,
        max_output,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=False,  # a fused multiply-add rounds otherwise than torchvision
    )
    return output


@triton.jit
def _edge(position, length):
    """Both pixels along one axis that a sample lies between, the second one's weight, and whether it counts."""
    counts = (position >= -1.0) & (position <= length)
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    first = position.to(tl.int32)
    second = tl.minimum(first + 1, length - 1)
    return first, second, position - first.to(tl.float32), counts


@triton.jit
def _bin(rois, roi, bin_y, bin_x, scale, SIZE: tl.constexpr, STEP: tl.constexpr, RATIO: tl.constexpr,
         ALIGNED: tl.constexpr):  # fmt: skip
    """Corner, size and numbers of samples (y, x) of one bin of one RoI, in feature pixels."""
    x1 = tl.load(rois + roi * 4) * scale
    y1 = tl.load(rois + roi * 4 + 1) * scale
    width = tl.load(rois + roi * 4 + 2) * scale - x1
    height = tl.load(rois + roi * 4 + 3) * scale - y1
    if ALIGNED:
        x1 -= 0.5
        y1 -= 0.5
    else:
        width = tl.maximum(width, 1.0)
        height = tl.maximum(height, 1.0)
    width = tl.div_rn(width, SIZE * 1.0)
    height = tl.div_rn(height, SIZE * 1.0)
    if RATIO > 0:
        samples_y = RATIO
        samples_x = RATIO
    else:
        samples_y = tl.ceil(height).to(tl.int32)
        samples_x = tl.ceil(width).to(tl.int32)
    return y1 + bin_y * STEP * height, x1 + bin_x * STEP * width, height, width, samples_y, samples_x


@triton.jit
def _roi_align_kernel(
    feature, rois, output, num_rois, channels, height, width, scale,
    SIZE: tl.constexpr, SIDE: tl.constexpr, STEP: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a bin and block of channels. Forward: `feature` -> `output`. Backward: adds `output`, the gradient
    of the bins, to `feature`, the float32 gradient of the map."""
    bin_index = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    roi = bin_index // (SIDE * SIDE)
    bin_y = bin_index // SIDE % SIDE
    bin_x = bin_index % SIDE
    top, left, bin_height, bin_width, samples_y, samples_x = _bin(
        rois, roi, bin_y, bin_x, scale, SIZE, STEP, RATIO, ALIGNED
    )
    feature += (roi // num_rois).to(tl.int64) * height * width * channels
    cell = output + bin_index.to(tl.int64) * channels + channel
    count = tl.maximum(samples_y * samples_x, 1)
    total = tl.zeros((BLOCK,), tl.float32)
    if BACKWARD:
        total += tl.load(cell, mask=mask, other=0.0).to(tl.float32)
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
            if BACKWARD:
                share = total / count
                tl.atomic_add(a, share * ((1 - down) * (1 - right)), mask=mask, sem="relaxed")
                tl.atomic_add(b, share * ((1 - down) * right), mask=mask, sem="relaxed")
                tl.atomic_add(c, share * (down * (1 - right)), mask=mask, sem="relaxed")
                tl.atomic_add(d, share * (down * right), mask=mask, sem="relaxed")
            else:
                total += tl.load(a, mask=mask, other=0.0).to(tl.float32) * ((1 - down) * (1 - right))
                total += tl.load(b, mask=mask, other=0.0).to(tl.float32) * ((1 - down) * right)
                total += tl.load(c, mask=mask, other=0.0).to(tl.float32) * (down * (1 - right))
                total += tl.load(d, mask=mask, other=0.0).to(tl.float32) * (down * right)
    if not BACKWARD:
        tl.store(cell, (total / count).to(output.dtype.element_ty), mask=mask)


def _launch_roi_align(
    feature: Tensor, rois: Tensor, bins: Tensor, scale: float, size: int, step: int, sampling_ratio: int,
    aligned: bool, *, backward: bool,
) -> None:  # fmt: skip
    """Runs the kernel on rows: feature (B, H, W, C) and bins (B * R, T, T, C), both contiguous."""
    _, height, width, channels = feature.shape
    block = min(MAX_CHANNELS, triton.next_power_of_2(channels))
    side = -(-size // step)
    grid = (bins.shape[0] * side * side, triton.cdiv(channels, block))
    if bins.numel() == 0:
        return
    _roi_align_kernel[grid](
        feature, rois.contiguous(), bins, rois.shape[1], channels, height, width, scale,
        SIZE=size, SIDE=side, STEP=step, RATIO=sampling_ratio, ALIGNED=aligned, BACKWARD=backward, BLOCK=block,
        num_warps=4 if block > 128 else 1,
    )  # fmt: skip


def roi_align(
    feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """`detection.roi_align.roi_align` on CUDA."""
    rows = feature.permute(0, 2, 3, 1).contiguous()  # no copy of a channels_last map
    side = -(-size // step)
    shape = (rois.shape[0] * rois.shape[1], feature.shape[1], side, side)
    bins = torch.empty(shape, dtype=feature.dtype, device=feature.device, memory_format=torch.channels_last)
    _launch_roi_align(rows, rois, bins.permute(0, 2, 3, 1), scale, size, step, sampling_ratio, aligned, backward=False)
    return bins


def roi_align_backward(
    gradient: Tensor, feature: Tensor, rois: Tensor, scale: float, size: int, step: int, sampling_ratio: int,
    aligned: bool,
) -> Tensor:  # fmt: skip
    """`detection.roi_align.roi_align_backward` on CUDA; float32 atomic sums, whose order varies."""
    bins = gradient.permute(0, 2, 3, 1).contiguous()
    total = torch.zeros_like(feature, dtype=torch.float32, memory_format=torch.channels_last)
    _launch_roi_align(total.permute(0, 2, 3, 1), rois, bins, scale, size, step, sampling_ratio, aligned, backward=True)
    return total.to(gradient.dtype)
