"""What all configs share: the base class of their sections, the optimiser, the schedule and the training loop.

Options have torchvision's names where they mean the same thing there. `configs.loading` checks YAML files against the
classes of this package; unknown keys are errors. Library code receives its own section, never the whole config.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
OnError = Literal["stop", "skip", "retry"]
OnErrorOption = Annotated[
    OnError,
    Field(
        description="When an image cannot be read during the training, or the system ends a loader process. stop: one "
        "line, after a checkpoint of the last step. skip: the next image of the set that can be read takes the image's "
        "place (which depends on nothing but the step, so workers and resumption change nothing), and they are counted "
        "in the log. retry: the image is read again up to three times within 11 seconds. With skip and retry ended "
        "processes start again at the same batch. Validation and test never go on without an image: the figures would "
        "be others."
    ),
]
"""`data.on_error` of all three stages."""
PositiveInt = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16384)]
"""Of an image that is made, pixels: 16,384 squared is 800 MB."""
NonNegativeInt = Annotated[int, Field(ge=0)]
Images = Annotated[int, Field(gt=0, le=1_000_000)]
"""Of a step."""
Width = Annotated[int, Field(gt=0, le=65536)]
"""Channels or outputs of a layer: 65,536 squared is 17 GB of weights."""
Repeats = Annotated[int, Field(ge=0, le=100)]
"""How many equal layers or rounds follow each other. A greater number is a mistake that would never end."""
SEEDS = 2**32
"""One more than the greatest seed: what every generator takes."""
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


BACKBONES: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "googlenet"),
    *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),
    *("linear", "highway19", "highway32", "fitnet19", "nin", "dsn", "maxout"),
    *(f"prelu_net_{letter}" for letter in "abc"),
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
    """A part of a config: unknown keys are refused, as are options that nothing reads; defaults are checked too,
    values do not change.

    The docstrings of the attributes describe the options in docs/configuration.md and in the JSON schemas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
    read_by: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}
    """An option that chooses (a policy, say) -> options that belong to some of its values -> these values; none: all
    but its default, which is off."""

    @classmethod
    def unread(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Options among the values that nothing reads -> the option whose value decides so."""
        found: dict[str, str] = {}
        for choice, options in cls.read_by.items():
            off = cls.model_fields[choice].default
            chosen = values.get(choice, off)
            for name, readers in options.items():
                if name in values and not (chosen in readers if readers else chosen != off):
                    found.setdefault(name, choice)
        return found

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        values = dict(self)
        for name, choice in self.unread(values).items():
            default, readers = type(self).model_fields[name].default, self.read_by[choice][name]
            if values[name] != default:
                needed = f", which is for {choice} {' or '.join(map(str, readers))}" if readers else ""
                raise ValueError(
                    f"{choice} {values[choice]} does not read {name}{needed}: "
                    f"leave it out, or give its default, {json.dumps(default)}"
                )
        return self


CROP_RANGES = {"scale": ("scale_jitter",), "area": ("random_resized",), "ratio": ("random_resized",)}
"""Ranges of random crops -> the kind of crop that draws from them, see `Section.read_by`."""


def check_crop_ranges(augment: Any) -> None:
    """See that `scale`, `area` and `ratio` of random crops grow, and that no crop has more than the image's area.

    Raises:
        ValueError: names the option.
    """
    for name in ("scale", "area", "ratio"):
        low, high = getattr(augment, name)
        if low > high:
            raise ValueError(f"{name}: {low} is greater than {high}")
    if augment.area[1] > 1:
        raise ValueError(f"area: at most the whole image (1), not {augment.area[1]}")


class OptimConfig(Section):
    """The optimiser. `lr` is stated for `reference_batch_size` images a step and scaled in proportion."""

    read_by = {"name": {"momentum": ("sgd",), "nesterov": ("sgd",), "betas": ("adamw",)}}
    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, as the papers train. adamw: Loshchilov & Hutter 2019."""
    lr: PositiveFloat
    """Base learning rate, for steps of `reference_batch_size` images."""
    reference_batch_size: PositiveInt
    """Images a step for which `lr` is stated; the rate used is lr * train.batch_size / reference_batch_size."""
    momentum: Fraction = 0.9
    """sgd: momentum."""
    nesterov: bool = False
    """sgd: Nesterov's momentum."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """adamw: decay of the running means of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 1e-4
    """sgd: factor of the L2 penalty's gradient. adamw: decoupled decay."""
    norm_weight_decay: NonNegativeFloat | None = None
    """Weight decay of batch norm's scale and offset; null: `weight_decay`."""
    bias_weight_decay: NonNegativeFloat | None = None
    """Weight decay of the biases; null: `weight_decay`. Caffe's Fast R-CNN: 0."""
    bias_lr_factor: PositiveFloat = 1.0
    """Learning rate of the biases, as a multiple of the others'. Caffe's Fast R-CNN: 2."""
    clip_norm: PositiveFloat | None = None
    """Longer gradients (L2 norm over all parameters) are scaled down to this length; null: none are."""


class ScheduleConfig(Section):
    """Length and learning rate, a pure function of the iteration. Give `iterations` or `epochs`; milestones are in the
    same unit."""

    read_by = {
        "policy": {"milestones": ("multistep",), "gamma": ("multistep",)},
        "milestones": {"gamma": ()},
        "warmup_iterations": {"warmup_factor": ()},
    }
    iterations: PositiveInt | None = None
    """Length of the training in optimiser steps."""
    epochs: PositiveInt | None = None
    """Length of the training in passes over the training set."""
    policy: Literal["multistep", "cosine", "constant"] = "multistep"
    """multistep: the rate is multiplied by `gamma` at each milestone. cosine: half a cosine down to 0. constant."""
    milestones: list[PositiveFloat] = []
    """multistep: when the rate falls, in iterations or epochs, ascending."""
    gamma: PositiveFloat = 0.1
    """multistep: factor at each milestone."""
    warmup_iterations: NonNegativeInt = 0
    """Over this many iterations the rate grows linearly from `warmup_factor` of its value to all of it."""
    warmup_factor: Fraction = 0.001
    """Share of the rate at which the warmup starts."""

    @model_validator(mode="after")
    def _one_length(self) -> ScheduleConfig:
        if self.iterations is not None and self.epochs is not None:
            raise ValueError(
                f"give either iterations or epochs, not both ({self.iterations} and {self.epochs}): the other is null: "
                "--set schedule.epochs=null, or schedule.iterations=null"
            )
        if self.iterations is None and self.epochs is None:
            raise ValueError("give either iterations or epochs")
        length = self.iterations or self.epochs or 0
        if any(b <= a for a, b in itertools.pairwise(self.milestones)) or any(m >= length for m in self.milestones):
            raise ValueError(f"milestones must grow and lie before the end ({length})")
        return self


class TrainConfig(Section):
    """The loop."""

    batch_size: Images
    """Images in each step, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """The images of a step go through the network in this many parts, to save memory."""
    amp: Literal["none", "bf16"] = "none"
    """bf16 autocast for convolutions and fully connected layers; boxes and losses stay in float32."""
    channels_last: bool = True
    """Memory layout NHWC for images and convolutions, the faster one on most devices."""
    winograd: bool = False
    """On the CPU, large 3x3 convolutions in float32 by Winograd's minimal filtering, in less time
    (docs/performance.md). Sums are rounded otherwise, so that the same seed gives other weights."""
    ema_decay: Decay = 0.0
    """Exponential moving average of the weights, used for validation, test and best.pt; 0: off."""
    log_every: PositiveInt = 20
    """Iterations between lines of metrics.jsonl; the only regular reading of values from the device."""
    validate_every: PositiveInt | None = None
    """Distance between validations, in the schedule's unit; null: one validation at the end."""
    checkpoint_every: PositiveInt | None = None
    """Distance between checkpoints, in the schedule's unit; null: one at each validation."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept: last.pt, last_1.pt, which was last.pt before, and so on. A damaged last.pt is
    passed over when a run goes on."""
    patience: PositiveInt | None = None
    """Stop after this many validations without a better `best_metric`; null: never. One in which it cannot be computed
    does not count; one in which it is not a number is not better."""


def check_parts(name: str, batch_size: int, train: TrainConfig) -> None:
    """See that a batch size, called train.`name`, can be cut into `train.accumulate` parts.

    Raises:
        ValueError: it cannot.
    """
    if batch_size % train.accumulate:
        raise ValueError(f"train.{name} {batch_size} is not a multiple of train.accumulate {train.accumulate}")
