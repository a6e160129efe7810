"""One process and two."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import DistStoreError, HashStore  # pyright: ignore[reportPrivateImportUsage]

from tools.runtime import distributed

ROOT = Path(__file__).resolve().parents[3]


def test_helpers_in_a_single_process():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather({"a": 1}) == [{"a": 1}]
    assert [distributed.any_process(flag) for flag in (True, False)] == [True, False]
    assert distributed.on_main(lambda: 3) == 3
    calls = []
    assert distributed.main_first(lambda: calls.append(1) or "done") == "done"
    assert calls == [1]
    tensor = torch.tensor(2.0)
    distributed.reduce_max(tensor)
    distributed.reduce_sum(tensor)
    assert tensor.item() == 2.0


def test_processes_that_start_anew_agree_on_a_word_that_the_earlier_ones_left_no_trace_of():
    """The store is the same at each start, and each time another process comes late."""
    store, minute = HashStore(), timedelta(minutes=1)

    def agree(number: int, delay: float = 0.0) -> str:
        time.sleep(delay)
        return distributed._agreed_prefix(store, number, 3, minute)

    with ThreadPoolExecutor(6) as threads:
        words = []
        for late in range(4):
            words.append({*threads.map(agree, range(3), [0.2 * (number == late) for number in range(3)])})
    assert [len(word) for word in words] == [1] * 4
    assert len(set.union(*words)) == 4


def test_a_process_that_does_not_answer_is_told():
    store = HashStore()
    store.set("word", "of before")
    with pytest.raises(DistStoreError, match="process 0 did not answer"):
        distributed._agreed_prefix(store, 1, 2, timedelta(seconds=0.2))


_TWO_PROCESSES = """
import sys; sys.path.insert(0, {root!r})
import torch
from configs.errors import UserError
from tools.runtime import distributed as d
from tools.runtime.ema import Ema
from tools.runtime.training import average_statistics
with d.processes(torch.device("cpu")):
    r = d.rank()
    assert d.all_gather(r * 10) == [0, 10]
    assert d.any_process(r == 1) and not d.any_process(False)
    t = torch.tensor(float(r)); d.reduce_max(t); assert t == 1
    t = torch.tensor(float(r + 1)); d.reduce_sum(t); assert t == 3
    assert d.on_main(lambda: r + 5) == 5
    assert d.main_first(lambda: r) == r
    def wrong(): raise UserError("of the first")
    try: d.on_main(wrong)
    except UserError as error: assert str(error) == "of the first"
    else: raise AssertionError
    layer = torch.nn.Linear(2, 1, bias=False); torch.nn.init.ones_(layer.weight)
    wrapped = d.wrap(layer, torch.device("cpu"))
    wrapped(torch.full((1, 2), float(r))).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full((1, 2), 0.5))
    norm = torch.nn.BatchNorm1d(2); norm.running_mean.fill_(float(r)); ema = Ema(norm, 0.5)
    norm.running_var.fill_(2.0 * r); average_statistics(norm, ema)
    assert torch.equal(norm.running_mean, torch.full((2,), 0.5)) and torch.equal(norm.running_var, torch.ones(2))
    assert torch.equal(ema.state_dict()["running_mean"], torch.full((2,), 0.5))
    d.say("said")
    del wrapped  # as a function's end does in the scripts
"""


def test_helpers_in_two_processes():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    code = _TWO_PROCESSES.format(root=str(ROOT))
    done = subprocess.run([*launch, sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("said") == 1
