"""Many texts as one buffer of bytes: a million paths without a million objects. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np


class Names:
    """N texts that are read like an array of str; in memory, or mapped from a file.

    Attributes:
        data: (B,) uint8, the texts one after another, as the file system has them (UTF-8, and whatever bytes a name
            may hold that are not).
        offsets: (N + 1,) int64: text i is data[offsets[i] : offsets[i + 1]].
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self.data, self.offsets = data, offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> Names:
        """These texts."""
        parts = [os.fsencode(text) for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]).astype(np.int64)
        return cls(np.frombuffer(b"".join(parts), np.uint8), offsets)

    @classmethod
    def join(cls, parts: Sequence[Names]) -> Names:
        """The texts of several, in the given order."""
        starts = np.cumsum([0] + [len(part.data) for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.data for part in parts]), np.concatenate([[0], *offsets]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, which: int | np.integer) -> str: ...

    @overload
    def __getitem__(self, which: slice | np.ndarray | Sequence[int]) -> Names: ...

    def __getitem__(self, which: Any) -> str | Names:
        if isinstance(which, int | np.integer):
            if not -len(self) <= which < len(self):
                raise IndexError(f"{which} of {len(self)} names")
            i = int(which) % len(self)
            return os.fsdecode(self.data[self.offsets[i] : self.offsets[i + 1]].tobytes())
        return Names.of(self[i] for i in np.arange(len(self))[which].tolist())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1 << 14):  # not one by one: that is slow
            offsets = self.offsets[start : start + (1 << 14) + 1].tolist()
            text = self.data[offsets[0] : offsets[-1]].tobytes()
            for begin, end in pairwise(offsets):
                yield os.fsdecode(text[begin - offsets[0] : end - offsets[0]])

    def tolist(self) -> list[str]:
        """All as Python's texts."""
        return list(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.tolist(), dtype or np.str_)

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(self[:3])}{', ...' if len(self) > 3 else ''})"
