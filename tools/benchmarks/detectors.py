"""The modes that measure detectors: count, infer and train, roofline. Each returns a dictionary for the report."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch._subclasses import FakeTensorMode

from configs.errors import UserError
from tools.benchmarks.cases import Case, Inputs, make_inputs
from tools.benchmarks.checks import check_inference, check_training
from tools.benchmarks.contestants import CONTESTANTS, Contestant, Makers, Ours, plain_sgd, random_weights
from tools.benchmarks.counting import Counts, count, make_fake
from tools.benchmarks.roofline import roofline_seconds
from tools.benchmarks.timing import compare

# ---------------------------------------------------------------------------------------------- without computing


def fake_work(case: Case, batch_size: int, amp: str, *, training: bool) -> tuple[FakeTensorMode, Callable[[], object]]:
    """Ours at the case's true shapes on fake tensors: one training step, or detection without the copy to the host."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device("cpu")
    contestant = Ours(case, {}, device, amp, training)
    make_fake(contestant.model, mode)
    with mode:
        real = make_inputs(case, batch_size, device)
        images, boxes, labels = (mode.from_tensor(value) for value in (real.images, real.boxes, real.labels))
        inputs = Inputs(images, real.image_size, boxes, labels)
        batch = contestant.batch(inputs)
    if training:
        contestant.optimizer = plain_sgd(contestant.model, fused=True)

    def work() -> object:
        if training:
            return contestant.train_step(inputs)
        with torch.no_grad():
            return contestant.model(batch)

    with mode:
        work()  # anchors, frozen batch norm's constants and momentum are made once
    return mode, work


def count_ours(case: Case, batch_size: int, amp: str, *, training: bool) -> Counts:
    """Launches, syncs and FLOPs at the case's true shapes. A sync other than the last copy to the host would raise an
    error: on fake tensors there are no values to read."""
    mode, work = fake_work(case, batch_size, amp, training=training)
    with mode:
        return count(work)


def count_detecting(case: Case, amp: str) -> Counts:
    """The same for the detection of one image, copy to the host included; computed, on a small image."""
    device = torch.device("cpu")
    contestant = Ours(case.small(), {}, device, amp, False)
    inputs = make_inputs(case.small(), 1, device)
    contestant.detect(inputs)
    return count(lambda: contestant.detect(inputs))


def count_theirs(case: Case, make: Callable[..., Contestant], batch_size: int, *, training: bool) -> Counts:
    """The counts of another contestant on small images with few RoIs, on which they do not depend; FLOPs do."""
    device = torch.device("cpu")
    small = case.small()
    contestant = make(small, random_weights(small), device, "none", training)
    inputs = make_inputs(small, batch_size, device)
    work = contestant.train_step if training else contestant.detect
    work(inputs)
    counts = count(lambda: work(inputs))
    counts.flops = None
    return counts


def count_mode(case: Case, makers: Makers, amp: str) -> dict[str, Any]:
    """Counts of inference at batch 1 and training at batch 1 and 8, for every contestant."""
    report: dict[str, Any] = {}
    if "ours" in makers:
        ours: dict[str, Any] = {
            "infer_b1": count_detecting(case, amp).summary(),
            "train_b8": count_ours(case, 8, amp, training=True).summary(),
        }
        ours["infer_b1"]["flops"] = count_ours(case, 1, amp, training=False).flops
        ours["per_extra_image"] = count_ours(case, 9, amp, training=True).launches - ours["train_b8"]["launches"]
        report["ours"] = ours
    for name, make in makers.items():
        if name != "ours":
            one, two = (count_theirs(case, make, batch_size, training=True) for batch_size in (1, 2))
            report[name] = {
                "infer_b1": count_theirs(case, make, 1, training=False).summary(),
                "train_b1": one.summary(),
                "train_b8": {"launches": one.launches + 7 * (two.launches - one.launches),
                             "syncs": one.syncs + 7 * (two.syncs - one.syncs)},
                "per_extra_image": two.launches - one.launches,
            }  # fmt: skip
    return report


