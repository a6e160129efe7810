"""What a detector's training does before its first step: data, model, warnings, a description, a rehearsal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbones.weights import Preprocessing
from configs.detection import DataConfig, DetectionConfig, SourceConfig
from configs.errors import UserError, counted, examples
from datasets.batch import Batch
from datasets.build import Split, build_dataset
from datasets.detection import DetectionDataset
from datasets.lint import summary
from datasets.padding import padded_size
from datasets.resize import resized_size
from detection.checkpoint import load_matching, read_detector_file
from detection.model import Detector, build_detector
from detection.transfer import transfer_classes
from tools.runtime import distributed
from tools.runtime.distributed import say
from tools.runtime.guards import common_images
from tools.runtime.run_folder import RunFolder
from tools.runtime.start import say_place
from tools.runtime.texts import net_name
from tools.runtime.training import autocast, count_parameters, total


def build_datasets(
    config: DetectionConfig, data_root: Path, run: Path | None = None
) -> tuple[DetectionDataset, DetectionDataset | None, DetectionDataset | None]:
    """Training, validation and test set; the latter two where the config has them, with the first one's classes.

    Raises:
        UserError: a set cannot be read, or the folder of the run is that of a set.
    """
    for source in (*config.data.train, *config.data.val, *config.data.test):
        for folder in filter(None, (source.root, source.images)):
            if run is not None and (data_root / folder.removesuffix("/*")).resolve() == run.resolve():
                raise UserError(
                    f"--out {run} is the folder of the data ({folder}): the run's pictures would become images of the "
                    "set: choose another folder, or one below it"
                )
    train_set = build_dataset(config.data, "train", data_root, seed=config.seed)

    def other(split: Split, sources: list[SourceConfig]) -> DetectionDataset | None:
        if not sources:
            return None
        return build_dataset(config.data, split, data_root, seed=config.seed, class_names=train_set.class_names)

    return train_set, other("val", config.data.val), other("test", config.data.test)


def check_validation(
    config: DetectionConfig,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    test_set: DetectionDataset | None,
) -> None:
    """See that what chooses best.pt can be computed, and warn where one set lies in another."""
    if val_set is not None:
        if not val_set.records.annotated:
            raise UserError(f"data.val: {val_set.records.source} has no annotations, so nothing can be validated on it")
        protocol = config.train.best_metric.partition(".")[0]
        if protocol != "loss" and protocol not in config.metrics:
            raise UserError(f"train.best_metric {config.train.best_metric} needs {protocol} among metrics")
        records = val_set.records
        passed_over = records.iscrowd | records.difficult if protocol.startswith("voc") else records.iscrowd
        if protocol != "loss" and passed_over.all():
            found = f"{records.source} has no object to be found, so {config.train.best_metric} cannot be computed"
            if config.train.patience is not None:
                raise UserError(f"train.patience: {found}: set train.best_metric=loss, or train.patience=null")
            say(f"warning: {found}, and no best.pt will be written: set train.best_metric=loss")
    elif config.train.patience is not None:
        raise UserError("train.patience needs data.val: early stopping watches the validation set")
    sets = {"train": train_set, "val": val_set, "test": test_set}
    for warning in common_images({name: part.records.image_paths for name, part in sets.items() if part is not None}):
        say(f"warning: {warning}")


def check_line(
    data: DataConfig, train_set: DetectionDataset, val_set: DetectionDataset | None, test_set: DetectionDataset | None
) -> str:
    """What the linter says of the sets' annotations, in one line; see `datasets.lint.summary`."""
    sets = {"train": train_set, "val": val_set, "test": test_set}
    return summary(
        {name: part.records for name, part in sets.items() if part is not None},
        min_size=data.min_size if isinstance(data.min_size, int) else min(data.min_size),
        max_size=data.max_size,
        more="python tools/check_data.py --cfg FILE lists them",
    )


def make_detector(
    config: DetectionConfig,
    class_names: list[str],
    data_root: Path,
    checkpoint: dict | None,
    init_from: Path | str | None,
) -> Detector:
    """The detector with the backbone's weights, those of `--init-from`, or those of a checkpoint to resume."""
    start = checkpoint or (read_detector_file(init_from) if init_from is not None else None)
    preprocessing = Preprocessing.from_dict(start["preprocessing"]) if start else None
    detector = build_detector(
        config.model, class_names, test=config.test, data_root=data_root, preprocessing=preprocessing
    )
    if start is not None:
        card = dict(start.get("card", {}))
        if checkpoint is None and "source" in card:  # its figures are not this run's, its licence is
            card = {"started_from": card["source"], **{key: card[key] for key in ("licence",) if key in card}}
        detector.card = card
    if start is not None and init_from is not None and checkpoint is None:
        weights = dict(start["model"])
        if start["class_names"] != class_names:  # equal numbers of other classes have equal shapes
            weights = {name: value for name, value in weights.items() if ".box_predictor.cls_score." not in name}
            if not config.model.box.class_agnostic:
                weights = {name: value for name, value in weights.items() if ".box_predictor.bbox_pred." not in name}
        fresh = load_matching(detector, weights, init_from)
        say(f"weights    of {init_from}" + (f"; from scratch: {', '.join(fresh)}" if fresh else ""))
        if config.train.transfer_classes and start["class_names"] != class_names:
            known = transfer_classes(detector, start["model"], start["class_names"])
            say(f"           but for {counted(len(known), 'row')} of classes of the same name: {', '.join(known[:20])}")
    return detector


