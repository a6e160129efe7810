"""The experiments' lists: every config exists, and all nets of one comparison have one budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.classification import ClassificationConfig
from configs.loading import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted((CONFIGS / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_is_there_and_sees_the_same_images(path):
    values = yaml.safe_load(path.read_text())
    assert values["claim"]
    assert values["seeds"]
    configs = [load_config(CONFIGS / f"{name}.yaml", [], ClassificationConfig) for name in values["configs"]]
    budgets = {(c.schedule.epochs, c.train.batch_size, c.data.train.root, c.data.augment) for c in configs}
    assert len(budgets) == 1


def test_there_are_experiments():
    assert {"comparators", "constructed"} <= {path.stem for path in FILES}
