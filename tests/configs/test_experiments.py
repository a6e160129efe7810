"""The experiments: every config loads with the changes, and all nets of one comparison see the same images."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.classification import ClassificationConfig
from configs.experiments import ExperimentConfig
from configs.loading import load_config
from tools.runtime.experiments import plan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted((CONFIGS / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_is_there_and_nets_have_one_budget(path):
    experiment = load_config(path, (), ExperimentConfig)
    trainings = plan(experiment, CONFIGS, Path("runs"))
    assert bool(trainings) == bool(experiment.runs)
    classifiers = [each.config for each in trainings if isinstance(each.config, ClassificationConfig)]
    budgets = {(c.schedule.epochs, c.train.batch_size, c.data.train.root, c.data.augment) for c in classifiers}
    assert len(budgets) <= 1
    assert all(training.config.seed == training.seed for training in trainings)


def test_all_parts_of_the_paper_are_there():
    names = {path.stem for path in FILES}
    assert {"residual_learning", "shortcuts", "comparators", "constructed", "features_transfer"} <= names
    assert {"detection_bccd", "fitting", "improvements", "recipe", "speed", "full_runs"} <= names


def test_the_improvements_choose_on_images_that_neither_train_nor_test():
    experiment = load_config(CONFIGS / "experiments/improvements.yaml", (), ExperimentConfig)
    for training in plan(experiment, CONFIGS, Path("runs")):
        data = training.config.data
        assert [source.image_set for part in (data.train, data.val, data.test) for source in part] == [
            "train",
            "val",
            "test",
        ]
    assert sum(bool(test.among) for test in experiment.tests) == 3


RUNS = [{"name": "a", "config": "x"}, {"name": "b", "config": "x", "starts_from": "a", "deepen": [1]}]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"runs": []}, "give runs or measurements: there is nothing to do"),
        ({"runs": [*RUNS, RUNS[0]]}, "two rows are called a: give each its own name"),
        ({"tests": [{"name": "b", "run": "a"}]}, "two rows are called b"),
        ({"runs": RUNS[::-1]}, "b: starts_from: there is no earlier run a"),
        ({"runs": [{**RUNS[0], "deepen": [1]}]}, "a: deepen needs starts_from"),
        ({"tests": [{"name": "c", "run": "z"}]}, "c: there is no run z: there are a, b"),
        (
            {"claims": [{"claim": "it", "metric": "m", "pairs": [("a", "z")]}]},
            "claim 'it': there is no row z",
        ),
        ({"claims": [{"claim": "it helps", "metric": "m", "of": ["z"], "at_least": 1}]}, "there is no row z"),
        ({"claims": [{"claim": "it helps", "metric": "m", "of": ["a"]}]}, "of goes with at_least or at_most"),
        ({"claims": [{"claim": "it helps", "metric": "m"}]}, "without them nothing decides the claim"),
    ],
)
def test_names_lead_somewhere(changes, complaint):
    values = {"title": "t", "budget": "b", "runs": RUNS, "tests": [{"name": "c", "run": "b"}]}
    values["claims"] = [{"claim": "it helps", "metric": "m", "pairs": [("a", "c")], "of": ["b"], "at_most": 2}]
    with pytest.raises(ValidationError, match=complaint) if complaint else nullcontext():
        ExperimentConfig(**values | changes)
