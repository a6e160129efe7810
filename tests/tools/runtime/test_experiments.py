"""The plan of an experiment, and the time that its runs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.experiments import ExperimentConfig
from tools.runtime.experiments import plan, timed, write_results


def test_a_start_is_of_the_same_seed_or_else_of_the_first(classifier_config, tiny_config):
    detector = {"name": "detector", "config": "tiny", "starts_from": "net", "seeds": [0, 1]}
    values = {"title": "x", "budget": "x", "runs": [{"name": "net", "config": "classifier", "seeds": [1, 2]}, detector]}
    trainings = plan(ExperimentConfig(**values), tiny_config.parent, Path("out"))
    assert [(each.entry.name, each.seed, each.config.seed) for each in trainings] == [
        ("net", 1, 1), ("net", 2, 2), ("detector", 0, 0), ("detector", 1, 1),
    ]  # fmt: skip
    for training in trainings[2:]:
        assert training.weights == Path("out/net/seed1/last.pt")
        assert training.config.model.weights == str(Path.cwd() / "out/net/seed1/last.pt")
    values["runs"].append({"name": "another", "config": "tiny", "starts_from": "detector"})
    with pytest.raises(UserError, match="detector trains no classifier"):
        plan(ExperimentConfig(**values), tiny_config.parent, Path("out"))


def test_time_is_added_up_over_sessions_and_a_killed_one_shows(tmp_path):
    with pytest.raises(ZeroDivisionError), timed(tmp_path, "abc"):
        sum(range(2_000_000)) // 0
    first = json.loads((tmp_path / "time.json").read_text())
    assert first["cpu_seconds"] > 0
    assert (first["sessions"], first["ended"]) == (1, 1)
    with timed(tmp_path, "def"):
        within = json.loads((tmp_path / "time.json").read_text())
        assert (within["sessions"], within["ended"]) == (2, 1), "what a kill would leave"
        sum(range(2_000_000))
    second = json.loads((tmp_path / "time.json").read_text())
    assert second["cpu_seconds"] > first["cpu_seconds"]
    assert second["commit"] == "def"


def test_lists_of_numbers_take_one_line(tmp_path):
    content = {"runs": [{"error": [0.5, 0.25, None], "overrides": ["a=[1, 2]", "b"], "seed": 0}], "tests": []}
    write_results(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == content
    assert '"error": [0.5, 0.25, null]' in text
