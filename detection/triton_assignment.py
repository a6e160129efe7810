"""Matching with ground truth and random keys for CUDA, in Triton: some kernels in the place of dozens.

Imported only where Triton is installed (`backbones.kernels`); the oracles are `matching.match` and
`sampling.random_keys`, with which the tests compare these in Triton's interpreter.

Shapes: B images, G padded ground-truth boxes, N candidates.
"""

# Launches have options that a kernel's signature lacks, and constants are given as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from detection.boxes import MAX_LOG_RATIO
from detection.sampling import PLACE_BITS

BLOCK = 256


@triton.jit
def _mix32(x, mask):
    """`sampling._mix32`; the second factor less 2^32, which the mask cuts off, for constants are signed here."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask
    x = ((x ^ (x >> 15)) * (0x846CA68B - (1 << 32))) & mask
    return x ^ (x >> 16)


@triton.jit
def _mix_step(seed, iteration, purpose, mask):
    """`sampling._mix_step`, of a seed that is mixed."""
    low = (iteration << 8) | purpose
    second, third = (low >> 32) | ((seed << 8) & mask), seed >> 24
    mixed = _mix32(low & mask, mask)
    mixed = tl.where((second | third) != 0, _mix32(mixed ^ second, mask), mixed)
    return tl.where(third != 0, _mix32(mixed ^ third, mask), mixed)


@triton.jit(do_not_specialize=["step", "purpose"])
def _keys_kernel(
    image_index, codes, keys, iteration, count, step, purpose, mask, PLACE_BITS: tl.constexpr,
    REPLAYED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """keys[image, candidate] = hash << PLACE_BITS | candidate; `mask` is 2^32 - 1. REPLAYED: `step` is the seed alone,
    and the iteration lies in memory."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    code = tl.load(codes + at, mask=at < count, other=0)
    number = step.to(tl.int64) & mask
    if REPLAYED:
        number = _mix_step(number, tl.load(iteration), purpose.to(tl.int64), mask)
    of_image = _mix32((tl.load(image_index + image) ^ number) & mask, mask)
    hashed = _mix32(_mix32((code ^ (code >> 32)) & mask, mask) ^ of_image, mask)
    tl.store(keys + image * count + at, (hashed << PLACE_BITS) | at.to(tl.int64), mask=at < count)


