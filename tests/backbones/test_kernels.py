"""Where the Triton kernels are used."""

from __future__ import annotations

import importlib.util
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
    kernels._kernels.cache_clear()
    yield
    kernels._kernels.cache_clear()


@pytest.mark.parametrize(
    ("installed", "hip", "expected"), [(True, None, True), (False, None, False), (True, "6.4", False)]
)
def test_on_cuda_with_triton_alone(monkeypatch, installed, hip, expected):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed and name == "triton" else None)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = kernels.kernels_for(ON_CUDA, MODULE)
    assert found is (sys.modules[MODULE] if expected else None)
    assert kernels.kernels_for(ON_CPU, MODULE) is None
