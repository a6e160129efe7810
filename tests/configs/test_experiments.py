"""The experiments: every config loads with the changes, and all nets of one comparison see the same images."""

from __future__ import annotations

from pathlib import Path

import pytest

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
