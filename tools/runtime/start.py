"""How every training begins and ends: device and processes, a way to stop, the run's folder, what is said and kept."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backbones.weights import check_fields
from configs.errors import UserError, counted
from configs.files import replacing
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import load_checkpoint, older
from tools.runtime.curves import write_curves
from tools.runtime.distributed import say
from tools.runtime.optimizer import describe_rate
from tools.runtime.run_folder import RunFolder, write_json
from tools.runtime.schedule import Schedule
from tools.runtime.task import Recipe


@dataclass(frozen=True)
class Job:
    """What a training script works with."""

    device: torch.device
    stop: cli.StopRequest
    run: RunFolder
    data_root: Path
    init_from: str | None
    """Weights that a new run starts from."""
    resumes: bool
    """Whether the run goes on from its last.pt."""

    def checkpoint(self, kind: str) -> dict[str, Any] | None:
        """The checkpoint to go on from, which must be of this kind; None: a new run.

        Raises:
            UserError: it is damaged or of another kind.
        """
        if not self.resumes:
            return None
        try:
            content = load_checkpoint(self.run.last)
        except UserError as error:
            content = self._older_checkpoint(error)
        if content.get("kind") != kind:
            raise UserError(f"{self.run.last}: holds a {content.get('kind')!r:.40}, not a {kind}")
        check_fields(content, self.run.last)
        if "class_names" not in content:
            raise UserError(f"{self.run.last}: the checkpoint lacks class_names")
        if "model" not in content["config"]:
            raise UserError(f"{self.run.last}: the checkpoint lacks config.model")
        done = content.get("training", {}).get("iteration", 0)
        if type(done) is not int or done < 0:
            raise UserError(f"{self.run.last}: training.iteration is damaged ({done!r:.40}): resume from an older one")
        say(f"resumed    {self.run.last}, after {counted(done, 'iteration')}")
        return content

    def _older_checkpoint(self, error: UserError) -> dict[str, Any]:
        """The newest of the older checkpoints that can be read; it takes the place of last.pt.

        Otherwise the next writing would give the damaged file the name of the good one, and lose that.
        """
        for path in older(self.run.last):
            with suppress(UserError):
                content = load_checkpoint(path)
                say(f"warning: {error}: going on from {path}, which was last.pt before")
                if self.run.writes:
                    with replacing(self.run.last) as temporary:
                        shutil.copyfile(path, temporary)
                return content
        raise error


@contextmanager
def training(args: argparse.Namespace) -> Iterator[Job]:
    """The job of a script with `cli.add_run`'s options; the folder is locked within this context.

    Raises:
        UserError: the folder may not be used.
    """
    device = cli.select_device(args.device)
    with ExitStack() as stack:
        stack.enter_context(distributed.processes(device, args.hang_limit))
        stop = stack.enter_context(cli.StopRequest())
        path = args.out or Path("runs") / args.cfg.stem
        run = stack.enter_context(RunFolder(path, writes=distributed.is_main()))
        keep = [Path(args.init_from)] if args.init_from else []
        resumes = distributed.on_main(lambda: run.prepare(resume=args.resume, overwrite=args.overwrite, keep=keep))
        torch.backends.cudnn.benchmark = device.type == "cuda"
        yield Job(
            device, stop, run, cli.find_data_root(args.data_root), args.init_from if not resumes else None, resumes
        )


def is_finished(folder: Path) -> bool:
    """Whether a training has come to its end there."""
    return (folder / "metrics.json").is_file() and (folder / "last.pt").is_file()


def carry_out(
    folder: Path, train: Callable[[Job], None], *, device: torch.device, stop: cli.StopRequest, data_root: Path
) -> None:
    """Train, go on with, or leave as it is: one of several trainings of a command, which may be given again.

    Raises:
        Interrupted: asked to stop.
    """
    if is_finished(folder):
        say(f"{folder}: finished")
        return
    say(f"\n{folder}")
    with RunFolder(folder, writes=distributed.is_main()) as run:
        resumes = distributed.on_main(lambda: run.prepare(resume="auto"))
        try:
            train(Job(device, stop, run, data_root, None, resumes))
        except cli.Interrupted:
            raise cli.Interrupted(f"interrupted in {folder}: the same command goes on") from None


def say_steps(recipe: Recipe, schedule: Schedule) -> None:
    """Say how large the steps are and how many there will be."""
    train, optim = recipe.train, recipe.optim
    parts = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
    images = counted(train.batch_size, "image")
    say(f"step       {images}{parts}, {optim.name}, rate {describe_rate(optim, train.batch_size)}")
    say(f"schedule   {schedule.describe()}")


def say_place(device: torch.device, amp: str, run: RunFolder) -> None:
    """Say where it trains, and where it is written."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {counted(threads, 'thread')}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    several = f", {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    say(f"device     {where}{several}{', bf16 autocast' if amp == 'bf16' else ''}")
    say(f"run        {run.path}")


def write_final_figures(run: RunFolder, final: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the figures of the last weights and the curves into the run's folder, and say where they are.

    Args:
        run: the folder.
        final: name of a set, test or val -> its figures. metrics.json has the test set's, where there is one, else the
            validation set's, metrics_val.json the validation set's.
    """
    if run.writes:
        if final:
            write_json(run.path / "metrics.json", final.get("test", final.get("val")))
        if "val" in final:
            write_json(run.path / "metrics_val.json", final["val"])
        with run.noting():
            write_curves(run.path)
    say(f"curves     {run.path / 'curves.png'}")
    say(f"weights    {run.last}")
