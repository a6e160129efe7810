"""Who takes part: `ours`, `ours_compiled`, `ours_graphs`, `ours_winograd`, `torchvision`, and plug-ins.

A plug-in is a Python file that defines a class `Contestant`, for example around another framework (see
`plugins/detectron2_c4.py`). It is named after its file, and may inherit from the class of that name here:

    class Contestant:
        def __init__(self, case, weights, device, amp, training): ...   # see Contestant below
        def detect(self, inputs): ...
        def train_step(self, inputs): ...
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.compilation import GraphedStep
from backbones.preprocess import Normalize
from backbones.weights import IMAGENET
from configs.detection import ModelConfig
from configs.errors import UserError
from datasets.batch import Batch
from detection.compilation import compile_regions, graph_detections, graphed_gradients
from detection.model import Detector, build_detector
from detection.prediction import to_numpy
from detection.sampling import Iteration
from tools.benchmarks.cases import Case, Inputs, spread_weights
from tools.benchmarks.torchvision_detector import TorchvisionDetector
from tools.runtime.training import place, total

RATE, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 1e-4
"""Of the updates: a rate so low that losses stay what they are."""

Detected = list[tuple[Tensor, Tensor, Tensor]]
"""For each image boxes (D, 4) in pixels of the input, scores (D,), labels (D,), on the CPU, best first."""


class Contestant(ABC):
    """One side of a comparison, around one module: another framework's plug-in may inherit from it.

    Args:
        case: the detector (`case.section()` is a config's section `model`) and the size of its images.
        weights: a state dict by torchvision's names (`random_weights`); empty: whatever weights it begins with.
        device: where it runs.
        amp: "none": float32; "bf16": convolutions and fully connected layers in bf16.
        training: it will train (else it will detect).
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        self.device = device
        self.amp = amp
        self.model = self.build(case).to(device)
        if weights:
            self.load(weights)
        self.model.train(training)

    @abstractmethod
    def build(self, case: Case) -> nn.Module:
        """The module that is measured."""

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights that all contestants get."""
        self.model.load_state_dict(weights)

    @abstractmethod
    def detect(self, inputs: Inputs) -> Detected:
        """The detections of a batch, on the host."""

    @abstractmethod
    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        """The four losses by torchvision's names, scalars."""

    def train_step(self, inputs: Inputs) -> dict[str, Tensor]:
        """Losses, their gradients, one update by SGD, and gradients set to None; returns the losses."""
        losses = self.gradients(inputs)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses

    def gradients(self, inputs: Inputs) -> dict[str, Tensor]:
        """The losses, gone backward."""
        with self.autocast():
            losses = self.losses(inputs)
        total(losses).backward()
        return losses

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp == "bf16")


def plain_sgd(model: nn.Module, *, fused: bool = False) -> torch.optim.SGD:
    """The update that all contestants make."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(parameters, RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused or None)


class Ours(Contestant):
    """This project's detector as its scripts run it."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        self.prepared: tuple[Inputs, Batch] | None = None
        self.detections: Callable[[Batch], Any] = self.model
        if training:
            place(self.model, device, channels_last=True)
            self.optimizer = plain_sgd(self.model, fused=True)
        else:
            self.detector.optimize_for_inference(torch.bfloat16 if amp == "bf16" else torch.float32)

    def build(self, case: Case) -> Detector:
        config = ModelConfig.model_validate(case.section())
        model = build_detector(config, class_names(case), test=case.test, preprocessing=IMAGENET)
        model.register_module("normalize", AsTheyAre(model.normalize))
        return model

    @property
    def detector(self) -> Detector:
        assert isinstance(self.model, Detector)
        return self.model

    def batch(self, inputs: Inputs) -> Batch:
        """The inputs as a loader would have laid them out; made once."""
        if self.prepared is None or self.prepared[0] is not inputs:
            self.prepared = inputs, make_batch(inputs)
        return self.prepared[1]

    @torch.inference_mode()
    def detect(self, inputs: Inputs) -> Detected:
        images = to_numpy(self.detections(self.batch(inputs)))
        return [
            (torch.from_numpy(image.boxes), torch.from_numpy(image.scores), torch.from_numpy(image.labels))
            for image in images
        ]

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        return self.model(self.batch(inputs), seed=0, iteration=0)


