"""What the classification scripts share: the net's input, training batches on the device, the test of a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from backbones.augmentation import DeviceImages, MixedLabels, StepAugmentation, draw_crops, to_device
from backbones.batch_norm import recalibrate
from backbones.classification import measure_mean
from backbones.preprocess import Normalize
from backbones.pretrained import load_backbone_weights
from backbones.views import count_errors, mean_scores
from backbones.weights import Preprocessing
from configs.classification import ClassificationConfig, ImageDataConfig
from configs.errors import examples
from datasets.batch import prefetch
from datasets.cifar import ImageArrays
from datasets.classification import (
    ImageSet,
    LabelledBatch,
    Splits,
    centre_batches,
    scaled_batches,
    spread,
    step_parts,
    train_batches,
)
from datasets.samplers import TrainStream
from tools.runtime import distributed
from tools.runtime.distributed import say
from tools.runtime.progress import Progress
from tools.runtime.run_folder import RunFolder
from tools.runtime.schedule import Schedule
from tools.runtime.start import say_place, say_steps
from tools.runtime.texts import net_name
from tools.runtime.training import autocast, count_parameters

EVALUATION_BATCH = 256
"""Images of a batch of centre crops. 10-crop and multi-scale tests take fewer, as each has many views."""


# ---------------------------------------------------------------------------------------------- before the loop


def make_normalize(
    config: ClassificationConfig, net: nn.Module, train_set: ImageSet, checkpoint: dict | None, data_root: Path
) -> Normalize:
    """The net's input: a resumed run's, that of the weights to start from, or the config's, measured if need be."""
    if checkpoint is not None:
        return Normalize(Preprocessing.from_dict(checkpoint["preprocessing"]), checkpoint.get("mean_image"))
    model, data = config.model, config.data
    if model.weights != "random":
        style = model.stride_in_1x1
        preprocessing = distributed.main_first(  # who goes first may download them
            lambda: load_backbone_weights(net, model.backbone, model.weights, stride_in_1x1=style, data_root=data_root)
        )
        say(f"weights    {model.weights}, whose own mean and std take the place of the config's")
        return Normalize(preprocessing)
    if not isinstance(data.mean, str):
        return Normalize(Preprocessing(data.mean, data.std))
    sample = spread(train_set, data.mean_images)
    batches = centre_batches(sample, data, batch_size=EVALUATION_BATCH)
    image = distributed.on_main(lambda: measure_mean(batch.images for batch in batches))
    mean = tuple(image.double().mean((1, 2)).tolist())
    say(f"mean       {data.mean}, of {len(sample):,} images: {', '.join(f'{value:.2f}' for value in mean)} (RGB)")
    return Normalize(Preprocessing(mean, data.std), image if data.mean == "pixel" else None)


def compiled(net: nn.Module) -> nn.Module:
    """The net, compiled for one shape; what cannot be compiled runs as it is, with a warning."""
    torch._dynamo.config.suppress_errors = True
    return cast(nn.Module, torch.compile(net, dynamic=False))  # of a module it makes a module


def describe(
    config: ClassificationConfig,
    net: nn.Module,
    splits: Splits,
    schedule: Schedule,
    device: torch.device,
    run: RunFolder,
) -> None:
    sets = {"to train on": splits.train, "to validate": splits.val, "to test": splits.test}
    sizes = [f"{len(images):,} {verb}" for verb, images in sets.items() if images is not None]
    kind = f"{net_name(config.model.backbone)}{', plain' if config.model.plain else ''}"
    say(f"data       {', '.join(sizes)} images{', in memory' if config.data.in_memory else ''}")
    say(f"classes    {len(splits.train.class_names)}: {examples(splits.train.class_names, 10)}")
    say(f"model      {kind}: {count_parameters(net)[0]:,} parameters")
    say_steps(config, schedule)
    say_place(device, config.train.amp, run)
    if splits.val is None and splits.test is not None:
        say("best.pt is chosen by the test set, as there is no validation set: report the figures of last.pt")


# ---------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainBatch(LabelledBatch):
    """A part of a step on the device: normalised, augmented."""

    mixed: MixedLabels | None
    """What the images were mixed with; None: with nothing."""


