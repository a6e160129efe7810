"""All cases of `test_host.py` in one process on the CUDA runtime whose kernels do nothing; a line of JSON for each.

LD_PRELOAD=.../libruntime.so python tests/cuda/worker.py [case ..]
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
warnings.filterwarnings("ignore")

import torch
from torch import Tensor, nn

torch.nn.init.kaiming_normal_ = torch.nn.init.normal_ = lambda tensor, *_, **__: tensor  # values are garbage anyway

import standins

standins.install()

from backbones import compilation
from backbones.classification import build_classifier, classification_loss
from backbones.compilation import GraphedStep
from backbones.preprocess import Normalize
from backbones.weights import IMAGENET
from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig, TestConfig
from configs.loading import load_config
from configs.localisation import LocalisationConfig
from datasets.batch import Batch, ScaledImages, prefetch
from detection.alternating import PHASES, Alternating
from detection.compilation import graph_detections, graphed_gradients
from detection.inference import Inference
from detection.model import Detector, build_detector
from detection.prediction import to_numpy
from tools.runtime.ema import Ema
from tools.runtime.optimizer import build_optimizer, load_optimizer, set_rate, step_unless
from tools.runtime.training import LossMonitor

CUDA = torch.device("cuda", 0)
CASES: dict[str, Callable[[], dict[str, Any]]] = {}
R50 = ("model.backbone=resnet50",)


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


# ---------------------------------------------------------------------------------------------- the material


def config_of(name: str, *overrides: str) -> DetectionConfig:
    return load_config(ROOT / "configs" / f"{name}.yaml", list(overrides))


def make_detector(config: DetectionConfig) -> Detector:
    return build_detector(config.model, [f"class{k}" for k in range(20)], preprocessing=IMAGENET)


def make_batch(count: int, size: tuple[int, int] = (600, 1000), scales: tuple[int, ...] = ()) -> Batch:
    """In pinned memory, as a loader gives it."""

    def images(height: int, width: int) -> Tensor:
        pixels = torch.empty(count, 3, -(-height // 32) * 32, -(-width // 32) * 32, dtype=torch.uint8)
        return pixels.to(memory_format=torch.channels_last)

    sizes = torch.tensor([size] * count)
    further = [(scale, round(size[1] * scale / size[0])) for scale in scales]
    return Batch(
        images=images(*size), image_sizes=sizes, original_sizes=sizes,
        boxes=torch.tensor([[[10.0, 10, 300, 300]] * 8] * count), labels=torch.ones(count, 8, dtype=torch.int64),
        valid=torch.ones(count, 8, dtype=torch.bool), index=torch.arange(count),
        scaled=tuple(ScaledImages(images(*side), torch.tensor([side] * count)) for side in further),
    ).pin_memory()  # fmt: skip


class Training:
    """A model, an optimiser, averages: what a step of any task needs."""

    def __init__(self, net: nn.Module, optim: Any, losses: Callable[[int], dict[str, Tensor]], *, ema: bool = False):
        self.net, self.losses = net.train(), losses
        self.gradients: Callable[[int, int], Any] | None = None
        """Losses and gradients of an iteration, one of some parts, in the place of `losses`."""
        self.optimizer = build_optimizer(net, optim)
        self.monitor = LossMonitor(CUDA)
        self.ema = Ema(net, 0.99) if ema else None
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def step(self, iteration: int, accumulate: int = 1, *, amp: bool = True) -> None:
        set_rate(self.optimizer, 0.01)
        self.optimizer.zero_grad(set_to_none=True)
        for _ in range(accumulate):
            if self.gradients is not None:
                losses = self.gradients(iteration, accumulate)
            else:
                with torch.autocast("cuda", torch.bfloat16, enabled=amp):
                    losses = self.losses(iteration)
                (torch.stack(list(losses.values())).sum() / accumulate).backward()
            self.monitor.add(losses, torch.arange(2, device=CUDA))
        step_unless(self.optimizer, self.monitor.finish_step(iteration, self.parameters, 35.0))
        if self.ema is not None:
            self.ema.update(iteration)

    def measured(self, before: int = 1, **options: Any) -> dict[str, Any]:
        """A step after others without a wait, and where gradients lie otherwise in memory than their parameters."""
        for iteration in range(before):
            self.step(iteration, **options)
        torch.cuda.reset_peak_memory_stats()
        with standins.no_waits() as found:
            self.step(before, **options)
        memory = torch.cuda.max_memory_allocated() / 2**30
        return {**found, "memory_gib": round(memory, 2), "misplaced": self.misplaced()}

    def misplaced(self) -> list[str]:
        """Parameters whose gradients lie otherwise in memory, or are missing."""
        trains = [(name, parameter) for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        return [name for name, parameter in trains if not _lies_alike(parameter)]


def _lies_alike(parameter: nn.Parameter) -> bool:
    """Whether there is a gradient of the parameter's dtype and layout."""
    gradient = parameter.grad
    if gradient is None or gradient.dtype != parameter.dtype:
        return False
    strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
    return all(mine == its for size, mine, its in strides if size > 1)


