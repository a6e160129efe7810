"""The best candidates and the random samples of a batch for CUDA, in Triton: a kernel each in the place of dozens.

torch's `topk` and `sort` are up to twenty kernels a call. Here one program looks through the candidates of an image (or
of one level of it), digit by digit of their keys from the highest on, until it knows which key is the last one taken;
then it writes the taken ones. Among equal keys the first ones are taken. One program is a small part of a GPU: of more
than CHUNK candidates it sees only those that are among the best of their chunk, which programs side by side have found.

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
"""Candidates that a program looks at a time, 8 a thread."""
WARPS = 8
CHUNK = 16384
"""Candidates that one program looks through where there are others."""
MOST_PLACES = 4096
"""The largest sample whose keys one program can sort."""


@triton.jit
def _keys(values, chosen, at, here, FLOATS: tl.constexpr, MASKED: tl.constexpr):
    """Keys of candidates, int64 and not negative, and which of them take part: float32 by their order, NaN first, or
    int64 as they are, where `chosen` (MASKED) or else where they are not negative."""
    if FLOATS:
        value = tl.load(values + at, mask=here, other=0.0)
        bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(value != value, 0x7FFFFFFF, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
        key = bits.to(tl.int64) + 0x80000000
    else:
        key = tl.load(values + at, mask=here, other=-1)
        if MASKED:
            here = here & (tl.load(chosen + at, mask=here, other=0) != 0)
        else:
            here = here & (key >= 0)
    return key, here


@triton.jit
def _threshold(
    values, chosen, count, wanted, FLOATS: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
    DIGIT: tl.constexpr = 8,
):  # fmt: skip
    """(prefix, shift, ties): taken are keys whose upper digits, key >> shift, are above `prefix`, and the first `ties`
    of those where they equal it. That makes `wanted` of `count` candidates, or all if there are fewer. A digit has
    DIGIT bits, for a histogram's cost grows with its bins; float32 have 32, other keys at most 55."""
    digits = tl.arange(0, 1 << DIGIT)
    shift = 3 * DIGIT if FLOATS else 6 * DIGIT
    shift += tl.zeros((), tl.int32)
    prefix = tl.zeros((), tl.int64)
    ties = wanted + tl.zeros((), tl.int32)
    searching = 1
    while searching > 0:
        numbers = tl.zeros((1 << DIGIT,), tl.int32)
        for start in range(0, count, BLOCK):
            at = start + tl.arange(0, BLOCK)
            key, here = _keys(values, chosen, at, at < count, FLOATS, MASKED)
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
def _taken(
    values, chosen, start, count, written, prefix, shift, ties, FLOATS: tl.constexpr, MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the BLOCK candidates from `start` on: their places, keys, which are taken, where these go; and how many are
    written and which ties are left behind them."""
    at = start + tl.arange(0, BLOCK)
    key, here = _keys(values, chosen, at, at < count, FLOATS, MASKED)
    upper = key >> shift
    equal = (here & (upper == prefix)).to(tl.int32)
    taken = here & ((upper > prefix) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= ties)))
    place = written + tl.cumsum(taken.to(tl.int32), axis=0) - 1
    return at, key, taken, place, written + tl.sum(taken.to(tl.int32), axis=0), ties - tl.sum(equal, axis=0)


@triton.jit
def _best_kernel(
    values, sources, plan, index, scores, levels, num_candidates, num_taken, SECOND: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a part (a level, or a chunk of one) and image; plan (P, 5): the part's first candidate, how many, how
    many of them are taken, where they go, and which level it is. In the order of their places.

    Candidates are logits; those of the SECOND launch what the first one took, `sources` being its `index`.
    """
    part = tl.program_id(0) * 5
    image = tl.program_id(1).to(tl.int64)
    first, count, wanted = tl.load(plan + part), tl.load(plan + part + 1), tl.load(plan + part + 2)
    to, level = image * num_taken + tl.load(plan + part + 3), tl.load(plan + part + 4)
    values += image * num_candidates + first
    sources += image * num_candidates + first
    prefix, shift, ties = _threshold(values, values, count, wanted, True, False, BLOCK)
    written = tl.zeros((), tl.int32)
    for start in range(0, count, BLOCK):
        at, _, taken, place, written, ties = _taken(
            values, values, start, count, written, prefix, shift, ties, True, False, BLOCK
        )
        source = tl.load(sources + at, mask=taken, other=0) if SECOND else (first + at).to(tl.int64)
        tl.store(index + to + place, source, mask=taken)
        tl.store(scores + to + place, tl.load(values + at, mask=taken, other=0.0), mask=taken)
        tl.store(levels + to + place, tl.zeros((BLOCK,), tl.int64) + level, mask=taken)


@triton.jit
def _take_keys(
    keys, chosen, count, wanted, output, MASKED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the largest `wanted` keys, or all if there are fewer, in the order of their places; how many they are."""
    prefix, shift, ties = _threshold(keys, chosen, count, wanted, False, MASKED, BLOCK)
    written = tl.zeros((), tl.int32)
    for start in range(0, count, BLOCK):
        _, key, taken, place, written, ties = _taken(
            keys, chosen, start, count, written, prefix, shift, ties, False, MASKED, BLOCK
        )
        tl.store(output + place, key, mask=taken)
    return written


@triton.jit
def _survivors_kernel(
    keys, positive, negative, survivors, count, size, most_positive, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """One program a chunk, kind and image: the keys of those of the chunk that a sample can hold, then -1, into
    survivors (B, 2, chunks, size)."""
    chunk, kind = tl.program_id(0), tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    first = chunk * CHUNK
    at = image * count + first
    survivors += ((image * 2 + kind) * tl.num_programs(0) + chunk) * size
    chosen = positive
    wanted = most_positive
    if kind == 1:
        chosen = negative
        wanted = size
    written = _take_keys(keys + at, chosen + at, tl.minimum(count - first, CHUNK), wanted, survivors, True, BLOCK)
    for start in range(0, size, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(survivors + place, tl.full((BLOCK,), -1, tl.int64), mask=(place >= written) & (place < size))


@triton.jit
def _sample_kernel(
    keys, positive, negative, index, is_positive, is_valid, count, size, most_positive, MASKED: tl.constexpr,
    PLACE_BITS: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program an image: positives, then negatives for the places that are left, each by descending keys.

    MASKED: keys (B, count) with both masks; else survivors (B, 2, count), the positives' first.
    """
    image = tl.program_id(0).to(tl.int64)
    index += image * size
    if MASKED:
        keys += image * count
        positive += image * count
        negative += image * count
    else:
        keys += image * 2 * count
    positives = _take_keys(keys, positive, count, most_positive, index, MASKED, BLOCK)
    if not MASKED:
        keys += count
    written = positives + _take_keys(keys, negative, count, size - positives, index + positives, MASKED, BLOCK)
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
    parts = [(size, level) for level, size in enumerate(sizes)]
    logits = logits.contiguous()
    if max(sizes) <= CHUNK:
        return _best(logits, logits, parts, count, second=False)
    chunks = [(min(CHUNK, size - start), level) for size, level in parts for start in range(0, size, CHUNK)]
    scores, index, _ = _best(logits, logits, chunks, count, second=False)
    kept = [sum(min(count, size) for size, of in chunks if of == level) for level in range(len(sizes))]
    return _best(scores, index, [(size, level) for level, size in enumerate(kept)], count, second=True)


def _best(
    values: Tensor, sources: Tensor, parts: Sequence[tuple[int, int]], count: int, *, second: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each part (how many, which level) the best `count` values; (B, M) values, sources or places, and levels."""
    rows, first, place = [], 0, 0
    for size, level in parts:
        rows.append((first, size, min(count, size), place, level))
        first, place = first + size, place + min(count, size)
    plan = constant(tuple(rows), torch.int32, values.device)
    shape = len(values), place
    index, levels = torch.empty((2, *shape), dtype=torch.int64, device=values.device)
    scores = torch.empty(shape, dtype=torch.float32, device=values.device)
    if scores.numel():
        _best_kernel[(len(rows), len(values))](
            values, sources, plan, index, scores, levels, values.shape[1], place,
            SECOND=second, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return scores, index, levels


def sample(
    positive: Tensor, negative: Tensor, keys: Tensor, size: int, most_positive: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`detection.sampling.sample`'s three parts on CUDA; `size` is at most MOST_PLACES."""
    batch, count = keys.shape
    index = torch.empty(batch, size, dtype=torch.int64, device=keys.device)
    is_positive, is_valid = torch.empty(2, batch, size, dtype=torch.uint8, device=keys.device)
    if not index.numel():
        return index, is_positive.view(torch.bool), is_valid.view(torch.bool)
    keys, chunks = keys.contiguous(), triton.cdiv(count, CHUNK)
    positive, negative = positive.contiguous().view(torch.uint8), negative.contiguous().view(torch.uint8)
    if chunks > 1:
        survivors = torch.empty(batch, 2, chunks, size, dtype=torch.int64, device=keys.device)
        _survivors_kernel[(chunks, 2, batch)](
            keys, positive, negative, survivors, count, size, most_positive,
            CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        keys, count = survivors, chunks * size
    _sample_kernel[(batch,)](
        keys, positive, negative, index, is_positive, is_valid, count, size, most_positive,
        MASKED=chunks == 1, PLACE_BITS=PLACE_BITS, PLACES=triton.next_power_of_2(size), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return index, is_positive.view(torch.bool), is_valid.view(torch.bool)
