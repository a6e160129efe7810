"""Imports point one way (docs/architecture.md); the scripts find our packages before foreign ones of the same name."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"backbones", "configs", "datasets", "detection", "tools"}
ALLOWED = {
    "configs": {"configs"},
    "backbones": {"backbones", "configs"},
    "datasets": {"datasets", "configs"},
    "detection": {"detection", "backbones", "datasets", "configs"},
    "tools": OURS,
}
CONTRACT = {
    "datasets.target",
    "datasets.batch",
    "datasets.records",
    "datasets.voc",
    "datasets.coco",
    "datasets.columns",
    "datasets.class_lists",
    # Prediction reads, resizes and pads as the evaluation does.
    "datasets.images",
    "datasets.listing",
    "datasets.resize",
    "datasets.padding",
}
"""The only parts of `datasets` that `detection` may use."""


def imported_modules(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file it does so."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = {f"{node.module}.{alias.name}" for alias in node.names if node.module.split(".")[0] in OURS}
            files = {part for part in parts if (ROOT / part.replace(".", "/")).with_suffix(".py").is_file()}
            # `from package import module` needs the package's own names only where one of them is no module.
            modules |= parts if parts and parts == files else parts | {node.module}
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}:{node.lineno} imports relatively")
    return modules


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for module in imported_modules(path):
            top = module.split(".")[0]
            assert top not in OURS or top in ALLOWED[package], f"{path} imports {module}"
            if package == "detection" and top == "datasets" and module != "datasets":
                name = ".".join(module.split(".")[:2])
                assert name in CONTRACT, f"{path} imports {module}: only the contract of datasets is open to detection"


def module_name(path: Path) -> str:
    """The dotted name of a file; of a package's `__init__.py` the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other():
    """The graph of imports, those within functions and for type checkers among them, has no cycle."""
    files = {module_name(path): path for package in OURS for path in (ROOT / package).rglob("*.py")}
    graph = {name: (imported_modules(path) & files.keys()) - {name} for name, path in files.items()}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_schema_needs_nothing_of_ours():
    assert not {name for name in imported_modules(ROOT / "configs/common.py") if name.split(".")[0] in OURS}


def test_only_transforms_imports_albumentations():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "datasets/transforms.py":
                assert not any(name.split(".")[0] == "albumentations" for name in imported_modules(path)), path


SCRIPTS = sorted(path.name for path in (ROOT / "tools").glob("[!_]*.py"))
STARTED = ("eval_det.py", "init_data.py", "predict.py", "train_det.py")
"""Started in every run of the tests; the others, which begin in the same way, in the slow ones."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_put_the_checkout_first_before_they_import_ours(script):
    lines = (ROOT / "tools" / script).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("sys.path.insert(0, "))
    ours = tuple(f"{word} {name}" for word in ("import", "from") for name in OURS)
    assert not [line for line in lines[:first] if line.startswith(ours)]


@pytest.mark.parametrize(
    "script", [name if name in STARTED else pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS]
)
def test_scripts_find_our_packages_before_others_of_the_name(script, tmp_path):
    """`python tools/x.py` must not take an installed package named `datasets` for ours."""
    for name in OURS:
        decoy = tmp_path / name
        decoy.mkdir()
        (decoy / "__init__.py").write_text(f"raise ImportError('the foreign package {name} was imported')")
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / script), "--help"], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