def train(name: str, *overrides: str, count: int = 2, size: tuple[int, int] = (600, 1000), **options: Any) -> Any:
    """A step of a detector."""
    config = config_of(name, *overrides)
    detector = make_detector(config).to(CUDA, memory_format=torch.channels_last)
    batch = make_batch(count, size)
    ema = options.pop("ema", False)
    training = Training(
        detector, config.optim, lambda iteration: detector(batch.to(CUDA), seed=0, iteration=iteration), ema=ema
    )
    return training.measured(**options)


def detect(test: TestConfig, *configs: DetectionConfig, count: int = 1, size: tuple[int, int] = (600, 1000)) -> Any:
    """A batch's detections; copying them to the host is not in it."""
    detectors = [make_detector(config).eval().optimize_for_inference(torch.bfloat16).to(CUDA) for config in configs]
    inference = Inference(detectors, test).eval()
    batch = make_batch(count, size, scales=inference.scales)
    with torch.inference_mode():
        inference(batch.to(CUDA))
        with standins.no_waits() as found:
            detections = inference(batch.to(CUDA))
        before = standins.counts()["waits"]
        to_numpy(detections)
    found["waits_to_numpy"] = standins.counts()["waits"] - before
    return found


# ---------------------------------------------------------------------------------------------- training


@case
def c4() -> dict[str, Any]:
    return train("frcnn_r101_voc", count=16)


@case
def fpn() -> dict[str, Any]:
    return train("frcnn_r101_fpn_coco_modern", count=16, size=(800, 1333))


@case
def vgg() -> dict[str, Any]:
    return train("frcnn_vgg16_voc")


@case
def float32() -> dict[str, Any]:
    return train("frcnn_r101_voc", *R50, amp=False)


@case
def context() -> dict[str, Any]:
    return train("frcnn_r101_coco_context", *R50)


@case
def roi_pool() -> dict[str, Any]:
    return train("frcnn_r101_voc", *R50, "model.box.pool=roi_pool")


@case
def trained_batch_norm() -> dict[str, Any]:
    return train("frcnn_r101_voc", *R50, "model.norm=batch")


@case
def accumulate_and_average() -> dict[str, Any]:
    return train("frcnn_r101_voc", *R50, accumulate=2, ema=True)


@case
def adamw() -> dict[str, Any]:
    return train("demo", "optim.name=adamw", size=(200, 320))


@case
def gpu_check() -> dict[str, Any]:
    """The rows of a training step of `tools/gpu_check.py`, and of a benchmark's; their own look at waits."""
    from tools.benchmarks.cases import find_case, make_inputs
    from tools.benchmarks.contestants import CONTESTANTS
    from tools.benchmarks.detectors import runs_without_syncs
    from tools.benchmarks.gpu import training_row

    waits = {}
    for graphs in (False, True):
        row = training_row("frcnn_r101_voc", (64, 96), CUDA, tiny=True, graphs=graphs)
        assert row["memory_gib"] > 0
        waits[f"graphs {graphs}"] = row["sync_free"]
    contestant = CONTESTANTS["ours_graphs"](find_case("tiny"), {}, CUDA, "bf16", True)
    inputs = make_inputs(find_case("tiny"), 2, CUDA)
    for _ in range(3):
        contestant.train_step(inputs)
    before = standins.counts()["graphs"]
    waits["ours_graphs"] = runs_without_syncs(lambda: contestant.train_step(inputs))
    assert standins.counts()["graphs"] == before + 1
    bad = {name: wait for name, wait in waits.items() if wait is not True}
    return {"waits": bad or 0}


