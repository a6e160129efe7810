"""docs/results.md from docs/results/*.json: what is drawn lies between markers, and hand-written text stays.

<!-- drawn: experiments -->
...
<!-- end: experiments -->
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError, counted
from configs.experiments import ClaimConfig, ColumnConfig, ExperimentConfig
from configs.files import read_json
from tools.runtime.texts import markdown_table

_BLOCK = re.compile(r"(<!-- drawn: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:drawn|end): \w+ -->")

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Page:
    """What is drawn, and where figures go."""

    experiments: Mapping[str, ExperimentConfig]
    results: Mapping[str, Any]
    """Name of a JSON file -> its content."""
    images: Path

    @classmethod
    def read(cls, experiments: Mapping[str, ExperimentConfig], results: Path, images: Path) -> Page:
        """With all JSON files of a folder.

        Raises:
            UserError: one of them is damaged.
        """
        return cls(experiments, {path.stem: read_results(path) for path in sorted(results.glob("*.json"))}, images)

    def entries(self, name: str) -> list[Mapping[str, Any]]:
        """The finished runs and tests of an experiment."""
        content = self.results.get(name, {})
        return [*content.get("runs", []), *content.get("tests", [])]

    def state(self, name: str) -> str:
        """How far an experiment has come."""
        experiment = self.experiments[name]
        if experiment.measurements:
            done = sum(each.file in self.results for each in experiment.measurements)
            wanted = len(experiment.measurements)
        else:
            done = len(self.results.get(name, {}).get("runs", []))
            wanted = sum(len(run.seeds or experiment.seeds) for run in experiment.runs if run.listed)
        return "not run" if not done else "run" if done == wanted else f"{done} of {wanted} run"


def read_results(path: Path) -> dict[str, Any]:
    """A JSON file of docs/results/.

    Raises:
        UserError: it is damaged, or no mapping.
    """
    content = read_json(path, "file of results")
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping: remove it, or run its experiment again")
    return content


def redrawn(text: str, page: Page, name: str) -> str:
    """The text of a page with all that is drawn in it drawn again.

    Raises:
        UserError: the experiments have no place in it, or a marker is alone or unknown.
    """
    found = [match[2] for match in _BLOCK.finditer(text)]
    unknown = [block for block in found if block not in _BLOCKS]
    if unknown:
        raise UserError(f"{name}: nothing is called {unknown[0]}: drawn are {', '.join(_BLOCKS)}")
    if found.count("experiments") != 1 or len(_MARKER.findall(text)) != 2 * len(found):
        raise UserError(
            f"{name}: give each drawn part a line <!-- drawn: NAME --> and below it a line <!-- end: NAME -->, and "
            "experiments exactly one"
        )
    return _BLOCK.sub(lambda match: f"{match[1]}{_BLOCKS[match[2]](page)}\n{match[3]}", text)


# ---------------------------------------------------------------------------------------------- experiments


def _experiments(page: Page) -> str:
    """What became of each claim, and a section for each experiment that has run at least in part."""
    rows = []
    for name, experiment in page.experiments.items():
        claims = [(claim.claim, judge(claim, page.entries(name))) for claim in experiment.claims] or [("", "")]
        for place, (claim, verdict) in enumerate(claims):
            rows.append([f"`{name}`" if place == 0 else "", page.state(name) if place == 0 else "", claim, verdict])
    parts = [markdown_table(["experiment", "state", "claim", "here"], rows)]
    parts += [_section(page, name) for name in page.experiments if page.state(name) != "not run"]
    return "\n\n".join(parts)


def judge(claim: ClaimConfig, entries: Entries) -> str:
    """Whether the means over the seeds are as the claim says; "" where one of them was not measured."""
    names = [*dict.fromkeys(sum(claim.pairs, ())), *claim.of]
    values = {name: figures(entries, name, claim.metric) for name in names}
    if not all(values.values()):
        return ""
    means = {name: statistics.fmean(each) for name, each in values.items()}
    room = [means[high] - means[low] - claim.margin for low, high in claim.pairs]
    holds = all(value > 0 for value in room)
    for name in claim.of:
        holds = holds and (claim.at_least is None or means[name] >= claim.at_least)
        holds = holds and (claim.at_most is None or means[name] <= claim.at_most)
    words = "holds" if holds else "does not hold"
    if room:
        return f"{words} (smallest difference {_in_words(claim.metric, min(room) + claim.margin)})"
    return f"{words} ({', '.join(_in_words(claim.metric, means[name]) for name in claim.of)})"


def _in_words(metric: str, value: float) -> str:
    """A figure with its unit, where it has one."""
    return f"{value / 60:.1f} minutes" if metric.endswith("_seconds") else f"{value:.4f}"


def figures(entries: Entries, name: str, metric: str) -> list[float]:
    """A metric of each seed of a row."""
    found = [look_up(entry, metric) for entry in entries if entry["name"] == name]
    return [value for value in found if value is not None]


def look_up(values: Any, path: str) -> float | None:
    """The number under a dotted path of nested mappings; None: there is none."""
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return float(values) if isinstance(values, int | float) and not isinstance(values, bool) else None


def _section(page: Page, name: str) -> str:
    experiment = page.experiments[name]
    parts = [f"### {experiment.title}", f"`python tools/experiments.py run {name}`. {experiment.budget}"]
    if experiment.runs:
        environment = page.results[name]["environment"]
        commits = sorted({str(entry["commit"]) for entry in page.results[name]["runs"]})
        best = " (in parentheses behind the best)" if any(column.best for column in experiment.columns) else ""
        parts[-1] += (
            f" {environment['device']}, {counted(environment['threads'], 'thread')}, "
            f"torch {environment['versions']['torch']}, commit {', '.join(commits)}. "
            f"Means ± standard deviations over the seeds{best}, last checkpoints: `docs/results/{name}.json`."
        )
        parts.append(_run_table(experiment, page.entries(name)))
        drawn = {kind for kind in experiment.figures if any(kind in entry for entry in page.entries(name))}
        parts += [f"![{kind}](images/{name}_{kind}.png)" for kind in experiment.figures if kind in drawn]
    for form, title_row in (("results", _SPEED), ("costs", _COSTS)):
        rows = [row for each in experiment.measurements for row in _FORMS[form](page, each.file)]
        if rows:
            parts.append(markdown_table(title_row, rows))
    notes = [page.results.get(each.file, {}).get("assumptions", []) for each in experiment.measurements]
    parts += ["\n".join(f"- {line}" for line in lines) for lines in notes if lines]
    if experiment.reading != "not run":
        parts.append(experiment.reading)
    return "\n\n".join(parts)


def _run_table(experiment: ExperimentConfig, entries: Entries) -> str:
    rows, published = [], {run.name: run.published for run in experiment.runs}
    beside = any(published.values())
    for name in (*(run.name for run in experiment.runs if run.listed), *(test.name for test in experiment.tests)):
        of = [entry for entry in entries if entry["name"] == name]
        chosen = " ".join(of[0].get("chosen", [])) if of else ""
        seeds = ", ".join(str(entry["seed"]) for entry in of) if of and len(of[0].get("seeds", [0])) == 1 else ""
        seeds = seeds or (" + ".join(str(seed) for seed in of[0].get("seeds", [])) if of else "")
        cells = [cell([column.factor * value for value in figures(of, name, column.metric)], column)
                 for column in experiment.columns]  # fmt: skip
        row = [f"{name} (chosen: {chosen})" if chosen else name, seeds, *cells]
        rows.append([*row, published.get(name, "")] if beside else row)
    titles = ["", "seeds", *(column.title for column in experiment.columns), *(["published"] if beside else [])]
    return markdown_table(titles, rows)


def cell(values: Sequence[float], column: ColumnConfig) -> str:
    """Mean and standard deviation, behind the best where the column has one; of one value the value; of none ""."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{column.digits}f}"
    if len(values) == 1:
        return mean
    spread = f"{mean} ± {statistics.stdev(values):.{column.digits}f}"
    if column.best is None:
        return spread
    return f"{(min if column.best == 'lowest' else max)(values):.{column.digits}f} ({spread})"


