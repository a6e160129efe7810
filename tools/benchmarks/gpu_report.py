"""The tables of `gpu_check.py`'s report in Markdown, for docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
KINDS_OF_KERNELS = 15
"""Of a profile, that are shown."""


def markdown(report: dict[str, Any]) -> str:
    """All tables; a row that did not run has its reason in the second column."""
    machine = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    texts = [f"{machine['device']}; {versions}; missing: {machine['missing']}."]
    for stage, (title, columns) in TABLES.items():
        if rows := report["stages"].get(stage):
            texts.append(f"### {title}\n\n{_table(rows, columns)}")
    for name, row in report["stages"].get("profile", {}).items():
        texts.append(f"### A training step of {name} by kernel\n\n{_profile(row)}")
    return "\n\n".join(texts) + "\n"


def _table(rows: dict[str, Row], columns: dict[str, Callable[[Row], str]]) -> str:
    lines = [_line(["", *columns]), _line(["---"] * (len(columns) + 1))]
    for name, row in rows.items():
        if "not_run" in row:
            cells = [f"not run: {row['not_run']}", *[""] * (len(columns) - 1)]
        else:
            cells = [column(row) for column in columns.values()]
        lines.append(_line([f"{name} ({row['warnings']})" if "warnings" in row else name, *cells]))
    return "\n".join(lines)


def _profile(row: Row) -> str:
    if "not_run" in row:
        return f"Not run: {row['not_run']}"
    kernels = {kernel["name"]: kernel for kernel in row["kernels"][:KINDS_OF_KERNELS]}
    columns: dict[str, Callable[[Row], str]] = {
        "calls": lambda kernel: f"{kernel['calls']:.0f}",
        "ms": lambda kernel: f"{kernel['ms']:.3g}",
        "share": lambda kernel: _percent(kernel["share"]),
    }
    return _table(kernels, columns)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def _number(key: str, form: str) -> Callable[[Row], str]:
    """A figure of a row; empty where it has none."""
    return lambda row: format(row[key], form) if key in row else ""


def _microseconds(who: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        seconds = row["seconds"][who]
        return f"{1e6 * seconds.get('device', seconds['wall'])['median']:.0f}"

    return cell


def _ratios(row: Row) -> str:
    """Of each contestant to the reference: the median and the quartiles."""
    seconds = row.get("seconds")
    ratios = (
        {who: part["ratio"] for who, part in seconds.items() if "ratio" in part} if isinstance(seconds, dict) else {}
    )
    shown = [f"{who} {ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})" for who, ratio in ratios.items()]
    return ", ".join(shown)


def _sync_free(row: Row) -> str:
    value = row.get("sync_free", "")
    return "yes" if value is True else f"no: {value}" if value else ""


def _busy(row: Row) -> str:
    busy = row.get("busy")
    if isinstance(busy, dict):
        return ", ".join(f"{who} {_percent(share)}" for who, share in busy.items())
    return _percent(busy)


TABLES: dict[str, tuple[str, dict[str, Callable[[Row], str]]]] = {
    "tests": (
        "Tests for GPUs",
        {
            "passed": _number("passed", "d"),
            "failed": _number("failed", "d"),
            "skipped": _number("skipped", "d"),
            "which failed": lambda row: "; ".join(f"{name}: {text}" for name, text in row["failures"].items()),
        },
    ),
    "kernels": (
        "Kernels",
        {
            "ours, us": _microseconds("ours"),
            "torchvision's, us": _microseconds("torchvision"),
            "ratio": _ratios,
            "GB/s": lambda row: f"{row['bandwidth'] / 1e9:.0f}",
            "of a copy's": lambda row: _percent(row["share_of_copy"]),
            "off the oracle": _number("difference_from_oracle", ".1e"),
            "off torchvision": _number("difference_from_torchvision", ".1e"),
        },
    ),
    "training": (
        "Training steps, bf16, random weights, generated images",
        {
            "batch": _number("batch_size", "d"),
            "ms a step": _number("ms_per_step", ".1f"),
            "images/s": _number("images_per_second", ".1f"),
            "GPU busy": _busy,
            "memory, GiB": _number("memory_gib", ".1f"),
            "reserved": _number("reserved_gib", ".1f"),
            "loss": lambda row: f"{row['loss_first']:.3g} -> {row['loss_last']:.3g} in {row['steps']} steps",
            "sync-free": _sync_free,
        },
    ),
    "suite": (
        "Beside torchvision",
        {
            "ratio": _ratios,
            "of the roofline": lambda row: _percent(row.get("share_of_roofline")),
            "GPU busy": _busy,
            "sync-free": _sync_free,
        },
    ),
}
"""Stage -> title and columns."""
