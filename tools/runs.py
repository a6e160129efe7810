"""All runs under some folders in one table, whatever they train, and any of their figures in one plot; no torch.

    python tools/runs.py runs
    python tools/runs.py runs /elsewhere/runs --format markdown
    python tools/runs.py runs --metric coco.AP coco.AP50 --format csv > runs.csv
    python tools/runs.py runs/a runs/b --plot side_by_side.png --metric voc12.mAP train.loss

A run is a folder with a metrics.jsonl. Figures are named as there: `voc12.mAP`, `top1_error` or `loss` of the
validations, `train.loss` of the training. Without --metric they are each run's own `train.best_metric`.

States: running (a process holds the run's lock), finished (.ended or curves.png, which a training writes at its end, is
not older than metrics.jsonl), stopped (`--resume` goes on).
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, did_you_mean
from configs.files import refuse_overwriting
from tools.runtime import cli
from tools.runtime.curves import TRAIN, VALIDATED, Curve, curve, find_curve, is_headline, names_of, write_comparison
from tools.runtime.runs import Run, read_runs, training_time
from tools.runtime.texts import markdown_table


def main(args: argparse.Namespace) -> None:
    runs = read_runs(args.folders)
    known = {
        name for run in runs for name in (*names_of(run.rows), *(f"{TRAIN}.{n}" for n in names_of(run.rows, [TRAIN])))
    }
    for metric in args.metric or ():
        if not any(find_curve(run.rows, metric)[0] for run in runs):
            raise UserError(f"--metric {metric}: no run has such a figure{did_you_mean(metric, known)}")
    if args.plot is not None:
        refuse_overwriting(args.plot, [run.path / "metrics.jsonl" for run in runs])
        metrics = args.metric or list(
            dict.fromkeys(run.best_metric for run in runs if find_curve(run.rows, run.best_metric)[0])
        )
        if not metrics:
            raise UserError("--plot: no run has been validated yet: name a figure, such as --metric train.loss")
        write_comparison(args.plot, {str(run.path): run.rows for run in runs}, metrics)
    print(FORMATS[args.format](table_of(runs, args.metric)))
    if args.plot is not None:
        print(f"plot: {args.plot}", file=sys.stderr)


def table_of(runs: Sequence[Run], metrics: Sequence[str] | None) -> list[list[str]]:
    """The table with its heading: the best and the newest value of some figures, or of each run's best metric."""
    figures = [f"{what} {name}" for name in metrics for what in ("best", "last")] if metrics else ["best", "last"]
    rows = [["run", "config", "state", "iteration", *figures, "other figures", "training time"]]
    for run in runs:
        cells: list[str] = []
        for name in metrics or [run.best_metric]:
            found = find_curve(run.rows, name)
            cells += [best_of(found, name, named=not metrics), f"{found[1][-1]:.4g}" if found[0] else ""]
        iteration = str(run.rows[-1]["iteration"]) if run.rows else "0"
        others = ", ".join(other_figures(run, metrics or [run.best_metric]))
        rows.append([str(run.path), run.config, run.state, iteration, *cells, others, training_time(run.rows)])
    return rows


def best_of(found: Curve, name: str, *, named: bool) -> str:
    """'voc12.mAP 0.884 at 1200' of a curve: its highest value, of losses and errors the lowest."""
    if not found[0]:
        return ""
    lower = name.endswith(("loss", "error", "entropy")) or ".loss_" in name or name.startswith("loss_")
    value = (min if lower else max)(found[1])
    at = found[0][found[1].index(value)]
    return f"{name} {value:.4g} at {at}" if named else f"{value:.4g} at {at}"


def other_figures(run: Run, named: Iterable[str]) -> list[str]:
    """The newest values of the other figures that validations are read by, and of the training's loss."""
    split = next((split for split in VALIDATED if names_of(run.rows, [split])), VALIDATED[0])
    figures = {name: curve(run.rows, split, name) for name in names_of(run.rows, [split]) if is_headline(name)}
    figures["train.loss"] = curve(run.rows, TRAIN, "loss")
    return [f"{name} {found[1][-1]:.4g}" for name, found in figures.items() if found[0] and name not in named]


# ---------------------------------------------------------------------------------------------- formats


def as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(_width(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")


FORMATS = {"text": as_text, "markdown": lambda rows: markdown_table(rows[0], rows[1:]), "csv": as_csv}


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="runs, or folders of runs at any depth")
    add("--metric", nargs="+", metavar="NAME", help="figures to show (default: each run's train.best_metric)")
    add("--plot", type=cli.output_file, metavar="PNG", help="draw the figures of all runs over their iterations")
    add("--format", choices=list(FORMATS), default="text", help="of the table (default: text)")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser(), intermixed=True)
