from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from backbones.compilation import Graphs
from configs.errors import UserError
from detection import sampling
from detection.sampling import PLACE_BITS, random_keys, sample


def keys_of(images: list[int], codes: torch.Tensor, iteration: int = 0) -> torch.Tensor:
    return random_keys(7, iteration, 0, torch.tensor(images), codes)


def test_keys_depend_on_the_image_not_on_the_batch():
    codes = torch.arange(1000)
    both = keys_of([3, 9], codes)
    assert torch.equal(both[0], keys_of([3], codes)[0])
    assert torch.equal(both.flip(0), keys_of([9, 3], codes))
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(keys_of([3], codes, iteration=1)[0], both[0])


@given(st.integers(0, 1 << 70), st.integers(0, (1 << 32) - 1), st.integers(0, 255))
@example(0, 0, 0)
@example(0, 1 << 24, 1)  # seed 0 is mixed to 0, so that only a large iteration reaches the second 32 bits
@example(0, (1 << 24) - 1, 0)
def test_an_iteration_on_the_device_draws_as_the_number_does(seed, iteration, purpose):
    """A CUDA graph reads it from memory, where it changes from replay to replay."""
    images, codes = torch.tensor([0, 7]), torch.arange(5)
    given = torch.zeros((), dtype=torch.int64)
    expected = random_keys(seed, iteration, purpose, images, codes)
    given.fill_(iteration)
    assert torch.equal(random_keys(seed, given, purpose, images, codes), expected)
    given.fill_(iteration ^ 1)
    assert not torch.equal(random_keys(seed, given, purpose, images, codes), expected)


def check_replays(device: str) -> None:
    """Replays of one graph draw what steps without graphs draw, other samples in each."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(2, 300, generator=generator) < 0.2
    images, codes, graphs, drawn = torch.tensor([4, 9]), torch.arange(300), Graphs("a sample"), []
    masks, places = [x.to(device) for x in (positive, ~positive)], [x.to(device) for x in (images, codes)]

    def draw(number: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(sample(*masks, random_keys(3, number, 1, *places), 16, 0.25))

    for iteration in (0, 1, 2, 70_000, 1 << 25):
        found = graphs(draw, [torch.full((), iteration, device=device)])
        expected = sample(positive, ~positive, random_keys(3, iteration, 1, images, codes), 16, 0.25)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine.cpu(), theirs)
        drawn.append(expected.index.tolist())
    assert not graphs.gave_up
    assert all(a != b for a, b in itertools.combinations(drawn, 2))


def test_replays_draw_anew(graphs_on_the_cpu):
    check_replays("cpu")
    assert len(graphs_on_the_cpu) == 1


@pytest.mark.gpu
def test_replays_draw_anew_on_a_gpu():
    check_replays("cuda")


def test_keys_are_what_they_were():
    """Seeded runs repeat on any version."""
    keys = random_keys(3, 90_000, 1, torch.tensor([5]), torch.tensor([0, 77, 1 << 30]))
    assert (keys >> PLACE_BITS).tolist() == [[2498567805, 3948797198, 3504987401]]
    assert (keys & (1 << PLACE_BITS) - 1).tolist() == [[0, 1, 2]]


def test_a_million_anchors_keep_their_places():
    """A pyramid over 2080 x 2080 pixels with three anchors at each position; on CUDA places are read off the keys."""
    count = 3 * sum((2080 // stride) ** 2 for stride in (4, 8, 16, 32, 65))
    assert count > 1 << 20
    keys = keys_of([0], torch.arange(count))[0]
    assert torch.equal(keys & (1 << PLACE_BITS) - 1, torch.arange(count))
    assert (keys >> PLACE_BITS).max() < 1 << 32
    with pytest.raises(UserError, match=r"8388608 anchors, and fewer than 8388608 .* lower data\.max_size"):
        keys_of([0], torch.zeros(1, dtype=torch.int64).expand(1 << PLACE_BITS))


def test_keys_are_distinct_and_even():
    keys = keys_of([0], torch.arange(1 << 16))[0]
    assert len(keys.unique()) == 1 << 16
    shares = torch.histc((keys >> PLACE_BITS).double() / 2**32, bins=16, min=0, max=1) / len(keys)
    assert (shares - 1 / 16).abs().max() < 0.005  # five standard deviations


@given(
    st.integers(0, 10_000),
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 64),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_counts_and_membership(seed, num, share_positive, share_negative, size, fraction):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, num, generator=generator)
    positive = draw < share_positive
    negative = ~positive & (torch.rand(2, num, generator=generator) < share_negative)
    chosen = sample(positive, negative, keys_of([0, 1], torch.arange(num)), size, fraction)
    for image in range(2):
        expected_positive = min(int(positive[image].sum()), int(min(size, num) * fraction))
        expected_negative = min(int(negative[image].sum()), min(size, num) - expected_positive)
        assert int(chosen.positive[image].sum()) == expected_positive
        assert int(chosen.valid[image].sum()) == expected_positive + expected_negative
        taken = chosen.index[image][chosen.valid[image]]
        assert len(taken.unique()) == len(taken)
        assert positive[image][chosen.index[image][chosen.positive[image]]].all()
        assert negative[image][chosen.index[image][chosen.valid[image] & ~chosen.positive[image]]].all()


def test_every_candidate_is_as_likely():
    positive = torch.zeros(1, 40, dtype=torch.bool)
    positive[:, :10] = True
    times = torch.zeros(40)
    for iteration in range(2000):
        chosen = sample(positive, ~positive, keys_of([5], torch.arange(40), iteration), 16, 0.25)
        times[chosen.index[0]] += 1
    # 4 of the 10 positives and 12 of the 30 negatives: each with probability 0.4; 4.5 standard deviations.
    assert ((times / 2000) - 0.4).abs().max() < 4.5 * (0.4 * 0.6 / 2000) ** 0.5


def test_the_sample_does_not_depend_on_padding():
    codes = torch.arange(50)
    positive, negative = codes[None] % 7 == 0, codes[None] % 7 != 0
    short = sample(positive, negative, keys_of([1], codes), 10, 0.5)
    more = torch.cat((codes, torch.arange(1000, 1030)))
    pad = torch.zeros(1, 30, dtype=torch.bool)
    long = sample(torch.cat((positive, pad), 1), torch.cat((negative, pad), 1), keys_of([1], more), 10, 0.5)
    assert torch.equal(short.index, long.index)


def test_the_smallest_key_is_as_good_as_any():
    """A key of 0 is a candidate's; what is neither positive nor negative is no candidate, whatever its key."""
    positive, negative = torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]])
    sampled = sample(positive, negative, torch.zeros(1, 3, dtype=torch.int64), 3, 0.5)
    assert sampled.index[0, :2].tolist() == [0, 1]
    assert sampled.positive.tolist() == [[True, False, False]]
    assert sampled.valid.tolist() == [[True, True, False]]


def test_a_sample_too_large_for_one_program_is_made_by_torch(monkeypatch):
    """Sorting its keys would take more memory than a multiprocessor has."""
    sizes = []
    kernels = SimpleNamespace(MOST_PLACES=8, sample=lambda *args: sizes.append(args[3]) or (None, None, None))
    monkeypatch.setattr(sampling, "kernels_for", lambda *_: kernels)
    keys = torch.arange(20)[None]
    positive = keys % 2 == 0
    sampling.sample(positive, ~positive, keys, 8, 0.5)
    assert sampling.sample(positive, ~positive, keys, 9, 0.5).valid.sum() == 9
    assert sizes == [8]
