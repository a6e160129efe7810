"""Random samples of anchors and RoIs for the losses: counter-based, of fixed size, without host syncs.

An image's sample depends on (seed, iteration, image, candidate) alone: not on the other images of the batch, nor on
their order, the padding, the worker or the process.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from backbones.kernels import kernels_for
from configs.errors import UserError

_MASK32 = 0xFFFFFFFF
PLACE_BITS = 23
"""The low bits of a random key, which hold the candidate's place: 8 million anchors are those of a pyramid with three
at each position over 33 million pixels."""

Iteration = int | Tensor
"""The number of a step; in a CUDA graph a () int64 tensor below 2^32, which each launch reads anew. Both draw alike."""


class Sampled(NamedTuple):
    """A sample of S candidates for each of B images."""

    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple's method, which nobody needs
    """(B, S) int64 into the candidates."""
    positive: Tensor
    """(B, S) bool."""
    valid: Tensor
    """(B, S) bool: false where an image had too few candidates; `index` then points anywhere and must weigh nothing."""


def _mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers held in int64 that scatters them (C. Wellons' lowbias32)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def _mix_int(value: int) -> int:
    """`_mix32` of a Python number of any size."""
    mixed = 0
    while True:
        mixed ^= value & _MASK32
        mixed = ((mixed ^ mixed >> 16) * 0x7FEB352D) & _MASK32
        mixed = ((mixed ^ mixed >> 15) * 0x846CA68B) & _MASK32
        mixed ^= mixed >> 16
        value >>= 32
        if not value:
            return mixed


def _mix_step(seed: int, iteration: Iteration, purpose: int) -> Iteration:
    """`_mix_int` of seed, iteration and purpose side by side; of a tensor a tensor, which nobody waits for."""
    word = _mix_int(seed)
    if not isinstance(iteration, Tensor):
        return _mix_int(word << 40 | iteration << 8 | purpose)
    low = iteration << 8 | purpose
    second, third = low >> 32 | (word << 8 & _MASK32), word >> 24
    mixed = _mix32(low & _MASK32)
    if third:
        return _mix32(_mix32(mixed ^ second) ^ third)
    return torch.where(second > 0, _mix32(mixed ^ second), mixed)  # `_mix_int` ends where nothing is left


def random_keys(seed: int, iteration: Iteration, purpose: int, image_index: Tensor, codes: Tensor) -> Tensor:
    """Random keys (B, N) int64 in [0, 2^55), different for all candidates of an image.

    Args:
        seed, iteration: what the run and the step are.
        purpose: tells apart the samplings within one step.
        image_index: (B,) int64, what the images are in their data set.
        codes: (N,) int64, what the candidates are, whatever the padding.

    Raises:
        UserError: there are too many.
    """
    if len(codes) >= 1 << PLACE_BITS:
        raise UserError(
            f"an image has {len(codes)} anchors, and fewer than {1 << PLACE_BITS} can be told apart: lower "
            "data.max_size, or give fewer model.anchors"
        )
    if kernels := kernels_for(codes, "detection.triton_assignment"):
        if isinstance(iteration, Tensor):
            return kernels.random_keys(_mix_int(seed), image_index, codes, iteration, purpose)
        return kernels.random_keys(_mix_step(seed, iteration, purpose), image_index, codes)
    step = _mix_step(seed, iteration, purpose)
    image = _mix32((image_index & _MASK32) ^ step)
    hashed = _mix32(_mix32((codes ^ (codes >> 32)) & _MASK32)[None] ^ image[:, None])
    # The position in the low bits tells apart the few that share a hash; `sample` on CUDA reads it there.
    return (hashed << PLACE_BITS) | torch.arange(len(codes), device=codes.device)


def sample(positive: Tensor, negative: Tensor, keys: Tensor, size: int, positive_fraction: float) -> Sampled:
    """At most `size * positive_fraction` positives and negatives for the rest, uniformly, for each image.

    Args:
        positive, negative: (B, N) bool, disjoint.
        keys: (B, N) int64 from `random_keys`; the largest are taken.
        size: candidates a sample (S = min(size, N)).
        positive_fraction: share of positives, at most.
    """
    size = min(size, keys.shape[1])
    max_positives = min(int(size * positive_fraction), size)
    kernels = kernels_for(keys, "detection.triton_selection")
    if kernels is not None and size <= kernels.MOST_PLACES:
        return Sampled(*kernels.sample(positive, negative, keys, size, max_positives))
    # Both kinds at once, best keys first; then the positives and, behind them, negatives up to `size`.
    best = torch.stack((positive, negative), 1) * (keys[:, None] + 1) - 1
    values, index = best.topk(size, dim=2)
    place = torch.arange(size, device=keys.device)
    taken = (values[:, 0] >= 0) & (place < max_positives)
    source = torch.where(taken, place, size + place - taken.sum(1, keepdim=True))
    values, index = values.flatten(1).gather(1, source), index.flatten(1).gather(1, source)
    return Sampled(index, taken, values >= 0)
