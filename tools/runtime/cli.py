"""The command line that all scripts share: options, exit codes, interruption, device. Imports torch only when needed.

Exit codes: 0 done; 1 an internal error, with its traceback; 2 a mistake of the user's, in one line; 3 interrupted with
a checkpoint written.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TextIO

from backbones.fetch import is_name
from configs.errors import UserError
from configs.files import check_output

if TYPE_CHECKING:
    import torch

INTERNAL_ERROR, USER_ERROR, INTERRUPTED = 1, 2, 3
NOTHING_LOST = "interrupted between two checkpoints: nothing is lost, the same command does it again"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the machine that come without a file's name."""


class Interrupted(Exception):
    """The run was asked to stop and did so with a checkpoint written; the message says how to go on."""


_SETTING = re.compile(r"[a-z]\w*(\.\w+)+=.*", re.DOTALL)


class _Parser(argparse.ArgumentParser):
    """ArgumentParser whose mistakes take one line; `--set a.b=1 c.d=2` is one in front of inputs, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        each: list[str] = []
        for text in sys.argv[1:] if args is None else args:
            if each[-2:-1] == ["--set"] and _SETTING.fullmatch(text):
                each.append("--set")
            each.append(text)
        return super().parse_known_args(each, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"{self.prog}: {message} (see {self.prog} --help)\n")


def seed_number(text: str) -> int:
    """An option's seed, as configs take it."""
    from configs.common import SEEDS  # here, so that scripts without a config start fast

    value = int(text)
    if not 0 <= value < SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {SEEDS - 1}")
    return value


def positive(text: str) -> int:
    """An option's whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def make_parser(
    description: str | None, *, config: bool = False, data_root: bool = False, device: bool = False, seed: bool = False
) -> argparse.ArgumentParser:
    """A parser with the options that mean the same in every script.

    Args:
        description: what the script does; usually its docstring.
        config: adds `--cfg` and `--set`.
        data_root: adds `--data-root`.
        device: adds `--device`.
        seed: adds `--seed` (default None: the config's).
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake in the input too")
    if config:
        parser.add_argument("--cfg", required=True, type=Path, metavar="FILE", help="config, YAML (see configs/)")
        add_set(parser)
    if data_root:
        add_data_root(parser)
    if device:
        add_device(parser)
    if seed:
        parser.add_argument(
            "--seed", type=seed_number, metavar="N", help="of all random numbers (default: the config's)"
        )
    return parser


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root", type=place, metavar="DIR", help="relative paths start here (default: $DATA_DIR, else data/)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA where there is one"
    )


def add_set(parser: argparse.ArgumentParser, *, one_each: bool = False) -> None:
    """Add `--set key.path=value`, which may be given several times, and with several values each.

    Args:
        parser: gets the option.
        one_each: what follows a value and is none is no mistake but an argument of its own.
    """
    parser.add_argument(
        "--set", dest="overrides", action="extend", nargs=1 if one_each else "+", default=[], metavar="KEY.PATH=VALUE",
        help="change a value of the config; checked like the file: --set optim.lr=0.01 --set data.train.0.root=my_data",
    )  # fmt: skip


def weights_argument(text: str) -> Path | str:
    """The type of options that take weights: a path, or a name (`torchvision://...`), which `Path` would change."""
    return text if is_name(text) else Path(text)


def make_training_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all training scripts have."""
    parser = make_parser(description, config=True, data_root=True, device=True, seed=True)
    add_run(parser)
    return parser


def place(text: str) -> Path:
    """The type of options that name a file or a folder. An empty text, as of `--out "$RUN"` without such a variable,
    would be the folder where one is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: is a variable of the shell not set?")
    return Path(text)


def output_file(text: str) -> Path:
    """The type of options that name a file to write, which is refused at once where it cannot be written."""
    return _output(text, is_folder=False)


def output_folder(text: str) -> Path:
    """The type of options that name a folder of results, refused at once where nothing can be written there."""
    return _output(text, is_folder=True)


def _output(text: str, *, is_folder: bool) -> Path:
    path = place(text)
    try:
        check_output(path, is_folder=is_folder)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add what all trainings take: `--out`, `--resume`, `--init-from` and `--overwrite`."""
    parser.add_argument(
        "--out", type=place, metavar="RUN", help="the run's folder (default: runs/<name of the config>)"
    )
    parser.add_argument(
        "--resume", nargs="?", const="must", choices=("must", "auto"), metavar="auto",
        help="continue the run in RUN exactly where it stopped; auto: or start one where there is none",
    )  # fmt: skip
    weights = "start a new run from weights: a file, or a name of docs/zoo.md"
    parser.add_argument("--init-from", metavar="W", help=weights)
    parser.add_argument("--overwrite", action="store_true", help="remove what an earlier run left in RUN")
    parser.add_argument(
        "--hang-limit", type=_seconds, default=1800.0, metavar="SECONDS",
        help="several processes: end all when one has not answered for so long (default: 1800)",
    )  # fmt: skip


def _seconds(text: str) -> float:
    """The type of `--hang-limit`."""
    if not 0 < float(text) <= 1e8:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 100000000 seconds")
    return float(text)


def absolute(weights: str) -> str:
    """A path of weights from the root on, which no data root changes; a name such as `torchvision:...` as it is."""
    return weights if ":" in weights else str(Path(weights).absolute())


def config_overrides(args: argparse.Namespace) -> list[str]:
    """What `--set` and `--seed` change, for `configs.loading.load_config`."""
    seed = getattr(args, "seed", None)
    return args.overrides if seed is None else [*args.overrides, f"seed={seed}"]


def find_data_root(given: Path | None) -> Path:
    """The folder that relative paths of data start at: `--data-root`, else `DATA_DIR`, else `data/` in the checkout."""
    if given is not None:
        return given
    from_environment = os.environ.get("DATA_DIR")
    return Path(from_environment) if from_environment else Path(__file__).resolve().parents[2] / "data"


def select_device(name: str) -> torch.device:
    """The device of `--device`; under torchrun the process's own GPU.

    Raises:
        UserError: cuda was asked for and is not there.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use: take --device cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()}): lower --nproc-per-node"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


