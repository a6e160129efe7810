"""A phase of alternating training as a task: its part of the recipe, and what it validates and keeps."""

from __future__ import annotations

import pytest
import torch

from configs.loading import load_config
from datasets.build import build_dataset
from detection.alternating import PHASES, Alternating
from detection.model import build_detector
from tools.runtime.tasks.alternating import PhaseTask, config_of_phase

ALTERNATING = (
    "train.alternating={rpn: {batch_size: 1, schedule: {iterations: 2}}, "
    "detector: {lr: 0.5, reference_batch_size: 4, schedule: {iterations: 3, milestones: [2]}}}"
)


def test_each_phase_has_its_part_of_the_recipe(tiny_config):
    config = load_config(tiny_config, [ALTERNATING])
    for phase in PHASES:
        own = config_of_phase(config, phase)
        optim, detects = own.optim, phase.number in (2, 4)
        assert own.train.batch_size == (2 if detects else 1)
        assert (optim.lr, optim.reference_batch_size) == ((0.5, 4) if detects else (0.002, 2))
        assert (own.schedule.iterations, own.schedule.milestones) == ((3, [2]) if detects else (2, []))
        assert own.model == config.model
        assert own.data == config.data
    assert config.train.batch_size == 2  # the whole recipe is as it was


def test_what_a_phase_leaves_open_is_the_rests(tiny_config):
    plain = load_config(tiny_config)
    config = load_config(tiny_config, ["train.alternating={}"])
    for phase in PHASES:
        own = config_of_phase(config, phase)
        assert (own.optim, own.schedule, own.train.batch_size) == (config.optim, config.schedule, 2)
        assert config_of_phase(plain, phase) is plain


@pytest.mark.parametrize(
    ("number", "validates", "final"), [(1, False, False), (2, True, False), (3, False, False), (4, True, True)]
)
def test_phases_as_tasks(tiny_config, tmp_path, number, validates, final):
    config = load_config(tiny_config, [ALTERNATING])
    train, test = (build_dataset(config.data, split, tmp_path) for split in ("train", "test"))
    detector = build_detector(config.model, train.class_names)
    alternating, phase = Alternating(detector), PHASES[number - 1]
    for earlier in PHASES[:number]:
        alternating.begin(earlier)
    task = PhaseTask(config, alternating, phase, train, test, torch.device("cpu"), start=7)
    assert (task.validates, task.is_final, task.start) == (validates, final, 7)
    assert task.rate(7) == pytest.approx(0.25 if phase.detects else 0.001)
    trains = {name.split(".")[0] for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert trains == set(phase.parts)
    losses = task.losses(next(task.batches(0)), 0)
    assert set(losses) == (
        {"loss_classifier", "loss_box_reg"} if phase.detects else {"loss_objectness", "loss_rpn_box_reg"}
    )
    content = task.checkpoint()
    assert content["config"] == config.model_dump(mode="json")
    kept = content["training"]["alternating"]
    assert (kept["first_body"] is not None, kept["proposer"] is not None) == (number == 1, number == 2)
    assert content["kind"] == "detector"