def with_size(config: DetectionConfig, size: int) -> DetectionConfig:
    """The same config with this `train.batch_size`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": size})})


def automatic_batch_size(
    config: DetectionConfig, detector: nn.Module, dataset: DetectionDataset, device: torch.device
) -> int:
    """What `train.batch_size: auto` means for this detector, on `device`, and this training set; says it.

    Raises:
        UserError: it cannot be tried for several processes or phases.
    """
    if distributed.world_size() > 1 or config.train.alternating is not None:
        raise UserError(
            "train.batch_size auto: is for joint training in one process: give the number of images of a step"
        )
    if device.type == "cuda":
        size, why = _largest_batch(config, detector, dataset, device), "as many as fit into the GPU's memory"
    else:
        parts = config.train.accumulate
        size, why = config.optim.reference_batch_size, "optim.reference_batch_size, on a CPU"
        size = max(1, min(size, len(dataset)) // parts) * parts
    say(f"batch      {counted(size, 'image')} a step (auto): {why}")
    return size


def _largest_batch(
    config: DetectionConfig, detector: nn.Module, dataset: DetectionDataset, device: torch.device
) -> int:
    """Images a step, in parts of the largest power of 2 with which the rehearsal succeeds; no more than there are."""
    trained, _ = count_parameters(detector)
    optimizer_state = torch.empty(2 * trained, device=device)  # room that the optimiser takes from its first step on
    part, fits = 1, 0
    while part * config.train.accumulate <= len(dataset):
        try:
            rehearse(detector, dataset, with_size(config, part * config.train.accumulate), device)
        except torch.OutOfMemoryError:
            if not fits:
                raise
            break
        part, fits = 2 * part, part
    del optimizer_state
    torch.cuda.empty_cache()
    return max(1, fits) * config.train.accumulate


def rehearse(model: nn.Module, dataset: DetectionDataset, config: DetectionConfig, device: torch.device) -> None:
    """Go forward and backward once with the largest batch that may come, so that memory fails now or never.

    Nothing is left of it: no gradients, and batch norm's statistics as before.
    """
    longest = max(dataset.min_sizes)
    sizes = np.array(
        [resized_size(tuple(size), longest, dataset.max_size) for size in np.unique(dataset.records.sizes, axis=0)]
    )
    height, width = padded_size(tuple(sizes.max(axis=0)), config.data.size_divisor)
    count = config.train.batch_size // (config.train.accumulate * distributed.world_size())
    box = torch.tensor([[[width * 0.25, height * 0.25, width * 0.75, height * 0.75]]])
    batch = Batch(
        images=torch.zeros((count, 3, height, width), dtype=torch.uint8).contiguous(memory_format=torch.channels_last),
        image_sizes=torch.tensor([[height, width]]).repeat(count, 1),
        original_sizes=torch.tensor([[height, width]]).repeat(count, 1),
        boxes=torch.nn.functional.pad(box, (0, 0, 0, 7)).repeat(count, 1, 1),
        labels=torch.tensor([[1] + [0] * 7]).repeat(count, 1),
        valid=torch.tensor([[True] + [False] * 7]).repeat(count, 1),
        index=torch.arange(count),
    ).to(device)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with distributed.without_sync(model):
            with autocast(device, config.train.amp):
                losses = model(batch, seed=config.seed, iteration=0)
            total(losses).backward()
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])


def describe(
    config: DetectionConfig,
    detector: Detector,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    test_set: DetectionDataset | None,
    device: torch.device,
    run: RunFolder,
    start: Path | str | None = None,
) -> None:
    """Say what will be done; `start`: the detector whose weights it starts from."""
    sizes = [f"{counted(len(train_set), 'image')} with {counted(len(train_set.records.labels), 'object')} to train on"]
    sizes += [
        f"{len(part)} to {verb}" for part, verb in ((val_set, "validate"), (test_set, "test")) if part is not None
    ]
    names = detector.class_names
    trained, frozen = count_parameters(detector)
    model = config.model
    say(f"data       {', '.join(sizes)}")
    say(f"classes    {len(names)}: {examples(names, 20)}")
    neck = " with FPN" if model.neck == "fpn" else ""
    say(f"model      {net_name(model.backbone)}{neck}, weights {start or model.weights}: "
        f"{trained:,} parameters train, {frozen:,} are frozen")  # fmt: skip
    say_place(device, config.train.amp, run)
