"""What a training starts from: by machine, number of images, cache and network; the configs fit the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.detection import DetectionConfig, SourceConfig
from configs.errors import UserError
from configs.loading import load_config, parse_config, parse_yaml
from detection.zoo import CONFIGS, ZOO
from tests.serving import serving
from tests.tools.runtime.test_suggest import records_of
from tools.runtime import starting_points
from tools.runtime.starting_points import ON_CPU, ON_GPU, available, choose_start, zoo_model
from tools.runtime.suggest import Machine, config_text, make_plan, training_command

CPU, GPU = Machine(2), Machine(16, 40.0)


@pytest.fixture
def nothing_kept(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and a server that does not answer."""
    monkeypatch.setenv("RESIDUAL_DETECTION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", "http://127.0.0.1:9")
    return tmp_path / "home"


def test_without_a_network_from_scratch_and_said(nothing_kept) -> None:
    for machine in (CPU, GPU):
        start = choose_start("auto", machine, 20)
        assert start.name is None
        assert start.model is None
        assert "cannot be downloaded now" in start.reason
        assert f"and put it at {nothing_kept}/torchvision/fasterrcnn_resnet50_fpn" in start.reason


def test_a_detector_that_was_asked_for_says_what_to_fetch_by_hand(nothing_kept) -> None:
    start = choose_start(ON_CPU, CPU, 20)
    assert start.name == ON_CPU
    assert f"get http://127.0.0.1:9/{ZOO[ON_CPU].file} on another machine and put it at {nothing_kept}" in start.reason
    assert start.reason.endswith("--start scratch")


def test_with_a_network_or_a_kept_file_from_a_detector(nothing_kept, monkeypatch) -> None:
    with serving() as server:
        monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", server.url)
        assert not available(ON_CPU)  # the server has no such file
        server.files[ZOO[ON_CPU].file] = bytes(1000)
        assert choose_start("auto", CPU, 20).name == ON_CPU
    monkeypatch.setenv("RESIDUAL_DETECTION_TORCHVISION_URL", "http://127.0.0.1:9")
    assert not available(ON_GPU)
    path = nothing_kept / "torchvision" / ZOO[ON_GPU].file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert choose_start("auto", GPU, 20).name == ON_GPU


def test_many_images_without_a_gpu_train_a_small_detector(monkeypatch) -> None:
    monkeypatch.setattr(starting_points, "available", lambda name: pytest.fail("asked the network for nothing"))
    assert choose_start("auto", CPU, 300).name is None
    assert choose_start("scratch", GPU, 20).name is None
    with pytest.raises(UserError, match="give auto, scratch, or one of torchvision://"):
        choose_start("torchvision://x", CPU, 20)
    monkeypatch.setattr(starting_points, "available", lambda name: True)
    assert choose_start(ON_GPU, CPU, 300).name == ON_GPU


@pytest.mark.parametrize("name", [ON_CPU, ON_GPU])
def test_the_config_is_the_published_one_with_other_classes(name: str) -> None:
    train = records_of(40, (480, 640), 90, ("cat", "dog"))
    plan = make_plan(train, CPU, pretrained=True)
    source = SourceConfig(format="voc", root="/data")
    text = config_text(
        {"train": [source], "val": [source]}, ["cat", "dog"], plan, CPU,
        about="a", command=training_command(Path("a.yaml"), name), start="c", model=zoo_model(name),
    )  # fmt: skip
    config = parse_config(parse_yaml(text, "text"), [], DetectionConfig, "text")
    published = load_config(CONFIGS / ZOO[name].config).model
    box = published.box.model_copy(update={"unused_outputs": 0})
    assert config.model == published.model_copy(update={"box": box})
    assert (plan.min_size, plan.max_size, plan.batch_size) == (480, 640, 2)
    assert plan.epochs == 28  # 4500 / 4 / 40: an image of 480x640 counts four times
    assert f"--init-from {name}" in text
