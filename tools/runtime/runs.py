"""The folders of runs: where they are, what each says about itself, and whether it is at work."""

from __future__ import annotations

import fcntl
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from configs.errors import UserError, printable_logger
from configs.files import read_text
from tools.runtime.curves import TRAIN, curve, is_headline, names_of, read_rows
from tools.runtime.run_folder import ENDED

logger = printable_logger(__name__)

_ENDS = (ENDED, "curves.png", "metrics.json")
"""What a training writes when it ends."""


class Run(NamedTuple):
    """What a folder says about its run."""

    path: Path
    config: str
    """The file of `--cfg`; empty where the folder does not say."""
    best_metric: str
    state: str
    rows: list[dict[str, Any]]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders with a metrics.jsonl, in the order of their names.

    Raises:
        UserError: a folder is none, or holds no run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: is not a folder")
        inside = sorted(path.parent for path in folder.rglob("metrics.jsonl"))
        if not inside:
            raise UserError(f"{folder}: holds no run (no metrics.jsonl in it or below it)")
        found |= dict.fromkeys(inside)
    return list(found)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs below some folders; those whose files are damaged are named and passed over.

    Raises:
        UserError: as `find_runs`.
    """
    runs = []
    for path in find_runs(folders):
        try:
            runs.append(read_run(path))
        except UserError as error:
            logger.warning("%s: the run is passed over", error)
    return runs


def read_run(path: Path) -> Run:
    rows = read_rows(path / "metrics.jsonl")
    file = path / "config.yaml"
    text = read_text(file) if file.is_file() else ""
    command = re.search(r"^# Command: +(.*)$", text, re.MULTILINE)
    try:
        words = shlex.split(command[1]) if command else []
    except ValueError:  # a quotation without end: edited by hand
        words = []
    config = words[words.index("--cfg") + 1] if "--cfg" in words[:-1] else ""
    try:
        best = yaml.safe_load(text)["train"]["best_metric"]
    except (yaml.YAMLError, KeyError, TypeError):  # another program's run
        best = next((name for name in names_of(rows) if is_headline(name)), "loss")
    return Run(path, config, best, state_of(path), rows)


def state_of(path: Path) -> str:
    """running, finished or stopped; see tools/runs.py."""
    lock = path / ".lock"
    if lock.exists():
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return "running"
    logged = (path / "metrics.jsonl").stat().st_mtime_ns
    ends = [path / name for name in _ENDS if (path / name).exists()]
    return "finished" if any(end.stat().st_mtime_ns >= logged for end in ends) else "stopped"


def training_time(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds an iteration times iterations, of the training alone, as h:mm:ss."""
    iterations, seconds = curve(rows, TRAIN, "seconds")
    total = sum((now - before) * each for before, now, each in zip([0, *iterations], iterations, seconds, strict=False))
    return f"{int(total) // 3600}:{int(total) // 60 % 60:02}:{int(total) % 60:02}" if iterations else ""
