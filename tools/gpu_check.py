"""The first day on a GPU in one command: are kernels right and fast, does training learn, where does its time go?

    python tools/gpu_check.py --out gpu_check                        everything that is not in gpu_check/report.json yet
    python tools/gpu_check.py --out gpu_check --wheels wheels        missing packages from a folder of wheels
    python tools/gpu_check.py --out gpu_check --stage c --stage d    some stages
    python tools/gpu_check.py --out gpu_check --stage c --again      what is there already, too

Stages: a environment, b tests marked gpu, c kernels against the CPU's operators and torchvision's, d training steps of
published configs on generated images, e the time of a step by kernel, f `benchmark.py suite`. Each takes at most eight
minutes (--seconds). Each row runs in a process of its own and is kept at once; a later call does what is missing or
failed. DIR/report.md holds the tables for docs/performance.md. Needs torch and torchvision with CUDA, and numpy; a row
that needs more says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.benchmarks import substitutes

substitutes.install()

from configs.errors import UserError
from configs.files import read_json, write_text
from tools import benchmark
from tools.benchmarks.gpu_report import markdown
from tools.benchmarks.processes import environment_variables, install_wheels, run_row, run_rows
from tools.benchmarks.report import commit, with_warnings, write_report
from tools.runtime import cli

STAGES = {"a": "environment", "b": "tests", "c": "kernels", "d": "training", "e": "profile", "f": "suite"}
TINY_SUITE = ("roofline --case tiny",)
SAME = ("device", "versions")
"""What all rows of a report share of the environment."""


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    if args.row:
        stage, _, name = args.row.partition("/")
        row = with_warnings(lambda: make_row(stage, name, device, tiny=args.tiny))
        write_report(args.out, {"results": {args.row: row}})
        return
    if args.wheels:
        install_wheels(args.wheels, args.out / "site")
    report = load(args, args.out / "report.json")
    for letter in args.stage or STAGES:
        run_stage(STAGES[letter], args, report)
    write_text(args.out / "report.md", markdown(report))
    bad = [f"{stage}/{name}" for stage, rows in report["stages"].items() for name in rows if failed(rows[name])]
    print(f"\n{args.out / 'report.md'}: the tables", flush=True)
    if bad:
        raise UserError(f"{args.out / 'report.json'} says why these did not run, or failed: {', '.join(bad)}")


def run_stage(stage: str, args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Run the rows of a stage that are missing or failed, and write the report after each."""
    done = report["stages"].setdefault(stage, {})
    script, rows = rows_of(stage, args)
    rows = {name: line for name, line in rows.items() if args.again or name not in done or failed(done[name])}
    print(f"\n== {stage}: {len(rows)} to run", flush=True)

    def keep(name: str, result: dict[str, Any]) -> None:
        done[name] = {**result, "commit": commit()}
        write_report(args.out / "report.json", report)

    run_rows(rows, script, seconds=args.seconds, keep=keep, env=environment_variables(args.out / "site"))


def rows_of(stage: str, args: argparse.Namespace) -> tuple[Path, dict[str, list[str]]]:
    """The script of a stage and its rows: name -> arguments."""
    common = ["--device", args.device]
    if stage == "suite":
        parser = benchmark.make_parser()
        lines = [[*line.split(), *common] for line in (TINY_SUITE if args.tiny else benchmark.GPU_ROWS)]
        return ROOT / "tools/benchmark.py", {benchmark.row_name(parser.parse_args(line)): line for line in lines}
    from tools.benchmarks import gpu, kernels

    steps = [f"{config} {size}" for size in gpu.IMAGE_SIZES for config in gpu.CONFIGS]
    graphs = [f"{config} {size} graphs" for config, size in zip(gpu.CONFIGS, gpu.IMAGE_SIZES, strict=False)]
    names = {
        "environment": ["machine"],
        "tests": gpu.test_files(tiny=args.tiny),
        "kernels": list(kernels.KERNELS),
        "training": ["frcnn_r101_voc tiny"] if args.tiny else [*steps, *graphs],
        "profile": ["frcnn_r101_voc tiny"] if args.tiny else steps,
    }[stage]
    tiny = ["--tiny"] if args.tiny else []
    return Path(__file__), {name: ["--row", f"{stage}/{name}", *common, *tiny] for name in names}


def make_row(stage: str, name: str, device: Any, *, tiny: bool) -> dict[str, Any]:
    """One row, in this process.

    Raises:
        UserError: something that it needs is missing, or a kernel is wrong.
    """
    import torch

    from tools.benchmarks import gpu, kernels

    if device.type == "cpu":
        torch.set_num_threads(1)
    if stage == "environment":
        return gpu.environment_row(device)
    if stage == "tests":
        return gpu.tests_row(name, tiny=tiny)
    if stage == "kernels":
        return kernels.kernel_row(name, device, tiny=tiny)
    torch.backends.cudnn.benchmark = True
    config, size, *graphs = name.split(" ")
    image_size = (64, 96) if size == "tiny" else gpu.IMAGE_SIZES[size]
    work = gpu.training_row if stage == "training" else gpu.profile_row
    return work(config, image_size, device, tiny=tiny, graphs=bool(graphs))


def load(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """The report so far, of this machine; a new one where there is none.

    Raises:
        UserError: the file is of another machine or other versions.
    """
    command = [sys.executable, __file__, "--row", "environment/machine", "--device", args.device]
    machine = run_row(command, args.seconds, environment_variables(args.out / "site"))
    if "not_run" in machine:
        raise UserError(machine["not_run"])
    report: dict[str, Any] = {"environment": machine, "tiny": args.tiny, "stages": {}}
    if not path.exists():
        return report
    old = read_json(path, "report")
    differing = [key for key in SAME if old["environment"].get(key) != machine[key]]
    if differing or old.get("tiny") != args.tiny:
        raise UserError(
            f"{path}: is a report of another {' and '.join(differing) or 'size (--tiny)'}: give another --out"
        )
    return {**report, "stages": old["stages"]}


def failed(row: dict[str, Any]) -> bool:
    """Whether a row did not run, ran in another way (it warned), has failed tests, or losses that do not fall, or
    waits."""
    bad = "not_run" in row or "warnings" in row or row.get("failed") or row.get("loss_falls") is False
    return bool(bad) or row.get("sync_free", True) is not True


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True)
    parser.set_defaults(device="cuda")
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("gpu_check"),
        metavar="DIR",
        help="report.json and report.md (default: gpu_check)",
    )
    add(
        "--stage",
        action="append",
        choices=tuple(STAGES),
        metavar="LETTER",
        help="only this one; more than once for more",
    )
    add("--wheels", type=Path, metavar="DIR", help="install these wheels into DIR/site of --out first")
    add("--again", action="store_true", help="run what the report has already, too")
    add("--seconds", type=float, default=480, help="for each stage (default: %(default)g)")
    add(
        "--tiny", action="store_true", help="everything in little, to see that it runs; with --device cpu without a GPU"
    )
    add("--row", help=argparse.SUPPRESS)  # STAGE/NAME: one row in this process, its report to the file --out
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
