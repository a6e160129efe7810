"""Old names of keys: in files, in `--set`, and in the configs of old checkpoints."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.loading import load_config, parse_config
from configs.localisation import LocalisationConfig
from configs.messages import dotted_names
from configs.moved import MOVED, REMOVED, with_new_names
from detection.checkpoint import load_detector
from detection.model import build_detector
from tools.runtime.resume import refuse_another_training

SCHEMAS: dict[type[BaseModel], str] = {
    DetectionConfig: "demo",
    ClassificationConfig: "cifar_resnet20",
    LocalisationConfig: "tiny_imagenet_loc_rpn",
}
"""Each with a config of its kind."""
VALUES = {
    "data": {"train": [{"format": "generated", "image_set": "train"}]},
    "model": {"backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0},
    "optim": {"lr": 1e-3, "reference_batch_size": 1},
    "schedule": {"iterations": 10},
    "train": {"batch_size": 2},
}
OLD = {"score_thresh": 0.25, "nms_thresh": 0.4, "detections_per_img": 7}
"""As they stood in model.box."""


def parse(values: dict, *overrides: str, stored: bool = False) -> DetectionConfig:
    return parse_config(values, overrides, DetectionConfig, "my.yaml", stored=stored)


def with_old(**box: float) -> dict:
    return VALUES | {"model": VALUES["model"] | {"box": {"pool_size": 7, **box}}}


def thresholds(config: DetectionConfig) -> dict:
    return {name: getattr(config.test, name) for name in OLD}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_tables_lead_from_names_that_are_gone_to_names_that_exist(schema, root):
    names = set(dotted_names(schema))
    page = (root / "docs/migration.md").read_text()
    for old, new in MOVED.get(schema, {}).items():
        assert old not in names
        assert new in names
        assert f"| `{old}` | `{new}` |" in page
    for name in REMOVED.get(schema, {}):
        assert name not in names
        assert f"`{name}`" in page


def test_old_names_in_a_file_are_the_new_ones_and_say_so(caplog):
    given = with_old(**OLD)
    before = copy.deepcopy(given)
    config = parse(given)
    assert thresholds(config) == OLD
    assert config.model.box.pool_size == 7
    assert given == before
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"my.yaml: model.box.{name} is now called test.{name}" for name in OLD]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert parse(VALUES | {"model": given["model"] | {"box": {"pool_size": 7}}, "test": OLD}) == config


def test_old_names_join_what_the_new_section_holds():
    config = parse(with_old(nms_thresh=0.4) | {"test": {"refine_rounds": 1, "score_thresh": 0.2}})
    assert (config.test.refine_rounds, config.test.score_thresh, config.test.nms_thresh) == (1, 0.2, 0.4)


def test_a_key_under_both_names_is_refused():
    with pytest.raises(UserError, match=r"^my\.yaml: model\.box\.nms_thresh is the old name of test\.nms_thresh, and"):
        parse(with_old(nms_thresh=0.4) | {"test": {"nms_thresh": 0.4}})


def test_old_names_on_the_command_line_win_over_the_file_and_say_so(caplog):
    config = parse(VALUES | {"test": OLD}, "model.box.nms_thresh=0.3")
    assert thresholds(config) == OLD | {"nms_thresh": 0.3}
    (record,) = caplog.records
    assert record.getMessage() == "--set model.box.nms_thresh=0.3: model.box.nms_thresh is now called test.nms_thresh"
    with pytest.raises(UserError, match=r"^--set model\.box\.nms_thresh=2: test\.nms_thresh must be at most 1, not 2"):
        parse(VALUES, "model.box.nms_thresh=2")


def test_old_names_inside_a_section_on_the_command_line():
    override = "model.box={pool_size: 7, nms_thresh: 0.3}"
    assert parse(VALUES, override).test.nms_thresh == 0.3
    with pytest.raises(UserError, match=r"^--set model\.box=.*: model\.box\.nms_thresh is the old name of"):
        parse(VALUES | {"test": OLD}, override)


@pytest.mark.parametrize("values", [{"test": 3}, {"test": [1]}])
def test_what_has_no_room_for_the_new_name_is_told(values):
    with pytest.raises(UserError, match="test must be a mapping"):
        parse(with_old(nms_thresh=0.4) | values)


def test_stored_configs_are_read_without_a_word(caplog):
    """Every option of an old checkpoint's config is there, defaults too."""
    config = load_config(Path(__file__).parents[2] / "configs/frcnn_r101_voc_plus.yaml")
    stored = config.model_dump(mode="json")
    for name in OLD:
        stored["model"]["box"][name] = stored["test"].pop(name)
    assert parse(stored, stored=True) == config
    assert not caplog.records


