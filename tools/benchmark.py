"""Speed, side by side with torchvision's parts: what it costs, and that it is the same.

    python tools/benchmark.py count                               launches, host syncs, FLOPs; no GPU needed
    python tools/benchmark.py infer --case r101_c4_voc            detection
    python tools/benchmark.py infer --weights W --exported a.onnx int8.xml      exported files, on the CPU
    python tools/benchmark.py train --batch-size 16 --amp bf16    training steps
    python tools/benchmark.py roofline                            the least time on an H200
    python tools/benchmark.py loader | eval | imagenet | cifar    loading, evaluators, classification
    python tools/benchmark.py records --scale .01                starting on large sets (at 1: 6 GB of disk)
    python tools/benchmark.py suite --out results.json            everything, in at most eight minutes (--seconds)

The suite runs each row in a process of its own and writes the report after each; a row that fails says why.
Both sides get the same weights and the same normalised, padded tensors. Outputs are compared first, and no ratio is
given if they differ. On the CPU times are process time, on one thread; on CUDA wall time around a synchronised call.
Needs torch, torchvision and numpy only; loader and eval need what they measure. See docs/performance.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.benchmarks import substitutes

MISSING = substitutes.install()

from configs.errors import UserError
from configs.files import read_json
from tools.benchmarks.report import environment, print_comparison, print_result, with_warnings, write_report
from tools.runtime import cli

MODES = ("count", "infer", "train", "loader", "eval", "imagenet", "cifar", "roofline", "records", "suite")
CONTESTANTS = "ours,torchvision"
_FAST = "--amp bf16 --repetitions 10 --warmup 3"
_FEW = "--repetitions 3 --warmup 1"
GPU_ROWS = (
    f"train --case r101_c4_voc --batch-size 16 {_FAST}",
    f"train --case r101_c4_voc --batch-size 4 --contestants ours_graphs,ours,torchvision {_FAST}",
    f"infer --case r101_c4_voc --batch-size 1 {_FAST}",
    f"infer --case r101_c4_voc --batch-size 16 {_FAST}",
    f"train --case r101_c4_coco --batch-size 16 {_FAST}",
    f"train --case r101_fpn_coco --batch-size 16 {_FAST}",
    f"train --case vgg16_voc --batch-size 16 {_FAST}",
    f"train --case r101_c4_voc --batch-size 16 --contestants ours_compiled,torchvision {_FAST}",
    f"infer --case r101_c4_voc --batch-size 1 --contestants ours_graphs,torchvision {_FAST}",
    f"infer --case r101_c4_voc --batch-size 1 --contestants ours_compiled,torchvision {_FAST}",
    f"imagenet --net resnet101 --batch-size 256 {_FAST}",
    "cifar --net cifar_resnet20 --batch-size 128 --amp bf16 --repetitions 100 --warmup 3",
    "cifar --net cifar_resnet110 --batch-size 128 --amp bf16 --repetitions 50 --warmup 3",
    "loader --repetitions 3",
    "eval",
    "roofline",
)
"""The suite's rows as command lines, the most important first."""
CPU_ROWS = (
    f"infer {_FEW}",
    f"train {_FEW}",
    f"infer --amp bf16 --reference-amp none {_FEW}",
    f"loader {_FEW}",
    "eval",
    f"cifar {_FEW}",
    "roofline",
)


def main(args: argparse.Namespace) -> None:
    import torch

    device = cli.select_device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    else:
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report: dict[str, Any] = {"environment": environment(device, MISSING), "results": {}}
    if args.mode == "suite":
        run_suite(args, report)
    else:
        name = row_name(args)
        report["results"][name] = with_warnings(lambda: run_mode(args.mode, args, device))
        print_result(name, report["results"][name])
    if args.compare:
        print_comparison(report["results"], read_json(args.compare, "report").get("results", {}))
    if args.out:
        write_report(args.out, report)


