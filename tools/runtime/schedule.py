"""The learning rate as a pure function of the iteration, and epochs turned into iterations."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from configs.schema import ScheduleConfig


@dataclass(frozen=True)
class Schedule:
    """Length of a training and its learning rate; iterations count from 0, and iteration i trains with `rate(i)`."""

    base_rate: float
    iterations: int
    """Iterations of the whole training."""
    iterations_per_epoch: float
    policy: str = "constant"
    milestones: tuple[int, ...] = ()
    """Iterations from which on the rate is multiplied by gamma once more."""
    gamma: float = 0.1
    warmup_iterations: int = 0
    warmup_factor: float = 0.001

    def rate(self, iteration: int) -> float:
        """The learning rate of an iteration; beyond the last one, that of the end."""
        rate = self.base_rate
        if self.policy == "multistep":
            rate *= self.gamma ** bisect_right(self.milestones, iteration)
        elif self.policy == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(iteration / self.iterations, 1.0)))
        if iteration < self.warmup_iterations:
            share = iteration / self.warmup_iterations
            rate *= self.warmup_factor * (1.0 - share) + share
        return rate

    def epoch(self, iteration: int) -> float:
        """Passes over the training set that are done when `iteration` iterations are."""
        return iteration / self.iterations_per_epoch

    def describe(self) -> str:
        """The schedule in words, in iterations and epochs."""
        parts = [
            f"{self.iterations} iterations, {self.epoch(self.iterations):.4g} epochs of {self.iterations_per_epoch:.6g}"
        ]
        parts.append({"multistep": "steps", "cosine": "cosine to 0", "constant": "constant rate"}[self.policy])
        if self.policy == "multistep":
            parts[-1] = "rate " + " -> ".join(
                f"{self.base_rate * self.gamma**i:.4g}" for i in range(len(self.milestones) + 1)
            )
            if self.milestones:
                parts[-1] += f" at {', '.join(map(str, self.milestones))}"
        if self.warmup_iterations:
            parts.append(f"warm-up over {self.warmup_iterations}")
        return ", ".join(parts)


def make_schedule(config: ScheduleConfig, *, rate: float, iterations_per_epoch: float) -> Schedule:
    """The schedule of a config.

    Args:
        config: lengths in iterations or epochs.
        rate: learning rate, already scaled for the batch size.
        iterations_per_epoch: images of the training set / images of a step.
    """
    return Schedule(
        base_rate=rate,
        iterations=to_iterations(config.iterations or config.epochs, config, iterations_per_epoch),
        iterations_per_epoch=iterations_per_epoch,
        policy=config.policy,
        milestones=tuple(to_iterations(milestone, config, iterations_per_epoch) for milestone in config.milestones),
        gamma=config.gamma,
        warmup_iterations=config.warmup_iterations,
        warmup_factor=config.warmup_factor,
    )


def to_iterations(length: float, config: ScheduleConfig, iterations_per_epoch: float) -> int:
    """A length in the schedule's unit (epochs if `config.epochs` is set) as iterations, at least 1."""
    return max(1, round(length * iterations_per_epoch if config.epochs else length))
