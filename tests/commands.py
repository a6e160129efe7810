"""The commands that pages print, and whether their scripts take them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from configs.loading import parse_yaml

ROOT = Path(__file__).resolve().parents[1]
STARTS = re.compile(r"(python3?|torchrun --nproc-per-node \d+) +tools/\w+\.py\b")


def printed_commands(text: str) -> Iterator[str]:
    """Commands that run a script of tools/: lines of code blocks, whole spans of code, lines of docstrings.

    Lines that end with a backslash are joined, lists with && divided, remarks left out, variables of loops are 0.
    """
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if STARTS.match(span) and not span.endswith(".py")]
    for line in [*re.sub(r"\\\n\s*", "", text).splitlines(), *spans]:
        for part in re.split(r"&&|\|", line):
            command = re.split(r" {3,}", part.strip())[0]  # a remark beside it
            command = re.sub(r"\$\{?\w+\}?", "0", command)  # of a shell's loop
            if STARTS.match(command):
                yield shlex.join(shlex.split(command, comments=True))


def parse(command: str) -> argparse.Namespace:
    """The command's script takes its options, and the files of the checkout that it names exist."""
    words = shlex.split(command)
    start = next(index for index, word in enumerate(words) if word.startswith("tools/"))
    script = importlib.import_module(words[start].removesuffix(".py").replace("/", "."))
    try:
        options = script.make_parser().parse_intermixed_args(words[start + 1 :])
    except TypeError:  # a script with commands of its own, which cannot be intermixed
        options = script.make_parser().parse_args(words[start + 1 :])
    for word in words[start:]:
        if word.startswith(("tools/", "configs/")):
            assert (ROOT / word).exists(), word
    for override in getattr(options, "overrides", None) or []:
        key, _, value = override.partition("=")
        assert key
        parse_yaml(value, "command line")
    return options