def run_suite(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Fill the report with every row that there is to measure; what there is is written after each."""
    from tools.benchmarks.processes import run_rows

    parser = make_parser()
    common = ["--device", args.device, "--threads", str(args.threads)]
    rows = {}
    for line in GPU_ROWS if cli.select_device(args.device).type == "cuda" else CPU_ROWS:
        arguments = [*line.split(), *common]
        rows[row_name(parser.parse_args(arguments))] = arguments

    def keep(name: str, result: dict[str, Any]) -> None:
        report["results"][name] = result
        if args.out:
            write_report(args.out, report)

    run_rows(rows, Path(__file__), seconds=args.seconds, keep=keep)


def run_mode(mode: str, args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """One row of the report.

    Raises:
        UserError: outputs differ, or something that the mode needs is missing.
    """
    from tools.benchmarks import detectors, others
    from tools.benchmarks.cases import find_case
    from tools.benchmarks.contestants import load_plugin

    common = {"repetitions": args.repetitions, "warmup": args.warmup}
    if mode == "loader":
        return others.loader_mode(repetitions=args.repetitions)
    if mode == "records":
        from tools.benchmarks.annotations import records_mode

        return records_mode(scale=args.scale)
    if mode == "eval":
        return others.eval_mode(reference=args.reference)
    if mode in ("imagenet", "cifar"):
        net = args.net or {"imagenet": "resnet101", "cifar": "cifar_resnet20"}[mode]
        size = args.batch_size or {"imagenet": 4, "cifar": 128}[mode]
        work = others.imagenet_mode if mode == "imagenet" else others.cifar_mode
        return work(net, device, batch_size=size, amp=args.amp, **common)
    case = find_case(args.case)
    if args.exported:
        from tools.benchmarks.exported import run_exported

        return run_exported(args, case, device)
    if mode == "roofline":
        return detectors.roofline_mode(case, args.batch_size or 16)
    makers = detectors.select(args.contestants.split(","), {path.stem: load_plugin(path) for path in args.plugin})
    if mode == "count":
        return detectors.count_mode(case, makers, args.amp)
    if device.type == "cpu" and args.amp == "bf16" and not detectors.has_bf16():
        raise UserError("--amp bf16: this processor has no bf16 instructions, so there is nothing to measure")
    amps = {"amp": args.amp, "reference_amp": args.reference_amp or args.amp}
    return detectors.compare_mode(mode, case, makers, device, batch_size=args.batch_size or 1, **amps, **common)


def row_name(args: argparse.Namespace) -> str:
    """What a row is called in the report: the mode and what decides its figures."""
    mode = args.mode
    if mode in ("loader", "eval", "records"):
        return mode
    subject = (args.net or "") if mode in ("imagenet", "cifar") else args.case
    size = f"b{args.batch_size}" if args.batch_size else ""
    amp = "" if mode == "roofline" or args.amp == "none" else args.amp
    if amp and args.reference_amp == "none":
        amp += " against float32"
    others = "" if args.contestants == CONTESTANTS else args.contestants
    if args.exported:
        subject = "/".join(Path(args.weights).parts[-2:]) if args.weights else args.case
        others = ",".join(Path(name).name for name in args.exported)
    return " ".join(part for part in (mode, subject, size, amp, others) if part)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, device=True)
    add = parser.add_argument
    add("mode", choices=MODES, metavar="MODE", help=", ".join(MODES))
    add("--case", default="r101_c4_voc", help="detector and image size: a name (see cases.py) or a JSON file")
    add("--contestants", default=CONTESTANTS, metavar="NAMES", help="who takes part (default: %(default)s)")
    add("--plugin", action="append", default=[], type=Path, metavar="FILE", help="another contestant: a Python file")
    add("--exported", nargs="+", default=[], metavar="FILE", help="infer: files of export.py; or onnx, openvino, ...")
    add("--weights", type=cli.weights_argument, metavar="W", help="infer: the checkpoint that the files were made of")
    add("--images", type=Path, metavar="DIR", help="infer --exported: photos (default: a made-up picture)")
    add("--net", help="imagenet, cifar: the network (default: resnet101, cifar_resnet20)")
    add("--batch-size", type=int, default=0, help="default: 1; roofline 16, imagenet 4, cifar 128")
    add("--amp", choices=("none", "bf16"), default="none", help="precision of convolutions (default: %(default)s)")
    add("--reference-amp", choices=("none", "bf16"), help="of torchvision, where it is another")
    add("--repetitions", type=int, default=5)
    add("--warmup", type=int, default=1)
    add("--threads", type=int, default=1, help="on the CPU (default: 1)")
    add("--seconds", type=float, default=480, help="suite: for all rows together (default: %(default)g)")
    add("--scale", type=float, default=1.0, help="records: of the sets' sizes (default: %(default)g)")
    add("--reference", action="store_true", help="eval: plain pycocotools beside it")
    add("--out", type=cli.output_file, metavar="FILE", help="write the report as JSON")
    add("--compare", type=Path, metavar="OLD", help="an earlier report to compare with")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
