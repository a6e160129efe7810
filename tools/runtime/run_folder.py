"""The folder of a run: config.yaml, metrics.jsonl, TensorBoard events, last.pt, best.pt, pictures, evaluations."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from configs.errors import UserError, counted, printable_logger
from configs.files import write_text
from tools.runtime.texts import leaves

logger = printable_logger(__name__)

_SIGNS_OF_A_RUN = ("config.yaml", "metrics.jsonl", "last.pt", "best.pt")
_FILES_OF_A_RUN = (*_SIGNS_OF_A_RUN, "metrics.json", "metrics_val.json", "detections.json", "curves.png", ".ended")
_RESULTS = ("last_[0-9]*.pt", "tensorboard/events.out.tfevents.*")
_WRITTEN, _LOCK = ".written.json", ".lock"
ENDED = ".ended"
"""A file that is no older than metrics.jsonl where a run came to its end."""
_PART = ".*.[0-9]*-[0-9]*.part"
"""Files that `configs.files.replacing` had not finished."""


class RunFolder:
    """Writes what a run leaves behind. With `writes=False` (all processes but the first) it only knows the paths.

    From `prepare` to `close` the folder is locked: a second run into it is refused. `open` prepares a folder that
    nobody has prepared, so that no run is lost by a call that was left out.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes
        self.lines: int | None = None
        """Lines of metrics.jsonl; after `prepare`, those that a checkpoint knows (None: it does not say)."""
        self._prepared = self._replaces = False
        self._lock: int | None = None
        self._metrics_file: TextIO | None = None
        self._tensorboard: Any = None

    @property
    def last(self) -> Path:
        """The newest checkpoint, with all that `--resume` needs."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / "best.pt"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def prepare(self, *, resume: str | None = None, overwrite: bool = False, keep: Sequence[Path] = ()) -> bool:
        """See that a run may start or go on here, and lock the folder. Nothing in it is touched yet.

        Args:
            resume: None: a new run; "must": one that goes on; "auto": that, or a new one where there is none.
            overwrite: a new run in place of an earlier one, whose files `open` removes.
            keep: files that the new run needs, such as the weights it starts from.

        Returns:
            Whether a run goes on.

        Raises:
            UserError: it may not, or another run is at work here.
        """
        if overwrite and resume is not None:
            raise UserError("--overwrite and --resume contradict each other: one removes the run, the other goes on")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; choose another folder with --out")
        there = [name for name in _SIGNS_OF_A_RUN if (self.path / name).exists()]
        older = any(self.path.glob("last_[0-9]*.pt"))  # takes the place of a last.pt that is gone
        goes_on = resume is not None and (self.last.exists() or older)
        if not goes_on:
            self._see_that_nothing_is_lost(there, resume, overwrite)
        if overwrite and there:
            self._refuse_to_remove(keep)
        if self.writes:
            self._take_lock()
            for leftover in self.path.rglob(_PART):
                leftover.unlink(missing_ok=True)  # of a writer that was killed
        self._prepared, self._replaces = True, bool(there) and not goes_on
        return goes_on

    def _see_that_nothing_is_lost(self, there: list[str], resume: str | None, overwrite: bool) -> None:
        """Refuse a new run where it would destroy one, and a resumption where there is nothing to go on from."""
        finished = [name for name in ("best.pt", "metrics.json") if (self.path / name).exists()]
        if resume is not None and finished:
            hint = "start a new run with --init-from" if "best.pt" in finished else "--overwrite starts anew"
            raise UserError(f"{self.path}: has no last.pt to go on from (there is {finished[0]}: {hint})")
        if resume == "must":
            what = "was stopped before its first checkpoint" if there else "no run to resume here"
            raise UserError(f"{self.path}: {what}: leave out --resume, or give the run's folder with --out")
        if there and resume is None and not overwrite:
            raise UserError(
                f"{self.path}: holds a run already ({', '.join(there)}): continue it with --resume, "
                "choose another folder with --out, or replace it with --overwrite"
            )

    def _refuse_to_remove(self, keep: Sequence[Path]) -> None:
        removed = {path.resolve() for path in self._own_files()}
        for path in keep:
            if path.exists() and path.resolve() in removed:
                raise UserError(
                    f"{path}: belongs to the run that --overwrite removes: choose another folder with --out"
                )

    def _take_lock(self) -> None:
        """Hold RUN/.lock until `close`; the system lets go of it when the process ends, however it does.

        A loader's workers, which live on for seconds when their process is killed, do not hold it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{self.path}: another run is at work here ({owner or 'process unknown'}): wait for it, or choose "
                "another folder with --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
        self._lock = descriptor
        os.register_at_fork(after_in_child=self._close_lock)

    def _close_lock(self) -> None:
        """Close this process's access to the lock; the system gives it free once no process has any."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _own_files(self) -> list[Path]:
        """What an earlier run wrote here."""
        files = [self.path / name for name in (*_FILES_OF_A_RUN, *self._noted())]
        for pattern in _RESULTS:
            files += self.path.glob(pattern)
        return [path for path in dict.fromkeys(files) if path.is_file()]

    def _noted(self) -> set[str]:
        """The files that `noting` has remembered; a list that somebody damaged, or that leads elsewhere, has none."""
        with suppress(OSError, ValueError, TypeError):
            names = json.loads((self.path / _WRITTEN).read_text(encoding="utf-8"))
            return {name for name in names if (self.path / name).resolve().is_relative_to(self.path.resolve())}
        return set()

    def _clear(self) -> None:
        """Remove what an earlier run left here; other files stay."""
        for path in self._own_files():
            path.unlink()
        (self.path / _WRITTEN).unlink(missing_ok=True)
        for folder in sorted((each for each in self.path.rglob("*") if each.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Remembers which files are written within this context, so that `--overwrite` removes those and no others."""
        before = self._stamps()
        yield
        if not self.writes:
            return
        names = self._noted() | {name for name, stamp in self._stamps().items() if before.get(name) != stamp}
        write_json(self.path / _WRITTEN, sorted(names))

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Relative path -> (time of writing, size), of all files but hidden ones."""
        if not self.writes or not self.path.is_dir():
            return {}
        found = (
            (path.relative_to(self.path).as_posix(), path.stat()) for path in self.path.rglob("*") if path.is_file()
        )
        return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in found if not name.startswith(".")}

    def open(self, config_yaml: str, *, from_iteration: int = 0) -> None:
        """Start writing, if that has not happened yet; what an earlier run left is removed, where this one replaces it.

        A resumed run keeps the lines of metrics.jsonl that its checkpoint knows (`lines`; else those until
        `from_iteration`), since it writes the others again.
        """
        if not self.writes or self._metrics_file is not None:
            return
        if not self._prepared and not from_iteration:
            self.prepare()
        if self._replaces and from_iteration == 0:
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", config_yaml)
        metrics = self.path / "metrics.jsonl"
        kept: list[str] = []
        if metrics.exists():
            lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _iteration_of(line) <= from_iteration][: self.lines]
            write_text(metrics, "".join(line + "\n" for line in kept))
        if self.lines is not None and len(kept) < self.lines:
            lost = counted(self.lines - len(kept), "line")
            logger.warning("%s: %s of before the checkpoint are missing or damaged, and left out", metrics, lost)
        self.lines = len(kept)
        self._metrics_file = metrics.open("a", encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

        threading.excepthook = _without_tensorboard
        self._tensorboard = SummaryWriter(
            str(self.path / "tensorboard"), purge_step=from_iteration + 1 if from_iteration else None
        )

    def log(self, iteration: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """One line of metrics.jsonl and the same numbers as TensorBoard scalars.

        Args:
            iteration: iterations done.
            values: name -> number; nested mappings become dotted names in TensorBoard. NaN is written as null.
            prefix: the scalars' group, such as "train" or "val"; the line's key "split".
        """
        if self._metrics_file is None:
            return
        self.see_that_it_is_there()
        line = {"iteration": iteration, **({"split": prefix} if prefix else {}), **_plain(values)}
        with self._telling("metrics.jsonl"):
            self._metrics_file.write(json.dumps(line) + "\n")
            self._metrics_file.flush()
        self.lines = (self.lines or 0) + 1
        with self._telling("tensorboard"):
            for name, value in leaves(_plain(values)):
                if not isinstance(value, int | float) or isinstance(value, bool):
                    continue
                self._tensorboard.add_scalar(f"{prefix}/{name}" if prefix else name, value, iteration)

    def log_picture(self, iteration: int, name: str, picture: np.ndarray) -> None:
        """Show a (H, W, 3) uint8 RGB picture in TensorBoard."""
        if self._tensorboard is not None:
            with self._telling("tensorboard"):
                self._tensorboard.add_image(name, picture, iteration, dataformats="HWC")

    def log_curves(self, iteration: int, prefix: str, curves: Mapping[str, np.ndarray]) -> None:
        """Show precision over recall in TensorBoard.

        Args:
            iteration: iterations done.
            prefix: the curves' group.
            curves: name -> (3, T) true, false and missed at T thresholds evenly over [0, 1].
        """
        if self._tensorboard is None:
            return
        with self._telling("tensorboard"):
            for name, (true, false, missed) in curves.items():
                precision, recall = true / np.maximum(true + false, 1), true / np.maximum(true + missed, 1)
                nothing = np.zeros_like(true)  # what is rightly not detected cannot be counted
                self._tensorboard.add_pr_curve_raw(
                    f"{prefix}/{name}", true, false, nothing, missed, precision, recall, iteration, len(true)
                )

    def see_that_it_is_there(self) -> None:
        """Refuse to make a folder anew that somebody removed while the run wrote into it.

        Raises:
            UserError: it is gone.
        """
        if self._metrics_file is not None and not (self.path / "metrics.jsonl").exists():
            raise UserError(f"{self.path}: the run's folder was removed or unmounted: nothing more can be written")

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Where the disk is full, or fails otherwise, the message names the file."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path / name}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the files and unlock the folder; one in which nothing was written is removed."""
        if self._metrics_file is not None:
            for file in filter(None, (self._metrics_file, self._tensorboard)):  # the second may have failed to open
                with suppress(OSError):  # what could not be written was told when it was
                    file.close()
            self._metrics_file = self._tensorboard = None
            threading.excepthook = threading.__excepthook__
        if self._lock is not None:
            with suppress(OSError):  # the folder may be gone
                (self.path / _LOCK).unlink(missing_ok=True)
                if not any(self.path.iterdir()):
                    self.path.rmdir()
            self._close_lock()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._metrics_file is not None:
            with suppress(OSError):  # the folder may be gone
                (self.path / ENDED).touch()
        self.close()


def provenance(data_root: Path) -> str:
    """Comment lines for config.yaml: the command, where data was looked for, the versions."""
    checkout = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no git here
        commit = ""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, torchvision {version('torchvision')}"
    lines = [
        f"Command:   {shlex.join(sys.argv)}",
        f"Data root: {data_root}",
        f"Versions:  {versions}{f', commit {commit}' if commit else ''}",
    ]
    return "".join(f"# {' '.join(line.splitlines())}\n" for line in lines)


def write_json(path: Path, values: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_plain(values), indent=2) + "\n")


def _without_tensorboard(failure: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, but not TensorBoard's writer: it raises the same again where it is called next."""
    if type(failure.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
        threading.__excepthook__(failure)


def _iteration_of(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # a line that a crash cut short
        return math.inf


def _plain(values: Any) -> Any:
    """Values that JSON knows: NaN and infinities become null, numpy's numbers plain ones."""
    if isinstance(values, Mapping):
        return {str(name): _plain(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    if isinstance(values, np.generic):
        values = values.item()
    return None if isinstance(values, float) and not math.isfinite(values) else values
