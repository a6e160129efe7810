"""What a study of several configs and seeds shows: curves, the table of errors, the layers' responses."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backbones.analysis import layer_responses
from backbones.classification import load_classifier
from configs.classification import ClassificationConfig
from configs.files import read_json, replacing, write_text
from datasets.classification import Splits, build_splits, centre_batches, spread
from tools.runtime.texts import markdown_table
from tools.runtime.training import count_parameters

RESPONSE_IMAGES = 1000
"""Training images that the layers' responses are measured on, spread over the set."""
CURVE_POINTS = 150
"""A training curve is averaged to so many points, at most."""


@dataclass(frozen=True)
class Run:
    """One config with one seed."""

    name: str
    """The name of the config's file, without its ending."""
    seed: int
    config: ClassificationConfig
    folder: Path

    @property
    def measured(self) -> str:
        """The set whose error counts: test, else val."""
        return "test" if self.config.data.test is not None else "val"


def write_results(
    runs: list[Run], errors: list[dict[str, float]], data_root: Path, device: torch.device, out: Path
) -> None:
    """The figures and tables of finished runs."""
    curves = [read_curves(run) for run in runs]
    write_curves(runs, curves, out)
    write_table(runs, curves, errors, out)
    write_responses(runs, data_root, device, out)
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"figures    {', '.join(str(path) for path in sorted(out.glob('*.png')))}")


# ---------------------------------------------------------------------------------------------- curves

Curve = list[tuple[int, float]]
"""(iteration, error as a fraction)."""


@dataclass(frozen=True)
class Curves:
    train: Curve
    """While training: augmented images, batch statistics."""
    test: Curve
    last_epoch: float
    """Training error over the last epoch (at least the last line)."""


