"""tools/benchmark.py: that what it compares is equal, that it refuses what is not, and its arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.detection import ModelConfig, TestConfig
from configs.errors import UserError
from tools import benchmark
from tools.benchmarks import checks, report
from tools.benchmarks.cases import CASES, Case, make_inputs
from tools.benchmarks.contestants import Ours, Torchvision, load_plugin, random_weights
from tools.benchmarks.plugins import detectron2_c4

CPU = torch.device("cpu")
TINY = CASES["tiny"]
SIDES = {"ours": Ours, "torchvision": Torchvision}

WITHOUT_PACKAGES = """
import sys
class Blocked:
    names = {"pydantic", "safetensors", "cv2", "albumentations", "yaml", "pycocotools", "matplotlib", "tqdm",
             "hotcoco", "rich", "tensorboard", "defusedxml"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in Blocked.names else found(name, *rest)
sys.meta_path.insert(0, Blocked())
import runpy
sys.argv = ["benchmark.py", *sys.argv[1:]]
runpy.run_path(%r, run_name="__main__")
"""

PLUGIN = """
from tools.benchmarks.contestants import Ours

class Contestant(Ours):
    def detect(self, inputs):
        return [(boxes + %s, scores, labels) for boxes, scores, labels in super().detect(inputs)]
"""


def test_runs_with_torch_torchvision_and_numpy_alone(root: Path, tmp_path: Path):
    """And writes a report that it can compare with."""
    out = tmp_path / "new" / "report.json"
    code = WITHOUT_PACKAGES % str(root / "tools" / "benchmark.py")
    options = ["infer", "--case", "tiny", "--repetitions", "2", "--device", "cpu", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {"versions", "device", "threads", "commit"} <= report["environment"].keys()
    assert report["environment"]["stand_ins"] == ["pydantic", "safetensors"]
    row = report["results"]["infer tiny"]
    assert row["equal_detections"] >= 0.99
    ratio = row["seconds"]["ours"]["ratio"]
    assert 0 < ratio["q1"] <= ratio["median"] <= ratio["q3"]


@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("r101_fpn_coco", "vgg16_voc"))]
)
def test_both_sides_train_and_detect_alike(name):
    """Losses of two steps, so gradients too; detections. At a small size, every neck and head."""
    case = CASES[name].small()
    if name != "tiny":
        backbone = {"r101_fpn_coco": "resnet50", "vgg16_voc": "vgg16"}[name]
        case = type(case)(name, {**case.model, "backbone": backbone}, (64, 96), 5).with_box(fc_width=64)
    losses = checks.check_training(case, SIDES, "torchvision", CPU)
    assert len(losses) == 2
    assert max(losses.values()) < checks.LOSS_TOLERANCE
    assert checks.check_inference(case, SIDES, "torchvision", CPU)["equal_detections"] >= checks.EQUAL_SHARE


def test_a_ratio_is_refused_where_outputs_differ(tmp_path):
    wrong, right = tmp_path / "wrong.py", tmp_path / "right.py"
    wrong.write_text(PLUGIN % 3.0)
    right.write_text(PLUGIN % 0.0)
    makers = {"torchvision": Torchvision, "right": load_plugin(right)}
    assert checks.check_inference(TINY, makers, "torchvision", CPU)["equal_detections"] >= 0.99
    makers["wrong"] = load_plugin(wrong)
    with pytest.raises(UserError, match="no ratio: of the detections of wrong and torchvision only"):
        checks.check_inference(TINY, makers, "torchvision", CPU)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="defines no class Contestant"):
        load_plugin(tmp_path / "empty.py")
    (tmp_path / "plugin.txt").write_text("")
    with pytest.raises(UserError, match=r"its name must end in \.py"):
        load_plugin(tmp_path / "plugin.txt")


def test_a_loss_that_differs_is_named():
    class Wrong(Ours):
        def losses(self, inputs):
            losses = super().losses(inputs)
            return losses | {"loss_box_reg": losses["loss_box_reg"] * 1.01}

    with pytest.raises(UserError, match="no ratio: loss_box_reg of step 1 is"):
        checks.check_training(TINY, {"ours": Ours, "wrong": Wrong}, "ours", CPU)


@pytest.mark.slow
def test_what_is_further_off_in_bf16_than_the_reference_itself_is_refused(monkeypatch):
    """Equal in float32, and noise in bf16 in place of rounding."""
    report = checks.check_inference(TINY, SIDES, "torchvision", CPU, "bf16")
    assert report["equal_detections"] >= 0.99
    assert 0.5 < report["resembling_detections_in_bf16"] <= 1
    report = checks.check_training(TINY, SIDES, "torchvision", CPU, "bf16")
    assert report["largest_loss_difference"] < 1e-3 < report["largest_loss_difference_in_bf16"]

    class Sloppy(Ours):
        def detect(self, inputs):
            found = super().detect(inputs)
            return found if self.amp == "none" else [(b, s, k % 20 + 1) for b, s, k in found]

        def losses(self, inputs):
            factor = 1.0 if self.amp == "none" else 1.3
            return {name: factor * loss for name, loss in super().losses(inputs).items()}

    sides = {"torchvision": Torchvision, "sloppy": Sloppy}
    with pytest.raises(UserError, match=r"no ratio: of the detections of sloppy in bf16 .* resemble those of torchv"):
        checks.check_inference(TINY, sides, "torchvision", CPU, "bf16")
    with pytest.raises(UserError, match=r"with sloppy and .* with torchvision in float32 \(its own in bf16"):
        checks.check_training(TINY, sides, "torchvision", CPU, "bf16")


def test_plug_in_around_detectron2():
    """Renaming loses nothing: each value arrives once, anchors and classes in detectron2's order."""
    model = ModelConfig.model_validate(CASES["r101_c4_voc"].section())
    assert detectron2_c4.anchor_order(model).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]  # ours: ratio * 3 + size
    weights = {
        "backbone.body.layer1.0.downsample.1.running_var": torch.zeros(4),
        "backbone.body.layer3.22.bn3.weight": torch.ones(4),
        "rpn.head.bbox_pred.bias": torch.arange(36.0),
        "roi_heads.box_predictor.cls_score.bias": torch.arange(4.0),
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(16.0),
    }
    renamed = detectron2_c4.rename(weights, detectron2_c4.anchor_order(model))
    assert list(renamed) == [
        "backbone.res2.0.shortcut.norm.running_var",
        "backbone.res4.22.conv3.norm.weight",
        "proposal_generator.rpn_head.anchor_deltas.bias",
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.bbox_pred.bias",
    ]
    values = list(renamed.values())
    assert values[2].tolist()[:8] == [0, 1, 2, 3, 12, 13, 14, 15]
    assert values[3].tolist() == [1, 2, 3, 0]  # the background last
    assert values[4].tolist() == list(range(4, 16))  # and no box for it


