"""The generated sets, and that scoring them needs neither loops nor much memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from detection.evaluation.evaluate import evaluate
from tools.benchmarks.synthetic import coco_benchmark_set, make_set, voc_benchmark_set


def test_the_benchmark_sets_have_the_sizes_that_they_say() -> None:
    truth, found = voc_benchmark_set()
    assert (len(truth), len(truth.class_names), len(found)) == (2000, 20, 19_000)
    truth, found = coco_benchmark_set()
    assert (len(truth), len(truth.class_names), len(found)) == (5000, 80, 500_000)


def calls(images: int, detections: int) -> int:
    """Python calls that scoring a VOC set of this size makes; unlike time, the same on any machine."""
    truth, found = make_set("voc", images=images, classes=20, objects=3 * images, detections=detections)
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        evaluate(truth, found, ("voc07", "voc12"))
    finally:
        sys.setprofile(None)
    return count


def test_voc_has_no_loop_over_detections() -> None:
    few, many = calls(500, 1_000), calls(500, 10_000)
    assert many - few < 1_000  # 9,000 detections more


@pytest.mark.slow
def test_half_a_million_detections_take_less_than_a_gigabyte(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hotcoco")
    code = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from tools.benchmarks.synthetic import time_coco
time_coco(Path({str(tmp_path)!r}), reference=False)
# VmHWM, not ru_maxrss: the latter begins with that of the process which started this one.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**20  # KiB
