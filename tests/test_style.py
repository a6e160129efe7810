"""Sizes: scripts and functions that can be read at one go."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("backbones", "configs", "datasets", "detection", "tools")
MOST_LINES_OF_A_SCRIPT = 200
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_KERNEL = 70
"""Of a Triton kernel, which is one program: what is called inside has to be a kernel's function too."""


def functions(path: Path) -> list[tuple[str, int, bool]]:
    """(name, lines, whether it is a Triton kernel) of every function of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)
            found.append((node.name, (node.end_lineno or 0) - node.lineno + 1, kernel))
    return found


def test_functions_are_short():
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    long = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in files
        for name, lines, kernel in functions(path)
        if lines > (MOST_LINES_OF_A_KERNEL if kernel else MOST_LINES_OF_A_FUNCTION)
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
    assert functions(path) == [("kernel", 2, True), ("long", 61, False)]
