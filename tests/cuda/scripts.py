"""The scripts on the CUDA runtime whose kernels do nothing, all in one process; a line of JSON for each.

SCRIPTS_FOLDER=DIR LD_PRELOAD=.../libruntime.so PYTORCH_NO_CUDA_MEMORY_CACHING=1 python tests/cuda/scripts.py [case ..]
SCRIPTS_FOLDER=DIR python tests/cuda/scripts.py [case ..]     # on a GPU

Without torch's cache all memory of the device is fresh, so that what kernels would have written is zeros: losses are
finite, and no object is found. What the scripts write is therefore not looked at beyond its form.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
warnings.filterwarnings("ignore")

import standins

standins.install()

import yaml

from detection.inference import Inference
from tests.tools.conftest import detector_values, tiny_classifier_values, write_tiny_voc
from tests.tools.made import localisation_values
from tools import predict, pretrain, test_det, test_loc, train_det, train_loc
from tools.runtime import checkpoint, evaluation, loop

calls: collections.Counter[str] = collections.Counter()
CASES: dict[str, Callable[[], dict[str, Any]]] = {}
WORK = Path(os.environ["SCRIPTS_FOLDER"])
write_report = evaluation.write_report
no_report = lambda folder, *_, **__: folder / "index.html"  # a second each; one case writes it
if standins.INSTEAD_OF_A_GPU:
    checkpoint._refuse_non_finite = lambda *_: None  # whether all values are finite, no kernel says


def case(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    CASES[function.__name__] = function
    return function


def run(script: Any, *options: object) -> str:
    """What the script prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        script.main(script.make_parser().parse_args([*map(str, options), "--device", "cuda"]))
    return out.getvalue()


def written(values: dict, name: str) -> Path:
    path = WORK / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in which a wait of the host is an error; but not in the first two calls, which make buffers."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        calls[function.__name__] += 1
        with standins.no_waits() if calls[function.__name__] > 2 else contextlib.nullcontext():
            return function(*arguments, **options)

    return call


loop._update = watched(loop._update)
Inference.forward = watched(Inference.forward)


def train(script: Any, values: dict, name: str, *options: object) -> dict[str, Any]:
    """A whole run, and how many updates it made."""
    calls.clear()
    printed = run(script, "--cfg", written(values, name), "--out", WORK / name, *options)
    return {"updates": calls["_update"], "printed": printed, "files": files(WORK / name)}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def detector() -> dict:
    """A config with all that a loop can do."""
    if not (WORK / "voc").exists():
        write_tiny_voc(WORK / "voc")
    values = detector_values(WORK / "voc")
    values["data"]["val"] = values["data"]["test"]
    values["data"] |= {"num_workers": 2, "padded_sizes": 2}
    stages = [{"units": 1, "width": 8, "stride": stride} for stride in (1, 2, 2, 2)]
    values["model"]["backbone"] = {"stem": {"kernel": 7, "width": 8, "stride": 2}, "stages": stages, "unit": "basic"}
    values["train"] |= {"validate_every": 2, "ema_decay": 0.9, "amp": "bf16", "accumulate": 2}
    return values


@case
def train_a_detector() -> dict[str, Any]:
    return train(train_det, detector(), "detector")


@case
def resume_it() -> dict[str, Any]:
    """With steps as CUDA graphs."""
    values = detector()
    values["schedule"]["iterations"] = 8
    values["train"]["graphs"] = True
    before = standins.counts()["graphs"]
    found = train(train_det, values, "detector", "--resume")
    return {**found, "graphs": standins.counts()["graphs"] - before}


@case
def test_it() -> dict[str, Any]:
    out = WORK / "tested"
    evaluation.write_report = write_report
    printed = run(
        test_det, "--cfg", written(detector(), "detector"), "--weights", WORK / "detector/last.pt", "--out", out
    )
    return {"printed": printed, "files": files(out)}


@case
def predict_with_it() -> dict[str, Any]:
    out = WORK / "predicted"
    printed = run(predict, "--weights", WORK / "detector/last.pt", WORK / "voc/JPEGImages", "--out", out)
    return {"printed": printed, "files": files(out)}


@case
def predict_with_an_ensemble() -> dict[str, Any]:
    out = WORK / "predicted_by_two"
    weights = [option for name in ("last.pt", "best.pt") for option in ("--weights", WORK / "detector" / name)]
    printed = run(
        predict, *weights, WORK / "voc/JPEGImages", "--out", out,
        "--set", "test.tta.hflip=true", "--set", "test.refine_rounds=1", "--set", "test.vote_iou=0.5",
    )  # fmt: skip
    return {"printed": printed, "files": files(out)}


@case
def train_in_phases() -> dict[str, Any]:
    values = detector()
    values["schedule"]["iterations"] = 3
    values["train"] |= {"alternating": {}, "validate_every": None}
    return train(train_det, values, "alternating")


@case
def pretrain_in_memory() -> dict[str, Any]:
    values = tiny_classifier_values(WORK / "images")
    values["train"] |= {"ema_decay": 0.9}
    return train(pretrain, values, "in_memory")


@case
def pretrain_from_files() -> dict[str, Any]:
    values = tiny_classifier_values(WORK / "more_images")
    values["data"] |= {"augment": {"crop": "random_resized", "lighting": 0.1}, "num_workers": 2, "test_resize": 14}
    values["train"] |= {"amp": "bf16"}
    return train(pretrain, values, "from_files")


@case
def train_a_localiser() -> dict[str, Any]:
    return train(train_loc, localisation_values(WORK / "localisation"), "loc_rpn")


@case
def train_its_second_stage() -> dict[str, Any]:
    values = localisation_values(WORK / "localisation_again")
    values["model"]["stage"] = "rcnn"
    values["model"]["rcnn"]["proposals"] = str(WORK / "loc_rpn/last.pt")
    return train(train_loc, values, "loc_rcnn")


@case
def test_the_localiser() -> dict[str, Any]:
    out = WORK / "localised"
    weights = ("--weights", WORK / "loc_rpn/last.pt", "--rcnn", WORK / "loc_rcnn/last.pt")
    printed = run(test_loc, "--cfg", WORK / "loc_rpn.yaml", *weights, "--out", out)
    return {"printed": printed, "files": files(out)}


def main() -> None:
    for name in sys.argv[1:] or CASES:
        start, before, evaluation.write_report = time.process_time(), standins.counts()["all"], no_report
        try:
            result = CASES[name]()
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)
            ours = [f"{Path(p.filename).name}:{p.lineno}" for p in places if Path(p.filename).is_relative_to(ROOT)]
            result = {"error": f"{type(error).__name__} at {' < '.join(ours[::-1][:5])}: {error}"}
        result |= {"launches": standins.counts()["all"] - before}
        print(json.dumps({"case": name, "seconds": time.process_time() - start, **result}), flush=True)


if __name__ == "__main__":
    main()