def in_graphs(net: nn.Module, forward: nn.Module, batches: list[Batch], config: DetectionConfig) -> Training:
    """A training whose steps are CUDA graphs, of the batches in turns."""
    training, step = Training(net, config.optim, lambda _: {}, ema=True), GraphedStep("a step", net.parameters())
    said: list[str] = []
    compilation.logger.warning = lambda text, *values: said.append(text % values)

    def losses(batch: Batch, iteration: Any) -> dict[str, Tensor]:
        with torch.autocast("cuda", torch.bfloat16):
            return forward(batch, seed=0, iteration=iteration)

    def gradients(iteration: int, parts: int) -> Any:
        batch = batches[iteration % len(batches)].to(CUDA)
        found = graphed_gradients(step, losses, batch, iteration, parts)
        assert not said, said
        return found

    training.gradients = gradients
    return training


@case
def c4_as_graph() -> dict[str, Any]:
    """The forward and backward pass of a step as one launch; copies, guard, update and averages beside it. Of the
    host's time, the share of a step without graphs."""
    config = config_of("frcnn_r101_voc")
    detector = make_detector(config).to(CUDA, memory_format=torch.channels_last)
    batches = [make_batch(4, (600, 1000)), make_batch(4, (1000, 600))]
    training = in_graphs(detector, detector, batches, config)
    found = training.measured(5)
    losses = lambda iteration: detector(batches[iteration % 2].to(CUDA), seed=0, iteration=iteration)
    plain = Training(detector, config.optim, losses, ema=True)
    plain.step(0)
    ratios = []
    for iteration in range(5):
        seconds = []
        for one in (training, plain):
            start = time.process_time()
            one.step(iteration)
            seconds.append(time.process_time() - start)
        ratios.append(seconds[0] / seconds[1])
    return {**found, "host_share": statistics.median(ratios)}


@case
def graph_of_each_family() -> dict[str, Any]:
    """Whatever trains can be captured, in parts too; dropout's random numbers are drawn anew by each launch."""
    families = {
        "fpn": ("frcnn_r50_fpn_coco_modern",),
        "vgg": ("frcnn_vgg16_voc", "model.box.dropout=0.5"),
        "roi_pool and batch norm": ("frcnn_r101_voc", *R50, "model.box.pool=roi_pool", "model.norm=batch"),
        "context": ("frcnn_r101_coco_context", *R50),
    }
    found = {}
    for name, (file, *overrides) in families.items():
        config = config_of(file, *overrides)
        detector = make_detector(config).to(CUDA, memory_format=torch.channels_last)
        found[name] = in_graphs(detector, detector, [make_batch(2)], config).measured(3, accumulate=2)
    return {"families": found, "misplaced": [name for each in found.values() for name in each["misplaced"]]}


@case
def alternating() -> dict[str, Any]:
    config = config_of("frcnn_r101_voc_alternating", *R50)
    course = Alternating(make_detector(config).to(CUDA, memory_format=torch.channels_last))
    batch = make_batch(2)
    phases = {}
    for phase in PHASES:
        course.begin(phase)
        model = course.model(phase)
        losses = lambda iteration, model=model: model(batch.to(CUDA), seed=0, iteration=iteration)
        phases[str(phase.number)] = Training(model, config.optim, losses).measured()
        phases[f"{phase.number} as graph"] = in_graphs(model, model, [batch], config).measured(3)
    return {"phases": phases, "misplaced": [name for found in phases.values() for name in found["misplaced"]]}


@case
def resume() -> dict[str, Any]:
    """A step after optimiser and averages were loaded from the host's memory, with buffers of another layout."""
    config = config_of("frcnn_r101_voc", *R50)
    detector = make_detector(config).to(CUDA, memory_format=torch.channels_last)
    batch = make_batch(2)
    losses = lambda iteration: detector(batch.to(CUDA), seed=0, iteration=iteration)
    training = Training(detector, config.optim, losses, ema=True)
    training.step(0)
    state = training.optimizer.state_dict()
    for values in state["state"].values():
        values["momentum_buffer"] = values["momentum_buffer"].cpu().contiguous()
    load_optimizer(training.optimizer, state)
    training.ema.load_state_dict({name: value.cpu() for name, value in training.ema.state_dict().items()})
    return training.measured()


