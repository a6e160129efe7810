"""Plans from a start and from checkpoints, whole ones and damaged ones."""

from __future__ import annotations

import pytest
import torch

from configs.errors import UserError
from tests.tools.runtime.one_weight import CPU, OneWeight, load, train
from tools.runtime.plan import State, make_plan
from tools.runtime.run_folder import RunFolder


def test_a_plan_goes_on_from_a_checkpoint(tmp_path):
    """After the batches 0, 1, 2, 3: w = 0.4 and its average; the optimiser has the rate and the state of the run."""
    train(OneWeight(figures=(1.0, 3.0, 2.0, 2.5), ema_decay=0.5), tmp_path)
    task, checkpoint = OneWeight(iterations=6, ema_decay=0.5), load(tmp_path / "last.pt")
    with RunFolder(tmp_path) as run:
        plan = make_plan(task, run, CPU, checkpoint=checkpoint, constants={"phase": 1})
    assert task.net.weight.item() == pytest.approx(0.4)
    assert plan.ema is not None
    assert plan.ema.state_dict()["weight"].item() == checkpoint["model"]["weight"].item() != pytest.approx(0.4)
    assert (plan.state.iteration, plan.state.best, plan.state.validations_without_better) == (4, 3.0, 2)
    assert (plan.saved, plan.constants) == ((4, 4), {"phase": 1})


def test_a_plan_from_the_start():
    plan = make_plan(OneWeight(), RunFolder("unused"), CPU)
    assert (plan.state, plan.saved, plan.ema, plan.constants, plan.data) == (State(), None, None, {}, {})
    assert len(plan.parameters) == 1


def test_frozen_parameters_are_not_the_plans():
    task = OneWeight()
    task.net.requires_grad_(False)
    task.net.register_parameter("other", torch.nn.Parameter(torch.zeros(2)))
    plan = make_plan(task, RunFolder("unused"), CPU)
    assert [one.numel() for one in plan.parameters] == [2]


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer", {"state": 1}), ("monitor", 3), ("log_lines", -1), ("log_lines", "2")]
)
def test_damage_in_what_a_resumption_needs_is_one_line(tmp_path, key, value):
    train(OneWeight(1), tmp_path)
    checkpoint = load(tmp_path / "last.pt")
    checkpoint["training"][key] = value
    with RunFolder(tmp_path) as run, pytest.raises(UserError, match=r"last\.pt: what it holds for --resume is damaged"):
        make_plan(OneWeight(2), run, CPU, checkpoint=checkpoint)


def test_a_checkpoint_with_parts_missing_is_told(tmp_path):
    train(OneWeight(2), tmp_path)
    checkpoint = load(tmp_path / "last.pt")
    del checkpoint["training"]["optimizer"]["param_groups"]
    with RunFolder(tmp_path) as run, pytest.raises(UserError, match=r"is damaged \(KeyError: 'param_groups'\)"):
        make_plan(OneWeight(4), run, CPU, checkpoint=checkpoint)


@pytest.mark.parametrize("state", [None, {"iteration": -1}, {"iteration": "4"}, {"phase": 0}, {"best": "high"}])
def test_a_damaged_state_is_one_line(state):
    with pytest.raises(UserError, match=r"training\.state is damaged"):
        State.of({"training": {"optimizer": {}, "state": state}})


def test_the_state_of_another_version_is_read_by_the_names_that_are_known():
    state = State.of({"training": {"optimizer": {}, "state": {"iteration": 4, "moods": "good"}}})
    assert state == State(iteration=4)


def test_weights_without_training_do_not_resume(tmp_path):
    train(OneWeight(), tmp_path)
    with pytest.raises(UserError, match=r"resume needs the run's last\.pt"):
        State.of(load(tmp_path / "best.pt"))


def test_a_set_that_has_changed_since_the_checkpoint_is_told(tmp_path, capsys):
    train(OneWeight(2), tmp_path, data={"annotations": "a", "images": "b"})
    capsys.readouterr()
    train(OneWeight(3), tmp_path, resumed=True, data={"annotations": "a", "images": "b"})
    assert "have changed" not in capsys.readouterr().out
    train(OneWeight(4), tmp_path, resumed=True, data={"annotations": "a", "images": "c"})
    assert f"the images of the training set have changed since {tmp_path}/last.pt" in capsys.readouterr().out
