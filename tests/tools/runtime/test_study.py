"""Curves, tables and responses of a study, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.runtime.study import Curves, Run, mean_curve, read_curves, thinned, write_csv, write_curves


def test_curves_are_averaged_over_seeds_and_thinned():
    assert thinned([(i, float(i)) for i in range(1, 8)], points=3) == [(3, 2.0), (6, 5.0), (7, 7.0)]
    assert thinned([]) == []
    assert mean_curve([[(1, 0.2), (2, 0.4)], [(1, 0.4), (2, 0.2), (3, 0.1)]]) == [
        (1, pytest.approx(0.3)),
        (2, pytest.approx(0.3)),
    ]


def run_of(folder: Path, plain: bool = False, **data) -> Run:
    """A run whose config says no more than a study asks."""
    config = SimpleNamespace(data=SimpleNamespace(test=data.get("test")), model=SimpleNamespace(plain=plain))
    return Run(folder.name, 0, config, folder)


def line(split: str, iteration: int, epoch: float, error: float | None = None, **more) -> str:
    return json.dumps({"split": split, "iteration": iteration, "epoch": epoch, "top1_error": error, **more})


def test_curves_of_a_run_by_hand(tmp_path):
    """The training error is that of the last epoch: lines after epoch 1.5 - 1. Lines without an error are no points."""
    lines = [
        line("train", 10, 0.5, 0.9), line("train", 20, 1.0, 0.6), line("val", 20, 1.0, 0.55),
        line("train", 25, 1.2, None, loss=0.1), line("train", 30, 1.5, 0.4), line("test", 30, 1.5, 0.5),
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curves = read_curves(run_of(tmp_path))
    assert curves.train == [(10, 0.9), (20, 0.6), (30, 0.4)]
    assert curves.test == [(20, 0.55)]
    assert curves.last_epoch == pytest.approx(0.5)
    assert read_curves(run_of(tmp_path, test="a set")).test == [(30, 0.5)]
    (tmp_path / "metrics.jsonl").write_text(line("test", 1, 0.1, 0.5))
    assert math.isnan(read_curves(run_of(tmp_path, test="a set")).last_epoch)


def test_curves_as_a_table(tmp_path):
    runs = [run_of(tmp_path / "net", plain=True), run_of(tmp_path / "other", test="a set")]
    curves = [Curves([(1, 0.5)], [(2, 1 / 3)], 0.5), Curves([], [(4, 0.25)], 0.5)]
    write_curves(runs, curves, tmp_path)
    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "config,seed,split,iteration,top1_error", "net,0,train,1,0.500000", "net,0,val,2,0.333333",
        "other,0,test,4,0.250000",
    ]  # fmt: skip
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_names_with_commas_are_quoted(tmp_path):
    write_csv(tmp_path / "x.csv", ("a", "b"), [("one, two", 3)])
    assert (tmp_path / "x.csv").read_text() == 'a,b\n"one, two",3\n'