# ---------------------------------------------------------------------------------------------- exit codes


def run(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    *,
    intermixed: bool = False,
) -> NoReturn:
    """Parse the command line, run `main`, and exit with the right code; `intermixed`: options may part the inputs."""
    _fill_closed_streams()
    if argv is None and sys.getfilesystemencoding() != "utf-8":  # by its locale: names from data would not be found
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without é, a name that is not UTF-8: escaped, no error
        sys.stdout.reconfigure(errors="backslashreplace")
    with redirect_stdout(_Outliving(sys.stdout)), redirect_stderr(_Outliving(sys.stderr)):
        _run(main, parser, argv, intermixed)


def _fill_closed_streams() -> None:
    """Give the process /dev/null for the standard streams that it was started without (`>&-`).

    Else the next file that is opened would get their number, and what is printed would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  # as long as the process


class _Outliving(io.TextIOBase):
    """A stream whose reader may go (`script | head`, a `tee` that died): the rest is lost, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._outliving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream.closed:  # when this object goes after its stream, Python flushes it once more
            return
        with self._outliving():
            self._stream.flush()

    @contextmanager
    def _outliving(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    def buffer(self) -> BinaryIO:
        return self._stream.buffer


def _run(
    main: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    intermixed: bool,
) -> NoReturn:
    args = parser.parse_intermixed_args(argv) if intermixed else parser.parse_args(argv)
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)  # what readers and others warn of
    try:
        main(args)
        sys.stdout.flush()
    except Interrupted as interruption:
        _complain(str(interruption), once=True)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(128 + signal.SIGINT)  # the shell's own code: no checkpoint was written
    except Exception as error:
        message = _readable(error)
        if message is None or args.debug:
            traceback.print_exc()
        if message is not None:
            _complain(f"{parser.prog}: {message}")
        sys.exit(INTERNAL_ERROR if message is None else USER_ERROR)
    sys.exit(0)


def _complain(message: str, *, once: bool = False) -> None:
    """Print on the error stream; `once`: all processes would say the same, one does."""
    rank = os.environ.get("RANK", "0")
    if once and rank != "0":
        return
    print(message if rank == "0" else f"[process {rank}] {message}", file=sys.stderr, flush=True)


def _readable(error: Exception) -> str | None:
    """The one line of a mistake that the user can fix; None: a mistake of ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if (limit := _at_a_limit(error)) is not None:
        return limit
    if isinstance(error, OSError) and error.errno is not None and (error.filename or error.errno in _FULL):
        return f"{os.fsdecode(error.filename or 'output')}: {os.strerror(error.errno)}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing it here
        return (
            "the GPU's memory is too small: raise train.accumulate, lower train.batch_size, data.max_size "
            "(data.test_max_size) or model.box.batch_size_per_image, or set train.amp=bf16 "
            f"({' '.join(str(error).split())[:200]})"
        )
    return None


_OUT_OF_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "std::bad_alloc")
"""What libraries say that find too little of it, in lower case."""


def _at_a_limit(error: Exception) -> str | None:
    """The one line of an error that a limit of the machine led to; None: another one."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(words in text.lower() for words in _OUT_OF_MEMORY):
        return (
            f"the memory is too small{f' ({text[:200]})' if text else ''}: free some, raise the limit (ulimit -v, the "
            "container's), or take fewer images at a time, smaller images or fewer processes"
        )
    if "ancdata" in text or "too many open files" in text.lower():  # the former is what a socket's reader says of it
        return f"too many open files ({text[:200]}): raise the limit (ulimit -n 4096); data.num_workers=0 takes fewer"
    if "can't start new thread" in text:
        return f"no more threads may be started ({text}): raise the limit (ulimit -u), or lower data.num_workers"
    return None


class StopRequest:
    """Turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 (SLURM's warning) into an orderly stop: `with StopRequest() as stop:`.

    As a rule the signal raises `Interrupted` on the spot: nothing is lost between two checkpoints. Within
    `with stop.deferred():` it only sets `stop.requested`, which a training loop reads between two updates.
    A second SIGINT, a second or more later, ends the program at once (KeyboardInterrupt). Sooner it is an echo:
    torchrun hands the terminal's on.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._process = os.getpid()
        self._moment = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._previous[signal.SIGCHLD] = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # A loader may have put its own handler in place meanwhile; ours stays away only if a stop was requested.
            if number != signal.SIGCHLD or self.requested:
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within this context a signal only sets `requested`."""
        with self._mode(True):
            yield

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within this context, inside `deferred`, a signal raises `Interrupted` again; one that came before, too."""
        with self._mode(False):
            if self.requested:
                raise Interrupted(NOTHING_LOST)
            yield

    @contextmanager
    def _mode(self, deferred: bool) -> Iterator[None]:
        before, self._deferred = self._deferred, deferred
        try:
            yield
        finally:
            self._deferred = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker, which inherited this handler: its parent decides
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        first, self.requested = not self.requested, True
        if not first and number == signal.SIGINT and time.monotonic() - self._moment >= 1.0:
            raise KeyboardInterrupt
        # The signal may have gone to the loader's workers too; torch would raise an error about them anywhere, also
        # within the writing of the checkpoint.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if first:
            self._moment = time.monotonic()
            if not self._deferred:
                raise Interrupted(NOTHING_LOST)
            _complain("\nstopping after this step; a checkpoint will be written", once=True)
