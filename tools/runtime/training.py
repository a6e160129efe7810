"""What the training loops share: random numbers by iteration, autocast, and losses that are watched on the device."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from backbones.convolution import train_by_winograd
from configs.errors import UserError
from tools.runtime import distributed
from tools.runtime.ema import Ema

Net = TypeVar("Net", bound=nn.Module)


class NonFiniteLoss(UserError):
    """A loss or a gradient was infinite or no number; the weights never saw it."""


def seed_step(seed: int, iteration: int) -> None:
    """Set torch's generators (dropout) from (seed, iteration, process): a resumed run draws the same numbers."""
    key = f"{seed} {iteration} {distributed.rank()}".encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
    # torch.manual_seed would write down the whole stack, in every step, for each kind of device that is not in use.
    for generator in (torch.default_generator, *torch.cuda.default_generators):
        generator.manual_seed(number)


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """bf16 autocast where `amp` is "bf16", on a GPU or a CPU; needs no loss scaling."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")


def refuse_several_processes(option: str) -> None:
    """See that an option that is for one process is not used by several.

    Raises:
        UserError: it is.
    """
    if distributed.world_size() > 1:
        raise UserError(f"{option}: is for one process: set it to false, or start the script without torchrun")


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trained, frozen) numbers of parameters."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in model.parameters()) - trained


def place(net: Net, device: torch.device, *, channels_last: bool, winograd: bool = False) -> Net:
    """The net, moved to the device, its weights channels_last in memory or as they are; see `TrainConfig`."""
    if winograd and device.type == "cpu":
        train_by_winograd(net)
    layout = torch.channels_last if channels_last else torch.preserve_format
    return net.to(device, memory_format=layout)  # pyright: ignore[reportCallIssue]  # torch's overloads lack this one


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """() the sum of the losses, in their order."""
    summed = sum(losses.values())
    assert isinstance(summed, Tensor), "there are losses"
    return summed


def average_statistics(model: nn.Module, ema: Ema | None = None) -> None:
    """Put the mean over all processes into batch norm's running statistics, before they are used or saved.

    Args:
        model: whose buffers `running_mean` and `running_var` are meant.
        ema: averages of the model, of which the same holds.
    """
    if distributed.world_size() == 1:
        return
    for state in (model.state_dict(), ema.state_dict() if ema is not None else {}):
        for name, statistic in state.items():
            if name.endswith(("running_mean", "running_var")):
                distributed.reduce_sum(statistic)
                statistic /= distributed.world_size()


class LossMonitor:
    """Watches losses and gradients of a loop without waiting for the device.

    Of each step: `add` once for each accumulated part, after its backward pass; then `finish_step`, whose answer goes
    to `optimizer.step_unless`. From the first step on in which some value is not finite, on whichever process, no
    update is made, and the record of that step stays on the device until `check` or `read` looks, every so many steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._parts: list[Tensor] = []
        self._images: list[Tensor] = []
        self._skip = torch.zeros((), device=device)
        self._sums: Tensor | None = None
        self._steps = 0
        self._record: tuple[Tensor, ...] | None = None

    def add(self, losses: Mapping[str, Tensor], image_index: Tensor) -> None:
        """Take in one part of a step.

        Args:
            losses: name -> () loss.
            image_index: (B,) positions of the images in the data set.
        """
        self._names = list(losses)
        self._parts.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self._images.append(image_index)

    def finish_step(self, iteration: int, parameters: Iterable[nn.Parameter], clip_norm: float | None = None) -> Tensor:
        """Judge a step, and cut its gradients to `clip_norm`.

        Returns:
            () float32 on the device: 1 if no update may be made any more, else 0.
        """
        parameters = list(parameters)
        # nn.utils.get_total_norm, without sorting by device and dtype, which takes most of its time.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
        losses = torch.stack(self._parts).mean(0)
        values = torch.cat((losses, losses.sum()[None], norm.float()[None]))
        images = torch.cat(self._images)
        self._parts, self._images = [], []

        bad_here = ~values.isfinite().all()
        bad = bad_here.float()
        distributed.reduce_max(bad)
        first = (bad > 0) & (self._skip == 0)
        record = (torch.full_like(bad, iteration, dtype=torch.float64), values, images, bad_here)
        self._record = record if self._record is None else _choose(first, record, self._record)
        self._skip = torch.maximum(self._skip, bad)
        self._sums = values.double() if self._sums is None else self._sums + values
        self._steps += 1
        return self._skip

    def check(self, image_name: Callable[[int], str], rate: Callable[[int], float]) -> None:
        """Wait for the device and see that all was finite; call it before anything is saved.

        Args:
            image_name: position in the data set -> what to call the image.
            rate: iteration -> learning rate.

        Raises:
            NonFiniteLoss: names the iteration, the loss part, the images and the rate; on every process.
        """
        if self._record is None or self._skip.item() == 0:
            return
        first, values, images, bad_here = (tensor.cpu() for tensor in self._record)
        iteration = int(first)
        names = [*self._names, "loss", "gradient_norm"]
        broken = [
            f"{name} {value}" for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)
        ]
        mine = (broken, [image_name(int(index)) for index in images.tolist()]) if bad_here else ([], [])
        all_broken, all_images = zip(*distributed.all_gather(mine), strict=True)
        every = list(dict.fromkeys(text for texts in all_broken for text in texts))
        broken = [text for text in every if not text.startswith("loss ")] or every  # the sum says nothing more
        shown = [name for texts in all_images for name in texts]
        raise NonFiniteLoss(
            f"iteration {iteration}: {', '.join(broken)} at rate {rate(iteration):.6g}, images {', '.join(shown)}: "
            "the weights were not updated with it, and last.pt is older: look at these images and "
            "what is annotated on them, lower optim.lr, lengthen schedule.warmup_iterations, or set optim.clip_norm"
        )

    def read(self, image_name: Callable[[int], str], rate: Callable[[int], float]) -> dict[str, float]:
        """The means since the last reading, over all processes: each loss, `loss`, `gradient_norm`.

        Raises:
            NonFiniteLoss: see `check`.
        """
        self.check(image_name, rate)
        if self._sums is None:
            return {}
        distributed.reduce_sum(self._sums)
        means = (self._sums / (self._steps * distributed.world_size())).tolist()
        self._sums, self._steps = None, 0
        return dict(zip([*self._names, "loss", "gradient_norm"], means, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """What was taken in since the last reading, of each process; on all processes."""
        mine = (None if self._sums is None else self._sums.tolist(), self._steps)
        return {"names": list(self._names), "parts": distributed.all_gather(mine)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint kept; None: of a checkpoint that kept nothing."""
        if state is None or not state["names"]:
            return
        parts, device = state["parts"], self._skip.device
        if len(parts) != distributed.world_size():  # shared out anew: their mean to each
            sums = [values for values, _ in parts if values is not None]
            mean = torch.tensor(sums, dtype=torch.float64).mean(0).tolist() if sums else None
            parts = [(mean, parts[0][1])] * distributed.world_size()
        values, self._steps = parts[distributed.rank()]
        self._names = list(state["names"])
        self._sums = None if values is None else torch.tensor(values, dtype=torch.float64, device=device)


def _choose(condition: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`new` where the () condition holds, on the device."""
    return tuple(torch.where(condition, a, b) for a, b in zip(new, old, strict=True))
