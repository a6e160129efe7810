"""Checkpoints whose parts are missing or of another type: one line and exit code 2, or a part that nothing needs."""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tools import pretrain, train_det
from tools.runtime import cli

SEED = int(os.environ.get("SEED", "0"))
DAMAGES: list[Any] = ["gone", None, [], "text", {}, -1, 1e400]


def paths(values: Any, depth: int = 4) -> Iterator[tuple]:
    """The keys that lead to each part; of tensors and lists the first."""
    if not depth or not isinstance(values, dict | list | tuple):
        return
    parts = values.items() if isinstance(values, dict) else enumerate(values)
    tensors = 0
    for key, value in parts:
        tensors += isinstance(value, torch.Tensor) or not isinstance(key, str)
        if tensors < 2:
            yield (key,)
            if key != "config":  # it is compared value by value with the present one
                yield from ((key, *rest) for rest in paths(value, depth - 1))


def damaged(content: dict, path: tuple, damage: Any) -> dict:
    result = copy.deepcopy(content)
    owner: Any = result
    for key in path[:-1]:
        if isinstance(owner[key], tuple):
            owner[key] = list(owner[key])
        owner = owner[key]
    if damage == "gone":
        del owner[path[-1]]
    else:
        owner[path[-1]] = damage
    return result


def resume(script: Any, config: Path, out: Path, capsys) -> tuple[int, str]:
    argv = ["--cfg", str(config), "--out", str(out), "--device", "cpu", "--resume"]
    with pytest.raises(SystemExit) as ending:
        cli.run(script.main, script.make_parser(), argv)
    return ending.value.code, capsys.readouterr().err


def try_all(script: Any, config: Path, out: Path, capsys, count: int | None) -> None:
    """Each part with each damage, or `count` of these by chance."""
    argv = ["--cfg", str(config), "--out", str(out), "--device", "cpu"]
    script.main(script.make_parser().parse_args(argv))
    last = out / "last.pt"
    content = torch.load(last, weights_only=True)
    cases = list(itertools.product(paths(content), DAMAGES))
    if count is not None:
        cases = random.Random(SEED).sample(cases, count)
    assert resume(script, config, out, capsys)[0] == 0, "as it is, it goes on"
    wrong, refused = [], 0
    for path, damage in cases:
        torch.save(damaged(content, path, damage), last)
        code, errors = resume(script, config, out, capsys)
        refused += code == 2
        if code not in (0, 2) or (code == 2 and ("Traceback" in errors or errors.count("\n") != 1)):
            wrong.append((path, damage, code, errors[-300:]))
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:12]}"
    assert len(cases) // 4 < refused < len(cases)


def short(config: Path) -> Path:
    """The same with two steps, one of which is left to do."""
    values = yaml.safe_load(config.read_text())
    values["schedule"] |= {"iterations": 2, "milestones": []}
    values["train"] |= {"validate_every": None, "checkpoint_every": 2, "ema_decay": 0.9, "keep_last": 1}
    config.write_text(yaml.safe_dump(values))
    return config


def test_parts_of_a_classifiers_checkpoint(classifier_config, tmp_path, capsys):
    try_all(pretrain, short(classifier_config), tmp_path / "run", capsys, 24)


@pytest.mark.slow
def test_each_part_of_a_classifiers_checkpoint(classifier_config, tmp_path, capsys):
    try_all(pretrain, short(classifier_config), tmp_path / "run", capsys, None)


@pytest.mark.slow
def test_parts_of_a_detectors_checkpoint(tiny_config, tmp_path, capsys):
    values = yaml.safe_load(tiny_config.read_text())
    values["model"]["backbone"] = {
        "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": True},
        "stages": [{"units": 1, "width": 8, "stride": 1 if number == 0 else 2} for number in range(4)],
        "unit": "basic",
    }
    tiny_config.write_text(yaml.safe_dump(values))
    try_all(train_det, short(tiny_config), tmp_path / "run", capsys, 100)


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_truncated_or_overwritten_file(classifier_config, tmp_path, capsys, size):
    out, config = tmp_path / "run", short(classifier_config)
    pretrain.main(pretrain.make_parser().parse_args(["--cfg", str(config), "--out", str(out), "--device", "cpu"]))
    data = bytearray((out / "last.pt").read_bytes())
    if size < 0:
        middle = len(data) // 2
        data[middle : middle + 4096] = bytes(4096)
    else:
        del data[size:]
    (out / "last.pt").write_bytes(data)
    code, errors = resume(pretrain, config, out, capsys)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "last.pt" in errors
    assert (out / "last.pt").read_bytes() == bytes(data)
