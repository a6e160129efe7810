"""The loop with a task whose every number can be worked out by hand; an update that waits for nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.errors import UserError
from configs.loading import load_config
from datasets.build import build_dataset
from detection.model import build_detector
from tests.tools.runtime.one_weight import CPU, OneWeight, lines, load, train, weight
from tools.runtime import cli, loop
from tools.runtime.plan import make_plan
from tools.runtime.run_folder import RunFolder
from tools.runtime.tasks.detection import DetectionTask
from tools.runtime.training import NonFiniteLoss


def test_updates_logs_and_checkpoints(tmp_path, capsys):
    """w after 4 updates: 1 - 0.1 * (0 + 1 + 2 + 3) = 0.4; the best figure is the third one's, when w was 0.7."""
    task = OneWeight(figures=(1.0, 0.5, 2.0, 1.5))
    state = train(task, tmp_path)
    assert task.net.weight.item() == pytest.approx(0.4)
    assert (state.iteration, state.validated, state.best, state.validations_without_better) == (4, 4, 2.0, 1)
    assert weight(tmp_path / "last.pt") == pytest.approx(0.4)
    assert weight(tmp_path / "best.pt") == pytest.approx(0.7)
    assert "optimizer" in load(tmp_path / "last.pt")["training"]
    assert "optimizer" not in load(tmp_path / "best.pt")["training"]
    assert task.validated == [(i, pytest.approx(value)) for i, value in enumerate((1.0, 0.9, 0.7, 0.4), 1)]
    logged = lines(tmp_path)
    assert [(line["iteration"], line["split"]) for line in logged] == [
        (i, split) for i in (1, 2, 3, 4) for split in ("train", "val")
    ]
    third = logged[4]
    assert "replaced" not in third, "no image may be replaced"
    assert third["linear"] == third["loss"] == pytest.approx(2 * 0.9)
    assert (third["epoch"], third["rate"], third["gradient_norm"]) == (1.5, 0.1, 2.0)
    assert "ended early" not in capsys.readouterr().out


def test_accumulated_parts_are_averaged(tmp_path):
    """Steps of the batches (0, 1) and (2, 3): w = 1 - 0.1 * (0.5 + 2.5) = 0.7."""
    task = OneWeight(iterations=2, accumulate=2)
    train(task, tmp_path)
    assert task.net.weight.item() == pytest.approx(0.7)


def test_the_average_is_validated_saved_and_left(tmp_path):
    """Decay min(0.5, (1 + i) / (10 + i)): 0.1, then 2 / 11; the weights are 1.0 and 0.9."""
    task = OneWeight(iterations=2, ema_decay=0.5)
    train(task, tmp_path)
    average = 2 / 11 * 1.0 + 9 / 11 * 0.9
    assert task.validated[-1][1] == pytest.approx(average)
    assert weight(tmp_path / "last.pt") == pytest.approx(average)
    assert load(tmp_path / "last.pt")["training"]["weights"]["weight"].item() == pytest.approx(0.9)
    assert task.net.weight.item() == pytest.approx(average)


def test_patience(tmp_path, capsys):
    state = train(OneWeight(iterations=9, patience=2, figures=(1.0, 2.0, 1.5, 1.9)), tmp_path)
    assert state.iteration == 4
    assert "ended early after 4 iterations" in capsys.readouterr().out


def test_a_validation_without_a_figure_does_not_count_for_patience(tmp_path):
    """Two that are worse than the first, with three between them that measure nothing."""
    state = train(OneWeight(iterations=9, patience=2, figures=(1.0, None, None, 0.5, None, 0.9)), tmp_path)
    assert (state.iteration, state.best, state.validations_without_better) == (6, 1.0, 2)
    assert weight(tmp_path / "best.pt") == pytest.approx(1.0)


def test_a_figure_that_is_not_a_number_is_never_the_best(tmp_path):
    nan = float("nan")
    task = OneWeight(iterations=9, patience=2, figures=(nan, 1.0, nan, 0.5))
    state = train(task, tmp_path)
    assert (state.iteration, state.best) == (4, 1.0)
    assert weight(tmp_path / "best.pt") == pytest.approx(0.9)


