"""The report of a benchmark: what the machine is, rows for people, and what changed since an earlier report."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.files import write_text

ROOT = Path(__file__).resolve().parents[2]
OURS = ("backbones", "datasets", "detection", "tools")
"""Packages whose warnings a row keeps."""


def environment(device: Any, missing: list[str]) -> dict[str, Any]:
    """Versions, device and commit: what a figure means nothing without.

    Args:
        device: a torch.device.
        missing: packages that stand-ins replace (`substitutes.install`).
    """
    import numpy
    import torch
    import torchvision

    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {
        "versions": {**versions, "numpy": numpy.__version__, "cuda": torch.version.cuda},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "stand_ins": missing,
    }


def commit() -> str | None:
    """The checkout's commit, and whether files differ from it; None without git or outside a repository.

    Results (`docs/results/`) do not count: they are written by the runs themselves.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        status = [*git, "status", "--porcelain", "--", ".", ":!docs/results"]
        changed = subprocess.run(status, capture_output=True, text=True)
    except OSError:
        return None
    return (found.stdout.strip() + (" with changes" if changed.stdout.strip() else "")) or None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


class _Warnings(logging.StreamHandler):
    """Prints what is logged, and keeps what this project warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] in OURS:
            self.said.append(record.getMessage())


def with_warnings(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of the report, and under `warnings` what was said meanwhile: a fallback is not what the row is called."""
    handler = _Warnings()
    logging.getLogger().addHandler(handler)
    try:
        row = make()
    finally:
        logging.getLogger().removeHandler(handler)
    return {**row, "warnings": "; ".join(dict.fromkeys(handler.said))} if handler.said else row


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(report, indent=1) + "\n")


def flatten(value: Any, prefix: str = "") -> dict[str, float]:
    """Nested figures by dotted path."""
    if isinstance(value, dict):
        return {
            k: v for key, part in value.items() for k, v in flatten(part, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def print_result(name: str, result: dict[str, Any]) -> None:
    """One row for people: quartiles in one line."""
    print(f"\n{name}", flush=True)
    if isinstance(result.get("seconds"), dict):
        for contestant, figures in result["seconds"].items():
            shown = [f"{unit} {v['median']:.4g} ({v['q1']:.4g} to {v['q3']:.4g})" for unit, v in figures.items()]
            print(f"  {contestant:<13} {', '.join(shown)}")
    for key, value in flatten({k: v for k, v in result.items() if k != "seconds"}).items():
        print(f"  {key:<48} {value:,}" if isinstance(value, int) else f"  {key:<48} {value:.4g}")
    for key, value in result.items():
        if isinstance(value, str | bool):
            print(f"  {key:<48} {value}", flush=True)


def print_comparison(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Medians and counts of both reports that differ by more than two in a hundred."""
    print("\nagainst the old report (new / old)")
    for row in new:
        before, after = flatten(old.get(row) or {}), flatten(new[row] or {})
        for key in after:
            if key in before and before[key] and not key.endswith((".q1", ".q3")):
                ratio = after[key] / before[key]
                if abs(ratio - 1) > 0.02:
                    print(f"  {row}: {key} {before[key]:.4g} -> {after[key]:.4g} ({ratio:.3f})")
