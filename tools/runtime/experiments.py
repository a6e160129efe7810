"""An experiment's trainings, the time they take, and the JSON file of everything that they measured."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.experiments import ExperimentConfig, TrainedConfig
from configs.files import read_json, read_text, write_text
from configs.loading import load_config, parse_yaml
from configs.localisation import LocalisationConfig
from datasets.classification import build_splits
from tools.runtime import cli
from tools.runtime.distributed import say
from tools.runtime.run_folder import write_json
from tools.runtime.start import is_finished
from tools.runtime.study import Run, measure_responses, read_curves, thinned

CURVE_POINTS = 60
"""A training curve is kept with so many points, at most."""


@dataclass(frozen=True)
class Training:
    """One entry of an experiment with one seed."""

    entry: TrainedConfig
    seed: int
    overrides: list[str]
    """The whole experiment's and the entry's, without seed and weights."""
    config: BaseModel
    """With seed and weights."""
    folder: Path
    start: Training | None
    """The finished training that it starts from."""
    weights: Path | None
    """Its checkpoint, or the deeper net that is made of it."""

    @property
    def finished(self) -> bool:
        return is_finished(self.folder)


@dataclass(frozen=True)
class Machine:
    device: torch.device
    data_root: Path
    stop: cli.StopRequest
    commit: str | None
    """The checkout's."""


def plan(experiment: ExperimentConfig, configs: Path, out: Path) -> list[Training]:
    """The trainings of an experiment in their order.

    Args:
        experiment: checked.
        configs: the folder of the configs that it names.
        out: the folder of the runs: <out>/<name of an entry>/seed<N>.

    Raises:
        UserError: a config is missing, or does not fit its schema with the changes.
    """
    trainings: list[Training] = []
    for entry in experiment.runs:
        cfg = configs / f"{entry.config}.yaml"
        schema = schema_of(cfg)
        if entry.trainer != "ours" and schema is not DetectionConfig:
            raise UserError(f"{entry.name}: trainer: {entry.trainer} trains detectors: {cfg} is none")
        earlier = [each for each in trainings if each.entry.name == entry.starts_from]
        if earlier and not isinstance(earlier[0].config, ClassificationConfig):
            raise UserError(
                f"{entry.name}: starts_from: {entry.starts_from} trains no classifier, and all start from one"
            )
        overrides = [*experiment.overrides, *entry.overrides]
        for seed in entry.seeds or experiment.seeds:
            start = next((each for each in earlier if each.seed == seed), earlier[0] if earlier else None)
            changes, weights = [*overrides, f"seed={seed}"], None
            if start is not None:
                deeper = out / entry.name / f"start_seed{seed}.pt"
                weights = start.folder / "last.pt" if entry.deepen is None else deeper
                changes.append(f"model.weights={cli.absolute(str(weights))}")
            config = load_config(cfg, changes, schema)
            trainings.append(Training(entry, seed, overrides, config, out / entry.name / f"seed{seed}", start, weights))
    for test in experiment.tests:
        of = next(training for training in trainings if training.entry.name == test.run)
        if not isinstance(of.config, DetectionConfig) or of.entry.trainer != "ours":
            raise UserError(f"{test.name}: run {test.run} trains no detector of this project")
    return trainings


def schema_of(cfg: Path) -> type[BaseModel]:
    """The class that checks a config: a detector's, a localiser's or a classifier's.

    Raises:
        UserError: there is no such file.
    """
    values = parse_yaml(read_text(cfg, "config file"), str(cfg))
    model = values.get("model") if isinstance(values, dict) else None
    keys = model.keys() if isinstance(model, dict) else ()
    return DetectionConfig if "box" in keys else LocalisationConfig if "stage" in keys else ClassificationConfig


# ---------------------------------------------------------------------------------------------- time


@contextmanager
def timed(folder: Path, commit: str | None) -> Iterator[None]:
    """Adds the time within this context to the folder's time.json, however it ends.

    `sessions` greater than `ended`: a session was killed, and its time is not in the sums.
    """
    path = folder / "time.json"
    values = {"cpu_seconds": 0.0, "wall_seconds": 0.0, "sessions": 0, "ended": 0, "commit": commit}
    if path.is_file():
        values.update(read_json(path, "file of times"))
    values["sessions"] += 1
    write_json(path, values)
    cpu, wall = cpu_seconds(), time.perf_counter()
    try:
        yield
    finally:
        values["cpu_seconds"] += cpu_seconds() - cpu
        values["wall_seconds"] += time.perf_counter() - wall
        values["ended"] += 1
        write_json(path, {**values, "commit": commit})


def cpu_seconds() -> float:
    """CPU time of this process and of the workers that it has ended, seconds."""
    return sum(os.times()[:4])


# ---------------------------------------------------------------------------------------------- figures


def figures_of(training: Training, machine: Machine, *, responses: bool) -> dict[str, Any]:
    """What a finished training has come to: an entry of `runs` in the experiment's JSON file."""
    entry = training.entry
    spent = read_json(training.folder / "time.json", "file of times")
    figures = {
        "name": entry.name,
        "config": entry.config,
        "overrides": training.overrides,
        "trainer": entry.trainer,
        "starts_from": entry.starts_from,
        "seed": training.seed,
        "commit": spent["commit"],
        "cpu_seconds": round(spent["cpu_seconds"], 1),
        "wall_seconds": round(spent["wall_seconds"], 1),
        "sessions": spent["sessions"],
        "time_is_whole": spent["sessions"] == spent["ended"],
        "metrics": read_json(training.folder / "metrics.json", "file of metrics"),
    }
    if isinstance(training.config, ClassificationConfig):
        run = Run(entry.name, training.seed, training.config, training.folder)
        curves = read_curves(run)
        figures["plain"] = training.config.model.plain
        figures["train_error"] = curves.last_epoch
        pairs = {"train": thinned(curves.train, CURVE_POINTS), run.measured: curves.test}
        figures["curves"] = {split: _columns(curve) for split, curve in pairs.items()}
        if responses:
            try:
                measured = measure_responses(run, build_splits(training.config.data, machine.data_root), machine.device)
                figures["responses"] = [round(value, 5) for value in measured.values()]
                figures["mean_response"] = statistics.fmean(measured.values())
            except ValueError as error:
                say(f"{training.folder}: no layer responses ({error})")
    return figures


def _columns(curve: Sequence[tuple[int, float]]) -> dict[str, list[float]]:
    return {"iteration": [point[0] for point in curve], "error": [round(point[1], 5) for point in curve]}


# ---------------------------------------------------------------------------------------------- the file


def write_results(path: Path, content: dict[str, Any]) -> None:
    """The JSON file of an experiment, lists of plain values in one line each."""
    write_json(path, content)
    text = path.read_text(encoding="utf-8")
    plain = re.compile(r"\[\s+([^\[\]{}\"]*?)\s+\]")
    write_text(path, plain.sub(lambda match: f"[{' '.join(match[1].split())}]", text))
