"""The tutorial does what it says: its configs are valid, its commands work in their order."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.detection import DataConfig, DetectionConfig, SourceConfig
from configs.loading import parse_config, parse_yaml

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str) -> list[str]:
    """The tutorial's code blocks of a language, also those inside lists."""
    text = (ROOT / "docs/tutorial.md").read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return ["".join(line[len(indent) :] for line in body.splitlines(keepends=True)) for indent, body in found]


def test_configs_are_valid():
    configs = [parse_yaml(block, "tutorial") for block in blocks("yaml")]
    assert len(configs) == 2
    whole = [values for values in configs if "model" in values]
    assert len(whole) == 1
    for values in whole:
        parse_config(values, [], DetectionConfig, "tutorial")
    for values in configs:
        parse_config(values["data"], [], DataConfig, "tutorial")


def test_settings_named_in_the_text_exist():
    text = (ROOT / "docs/tutorial.md").read_text().replace("`data.yaml`", "")  # YOLO's file
    names = set(re.findall(r"`(?:--set )?((?:data|model|optim|schedule|train)\.[a-z_.]+)", text))
    assert len(names) >= 10
    config = parse_config(parse_yaml(blocks("yaml")[0], "tutorial"), [], DetectionConfig, "tutorial")
    for name in names:
        section = config
        for key in name.split("."):
            assert hasattr(section, key), name
            section = getattr(section, key)
    assert {"voc", "coco", "yolo"} <= set(SourceConfig.model_fields["format"].annotation.__args__)


def shorten(path: Path) -> None:
    """Cut the written config's training to two iterations on tiny images."""
    config = yaml.safe_load(path.read_text())
    config["schedule"] = {"iterations": 2}
    config["train"] |= {"batch_size": 2, "validate_every": 1}
    config["data"] |= {"min_size": 48, "max_size": 64, "test_min_size": 48, "test_max_size": 64, "num_workers": 0}
    path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_commands_work_in_their_order(tmp_path, tiny_voc):
    """On a tiny set in a folder with links to the checkout's parts; iterations are cut, nothing else."""
    for name in ("tools", "configs", "datasets", "detection", "backbones"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.move(tiny_voc, tmp_path / "data/my_photos")
    shutil.rmtree(tmp_path / "data/my_photos/ImageSets")
    shutil.copytree(tmp_path / "data/my_photos/JPEGImages", tmp_path / "new_photos")
    environment = {
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "DATA_DIR": str(tmp_path / "data"),
        "RESIDUAL_DETECTION_HOME": str(tmp_path / "home"),
        "RESIDUAL_DETECTION_TORCHVISION_URL": "http://127.0.0.1:9",
    }
    done = []
    for block in blocks("bash"):
        block = block.replace("--set data.min_size=480", "--set data.min_size=32")
        script = f'set -e; python() {{ {sys.executable} "$@"; }}; {block}'
        result = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        if not done:
            shorten(tmp_path / "my_photos.yaml")
        done.append(block)
    assert "init_data.py" in done[0]
    assert len(done) == 11
    results = [
        *(
            "my_photos_sheet.jpg",
            "sheet.png",
            "runs/my_photos/best.pt",
            "runs/larger/last.pt",
            "runs/again/best.pt",
            "runs.png",
        ),
        *("found_val/report/index.html", "found/detections.json", "runs.png"),
    ]
    for path in results:
        assert (tmp_path / path).is_file(), path
