"""The pages: every command parses, the site has every page, the notebook and the Dockerfile are sound."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.loading import load_config
from configs.localisation import LocalisationConfig
from tests.commands import ROOT, parse, printed_commands

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "tools").glob("[!_]*.py"))
SCHEMAS = {
    **dict.fromkeys(("pretrain.py", "test_cls.py"), ClassificationConfig),
    **dict.fromkeys(("train_loc.py", "test_loc.py"), LocalisationConfig),
    **dict.fromkeys(("train_det.py", "test_det.py"), DetectionConfig),
}
"""Scripts whose `--set` changes a config of one kind."""
NOTEBOOK = ROOT / "docs/notebook.ipynb"


def commands_of(path: Path) -> list[str]:
    """Of a script those in its docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    return list(dict.fromkeys(printed_commands(text)))


def test_commands_are_found():
    """The check below looks at something."""
    assert sum(len(commands_of(page)) for page in PAGES) > 100
    assert sum(len(commands_of(script)) for script in SCRIPTS) > 40


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: path.name)
def test_commands_parse(path):
    for command in commands_of(path):
        try:
            options = parse(command)
        except SystemExit:
            pytest.fail(f"{path.name}: the script does not take: {command}")
        name = Path(next(word for word in shlex.split(command) if word.startswith("tools/"))).name
        config = getattr(options, "cfg", None)
        if name in SCHEMAS and isinstance(config, Path) and (ROOT / config).is_file():
            load_config(ROOT / config, options.overrides, SCHEMAS[name])


# ---------------------------------------------------------------------------------------------- the site


def nav_pages(nav: list) -> list[str]:
    return [
        page
        for entry in nav
        for value in entry.values()
        for page in (nav_pages(value) if isinstance(value, list) else [value])
    ]


def test_every_page_has_its_place_in_the_site():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text())
    listed = nav_pages(yaml.safe_load(text)["nav"])
    assert len(listed) == len(set(listed))
    made = {"index.md", "changelog.md", *(page for page in listed if page.startswith("api/"))}
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed) - made == there


@pytest.mark.slow
def test_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'id="detection.predictor.Predictor"' in (tmp_path / "site/api/detection.html").read_text()
    assert 'id="unreleased"' in (tmp_path / "site/changelog.html").read_text()


# ---------------------------------------------------------------------------------------------- the notebook


def cells() -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_notebook_is_clean_and_compiles():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    assert len(cells()) >= 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    for cell in cells():
        compile(cell, NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra `docs` is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    done = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    kinds = [kind for cell in done.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert kinds.count("image/png") + kinds.count("image/jpeg") >= 2


# ---------------------------------------------------------------------------------------------- the Dockerfile

INSTRUCTIONS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD", "USER", "VOLUME"}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_dockerfile():
    """Known instructions; what is copied exists; shell parts are shell; arguments are declared before they are used."""
    found = instructions()
    assert {word for word, _ in found} <= INSTRUCTIONS
    assert next(word for word, _ in found if word != "ARG") == "FROM"
    declared: set[str] = set()
    for word, rest in found:
        if word in ("ARG", "ENV"):
            declared |= set(re.findall(r"(\w+)=", rest))
            continue
        assert set(re.findall(r"\$\{?([A-Z_]+)", rest)) <= declared, rest
        if word == "COPY":
            for source in shlex.split(rest)[:-1]:
                assert source.startswith("--") or list(ROOT.glob(source)), source
        elif word == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest]).returncode == 0
        elif word in ("CMD", "ENTRYPOINT"):
            for part in json.loads(rest):
                assert not part.startswith("tools/") or (ROOT / part).is_file(), part


def test_docker_leaves_out_what_git_ignores():
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "data", "runs"} <= ignored
