"""A process that has torch imported and runs the training scripts in forks of itself, to be ended at any moment.

`python tests/tools/forks.py` reads one JSON object a line, `Order`'s fields, and answers each with `Ending`'s. The
class `Forks` is the other side. A run starts within milliseconds in place of the seconds that importing torch takes.
Under torchrun it is torchrun's own agent that runs, and starts its processes, in forks too.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("tools.train_det", "tools.pretrain", "tools.train_loc")
_WRITING = os.O_WRONLY | os.O_RDWR


@dataclass
class Order:
    """What to run, and when a signal is to end it; the first moment that comes counts."""

    script: str
    argv: list[str]
    log: str
    """Where its output goes."""
    number: int = int(signal.SIGKILL)
    after: float | None = None
    """Seconds."""
    file_event: int | None = None
    """Before it opens for writing, renames, links or removes a file of `folder` for the n-th time, from 0."""
    folder: str = ""
    at: tuple[str, str, int] | None = None
    """(module, dotted name of a function in it, n): within its n-th call, from 0."""
    group: bool = False
    """The signal goes to the workers too, as a terminal's does."""
    limit: float = 120.0
    patch: str = ""
    """Code to run in the fork before the script."""
    launch: list[str] | None = None
    """Options of torchrun, whose processes run the script; `after` and `number` are for torchrun itself."""
    environment: dict[str, str] = field(default_factory=dict)
    moments: list[dict[str, Any]] = field(default_factory=list)
    """For each start of torchrun's processes `rank`, and the fields above that say when this one is to be ended."""


@dataclass
class Ending:
    """How it ended."""

    code: int
    """The exit code, or minus the signal."""
    seconds: float
    events: int
    """File events, if they were counted."""
    output: str = ""
    left: list[int] = field(default_factory=list)
    """Processes of the run that live on."""


class Forks:
    """The server as a context: `forks(order)` gives the ending."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def __call__(self, order: Order) -> Ending:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        Path(order.log).write_bytes(b"")  # it may be killed before it opens it
        print(json.dumps(asdict(order)), file=self._process.stdin, flush=True)
        ending = Ending(**json.loads(self._process.stdout.readline()))
        ending.output = Path(order.log).read_text(errors="replace")
        return ending


# ---------------------------------------------------------------------------------------------- the server


def serve() -> None:
    sys.path.insert(0, str(ROOT))
    modules = {name: import_module(name) for name in SCRIPTS}
    import_module("torch.utils.tensorboard.writer")
    for line in sys.stdin:
        order = Order(**json.loads(line))
        counter = Path(f"{order.log}.events")
        counter.unlink(missing_ok=True)
        ranks = Path(f"{order.log}.ranks")
        ranks.unlink(missing_ok=True)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(modules[order.script], order, counter)
        code = _wait(child, order, start)
        seconds = time.monotonic() - start
        events = counter.stat().st_size if counter.exists() else 0
        groups = [child, *map(int, ranks.read_text().split() if ranks.exists() else [])]
        left = [pid for group in groups for pid in _living(group)]
        print(json.dumps(asdict(Ending(code, seconds, events, left=left))), flush=True)
    os._exit(0)  # taking torch down takes seconds


def _wait(child: int, order: Order, start: float) -> int:
    sent = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        if order.after is not None and seconds >= order.after and not sent:
            sent = True
            _send(child, order)
        if seconds > order.limit:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.002)


def _send(child: int, order: Order) -> None:
    if order.group:
        os.killpg(child, order.number)
    else:
        os.kill(child, order.number)


def _living(group: int) -> list[int]:
    """The processes of a group that are still there after ten seconds at most; they are ended."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return []
        time.sleep(0.05)
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    os.killpg(group, signal.SIGKILL)
    return found


def _become(module: Any, order: Order, counter: Path) -> None:
    """In the fork: be the script, or the torchrun that starts it."""
    os.setpgid(0, 0)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.environment)
    _exit_with(lambda: _run(module, order, counter) if order.launch is None else _launch(module, order, counter))


def _exit_with(action: Any) -> None:
    code = 70
    try:
        action()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        import multiprocessing.util

        multiprocessing.util._exit_function()  # as at the end of an interpreter: workers are joined
        os._exit(code)


def _run(module: Any, order: Order, counter: Path) -> None:
    from tools.runtime import cli

    sys.argv = [module.__file__, *order.argv]
    if order.folder:
        _watch_files(order, counter)
    if order.at is not None:
        _watch_calls(order)
    exec(order.patch, {})
    cli.run(module.main, module.make_parser(), order.argv)


def _launch(module: Any, order: Order, counter: Path) -> None:
    """Be torchrun, but start its processes as forks."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def popen(self: Any, args: tuple, env: dict[str, str]) -> subprocess.Popen:
        def start() -> None:
            os.closerange(3, 4096)  # as for a new program; Popen waits for the end of one of these
            os.environ.update(env)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):  # torchrun's own
                signal.signal(number, signal.SIG_DFL)
            gc.enable()  # off within preexec_fn
            _exit_with(lambda: _be_rank(module, order, counter))

        return subprocess.Popen(args, env=env, start_new_session=True, preexec_fn=start)

    subprocess_handler.SubprocessHandler._popen = popen  # pyright: ignore[reportAttributeAccessIssue]
    try:
        run.main([*(order.launch or []), module.__file__, *order.argv])
    except Exception as error:  # torchrun's own are many; it prints them with a traceback
        print(f"torchrun: {error}", file=sys.stderr)
        sys.exit(1)


def _be_rank(module: Any, order: Order, counter: Path) -> None:
    with Path(f"{order.log}.ranks").open("a") as file:
        file.write(f"{os.getpid()}\n")
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if start < len(order.moments):
        moment = dict(order.moments[start])
        if moment.pop("rank") == int(os.environ["RANK"]):
            order = replace(order, **moment)
            if "after" in moment:
                timer = threading.Timer(moment["after"], _send, (os.getpid(), order))
                timer.daemon = True
                timer.start()
    _run(module, order, counter)


def _watch_files(order: Order, counter: Path) -> None:
    count, me = 0, os.getpid()
    notes = os.open(counter, os.O_WRONLY | os.O_CREAT)

    def hook(event: str, values: tuple) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        if event == "open" and not (isinstance(values[2], int) and values[2] & _WRITING):
            return
        if os.getpid() != me or not any(str(value).startswith(order.folder) for value in values):
            return
        if count == order.file_event:
            os.kill(me, order.number)
        count += 1
        os.write(notes, b".")

    sys.addaudithook(hook)


def _watch_calls(order: Order) -> None:
    assert order.at is not None
    module, name, at = order.at
    owner: Any = import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), 0

    def wrapper(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            _send(os.getpid(), order)
        return real(*args, **options)

    setattr(owner, last, wrapper)


if __name__ == "__main__":
    serve()
