"""Training of a classifier as a task: losses, the rate with its two events, and what a checkpoint keeps."""

from __future__ import annotations

import pytest
import torch

from backbones.classification import build_classifier
from backbones.preprocess import Normalize
from backbones.weights import Preprocessing
from configs.classification import ClassificationConfig
from configs.loading import parse_config
from datasets.classification import build_splits
from tools.runtime.tasks import classification as module
from tools.runtime.tasks.classification import WARMUP_WINDOW, ClassificationTask

CPU = torch.device("cpu")


@pytest.fixture
def make(classifier_values, tmp_path):
    """A function from overrides to a task on the tiny images."""

    def made(*overrides: str) -> ClassificationTask:
        config = parse_config(classifier_values, ["data.mean=[1,2,3]", *overrides], ClassificationConfig, "made")
        splits = build_splits(config.data, tmp_path)
        torch.manual_seed(0)
        net = build_classifier(config.model, 3)
        return ClassificationTask(config, net, Normalize(Preprocessing((1, 2, 3), (50, 50, 50))), splits, CPU)

    return made


def errors(top1: float) -> dict[str, float]:
    return {"top1_error": top1, "top5_error": 0.0, "loss": 2 * top1, "images": 24}


def test_the_loss_is_the_cross_entropy_and_wrong_answers_are_counted(make):
    task = make()
    batch = next(task.batches(0))
    loss = task.losses(batch, 0)["cross_entropy"]
    logits = task.net(batch.images)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch.labels))
    wrong = (logits.argmax(1) != batch.labels).double().mean().item()
    assert task.figures() == {"top1_error": wrong}
    smoothed = make("train.label_smoothing=0.3").losses(batch, 0)["cross_entropy"]
    assert smoothed != loss


def test_the_rate_is_the_schedules_times_the_events(make):
    task = make("schedule.warmup_until_error=0.8", "schedule.warmup_until_factor=0.1")
    assert [task.rate(iteration) for iteration in (0, 4)] == pytest.approx([0.005, 0.0005])
    task.error.add(torch.tensor(40), 100)
    task.step_done(WARMUP_WINDOW - 1)
    assert task.warmup.waiting
    task.step_done(WARMUP_WINDOW)
    assert task.rate(WARMUP_WINDOW - 1) == pytest.approx(0.0005)
    assert task.rate(WARMUP_WINDOW) == pytest.approx(0.005)
    task.plateau.events.append(2)
    assert task.rate(1) == pytest.approx(0.005)
    assert make().rate(0) == pytest.approx(0.05)


def test_plateaus_end_the_training(make, monkeypatch):
    plateau = "schedule={iterations: 9, policy: plateau, plateau_patience: 1, plateau_steps: 1}"
    task = make(plateau)
    for error, rate, finished in ((0.5, 0.05, False), (0.5, 0.005, False), (0.6, 0.005, True)):
        monkeypatch.setattr(module, "test_sets", lambda *_, e=error: {"val": errors(e), "test": errors(0.1)})
        task.validate(3)
        assert task.rate(3) == pytest.approx(rate)
        assert task.finished() == finished
    assert (task.plateau.lowest, task.plateau.events[0]) == (0.5, 3)


def test_the_validation_set_chooses_and_the_test_set_where_there_is_none(make, monkeypatch):
    task = make()
    for metrics, value in (
        ({"val": errors(0.25), "test": errors(0.5)}, 0.25),
        ({"test": errors(0.5)}, 0.5),
    ):
        monkeypatch.setattr(module, "test_sets", lambda *_, m=metrics: m)
        found = task.validate(3)
        assert (found.value, found.lower_is_better, found.metrics, found.logs) == (value, True, metrics, metrics)
    assert "test error 50.00 %" in found.words
    assert make("train.best_metric=loss").validate(3).value == 1.0
    assert task.plateau.lowest == float("inf")  # another policy takes no notice
    assert (make().validates, make("data.val=null", "data.test=null", "train.validate_every=null").validates) == (
        True,
        False,
    )


def test_a_checkpoint_goes_on_with_the_events(make):
    task = make("schedule.warmup_until_error=0.8")
    task.warmup.event, task.plateau.events = 7, [9]
    task.error.add(torch.tensor(3), 8)
    content = task.checkpoint()
    assert (content["kind"], content["class_names"]) == ("classifier", ["blue", "green", "red"])
    assert content["config"] == task.recipe.model_dump(mode="json")
    assert list(content["preprocessing"]["mean"]) == [1, 2, 3]
    assert "mean_image" not in content
    for training in (content["training"], {"state": content["training"]["events"]}):  # and those of older versions
        again = make("schedule.warmup_until_error=0.8")
        again.load(training)
        assert (again.warmup.event, again.plateau.events) == (7, [9])
        assert again.error.state_dict() == task.error.state_dict()
    task.normalize.mean_image = torch.ones(3, 12, 12)
    assert torch.equal(task.checkpoint()["mean_image"], torch.ones(3, 12, 12))


def test_images_are_called_by_their_number_or_path(make):
    assert make().image_name(3) == "number 3"
    assert make("data.augment={crop: random_resized}").image_name(3).endswith(".png")
