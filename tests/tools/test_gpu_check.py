"""tools/gpu_check.py: all that a machine without a GPU can show of it, at tiny sizes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from configs.errors import UserError
from tools import gpu_check
from tools.benchmarks import gpu, kernels, report
from tools.benchmarks.gpu_report import markdown
from tools.benchmarks.processes import environment_variables, install_wheels
from tools.runtime import cli

CPU = torch.device("cpu")
MACHINE = {"device": "one", "versions": {"torch": "2"}, "missing": "nothing"}


def arguments(*options: str) -> Any:
    return gpu_check.make_parser().parse_args(["--device", "cpu", *options])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(gpu_check.main, gpu_check.make_parser())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA device" in line


# ---------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_kernels_are_compared_with_torchvisions(name):
    """On inputs that mean something: a result of zeros would equal any other."""
    kernel = kernels.KERNELS[name](CPU, True)
    result = kernel.ours(*kernel.inputs)
    assert (result != 0).float().mean() > 0.05
    assert len(result.unique()) > 5
    row = kernels.kernel_row(name, CPU, tiny=True)
    assert row["difference_from_oracle"] == 0  # it is the oracle
    assert row["difference_from_torchvision"] <= (1e-5 if result.is_floating_point() else 0)
    assert row["bandwidth"] * row["seconds"]["ours"]["wall"]["median"] == pytest.approx(row["bytes"])


def test_a_wrong_kernel_gets_no_time(monkeypatch):
    right = kernels.KERNELS["bias_relu"](CPU, True)
    factors = iter([1.0, 1.01])
    wrong = right._replace(ours=lambda *inputs: right.ours(*inputs) * next(factors))
    monkeypatch.setitem(kernels.KERNELS, "bias_relu", lambda device, small: wrong)
    with pytest.raises(UserError, match=r"^bias_relu: no time, for it is off the CPU's operator by 0\.0099"):
        kernels.kernel_row("bias_relu", CPU, tiny=True)
    kernels.check("bf16 rounds", 0.01, torch.bfloat16)
    for difference, dtype in ((1e-6, torch.int64), (0.01, torch.float32), (float("nan"), torch.bfloat16)):
        with pytest.raises(UserError, match="no time"):
            kernels.check("wrong", difference, dtype)


# ---------------------------------------------------------------------------------------------- tests, training


def test_results_of_pytest(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'they differ'\n"
        "def test_c(): pytest.skip('no')\n@pytest.fixture\ndef broken(): raise OSError('gone')\n"
        "def test_d(broken): pass\n"
    )
    out = tmp_path / "out.xml"
    pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), f"--junitxml={out}", str(path)])
    found = gpu.read_results(out)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert list(found["failures"]) == ["test_b", "test_d"]
    assert found["failures"]["test_b"].startswith("AssertionError: they differ")


def test_files_with_gpu_tests_are_found():
    assert {"tests/detection/test_nms.py", "tests/detection/test_roi_align.py"} <= set(gpu.test_files(tiny=False))


def test_a_profile_by_kernel():
    def event(name, device, start, end, **options):
        return FunctionEvent(0, name, 0, start, end, device_type=device, **options)

    events = [
        event("aten::conv2d", DeviceType.CPU, 0.0, 900.0),
        event("gemm", DeviceType.CUDA, 0.0, 300.0),
        event("copy", DeviceType.CUDA, 300.0, 400.0),
        event("gemm", DeviceType.CUDA, 400.0, 700.0),
        event("a step", DeviceType.CUDA, 0.0, 700.0, is_user_annotation=True),
    ]
    rows = gpu.by_kernel(events, steps=2, device_type="cuda")
    assert gpu.by_kernel(events[:1], steps=2, device_type="cuda") == []
    assert rows == [
        {"name": "gemm", "calls": 1.0, "ms": 0.3, "share": pytest.approx(6 / 7)},
        {"name": "copy", "calls": 0.5, "ms": 0.05, "share": pytest.approx(1 / 7)},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frcnn_r101_voc", "frcnn_r101_fpn_coco_modern"])
def test_losses_fall(name):
    row = gpu.training_row(name, (64, 96), CPU, tiny=True)
    assert row["steps"] == 10
    assert row["loss_falls"] is True
    assert row["ms_per_step"] * row["images_per_second"] == pytest.approx(2000)


# ---------------------------------------------------------------------------------------------- the report


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The rows that were run, in the place of their processes; `roi_align` fails the first time."""
    ran: list[str] = []

    def run_rows(rows, script, *, seconds, keep, env):
        for name in rows:
            ran.append(name)
            keep(name, {"not_run": "a | crash"} if name == "roi_align" and ran.count(name) == 1 else row_of(name))

    monkeypatch.setattr(gpu_check, "run_rows", run_rows)
    monkeypatch.setattr(gpu_check, "run_row", lambda *_: dict(MACHINE))
    return ran


def row_of(name: str) -> dict[str, Any]:
    clocks = {"wall": {"median": 2e-3}, "device": {"median": 1e-3}}
    ratio = {"ratio": {"median": 0.5, "q1": 0.4, "q3": 0.6}}
    return {
        "seconds": {"ours": clocks | ratio, "torchvision": clocks}, "bandwidth": 2e12, "share_of_copy": 0.7,
        "difference_from_oracle": 0.0, "difference_from_torchvision": 0.001,
    }  # fmt: skip