def read_curves(run: Run) -> Curves:
    """The curves in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line.get("top1_error") is not None]
    training = [line for line in lines if line["split"] == "train"]
    test = [(line["iteration"], line["top1_error"]) for line in lines if line["split"] == run.measured]
    end = training[-1]["epoch"] if training else 0.0
    last = [line["top1_error"] for line in training if line["epoch"] > end - 1.0] or [float("nan")]
    curve = [(line["iteration"], line["top1_error"]) for line in training]
    return Curves(curve, test, statistics.fmean(last))


def thinned(curve: Curve, points: int = CURVE_POINTS) -> Curve:
    """The curve averaged to at most `points` points of equally many lines each."""
    size = -(-len(curve) // points) if curve else 1
    pieces = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(piece[-1][0], statistics.fmean(error for _, error in piece)) for piece in pieces]


def mean_curve(curves: Iterable[Curve]) -> Curve:
    """The mean over the seeds at each iteration that all of them have."""
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return [(iteration, statistics.fmean(table[iteration] for table in tables)) for iteration in common]


def write_curves(runs: list[Run], curves: list[Curves], out: Path) -> None:
    """curves.csv of every run, and curves.png of the means over the seeds: plain nets left, residual nets right."""
    rows = [
        (run.name, run.seed, split, iteration, f"{error:.6f}")
        for run, each in zip(runs, curves, strict=True)
        for split, curve in (("train", each.train), (run.measured, each.test))
        for iteration, error in curve
    ]
    write_csv(out / "curves.csv", ("config", "seed", "split", "iteration", "top1_error"), rows)
    seeds: dict[str, list[Curves]] = {}
    for run, each in zip(runs, curves, strict=True):
        seeds.setdefault(run.name, []).append(each)
    draw_curves(seeds, {run.name: run.config.model.plain for run in runs}, out / "curves.png")


def draw_curves(curves: Mapping[str, Sequence[Curves]], plain: Mapping[str, bool], path: Path) -> None:
    """A picture of the means over the seeds: plain nets left, residual nets right.

    Args:
        curves: name of a config -> its runs' curves.
        plain: name of a config -> whether it is a net without shortcuts.
        path: the PNG file.
    """
    groups = {
        title: {name: each for name, each in curves.items() if plain[name] is kind}
        for title, kind in (("plain nets", True), ("residual nets", False))
    }
    groups = {title: members for title, members in groups.items() if members}
    figure, axes = plt.subplots(1, len(groups), figsize=(6.4 * len(groups), 4.8), sharey=True, squeeze=False)
    for axis, (title, members) in zip(axes[0], groups.items(), strict=True):
        for number, (name, seeds) in enumerate(members.items()):
            train_curve = thinned(mean_curve(each.train for each in seeds))
            test_curve = mean_curve(each.test for each in seeds)
            _plot(axis, train_curve, f"C{number}", "--", 1.0, None)
            _plot(axis, test_curve, f"C{number}", "-", 2.2, name)
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
        axis.legend(title="bold: test, dashed: training", fontsize="small", title_fontsize="small")
    axes[0][0].set(ylabel="error (%)", ylim=(0, None))
    save_figure(figure, path)


def _plot(axis: Axes, curve: Curve, colour: str, style: str, width: float, label: str | None) -> None:
    marker = "o" if len(curve) == 1 else None
    iterations, errors = [point[0] for point in curve], [100 * point[1] for point in curve]
    axis.plot(iterations, errors, style, color=colour, linewidth=width, label=label, marker=marker)


# ---------------------------------------------------------------------------------------------- table


def write_table(runs: list[Run], curves: list[Curves], errors: list[dict[str, float]], out: Path) -> None:
    """table.csv and table.md: a line for each config, errors in per cent over its seeds (last checkpoints)."""
    header = (
        "config", "parameters", "seeds", "top1_mean", "top1_std", "top1_best", "top5_mean", "train_last_epoch_mean",
        "iterations",
    )  # fmt: skip
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        chosen = [index for index, run in enumerate(runs) if run.name == name]
        top1 = [100 * errors[index]["top1_error"] for index in chosen]
        top5 = [100 * errors[index]["top5_error"] for index in chosen]
        training = [100 * curves[index].last_epoch for index in chosen]
        net = load_classifier(runs[chosen[0]].folder / "last.pt", runs[chosen[0]].config.model).net
        length = read_json(runs[chosen[0]].folder / "metrics.json", "file of metrics")["iteration"]
        deviation = f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        rows.append((
            name, count_parameters(net)[0], len(chosen), f"{statistics.fmean(top1):.2f}", deviation,
            f"{min(top1):.2f}", f"{statistics.fmean(top5):.2f}", f"{statistics.fmean(training):.2f}", length,
        ))  # fmt: skip
    write_csv(out / "table.csv", header, rows)
    titles = "config", "parameters", "seeds", "error %: best (mean ± std)", "top-5 %", "training error %", "iterations"
    cells = []
    for name, parameters, seeds, mean, deviation, best, top5, training, length in rows:
        error = f"{best} ({mean} ± {deviation})" if deviation else mean  # as in the paper's Table 6
        cells.append([name, f"{parameters:,}", str(seeds), error, top5, training, f"{length:,}"])
    write_text(out / "table.md", markdown_table(titles, cells) + "\n")


# ---------------------------------------------------------------------------------------------- responses


def write_responses(runs: list[Run], data_root: Path, device: torch.device, out: Path) -> None:
    """responses.csv and responses.png of each config's first seed (He et al. 2016, Fig. 7)."""
    responses: dict[str, dict[str, float]] = {}
    sets: dict[str, Splits] = {}
    for name in dict.fromkeys(run.name for run in runs):
        run = next(run for run in runs if run.name == name)
        key = run.config.data.model_dump_json()
        sets[key] = sets.get(key) or build_splits(run.config.data, data_root)
        try:
            responses[name] = measure_responses(run, sets[key], device)
        except ValueError as error:
            print(f"{name}: no layer responses ({error})")
    if not responses:
        return
    rows = [
        (name, number, layer, f"{value:.6f}")
        for name, layers in responses.items()
        for number, (layer, value) in enumerate(layers.items(), 1)
    ]
    write_csv(out / "responses.csv", ("config", "layer_number", "layer", "standard_deviation"), rows)
    plain = {run.name: run.config.model.plain for run in runs}
    draw_responses({name: list(layers.values()) for name, layers in responses.items()}, plain, out / "responses.png")


def measure_responses(run: Run, splits: Splits, device: torch.device) -> dict[str, float]:
    """Layer -> standard deviation of its responses, with the run's last weights.

    Raises:
        ValueError: the net has no layers to measure.
    """
    member = load_classifier(run.folder / "last.pt", run.config.model)
    net, normalize = member.net.to(device), member.normalize.to(device)
    batches = centre_batches(spread(splits.train, RESPONSE_IMAGES), run.config.data, batch_size=100)
    return layer_responses(net, (normalize(batch.to(device).images) for batch in batches))


def draw_responses(responses: Mapping[str, Sequence[float]], plain: Mapping[str, bool], path: Path) -> None:
    """A picture of the responses of each net, layer by layer and sorted."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, sharey=True)
    for number, (name, values) in enumerate(responses.items()):
        style = "--" if plain[name] else "-"
        above.plot(range(1, len(values) + 1), values, style, color=f"C{number}", label=name)
        below.plot(range(1, len(values) + 1), sorted(values, reverse=True), style, color=f"C{number}", label=name)
    above.set(title="layer order", ylabel="standard deviation", ylim=(0, None))
    below.set(title="sorted by magnitude", ylabel="standard deviation", xlabel="3x3 layer")
    for axis in (above, below):
        axis.grid(alpha=0.3)
    above.legend(title="dashed: plain", fontsize="small", title_fontsize="small")
    save_figure(figure, path)


# ---------------------------------------------------------------------------------------------- files


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """A table, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def save_figure(figure: Figure, path: Path) -> None:
    """A picture, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
