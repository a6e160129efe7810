"""Texts in one buffer behave like an array of str."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.names import Names

TEXTS = st.lists(st.text(st.characters(blacklist_categories=["Cs"])), max_size=30)


@given(TEXTS, TEXTS)
def test_like_a_list(first: list[str], second: list[str]) -> None:
    names = Names.of(first)
    assert (len(names), names.tolist(), [names[i] for i in range(len(first))]) == (len(first), first, first)
    assert Names.join([names, Names.of(second)]).tolist() == first + second
    assert names[::-2].tolist() == first[::-2]
    order = np.random.default_rng(0).permutation(len(first))
    assert names[order].tolist() == [first[i] for i in order]
    assert names[np.array([len(text) > 2 for text in first], bool)].tolist() == [
        text for text in first if len(text) > 2
    ]


def test_more_than_a_block_and_bytes_that_are_no_utf8() -> None:
    texts = [f"folder/{i}.jpg" for i in range(40_000)] + ["caf\udce9.jpg"]
    names = Names.of(texts)
    assert list(names) == texts
    assert names[-1] == texts[-1]
    assert names[np.int64(39_999)] == "folder/39999.jpg"
    assert len(names.data) == sum(map(len, texts))  # nothing but the bytes
    assert np.asarray(names[:3]).tolist() == texts[:3]
    assert np.asarray(names[:3]).dtype.kind == "U"
    assert np.asarray(names[:3], object).dtype == object
    with pytest.raises(IndexError):
        names[len(texts)]
