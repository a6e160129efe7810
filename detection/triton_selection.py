"""The best candidates and the random samples of a batch for CUDA, in Triton: a kernel each in the place of dozens.

torch's `topk` and `sort` are up to twenty kernels a call. Here one program looks through the candidates of an image (or
of one level of it), digit by digit of their keys from the highest on, until it knows which key is the last one taken;
then it writes the taken ones. Among equal keys the first ones are taken.

Imported only where Triton is installed (`backbones.kernels`); the oracles are `rpn.best_of_levels` and
`sampling.sample`, with which the tests compare these in Triton's interpreter.

Shapes: B images, N candidates, L levels, M of the candidates that are taken, S places of a sample.
"""

# Launches have options that a kernel's signature lacks, and constants are given as plain numbers.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from backbones.kernels import constant
from detection.sampling import PLACE_BITS

BLOCK = 2048
"""Candidates that a program looks at a time, 4 a thread."""
WARPS = 16


@triton.jit
def _keys(values, chosen, at, here, FLOATS: tl.constexpr):
    """Keys of candidates, int64 and not negative, and which of them take part: float32 by their order, NaN first, or
    int64 as they are, where `chosen`."""
    if FLOATS:
        value = tl.load(values + at, mask=here, other=0.0)
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value != value, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
        key = bits.to(tl.int64) + 0x80000000
    else:
        key = tl.load(values + at, mask=here, other=0)
        here = here & (tl.load(chosen + at, mask=here, other=0) != 0)
    return key, here


@triton.jit
def _threshold(
    values, chosen, count, wanted, FLOATS: tl.constexpr, BLOCK: tl.constexpr, DIGIT: tl.constexpr = 11
):  # fmt: skip
    """(prefix, shift, ties): taken are keys whose upper digits, key >> shift, are above `prefix`, and the first `ties`
    of those where they equal it. That makes `wanted` of `count` candidates, or all if there are fewer. A digit has
    DIGIT bits; float32 have 32, other keys at most 55."""
    digits = tl.arange(0, 1 << DIGIT)
    shift = 2 * DIGIT if FLOATS else 4 * DIGIT
    shift += tl.zeros((), tl.int32)
    prefix = tl.zeros((), tl.int64)
    ties = wanted + tl.zeros((), tl.int32)
    searching = 1
    while searching > 0:
        numbers = tl.zeros((1 << DIGIT,), tl.int32)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            key, here = _keys(values, chosen, at, at < count, FLOATS)
            here = here & ((key >> shift >> DIGIT) == prefix)
            digit = ((key >> shift) & ((1 << DIGIT) - 1)).to(tl.int32)
            numbers += tl.histogram(digit, 1 << DIGIT, mask=here)
        from_here_on = tl.cumsum(numbers, axis=0, reverse=True)
        digit = tl.sum((from_here_on >= ties).to(tl.int32), axis=0) - 1
        if digit < 0:  # there are fewer than wanted: only at the first digit
            prefix -= 1
            searching = 0
            shift = shift * 0
        else:
            equal = tl.sum(tl.where(digits == digit, numbers, 0), axis=0)
            ties -= tl.sum(tl.where(digits > digit, numbers, 0), axis=0)
            prefix = (prefix << DIGIT) | digit.to(tl.int64)
            searching = ((equal != ties) & (shift > 0)).to(tl.int32)
            shift -= searching * DIGIT
    return prefix, shift, ties


