"""Joint training of a detector as a task: its losses, figures and what its checkpoint says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from datasets.make_records import make_records
from detection.evaluation.data import Detections
from detection.model import build_detector
from tools.runtime import training
from tools.runtime.evaluation import Outcome
from tools.runtime.loop import _update
from tools.runtime.plan import make_plan
from tools.runtime.tasks import detection as module
from tools.runtime.tasks.detection import DetectionTask

CPU = torch.device("cpu")


def made(tiny_config, tmp_path, *overrides: str, validates: bool = True, **options) -> DetectionTask:
    config = load_config(tiny_config, list(overrides))
    train, test = (build_dataset(config.data, split, tmp_path) for split in ("train", "test"))
    torch.manual_seed(0)
    detector = build_detector(config.model, train.class_names, test=config.test).eval()
    return DetectionTask(config, detector, train, test if validates else None, CPU, **options)


def test_it_trains_by_the_configs_schedule(tiny_config, tmp_path):
    """Six images in batches of 2: an epoch has 3 iterations. The rate is stated for 2 images and halved for 1."""
    task = made(tiny_config, tmp_path, "schedule={epochs: 4, milestones: [2]}", start=10)
    assert task.net.training
    assert task.schedule.iterations == 12
    assert [task.rate(10 + iteration) for iteration in (0, 5, 6)] == pytest.approx([0.002, 0.002, 0.0002])
    one = made(tiny_config, tmp_path, "train.batch_size=1", validates=False)
    assert one.rate(0) == pytest.approx(0.001)
    assert (task.validates, one.validates) == (True, False)


def test_losses_are_the_detectors_at_the_runs_seed(tiny_config, tmp_path):
    task = made(tiny_config, tmp_path, "seed=3")
    batch = next(task.batches(0))
    losses = task.losses(batch, 5)
    state = {name: value.clone() for name, value in task.net.state_dict().items()}
    expected = task.net(batch, seed=3, iteration=5)
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    assert task.net.state_dict().keys() == state.keys()
    again = next(made(tiny_config, tmp_path, "seed=3").batches(1))
    assert again.index.tolist() != batch.index.tolist()


def test_steps_as_graphs_give_the_same_weights(tiny_config, tmp_path, graphs_on_the_cpu):
    """Parts, averages, clipping and the watch over losses go on; all batches have room for as many objects."""
    options = ("data.padded_sizes=2", "train.accumulate=2", "train.ema_decay=0.9", "optim.clip_norm=0.5")
    plain, graphed = (
        made(tiny_config, tmp_path, *options, f"train.graphs={graphs}", validates=False) for graphs in ("false", "true")
    )
    logged = []
    for task in (plain, graphed):
        plan, batches = make_plan(task, None, CPU), task.batches(0)
        for _ in range(4):
            _update(task, plan, [next(batches) for _ in range(2)])
            plan.state.iteration += 1
        logged.append((plan.monitor.read(task.image_name, task.rate), plan.ema.state_dict()))
    assert logged[0][0] == logged[1][0]
    for name, value in logged[0][1].items():
        assert torch.equal(value, logged[1][1][name]), name
    assert 0 < len(graphs_on_the_cpu) <= 4


@pytest.mark.parametrize(("graphs", "room"), [("false", 8), ("true", 32)])
def test_all_batches_of_graphs_have_room_for_the_most_objects_of_an_image(tiny_config, tmp_path, graphs, room):
    task = made(tiny_config, tmp_path, "data.padded_sizes=2", f"train.graphs={graphs}")
    records = task.train_set.records
    crowded = replace(records, offsets=records.offsets + 19 * (np.arange(len(records.offsets)) > 5))  # of the last one
    task.train_set.records = crowded
    task = DetectionTask(task.recipe, task.net, task.train_set, None, CPU)
    assert {next(task.batches(iteration)).valid.shape for iteration in range(2)} == {(2, room)}


def test_graphs_are_for_one_process(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(training.distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"train\.graphs: is for one process"):
        made(tiny_config, tmp_path, "train.graphs=true", "data.padded_sizes=2")


def test_the_checkpoint_is_a_detectors(tiny_config, tmp_path):
    task = made(tiny_config, tmp_path)
    content = task.checkpoint()
    assert (content["kind"], content["class_names"]) == ("detector", ["red", "blue"])
    assert content["config"] == load_config(tiny_config).model_dump(mode="json")
    assert content["preprocessing"] == task.net.preprocessing.to_dict()
    assert task.image_name(2) == "image_2"


@pytest.mark.parametrize(
    ("best", "value", "lower"), [("voc12.mAP", 0.25, False), ("coco.AP50", 0.5, False), ("loss", 1.5, True)]
)
def test_the_figure_that_chooses_the_best(tiny_config, tmp_path, monkeypatch, best, value, lower):
    task = made(tiny_config, tmp_path, f"train.best_metric={best}", "metrics=[voc12, coco]")
    metrics = {"voc12": {"mAP": 0.25, "per_class": {}}, "coco": {"AP": None, "AP50": 0.5, "per_class": {}}}
    nothing = Detections.from_images([], [], ["red", "blue"], frame="voc")
    outcome = Outcome(nothing, {"loss_objectness": 1.0, "loss": 1.5})
    asked = []
    monkeypatch.setattr(module, "run_detector", lambda *args, **options: asked.append((args, options)) or outcome)
    monkeypatch.setattr(module, "score", lambda records, detections, protocols: metrics)
    monkeypatch.setattr(module, "draw_image", lambda *_: np.zeros((8, 8, 3), np.uint8))
    found = task.validate(7)
    assert asked[0][0][:2] == (task.net, task.val_set)
    assert asked[0][1]["losses"]
    assert (found.value, found.lower_is_better, found.metrics) == (value, lower, metrics)
    assert found.logs == {
        "val": {"loss_objectness": 1.0, "loss": 1.5, "voc12": {"mAP": 0.25}, "coco": {"AP": None, "AP50": 0.5}}
    }
    assert found.words == "validation loss 1.5000, voc12 0.2500, coco without ground truth"
    assert found.picture is not None
    for name, objects in (("red", 2), ("blue", 1)):  # of the two test images, all missed at each threshold
        assert found.curves[name].tolist() == [[0] * 101, [0] * 101, [objects] * 101]
    task.is_final = False
    assert task.validate(7).value is None


def test_curves_over_the_scores():
    """Both cats are found, at 0.5 and at 0.25, and at 0.75 something that is no cat; no dog is to be found."""
    boxes = [(1, 2, 30, 40), (50, 2, 70, 40)]
    records = make_records(
        images=[("/x/a.jpg", "a", (100, 120))], boxes=boxes, labels=[1, 1], counts=[2], class_names=["cat", "dog"],
        source="s", annotation_file="{}",
    )  # fmt: skip
    image = SimpleNamespace(
        boxes=np.array([*boxes, (80, 50, 90, 60)], np.float32), scores=np.array([0.5, 0.25, 0.75], np.float32),
        labels=np.array([1, 1, 1]),
    )  # fmt: skip
    found = Detections.from_images(["a"], [image], ["cat", "dog"], frame="voc")
    (curve,) = module._curves(records, found).values()
    assert curve[0].tolist() == [2] * 26 + [1] * 25 + [0] * 50
    assert curve[1].tolist() == [1] * 76 + [0] * 25
    assert curve[2].tolist() == [0] * 26 + [1] * 25 + [2] * 50
