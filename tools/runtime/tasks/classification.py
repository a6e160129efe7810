"""Training of a classifier: cross entropy, the training error, and a rate that two events may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from backbones.augmentation import MixedLabels
from backbones.classification import Plateau, WarmupUntilError, classification_loss, wrong_answers
from backbones.compilation import GraphedStep
from backbones.preprocess import Normalize
from configs.classification import ClassificationConfig
from datasets.classification import ImageFiles, Splits
from tools.runtime import distributed
from tools.runtime.classification import TrainBatch, TrainingError, compiled, format_errors, test_sets, train_feed
from tools.runtime.schedule import scaled_schedule
from tools.runtime.task import Task, Validation
from tools.runtime.training import autocast, refuse_several_processes

WARMUP_WINDOW = 50
"""Iterations whose training error is compared with `schedule.warmup_until_error`."""


class ClassificationTask(Task[ClassificationConfig]):
    """A net on labelled images, validated on all the other sets that there are; it and its input are on `device`."""

    def __init__(
        self, config: ClassificationConfig, net: nn.Module, normalize: Normalize, splits: Splits, device: torch.device
    ) -> None:
        if config.train.graphs:
            refuse_several_processes("train.graphs")
        self.recipe, self.net, self.normalize, self.splits, self.device = config, net.train(), normalize, splits, device
        self.model = distributed.wrap(compiled(net) if config.train.compile else net, device)
        self.validates = splits.val is not None or splits.test is not None
        plan = config.schedule
        self.schedule = scaled_schedule(plan, config.optim, config.train.batch_size, len(splits.train))
        self.warmup = WarmupUntilError(plan.warmup_until_error, plan.warmup_until_factor)
        self.plateau = Plateau(plan.gamma, plan.plateau_patience, plan.plateau_threshold, plan.plateau_steps)
        self.error = TrainingError(device)
        self.graphed = GraphedStep("the training step", net.parameters(), remembered=1) if config.train.graphs else None

    def batches(self, start_iteration: int) -> Iterator[TrainBatch]:
        return train_feed(self.splits.train, self.recipe, self.normalize, self.device, start_iteration)

    def losses(self, batch: TrainBatch, iteration: int) -> Mapping[str, Tensor]:
        """The cross entropy; wrong answers are counted on the way."""
        loss, wrong = self._answer(batch.images, batch.labels, batch.mixed)
        self._count(wrong)
        return {"cross_entropy": loss}

    def gradients(self, batch: TrainBatch, iteration: int, parts: int) -> Mapping[str, Tensor]:
        """See `Task`; with `train.graphs` launched as one CUDA graph."""
        if self.graphed is None:
            return super().gradients(batch, iteration, parts)
        loss, wrong = self.graphed(self._forward_and_backward, [batch.images, batch.labels])
        self._count(wrong)
        return {"cross_entropy": loss}

    def _forward_and_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """() loss and () wrong answers of a whole step."""
        loss, wrong = self._answer(images, labels, None)
        loss.backward()
        return loss.detach(), wrong

    def _answer(self, images: Tensor, labels: Tensor, mixed: MixedLabels | None) -> tuple[Tensor, Tensor]:
        """() loss and () wrong answers."""
        train = self.recipe.train
        with autocast(self.device, train.amp):
            logits = self.model(images)
        loss = classification_loss(logits, labels, smoothing=train.label_smoothing, mixed=mixed)
        return loss, wrong_answers(logits.detach(), labels)

    def _count(self, wrong: Tensor) -> None:
        train = self.recipe.train
        self.error.add(wrong, train.batch_size // train.accumulate)

    def validate(self, iteration: int) -> Validation:
        """The errors of the centre crops of the validation and the test set; best.pt is the validation set's matter."""
        config = self.recipe
        metrics = test_sets(config, self.net, self.normalize, self.splits, self.device)
        watched = metrics.get("val", metrics.get("test"))
        assert watched is not None
        if config.schedule.policy == "plateau":
            self.plateau.update(watched["top1_error"], iteration)
        return Validation(
            metrics=metrics,
            logs=metrics,
            value=watched[config.train.best_metric],
            lower_is_better=True,
            words=format_errors(metrics),
        )

    def rate(self, iteration: int) -> float:
        """The schedule's, changed by the events."""
        return self.schedule.rate(iteration) * self.warmup.factor(iteration) * self.plateau.factor(iteration)

    def step_done(self, iteration: int) -> None:
        """See whether the training error ends the warm-up."""
        if self.warmup.waiting and iteration % WARMUP_WINDOW == 0:
            self.warmup.update(self.error.take("warmup"), iteration)

    def figures(self) -> dict[str, float]:
        return {"top1_error": self.error.take("log")}

    def finished(self) -> bool:
        """Whether the last plateau has come."""
        return self.plateau.finished

    def checkpoint(self) -> dict[str, Any]:
        events = {
            "warmup_event": self.warmup.event,
            "plateau": self.plateau.state_dict(),
            "error": self.error.state_dict(),
        }
        content = {
            "kind": "classifier",
            "config": self.recipe.model_dump(mode="json"),
            "class_names": list(self.splits.train.class_names),
            "preprocessing": self.normalize.preprocessing.to_dict(),
            "stride_in_1x1": self.recipe.model.stride_in_1x1,
            "training": {"events": events},
        }
        if self.normalize.mean_image is not None:
            content["mean_image"] = self.normalize.mean_image.cpu()
        return content

    def load(self, training: Mapping[str, Any]) -> None:
        """Go on with the events of a checkpoint."""
        events = training["events"] if "events" in training else training["state"]  # where they were until 2026-11
        self.warmup.event = events["warmup_event"]
        self.plateau.load_state_dict(events["plateau"])
        self.error.load_state_dict(events["error"])

    def image_name(self, index: int) -> str:
        images = self.splits.train
        return str(images.path(index)) if isinstance(images, ImageFiles) else f"number {index}"
