"""What tests of an experiment are made with; trainings are in tests/tools/test_experiments.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from configs.experiments import TestedConfig, TrainedConfig
from tools.runtime import experiment_runs


def test_changes_are_chosen_on_val_by_the_mean_over_the_seeds(monkeypatch):
    on_val = {("a", 0): 0.3, ("a", 1): 0.5, ("b", 0): 0.45, ("b", 1): 0.36, ("", 0): 0.1, ("", 1): 0.1}
    asked = []

    def tested(group, overrides, split, machine):
        change = overrides[-1] if len(overrides) > 1 else ""
        asked.append((split, change, [training.seed for training in group]))
        value = on_val[change, group[0].seed] if split == "val" else 0.9
        return {"images": 1, "cpu_seconds_an_image": 0.0, "metrics": {"coco": {"AP": value}}}

    monkeypatch.setattr(experiment_runs, "_tested", tested)
    entry = TrainedConfig(name="net", config="x")
    trainings = [SimpleNamespace(entry=entry, seed=seed) for seed in (0, 1)]
    test = TestedConfig(name="t", run="net", overrides=["first"], among=[[], ["b"], ["a"]])
    entries = experiment_runs.carry_out_test(test, trainings, None)
    assert [each["overrides"] for each in entries] == [["first", "b"], ["first", "b"]]
    assert entries[0]["on_val"] == {"none": 0.1, "b": pytest.approx(0.405), "a": 0.4}
    assert [each for each in asked if each[0] == "test"] == [("test", "b", [0]), ("test", "b", [1])], "only the chosen"
    assert [(each["seed"], each["metrics"]["coco"]["AP"]) for each in entries] == [(0, 0.9), (1, 0.9)]

    asked.clear()
    together = TestedConfig(name="e", run="net", ensemble=True)
    (only,) = experiment_runs.carry_out_test(together, trainings, None)
    assert only["seeds"] == [0, 1]
    assert asked == [("test", "", [0, 1])]
