"""Sizes of scripts and functions; the tests mirror the tree: a module's tests are found by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "configs", "datasets", "detection", "tools")
MOST_LINES_OF_A_SCRIPT = 200
MOST_LINES_OF_A_FUNCTION = 60


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of every function of a file."""
    return [
        (node.name, (node.end_lineno or 0) - node.lineno + 1)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_short():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    long = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in files
        for name, lines in functions(path)
        if lines > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_scripts_are_short():
    scripts = sorted((ROOT / "tools").glob("*.py"))
    assert scripts
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in scripts}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_SCRIPT} == {}


def test_long_functions_are_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("@triton.jit\ndef kernel():\n    pass\n\n\ndef long():\n" + "    x = 1\n" * 60)
    assert functions(path) == [("kernel", 2), ("long", 61)]


ELSEWHERE = {
    # The detectors that are compared: each is run against the others.
    **{
        f"tools/benchmarks/{name}.py": "tests/tools/test_benchmark.py"
        for name in (
            "contestants", "detectors", "others", "substitutes", "torchvision_detector", "plugins/detectron2_c4"
        )
    },
    # One question in five files: how a folder that nobody has described is laid out.
    **{
        f"datasets/layouts/{name}.py": "tests/datasets/layouts/test_layouts.py"
        for name in ("folders", "inventory", "parts", "tables", "yolo")
    },
    # In Triton's interpreter, beside the operators that they take the place of.
    "detection/triton_kernels.py": "tests/detection/test_roi_align.py",
    "detection/triton_assignment.py": "tests/detection/test_matching.py",
    "detection/triton_losses.py": "tests/detection/test_matching.py",
    "detection/triton_selection.py": "tests/detection/test_matching.py",
    "detection/triton_canvas.py": "tests/detection/test_roi_align.py",
    "backbones/epilogue.py": "tests/backbones/test_fused.py",
    "backbones/scaling.py": "tests/backbones/test_fused.py",
    "backbones/triton_kernels.py": "tests/backbones/test_fused.py",
    # A file is made, read and compared in one go.
    "datasets/shard_files.py": "tests/datasets/test_shards.py",
    "detection/export_check.py": "tests/detection/test_export.py",
    "detection/exported.py": "tests/detection/test_export.py",
    "tools/export.py": "tests/detection/test_export.py",
    # Through the server, as a visitor meets them.
    "tools/runtime/serving.py": "tests/tools/test_serve.py",
    "tools/runtime/serving_schema.py": "tests/tools/test_serve.py",
    # Defaults, as a task that leaves them meets them in the loop.
    "tools/runtime/task.py": "tests/tools/runtime/test_loop.py",
    # Stages of one script.
    "tools/benchmarks/gpu.py": "tests/tools/test_gpu_check.py",
    "tools/benchmarks/gpu_report.py": "tests/tools/test_gpu_check.py",
    "tools/benchmarks/kernels.py": "tests/tools/test_gpu_check.py",
    "tools/benchmarks/kernel_cases.py": "tests/tools/test_gpu_check.py",
    "tools/benchmarks/report.py": "tests/tools/test_benchmark.py",
}  # fmt: skip
"""Modules whose tests have another file, and why."""


def modules() -> list[str]:
    """Files of ours that hold a function: a module of names and plain fields has nothing to break."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            has_functions = any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(path.read_text())))
            if path.name != "__init__.py" and has_functions:
                found.append(path.relative_to(ROOT).as_posix())
    return found


def file_of(module: str) -> Path:
    folder, _, name = module.rpartition("/")
    return ROOT / "tests" / folder / f"test_{name}"


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_test_file_of_its_name(module):
    own = file_of(module)
    expected = own if own.is_file() or module not in ELSEWHERE else ROOT / ELSEWHERE[module]
    assert expected.is_file(), f"{module} has no {expected.relative_to(ROOT)}"
    assert "def test_" in expected.read_text()


def test_exceptions_are_modules():
    assert set(ELSEWHERE) <= set(modules())
