"""Where the Triton kernels are used."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from backbones import kernels

MODULE = "detection.triton_kernels"
ON_CUDA, ON_CPU = SimpleNamespace(is_cuda=True), torch.zeros(1)


@pytest.fixture(autouse=True)
def _ask_anew(monkeypatch: pytest.MonkeyPatch):
    """A stand-in for the kernels' module, which cannot be imported without Triton; nothing is remembered."""
    monkeypatch.setitem(sys.modules, MODULE, ModuleType(MODULE))
    monkeypatch.setattr(kernels, "_try_one", lambda: None)
    for asked in (kernels._kernels, kernels.why_no_kernels):
        asked.cache_clear()
    yield
    for asked in (kernels._kernels, kernels.why_no_kernels):
        asked.cache_clear()


@pytest.mark.parametrize(
    ("installed", "hip", "expected"), [(True, None, True), (False, None, False), (True, "6.4", False)]
)
def test_on_cuda_with_triton_alone(monkeypatch, installed, hip, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed and name == "triton" else None)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = kernels.kernels_for(ON_CUDA, MODULE)
    assert found is (sys.modules[MODULE] if expected else None)
    assert kernels.kernels_for(ON_CPU, MODULE) is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Failed to find C compiler. Please specify\nvia CC"),
            "Failed to find C compiler. Please specify",
        ),
        (subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"]), "/usr/bin/gcc cannot build Triton's launcher"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_where_triton_does_not_work_one_line_says_why(monkeypatch, caplog, error, reason):
    """As on a machine without a C compiler, which Triton needs at the first launch."""

    def fails():
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "_try_one", fails)
    for _ in range(2):
        assert kernels.kernels_for(ON_CUDA, MODULE) is None
        assert kernels.kernels_for(ON_CUDA, "another") is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Triton's kernels are not used, and slower operators do their work: {reason}")
    assert "\n" not in line


class _ByGrid:
    """Something that is launched as Triton's kernels are: `kernel[grid](...)`."""

    def __init__(self, name: str, calls: list[tuple], compiled: object = None) -> None:
        self.name, self.calls, self.compiled = name, calls, compiled

    def __getitem__(self, grid: tuple[int, int, int]):
        def launch(*arguments, **options):
            self.calls.append((self.name, grid, arguments, options))
            return self.compiled

        return launch


def test_a_kernel_is_looked_up_once_for_each_kind_of_arguments(monkeypatch):
    """Launches after the first go to what was compiled for their kind; where nothing is compiled, all to the kernel."""
    monkeypatch.setattr(kernels, "_ready", {})
    calls: list[tuple] = []
    kernel = _ByGrid("kernel", calls, _ByGrid("compiled", calls))
    for key in ("bf16", "bf16", "fp32"):
        kernels.launch(kernel, (2, 1, 1), (key,), 5, num_warps=4)
    first = ("kernel", (2, 1, 1), (5,), {"num_warps": 4})
    assert calls == [first, ("compiled", (2, 1, 1), (5,), {}), first]
    calls.clear()
    interpreted = _ByGrid("interpreted", calls)
    for _ in range(2):
        kernels.launch(interpreted, (1, 1, 1), (), 5)
    assert [name for name, *_ in calls] == ["interpreted"] * 2