class OursAsGraphs(Ours):
    """The same, on CUDA each detection, or forward and backward pass of a training step, launched as one CUDA graph."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        self.graphed: GraphedStep | None = None
        if device.type == "cuda" and training:
            self.graphed = GraphedStep("the training step", self.model.parameters())
        elif device.type == "cuda":
            self.detections = graph_detections(self.detector)

    def gradients(self, inputs: Inputs) -> dict[str, Tensor]:
        if self.graphed is None:
            return super().gradients(inputs)

        def losses(batch: Batch, iteration: Iteration) -> dict[str, Tensor]:
            with self.autocast():
                return self.model(batch, seed=0, iteration=iteration)

        return dict(graphed_gradients(self.graphed, losses, self.batch(inputs), iteration=0))


class OursCompiled(OursAsGraphs):
    """The same again, with its static regions compiled."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        compile_regions(self.detector)


class OursByWinograd(Ours):
    """The same, training with `train.winograd`."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        if training:
            place(self.model, device, channels_last=True, winograd=True)


class Torchvision(Contestant):
    """torchvision's parts, plainly composed."""

    def __init__(self, case: Case, weights: dict[str, Tensor], device: torch.device, amp: str, training: bool) -> None:
        super().__init__(case, weights, device, amp, training)
        self.optimizer = plain_sgd(self.model)

    def build(self, case: Case) -> TorchvisionDetector:
        return TorchvisionDetector(ModelConfig.model_validate(case.section()), case.num_classes, case.test)

    @torch.inference_mode()
    def detect(self, inputs: Inputs) -> Detected:
        with self.autocast():
            images = self.model(inputs.images, inputs.image_size)
        return [(image["boxes"].cpu(), image["scores"].cpu(), image["labels"].cpu()) for image in images]

    def losses(self, inputs: Inputs) -> dict[str, Tensor]:
        targets = [{"boxes": b, "labels": k} for b, k in zip(inputs.boxes, inputs.labels, strict=True)]
        return self.model(inputs.images, inputs.image_size, targets)


class AsTheyAre(nn.Module):
    """In the place of the normalisation: images come normalised; only the dtype changes."""

    def __init__(self, normalize: Normalize) -> None:
        super().__init__()
        self.dtype = normalize.dtype

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        return images.to(self.dtype)


def class_names(case: Case) -> list[str]:
    return [f"class{k}" for k in range(1, case.num_classes + 1)]


def make_batch(inputs: Inputs) -> Batch:
    """The inputs as `datasets.batch.Batch`, but with float images."""
    device, batch_size = inputs.images.device, len(inputs.images)
    sizes = torch.tensor([inputs.image_size] * batch_size, device=device)
    return Batch(
        images=inputs.images.contiguous(memory_format=torch.channels_last),
        image_sizes=sizes,
        original_sizes=sizes,
        boxes=inputs.boxes,
        labels=inputs.labels,
        valid=inputs.labels > 0,
        index=torch.arange(batch_size, device=device),
    )


def random_weights(case: Case) -> dict[str, Tensor]:
    """A state dict for all contestants."""
    config = ModelConfig.model_validate(case.section())
    detector = build_detector(config, class_names(case), preprocessing=IMAGENET)
    spread_weights(detector)
    return detector.state_dict()


def load_plugin(path: Path) -> Callable[..., Contestant]:
    """The class `Contestant` of a Python file.

    Raises:
        UserError: there is no such file or class.
    """
    if not path.is_file():
        raise UserError(f"--plugin {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Contestant"):
        raise UserError(f"--plugin {path}: defines no class Contestant (see tools/benchmarks/contestants.py)")
    return module.Contestant


Makers = dict[str, Callable[..., Contestant]]

CONTESTANTS: Makers = {
    "ours": Ours,
    "ours_compiled": OursCompiled,
    "ours_graphs": OursAsGraphs,
    "ours_winograd": OursByWinograd,
    "torchvision": Torchvision,
}
