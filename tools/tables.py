"""The paper's Tables 1 to 14 (He et al. 2016), with this checkout's own results below the paper's.

    python tools/tables.py
    python tools/tables.py 6 --runs runs/cifar_study
    python tools/tables.py --html tables.html --out docs/results/tables.md

Prints Markdown: the paper's figures, the parameters and multiply-adds of the nets as they are built here, and for each
row that a config trains a row `here`: what its runs and docs/results/*.json say, as mean and deviation over the seeds
(Table 6, as the paper: the best one, then mean and deviation); blank where it was not run. Runs are folders <config>/
or <config>/seed<N>/ anywhere under --runs; `<config>/<test>` is what a test of its weights wrote there with --out.
"""

from __future__ import annotations

import argparse
import html
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml

from configs.errors import UserError
from configs.files import read_json, write_text
from tools.runtime import cli
from tools.runtime.results_page import look_up
from tools.runtime.texts import markdown_table

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tools" / "paper_tables.yaml"
PAGE = """# The paper's tables

Written by `python tools/tables.py --out docs/results/tables.md`: the figures of He et al. 2016, and below each row that
a config trains what this checkout has measured; blank where it was not run.

"""
"""What --out begins with."""


def main(args: argparse.Namespace) -> None:
    tables = {table["number"]: table for table in yaml.safe_load(TABLES.read_text(encoding="utf-8"))}
    unknown = next((number for number in args.numbers if number not in tables), None)
    if unknown is not None:
        raise UserError(f"there is no Table {unknown}: the paper has 1 to {max(tables)}")
    results = Results(args.runs, args.results)
    chosen = [laid_out(tables[number], results) for number in args.numbers or tables]
    text = "\n\n".join(f"**{heading}**\n\n{markdown_table(titles, rows)}" for heading, titles, rows in chosen) + "\n"
    print(text, end="")
    if args.out is not None:
        write_text(args.out, PAGE + text)
    if args.html is not None:
        write_text(args.html, as_html(chosen))


class Results:
    """What was measured in this checkout, by config."""

    def __init__(self, runs: Path, results: Path) -> None:
        self.runs = runs
        self.stored = list(_stored_results(results))

    def values(self, config: str, own: str) -> list[float]:
        """A metric of each run of a config, as in its file: `own` is a file's name and a path in it.

        `config` may go on with a test's name: frcnn_r101_coco/refined is the folder `refined` in the runs' own.
        """
        name, path = own.split(" ", 1)
        found = [look_up(content, path) for content in self._contents(config, name)]
        found += [look_up(stored.get(name, {}), path) for owner, stored in self.stored if owner == config]
        return [value for value in found if value is not None]

    def _contents(self, config: str, name: str) -> Iterator[Any]:
        """What the files of a name hold in the runs of a config.

        metrics_VIEWS.json is of tools/study.py; or a metrics.json of tools/test_cls.py --out, with these views.
        """
        views = name.removeprefix("metrics").removesuffix(".json").removeprefix("_")
        config, _, test = config.partition("/")
        for file in sorted(self.runs.rglob("metrics*.json")):
            folder = file.parent
            if test and folder.name != test:
                continue
            folder = folder.parent if test else folder
            of_run = config == folder.name or (config == folder.parent.name and folder.name.startswith("seed"))
            if of_run and file.name == name:
                yield read_json(file, "file of results")
            elif views and not test and file.name == "metrics.json" and config in file.parts:
                content = read_json(file, "file of results")
                if isinstance(content, dict) and content.get("views") == views:
                    yield content


def _stored_results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(config, {file's name: its content}) of each entry of `runs` in the folder's JSON files.

    An entry is {"config": name, "metrics": what metrics.json holds, "metrics_10crop": ...}; other files have their own
    form and are passed over, and so are runs of a config with changes (tools/experiments.py).
    """
    for file in sorted(folder.glob("*.json")):
        content = read_json(file, "file of results")
        entries = content.get("runs") if isinstance(content, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and "config" in entry and not entry.get("overrides"):
                named = {f"{key}.json": value for key, value in entry.items() if key.startswith("metrics")}
                yield str(entry["config"]), named


Table = tuple[str, list[str], list[list[str]]]
"""Heading, titles of the columns, rows."""


def laid_out(table: dict[str, Any], results: Results) -> Table:
    """A table as text: each of the paper's rows, and below it this project's."""
    costs = table.get("costs")
    titles = ["", *(["parameters", "multiply-adds"] if costs else []), *(each["title"] for each in table["columns"])]
    columns = list(zip(*(row["paper"] for row in table["rows"]), strict=True))
    digits = [max([_digits(value) for value in column]) for column in columns]
    rows = []
    for row in table["rows"]:
        built = list(net_costs(row["net"], costs)) if costs and "net" in row else [""] * (2 if costs else 0)
        rows.append([row["name"], *built, *map(_number, row["paper"], digits)])
        for config in configs_of(row) if any("own" in column for column in table["columns"]) else []:
            cells = [own_figure(results, config, column) for column in table["columns"]]
            rows.append([f"here: {config}", *([""] * len(built)), *cells])
    return f"Table {table['number']}. {table['title']}", titles, rows


def net_costs(net: dict[str, Any], side: int) -> tuple[str, str]:
    """Parameters and multiply-adds of a net as it is built here."""
    import torch

    from backbones.analysis import cost
    from backbones.zoo import build_backbone

    with torch.device("meta"):
        built = cost(build_backbone(**net), (side, side))
    return f"{built.parameters:,}", f"{built.multiply_adds:.3g}".replace("e+0", "e").replace("e+", "e")


def configs_of(row: dict[str, Any]) -> list[str]:
    """The configs that train what a row is of, the nearest to the paper first; some with a test's name."""
    named = row.get("config", [])
    return named if isinstance(named, list) else [named]


def own_figure(results: Results, config: str, column: dict[str, str]) -> str:
    """Per cent: the mean over the runs, with the deviation and their number where there are several; "" for none. A
    column may show the `best` (lowest) of several runs, or only their `spread`: mean and deviation."""
    values = [100 * value for value in results.values(config, column["own"])] if "own" in column else []
    shows = column.get("shows")
    if len(values) < 2 or shows == "best":
        return f"{min(values):.2f}" if values and shows != "spread" else ""
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)})"


def _digits(value: Any) -> int:
    return len(str(value).partition(".")[2]) if isinstance(value, float) else 0


def _number(value: Any, digits: int) -> str:
    """A figure with as many digits as the others of its column, as the paper prints it."""
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def as_html(tables: Sequence[Table]) -> str:
    """A page of its own with all the tables."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    style = "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    style += "td,th{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:right}td:first-child{text-align:left}"
    parts = [
        f"<h2>{html.escape(heading)}</h2>\n<table>\n{line(titles, 'th')}\n"
        + "\n".join(line(row, "td") for row in rows)
        + "\n</table>"
        for heading, titles, rows in tables
    ]
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Tables</title><style>{style}</style>\n'
    return head + "\n".join(parts) + "\n</html>\n"


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="tables (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where runs are (default: runs)")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results", metavar="DIR", help="stored results")
    parser.add_argument("--out", type=cli.output_file, metavar="FILE", help="write the Markdown here too")
    parser.add_argument("--html", type=cli.output_file, metavar="FILE", help="write a page here")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