# ---------------------------------------------------------------------------------------------- measurements

_SPEED = ["what", "beside", "its seconds", "ours", "seconds", "ratio (quartiles)", "device", "file"]
_COSTS = ["config", "images", "TFLOP an image", "hours on 1 GPU (GPU-hours)", "on 8", "on 16"]


def _speed_rows(page: Page, file: str) -> Iterator[list[str]]:
    """A row for each contestant that a report of tools/benchmark.py compares with its reference."""
    report = page.results.get(file, {})
    device = report.get("environment", {}).get("device", "")
    for what, result in (report.get("results") or {}).items():
        seconds = (result or {}).get("seconds") or {}
        reference = next((name for name, each in seconds.items() if "ratio" not in each), None)
        for name, each in seconds.items():
            if reference is None or name == reference:
                continue
            clock = "cpu" if "cpu" in each and "device" not in each else "wall"  # what the ratio is of
            ratio = each["ratio"]
            own, other = each[clock]["median"], seconds[reference][clock]["median"]
            quartiles = f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
            yield [what, reference, f"{other:.3g}", name, f"{own:.3g}", quartiles, device, f"`{file}.json`"]


def _cost_rows(page: Page, file: str) -> Iterator[list[str]]:
    """A row for each full run of tools/benchmarks/full_runs.py."""
    for cost in page.results.get(file, {}).get("costs", []):
        hours = [_range(cost["hours"][number]) for number in ("1", "8", "16")]
        teraflop = f"{cost['tflop_per_image']:.3g}"
        yield [f"`{cost['config']}`", f"{cost['images']:,}", teraflop, *hours]


def _range(pair: Sequence[float]) -> str:
    return " to ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in pair)


_FORMS = {"results": _speed_rows, "costs": _cost_rows}
_BLOCKS = {"experiments": _experiments}