def train_feed(
    images: ImageSet, config: ClassificationConfig, normalize: Normalize, device: torch.device, start_iteration: int
) -> Iterator[TrainBatch]:
    """Training batches without end, `accumulate` for each iteration, from `start_iteration` on.

    What an iteration holds is a pure function of (seed, iteration), whatever the number of processes.
    """
    train = config.train
    rank, world_size = distributed.rank(), distributed.world_size()
    parts = step_parts(config.data.augment, train.batch_size, train.accumulate, rank, world_size)
    augmentation = StepAugmentation(config.data.augment, config.seed, train.batch_size, normalize.scaled)
    if isinstance(images, ImageArrays):
        batches = _memory_batches(images, config, normalize, device, parts, start_iteration)
    else:
        loader = train_batches(
            images, config.data, batch_size=train.batch_size, accumulate=train.accumulate, seed=config.seed,
            start_iteration=start_iteration, rank=rank, world_size=world_size, pin_memory=device.type == "cuda",
        )  # fmt: skip
        batches = (replace(batch, images=normalize(batch.images)) for batch in prefetch(loader, device))
    iteration = start_iteration
    while True:
        for part in parts:
            batch = next(batches)
            pixels, labels, mixed = augmentation(batch.images, batch.labels, iteration, part)
            yield TrainBatch(pixels, labels, batch.index[-len(labels) :], mixed, replaced=batch.replaced)
        iteration += 1


def _memory_batches(
    images: ImageArrays,
    config: ClassificationConfig,
    normalize: Normalize,
    device: torch.device,
    parts: Sequence[slice | np.ndarray],
    iteration: int,
) -> Iterator[LabelledBatch]:
    """Batches of a set that lives on the device, normalised."""
    pixels = torch.from_numpy(images.images)
    resident = DeviceImages(
        pixels.flip(-1) if normalize.bgr else pixels,
        torch.from_numpy(images.labels),
        normalize.mean_for(images.images.shape[1:3]),
        normalize.inverse_std,
        config.data.augment.pad,
        device,
    )
    stream = TrainStream(len(images), config.train.batch_size, config.seed)
    augment = config.data.augment
    while True:
        _, indices = stream.step(iteration)
        draws = draw_crops(config.seed, iteration, indices, augment.pad, augment.hflip)
        for part in parts:
            chosen = to_device(draws[part], device)
            yield LabelledBatch(*resident.crops(chosen), chosen[:, 0])
        iteration += 1


