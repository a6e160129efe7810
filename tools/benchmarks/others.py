"""The modes that measure what is not a detector: loader, eval, imagenet, cifar."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from backbones.compilation import GraphedStep
from backbones.zoo import build_backbone
from configs.errors import UserError
from tools.benchmarks.checks import LOSS_TOLERANCE
from tools.benchmarks.contestants import MOMENTUM, RATE, WEIGHT_DECAY
from tools.benchmarks.detectors import exact_float32
from tools.benchmarks.timing import compare
from tools.runtime.training import place

ROOT = Path(__file__).resolve().parents[2]
CIFAR_TRAINING_IMAGES = 50_000

# ---------------------------------------------------------------------------------------------- loading


def loader_mode(*, repetitions: int, images: int = 16) -> dict[str, Any]:
    """CPU seconds an image from a 500x375 JPEG to a batch of two images for a detector at 600 pixels, on one core.

    `ours` hands over uint8, normalised later on the device; `torchvision` is transforms.v2 to normalised floats.
    """
    for package in ("cv2", "albumentations"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"loader needs {package}, which is not installed")
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = _write_jpegs(Path(folder), images)
        ours, theirs = _our_batches(paths), _v2_batches(paths)
        difference = _check_batches(ours(), theirs())
        seconds = compare(
            {"ours": ours, "torchvision": theirs}, reference="torchvision", repetitions=repetitions, warmup=1,
            device=torch.device("cpu"),
        )  # fmt: skip
    return {"images": images, "mean_difference_in_grey_levels": difference, "seconds": seconds}


def _write_jpegs(folder: Path, images: int) -> list[str]:
    import cv2

    rng = np.random.default_rng(0)
    paths = []
    for number in range(images):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number}.jpg"))
        cv2.imwrite(paths[-1], image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def _our_batches(paths: list[str]) -> Callable[[], list[Tensor]]:
    from configs.detection import AugmentConfig
    from datasets.batch import Collate
    from datasets.detection import DetectionDataset
    from datasets.names import Names
    from datasets.records import Records
    from datasets.target import SampleKey

    count = len(paths)
    records = Records(
        image_paths=Names.of(paths), image_ids=np.arange(count), sizes=np.tile((375, 500), (count, 1)),
        offsets=np.arange(count + 1), boxes=np.tile((50.0, 60.0, 250.0, 260.0), (count, 1)),
        labels=np.ones(count, np.int64), area=np.full(count, 40_000.0), iscrowd=np.zeros(count, bool),
        difficult=np.zeros(count, bool), truncated=np.zeros(count, bool), annotation_ids=np.arange(count) + 1,
        class_names=["thing"], category_ids=np.ones(1, np.int64),
    )  # fmt: skip
    augment = AugmentConfig(hflip=0.0)
    dataset = DetectionDataset(records, min_sizes=[600], max_size=1000, augment=augment)
    collate = Collate()
    return lambda: [
        collate([dataset[SampleKey(0, index)], dataset[SampleKey(0, index + 1)]]).images for index in range(0, count, 2)
    ]


def _v2_batches(paths: list[str]) -> Callable[[], list[Tensor]]:
    from torchvision import tv_tensors
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(0.0),
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(600, max_size=1000),
            v2.SanitizeBoundingBoxes(),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def load(path: str) -> Tensor:
        boxes = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]  # taken for Tensor's own constructor
            [[50.0, 60.0, 250.0, 260.0]], format="XYXY", canvas_size=(375, 500)
        )
        sample = {"image": tv_tensors.Image(decode_image(path)), "boxes": boxes, "labels": torch.ones(1).long()}
        return transform(sample)["image"]

    def batches() -> list[Tensor]:
        result = []
        for index in range(0, len(paths), 2):
            pair = [load(path) for path in paths[index : index + 2]]
            batch = torch.zeros(2, 3, 608, 800)
            for slot, image in zip(batch, pair, strict=True):
                slot[:, : image.shape[1], : image.shape[2]] = image
            result.append(batch)
        return result

    return batches


def _check_batches(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The mean difference of pixels, in grey levels: the resizes round differently, and no more."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    a, b = ours[0][:, :, :600, :800].float(), (theirs[0][:, :, :600, :800] * std + mean) * 255
    if ours[0].shape != theirs[0].shape:
        raise UserError(f"no ratio: the batches have the shapes {tuple(ours[0].shape)} and {tuple(theirs[0].shape)}")
    difference = float((a - b).abs().mean())
    if difference > 2:
        raise UserError(f"no ratio: the images differ by {difference:.1f} grey levels on average")
    return difference


# ---------------------------------------------------------------------------------------------- evaluation

_EVAL = """
import json, resource, sys, tempfile
from pathlib import Path
from tools.benchmarks import synthetic
what, reference = sys.argv[1], sys.argv[2] == "reference"
if what == "voc":
    result = {"seconds": synthetic.time_voc()}
