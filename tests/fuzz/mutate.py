"""Mutations of valid files, each a pure function of a seed: values of a tree, words of a text, bytes of anything."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1e400, -1e400, float("nan"), 10**30, 2**63, 1e-300, 0.5, "", "1", "0", "nan", "x",
    "\u7ea2", "\x1b[31m", "../../x", "a/b", "x" * 100_000, [], [1], {}, {"a": 1}, [[]], [1, 2, 3, 4], "8f0c-a1b2",
]  # fmt: skip
"""What replaces a value of a JSON tree."""

WORDS = [
    "", "0", "-1", "1e400", "nan", "inf", "1_0", "0x1F", "9" * 400, "x", "\u7ea2", "\x1b[31m", "../../x", "a b", '"q"',
    "True", "yes", "null", "~", "*a", "&a", "!!int", "{", "[", ":", "#", "<", "&amp;", "&#0;", "<!-- c -->", "\ufeff",
]  # fmt: skip
"""What replaces a word of a text."""

_TOKEN = re.compile(r"(?<![^\s>,:;\"'{}\[\]=])[^\s<>,:;\"'{}\[\]=/]+")
"""A value of any format: what stands between its marks; no tag of XML."""


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON tree, the outermost first."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


PIECES = [
    b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff" * 8, b"\r", b"{", b"'",
]  # fmt: skip
"""What is put into bytes."""


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of a JSON tree with one to three values replaced, removed, doubled, wrapped or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(list(places(tree)))
        if not path:
            if rng.random() < 0.05:
                return copy.deepcopy(rng.choice(VALUES))
            continue
        parent = tree
        for step in path[:-1]:
            parent = parent[step]
        what = rng.random()
        if what < 0.55:
            parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        elif what < 0.65:
            size = 10.0 ** rng.randint(-300, 300)
            parent[path[-1]] = rng.choice((rng.uniform(-2000, 2000), rng.randint(-100, 2000), rng.random() * size))
        elif what < 0.7:
            parent[path[-1]] = [parent[path[-1]]] * rng.choice((1, 2))
        elif what < 0.75:  # exchanged with another value beside it
            other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
            parent[path[-1]], parent[other] = parent[other], parent[path[-1]]
        elif what < 0.87:
            del parent[path[-1]]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[f"{path[-1]}x"] = parent.pop(path[-1])
    return tree


def as_json(tree: Any, rng: random.Random) -> bytes:
    """The tree as JSON, at times with a damaged byte, in another encoding, or such as only other parsers take."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        old, new = rng.choice((
            (": ", ': 7, "id": '), (", ", ", /* x */ "), (": ", f": {'9' * 5000}"), ("[", "[" * 100_000), ("}", ",}"),
            ('"', "'"), (": ", ": NaN, "), ("{", '{"a": Infinity, '),
        ))  # fmt: skip
        text = text.replace(old, new, rng.choice((1, 1, -1)) if len(new) < 100 else 1)
    data = text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16")))
    return mutate_bytes(data, rng) if rng.random() < 0.15 else data


def mutate_text(text: str, rng: random.Random) -> bytes:
    """A text with words replaced, lines doubled or removed, in some encoding, at times with damaged bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        what = rng.random()
        lines = text.split("\n")
        if what < 0.5:
            start, end = rng.choice([match.span() for match in _TOKEN.finditer(text)] or [(0, 0)])
            text = text[:start] + rng.choice(WORDS) + text[end:]
        elif what < 0.7:
            separators = rng.choice((" ", ">", "<", ",", ": "))
            words = text.split(separators)
            place, other = rng.randrange(len(words)), rng.randrange(len(words))
            change = rng.randrange(4)
            if change == 0:
                words[place] = rng.choice(WORDS)
            elif change == 1:
                words[place], words[other] = words[other], words[place]
            elif change == 2:
                words[place : place + 2] = ["".join(words[place : place + 2])]
            else:
                times = rng.choice((2, 100, 5000))
                words[place] *= min(times, 1 + 1_000_000 // (len(words[place]) + 1))  # by chance several in a row
            text = separators.join(words)
        elif what < 0.85:
            text = "\n".join([*lines, rng.choice(lines)])
        else:
            del lines[rng.randrange(len(lines))]
            text = "\n".join(lines)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "gb18030", "latin-1"))
    data = text.encode(encoding, "replace")
    return mutate_bytes(data, rng) if rng.random() < 0.15 else data


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some flipped, cut out, doubled, zeroed or inserted."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not content:
            break
        start = rng.randrange(len(content))
        end = min(len(content), start + rng.choice((1, 1, 2, 4, 16, 256)))
        what = rng.random()
        if what < 0.4:
            content[start] = rng.choice((0, 1, 127, 128, 255, content[start] ^ (1 << rng.randrange(8))))
        elif what < 0.5:
            content[start : start + rng.choice((0, 4))] = rng.choice((*PIECES, rng.randbytes(4)))
        elif what < 0.65:
            del content[start:end]
        elif what < 0.75:
            del content[start:]
        elif what < 0.85:
            content[start:start] = content[start:end]
        else:
            content[start:end] = bytes(end - start)
    return bytes(content)
