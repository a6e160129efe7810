"""The Python of docs/training.md runs as it is printed, on a tiny set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs.loading import load_config

PAGE = Path(__file__).resolve().parents[2] / "docs/training.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def tiny(tiny_config: Path, tmp_path: Path) -> str:
    """A config of the tiny set with a validation set, as a file."""
    text = tiny_config.read_text()
    sources = load_config(tiny_config).data.test
    text = text.replace("data:\n", f"data:\n  val: [{{format: voc, root: {sources[0].root}, image_set: test}}]\n", 1)
    path = tmp_path / "with_val.yaml"
    path.write_text(text)
    return str(path)


def run(block: str, tiny: str, tmp_path: Path) -> dict:
    code = block.replace("configs/demo.yaml", tiny).replace("runs/mine", str(tmp_path / "run"))
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_lengths():
    bodies = [[line for line in block.splitlines() if line and "import " not in line] for block in BLOCKS]
    assert len(bodies) == 2
    assert len(bodies[0]) <= 10
    assert len(bodies[1]) <= 30


def test_fit(tiny, tmp_path, capsys):
    state = run(BLOCKS[0], tiny, tmp_path)["state"]
    assert state.iteration == 4
    assert (tmp_path / "run/last.pt").exists()
    assert capsys.readouterr().out.splitlines()[-1] == str(state.metrics["voc12"]["mAP"])


def test_own_loop(tiny, tmp_path, capsys):
    names = run(BLOCKS[1], tiny, tmp_path)
    assert names["loss"].isfinite()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["image_6", "image_7"]
