"""The figures of docs/results.md, drawn from docs/results/*.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.runtime.results_page import Page
from tools.runtime.study import Curve, Curves, draw_curves, draw_responses


def draw_figures(page: Page) -> list[Path]:
    """Write <images>/<experiment>_<kind>.png for all that was measured; their paths."""
    paths = []
    for name, experiment in page.experiments.items():
        entries = [entry for entry in page.entries(name) if "curves" in entry]
        plain = {entry["name"]: entry["plain"] for entry in entries}
        responses = {entry["name"]: entry["responses"] for entry in entries if "responses" in entry}
        for kind in experiment.figures:
            path = page.images / f"{name}_{kind}.png"
            if kind == "curves" and entries:
                seeds: dict[str, list[Curves]] = {}
                for entry in entries:
                    seeds.setdefault(entry["name"], []).append(_curves(entry))
                draw_curves(seeds, plain, path)
                paths.append(path)
            elif kind == "responses" and responses:
                draw_responses(responses, plain, path)
                paths.append(path)
    return paths


def _curves(entry: Mapping[str, Any]) -> Curves:
    measured = next(split for split in entry["curves"] if split != "train")
    return Curves(_points(entry["curves"]["train"]), _points(entry["curves"][measured]), entry["train_error"])


def _points(columns: dict[str, list]) -> Curve:
    return list(zip(columns["iteration"], columns["error"], strict=True))
