"""Carries out an experiment's trainings, by the functions of the scripts, and the tests of its detectors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.experiments import TestedConfig
from configs.files import read_json
from configs.loading import load_config
from configs.localisation import LocalisationConfig
from datasets.build import Split
from detection.ensemble import load_ensemble
from tools import deepen, pretrain, test_det, train_det, train_loc
from tools.benchmarks import torchvision_training
from tools.runtime import start
from tools.runtime.distributed import say
from tools.runtime.evaluation import run_detector, score
from tools.runtime.experiments import Machine, Training, cpu_seconds, timed
from tools.runtime.results_page import look_up
from tools.runtime.run_folder import write_json
from tools.runtime.start import Job
from tools.runtime.training import place


def carry_out(training: Training, machine: Machine) -> None:
    """Train, go on with, or leave as it is.

    Raises:
        UserError: the folder holds the run of another config.
        Interrupted: asked to stop.
    """
    folder, config = training.folder, training.config
    asked = config.model_dump(mode="json")
    if training.weights is not None:  # the folder may have moved
        asked["model"]["weights"] = training.entry.starts_from
    known = folder / "experiment.json"
    if known.is_file() and read_json(known, "file of a config") != asked:
        raise UserError(f"{folder}: was made with another config or overrides: remove it, or choose another --out")

    def train(job: Job) -> None:
        make_start(training, machine)
        write_json(known, asked)
        with timed(folder, machine.commit):
            trainer_of(training)(config, job)

    start.carry_out(folder, train, device=machine.device, stop=machine.stop, data_root=machine.data_root)


def trainer_of(training: Training) -> Callable[[Any, Job], None]:
    if training.entry.trainer == "torchvision":
        return torchvision_training.train
    if isinstance(training.config, DetectionConfig):
        return train_det.train
    return train_loc.train if isinstance(training.config, LocalisationConfig) else pretrain.train


def make_start(training: Training, machine: Machine) -> None:
    """Deepen the net that the training starts from, where that is asked for and not done yet."""
    first, deeper = training.start, training.entry.deepen
    if first is None or deeper is None or training.weights is None or training.weights.is_file():
        return
    before, units = first.folder, [str(number) for number in deeper]
    words = ["--cfg", str(before / "config.yaml"), "--weights", str(before / "last.pt"), "--units", *units]
    words += ["--out", str(training.weights), "--data-root", str(machine.data_root)]
    deepen.main(deepen.make_parser().parse_args([*words, "--device", machine.device.type]))


# ---------------------------------------------------------------------------------------------- tests


def carry_out_test(test: TestedConfig, trainings: Sequence[Training], machine: Machine) -> list[dict[str, Any]]:
    """The entries of `tests` in the JSON file: one for each seed, or one for the ensemble of all.

    Where changes are chosen, the validation set chooses, with all seeds together, and the test set is not looked at.
    """
    of = [training for training in trainings if training.entry.name == test.run]
    groups = [of] if test.ensemble else [[training] for training in of]
    chosen: list[str] = []
    validated = {}
    if test.among:
        for changes in test.among:
            found = [_tested(group, [*test.overrides, *changes], "val", machine)["metrics"] for group in groups]
            validated[" ".join(changes) or "none"] = statistics.fmean(_number(each, test.by) for each in found)
        chosen = max(test.among, key=lambda changes: validated[" ".join(changes) or "none"])
    entries = []
    for group in groups:
        say(f"test {test.name}, seeds {', '.join(str(training.seed) for training in group)}")
        shared = {"name": test.name, "run": test.run, "seed": group[0].seed, "seeds": [each.seed for each in group]}
        choice = {"chosen": chosen, "chosen_by": test.by, "on_val": validated} if test.among else {}
        tested = _tested(group, [*test.overrides, *chosen], "test", machine)
        entries.append({**shared, "overrides": [*test.overrides, *chosen], **choice, **tested})
    return entries


def _number(metrics: dict[str, Any], path: str) -> float:
    value = look_up(metrics, path)
    if value is None:
        raise UserError(f"by: {path}: the validation's metrics have no such figure")
    return value


def _tested(group: Sequence[Training], overrides: Sequence[str], split: Split, machine: Machine) -> dict[str, Any]:
    """Metrics and CPU seconds an image of one detector, or of several as an ensemble."""
    first = group[0]
    seed = f"seed={first.seed}"
    config = load_config(first.folder / "config.yaml", [*overrides, seed], DetectionConfig)
    paths = [training.folder / "last.pt" for training in group]
    detectors = load_ensemble(paths)[0] if len(paths) > 1 else [test_det.load_one(paths[0], config)]
    dataset = test_det.load_split(config, split, machine.data_root, detectors[0].class_names, paths[0])
    for detector in detectors:
        place(detector, machine.device, channels_last=config.train.channels_last)
    before = cpu_seconds()
    outcome = run_detector(detectors, dataset, config, machine.device, what=split, test=config.test)
    seconds = (cpu_seconds() - before) / len(dataset)
    metrics = score(dataset.records, outcome.detections, config.metrics)
    return {"images": len(dataset), "cpu_seconds_an_image": round(seconds, 4), "metrics": metrics}
