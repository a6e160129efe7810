"""Training of both stages of localisation as a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backbones.weights import IMAGENET
from configs.loading import parse_config
from configs.localisation import LocalisationConfig
from datasets.localisation import read_localisation
from detection.localisation import build_localiser
from tests.tools.made import localisation_values
from tools.runtime.tasks import localisation as module
from tools.runtime.tasks.localisation import LocalisationTask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("loc")


@pytest.fixture(scope="module")
def values(root: Path) -> dict:
    return localisation_values(root)


def made(values: dict, root: Path, stage: str, *overrides: str) -> LocalisationTask:
    def parse(stage: str) -> LocalisationConfig:
        proposals = ["model.rcnn.proposals=x.pt"] if stage == "rcnn" else []
        return parse_config(values, [f"model.stage={stage}", *proposals, *overrides], LocalisationConfig, "made")

    config = parse(stage)
    train, val = (read_localisation(source, root) for source in (config.data.train, config.data.val))
    torch.manual_seed(0)
    net = build_localiser(config.model, 2, preprocessing=IMAGENET)
    proposer = build_localiser(parse("rpn").model, 2, preprocessing=IMAGENET).eval() if stage == "rcnn" else None
    return LocalisationTask(config, net, proposer, train, val, CPU)


@pytest.mark.parametrize("stage", ["rpn", "rcnn"])
def test_a_step_trains_the_stage_and_nothing_else(values, root, stage):
    task = made(values, root, stage)
    assert task.net.training
    batch = next(task.batches(0))
    losses = task.losses(batch, 0)
    again = task.losses(batch, 0)
    assert all(torch.equal(losses[name], again[name]) for name in losses)  # the sample is the iteration's
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in task.net.parameters() if parameter.requires_grad)
    if task.proposer is not None:
        assert all(parameter.grad is None for parameter in task.proposer.parameters())


def test_proposals_lie_in_the_crop_and_are_of_the_images_own_class(values, root):
    task = made(values, root, "rcnn", "model.rcnn.proposals_per_image=7")
    batch = next(task.batches(0))
    found = task._proposals(batch)
    assert found.boxes.shape[:2] == (8, 1)
    assert found.boxes.shape[2] <= 7
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 32
    assert (found.boxes[..., 2:] - found.boxes[..., :2]).flatten(0, 2).amax(0).min() > 8, "both sides have an extent"


def test_members_of_a_validation(values, root):
    rpn = made(values, root, "rpn")
    assert (rpn.members.rpns, list(rpn.members.rcnns)) == ([rpn.net], [])
    (classifier,) = rpn.members.classifiers
    assert (classifier.net, classifier.normalize, classifier.crop_size) == (rpn.net.net, rpn.net.normalize, 32)
    silent = made(values, root, "rpn", "model.rpn.classification_loss_weight=0")
    assert silent.members.classifiers == []  # it has learned no classes
    rcnn = made(values, root, "rcnn")
    assert (rcnn.members.rpns, rcnn.members.rcnns) == ([rcnn.proposer], [rcnn.net])


def test_the_error_that_chooses_the_best(values, root, monkeypatch):
    task = made(values, root, "rpn", "train.best_metric=true_class_error")
    seen = []
    monkeypatch.setattr(module, "predict", lambda *args, **options: seen.append(options["view"]) or "found")
    metrics = {"true_class_error": 0.25, "top1_error": 0.5, "images": 12}
    asked = []
    monkeypatch.setattr(module, "figures", lambda *args: asked.append(args) or metrics)
    found = task.validate(3)
    assert asked == [("found", task.val_set)]
    assert seen == [task.recipe.test.validation_view]
    assert (found.value, found.lower_is_better, found.logs) == (0.25, True, {"val": metrics})
    assert found.words == "true_class_error 25.00 %, top1_error 50.00 %"


def test_the_checkpoint_is_a_localisers(values, root):
    task = made(values, root, "rpn", "schedule.warmup_iterations=0", "schedule.policy=constant")
    content = task.checkpoint()
    assert (content["kind"], content["class_names"]) == ("localiser", ["n01", "n02"])
    assert content["config"] == task.recipe.model_dump(mode="json")
    assert content["mean_boxes"] == task.class_means.tolist()
    assert content["preprocessing"] == IMAGENET.to_dict()
    assert task.rate(0) == pytest.approx(0.1)
    assert task.image_name(0).endswith("n01_0.png")
