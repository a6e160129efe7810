"""Exponential moving average of a model's weights and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages of the floating-point weights and buffers; the rest (counters) is copied. Two kernels an update.

    The decay grows with the iteration, `min(decay, (1 + i) / (10 + i))`, so that a short training is not held back by
    its random start (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }
        floating = [name for name, tensor in self.averages.items() if tensor.is_floating_point()]
        others = [name for name in self.averages if name not in set(floating)]
        state = model.state_dict(keep_vars=False)  # shares its memory with the model, now and later
        self._floating = ([self.averages[name] for name in floating], [state[name] for name in floating])
        self._others = ([self.averages[name] for name in others], [state[name] for name in others])

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Take in the model's state after `iteration` (from 0)."""
        decay = min(self.decay, (1.0 + iteration) / (10.0 + iteration))
        torch._foreach_lerp_(*self._floating, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]  # no public name
        if self._others[0]:
            torch._foreach_copy_(*self._others)  # pyright: ignore[reportPrivateImportUsage]  # likewise

    def state_dict(self) -> dict[str, Tensor]:
        """The averages under the model's names."""
        return self.averages

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from saved averages.

        Raises:
            KeyError: the names differ from the model's.
        """
        if state.keys() != self.averages.keys():
            raise KeyError(f"averages of another model: {sorted(state.keys() ^ self.averages.keys())[:3]}")
        for name, tensor in self.averages.items():
            tensor.copy_(state[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within this context the model has the averaged weights; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for averages, model in (self._floating, self._others):
            for average, tensor in zip(averages, model, strict=True):
                kept = average.clone()
                average.copy_(tensor)
                tensor.copy_(kept)
