"""Speed, side by side with torchvision's parts: what it costs, and that it is the same.

    python tools/benchmark.py count                               launches, host syncs, FLOPs; no GPU needed
    python tools/benchmark.py infer --case r101_c4_voc            detection
    python tools/benchmark.py train --batch-size 16 --amp bf16    training steps
    python tools/benchmark.py roofline                            the least time on an H200
    python tools/benchmark.py loader | eval | imagenet | cifar    loading, evaluators, classification
    python tools/benchmark.py suite --out results.json            everything, in at most eight minutes on a GPU

Both sides get the same weights and the same normalised, padded tensors. Outputs are compared first, and no ratio is
given if they differ. On the CPU times are process time, on one thread; on CUDA wall time around a synchronised call.
Needs torch, torchvision and numpy only; loader and eval need what they measure. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.benchmarks import substitutes

MISSING = substitutes.install()

from configs.errors import UserError
from tools.benchmarks.report import environment, print_comparison, print_result, read_report
from tools.runtime import cli

MODES = ("count", "infer", "train", "loader", "eval", "imagenet", "cifar", "roofline", "suite")
SUITE_SECONDS = 480
"""The suite starts nothing new after this."""


def main(args: argparse.Namespace) -> None:
    import torch

    device = cli.select_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report = {"environment": environment(device, MISSING), "results": {}}
    rows = suite(device, args) if args.mode == "suite" else [(args.mode, {})]
    started = time.perf_counter()
    for mode, changes in rows:
        options = argparse.Namespace(**{**vars(args), **changes})
        name = row_name(mode, options)
        if args.mode == "suite" and time.perf_counter() - started > SUITE_SECONDS:
            report["results"][name] = None
            continue
        try:
            report["results"][name] = run_mode(mode, options, device)
        except UserError as error:
            if args.mode != "suite":
                raise
            report["results"][name] = {"not_run": str(error)}
        print_result(name, report["results"][name])
    if args.compare:
        print_comparison(report["results"], read_report(args.compare)["results"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.out.with_name(args.out.name + ".part")
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, args.out)


def suite(device: Any, args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """All there is to measure: (mode, changes of the options). The most important first."""
    rows: list[tuple[str, dict[str, Any]]] = [("count", {"amp": "none"}), ("count", {"amp": "bf16"}), ("roofline", {})]
    if device.type == "cpu":
        few = {"repetitions": min(3, args.repetitions), "warmup": 1}
        rows += [("infer", few), ("train", few), ("infer", {**few, "amp": "bf16", "reference_amp": "none"})]
        return [*rows, ("loader", few), ("eval", {"reference": False}), ("cifar", few)]
    fast = {"amp": "bf16", "reference_amp": "bf16", "repetitions": 10, "warmup": 3}
    voc, coco = {**fast, "case": "r101_c4_voc"}, {**fast, "case": "r101_c4_coco"}
    return [
        *rows,
        ("train", {**voc, "batch_size": 16}),
        ("infer", {**voc, "batch_size": 1, "contestants": "ours,ours_compiled,torchvision"}),
        ("infer", {**voc, "batch_size": 16}),
        ("train", {**coco, "batch_size": 16}),
        ("train", {**fast, "case": "r101_fpn_coco", "batch_size": 16}),
        ("train", {**fast, "case": "vgg16_voc", "batch_size": 16}),
        ("imagenet", {**fast, "net": "resnet101", "batch_size": 256}),
        ("cifar", {**fast, "net": "cifar_resnet20", "batch_size": 128, "repetitions": 100}),
        ("cifar", {**fast, "net": "cifar_resnet110", "batch_size": 128, "repetitions": 50}),
        ("loader", {"repetitions": 3}),
        ("eval", {"reference": False}),
    ]


def run_mode(mode: str, args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """One row of the report.

    Raises:
        UserError: outputs differ, or something that the mode needs is missing.
    """
    from tools.benchmarks import detectors, others

    common = {"repetitions": args.repetitions, "warmup": args.warmup}
    if mode == "loader":
        return others.loader_mode(repetitions=args.repetitions)
    if mode == "eval":
        return others.eval_mode(reference=args.reference)
    if mode in ("imagenet", "cifar"):
        net = args.net or {"imagenet": "resnet101", "cifar": "cifar_resnet20"}[mode]
        size = args.batch_size or {"imagenet": 4, "cifar": 128}[mode]
        work = others.imagenet_mode if mode == "imagenet" else others.cifar_mode
        return work(net, device, batch_size=size, amp=args.amp, **common)
    case = find_case(args.case)
    if mode == "roofline":
        return detectors.roofline_mode(case, args.batch_size or 16)
    makers = detectors.select(args.contestants.split(","), find_plugins(args.plugin))
    if mode == "count":
        return detectors.count_mode(case, makers, args.amp)
    if device.type == "cpu" and args.amp == "bf16" and not detectors.has_bf16():
        raise UserError("--amp bf16: this processor has no bf16 instructions, so there is nothing to measure")
    amps = {"amp": args.amp, "reference_amp": args.reference_amp or args.amp}
    return detectors.compare_mode(mode, case, makers, device, batch_size=args.batch_size or 1, **amps, **common)


def find_case(name: str) -> Any:
    """A case by its name, or from a JSON file.

    The file holds {"model": section, "image_size": [H, W], "num_classes": K}, and "test": section where the thresholds
    are not the defaults.
    """
    from tools.benchmarks.cases import CASES, Case

    if name in CASES:
        return CASES[name]
    if not name.endswith(".json"):
        raise UserError(f"--case {name}: there are {', '.join(CASES)}; or give a JSON file")
    from pydantic import ValidationError

    from configs.detection import ModelConfig, TestConfig

    content = read_report(Path(name))
    try:
        test = TestConfig.model_validate(content.get("test", {}))
        case = Case(Path(name).stem, content["model"], tuple(content["image_size"]), content["num_classes"], test)
        ModelConfig.model_validate(case.section())
        return case
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--case {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except KeyError as error:
        raise UserError(f"--case {name}: {error} is missing: it needs model, image_size and num_classes") from None


def find_plugins(paths: list[Path]) -> dict[str, Any]:
    """The contestants of plug-in files, named after them."""
    from tools.benchmarks.contestants import load_plugin

    return {path.stem: load_plugin(path) for path in paths}


def row_name(mode: str, args: argparse.Namespace) -> str:
    """What a row is called in the report: the mode and what decides its figures."""
    if mode in ("loader", "eval"):
        return mode
    subject = (args.net or "") if mode in ("imagenet", "cifar") else args.case
    size = f"b{args.batch_size}" if args.batch_size else ""
    amp = "" if mode == "roofline" or args.amp == "none" else args.amp
    if amp and args.reference_amp == "none":
        amp += " against float32"
    return " ".join(part for part in (mode, subject, size, amp) if part)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True)
    add = parser.add_argument
    add("mode", choices=MODES, metavar="MODE", help=", ".join(MODES))
    add("--case", default="r101_c4_voc", help="detector and image size: a name (see cases.py) or a JSON file")
    add("--contestants", default="ours,torchvision", metavar="NAMES", help="who takes part (default: %(default)s)")
    add("--plugin", action="append", default=[], type=Path, metavar="FILE", help="another contestant: a Python file")
    add("--net", help="imagenet, cifar: the network (default: resnet101, cifar_resnet20)")
    add("--batch-size", type=int, default=0, help="default: 1; roofline 16, imagenet 4, cifar 128")
    add("--amp", choices=("none", "bf16"), default="none", help="precision of convolutions (default: %(default)s)")
    add("--reference-amp", choices=("none", "bf16"), help="of torchvision, where it is another")
    add("--repetitions", type=int, default=5)
    add("--warmup", type=int, default=1)
    add("--threads", type=int, default=1, help="on the CPU (default: 1)")
    add("--reference", action="store_true", help="eval: plain pycocotools beside it")
    add("--out", type=Path, metavar="FILE", help="write the report as JSON")
    add("--compare", type=Path, metavar="OLD", help="an earlier report to compare with")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
