"""Compiled functions go on without the compiler where it fails, and hide no error of their own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor_config

from backbones.compilation import with_fallback


def test_without_a_compiler_one_line_is_said_and_the_result_is_the_same(caplog, tmp_path: Path):
    """Inductor is told to use a C++ compiler that does not exist."""
    no_compiler = {"cpp.cxx": (str(tmp_path / "no-such-compiler"),), "force_disable_caches": True}
    torch._dynamo.reset()
    layer = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    layer.forward, plain = with_fallback(layer.forward, "Layer.forward"), layer.forward
    x = torch.randn(2, 3)
    with caplog.at_level(logging.WARNING), inductor_config.patch(no_compiler):
        for _ in range(2):
            assert torch.equal(layer(x), plain(x))
    ours = [record.getMessage() for record in caplog.records if record.name == "backbones.compilation"]
    assert len(ours) == 1
    assert ours[0].startswith("Layer.forward is not compiled, and runs as it is: ")
    assert "\n" not in ours[0]


def test_errors_of_the_function_itself_are_not_hidden():
    """A function that fails without the compiler fails with it, and is not taken for one that cannot be compiled."""

    def broken(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    call = with_fallback(broken, "broken")
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch"):
        call(torch.randn(2, 3))


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing"), AssertionError()])
def test_a_failed_capture_of_a_graph_falls_back_too(caplog, monkeypatch, error):
    calls = []

    def fails(*inputs: torch.Tensor) -> None:
        calls.append(inputs)
        raise error

    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    call = with_fallback(torch.sqrt, "sqrt", graphs=True)
    x = torch.tensor([4.0])
    with caplog.at_level(logging.WARNING):
        assert call(x) == call(x) == 2
    assert len(calls) == 1
    assert [record.getMessage().startswith("sqrt is not compiled") for record in caplog.records] == [True]
    with pytest.raises(type(error)):  # without graphs there is no capture: an error of the function itself
        with_fallback(torch.sqrt, "sqrt")(x)
