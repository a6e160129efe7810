"""The folder of a run: config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt, pictures, evaluations."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError

_SIGNS_OF_A_RUN = ("config.yaml", "metrics.jsonl", "last.pt", "best.pt")
_FILES_OF_A_RUN = (
    *_SIGNS_OF_A_RUN,
    "metrics*.json",
    "detections.json",
    "comp4_det_*.txt",
    "submission.*",
    "report.html",
)


class RunFolder:
    """Writes what a run leaves behind. With `writes=False` (all processes but the first) it only knows the paths."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self._metrics_file = None
        self._tensorboard = None

    @property
    def last(self) -> Path:
        """The newest checkpoint, with all that `--resume` needs."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / "best.pt"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def check(self, *, resume: bool) -> None:
        """See that a run may start here, before anything is built.

        Raises:
            UserError: a run is here already, or none is and it should go on.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose another folder with --out")
        there = [name for name in _SIGNS_OF_A_RUN if (self.path / name).exists()]
        if there and not resume:
            raise UserError(
                f"{self.path}: holds a run already ({', '.join(there)}): continue it with --resume, "
                "or choose another folder with --out"
            )
        if resume and not there:
            raise UserError(
                f"{self.path}: no run to resume here: leave out --resume, or give the run's folder with --out"
            )

    def clear(self) -> None:
        """Remove what an earlier run left here; other files stay."""
        if not any((self.path / name).exists() for name in _SIGNS_OF_A_RUN):
            return
        for pattern in _FILES_OF_A_RUN:
            for path in self.path.glob(pattern):
                path.unlink()
        for name in ("pictures", "report", "tensorboard"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def open(self, config_yaml: str, *, from_iteration: int = 0) -> None:
        """Start writing; a resumed run's lines from `from_iteration` on are dropped, since it does them again."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", config_yaml)
        lines = self.path / "metrics.jsonl"
        if lines.exists():
            kept = [
                line for line in lines.read_text(encoding="utf-8").splitlines() if _iteration_of(line) <= from_iteration
            ]
            write_text(lines, "".join(line + "\n" for line in kept))
        self._metrics_file = lines.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self._tensorboard = SummaryWriter(
            str(self.path / "tensorboard"), purge_step=from_iteration + 1 if from_iteration else None
        )

    def log(self, iteration: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """One line of metrics.jsonl and the same numbers as TensorBoard scalars.

        Args:
            iteration: iterations done.
            values: name -> number; nested mappings become dotted names in TensorBoard. NaN is written as null.
            prefix: the scalars' group, such as "train" or "val"; the line's key "split".
        """
        if self._metrics_file is None:
            return
        line = {"iteration": iteration, **({"split": prefix} if prefix else {}), **_plain(values)}
        self._metrics_file.write(json.dumps(line) + "\n")
        self._metrics_file.flush()
        for name, value in _flat(values):
            self._tensorboard.add_scalar(f"{prefix}/{name}" if prefix else name, value, iteration)

    def log_picture(self, iteration: int, name: str, picture: np.ndarray) -> None:
        """Show a (H, W, 3) uint8 RGB picture in TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, picture, iteration, dataformats="HWC")

    def close(self) -> None:
        """Finish the files."""
        if self._metrics_file is not None:
            self._metrics_file.close()
            self._tensorboard.close()
            self._metrics_file = self._tensorboard = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def provenance(data_root: Path) -> str:
    """Comment lines for config.yaml: the command, where data was looked for, the versions."""
    checkout = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git here
        commit = ""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, torchvision {version('torchvision')}"
    lines = [
        f"Command:   {shlex.join(sys.argv)}",
        f"Data root: {data_root}",
        f"Versions:  {versions}{f', commit {commit}' if commit else ''}",
    ]
    return "".join(f"# {' '.join(line.splitlines())}\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, values: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_plain(values), indent=2) + "\n")


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except (json.JSONDecodeError, KeyError, TypeError):  # a line that a crash cut short
        return math.inf


def _plain(values: Any) -> Any:
    """Values that JSON knows: NaN and infinities become null, numpy's numbers plain ones."""
    if isinstance(values, Mapping):
        return {str(name): _plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The finite numbers of nested mappings under dotted names."""
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value):
            flat.append((prefix + str(name), float(value)))
    return flat
