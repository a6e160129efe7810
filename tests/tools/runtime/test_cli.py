"""Exit codes, options, interruption, devices."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from configs.errors import UserError
from tools.runtime import cli

ROOT = Path(__file__).resolve().parents[3]


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


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    assert run(lambda args: print("caf\u00e9 Mu\udcf1oz")) == 0
    assert output.getvalue() == b"caf\\xe9 Mu\\udcf1oz\n"


_PRINTS = """
import sys
from configs.errors import UserError
from tools.runtime import cli

def main(args):
    with open(sys.argv.pop(), "w") as file:
        for _ in range(3):
            print("words", flush=True)
            print("words", file=sys.stderr, flush=True)
        file.write(str(file.fileno() > 2))
    raise UserError("the end")

path = sys.argv[-1]
cli.run(main, cli.make_parser("x"), [])
"""


@pytest.mark.parametrize("streams", [">&- 2>&- <&-", "| true", "2>&1 | true"])
def test_nobody_who_reads_ends_no_work(streams, tmp_path):
    """What is printed where a stream was closed goes into no file, and a reader that leaves stops nothing."""
    command = f'"$0" -c "$1" "$2" {streams}; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command, sys.executable, _PRINTS, str(tmp_path / "f")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (tmp_path / "f").read_text() == "True"
    assert (ended.returncode, ended.stdout, "Traceback" in ended.stderr) == (2, "", False)


def test_names_are_utf8_whatever_the_locale(tmp_path):
    code = "import os, sys; from tools.runtime import cli; cli.run(lambda args: print(os.listdir(sys.argv.pop())), "
    code += "cli.make_parser('x'), None if len(sys.argv) > 1 and sys.flags.utf8_mode == 0 else [])"
    (tmp_path / "\u732b").touch()
    odd = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=odd, capture_output=True, timeout=60)
    assert ended.stdout.decode() == "['\u732b']\n", ended.stderr


def test_a_pipe_of_ours_that_breaks_is_an_error(capsys):
    assert run(failing(BrokenPipeError(32, "Broken pipe"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_stream_that_was_closed_is_not_flushed_again():
    """As Python does when it lets go of the object; 3.14 prints the error that it hid before."""
    stream = io.StringIO()
    ours = cli._Outliving(stream)
    stream.close()
    ours.close()


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
        (NotADirectoryError(20, "Not a directory", "a/file/run"), "a/file/run: Not a directory"),
        (OSError(28, "No space left on device"), "output: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory."), "train.accumulate"),
        (MemoryError(), "the memory is too small: free some"),
        (MemoryError("Unable to allocate 9 GiB"), "the memory is too small (Unable to allocate 9 GiB): free some"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "fewer images at a time"),
        (OSError(12, "Cannot allocate memory"), "the memory is too small"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (
            OSError(24, "Too many open files", "a.jpg"),
            "too many open files ([Errno 24] Too many open files: 'a.jpg'): raise",
        ),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
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


def test_several_settings_in_front_of_inputs():
    """README: `--set test.refine_rounds=1 test.vote_iou=0.5` works with predict.py, too."""
    parser = cli.make_parser("x")
    parser.add_argument("inputs", nargs="+")
    cli.add_set(parser, one_each=True)
    args = parser.parse_args(["--set", "test.a=1", "test.b.c=x=y", "photo.jpg", "a.b=c.jpg", "--set", "d=2", "--debug"])
    assert args.overrides == ["test.a=1", "test.b.c=x=y", "d=2"]
    assert args.inputs == ["photo.jpg", "a.b=c.jpg"]


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


def test_a_signal_between_checkpoints_stops_at_once():
    before = [signal.getsignal(number) for number in cli.StopRequest.SIGNALS]
    for number in cli.StopRequest.SIGNALS:
        with cli.StopRequest() as stop, pytest.raises(cli.Interrupted, match="nothing is lost"):
            os.kill(os.getpid(), number)
        assert stop.requested
    assert [signal.getsignal(number) for number in cli.StopRequest.SIGNALS] == before


def test_a_deferred_signal_sets_a_flag(monkeypatch, capsys):
    child_handler = signal.getsignal(signal.SIGCHLD)
    with cli.StopRequest() as stop:
        with stop.deferred():
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)  # an echo of the first
            with pytest.raises(cli.Interrupted), stop.immediate():  # as it begins: it was requested before
                raise AssertionError("not reached")
        now = time.monotonic()
        monkeypatch.setattr(cli.time, "monotonic", lambda: now + 1.5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGCHLD) == child_handler
    assert capsys.readouterr().err.count("stopping after this step") == 1


def test_a_signal_within_a_validation_stops_at_once():
    with cli.StopRequest() as stop, stop.deferred():
        with pytest.raises(cli.Interrupted), stop.immediate():
            os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested


def test_options_of_a_run():
    parser = cli.make_parser("x")
    cli.add_run(parser)
    assert parser.parse_args([]).resume is None
    assert parser.parse_args(["--resume"]).resume == "must"
    assert parser.parse_args(["--resume", "auto"]).resume == "auto"
    assert parser.parse_args(["--init-from", "torchvision://net"]).init_from == "torchvision://net"


@pytest.mark.parametrize("limit", ["0", "-3", "inf", "nan", "soon"])
def test_a_hang_limit_is_a_time(limit, capsys):
    parser = cli.make_parser("A tool.")
    cli.add_run(parser)
    with pytest.raises(SystemExit) as ending:
        parser.parse_args([f"--hang-limit={limit}"])
    assert ending.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert parser.parse_args(["--hang-limit", "0.5"]).hang_limit == 0.5


def test_weights_from_the_command_line_are_not_sought_in_the_data():
    assert cli.absolute("a/b.pt") == str(Path.cwd() / "a/b.pt")
    assert cli.absolute("torchvision:IMAGENET1K_V1") == "torchvision:IMAGENET1K_V1"


@pytest.mark.parametrize("text", ["-1", str(2**32), "1e3"])
def test_a_seed_is_one_that_every_generator_takes(text, capsys):
    assert cli.make_parser("x", seed=True).parse_args(["--seed", str(2**32 - 1)]).seed == 2**32 - 1
    assert run(lambda args: None, "--seed", text, seed=True) == 2
    assert "--seed: " in capsys.readouterr().err


def test_a_positive_number_is_one_from_1_on():
    assert cli.positive("1") == 1
    for text in ("0", "-3"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not at least 1"):
            cli.positive(text)
    with pytest.raises(ValueError, match="invalid literal"):
        cli.positive("2.5")


def test_an_empty_path_is_not_the_folder_where_one_is(capsys):
    """As of `--out "$RUN"` without such a variable."""
    for option in ("--out", "--data-root"):
        parser = cli.make_parser("x", data_root=True)
        cli.add_run(parser)
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([option, ""])
        assert f"{option}: is empty: is a variable of the shell not set?" in capsys.readouterr().err


CHECKS_ITSELF = ("experiments", "gpu_check", "predict", "test_det")
"""Scripts whose folders are checked when they are made, or known, before anything is computed."""


def test_outputs_that_cannot_be_written_are_refused_with_the_command_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for kind in (cli.output_file, cli.output_folder):
        parser = cli.make_parser("x")
        parser.add_argument("--out", type=kind)
        with pytest.raises(SystemExit, match="2"):
            cli.run(lambda args: pytest.fail("it ran"), parser, ["--out", f"{tmp_path}/file/x"])
        assert (
            f"--out: {tmp_path}/file/x: cannot be written: {tmp_path}/file is not a folder" in capsys.readouterr().err
        )
    option = re.compile(r"\"(--)?(out|output|save|json|html|plot|report)\",[^)]*type=(Path|cli\.place)")
    scripts = {path.stem: path.read_text() for path in (ROOT / "tools").glob("*.py")}
    assert sorted(name for name, text in scripts.items() if option.search(text)) == sorted(CHECKS_ITSELF)
