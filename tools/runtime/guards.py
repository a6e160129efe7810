"""What makes a training on few images come to nothing, said before it begins; and why nothing was found or learned.

Each function gives sentences for `say("warning: ...")`; none stops anything.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.common import ScheduleConfig
from configs.detection import DetectionConfig, SourceConfig
from configs.errors import counted, examples, some
from datasets.cifar import ImageArrays
from datasets.classification import Splits
from datasets.folders import ImageFiles
from datasets.names import Names
from datasets.records import Records
from datasets.survey import FEW, counts_from_zero, rare_classes
from detection.evaluation.evaluate import PROTOCOLS
from tools.runtime.schedule import make_schedule

Files = Sequence[str | Path] | Names
"""The images of a set."""
FEW_STEPS = 200
"""Updates. Random weights, or a new head on old ones, have learned next to nothing after fewer."""
NEARLY_ZERO = 0.005
"""Mean AP. A detector below it has learned nothing that counts."""
_NAMED = 5
LOOKED_AT = 100
"""Images of a set whose content is looked for in another set."""
LARGE = 50_000
"""Images. Larger sets are not looked through: asking for the sizes of so many files takes 0.2 s."""


def before_training(config: DetectionConfig, train: Records, others: Sequence[Records] = ()) -> list[str]:
    """All that is to be said before a training begins."""
    found = schedule_warnings(config.schedule, batch_size=config.train.batch_size, images=len(train))
    return found + data_warnings(train, others) + zero_based_warnings(config.data.train, train)


def schedule_warnings(schedule: ScheduleConfig, *, batch_size: int, images: int) -> list[str]:
    """What is wrong with the length of a training.

    Args:
        schedule: of the config, or of a phase.
        batch_size: images a step.
        images: of the training set (an epoch's showings, where images are repeated).
    """
    found = []
    plan = make_schedule(schedule, rate=1.0, iterations_per_epoch=images / batch_size)
    steps, warmup = plan.iterations, schedule.warmup_iterations
    whole = f"the whole training of {counted(steps, 'step')}"
    if batch_size > images:
        advised = max(1, images // 2)
        found.append(
            f"train.batch_size {batch_size} is more than the {counted(images, 'training image')}: a step shows images "
            f"several times, and an epoch is less than one step: set train.batch_size={advised}"
        )
        batch_size = advised  # what follows is said for a person who does that
    if warmup >= steps:
        found.append(
            f"schedule.warmup_iterations {warmup} is not shorter than {whole}: the rate "
            f"never reaches optim.lr: set schedule.warmup_iterations={max(1, steps // 10)}"
            + (f", or schedule.epochs={_epochs(10 * warmup, images, batch_size)}" if schedule.epochs else "")
        )
    elif warmup > steps / 3:
        found.append(
            f"schedule.warmup_iterations {warmup} takes up {100 * warmup / steps:.0f} % of {counted(steps, 'step')}: "
            f"set schedule.warmup_iterations={max(1, steps // 10)}"
        )
    if steps < FEW_STEPS:
        longer = (
            f"schedule.epochs={_epochs(5 * FEW_STEPS, images, batch_size)}"
            if schedule.epochs
            else f"schedule.iterations={5 * FEW_STEPS}"
        )
        found.append(f"{whole} is too short to learn from: set {longer}")
    return found


def _epochs(steps: int, images: int, batch_size: int) -> int:
    return max(1, round(steps * batch_size / images))


def data_warnings(train: Records, others: Sequence[Records] = ()) -> list[str]:
    """Classes of which little can be learned, and classes that are tested without having been learned."""
    found = []
    if rare := rare_classes(train):
        found.append(
            f"{len(rare)} of {counted(len(train.class_names), 'class')} with fewer than {FEW} objects to learn from: "
            f"{some(rare, _NAMED)}: label more, or leave them out with data.keep_classes"
        )
    learned = train.object_counts()
    for records in others:
        if not records.annotated:
            continue
        tested = records.object_counts()
        new = [name for name, a, b in zip(train.class_names, learned, tested, strict=True) if b and not a]
        if new:
            found.append(
                f"{records.source} has objects of classes that the training set lacks: {', '.join(new[:_NAMED])}"
            )
    return found


def zero_based_warnings(sources: Sequence[SourceConfig], records: Records) -> list[str]:
    """Whether VOC files count pixels from 0 where the config says 1, or the other way round."""
    flags = {source.zero_based for source in sources}
    if len(flags) != 1 or any(source.format != "voc" for source in sources):
        return []
    zero_based = flags.pop()
    seen = counts_from_zero(records, zero_based=zero_based)
    if seen is None or seen == zero_based:
        return []
    if seen:
        return [f"{records.source}: objects at the border begin at 0, so its XML counts from 0: set zero_based: true"]
    return [f"{records.source}: objects at the border begin at 1, so its XML counts from 1: set zero_based: false"]


def why_zero(
    metrics: Mapping[str, Any], scores: np.ndarray, threshold: float, iterations: int | None = None
) -> str | None:
    """The likely cause of a mean AP of (nearly) 0, and what to do; None: it is more, or nothing was measured.

    Args:
        metrics: of `detection.evaluation.evaluate`.
        scores: of all detections.
        threshold: `test.score_thresh`, which they reached.
        iterations: updates of the training; None: not known.
    """
    measured = [metrics[name] for name in PROTOCOLS if name in metrics]
    values = [protocol.get("mAP", protocol.get("AP")) for protocol in measured]
    known = [value for value in values if value is not None]
    if not known or max(known) >= NEARLY_ZERO:
        return None
    seen = (
        f"the best of {counted(len(scores), 'detection')} has score {float(scores.max()):.2g}"
        if len(scores)
        else f"no detection reaches test.score_thresh {threshold:g}"
    )
    if iterations is not None and iterations < FEW_STEPS:
        cause = (
            f"{counted(iterations, 'step', ' is', ' are')} too few to learn from: raise schedule.epochs, or start from "
            "a detector of docs/zoo.md with --init-from"
        )
    elif not len(scores):
        cause = "test.score_thresh=0.001 shows weaker ones; train longer, or lower optim.lr if the loss does not fall"
    else:
        cause = (
            "look at the pictures whether the annotated boxes (dashed) are where they belong; if so, "
            "model.anchors.sizes may not fit the objects (init_data.py chooses them), or optim.lr is too high: does "
            "the loss fall?"
        )
    return f"the mean AP is {100 * max(known):.1f} %: {seen}: {cause}"


def nothing_found(
    scores: np.ndarray | Sequence[float], threshold: float, least: float = 0.0, own: str = ""
) -> str | None:
    """Why there is no detection, if there is none: the best score, and the threshold that would show it.

    Args:
        scores: of all detections of all images, before the threshold.
        threshold: what they were held against, in [0, 1].
        least: the lowest score that was looked for.
        own: "CLASS=" where the threshold is that of the class of the best one alone.
    """
    values = np.asarray(scores, float)
    if not len(values):
        any_score = f"from score {least:g} on" if least else "at any score"
        return f"nothing was found, {any_score}: has the detector been trained long enough, and on such images?"
    best = float(values.max())
    if best >= threshold:
        return None
    shown = np.floor(best * 100) / 100 if best >= 0.01 else best
    return (
        f"nothing reaches the threshold {own}{threshold:g}: the best score was {best:.2g}: "
        f"--threshold {own}{shown:.2g} shows it"
    )


CONSEQUENCES = {
    ("val", "test"): "best.pt is chosen by the test set: its figures flatter",
    ("train", "test"): "the test set's figures flatter",
    ("train", "val"): "the validation flatters, and best.pt says nothing",
}
"""What it means for the figures when two sets have images in common."""


def common_images(sets: Mapping[str, Files]) -> Iterator[str]:
    """Warnings of sets (train, val, test) that have images in common: the same files, or files of the same content."""
    for (a, b), consequence in CONSEQUENCES.items():
        if a not in sets or b not in sets:
            continue
        few, many = sorted((sets[a], sets[b]), key=len)
        listed = set(map(str, few))
        if common := len({str(path) for path in many if str(path) in listed}):
            yield f"data.{a} and data.{b} have {counted(common, 'image')} in common: {consequence}"
        elif copies := copied(sets[a], sets[b]):
            yield (
                f"{copies[0]} of {counted(copies[1], 'image')} of data.{b} that were looked at "
                f"{'is' if copies[0] == 1 else 'are'} in data.{a} too, under another name or through a link: "
                f"{consequence}"
            )


def copied(one: Files, other: Files) -> tuple[int, int] | None:
    """How many of some images of `other` are in `one` with the same content, and of how many; None: none is.

    Fast rather than complete (`tools/check_data.py` compares all): only images of equal size in bytes are read, and
    sets of more than `LARGE` images are not looked at.
    """
    if not len(other) or len(one) > LARGE:
        return None
    count = min(len(other), LOOKED_AT)
    sample: dict[int, list[str | Path]] = defaultdict(list)
    for number in range(count):
        path = other[number * len(other) // count]
        sample[bytes_in(path)].append(path)
    sample.pop(0, None)
    same_size = [path for path in one if bytes_in(path) in sample][: 10 * LOOKED_AT]
    there = {_digest(path) for path in same_size}
    found = sum(_digest(path) in there for paths in sample.values() for path in paths) if there else 0
    return (found, count) if found else None


def bytes_in(path: str | Path) -> int:
    """A file's size; 0: there is none, as the training itself will say."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _digest(path: str | Path) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes()).digest()
    except OSError:
        return str(path).encode("utf-8", "surrogateescape")


def classification_warnings(splits: Splits) -> Iterator[str]:
    """All that is to be said before a classifier's training begins: of its classes, and of images in two sets."""
    sets = {"train": splits.train, "val": splits.val, "test": splits.test}
    given = {name: images for name, images in sets.items() if images is not None}
    names = splits.train.class_names
    if len(names) == 1:
        yield (
            f"there is only one class, {names[0]}, so there is nothing to tell apart: do the class folders lie one "
            "folder further down?"
        )
    for name, images in given.items():
        counts = np.bincount(images.labels[images.labels >= 0], minlength=len(names))
        without = [text for text, count in zip(names, counts.tolist(), strict=True) if not count]
        if 0 < len(without) < len(names):
            lacking = f"{len(without)} of {counted(len(names), 'class')}"
            yield f"data.{name} has no image of {lacking}: {examples(without, _NAMED)}"
    small = {name: images for name, images in given.items() if type(images) is ImageFiles and len(images) <= LARGE}
    yield from common_images({name: [images.path(i) for i in range(len(images))] for name, images in small.items()})
    arrays = {name: images.images for name, images in given.items() if isinstance(images, ImageArrays)}
    for (a, b), consequence in CONSEQUENCES.items():
        if a in arrays and b in arrays:
            chosen = arrays[b][:: -(-len(arrays[b]) // LOOKED_AT)]
            there = {hash(image.tobytes()) for image in arrays[a]}
            if found := sum(hash(image.tobytes()) in there for image in chosen):
                looked_at = f"{counted(len(chosen), 'image')} of data.{b} that were looked at"
                yield f"{found} of {looked_at} {'is' if found == 1 else 'are'} in data.{a}: {consequence}"
