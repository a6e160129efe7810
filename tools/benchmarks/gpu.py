"""The rows of `gpu_check.py` beside kernels and the suite: the machine, tests for GPUs, training steps, profiles."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType

from backbones.kernels import why_no_kernels
from configs.errors import UserError
from tools.benchmarks import substitutes
from tools.benchmarks.timing import compare

if TYPE_CHECKING:  # at run time not before it is known that configs can be read
    from configs.common import OptimConfig
    from datasets.batch import Batch
    from detection.model import Detector
    from detection.sampling import Iteration

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("frcnn_r101_voc", "frcnn_r101_fpn_coco_modern", "frcnn_vgg16_voc")
IMAGE_SIZES = {"600x1000": (600, 1000), "800x1333": (800, 1333)}
"""VOC's and COCO's."""
BATCH_SIZE = 16
RATE = 0.002
"""Of the updates: random weights learn a batch by heart at it within some steps, and stay finite."""
PACKAGES = {
    "pydantic": "training, profile, tests",
    "yaml": "training, profile, tests",
    "pytest": "tests",
    "hypothesis": "tests",
    "cv2": "tests, loader",
    "albumentations": "tests, loader",
    "triton": "kernels",
}
"""What is used where it is there -> the stages that do without, or not at all."""

# ---------------------------------------------------------------------------------------------- environment, tests


def environment_row(device: torch.device) -> dict[str, Any]:
    """The machine, its versions, and what is missing for which stages."""
    from tools.benchmarks.report import environment

    row = environment(device, substitutes.install())
    missing = {name: stages for name, stages in PACKAGES.items() if name in row["stand_ins"] or not _has(name)}
    row["missing"] = ", ".join(f"{name} (for {stages})" for name, stages in missing.items()) or "nothing"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row["memory_gib"] = properties.total_memory / 2**30
        row["capability"] = f"{properties.major}.{properties.minor}"
        row["cudnn"] = torch.backends.cudnn.version()
        row["triton"] = importlib.metadata.version("triton") if _has("triton") else "none"
        row["kernels"] = why_no_kernels() or "work"
    return row


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def test_files(*, tiny: bool) -> list[str]:
    """The files that hold tests for GPUs; `tiny`: one that needs none."""
    if tiny:
        return ["tests/configs/test_errors.py"]
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in paths if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]
    return [path.relative_to(ROOT).as_posix() for path in marked if path.name != "test_gpu_check.py"]


def tests_row(path: str, *, tiny: bool) -> dict[str, Any]:
    """How many tests passed, failed and were skipped, and which failed with what message.

    Raises:
        UserError: pytest is missing, or could not run the file.
    """
    if not _has("pytest"):
        raise UserError("pytest is not installed: give a folder with its wheels to --wheels")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.xml"
        marker = "not gpu and not slow" if tiny else "gpu"
        command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-p", "no:cacheprovider", f"--junitxml={out}"]
        done = subprocess.run([*command, path], cwd=ROOT, capture_output=True, text=True)
        if not out.exists():
            lines = (done.stdout + done.stderr).strip().splitlines() or ["it said nothing"]
            raise UserError(f"pytest {path}: exit code {done.returncode}: {lines[-1]}")
        return read_results(out)


def read_results(path: Path) -> dict[str, Any]:
    """The figures of a JUnit file, as pytest writes it."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error")), None)
        kind = "failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        if bad is not None:
            failures[case.get("name", "")] = (bad.get("message") or "").strip().split("\n")[0][:300]
    return {**counts, "failures": failures}


# ---------------------------------------------------------------------------------------------- training


def _see_that_configs_can_be_read() -> None:
    stood_in = substitutes.install()
    if missing := [package for package in ("pydantic", "yaml") if package in stood_in or not _has(package)]:
        raise UserError(f"{' and '.join(missing)}: not installed: give a folder with the wheels to --wheels")


def make_step(
    name: str,
    image_size: tuple[int, int],
    device: torch.device,
    *,
    tiny: bool,
    amp: str | None = None,
    graphs: bool = False,
    overrides: Sequence[str] = (),
    rate: float = RATE,
    wrap: Callable[[nn.Module], nn.Module] = lambda detector: detector,
) -> Callable[[], Tensor]:
    """A training step of a published config on one generated batch, with random weights; gives the sum of the losses.

    Args:
        name: of the config.
        image_size: (H, W).
        device: where it runs.
        tiny: two images, few RoIs and ResNet-18 or VGG-16, for a test.
        amp: none or bf16; None: bf16 on CUDA.
        graphs: as `train.graphs`.
        overrides: of the config, KEY.PATH=VALUE.
        rate: of the updates.
        wrap: what is called in the detector's place.

    Raises:
        UserError: what reads configs is missing.
    """
    _see_that_configs_can_be_read()
    from backbones.compilation import GraphedStep
    from detection.compilation import graphed_gradients
    from tools.runtime.optimizer import build_optimizer, set_rate, step_unless
    from tools.runtime.training import LossMonitor, autocast, total

    amp = amp or ("bf16" if device.type == "cuda" else "none")
    detector, optim, batch = _learner(name, image_size, device, tiny=tiny, overrides=overrides)
    optimizer, monitor = build_optimizer(detector, optim), LossMonitor(device)
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    set_rate(optimizer, rate)
    model = wrap(detector)
    graphed = GraphedStep("the training step", parameters) if graphs else None
    iterations = iter(range(10**9))

    def losses(batch: Batch, iteration: Iteration) -> Mapping[str, Tensor]:
        with autocast(device, amp):
            return model(batch, seed=0, iteration=iteration)

    def step() -> Tensor:
        iteration = next(iterations)
        if graphed is not None:
            found = graphed_gradients(graphed, losses, batch, iteration)
        else:
            found = losses(batch, iteration)
            total(found).backward()
        monitor.add(found, batch.index)
        step_unless(optimizer, monitor.finish_step(iteration, parameters, 10.0))
        optimizer.zero_grad(set_to_none=True)
        return total(found).detach()

    return step


