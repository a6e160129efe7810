"""How every training begins: device and processes, a way to stop, the run's folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError
from tools.runtime import cli, distributed
from tools.runtime.checkpoint import load_checkpoint, older
from tools.runtime.distributed import say
from tools.runtime.run_folder import RunFolder


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
            content = load_checkpoint(self.run.last, kind=kind)
            say(f"resumed    {self.run.last}, after {content.get('training', {}).get('iteration', 0)} iterations")
            return content
        except UserError as error:
            for path in older(self.run.last):
                with suppress(UserError):
                    content = load_checkpoint(path, kind=kind)
                    say(f"warning: {error}: going on from {path}, which was last.pt before")
                    return content
            raise


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