def roofline_mode(case: Case, batch_size: int) -> dict[str, float]:
    """Milliseconds an image at best in bf16 on the machine of `roofline.py`'s constants."""
    report = {}
    for name, training in (("train", True), ("infer", False)):
        mode, work = fake_work(case, batch_size, "bf16", training=training)
        with mode:
            report[f"{name}_ms_per_image"] = 1000 * roofline_seconds(work) / batch_size
    return report


# ---------------------------------------------------------------------------------------------- side by side


def compare_mode(
    kind: str, case: Case, makers: Makers, device: torch.device, *, batch_size: int, amp: str, reference_amp: str,
    repetitions: int, warmup: int,
) -> dict[str, Any]:  # fmt: skip
    """Seconds a batch, side by side, after a check that all compute the same.

    Args:
        kind: "infer": from normalised images on the device to detections on the host; "train": losses, gradients and
            update.
        amp, reference_amp: precision of the contestants, and of the one that the others are divided by.
    """
    training = kind == "train"
    reference = reference_of(makers)
    report: dict[str, Any] = {}
    if len(makers) > 1:
        check = check_training if training else check_inference
        with exact_float32():
            report |= check(case, makers, reference, device, amp)
    weights, inputs = random_weights(case), make_inputs(case, batch_size, device)
    works = {}
    for name, make in makers.items():
        contestant = make(case, weights, device, reference_amp if name == reference else amp, training)
        work = contestant.train_step if training else contestant.detect
        works[name] = functools.partial(work, inputs)
    report["seconds"] = compare(works, reference=reference, repetitions=repetitions, warmup=warmup, device=device)
    if device.type == "cuda":
        report["busy"] = {name: busy_share(work) for name, work in works.items()}
        add_roofline(report, case, batch_size, kind)
        if training and (own := own_of(works)):
            report["sync_free"] = runs_without_syncs(works[own])
    return report


def reference_of(makers: Makers) -> str:
    """Whom the others are divided by: torchvision where it takes part, else the first that is not `ours`."""
    others = [name for name in makers if name != "ours"]
    return "torchvision" if "torchvision" in makers else (others or list(makers))[0]


def own_of(names: Iterable[str]) -> str | None:
    """The first of ours, in whatever way it runs."""
    return next((name for name in names if name.startswith("ours")), None)


def has_bf16() -> bool:
    """Whether the processor has instructions for bf16; where it does not say, it is taken to have them."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return True
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def select(names: list[str], plugins: Makers) -> Makers:
    """The contestants of these names and the plug-ins.

    Raises:
        UserError: there is no contestant of such a name.
    """
    for name in names:
        if name not in CONTESTANTS:
            raise UserError(f"--contestants {name}: there are {', '.join(CONTESTANTS)}; others come with --plugin")
    return {name: CONTESTANTS[name] for name in names} | plugins


class exact_float32:
    """Inside, float32 products are float32 on CUDA too."""

    def __enter__(self) -> None:
        self.kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.kept


def add_roofline(report: dict[str, Any], case: Case, batch_size: int, kind: str) -> None:
    """What share of the roofline ours reaches, the first of them where there are several."""
    best = roofline_mode(case, batch_size)[f"{kind}_ms_per_image"] * batch_size / 1000
    if own := own_of(report["seconds"]):
        report["share_of_roofline"] = best / report["seconds"][own]["wall"]["median"]


def busy_share(work: Callable[[], object], calls: int = 3) -> float | None:
    """The share of the wall time in which the GPU runs a kernel, a copy or a fill; None: the profiler saw none.

    It sees none where CUPTI is missing or may not be used.
    """
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        started = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
    return busy_seconds(profiler.events() or []) / elapsed or None


def busy_seconds(events: Iterable[Any]) -> float:
    """Seconds in which at least one of a profile's events ran on the device.

    Each kernel is there twice, by itself and in the time of the operator that launched it: only the former counts.
    Kernels that run side by side count once.

    Args:
        events: torch.autograd.profiler_util.FunctionEvent.
    """
    ranges = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    busy, reached = 0.0, float("-inf")
    for start, end in ranges:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6


def runs_without_syncs(work: Callable[[], object]) -> bool | str:
    """Whether a call passes under CUDA's own sync detector; if not, its message."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True
