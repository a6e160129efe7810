"""Exit codes, options, interruption, devices, progress."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from tools.runtime import cli, distributed
from tools.runtime.progress import Progress, Timed

ROOT = Path(__file__).resolve().parents[2]


def run(action, *argv: str, **options) -> int:
    parser = cli.make_parser("x", **options)
    parser.prog = "script.py"
    with pytest.raises(SystemExit) as ending:
        cli.run(action, parser, list(argv))
    return ending.value.code


def failing(error: BaseException):
    def action(args):
        raise error

    return action


def test_exit_codes(capsys):
    assert run(lambda args: None) == 0
    assert run(failing(UserError("a.yaml: wrong\nkey"))) == 2
    assert capsys.readouterr().err == "script.py: a.yaml: wrong key\n"
    assert run(failing(cli.Interrupted("last.pt is written"))) == 3
    assert capsys.readouterr().err == "last.pt is written\n"
    assert run(failing(ValueError("ours"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert run(failing(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback_of_a_users_mistake(capsys):
    assert run(failing(UserError("wrong")), "--debug") == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.endswith("script.py: wrong\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/full/disk"), "/full/disk: No space left on device"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory."), "train.accumulate"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, words, capsys):
    assert run(failing(error)) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("argv", [["--nonsense"], ["--device", "tpu"], ["--seed", "x"], ["--dev", "cpu"]])
def test_wrong_options_are_one_line(argv, capsys):
    assert run(lambda args: None, *argv, device=True, seed=True) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_options_of_configs():
    parser = cli.make_parser("x", config=True, seed=True)
    args = parser.parse_args(["--cfg", "a.yaml", "--set", "a.b=1", "c=2", "--set", "d=[1, 2]", "--seed", "7"])
    assert cli.config_overrides(args) == ["a.b=1", "c=2", "d=[1, 2]", "seed=7"]
    assert cli.config_overrides(parser.parse_args(["--cfg", "a.yaml"])) == []


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DATA_DIR", "/elsewhere")
    assert cli.find_data_root(tmp_path) == tmp_path
    assert cli.find_data_root(None) == Path("/elsewhere")
    monkeypatch.delenv("DATA_DIR")
    assert cli.find_data_root(None) == ROOT / "data"


def test_device(monkeypatch):
    assert cli.select_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.select_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cpu"):
        cli.select_device("cuda")


def test_command_line_imports_no_torch():
    code = "import sys; import tools.runtime.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_stop_request_turns_signals_into_a_flag(monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    child_handler = signal.getsignal(signal.SIGCHLD)
    with cli.StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)  # an echo of the first
        now = time.monotonic()
        monkeypatch.setattr(cli.time, "monotonic", lambda: now + 1.5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert signal.getsignal(signal.SIGCHLD) == child_handler


# ---------------------------------------------------------------------------------------------- one process


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


# ---------------------------------------------------------------------------------------------- progress


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(10, "training", initial=4, seconds=0.0, stream=stream) as progress:
        progress.update(loss=0.123456)
        progress.update(5)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("training 5/10, ")
    assert lines[0].endswith("loss 0.1235")
    assert "left" in lines[0]
    assert lines[1].startswith("training 10/10, ")


def test_no_more_than_all_is_done():
    """Two processes with 3 of 5 images each count 6."""
    stream = io.StringIO()
    with Progress(5, "val", seconds=0.0, stream=stream) as progress:
        progress.update(6)
    assert stream.getvalue().startswith("val 5/5, ")


def test_few_lines_in_a_log_file():
    stream = io.StringIO()
    with Progress(1000, "x", seconds=3600, stream=stream) as progress:
        for _ in range(1000):
            progress.update()
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(4, "training", stream=stream) as progress:
        for _ in range(4):
            progress.update(loss=1.5)
    assert "training: 100%" in stream.getvalue()
    assert "loss=1.5" in stream.getvalue()


def test_waiting_is_timed(monkeypatch):
    moments = iter([0.0, 0.25, 10.0, 10.5, 20.0, 20.0])
    monkeypatch.setattr("tools.runtime.progress.time.perf_counter", lambda: next(moments))
    items = Timed([1, 2])
    assert [next(items), next(items)] == [1, 2]
    assert items.take_seconds() == 0.75
    assert items.take_seconds() == 0.0
    with pytest.raises(StopIteration):
        next(items)
