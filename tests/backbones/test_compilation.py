"""Compiled functions go on without the compiler where it fails, and hide no error of their own."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor_config

from backbones import compilation
from backbones.compilation import GraphedStep, Graphs, with_fallback


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


# ---------------------------------------------------------------------------------------------- CUDA graphs


def test_a_graph_computes_the_same_of_other_values(graphs_on_the_cpu):
    """Once as it is, once captured, then replayed; outputs are the caller's to keep."""
    graphs, calls = Graphs("a function"), []

    def function(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"sum": x + y, "place": y.argmax(-1)}

    kept = []
    for k in range(5):
        x, y = torch.full((2, 3), float(k)), torch.eye(3)[k % 3].expand(2, 3)
        found = graphs(function, [x, y])
        assert torch.equal(found["sum"], x + y)
        assert found["place"].tolist() == [k % 3] * 2
        kept.append((found["sum"], x + y))
    assert all(torch.equal(found, expected) for found, expected in kept)
    assert (len(calls), len(graphs_on_the_cpu)) == (2, 1)


def test_shapes_and_keys_have_graphs_of_their_own_and_only_the_last_used_ones_are_kept(graphs_on_the_cpu):
    graphs = Graphs("a square", remembered=2)
    square = lambda x: x * x  # noqa: E731

    def run(size: int, key: str = "") -> None:
        x = torch.arange(float(size))
        assert torch.equal(graphs(square, [x], key), x * x)

    for size in (3, 4, 3, 4, 3):
        run(size)
    assert len(graphs_on_the_cpu) == 2
    run(3, "another")  # 4 was used longest ago
    run(3)
    assert len(graphs_on_the_cpu) == 2
    run(4)  # begins anew
    assert len(graphs.known) == 2
    assert len(graphs_on_the_cpu) == 2
    run(4)
    assert len(graphs_on_the_cpu) == 3


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when\nstream is capturing"), AssertionError()])
def test_from_a_failed_capture_on_everything_runs_as_it_is(caplog, monkeypatch, graphs_on_the_cpu, error):
    attempts = []

    def fails(function, pool):
        attempts.append(function)
        raise error

    monkeypatch.setattr(compilation, "_capture", fails)
    graphs, x = Graphs("a root"), torch.tensor([4.0])
    with caplog.at_level(logging.WARNING):
        assert [graphs(torch.sqrt, [x]).item() for _ in range(4)] == [2] * 4
    assert len(attempts) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("a root is no CUDA graph, and runs as it is: ")
    assert "\n" not in line


def test_errors_of_a_captured_function_are_not_hidden(graphs_on_the_cpu):
    graphs, x = Graphs("a product"), torch.ones(2, 3)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"mat1 and mat2|size mismatch"):
            graphs(torch.mm, [x, x])


def test_without_a_gpu_one_line_is_said(caplog):
    graphs, x = Graphs("a root"), torch.tensor([4.0])
    with caplog.at_level(logging.WARNING):
        assert [graphs(torch.sqrt, [x]).item() for _ in range(3)] == [2] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "a root is no CUDA graph, and runs as it is: its inputs are not on a GPU"
    ]


def test_a_new_shape_for_which_graphs_leave_too_little_memory_runs_without_them(caplog, graphs_on_the_cpu):
    """Once more without graphs; where there are none, the error is the caller's."""
    graphs, full = Graphs("a root"), set()

    def function(x: torch.Tensor) -> torch.Tensor:
        if len(x) in full:
            full.discard(2)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sqrt()

    for _ in range(2):
        graphs(function, [torch.ones(1)])
    full |= {2, 3}
    with caplog.at_level(logging.WARNING):
        assert graphs(function, [torch.full((2,), 4.0)]).tolist() == [2, 2]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "a root is no CUDA graph, and runs as it is: graphs have memory of their own, and leave too little for a new "
        "shape"
    )
    with pytest.raises(torch.OutOfMemoryError):
        graphs(function, [torch.ones(3)])


def test_gradients_of_a_step_as_graphs(graphs_on_the_cpu):
    """Shapes in turns, one or two parts an update, an update in place behind it: as without graphs, in one memory."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Linear(9, 9)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0][0].bias.requires_grad_(False)
    nets[1][0].bias.requires_grad_(False)
    graphed, places = GraphedStep("a step", nets[1].parameters()), set()

    def step(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        loss = net[:3](x).square().sum()  # the last layer takes no part
        loss.backward()
        return loss.detach()

    for k in range(12):
        parts = [torch.randn(2 + k % 2, 3) for _ in range(1 + k // 2 % 2)]
        expected = [step(nets[0], x) for x in parts]
        found = [graphed(lambda x: step(nets[1], x), [x]) for x in parts]
        assert torch.equal(torch.stack(found), torch.stack(expected))
        for mine, plain in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            assert (mine.grad is None) == (plain.grad is None)
            if mine.grad is not None:
                assert torch.equal(mine.grad, plain.grad)
                places.add(mine.grad.data_ptr())
                for parameter in (mine, plain):
                    parameter.data.sub_(parameter.grad, alpha=0.01)
                    parameter.grad = None
    assert len(graphs_on_the_cpu) == 4  # two shapes, first and further parts
    assert len(places) == 3


@pytest.mark.gpu
def test_graphs_on_a_gpu(caplog):
    """Many shapes share a pool; a capture that fails leaves the stream as it was, and others succeed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).cuda().requires_grad_(False)
    graphs, expected, found = Graphs("a net", remembered=4), [], []
    for k in range(24):
        x = torch.randn(2, 3, 8 + k % 3, 8 + k % 5, device="cuda")
        expected.append(net(x))
        found.append(graphs(net, [x]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    waits = Graphs("waiting")
    with caplog.at_level(logging.WARNING):
        assert [waits(lambda x: x.sum().item(), [torch.ones(3, device="cuda")]) for _ in range(3)] == [3] * 3
    assert len(caplog.records) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    again = Graphs("a net")
    for _ in range(3):
        torch.testing.assert_close(again(net, [x]), expected[-1])
    assert not again.gave_up
