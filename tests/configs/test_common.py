"""What all configs share: sections that refuse what they do not know, names of nets, schedules, bounds."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from configs.common import (
    BACKBONES,
    Fraction,
    NonNegativeInt,
    OptimConfig,
    PositiveFloat,
    PositiveInt,
    ScheduleConfig,
    Section,
    TrainConfig,
    check_backbone,
    check_crop_ranges,
    check_parts,
)


class Made(Section):
    fraction: Fraction = 0.5
    positive: PositiveInt = 1
    not_negative: NonNegativeInt = 0
    finite: PositiveFloat = 1.0


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"fraction": 0}, True), ({"fraction": 1}, True), ({"fraction": -0.01}, False), ({"fraction": 1.01}, False),
        ({"positive": 1}, True), ({"positive": 0}, False), ({"positive": 1.5}, False),
        ({"not_negative": 0}, True), ({"not_negative": -1}, False),
        ({"finite": 1e-9}, True), ({"finite": 0}, False), ({"finite": float("inf")}, False),
        ({"fracton": 0.5}, False),
    ],
)  # fmt: skip
def test_bounds_and_unknown_keys(values, fits):
    if fits:
        assert Made(**values).model_dump() == Made().model_dump() | values
    else:
        with pytest.raises(ValidationError):
            Made(**values)


def test_sections_do_not_change_and_check_their_defaults():
    with pytest.raises(ValidationError, match="frozen"):
        Made().positive = 2  # type: ignore[misc]

    class Wrong(Section):
        share: Fraction = 2.0

    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Wrong()


def test_names_of_nets():
    for value in (None, {"net": "anything"}, *BACKBONES, "cifar_resnet8", "cifar_resnet164"):
        assert check_backbone(value) == value
    with pytest.raises(ValueError, match="not 'resnet51': did you mean resnet50"):
        check_backbone("resnet51")
    with pytest.raises(ValueError, match="not 'cifar_resnet': did you mean cifar_resnet"):
        check_backbone("cifar_resnet")
    with pytest.raises(ValueError, match=r"the nets are resnet18, .*, and tables of one's own"):
        check_backbone("zzzz")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"iterations": 10}, None),
        ({"epochs": 10, "milestones": [1, 9.5]}, None),
        ({}, "either iterations or epochs"),
        ({"iterations": 10, "epochs": 1}, r"not both \(10 and 1\): the other is null: --set schedule\.epochs=null"),
        ({"iterations": 10, "milestones": [5, 5]}, r"milestones must grow and lie before the end \(10\)"),
        ({"iterations": 10, "milestones": [6, 5]}, "must grow"),
        ({"epochs": 10, "milestones": [5, 10]}, "before the end"),
        ({"iterations": 10, "milestones": [0]}, "greater than 0"),
        ({"iterations": 10, "policy": "step"}, "multistep"),
        ({"iterations": 10, "policy": "cosine", "milestones": [5]}, "policy cosine does not read milestones, which is"),
        ({"iterations": 10, "policy": "constant", "gamma": 0.5}, r"constant does not read gamma.*its default, 0\.1"),
        ({"iterations": 10, "policy": "cosine", "gamma": 0.1, "milestones": []}, None),
        ({"iterations": 10, "gamma": 0.5}, r"milestones \[\] does not read gamma: leave it out"),
        (
            {"iterations": 10, "warmup_factor": 0.5},
            "warmup_iterations 0 does not read warmup_factor: leave it out",
        ),
        ({"iterations": 10, "warmup_iterations": 5, "warmup_factor": 0.5}, None),
    ],
)
def test_schedules(values, complaint):
    if complaint is None:
        assert ScheduleConfig(**values).milestones == values.get("milestones", [])
        return
    with pytest.raises(ValidationError, match=complaint):
        ScheduleConfig(**values)


def test_the_papers_optimiser_is_the_default():
    """SGD with momentum 0.9 and decay 1e-4 (He et al. 2016, Sec. 3.4); the rate must be said for a batch size."""
    optim = OptimConfig(lr=0.1, reference_batch_size=256)
    assert (optim.name, optim.momentum, optim.nesterov, optim.weight_decay) == ("sgd", 0.9, False, 1e-4)
    assert (optim.norm_weight_decay, optim.bias_weight_decay, optim.bias_lr_factor) == (None, None, 1.0)
    for values in ({"lr": 0.1}, {"reference_batch_size": 256}, {"lr": 0, "reference_batch_size": 1}):
        with pytest.raises(ValidationError):
            OptimConfig(**values)


def test_each_optimiser_refuses_the_others_options():
    with pytest.raises(ValidationError, match="name adamw does not read nesterov, which is for name sgd"):
        OptimConfig(name="adamw", lr=0.1, reference_batch_size=1, nesterov=True)
    with pytest.raises(ValidationError, match=r"name sgd does not read betas.*its default, \[0\.9, 0\.999\]"):
        OptimConfig(lr=0.1, reference_batch_size=1, betas=(0.9, 0.99))
    assert OptimConfig(name="adamw", lr=0.1, reference_batch_size=1, betas=(0.9, 0.99)).betas == (0.9, 0.99)


def test_the_average_never_stands_still():
    assert TrainConfig(batch_size=1, ema_decay=0.9999).ema_decay == 0.9999
    with pytest.raises(ValidationError, match="less than 1"):
        TrainConfig(batch_size=1, ema_decay=1.0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, None),
        ({"area": (1.0, 1.0), "scale": (256, 256)}, None),
        ({"scale": (300, 256)}, "scale: 300 is greater than 256"),
        ({"ratio": (2.0, 1.0)}, "ratio: 2.0 is greater than 1.0"),
        ({"area": (0.1, 1.01)}, r"area: at most the whole image \(1\), not 1.01"),
    ],
)
def test_ranges_of_crops(changes, complaint):
    ranges = SimpleNamespace(**{"scale": (256, 480), "area": (0.08, 1.0), "ratio": (0.75, 1.3)} | changes)
    with pytest.raises(ValueError, match=complaint) if complaint else nullcontext():
        check_crop_ranges(ranges)


def test_a_step_has_whole_parts():
    check_parts("batch_size", 6, TrainConfig(batch_size=6, accumulate=3))
    with pytest.raises(ValueError, match=r"train\.batch_size 6 is not a multiple of train\.accumulate 4"):
        check_parts("batch_size", 6, TrainConfig(batch_size=6, accumulate=4))