def test_without_validation_the_last_is_the_best(tmp_path):
    task = OneWeight(validates=False)
    train(task, tmp_path)
    assert task.validated == []
    assert weight(tmp_path / "best.pt") == weight(tmp_path / "last.pt") == pytest.approx(0.4)


def test_a_checkpoint_is_written_before_a_validation(tmp_path):
    task = OneWeight()

    def killed(iteration):
        raise KeyboardInterrupt

    task.validate = killed
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path)
    assert load(tmp_path / "last.pt")["training"]["state"]["iteration"] == 1
    again = OneWeight()
    train(again, tmp_path, resumed=True)
    assert [iteration for iteration, _ in again.validated] == [1, 2, 3, 4]


@pytest.mark.parametrize("stop_in", [1, 2, 3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, stop_in):
    """Between two lines of the log too: the sums of the losses go along, and the optimiser's momentum."""
    options = {
        "momentum": 0.5,
        "iterations": 6,
        "log_every": 3,
        "validate_every": 2,
        "ema_decay": 0.5,
        "figures": (0, 1, 0, 3, 0, 2),
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(OneWeight(**options), whole)
    task = OneWeight(**options)
    real = task.step_done

    def step_done(iteration):
        real(iteration)
        if iteration == stop_in:
            os.kill(os.getpid(), signal.SIGTERM)

    task.step_done = step_done
    with cli.StopRequest() as stop, pytest.raises(cli.Interrupted, match=f"after {stop_in} iterations?; .*--resume"):
        train(task, parts, stop=stop)
    train(OneWeight(**options), parts, resumed=True)
    assert lines(whole) == lines(parts)
    one, other = load(whole / "last.pt"), load(parts / "last.pt")
    assert torch.equal(one["model"]["weight"], other["model"]["weight"])
    assert one["training"]["state"] == other["training"]["state"]


def test_replaced_images_are_counted_in_the_log_also_after_a_resumption(tmp_path):
    """Each batch but the first holds one; a run that is stopped after the second counts all five too."""

    def start(fails_at):
        task = OneWeight(6, validates=False, log_every=3)
        task.recipe.data = SimpleNamespace(on_error="skip")
        task.fails_at, batches = fails_at, task.batches
        task.batches = lambda start: (replace(batch, replaced=int(batch.value > 0)) for batch in batches(start))
        return task

    train(start(None), tmp_path / "whole")
    with pytest.raises(UserError):
        train(start(2), tmp_path / "parts")
    train(start(None), tmp_path / "parts", resumed=True)
    assert [line["replaced"] for line in lines(tmp_path / "whole")] == [2, 5]
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_checkpoint_is_written_once_for_each_state(tmp_path, monkeypatch):
    """Before a validation and after it; what is due at the end as well is not written again."""
    written = []
    monkeypatch.setattr(
        loop, "save_checkpoint",
        lambda path, content, keep: written.append((path.name, *map(content["training"].get, ("iteration", "state")))),
    )  # fmt: skip
    train(OneWeight(2, checkpoint_every=1, figures=(2.0, 1.0)), tmp_path)
    assert [(name, iteration, state and state["validated"]) for name, iteration, state in written] == [
        ("last.pt", 1, 0), ("best.pt", 1, None), ("last.pt", 1, 1), ("last.pt", 2, 1), ("last.pt", 2, 2),
    ]  # fmt: skip


def test_a_folder_that_was_removed_is_not_made_anew(tmp_path):
    task = OneWeight(validate_every=None, checkpoint_every=2, log_every=9)
    task.step_done = lambda iteration: (tmp_path / "run/metrics.jsonl").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the run's folder was removed"):
        train(task, tmp_path / "run")


def test_a_finished_run_that_goes_on_writes_nothing_again(tmp_path):
    """Else the older checkpoint would make room for a copy of the newest."""
    train(OneWeight(keep_last=2), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    train(OneWeight(keep_last=2), tmp_path, resumed=True)
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}


def test_a_stop_within_a_validation(tmp_path):
    task = OneWeight()
    real = task.validate

    def validate(iteration):
        if iteration == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(iteration)

    task.validate = validate
    with cli.StopRequest() as stop, pytest.raises(cli.Interrupted, match="after 2 iterations"):
        train(task, tmp_path, stop=stop)
    state = load(tmp_path / "last.pt")["training"]["state"]
    assert (state["iteration"], state["validated"]) == (2, 1)


def test_what_fails_in_the_data_leaves_a_checkpoint_of_the_last_step(tmp_path):
    task = OneWeight(validate_every=None)
    task.fails_at = 3
    with pytest.raises(UserError, match=r"image_7\.jpg"):
        train(task, tmp_path)
    assert load(tmp_path / "last.pt")["training"]["state"]["iteration"] == 3
    train(OneWeight(validate_every=None), tmp_path, resumed=True)
    assert weight(tmp_path / "last.pt") == pytest.approx(0.4)


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(tmp_path):
    task = OneWeight(log_every=4, validate_every=None, checkpoint_every=1)
    real = task.losses
    task.losses = lambda batch, iteration: {"linear": real(batch, iteration)["linear"] / (iteration != 2)}
    with pytest.raises(NonFiniteLoss, match=r"iteration 2: linear .* at rate 0\.1, images image_2"):
        train(task, tmp_path)
    assert weight(tmp_path / "last.pt") == pytest.approx(0.9)


def test_statistics_are_averaged_before_they_are_saved(tmp_path, monkeypatch):
    task, seen = OneWeight(2, ema_decay=0.5), []
    monkeypatch.setattr(loop, "average_statistics", lambda net, ema: seen.append((net, ema)))
    train(task, tmp_path)
    assert {net for net, _ in seen} == {task.net}
    assert all(ema.averages.keys() == {"weight"} for _, ema in seen)


# ---------------------------------------------------------------------------------------------- a detector's update


class _Waits(TorchDispatchMode):
    """Collects the operators whose result the host would have to wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique", "_unique2", "masked_select"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_an_update_waits_for_nothing(tiny_config, tmp_path, optimizer_name):
    """Forward, backward, the check for finite losses, clipping, optimiser, moving average: all on the device."""
    settings = ["optim.clip_norm=1.0", "train.accumulate=2", "train.amp=bf16", "train.ema_decay=0.9"]
    config = load_config(tiny_config, [f"optim.name={optimizer_name}", *settings])
    dataset = build_dataset(config.data, "train", tmp_path)
    task = DetectionTask(config, build_detector(config.model, dataset.class_names), dataset, None, CPU)
    plan = make_plan(task, RunFolder(tmp_path / "run"), CPU)
    batches = task.batches(0)
    for _ in range(2):
        parts = [next(batches), next(batches)]
        with _Waits() as waits:
            loop._update(task, plan, parts)
            plan.state.iteration += 1
        assert waits.found == []
    with _Waits() as waits:
        plan.monitor.read(task.image_name, task.rate)
    assert waits.found  # the test can fail


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_names_the_images_and_what_to_lower(tmp_path, error):
    task = OneWeight()

    def losses(batch, iteration):
        raise error

    task.losses = losses
    words = r"images image_0 \(value \(1,\), index \(1,\)\): raise train\.accumulate, lower train\.batch_size \(1\), or"
    with pytest.raises(UserError, match=words):
        train(task, tmp_path)


def test_too_few_values_for_batch_norm_are_told(tmp_path):
    task, norm = OneWeight(), nn.BatchNorm1d(1)
    task.losses = lambda batch, iteration: {"norm": norm(batch.value[None]).sum()}
    with pytest.raises(UserError, match=r"batch norm needs .* the images image_0 \(value \(1,\), .*train\.batch_size"):
        train(task, tmp_path)


def test_other_errors_of_an_update_are_raised_as_they_are(tmp_path):
    task = OneWeight()
    task.losses = lambda batch, iteration: {"linear": torch.tensor([1.0]).reshape(2)}
    with pytest.raises(RuntimeError, match="shape"):
        train(task, tmp_path)


def test_too_little_memory_names_the_options_that_the_training_has(tiny_config, tmp_path):
    config = load_config(tiny_config, [])
    dataset = build_dataset(config.data, "train", tmp_path)
    task = DetectionTask(config, build_detector(config.model, dataset.class_names), dataset, None, CPU)
    said = str(loop._out_of_memory(task, next(task.batches(0)), 7, RuntimeError("x")))
    assert "images image_" in said
    assert "images (2, 3, " in said
    assert "lower train.batch_size (2), data.max_size (64), model.box.batch_size_per_image (8), or" in said
