"""Evaluate a detector's checkpoint on the test set of a config (on its validation set where it has no test set).

    python tools/test_det.py --cfg configs/demo.yaml --weights runs/demo/last.pt
    torchrun --nproc-per-node 8 tools/test_det.py --cfg configs/frcnn_r101_coco.yaml --weights last.pt --out results

    python tools/test_det.py --cfg my.yaml --weights runs/a/last.pt runs/b/last.pt --set test.refine_rounds=1
    python tools/test_det.py --cfg my.yaml --weights detector_int8.xml

`test` in the config switches on refinement, voting, multi-scale testing and test-time augmentation
(docs/improvements.md). Several weights are an ensemble: each member is built from its own stored config, --cfg gives
data and `test`. A file of tools/export.py is tested on the CPU as it is, with the thresholds that are in it.

Prints the table and writes metrics.json, detections.json, pictures, the report (report/index.html) and, for VOC sets,
comp4_det_test_<class>.txt; without annotations a submission file in place of metrics and report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from backbones.fetch import is_name
from backbones.weights import Preprocessing
from configs.detection import DetectionConfig
from configs.errors import UserError, counted, some
from configs.files import check_output, noting_written
from configs.loading import load_config
from datasets.build import Split, build_dataset, resolve_class_names
from datasets.detection import DetectionDataset
from detection.checkpoint import load_strictly, read_detector_file
from detection.compilation import compile_regions
from detection.ensemble import load_ensemble
from detection.evaluation.evaluate import format_table
from detection.exported import ExportedDetector, is_exported
from detection.model import Detector, build_detector
from tools.runtime import cli, distributed
from tools.runtime.distributed import say
from tools.runtime.earlier import earlier_results, remove
from tools.runtime.evaluation import run_detector, score, write_results
from tools.runtime.guards import why_zero
from tools.runtime.pictures import write_pictures
from tools.runtime.training import place


def main(args: argparse.Namespace) -> None:
    device = cli.select_device(args.device)
    with distributed.processes(device):
        test(args, device)


def test(args: argparse.Namespace, device: torch.device) -> None:
    """The whole evaluation, from the config to the files."""
    config = load_config(args.cfg, cli.config_overrides(args))
    data_root = cli.find_data_root(args.data_root)
    split: Split = args.split or ("test" if config.data.test else "val")
    if is_exported(args.weights[0]) and (args.compile or args.graphs):
        raise UserError("--compile and --graphs: are for checkpoints: an exported file runs as it is, on the CPU")
    detectors = load_tested(args.weights, config)
    folder = args.out or default_folder(args.weights)
    check_output(folder, is_folder=True)
    class_names = (detectors if isinstance(detectors, ExportedDetector) else detectors[0]).class_names
    dataset = distributed.main_first(lambda: load_split(config, split, data_root, class_names, args.weights[0]))
    if isinstance(detectors, ExportedDetector):
        device = torch.device("cpu")
    else:
        prepare(detectors, config, device, compiled=args.compile)

    outcome = run_detector(detectors, dataset, config, device, what=split, test=config.test, graphs=args.graphs)
    metrics = score(dataset.records, outcome.detections, config.metrics) if dataset.records.annotated else None
    if not distributed.is_main():
        return
    if metrics is not None:
        say(f"{split} set, {counted(len(dataset), 'image')}, {', '.join(str(path) for path in args.weights)}:\n")
        say(format_table(metrics))
        if reason := why_zero(metrics, outcome.detections.scores, config.test.score_thresh):
            say(f"\nwarning: {reason}")
    with noting_written() as written:
        files = write_results(folder, dataset.records, outcome.detections, metrics, report=not args.no_report)
        write_pictures(folder / "pictures", dataset.records, outcome.detections)
    remove(earlier_results(folder, written), folder)  # the pictures of another set would be taken for this one's
    say(f"\nresults   {', '.join(str(path) for path in files)}")
    say(f"pictures  {folder / 'pictures'} (all on one: {folder / 'pictures' / 'overview.png'})")


def load_tested(weights: list[Path | str], config: DetectionConfig) -> list[Detector] | ExportedDetector:
    """What the weights hold: one detector, the members of an ensemble, or an exported file."""
    exported = [path for path in weights if is_exported(path)]
    if exported and len(weights) > 1:
        raise UserError(f"--weights {exported[0]}: an exported file is tested alone: only checkpoints make an ensemble")
    if exported:
        found = ExportedDetector(Path(exported[0]), config.data)
        wanted = {"score": config.test.score_thresh, "detections_per_img": config.test.detections_per_img}
        if differing := {key: value for key, value in wanted.items() if found.thresholds[key] != value}:
            own = ", ".join(f"{key} {found.thresholds[key]} (the config's {value})" for key, value in differing.items())
            say(f"{exported[0]}: its own thresholds count: {own}")
        return found
    return load_ensemble(weights)[0] if len(weights) > 1 else [load_one(weights[0], config)]


def prepare(detectors: list[Detector], config: DetectionConfig, device: torch.device, *, compiled: bool) -> None:
    """Put detectors on the device, ready to be tested."""
    for detector in detectors:
        place(detector, device, channels_last=config.train.channels_last)
        if device.type == "cuda":  # on the CPU the numbers are those of the end of the training, digit for digit
            detector.optimize_for_inference(torch.bfloat16 if config.train.amp == "bf16" else torch.float32)
        if compiled:
            compile_regions(detector)


def default_folder(weights: list[Path | str]) -> Path:
    """Where results go without --out: beside the (first) weights; for a name of the zoo, into runs/."""
    first = Path(weights[0])
    parent = Path("runs") if is_name(weights[0]) else first.parent
    if is_exported(first):  # a detector's files of several formats differ in the end alone
        return parent / f"test_{first.stem}_{first.suffix[1:]}"
    return parent / (f"test_{first.stem}" if len(weights) == 1 else "test_ensemble")


def load_one(path: Path | str, config: DetectionConfig) -> Detector:
    """The detector that the config describes, with a checkpoint's weights and classes."""
    checkpoint = read_detector_file(path)
    preprocessing = Preprocessing.from_dict(checkpoint["preprocessing"])
    class_names = list(checkpoint["class_names"])
    detector = build_detector(config.model, class_names, test=config.test, preprocessing=preprocessing)
    load_strictly(detector, checkpoint["model"], path)
    say_other_size(path, checkpoint["config"].get("data", {}), config)
    return detector