else:
    with tempfile.TemporaryDirectory() as folder:
        timing = synthetic.time_coco(folder, reference=reference)
    result = {"seconds": timing.seconds, "backend": timing.backend, "pycocotools_seconds": timing.reference_seconds,
              "equal": timing.equal}
try:  # Linux: ru_maxrss begins with that of the process which started this one
    status = Path("/proc/self/status").read_text().split()
    kib = int(status[status.index("VmHWM:") + 1])
except OSError:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
result["memory_gib"] = kib / 2**20
print(json.dumps(result))
"""


def eval_mode(*, reference: bool) -> dict[str, Any]:
    """Seconds and peak memory of the evaluators: VOC with 2,000 images, COCO with 5,000 and 500,000 detections.

    `reference`: plain pycocotools beside it, which takes most of a minute; its memory is then in the figure too.
    """
    return {what: _eval_process(what, reference=reference and what == "coco") for what in ("voc", "coco")}


def _eval_process(what: str, *, reference: bool) -> dict[str, Any]:
    """A process of its own: peak memory is that of the whole process."""
    command = [sys.executable, "-c", _EVAL, what, "reference" if reference else "alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise UserError(f"eval {what} did not run: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---------------------------------------------------------------------------------------------- classification


def imagenet_mode(
    net: str, device: torch.device, *, batch_size: int, amp: str, repetitions: int, warmup: int, side: int = 224
) -> dict[str, Any]:
    """Images a second of a training step on ImageNet's shapes, beside torchvision's own net run eagerly."""
    if not hasattr(torchvision.models, net):
        raise UserError(f"--net {net}: torchvision has no such net to compare with")
    ours, theirs = build_backbone(net), getattr(torchvision.models, net)()
    return _classify(ours, theirs, "torchvision", device, (batch_size, side, 1000), amp, repetitions, warmup)


def cifar_mode(
    net: str, device: torch.device, *, batch_size: int, amp: str, repetitions: int, warmup: int
) -> dict[str, Any]:
    """Seconds an epoch of CIFAR-10 in training steps, beside the same net run eagerly as it is built."""
    ours, theirs = build_backbone(net), build_backbone(net)
    report = _classify(ours, theirs, "eager", device, (batch_size, 32, 10), amp, repetitions, warmup, graphs=True)
    clock = "wall" if device.type == "cuda" else "cpu"
    steps = -(-CIFAR_TRAINING_IMAGES // batch_size)
    report["seconds_an_epoch"] = {name: steps * v[clock]["median"] for name, v in report["seconds"].items()}
    return report


def _classify(
    ours: nn.Module, theirs: nn.Module, reference: str, device: torch.device, shape: tuple[int, int, int], amp: str,
    repetitions: int, warmup: int, *, graphs: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Training steps of two nets with equal weights. Ours: channels_last, fused update, compiled on CUDA, and with
    `graphs` one CUDA graph there."""
    batch_size, side, classes = shape
    theirs.load_state_dict(ours.state_dict())
    images, labels = torch.randn(batch_size, 3, side, side), torch.randint(0, classes, (batch_size,))
    images, labels = images.to(device), labels.to(device)
    place(ours, device, channels_last=True)
    theirs.to(device)
    with torch.no_grad(), exact_float32():  # TF32 would differ by more than the layouts' rounding
        expected = theirs.eval()(images)
        difference = float((ours.eval()(images) - expected).abs().max() / expected.abs().max())
    if not difference <= 10 * LOSS_TOLERANCE:
        raise UserError(f"no ratio: the logits differ by {difference:.2g} of the largest one")
    ours, theirs = ours.train(), theirs.train()
    cuda = device.type == "cuda"
    if cuda:
        ours = cast(nn.Module, torch.compile(ours, dynamic=False))  # of a module it makes a module
    works = {}
    for name, net, options in (("ours", ours, {"fused": True}), (reference, theirs, {})):
        optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, **options)
        inputs = images.contiguous(memory_format=torch.channels_last) if name == "ours" else images
        graphed = GraphedStep("the training step", net.parameters(), 1) if name == "ours" and graphs and cuda else None
        works[name] = _classifier_step(net, optimizer, inputs, labels, amp, graphed)
    seconds = compare(works, reference=reference, repetitions=repetitions, warmup=warmup, device=device)
    clock = "wall" if cuda else "cpu"
    rates = {name: batch_size / value[clock]["median"] for name, value in seconds.items()}
    return {"logits_difference": difference, "images_a_second": rates, "seconds": seconds}


def _classifier_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, amp: str,
    graphed: GraphedStep | None,
) -> Callable[[], None]:  # fmt: skip
    def forward_and_backward(images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp == "bf16"):
            logits = net(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        return loss.detach()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if graphed is None:
            forward_and_backward(images, labels)
        else:
            graphed(forward_and_backward, [images, labels])
        optimizer.step()

    return step