class TrainingError:
    """The share of wrong answers in training, counted on the device; several readers each have a mark to read from."""

    def __init__(self, device: torch.device) -> None:
        self.wrong = torch.zeros((), dtype=torch.int64, device=device)
        """() wrong answers of this process since the beginning."""
        self.images = 0
        """Images that all processes saw."""
        self.marks: dict[str, list[int]] = {}

    def add(self, wrong: Tensor, images: int) -> None:
        """Take in () wrong answers of this process, and the number of images that all processes saw."""
        self.wrong += wrong
        self.images += images

    def take(self, mark: str) -> float:
        """The error since the mark, which moves here; waits for the device."""
        total = self._total()
        wrong, images = self.marks.get(mark, (0, 0))
        self.marks[mark] = [total, self.images]
        return (total - wrong) / max(self.images - images, 1)

    def _total(self) -> int:
        total = self.wrong.clone()
        distributed.reduce_sum(total)
        return int(total)

    def state_dict(self) -> dict[str, Any]:
        return {"wrong": self._total(), "images": self.images, "marks": dict(self.marks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wrong.fill_(state["wrong"] if distributed.is_main() else 0)
        self.images, self.marks = state["images"], dict(state["marks"])


# ---------------------------------------------------------------------------------------------- test


def evaluate(
    members: Sequence[tuple[nn.Module, Normalize]],
    images: ImageSet,
    data: ImageDataConfig,
    device: torch.device,
    *,
    view: str = "center",
    batch_size: int = EVALUATION_BATCH,
    amp: str = "none",
    what: str = "test",
) -> dict[str, float]:
    """The errors of a net, or of several nets' averaged scores, on a set; all processes share the work.

    Args:
        members: nets on `device`, each with its own input; they come back in the mode that they had.
        images: the set.
        data: sizes, scales and workers.
        device: where it runs.
        view: center, 10crop or multiscale.
        batch_size: images at a time, at most.
        amp: none or bf16.
        what: a word for the progress bar.

    Returns:
        {"top1_error", "top5_error", "loss", "images"}: errors as fractions.
    """
    batches, total = _view_batches(images, data, device, view, batch_size)
    with _testing(members, device, amp), Progress(total, what, unit="batch") as progress:
        moved = (([batch.images for batch in scales], scales[0].labels) for scales in _moved(batches, device, progress))
        counter = count_errors(members, moved, view, data.test_crop, device)
    distributed.reduce_sum(counter.sums)
    return counter.result()


def rank_classes(
    members: Sequence[tuple[nn.Module, Normalize]],
    images: ImageSet,
    data: ImageDataConfig,
    device: torch.device,
    *,
    view: str = "center",
    batch_size: int = EVALUATION_BATCH,
    amp: str = "none",
    top: int = 5,
) -> np.ndarray:
    """(N, T) int64: the T classes of each image with the highest scores, best first; the same on every process.

    Args:
        members, images, data, device, view, batch_size, amp: as for `evaluate`; labels are not read.
        top: T, at most; there may be fewer classes.
    """
    batches, total = _view_batches(images, data, device, view, batch_size)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with _testing(members, device, amp), Progress(total, "test", unit="batch") as progress:
        for scales in _moved(batches, device, progress):
            scores = mean_scores(members, [batch.images for batch in scales], view, data.test_crop)
            best = scores.topk(min(top, scores.shape[1]), 1).indices
            found.append((scales[0].index.cpu().numpy(), best.cpu().numpy()))
    everything = [part for parts in distributed.all_gather(found) for part in parts]
    index, classes = (np.concatenate(column) for column in zip(*everything, strict=True))
    return classes[np.argsort(index)]


@contextmanager
def _testing(members: Sequence[tuple[nn.Module, Normalize]], device: torch.device, amp: str) -> Iterator[None]:
    """The nets in eval mode, without gradients; they come back in the mode that they had."""
    modes = [net.training for net, _ in members]
    for net, _ in members:
        net.eval()
    with torch.inference_mode(), autocast(device, amp):
        yield
    for (net, _), mode in zip(members, modes, strict=True):
        net.train(mode)


def _view_batches(
    images: ImageSet, data: ImageDataConfig, device: torch.device, view: str, batch_size: int
) -> tuple[Any, int | None]:
    """The batches of a view, lists of one for each scale, and their number."""
    pin = device.type == "cuda"
    rank, world_size = distributed.rank(), distributed.world_size()
    if view == "center":
        loader = centre_batches(images, data, batch_size=batch_size, rank=rank, world_size=world_size, pin_memory=pin)
        return ([batch] for batch in loader), -(-len(images) // (batch_size * world_size))
    scales = [data.test_resize] if view == "10crop" else list(data.test_scales)
    loader = scaled_batches(
        images, data, scales, batch_size=batch_size, rank=rank, world_size=world_size, pin_memory=pin
    )
    return loader, None


def _moved(batches: Any, device: torch.device, progress: Progress) -> Iterator[list[LabelledBatch]]:
    """The batches of each scale on the device."""
    for scales in batches:
        yield [batch.to(device) for batch in scales]
        progress.update()


def test_sets(
    config: ClassificationConfig, net: nn.Module, normalize: Normalize, splits: Splits, device: torch.device
) -> dict[str, dict[str, float]]:
    """Name -> errors of the centre crops, for the validation and test sets that there are."""
    sets = {"val": splits.val, "test": splits.test}
    return {
        name: evaluate([(net, normalize)], images, config.data, device, amp=config.train.amp, what=name)
        for name, images in sets.items()
        if images is not None
    }


def format_errors(metrics: dict[str, dict[str, float]]) -> str:
    """The errors in per cent."""
    return ", ".join(
        f"{name} error {100 * values['top1_error']:.2f} % (top 5 {100 * values['top5_error']:.2f} %)"
        for name, values in metrics.items()
    )


def recalibrate_over(
    train_set: ImageSet, config: ClassificationConfig, net: nn.Module, normalize: Normalize, device: torch.device
) -> None:
    """Give batch norm the true statistics over the training set's centre crops, or a sample of them.

    The batches, whose statistics the deeper layers see, are shuffled and of the size of a training step over all
    processes, as in the training: where a set is sorted by class, neighbours would make a batch of one class.
    """
    sample = spread(train_set, config.train.recalibrate_images)
    batch_size = max(config.train.batch_size // distributed.world_size(), 1)
    order = np.random.default_rng(config.seed).permutation(len(sample))
    if len(order) > 1 and len(order) % batch_size == 1:
        order = order[:-1]  # an image alone, at the end, may have one value for each channel, which do not vary
    loader = centre_batches(
        sample.take(order), config.data, batch_size=batch_size,
        rank=distributed.rank(), world_size=distributed.world_size(), may_replace=True,
    )  # fmt: skip
    with autocast(device, config.train.amp):
        recalibrate(net, (normalize(batch.to(device).images) for batch in loader), device)