@triton.jit
def _take(
    values, chosen, count, prefix, shift, ties, index, scores, groups, first, group, FLOATS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the taken ones in the order of their places, and how many they are: of floats the place, counted from
    `first`, and the value; of others the key."""
    written = tl.zeros((), tl.int32)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key, here = _keys(values, chosen, at, at < count, FLOATS)
        upper = key >> shift
        equal = (here & (upper == prefix)).to(tl.int32)
        taken = here & ((upper > prefix) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= ties)))
        place = written + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        tl.store(index + place, (first + at).to(tl.int64) if FLOATS else key, mask=taken)
        if FLOATS:
            tl.store(scores + place, tl.load(values + at, mask=taken, other=0.0), mask=taken)
            tl.store(groups + place, tl.zeros((BLOCK,), tl.int64) + group, mask=taken)
        ties -= tl.sum(equal, axis=0)
        written += tl.sum(taken.to(tl.int32), axis=0)
    return written


@triton.jit
def _best_kernel(
    logits, plan, index, scores, levels, num_candidates, num_taken, FLOATS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a level and image; plan (L, 4): the level's first candidate, how many, how many of them are taken,
    and where they go."""
    level = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    first, count = tl.load(plan + level * 4), tl.load(plan + level * 4 + 1)
    wanted, place = tl.load(plan + level * 4 + 2), tl.load(plan + level * 4 + 3)
    values = logits + image * num_candidates + first
    prefix, shift, ties = _threshold(values, values, count, wanted, FLOATS, BLOCK)
    to = image * num_taken + place
    _take(values, values, count, prefix, shift, ties, index + to, scores + to, levels + to, first, level, FLOATS, BLOCK)


@triton.jit
def _sample_kernel(
    keys, positive, negative, index, is_positive, is_valid, count, size, most_positive, FLOATS: tl.constexpr,
    PLACE_BITS: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program an image: positives, then negatives for the places that are left, each by descending keys."""
    image = tl.program_id(0).to(tl.int64)
    keys += image * count
    positive += image * count
    negative += image * count
    index += image * size
    written = tl.zeros((), tl.int32)
    positives = tl.zeros((), tl.int32)
    for kind in range(2):
        if kind == 0:
            chosen = positive
            wanted = most_positive
        else:
            chosen = negative
            wanted = size - written
            positives = written
        prefix, shift, ties = _threshold(keys, chosen, count, wanted, FLOATS, BLOCK)
        written += _take(keys, chosen, count, prefix, shift, ties, index + written, keys, keys, 0, 0, FLOATS, BLOCK)
    tl.debug_barrier()  # what other threads have written is read
    place = tl.arange(0, PLACES)
    valid = place < written
    key = tl.load(index + place, mask=valid, other=-1)
    key = tl.sort(tl.where(place < positives, key + (1 << 55), key), descending=True)
    here = place < size
    own = key & ((1 << PLACE_BITS) - 1)  # a key's low bits are its place
    tl.store(index + place, tl.where(valid, own, 0), mask=here)
    tl.store(is_positive + image * size + place, (place < positives).to(tl.uint8), mask=here)
    tl.store(is_valid + image * size + place, valid.to(tl.uint8), mask=here)


def best_of_levels(logits: Tensor, sizes: Sequence[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """`detection.rpn.best_of_levels` on CUDA; of each level in the order of their places."""
    rows, first, place = [], 0, 0
    for size in sizes:
        rows.append((first, size, min(count, size), place))
        first, place = first + size, place + min(count, size)
    plan = constant(tuple(rows), torch.int32, logits.device)
    shape, logits = (len(logits), place), logits.contiguous()
    index, levels = torch.empty((2, *shape), dtype=torch.int64, device=logits.device)
    scores = torch.empty(shape, dtype=torch.float32, device=logits.device)
    if scores.numel():
        _best_kernel[(len(sizes), len(logits))](
            logits, plan, index, scores, levels, logits.shape[1], place, FLOATS=True, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return scores, index, levels


def sample(
    positive: Tensor, negative: Tensor, keys: Tensor, size: int, most_positive: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`detection.sampling.sample`'s three parts on CUDA."""
    batch, count = keys.shape
    index = torch.empty(batch, size, dtype=torch.int64, device=keys.device)
    is_positive, is_valid = torch.empty(2, batch, size, dtype=torch.uint8, device=keys.device)
    if index.numel():
        _sample_kernel[(batch,)](
            keys.contiguous(), positive.contiguous().view(torch.uint8), negative.contiguous().view(torch.uint8),
            index, is_positive, is_valid, count, size, most_positive,
            FLOATS=False, PLACE_BITS=PLACE_BITS, PLACES=triton.next_power_of_2(size), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return index, is_positive.view(torch.bool), is_valid.view(torch.bool)