@pytest.mark.parametrize(
    ("schema", "name", "default", "other"),
    [
        (ClassificationConfig, "alternating", None, {}),
        (LocalisationConfig, "alternating", None, {}),
        (LocalisationConfig, "compile", False, True),
    ],
)
def test_options_that_nothing_read(schema, name, default, other, root, caplog):
    """Old run folders and checkpoints hold them; nobody may believe in them."""
    config = load_config(root / f"configs/{SCHEMAS[schema]}.yaml", (), schema)
    old = config.model_dump(mode="json")
    old["train"][name] = default
    assert parse_config(old, (), schema, "config.yaml", stored=True) == config
    assert not caplog.records
    assert parse_config(old, (), schema, "config.yaml") == config
    (record,) = caplog.records
    assert record.getMessage() == f"config.yaml: train.{name} does nothing and is no longer an option: remove it"
    old["train"][name] = other
    with pytest.raises(UserError, match=rf"^config\.yaml: train\.{name} does nothing in this kind of training"):
        parse_config(old, (), schema, "config.yaml")
    assert parse_config(old, (), schema, "a.pt", stored=True) == config


def test_stored_configs_may_hold_what_nothing_read(root, caplog):
    """Today a config with them is refused; a checkpoint loads, as if they had been left out."""
    config = load_config(root / "configs/demo.yaml")
    stored = config.model_dump(mode="json")
    assert stored["schedule"]["policy"] == "cosine"
    stored["schedule"] |= {"milestones": [5], "gamma": 0.5}
    stored["optim"]["nesterov"] = True
    stored["train"]["alternating"] = {"rpn": {"schedule": stored["schedule"]}}
    loaded = parse(stored, stored=True)
    assert (loaded.schedule, loaded.optim) == (config.schedule, config.optim)
    assert loaded.train.alternating is not None
    assert loaded.train.alternating.rpn.schedule == config.schedule
    assert not caplog.records
    with pytest.raises(
        UserError, match=r"^my\.yaml: optim: name adamw does not read nesterov.*; my\.yaml: schedule: policy"
    ):
        parse(stored)
    images = load_config(root / "configs/cifar_resnet20.yaml", (), ClassificationConfig)
    stored = images.model_dump(mode="json")
    stored["data"]["augment"]["area"] = [0.2, 0.3]
    assert parse_config(stored, (), ClassificationConfig, "a.pt", stored=True) == images


def test_old_checkpoints_resume_and_say_which_threshold_changed(capsys):
    config = parse(VALUES | {"test": OLD})
    stored = config.model_dump(mode="json")
    for name in OLD:
        stored["model"]["box"][name] = stored["test"].pop(name)
    refuse_another_training(Path("a.pt"), stored, config, ["cat"], ["cat"])
    assert capsys.readouterr().out == ""
    stored["model"]["box"]["nms_thresh"] = 0.5
    refuse_another_training(Path("a.pt"), stored, config, ["cat"], ["cat"])
    assert capsys.readouterr().out == "resumed with test.nms_thresh 0.4 (before: 0.5)\n"


def test_old_checkpoints_detect_by_their_thresholds(tmp_path, caplog):
    config = parse(VALUES | {"test": OLD})
    detector = build_detector(config.model, ["cat"])
    stored = config.model_dump(mode="json")
    for name in OLD:
        stored["model"]["box"][name] = stored["test"].pop(name)
    content = {
        "format": 1, "kind": "detector", "config": stored, "class_names": ["cat"],
        "preprocessing": detector.preprocessing.to_dict(), "model": detector.state_dict(),
    }  # fmt: skip
    torch.save(content, tmp_path / "old.pt")
    loaded, read = load_detector(tmp_path / "old.pt")
    assert read == config
    assert loaded.test == config.test
    assert not caplog.records


def test_other_schemas_have_names_of_their_own():
    values = {"model": {"box": {"nms_thresh": 0.4}}}
    assert with_new_names(values, ClassificationConfig, "x") == values