def test_a_later_call_does_what_is_missing_or_failed(calls, tmp_path):
    options = ("--tiny", "--stage", "c", "--out", str(tmp_path))
    with pytest.raises(UserError, match=r"says why these did not run, or failed: kernels/roi_align$"):
        gpu_check.main(arguments(*options))
    assert calls == list(kernels.KERNELS)
    table = (tmp_path / "report.md").read_text()
    assert "| nms | 1000 | 1000 | ours 0.50 (0.40 to 0.60) | 2000 | 70 % | 0.0e+00 | 1.0e-03 |" in table
    assert "| roi_align | not run: a \\| crash |  |" in table
    gpu_check.main(arguments(*options))
    assert calls[len(kernels.KERNELS) :] == ["roi_align"]
    gpu_check.main(arguments(*options, "--again"))
    assert calls[len(kernels.KERNELS) + 1 :] == list(kernels.KERNELS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["stages"]) == ["kernels"]
    assert "commit" in report["stages"]["kernels"]["nms"]
    with pytest.raises(UserError, match=r"report of another size \(--tiny\): give another --out"):
        gpu_check.main(arguments("--stage", "c", "--out", str(tmp_path)))


def test_rows_of_two_machines_do_not_share_a_report(calls, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"environment": {**MACHINE, "device": "two"}, "stages": {}}))
    with pytest.raises(UserError, match="is a report of another device: give another --out"):
        gpu_check.main(arguments("--out", str(tmp_path)))
    assert not calls


@pytest.mark.parametrize(
    ("row", "bad"),
    [
        ({"not_run": "why"}, True),
        ({"failed": 1, "passed": 9}, True),
        ({"failed": 0, "passed": 9}, False),
        ({"loss_falls": False}, True),
        ({"loss_falls": True, "sync_free": True}, False),
        ({"loss_falls": True, "sync_free": True, "warnings": "the training step is no CUDA graph"}, True),
        ({"loss_falls": True, "sync_free": "called a synchronizing CUDA operation"}, True),
    ],
)
def test_what_counts_as_failed(row, bad):
    assert gpu_check.failed(row) is bad


def test_a_row_keeps_what_was_warned_of(capsys):
    """A step that falls back is not what its row is called; others' warnings say nothing about it."""

    def make(names):
        for name in names:
            logging.getLogger(name).warning("%s fell back", name)
        return {"ms": 1}

    names = ["backbones.compilation", "urllib3", "detection", "detection"]
    assert report.with_warnings(lambda: make(names)) == {
        "ms": 1,
        "warnings": "backbones.compilation fell back; detection fell back",
    }
    assert "urllib3 fell back" in capsys.readouterr().err
    assert report.with_warnings(lambda: make(["torch"])) == {"ms": 1}
    assert not any(isinstance(handler, report._Warnings) for handler in logging.getLogger().handlers)


def test_tables_of_training_tests_and_profiles():
    training = {
        "batch_size": 16, "ms_per_step": 51.26, "images_per_second": 312.1, "busy": 0.934, "memory_gib": 31.25,
        "reserved_gib": 40.0, "warnings": "no graph",
        "loss_first": 9.0, "loss_last": 1.5, "steps": 50, "sync_free": "waited",
    }  # fmt: skip
    text = markdown(
        {
            "environment": MACHINE,
            "stages": {
                "tests": {"tests/a.py": {"passed": 3, "failed": 1, "skipped": 0, "failures": {"test_b": "no"}}},
                "training": {"one": training},
                "profile": {"one": {"kernels": [{"name": "gemm", "calls": 12.0, "ms": 3.5, "share": 0.5}]}},
                "suite": {"train": {**row_of("x"), "busy": {"ours": 0.9}, "share_of_roofline": 0.4}, "eval": {}},
            },
        }
    )
    assert "| tests/a.py | 3 | 1 | 0 | test_b: no |" in text
    assert "| one (no graph) | 16 | 51.3 | 312.1 | 93 % | 31.2 | 40.0 | 9 -> 1.5 in 50 steps | no: waited |" in text
    assert "| gemm | 12 | 3.5 | 50 % |" in text
    assert "| train | ours 0.50 (0.40 to 0.60) | 40 % | ours 90 % |  |" in text


# ---------------------------------------------------------------------------------------------- wheels, all of it


def test_wheels_come_from_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"there is no \.whl file"):
        install_wheels(tmp_path, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "some_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_thing.py", "VALUE = 7\n")
        wheel.writestr("some_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("some_thing-1.0.dist-info/WHEEL", tags)
        wheel.writestr("some_thing-1.0.dist-info/RECORD", "")
    site = tmp_path / "site"
    install_wheels(tmp_path, site)
    code = [sys.executable, "-c", "import some_thing; print(some_thing.VALUE)"]
    assert subprocess.run(code, env=environment_variables(site), capture_output=True, text=True).stdout == "7\n"
    (tmp_path / "bad-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"--wheels .*: pip: ERROR"):
        install_wheels(tmp_path, site)


@pytest.mark.slow
def test_every_stage_runs(root, tmp_path):
    command = [sys.executable, str(root / "tools/gpu_check.py"), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["stages"]) == list(gpu_check.STAGES.values())
    assert report["stages"]["tests"]["tests/configs/test_errors.py"]["passed"] > 0
    assert report["stages"]["profile"]["frcnn_r101_voc tiny"]["kernels"][0]["ms"] > 0
    assert all(rows for rows in report["stages"].values())
    text = (tmp_path / "report.md").read_text()
    assert "### Kernels" in text
    assert "not run" not in text
