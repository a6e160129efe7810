"""The experiments of configs/experiments/: train and test what they say, and draw docs/results.md from the outcome.

    python tools/experiments.py list
    python tools/experiments.py run residual_learning
    python tools/experiments.py run detection_bccd --only torchvision --seeds 0
    python tools/experiments.py table

`run` goes on where it was stopped: what is finished stays, and the same command can be given again. After each run it
writes docs/results/<name>.json: configs, changes, seeds, commit, hardware, versions, time and every metric of the last
checkpoints; nothing is chosen on the test set. `table` redraws the parts of docs/results.md between its markers, and
the figures in docs/images/, from the JSON files alone. What a claim says is judged by the means over the seeds.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, nearest
from configs.experiments import ExperimentConfig
from configs.files import write_text
from configs.loading import load_config
from tools.runtime import cli
from tools.runtime.results_page import Page, read_results, redrawn

ROOT = Path(__file__).resolve().parents[1]


def main(args: argparse.Namespace) -> None:
    {"list": say_list, "run": run, "table": table}[args.command](args)


def load_experiments(folder: Path) -> dict[str, ExperimentConfig]:
    """Name -> experiment, of all YAML files of a folder.

    Raises:
        UserError: there is none, or one does not fit the schema.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise UserError(f"{folder}: holds no experiments: give their folder with --experiments")
    return {path.stem: load_config(path, (), ExperimentConfig) for path in files}


def say_list(args: argparse.Namespace) -> None:
    """Print each experiment with what it holds and how far it has come."""
    page = make_page(args)
    for name, experiment in page.experiments.items():
        print(f"{name:<20}{experiment.title}\n{'':<20}{page.state(name)}; {experiment.budget}")


def make_page(args: argparse.Namespace) -> Page:
    """What the page is drawn from."""
    experiments = load_experiments(args.experiments)
    return Page.read(experiments, args.results, images=args.page.parent / "images")


def table(args: argparse.Namespace) -> None:
    """Redraw the page and its figures."""
    page = make_page(args)
    try:
        text = args.page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{args.page}: cannot be read ({error.strerror}): give the page with --page") from None
    write_text(args.page, redrawn(text, page, str(args.page)))
    from tools.runtime.results_figures import draw_figures  # matplotlib

    for path in [args.page, *draw_figures(page)]:
        print(path)


def run(args: argparse.Namespace) -> None:
    """Carry out an experiment, from where it was stopped."""
    experiments = load_experiments(args.experiments)
    if args.name not in experiments:
        near = nearest(args.name, list(experiments))
        hint = f"did you mean {near}?" if near else f"there are {', '.join(experiments)}"
        raise UserError(f"there is no experiment {args.name}: {hint}")
    experiment = experiments[args.name]
    names = [entry.name for entry in experiment.runs]
    unknown = next((name for name in args.only or () if name not in names), None)
    if unknown is not None:
        raise UserError(f"--only {unknown}: the runs of {args.name} are {', '.join(names) or 'none'}")
    for measurement in experiment.measurements:
        measure(measurement.command, args.results / f"{measurement.file}.json")
    if experiment.runs:
        train_and_test(args, experiment)


def measure(command: str, path: Path) -> None:
    """Run a script that writes its own JSON file; one that is there stays.

    Raises:
        UserError: the command does not begin with `python tools/`.
    """
    words = shlex.split(command)
    if len(words) < 2 or words[0] != "python" or not words[1].startswith("tools/"):
        raise UserError(f"measurements: {command}: write it as python tools/<script>.py ...")
    if path.is_file():
        print(f"{path}: is there (remove it to measure again)")
        return
    print(f"\n{command} --out {path}")
    script = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
    path.parent.mkdir(parents=True, exist_ok=True)
    script.main(script.make_parser().parse_args([*words[2:], "--out", str(path)]))


def train_and_test(args: argparse.Namespace, experiment: ExperimentConfig) -> None:
    """Train what is not finished, test, and write the JSON file after each step."""
    from tools.benchmarks.report import environment as describe
    from tools.runtime.experiment_runs import carry_out, carry_out_test
    from tools.runtime.experiments import Machine, figures_of, plan, write_results

    device = cli.select_device(args.device)
    environment = describe(device, [])
    trainings = plan(experiment, args.experiments.parent, args.out / args.name)
    there = sorted({training.seed for training in trainings})
    if not set(args.seeds or ()) <= set(there):
        raise UserError(f"--seeds: the seeds of {args.name} are {', '.join(map(str, there))}")
    path = args.results / f"{args.name}.json"
    tests = read_results(path).get("tests", []) if path.is_file() else []
    content = {"experiment": args.name, "environment": environment, "runs": [], "tests": tests}
    listed = [training for training in trainings if training.entry.listed]
    first = {training.entry.name: training.seed for training in reversed(listed)}
    known: dict[Path, dict[str, Any]] = {}
    names = [entry.name for entry in experiment.runs]

    def write() -> None:
        for training in (each for each in listed if each.finished and each.folder not in known):
            responses = "responses" in experiment.figures and training.seed == first[training.entry.name]
            known[training.folder] = figures_of(training, machine, responses=responses)
        content["runs"] = [known[training.folder] for training in listed if training.folder in known]
        write_results(path, content)

    with cli.StopRequest() as stop:
        machine = Machine(device, cli.find_data_root(args.data_root), stop, environment["commit"])
        for training in trainings:
            if training.entry.name in (args.only or names) and training.seed in (args.seeds or [training.seed]):
                carry_out(training, machine)
                write()
        if all(training.finished for training in trainings):
            content["tests"] = [
                entry for test in experiment.tests for entry in carry_out_test(test, trainings, machine)
            ]
            write()
    print(f"\n{path}\nThe page: python tools/experiments.py table")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | run | table")
    for name, what in (("list", "what there is"), ("run", "carry one out"), ("table", "redraw docs/results.md")):
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        folder = ROOT / "configs/experiments"
        command.add_argument("--experiments", type=Path, default=folder, metavar="DIR", help="their YAML files")
        kind = cli.output_folder if name == "run" else Path
        command.add_argument("--results", type=kind, default=ROOT / "docs/results", metavar="DIR", help="JSON files")
        if name != "run":
            command.add_argument("--page", type=Path, default=ROOT / "docs/results.md", metavar="FILE")
            continue
        command.add_argument("name", metavar="NAME", help="an experiment: a file of --experiments")
        command.add_argument("--only", nargs="+", metavar="RUN", help="train these entries of `runs` (default: all)")
        command.add_argument(
            "--seeds", nargs="+", type=cli.seed_number, metavar="N", help="train these seeds (default: all)"
        )
        command.add_argument("--out", type=Path, default=Path("runs/experiments"), metavar="DIR", help="run folders")
        cli.add_data_root(command)
        cli.add_device(command)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