def _learner(
    name: str, image_size: tuple[int, int], device: torch.device, *, tiny: bool, overrides: Sequence[str] = ()
) -> tuple[Detector, OptimConfig, Batch]:
    """A published config's detector with random weights, its options of the optimiser, and a generated batch."""
    from backbones.weights import IMAGENET
    from configs.loading import load_config
    from detection.model import build_detector
    from tools.benchmarks.cases import Case, make_inputs, spread_weights
    from tools.benchmarks.contestants import class_names, make_batch
    from tools.runtime.training import place

    small = ["model.box.batch_size_per_image=8", *([] if "vgg" in name else ["model.backbone=resnet18"])]
    config = load_config(ROOT / "configs" / f"{name}.yaml", [*small * tiny, *overrides])
    case = Case(name, {}, image_size, 80 if "coco" in name else 20)
    detector = build_detector(config.model, class_names(case), preprocessing=IMAGENET)
    spread_weights(detector)
    place(detector.train(), device, channels_last=True)
    batch = make_batch(make_inputs(case, 2 if tiny else BATCH_SIZE, device))
    return detector, config.optim, replace(batch, images=(batch.images * 50 + 120).clamp(0, 255).to(torch.uint8))


def training_row(
    name: str, image_size: tuple[int, int], device: torch.device, *, tiny: bool, graphs: bool = False
) -> dict[str, Any]:
    """50 steps: seconds a step, images a second, whether the losses fall, and on CUDA memory, busy share and waits."""
    from tools.benchmarks.detectors import busy_share, runs_without_syncs

    step = make_step(name, image_size, device, tiny=tiny, graphs=graphs)
    losses: list[Tensor] = []
    calls = 2 if tiny else 10
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = compare(
        {"step": lambda: losses.append(step())}, reference=None, repetitions=4, warmup=1, device=device, calls=calls
    )["step"]
    values = torch.stack(losses).tolist()
    few = len(values) // 5
    first, last = sum(values[:few]) / few, sum(values[-few:]) / few
    images = 2 if tiny else BATCH_SIZE
    row: dict[str, Any] = {
        "batch_size": images,
        "steps": len(values),
        "seconds": {"step": seconds},
        "ms_per_step": 1000 * seconds["wall"]["median"],
        "images_per_second": images / seconds["wall"]["median"],
        "loss_first": first,
        "loss_last": last,
        "loss_falls": last < first,
    }
    if device.type == "cuda":
        row["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        row["reserved_gib"] = torch.cuda.max_memory_reserved(device) / 2**30  # with all that graphs work in
        row["sync_free"] = runs_without_syncs(step)
        row["busy"] = busy_share(step)
    return row


def profile_row(
    name: str, image_size: tuple[int, int], device: torch.device, *, tiny: bool, graphs: bool = False
) -> dict[str, Any]:
    """Milliseconds a training step by kernel (on the CPU by operator), the largest 40 first.

    Raises:
        UserError: the profiler sees no kernels on this machine.
    """
    from torch.profiler import ProfilerActivity, profile

    step = make_step(name, image_size, device, tiny=tiny, graphs=graphs)
    cuda = device.type == "cuda"
    steps = 1 if tiny else 3
    for _ in range(1 if tiny else 5):
        step()
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as profiler:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()
    kernels = by_kernel(profiler.events() or [], steps, device.type)
    if not kernels:
        raise UserError("the profiler saw no kernel: CUPTI is missing, or this user may not use the GPU's counters")
    return {"kernels": kernels}


def by_kernel(events: Iterable[Any], steps: int, device_type: str, most: int = 40) -> list[dict[str, Any]]:
    """Name, calls and milliseconds a step, and share of the sum, of each kind of kernel, the largest first.

    Args:
        events: torch.autograd.profiler_util.FunctionEvent.
        steps: how many the profile holds.
        device_type: "cuda": the device's own events; "cpu": operators, without those that they call.
        most: how many kinds.
    """
    wanted = DeviceType.CUDA if device_type == "cuda" else DeviceType.CPU
    found: dict[str, list[float]] = {}
    for event in events:
        if event.device_type == wanted and not event.is_user_annotation:
            cost = event.time_range.elapsed_us() if device_type == "cuda" else event.self_cpu_time_total
            calls, spent = found.get(event.name, (0, 0.0))
            found[event.name] = [calls + 1, spent + cost]
    whole = sum(spent for _, spent in found.values()) or 1.0
    rows = sorted(found.items(), key=lambda item: -item[1][1])[:most]
    return [
        {"name": name[:120], "calls": calls / steps, "ms": spent / 1000 / steps, "share": spent / whole}
        for name, (calls, spent) in rows
    ]
