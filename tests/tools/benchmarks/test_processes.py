"""Rows in processes of their own: what each way to fail leaves in the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tools.benchmarks.processes import run_row, run_rows

SCRIPT = """
import json, os, signal, subprocess, sys, time
kind, out = sys.argv[1], sys.argv[sys.argv.index("--out") + 1]
if kind == "good":
    json.dump({"results": {"any": {"seconds": 1.5}}}, open(out, "w"))
elif kind == "mistake":
    print("noise", file=sys.stderr)
    print("benchmark.py: --case x: there is no such case", file=sys.stderr)
    sys.exit(2)
elif kind == "error":
    raise ValueError("pydantic.__spec__ is None")
elif kind == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif kind == "memory":
    os.kill(os.getpid(), signal.SIGKILL)
elif kind == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(sys.argv[2], "w").write(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_every_row_is_kept_at_once_whatever_the_others_do(script):
    kinds = ["mistake", "error", "crash", "memory", "nothing", "good"]
    seen: list[tuple[str, dict]] = []
    run_rows({f"row {kind}": [kind] for kind in kinds}, script, seconds=60, keep=lambda *row: seen.append(row))
    assert [name for name, _ in seen] == [f"row {kind}" for kind in kinds]
    reasons = [result.get("not_run", "") for _, result in seen]
    assert reasons[0] == "benchmark.py: --case x: there is no such case"
    assert reasons[1] == "exit code 1: ValueError: pydantic.__spec__ is None"
    assert reasons[2].startswith("ended by signal SIGSEGV")
    assert reasons[3].startswith("ended by signal SIGKILL; the system ended it, as a rule for lack of memory")
    assert reasons[4].startswith("the process wrote no result")
    assert seen[5][1] == {"seconds": 1.5}


def test_nothing_starts_after_the_time_is_over(script):
    seen = {}
    run_rows({"first": ["hang", "/dev/null"], "second": ["good"]}, script, seconds=0.5, keep=seen.__setitem__)
    assert seen["first"]["not_run"].startswith("ended after")
    assert seen["second"]["not_run"] == "the 0.5 seconds of the run were over"


def test_children_of_a_row_end_with_it(script, tmp_path):
    note = tmp_path / "child"
    run_row([sys.executable, str(script), "hang", str(note)], 1.0)
    status = Path(f"/proc/{note.read_text()}/stat")
    end = time.monotonic() + 5
    while status.exists() and status.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert not status.exists() or status.read_text().split()[2] == "Z"
