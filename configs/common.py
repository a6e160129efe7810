"""What all configs share: the base class of their sections, the optimiser, the schedule and the training loop.

Options have torchvision's names where they mean the same thing there. `configs.loading` checks YAML files against the
classes of this package; unknown keys are errors. Library code receives its own section, never the whole config.
"""

from __future__ import annotations

import difflib
import itertools
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


BACKBONES: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "googlenet"),
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),
    *(
        "linear",
        "highway19",
        "highway32",
        "fitnet19",
        "nin",
        "dsn",
        "maxout",
        "prelu_net_a",
        "prelu_net_b",
        "prelu_net_c",
    ),
)
"""The nets of `backbones.zoo` by name, said again here because configs need nothing of ours."""


def check_backbone(value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """The value, if it is no name or that of a net; cifar_resnetN has many.

    Raises:
        ValueError: with the nearest name.
    """
    if isinstance(value, str) and value not in BACKBONES and not re.fullmatch(r"cifar_resnet\d+", value):
        near = difflib.get_close_matches(value, BACKBONES, 1)
        hint = f"did you mean {near[0]}?" if near else f"the nets are {', '.join(BACKBONES)}, and tables of one's own"
        raise ValueError(f"not {value!r}: {hint}")
    return value


class Section(BaseModel):
    """A part of a config: unknown keys are refused, defaults are checked too, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class OptimConfig(Section):
    """The optimiser. `lr` is stated for `reference_batch_size` images a step and scaled in proportion."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat
    reference_batch_size: PositiveInt
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """adamw."""
    weight_decay: NonNegativeFloat = 1e-4
    norm_weight_decay: NonNegativeFloat | None = None
    """Of batch norm's scale and offset; null: as the rest."""
    bias_weight_decay: NonNegativeFloat | None = None
    """Of the biases; null: as the rest. Caffe's Fast R-CNN: 0."""
    bias_lr_factor: PositiveFloat = 1.0
    """Caffe's Fast R-CNN: 2."""
    clip_norm: PositiveFloat | None = None
    """The gradient's norm is cut to this."""


class ScheduleConfig(Section):
    """Length and learning rate, a pure function of the iteration. Give `iterations` or `epochs`; milestones are in the
    same unit."""

    iterations: PositiveInt | None = None
    epochs: PositiveInt | None = None
    policy: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: list[PositiveFloat] = []
    gamma: PositiveFloat = 0.1
    warmup_iterations: NonNegativeInt = 0
    warmup_factor: Fraction = 0.001
    """The rate starts at this share and grows linearly."""

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("give either iterations or epochs")
        length = self.iterations or self.epochs
        if any(b <= a for a, b in itertools.pairwise(self.milestones)) or any(m >= length for m in self.milestones):
            raise ValueError(f"milestones must grow and lie before the end ({length})")
        return self


class TrainConfig(Section):
    """The loop."""

    batch_size: PositiveInt
    """Images a step, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """The step's images go through the network in so many parts, to save memory."""
    amp: Literal["none", "bf16"] = "none"
    """bf16 autocast for convolutions and fully connected layers; boxes and losses stay in float32."""
    channels_last: bool = True
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Exponential moving average of the weights, used for validation, test and best.pt; 0: off."""
    log_every: PositiveInt = 20
    """Iterations between lines of metrics.jsonl; the only regular reading of values from the device."""
    validate_every: PositiveInt | None = None
    """In the schedule's unit; null: at the end only."""
    checkpoint_every: PositiveInt | None = None
    """In the schedule's unit; null: at each validation."""
    patience: PositiveInt | None = None
    """Stop after so many validations without a better best_metric."""
