"""The mode `records`: what it costs to read a large set's annotations the first time and later, and to train on it.

The sets are made up in a temporary folder: COCO files of train2017's size, and of Open Images' size (without outlines),
whose images are links to a few real files. Each figure is that of a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZE = (48, 64)
"""(H, W) of the images."""
SETS = {"coco": (118_287, 860_001, True), "large": (1_700_000, 25_000_000, False)}
"""Images, objects, and whether these have outlines."""
_LINKS = 30_000  # names of one file; file systems allow 32,000 or more
_CLASSES = 80
_PART = 100_000


def records_mode(*, scale: float = 1.0, names: tuple[str, ...] = tuple(SETS), train: bool = True) -> dict[str, Any]:
    """CPU seconds and memory of the first reading, a later start, and a training of one step, for each set.

    Args:
        scale: the sets are so many times as large.
        names: which of `SETS`.
        train: measure the step too.
    """
    results: dict[str, Any] = {}
    for name in names:
        images, objects, outlines = SETS[name]
        with tempfile.TemporaryDirectory(prefix="records-") as folder:
            count = max(1, round(images * scale)), max(1, round(objects * scale))
            _write_set(Path(folder), *count, outlines=outlines)
            file = Path(folder, "annotations.json").stat().st_size
            results[name] = {"images": count[0], "objects": count[1], "file_megabytes": file / 1e6}
            for what in ("first_reading", "later_start", *(["training_step"] if train else [])):
                results[name][what] = _measured(what, folder)
    return results


def _measured(what: str, folder: str) -> dict[str, Any]:
    code = f"from tools.benchmarks.annotations import measure; measure({what!r}, {folder!r})"
    environment = {**os.environ, "RESIDUAL_DETECTION_HOME": str(Path(folder, "home"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        raise UserError(f"records: {what} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: str, folder: str) -> None:
    """Do it in this process, and print what it cost as JSON; seconds are CPU time, with the imports."""
    figures = _train(Path(folder)) if what == "training_step" else _start(Path(folder))
    figures |= {"process_seconds": time.process_time(), **_memory()}
    print(json.dumps(figures))


def _start(folder: Path) -> dict[str, Any]:
    from configs.detection import DataConfig
    from datasets.build import build_dataset

    before, wall = time.process_time(), time.perf_counter()
    dataset = build_dataset(DataConfig(train=[_source()]), "train", folder)
    seconds = {"seconds": time.process_time() - before, "wall_seconds": time.perf_counter() - wall}
    assert len(dataset.records.labels)
    return seconds


def _train(folder: Path) -> dict[str, Any]:
    """What `train_det.py` does with the set before its first step, and the step, with a small net and one worker."""
    import torch

    from configs.detection import DetectionConfig
    from datasets.build import build_dataset
    from datasets.detection_loader import train_loader
    from detection.model import build_detector
    from tools.runtime.guards import before_training
    from tools.runtime.resume import data_state

    torch.set_num_threads(1)
    config = DetectionConfig.model_validate({
        "data": {"train": [_source()], "min_size": 64, "max_size": 128, "num_workers": 1},
        "model": {"backbone": "resnet18", "weights": "random", "norm": "batch", "frozen_stages": 0, "neck": "fpn",
                  "fpn_channels": 64, "anchors": {"sizes": [[12], [24], [48], [96], [160]]},
                  "rpn": {"hidden_channels": 64}, "box": {"pool_size": 7, "fc_width": 64}},
        "optim": {"lr": 0.001, "reference_batch_size": 2},
        "schedule": {"iterations": 1},
        "train": {"batch_size": 2},
    })  # fmt: skip
    before, wall = time.process_time(), time.perf_counter()
    dataset = build_dataset(config.data, "train", folder)
    before_training(config, dataset.records)
    data_state(dataset.records)
    detector = build_detector(config.model, dataset.class_names, test=config.test, data_root=folder).train()
    batch = next(iter(train_loader(dataset, config.data, batch_size=2)))
    figures = {"seconds": time.process_time() - before, "wall_seconds": time.perf_counter() - wall}
    optimizer = torch.optim.SGD(detector.parameters(), 1e-3)
    torch.stack(list(detector(batch, seed=0, iteration=0).values())).sum().backward()
    optimizer.step()
    return figures


def _source() -> Any:
    return {"format": "coco", "images": "images", "annotations": "annotations.json"}


def _memory() -> dict[str, float]:
    """The greatest size of this process so far, with what it shares (mapped files, libraries), and what is its own."""
    if not Path("/proc/self/smaps_rollup").is_file():
        return {"peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    # Linux counts a parent's memory in the maxrss of its child.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    own = re.findall(r"Private_\w+:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"))
    return {"peak_megabytes": int(peak[1] if peak else 0) / 1e3, "own_megabytes": sum(map(int, own)) / 1e3}


# ---------------------------------------------------------------------------------------------- sets


def _write_set(folder: Path, images: int, objects: int, *, outlines: bool) -> None:
    import cv2

    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    for i in range(images):
        path = folder / "images" / f"{i // _LINKS:04}" / f"{i:012}.jpg"
        if i % _LINKS == 0:
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), pixels)
        else:
            os.link(path.with_name(f"{i // _LINKS * _LINKS:012}.jpg"), path)
    with open(folder / "annotations.json", "w", encoding="ascii") as file:
        file.write('{"info": {"description": "made up"}, "images": [')
        file.writelines(_image_lines(images))
        file.write('], "annotations": [')
        file.writelines(_object_lines(images, objects, outlines))
        names = [{"supercategory": "thing", "id": k, "name": f"class {k}"} for k in range(1, _CLASSES + 1)]
        file.write(f'], "categories": {json.dumps(names)}}}')


def _image_lines(images: int) -> Iterator[str]:
    rest = f'"height": {SIZE[0]}, "width": {SIZE[1]}, "date_captured": "2013-11-14 11:18:45"'
    for i in range(images):
        yield f'{", " if i else ""}{{"license": 3, "file_name": "{i // _LINKS:04}/{i:012}.jpg", {rest}, "id": {i + 1}}}'


def _object_lines(images: int, objects: int, outlines: bool) -> Iterator[str]:
    """One text for each `_PART` objects: every image has some, all inside it."""
    rng = np.random.default_rng(1)
    shapes = [json.dumps([rng.uniform(0, 64, 2 * n).round(2).tolist()]) for n in rng.integers(4, 48, 200).tolist()]
    for start in range(0, objects, _PART):
        count = min(_PART, objects - start)
        corner, side = rng.uniform(0, 20, (count, 2)), rng.uniform(2, 27, (count, 2))
        boxes = np.concatenate([corner, side], axis=1).round(2).tolist()
        labels = rng.integers(1, _CLASSES + 1, count).tolist()
        parts = []
        for number, ((x, y, w, h), label) in enumerate(zip(boxes, labels, strict=True), start):
            outline = f'"segmentation": {shapes[number % len(shapes)]}, ' if outlines else ""
            parts.append(
                f'{{{outline}"area": {w * h:.4f}, "iscrowd": 0, "image_id": {number % images + 1}, '
                f'"bbox": [{x}, {y}, {w}, {h}], "category_id": {label}, "id": {number + 1}}}'
            )
        yield (", " if start else "") + ", ".join(parts)
