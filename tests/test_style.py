"""The tests mirror the tree: a module's tests are found by its name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "configs", "datasets", "detection", "tools")
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