def say_other_size(path: Path | str, trained: Mapping[str, Any], config: DetectionConfig) -> None:
    """Warn where a checkpoint's config, whose `data` is `trained`, has another size of images at test."""
    sizes = {name: getattr(config.data, name) for name in ("test_min_size", "test_max_size")}
    other = [f"{name} {trained[name]}, not {size}" for name, size in sizes.items() if trained.get(name, size) != size]
    if other:
        say(f"warning: {path} comes from a training with {', '.join(other)}: give its run's config.yaml as --cfg")


def load_split(
    config: DetectionConfig, split: Split, data_root: Path, class_names: list[str], weights: Path | str
) -> DetectionDataset:
    """The data set with the checkpoint's labels.

    Raises:
        UserError: its classes are others than the checkpoint's; names them.
    """
    if not getattr(config.data, split):
        raise UserError(f"data.{split}: the config lists no source to evaluate on")
    if config.data.classes != "auto":  # auto takes the checkpoint's names, and the reader refuses all others
        names = resolve_class_names(config.data, data_root)
        unknown, absent = sorted(set(names) - set(class_names)), sorted(set(class_names) - set(names))
        if unknown or absent:
            parts = [f"the data has {some(unknown)}, which the weights lack"] if unknown else []
            parts += [f"the weights have {some(absent)}, which the data lacks"] if absent else []
            raise UserError(f"{weights}: other classes than the data's: {'; '.join(parts)}: see data.classes")
    return build_dataset(config.data, split, data_root, seed=config.seed, class_names=class_names)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, config=True, data_root=True, device=True, seed=True)
    parser.add_argument(
        "--weights", required=True, nargs="+", type=cli.weights_argument, metavar="W",
        help="last.pt or best.pt of a run, a name of docs/zoo.md, or a file of export.py; several: an ensemble",
    )  # fmt: skip
    parser.add_argument("--split", choices=("test", "val"), help="default: test, where the config has it, else val")
    parser.add_argument(
        "--out", type=cli.place, metavar="DIR",
        help="folder of the results (default: test_<name> or test_ensemble beside the (first) weights, or in runs/)",
    )  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="torch.compile for the static regions")
    parser.add_argument(
        "--graphs", action="store_true", help="on a GPU, launch a batch as one CUDA graph for each padded size"
    )
    parser.add_argument("--no-report", action="store_true", help="do without report/index.html")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
