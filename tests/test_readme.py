"""The commands of the README run as they stand there, on small data."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.loading import load_config
from datasets.images import read_image
from detection.video import VideoWriter
from tests.tools.conftest import write_tiny_voc

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    *("data.train.0.size=6", "data.val.0.size=2", "data.test.0.size=4", "data.num_workers=0"),
    *("schedule.iterations=2", "schedule.warmup_iterations=0", "train.batch_size=2", "train.validate_every=2"),
]
"""The demo's config on a handful of its images."""


def code_lines(path: Path) -> list[str]:
    """Lines of the page's code blocks that bear no language: what a person types."""
    lines, language = [], None
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            language = line[3:].strip() if language is None else None
        elif language == "":
            lines.append(line.split("#")[0].strip())
    return [line for line in lines if line]


def commands(path: Path) -> list[str]:
    """The `python tools/...` commands of a page."""
    return [
        part.strip() for line in code_lines(path) for part in line.split("&&") if part.strip().startswith("python ")
    ]


def run(command: str, cwd: Path, *more: str) -> subprocess.CompletedProcess:
    """A command of the page, from another folder than the checkout."""
    words = [sys.executable, *shlex.split(command)[1:]]
    words = [str(ROOT / word) if word.startswith(("tools/", "configs/")) else word for word in words]
    return subprocess.run([*words, *more], cwd=cwd, capture_output=True, text=True)


def test_every_command_names_a_script_and_files_that_exist():
    found = commands(ROOT / "README.md")
    assert len(found) >= 5
    for command in found:
        for word in shlex.split(command):
            if word.startswith(("tools/", "configs/")):
                assert (ROOT / word).is_file(), command


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with runs/my_photos from what `make demo` runs, cut short."""
    folder = tmp_path_factory.mktemp("readme")
    lines = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    demo = next(line for line in lines.splitlines() if "train_det.py" in line)
    done = run(demo.replace("runs/demo", "runs/my_photos"), folder, "--set", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "mean" in done.stdout
    assert "pictures" in done.stdout
    return folder


def test_make_demo_leaves_a_run(trained):
    names = {path.name for path in (trained / "runs/my_photos").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "metrics_val.json", "metrics.json"} <= names


def test_predict(trained):
    (trained / "photos").mkdir()
    source = ROOT / "data/generated/JPEGImages/test_0000.jpg"
    (trained / "photos/one.jpg").write_bytes(source.read_bytes())
    command = next(c for c in commands(ROOT / "README.md") if "predict.py" in c and "runs/" in c)
    done = run(command, trained)
    assert done.returncode == 0, done.stderr
    assert (trained / "found/detections.json").is_file()


def test_init_data(tmp_path):
    write_tiny_voc(tmp_path / "my_photos")
    command = next(command for command in commands(ROOT / "README.md") if "init_data.py" in command)
    done = run(command, tmp_path, "--start", "scratch")
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "my_photos.yaml").data.classes == ["blue", "red"]


def test_a_published_detector_without_network(tmp_path, monkeypatch):
    """The first command says what to fetch and where to put it; with that file it works (test_zoo.py)."""
    monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    (tmp_path / "photo.jpg").write_bytes((ROOT / "docs/images/demo.jpg").read_bytes())
    command = next(command for command in commands(ROOT / "README.md") if "torchvision://" in command)
    done = run(command, tmp_path)
    assert done.returncode == 2
    path = tmp_path / "home/torchvision/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"
    assert done.stderr.splitlines()[-1].endswith(f"on another machine and put it at {path}")


def python_blocks(path: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_snippets_run(trained, page, monkeypatch, capsys):
    """In order, in one namespace, with the demo's detector and its images."""
    monkeypatch.chdir(trained)
    weights = trained / "runs/demo/best.pt"
    weights.parent.mkdir(exist_ok=True)
    shutil.copy(trained / "runs/my_photos/best.pt", weights)
    source = ROOT / "data/generated/JPEGImages/test_0000.jpg"
    for name in ("a.jpg", "photos/one.jpg", "folder/b.jpg", "more/c.png"):
        (trained / name).parent.mkdir(exist_ok=True)
        shutil.copy(source, trained / name)
    with VideoWriter(trained / "clip.mp4", 5.0) as video:
        for _ in range(3):
            video.write(read_image(source))
    blocks = python_blocks(ROOT / page)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    if page == "README.md":
        assert printed[0].startswith("photos/one.jpg [")
    else:
        assert [line.split(" [")[0] for line in printed if " [" in line][:3] == ["a.jpg", "folder/b.jpg", "more/c.png"]
        assert [line.split()[0] for line in printed if line[0].isdigit()] == ["0", "1", "2"]


@pytest.mark.parametrize("script", ["train_det.py", "test_det.py"])
def test_published_systems_say_which_data_is_missing(trained, tmp_path, script):
    command = next(c for c in commands(ROOT / "README.md") if script in c and "frcnn_r101_voc" in c)
    command = command.replace("runs/frcnn_r101_voc/last.pt", str(trained / "runs/my_photos/last.pt"))
    done = run(command, tmp_path, "--data-root", str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_prepare_data_says_what_it_would_do(tmp_path):
    for command in commands(ROOT / "README.md"):
        if "prepare_data.py" in command:
            done = run(command, tmp_path, "--dry-run")
            assert done.returncode == 0, done.stderr
            assert not (tmp_path / "data").exists()
