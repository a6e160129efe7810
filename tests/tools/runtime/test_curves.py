"""Curves from metrics.jsonl: what is read, what is drawn, and files that are cut short or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from tools.runtime import curves
from tools.runtime.curves import curve, find_curve, names_of, read_rows, write_comparison, write_curves

ROWS: list[dict[str, Any]] = [
    {"iteration": 10, "split": "train", "rate": 0.1, "loss_a": 1.0, "loss_b": 0.5, "loss": 1.5, "seconds": 2.0},
    {"iteration": 10, "split": "val", "loss": 1.4, "voc12": {"mAP": 0.25}, "coco": {"AP": 0.1, "APl": None}},
    {"iteration": 10, "split": "val_classes", "voc12": {"cat": 0.5, "dog": 0.0}},
    {"iteration": 20, "split": "train", "rate": 0.01, "loss_a": 0.5, "loss_b": 0.25, "loss": 0.75, "seconds": 1.0},
    {"iteration": 20, "split": "val", "loss": 0.9, "voc12": {"mAP": 0.5}, "coco": {"AP": 0.2, "APl": None}},
]


def write(folder: Path, rows: list[dict[str, Any]] = ROWS, end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return folder


def test_figures_by_name(tmp_path):
    rows = read_rows(write(tmp_path) / "metrics.jsonl")
    assert find_curve(rows, "voc12.mAP") == ([10, 20], [0.25, 0.5])
    assert find_curve(rows, "loss") == find_curve(rows, "val.loss") == ([10, 20], [1.4, 0.9])
    assert find_curve(rows, "train.loss") == ([10, 20], [1.5, 0.75])
    assert find_curve(rows, "coco.APl") == find_curve(rows, "nothing") == ([], [])
    assert curve(rows, "val_classes", "voc12.cat") == ([10], [0.5])
    assert names_of(rows) == ["loss", "voc12.mAP", "coco.AP"]


def test_test_set_counts_where_there_is_no_validation_set(tmp_path):
    rows = [{"iteration": 5, "split": "test", "top1_error": 0.5}]
    assert find_curve(read_rows(write(tmp_path, rows) / "metrics.jsonl"), "top1_error") == ([5], [0.5])


def test_last_line_may_be_cut_short(tmp_path):
    folder = write(tmp_path, end='{"iteration": 30, "spl')
    assert len(read_rows(folder / "metrics.jsonl")) == len(ROWS)


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"split": "val"}'])
def test_damaged_line_is_named(tmp_path, line):
    folder = write(tmp_path, end=f'{line}\n{{"iteration": 30}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 6"):
        read_rows(folder / "metrics.jsonl")


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """The figures that are drawn, which matplotlib can be asked about."""
    kept: list[Any] = []
    real = curves._png

    def png(figure):
        kept.append(figure)
        return real(figure)

    monkeypatch.setattr(curves, "_png", png)
    return kept


def lines_of(axis) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}


def test_picture_shows_the_log(tmp_path, drawn):
    path = write_curves(write(tmp_path))
    assert path == tmp_path / "curves.png"
    losses, validations, rates, times = drawn[0].axes
    assert lines_of(losses) == {"training": [1.5, 0.75], "a": [1.0, 0.5], "b": [0.5, 0.25], "validation": [1.4, 0.9]}
    assert lines_of(validations) == {"voc12.mAP": [0.25, 0.5], "coco.AP": [0.1, 0.2]}
    assert list(lines_of(rates).values()) == [[0.1, 0.01]]
    assert list(lines_of(times).values()) == [[2.0, 1.0]]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_phases_are_parted(tmp_path, drawn):
    rows = [{"iteration": i, "split": "train", "phase": 1 + i // 3, "loss": 1.0} for i in range(1, 6)]
    write_curves(write(tmp_path, rows))
    vertical = [list(line.get_xdata()) for line in drawn[0].axes[0].get_lines() if line.get_linestyle() == ":"]
    assert vertical == [[2, 2]]
    assert drawn[0].axes[1].get_title(loc="left") == "no validation"


def test_nothing_logged_nothing_drawn(tmp_path):
    assert write_curves(write(tmp_path, [])) is None
    assert not (tmp_path / "curves.png").exists()


def test_runs_side_by_side(tmp_path, drawn):
    rows = read_rows(write(tmp_path) / "metrics.jsonl")
    write_comparison(tmp_path / "both.png", {"a": rows, "b": rows[:3], "c": []}, ["voc12.mAP", "train.loss"])
    first, second = drawn[0].axes
    assert lines_of(first) == {"a": [0.25, 0.5], "b": [0.25]}
    assert lines_of(second) == {"a": [1.5, 0.75], "b": [1.5]}
    with pytest.raises(UserError, match=r"--metric voc12\.map: no run has such a figure \(did you mean voc12\.mAP\?\)"):
        write_comparison(tmp_path / "none.png", {"a": rows}, ["voc12.map"])
    write_comparison(tmp_path / "many.png", {f"run {number}": rows for number in range(20)}, ["voc12.mAP"])
    (panel,) = drawn[1].axes
    drawn[1].draw_without_rendering()
    legend = panel.get_legend().get_window_extent()
    assert legend.x0 >= panel.get_window_extent().x1  # covers no curve, and is on the picture
    assert legend.x1 <= drawn[1].bbox.x1
    assert legend.height <= drawn[1].bbox.height
