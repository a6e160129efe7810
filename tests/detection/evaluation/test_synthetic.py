"""The generated sets and their timing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from detection.evaluation.synthetic import coco_benchmark_set, time_voc, voc_benchmark_set


def test_the_benchmark_sets_have_the_sizes_that_they_say() -> None:
    truth, found = voc_benchmark_set()
    assert (len(truth), len(truth.class_names), len(found)) == (2000, 20, 19_000)
    truth, found = coco_benchmark_set()
    assert (len(truth), len(truth.class_names), len(found)) == (5000, 80, 500_000)


def test_voc_has_no_loop_over_detections() -> None:
    # Measured 0.03 s on one core; a Python loop over detections at ten thresholds would take seconds.
    assert min(time_voc() for _ in range(3)) < 0.5


@pytest.mark.slow
def test_half_a_million_detections_take_seconds_and_less_than_a_gigabyte(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("hotcoco")
    code = f"""
import resource, sys
sys.path.insert(0, {str(root)!r})
from pathlib import Path
from detection.evaluation.synthetic import time_coco
timing = time_coco(Path({str(tmp_path)!r}), reference=False)
print(timing.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    assert seconds < 6  # the goal is 2 on a machine of one's own
    assert gigabytes < 1