def _alone(_, bucket):  # DDP compares annotations, which it must not find as texts
    """The bucket's sum over one process."""
    done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[CUDA])
    done.set_result(bucket.buffer())
    return done


@case
def distributed() -> dict[str, Any]:
    """DistributedDataParallel's buckets, among processes whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from tools.runtime.distributed import _Averaging

    # There is nobody to compare the shapes with.
    torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_, **__: None
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        config = config_of("frcnn_r101_voc", *R50)
        detector = make_detector(config).to(CUDA, memory_format=torch.channels_last)
        model = _Averaging(detector, device_ids=[0], broadcast_buffers=False, gradient_as_bucket_view=True)
        model.register_comm_hook(None, _alone)
        batch = make_batch(2)
        losses = lambda iteration: model(batch.to(CUDA), seed=0, iteration=iteration)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            training = Training(detector, config.optim, losses)
            training.step(0)
            training.step(1)  # torch's reducer itself waits, as it builds its buckets anew
        return {"misplaced": training.misplaced() + [str(w.message) for w in seen if "strides" in str(w.message)]}
    finally:
        torch.distributed.destroy_process_group()


@case
def classification() -> dict[str, Any]:
    """Normalised on the device, as from files; the fused update."""
    config = load_config(ROOT / "configs" / "imagenet_resnet50.yaml", [], ClassificationConfig)
    net = build_classifier(config.model, 1000).to(CUDA, memory_format=torch.channels_last)
    normalize = Normalize(IMAGENET).to(CUDA)
    images = torch.empty(8, 3, 224, 224, dtype=torch.uint8).to(memory_format=torch.channels_last).pin_memory()
    labels = torch.zeros(8, dtype=torch.int64).pin_memory()

    def losses(iteration: int) -> dict[str, Tensor]:
        logits = net(normalize(images.to(CUDA, non_blocking=True)))
        return {"cross_entropy": classification_loss(logits, labels.to(CUDA, non_blocking=True))}

    return Training(net, config.optim, losses).measured()


@case
def cifar() -> dict[str, Any]:
    """The set lives on the device and is augmented there."""
    import numpy as np

    from backbones.augmentation import DeviceImages, draw_crops, to_device

    config = load_config(ROOT / "configs" / "cifar_resnet20.yaml", [], ClassificationConfig)
    net = build_classifier(config.model, 10).to(CUDA, memory_format=torch.channels_last)
    mean, deviation = torch.zeros(3, 32, 32), torch.ones(3, 1, 1)
    pixels, labels = torch.empty(64, 32, 32, 3, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
    resident = DeviceImages(pixels, labels, mean, deviation, 4, CUDA)

    def losses(iteration: int) -> dict[str, Tensor]:
        draws = draw_crops(0, iteration, np.arange(16), 4, True)
        images, labels = resident.crops(to_device(draws, CUDA))
        return {"cross_entropy": classification_loss(net(images), labels)}

    return Training(net, config.optim, losses).measured()


def cifar_updates(name: str, *overrides: str) -> Callable[[], None]:
    """What makes a whole update of a published config, from drawing the crops to the averages."""
    import numpy as np

    from datasets.cifar import ImageArrays
    from datasets.classification import Splits
    from tools.runtime.loop import _update
    from tools.runtime.plan import make_plan
    from tools.runtime.tasks.classification import ClassificationTask

    config = load_config(ROOT / "configs" / f"{name}.yaml", list(overrides), ClassificationConfig)
    net = build_classifier(config.model, 10).to(CUDA, memory_format=torch.channels_last)
    images = ImageArrays(np.zeros((256, 32, 32, 3), np.uint8), np.zeros(256, np.int64), [str(k) for k in range(10)])
    task = ClassificationTask(config, net, Normalize(IMAGENET).to(CUDA), Splits(images, None, None), CUDA)
    plan: Any = make_plan(task, None, CUDA)
    batches = task.batches(0)

    def update() -> None:
        _update(task, plan, [next(batches)])
        plan.state.iteration += 1

    return update


@case
def cifar_as_graph() -> dict[str, Any]:
    """The forward and backward pass of ResNet-20 as one launch; crops, guard, update and averages beside it."""
    update = cifar_updates("cifar_resnet20", "train.graphs=true", "train.ema_decay=0.99")
    for _ in range(3):
        update()
    with standins.no_waits() as found:
        update()
    return found


def localise(name: str, *overrides: str) -> dict[str, Any]:
    from detection.localisation.checkpoint import build_localiser
    from detection.localisation.merging import propose, suppress

    config = load_config(ROOT / "configs" / f"{name}.yaml", list(overrides), LocalisationConfig)
    net = build_localiser(config.model, 20, preprocessing=IMAGENET).to(CUDA, memory_format=torch.channels_last)
    proposer = None
    if config.model.stage == "rcnn":
        rpn = load_config(ROOT / "configs" / "tiny_imagenet_loc_rpn.yaml", [], LocalisationConfig)
        proposer = build_localiser(rpn.model, 20, preprocessing=IMAGENET).to(CUDA).eval().requires_grad_(False)
    side = 64
    images = torch.empty(2, 3, side, side, dtype=torch.uint8).to(memory_format=torch.channels_last).pin_memory()
    given = [
        torch.zeros(2, dtype=torch.int64),
        torch.tensor([[[4.0, 4, 40, 40]]] * 2),
        torch.ones(2, 1, dtype=torch.bool),
    ]
    pinned = [tensor.pin_memory() for tensor in (*given, torch.arange(2), torch.tensor([[0.0, 0, 1, 1]] * 2))]
    sizes = torch.tensor([[side, side]] * 2).pin_memory()

    def losses(iteration: int) -> dict[str, Tensor]:
        moved = [tensor.to(CUDA, non_blocking=True) for tensor in (images, *pinned)]
        inputs, view = moved[:5], moved[5]
        if proposer is not None:
            with torch.no_grad():
                own = inputs[1][:, None]
                found = propose(
                    [proposer], [(inputs[0], view)], own, sizes.to(CUDA, non_blocking=True), 20, mirror=False
                )
                inputs.append(suppress(found, 0.7))
        return net(*inputs, seed=0, iteration=iteration)

    return Training(net, config.optim, losses).measured()


@case
def localisation_rpn() -> dict[str, Any]:
    return localise("tiny_imagenet_loc_rpn")


@case
def localisation_rcnn() -> dict[str, Any]:
    return localise("tiny_imagenet_loc_rcnn")


# ---------------------------------------------------------------------------------------------- inference

VOC = "frcnn_r101_voc"


@case
def infer() -> dict[str, Any]:
    return detect(TestConfig(), config_of(VOC))


@case
def infer_fpn() -> dict[str, Any]:
    return detect(TestConfig(), config_of("frcnn_r50_fpn_coco_modern"), size=(800, 1333))


@case
def infer_vgg() -> dict[str, Any]:
    return detect(TestConfig(), config_of("frcnn_vgg16_voc"))


@case
def infer_context() -> dict[str, Any]:
    return detect(TestConfig(), config_of("frcnn_r101_coco_context", *R50))


@case
def infer_refine_and_vote() -> dict[str, Any]:
    return detect(TestConfig(refine_rounds=1, vote_iou=0.5), config_of(VOC, *R50))


@case
def infer_multi_scale() -> dict[str, Any]:
    return detect(TestConfig(scales=[400, 600, 800]), config_of(VOC, *R50))


@case
def infer_multi_scale_fpn() -> dict[str, Any]:
    return detect(TestConfig(scales=[400, 600]), config_of("frcnn_r50_fpn_coco_modern"))


@case
def infer_augmented() -> dict[str, Any]:
    return detect(TestConfig(tta={"hflip": True, "scales": [400, 600], "merge": "vote"}), config_of(VOC, *R50))


@case
def infer_ensemble() -> dict[str, Any]:
    return detect(TestConfig(), *[config_of(VOC, *R50)] * 2)


@case
def new_sizes() -> dict[str, Any]:
    """Padded sizes that were not seen before cost no wait."""
    detector = make_detector(config_of(VOC, *R50)).eval().optimize_for_inference(torch.bfloat16).to(CUDA)
    with torch.inference_mode():
        detector(make_batch(1).to(CUDA))
        with standins.no_waits() as found:
            for width in range(300, 3000, 32):
                detector.rpn.anchors([(38, width // 16)], CUDA)
    return found


def graphed(test: TestConfig, config: DetectionConfig) -> tuple[list[str], dict[str, Any]]:
    """What was logged, and a third batch of detections as one CUDA graph; other boxes and images make no new one."""
    inference = Inference([make_detector(config).eval().optimize_for_inference(torch.bfloat16).to(CUDA)], test).eval()
    detect, batch = graph_detections(inference), make_batch(1, scales=inference.scales).to(CUDA)
    more = replace(batch, boxes=batch.boxes.repeat(1, 2, 1), index=batch.index + 1)
    said: list[str] = []
    compilation.logger.warning = lambda text, *values: said.append(text % values)
    with torch.inference_mode():
        first = detect(batch)
        detect(batch)
        with standins.no_waits() if not said else nullcontext({}) as found:
            last = detect(more)
        before = standins.counts()["waits"]
        to_numpy(last)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert [x.shape for x in first] == [x.shape for x in last]
    return said, {**found, "waits_to_numpy": standins.counts()["waits"] - before}


@case
def graph() -> dict[str, Any]:
    """A whole detection as one CUDA graph: beside it three inputs are copied in and four outputs out."""
    said, found = graphed(TestConfig(), config_of(VOC, *R50))
    assert not said
    return found


@case
def graph_of_all_that_a_test_can_do() -> dict[str, Any]:
    said, found = graphed(TestConfig(scales=[400, 600], refine_rounds=1, vote_iou=0.5), config_of(VOC, *R50))
    assert not said
    return found


@case
def graph_that_fails() -> dict[str, Any]:
    """A function that waits: that spoils the capture, from then on it runs as it is, and other captures succeed."""
    said: list[str] = []
    compilation.logger.warning = lambda text, *values: said.append(text % values)
    waiting, simple = compilation.Graphs("waiting"), compilation.Graphs("simple")
    x = torch.ones(3, device=CUDA)
    made: list[weakref.ref[Tensor]] = []

    def wait(x: Tensor) -> float:
        y = x + 1
        made.append(weakref.ref(y))
        return y.sum().item()

    gc.disable()  # what a failed capture has made must not wait for it
    results = [waiting(wait, [x]) for _ in range(3)]
    kept = sum(ref() is not None for ref in made)
    gc.enable()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    for _ in range(2):
        simple(torch.sqrt, [x])
    with standins.no_waits() as found:
        simple(torch.sqrt, [x])
    return {"said": said, "results": len(results), "graphs": found["graphs"], "kept": kept}


# ---------------------------------------------------------------------------------------------- loading


@case
def prefetching() -> dict[str, Any]:
    """Each kind of batch crosses from pinned memory on a stream of its own, without a wait."""
    from datasets.classification import LabelledBatch
    from datasets.localisation_views import LocalisationBatch

    pixels = torch.empty(2, 3, 32, 32, dtype=torch.uint8)
    numbers = torch.arange(2)
    views = LocalisationBatch(
        images=pixels, labels=numbers, boxes=torch.zeros(2, 1, 4), valid=torch.ones(2, 1, dtype=torch.bool),
        frames=torch.zeros(2, 4), original_sizes=torch.ones(2, 2, dtype=torch.int64), index=numbers,
    )  # fmt: skip
    kinds = {
        "detection": make_batch(2, (64, 96), scales=(32,)),
        "classification": LabelledBatch(images=pixels, labels=numbers, index=numbers).pin_memory(),
        "localisation": views.pin_memory(),
    }
    moved = {}
    for name, batch in kinds.items():
        with standins.no_waits():
            moved[name] = [
                found.images.is_cuda and found.index.is_cuda for found in prefetch([batch, replace(batch)], CUDA)
            ]
    return {"moved": moved}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        try:
            result = CASES[name]()
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(p.filename).name}:{p.lineno}" for p in places if Path(p.filename).is_relative_to(ROOT)]
            result = {"error": f"{type(error).__name__} at {' < '.join(ours[::-1][:3])}: {error}"}
        print(json.dumps({"case": name, **result}), flush=True)


if __name__ == "__main__":
    main()
