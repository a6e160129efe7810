"""Parameter groups, scaling, and updates that a flag on the device skips."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from configs.common import OptimConfig
from configs.errors import UserError
from tools.runtime.optimizer import (
    build_optimizer,
    describe_rate,
    load_optimizer,
    parameter_groups,
    scaled_rate,
    set_rate,
    step_unless,
)  # fmt: skip


def config(**values) -> OptimConfig:
    return OptimConfig(**{"lr": 0.1, "reference_batch_size": 4, **values})


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 70, 1))


def gradients(model: nn.Module, *, finite: bool = True, seed: int = 0) -> None:
    model.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    loss = model(torch.randn(2, 3, 6, 6, generator=generator)).square().mean()
    (loss if finite else loss * float("nan")).backward()


def test_rate_is_proportional_to_the_images_of_a_step():
    assert scaled_rate(config(lr=0.02, reference_batch_size=16), 2) == 0.0025
    assert describe_rate(config(lr=0.02, reference_batch_size=16), 2) == "0.02 at 16 images a step, so 0.0025 at 2"
    assert describe_rate(config(lr=0.02, reference_batch_size=16), 16) == "0.02 at 16 images a step"


def test_groups_follow_kind_and_frozen_parameters_stay_out():
    model = net()
    model[3].bias.requires_grad = False
    values = config(weight_decay=0.5, norm_weight_decay=0.25, bias_weight_decay=0.0, bias_lr_factor=2.0)
    groups = {(g["rate_factor"], g["weight_decay"]): g["names"] for g in parameter_groups(model, values)}
    assert groups == {(1.0, 0.5): ["0.weight", "3.weight"], (1.0, 0.25): ["1.weight", "1.bias"], (2.0, 0.0): ["0.bias"]}
    optimizer = build_optimizer(model, values)
    set_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups if "0.bias" in group["names"]} == {0.2}
    assert {group["lr"] for group in optimizer.param_groups if "0.bias" not in group["names"]} == {0.1}


def test_shared_parameters_stand_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert sum(len(group["params"]) for group in parameter_groups(model, config())) == 3


def test_nothing_to_train_is_the_users_mistake():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(model, config())


@pytest.mark.parametrize(
    "values", [{}, {"nesterov": True}, {"momentum": 0.0}, {"momentum": 0.0, "nesterov": True}, {"name": "adamw"}]
)
def test_updates_equal_torchs_plain_optimiser(values):
    ours, theirs = net().eval(), net().eval()  # a bias before batch norm has no gradient but rounding
    optimizer = build_optimizer(ours, config(**values))
    set_rate(optimizer, 0.1)
    if values.get("name") == "adamw":
        reference = torch.optim.AdamW(theirs.parameters(), 0.1, weight_decay=1e-4)
    else:
        momentum, nesterov = values.get("momentum", 0.9), values.get("nesterov", False)
        reference = torch.optim.SGD(
            theirs.parameters(), 0.1, momentum=momentum, weight_decay=1e-4, nesterov=nesterov and momentum > 0
        )
    for seed in range(3):
        for model in (ours, theirs):
            gradients(model, seed=seed)
        step_unless(optimizer, torch.zeros(()))
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_skipped_update_leaves_weights_momentum_and_counts(name, steps_before):
    model = net()
    optimizer = build_optimizer(model, config(name=name))
    set_rate(optimizer, 0.1)
    for _ in range(steps_before):
        gradients(model)
        step_unless(optimizer, torch.zeros(()))
    weights = [parameter.clone() for parameter in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        gradients(model, finite=False)
        step_unless(optimizer, torch.ones(()))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            before = state.get(index, {}).get(key)
            assert torch.equal(value, before if before is not None else torch.zeros_like(value)), key
    gradients(model)
    step_unless(optimizer, torch.zeros(()))  # and it goes on as if nothing had been
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def test_skipping_equals_never_having_seen_the_step():
    """SGD with two good steps and a bad one between them = two good steps."""
    with_bad, without = net(), net()
    for model, finite in ((with_bad, [True, False, True]), (without, [True, True])):
        optimizer = build_optimizer(model, config())
        set_rate(optimizer, 0.1)
        model.eval()  # no statistics
        for good in finite:
            gradients(model, finite=good)
            step_unless(optimizer, torch.tensor(0.0 if good else 1.0))
    for a, b in zip(with_bad.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loaded_buffers_lie_in_memory_as_their_parameters_do():
    plain, permuted = net(), net().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(plain, config())
    set_rate(optimizer, 0.1)
    gradients(plain)
    step_unless(optimizer, torch.zeros(()))
    other = build_optimizer(permuted, config())
    load_optimizer(other, copy.deepcopy(optimizer.state_dict()))
    for a, b in zip(optimizer.state.items(), other.state.items(), strict=True):
        assert torch.equal(a[1]["momentum_buffer"], b[1]["momentum_buffer"])
        assert b[1]["momentum_buffer"].stride() == b[0].stride()


def test_state_of_another_model_is_refused():
    state = build_optimizer(nn.Linear(2, 2), config()).state_dict()
    with pytest.raises(UserError, match="does not fit this model"):
        load_optimizer(build_optimizer(net(), config(bias_lr_factor=2.0)), state)
