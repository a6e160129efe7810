"""Figures are drawn from JSON alone, of the experiments that have something to draw."""

from __future__ import annotations

import cv2

from configs.experiments import ExperimentConfig
from tools.runtime.results_figures import draw_figures
from tools.runtime.results_page import Page


def entry(name: str, seed: int, plain: bool, **more: list[float]) -> dict:
    curves = {split: {"iteration": [1, 2], "error": [0.9, 0.4 + seed / 10]} for split in ("train", "test")}
    return {"name": name, "seed": seed, "plain": plain, "train_error": 0.4, "curves": curves, **more}


def test_curves_and_responses_of_what_was_measured(tmp_path):
    runs = [{"name": name, "config": name} for name in ("deep", "plain")]
    experiment = ExperimentConfig(title="x", budget="x", runs=runs, figures=["curves", "responses"])
    entries = [entry("deep", 0, False, responses=[1.0, 0.5]), entry("deep", 1, False), entry("plain", 0, True)]
    page = Page({"x": experiment, "not_run": experiment}, {"x": {"runs": entries}}, tmp_path / "images")
    paths = draw_figures(page)
    assert [path.name for path in paths] == ["x_curves.png", "x_responses.png"]
    for path in paths:
        assert cv2.imread(str(path)).std() > 5, "something is drawn"