def random_keys(
    step: int, image_index: Tensor, codes: Tensor, iteration: Tensor | None = None, purpose: int = 0
) -> Tensor:
    """`detection.sampling.random_keys`; `step`, below 2^32, is what it mixes seed, iteration and purpose to; with an
    iteration on the device, the seed alone."""
    keys = torch.empty(len(image_index), len(codes), dtype=torch.int64, device=codes.device)
    signed = step - (1 << 32) if step >= 1 << 31 else step  # always an int32: one kernel for all steps
    if keys.numel():
        _keys_kernel[(triton.cdiv(len(codes), BLOCK), len(image_index))](
            image_index, codes, keys, image_index if iteration is None else iteration, len(codes), signed, purpose,
            (1 << 32) - 1, PLACE_BITS=PLACE_BITS, REPLAYED=iteration is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return keys


@triton.jit
def _decode_kernel(
    deltas, rows, references, places, weights, image_sizes, boxes, usable, count, delta_stride, reference_stride,
    min_size, limit, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """boxes[image, i] = reference places[i] moved by deltas rows[i], cut to the image; usable where large enough."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    row = deltas + image * delta_stride + tl.load(rows + image * count + at, mask=here, other=0) * 4
    reference = references + image * reference_stride + tl.load(places + image * count + at, mask=here, other=0) * 4
    dx, dy = tl.load(row, mask=here, other=0.0), tl.load(row + 1, mask=here, other=0.0)
    dw, dh = tl.load(row + 2, mask=here, other=0.0), tl.load(row + 3, mask=here, other=0.0)
    if WEIGHTED:
        dx, dy = tl.div_rn(dx, tl.load(weights)), tl.div_rn(dy, tl.load(weights + 1))
        dw, dh = tl.div_rn(dw, tl.load(weights + 2)), tl.div_rn(dh, tl.load(weights + 3))
    x1, y1 = tl.load(reference, mask=here, other=0.0), tl.load(reference + 1, mask=here, other=0.0)
    width = tl.load(reference + 2, mask=here, other=0.0) - x1
    height = tl.load(reference + 3, mask=here, other=0.0) - y1
    x, y = dx * width + (x1 + 0.5 * width), dy * height + (y1 + 0.5 * height)
    # where, not minimum: NaN stays NaN, and such a box is not usable
    half_width = 0.5 * (tl.exp(tl.where(dw > limit, limit, dw)) * width)
    half_height = 0.5 * (tl.exp(tl.where(dh > limit, limit, dh)) * height)
    bottom = tl.load(image_sizes + image * 2).to(tl.float32)
    right = tl.load(image_sizes + image * 2 + 1).to(tl.float32)
    left_x, right_x = _cut(x - half_width, right), _cut(x + half_width, right)
    top_y, bottom_y = _cut(y - half_height, bottom), _cut(y + half_height, bottom)
    output = boxes + (image * count + at) * 4
    tl.store(output, left_x, mask=here)
    tl.store(output + 1, top_y, mask=here)
    tl.store(output + 2, right_x, mask=here)
    tl.store(output + 3, bottom_y, mask=here)
    large = (right_x - left_x >= min_size) & (bottom_y - top_y >= min_size)
    tl.store(usable + image * count + at, large.to(tl.uint8), mask=here)


@triton.jit
def _cut(x, most):
    x = tl.where(x < 0.0, 0.0, x)
    return tl.where(x > most, most, x)


def decode_clipped(
    deltas: Tensor, rows: Tensor, references: Tensor, places: Tensor, weights: Tensor | None, image_sizes: Tensor,
    min_size: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`detection.boxes.decode_clipped` on CUDA."""
    boxes = torch.empty(*rows.shape, 4, device=deltas.device)
    usable = torch.empty(rows.shape, dtype=torch.uint8, device=deltas.device)
    deltas, references = deltas.contiguous(), references.contiguous()
    shared = len(references) == 1 < len(deltas)
    if usable.numel():
        _decode_kernel[(triton.cdiv(rows.shape[1], BLOCK), len(rows))](
            deltas, rows.contiguous(), references, places.contiguous(), deltas if weights is None else weights,
            image_sizes.contiguous(), boxes, usable, rows.shape[1], deltas.shape[1] * 4,
            0 if shared else references.shape[1] * 4, min_size, MAX_LOG_RATIO,
            WEIGHTED=weights is not None, BLOCK=BLOCK,
        )  # fmt: skip
    return boxes, usable.view(torch.bool)


@triton.jit
def _match_kernel(
    boxes, valid, candidates, candidate_valid, best_of_object, iou, index, is_best, num_objects, num_candidates, stride,
    MASKED: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First: each candidate's best object, and each object's largest overlap, as the bits of a float32 (larger floats
    that are not negative have larger bits). Second: whether a candidate has the largest overlap of some object."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = at < num_candidates
    row = candidates + image * stride + at * 4
    x1, y1 = tl.load(row, mask=here, other=0.0), tl.load(row + 1, mask=here, other=0.0)
    x2, y2 = tl.load(row + 2, mask=here, other=0.0), tl.load(row + 3, mask=here, other=0.0)
    area = (x2 - x1) * (y2 - y1)
    usable = here
    if MASKED:
        usable = here & (tl.load(candidate_valid + image * num_candidates + at, mask=here, other=0) != 0)
    best = tl.full((BLOCK,), -1.0, tl.float32)
    best_index = tl.zeros((BLOCK,), tl.int64)
    claims = tl.zeros((BLOCK,), tl.int32)
    for k in range(num_objects):
        number = image * num_objects + k
        if tl.load(valid + number) != 0:
            a1, b1 = tl.load(boxes + number * 4), tl.load(boxes + number * 4 + 1)
            a2, b2 = tl.load(boxes + number * 4 + 2), tl.load(boxes + number * 4 + 3)
            width = tl.maximum(tl.minimum(a2, x2) - tl.maximum(a1, x1), 0.0)
            height = tl.maximum(tl.minimum(b2, y2) - tl.maximum(b1, y1), 0.0)
            overlap = width * height
            union = ((a2 - a1) * (b2 - b1) + area) - overlap
            value = tl.where(usable, tl.div_rn(overlap, tl.maximum(union, 1e-12)), -1.0)
            bits = tl.where(value > 0, value.to(tl.int32, bitcast=True), 0)
            if SECOND:
                largest = tl.load(best_of_object + number)
                claims |= ((bits == largest) & (largest > 0)).to(tl.int32)
            else:
                best_index = tl.where(value > best, k, best_index)
                best = tl.maximum(best, value)
                tl.atomic_max(best_of_object + number, tl.max(bits, axis=0), sem="relaxed")
    at += image * num_candidates
    if SECOND:
        tl.store(is_best + at, claims.to(tl.uint8), mask=here)
    else:
        tl.store(iou + at, best, mask=here)
        tl.store(index + at, best_index, mask=here)


def match(
    boxes: Tensor, valid: Tensor, candidates: Tensor, candidate_valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`detection.matching.match`: its three parts."""
    (batch, objects), count = valid.shape, candidates.shape[1]
    iou = torch.empty(batch, count, device=boxes.device)
    index = torch.empty(batch, count, dtype=torch.int64, device=boxes.device)
    is_best = torch.empty(batch, count, dtype=torch.uint8, device=boxes.device)
    best_of_object = torch.zeros(batch, objects, dtype=torch.int32, device=boxes.device)
    boxes, candidates = boxes.contiguous(), candidates.contiguous()
    valid = valid.contiguous().view(torch.uint8)
    mask = valid if candidate_valid is None else candidate_valid.contiguous().view(torch.uint8)
    stride = candidates.shape[1] * 4 if len(candidates) > 1 or batch == 1 else 0
    for second in (False, True) if iou.numel() else ():
        _match_kernel[(triton.cdiv(count, BLOCK), batch)](
            boxes, valid, candidates, mask, best_of_object, iou, index, is_best, objects, count, stride,
            MASKED=candidate_valid is not None, SECOND=second, BLOCK=BLOCK,
            enable_fp_fusion=False,  # overlaps must come out as the CPU's, and twice the same
        )  # fmt: skip
    return iou, index, is_best.view(torch.bool)