@pytest.mark.slow
def test_detectron2_computes_the_same():
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    makers = {"ours": Ours, "detectron2_c4": detectron2_c4.Contestant}
    assert checks.check_inference(TINY, makers, "detectron2_c4", CPU)["equal_detections"] >= 0.99
    assert max(checks.check_training(TINY, makers, "detectron2_c4", CPU).values()) < checks.LOSS_TOLERANCE


def test_bf16_resembles_float32():
    weights, inputs = random_weights(TINY), make_inputs(TINY, 2, CPU)
    exact, low = (Ours(TINY, weights, CPU, amp, False).detect(inputs) for amp in ("none", "bf16"))
    assert checks.resemblance(low, exact) > 0.8
    assert checks.resemblance(exact, exact) == 1
    assert checks.agreement(exact, [(b + 1, s, k) for b, s, k in exact], 0.5, 1e-3) < 0.5


def test_comparison_with_an_old_report(capsys):
    old = {"row": {"launches": 100, "seconds": {"ours": {"cpu": {"median": 2.0, "q1": 1.0}}}}}
    new = {"row": {"launches": 100, "seconds": {"ours": {"cpu": {"median": 1.0, "q1": 0.5}}}}, "other": None}
    report.print_comparison(new, old)
    shown = capsys.readouterr().out
    assert "row: seconds.ours.cpu.median 2 -> 1 (0.500)" in shown
    assert "launches" not in shown
    assert "q1" not in shown


def test_cases_from_files(tmp_path):
    """The model, the sizes and the thresholds; a key in the wrong place is told in one line."""
    content = {"model": TINY.model, "image_size": [64, 96], "num_classes": 5, "test": {"nms_thresh": 0.2}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert benchmark.find_case(str(path)) == Case("mine", TINY.model, (64, 96), 5, TestConfig(nms_thresh=0.2))
    path.write_text(json.dumps(content | {"model": TINY.model | {"box": {"nms_thresh": 0.2}}}))
    with pytest.raises(UserError, match=r"--case .*mine\.json: box\.nms_thresh: Extra inputs are not permitted$"):
        benchmark.find_case(str(path))
    path.write_text(json.dumps({"model": TINY.model}))
    with pytest.raises(UserError, match="'image_size' is missing: it needs model, image_size and num_classes"):
        benchmark.find_case(str(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["infer", "--case", "nothing"], "there are r101_c4_voc"),
        (["infer", "--case", "nothing.json"], "cannot be read as JSON"),
        (["train", "--plugin", "nowhere.py"], "there is no such file"),
        (["train", "--contestants", "ours,detectron2"], "--contestants detectron2: there are ours, ours_compiled"),
        (["imagenet", "--net", "resnet19"], "torchvision has no such net"),
    ],
)
def test_mistakes(options, message, capsys):
    args = benchmark.make_parser().parse_args([*options, "--device", "cpu"])
    with pytest.raises(UserError, match=message):
        benchmark.main(args)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["count", "roofline", "loader", "eval", "cifar", "imagenet"])
def test_every_mode_runs(mode, tmp_path):
    out = tmp_path / "report.json"
    options = [mode, "--device", "cpu", "--repetitions", "1", "--case", "tiny", "--batch-size", "2", "--out", str(out)]
    benchmark.main(benchmark.make_parser().parse_args(options))
    (row,) = json.loads(out.read_text())["results"].values()
    assert report.flatten(row)


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_training_step_passes_cudas_sync_detector(amp):
    from tools.benchmarks.detectors import runs_without_syncs

    device = torch.device("cuda")
    contestant = Ours(TINY, random_weights(TINY), device, amp, True)
    inputs = make_inputs(TINY, 2, device)
    contestant.train_step(inputs)
    assert runs_without_syncs(lambda: contestant.train_step(inputs)) is True


@pytest.mark.gpu
def test_outputs_equal_torchvisions_on_cuda():
    from tools.benchmarks.detectors import exact_float32

    with exact_float32():
        checks.check_training(TINY, SIDES, "torchvision", torch.device("cuda"))
        checks.check_inference(TINY, SIDES, "torchvision", torch.device("cuda"))
