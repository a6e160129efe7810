"""Short trainings that are to be disturbed, and what it means that a disturbed one ended like an undisturbed one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from forks import Ending, Forks, Order

from tests.tools.made import localisation_values

EACH_STEP = {"log_every": 1, "validate_every": 2, "checkpoint_every": 1, "keep_last": 2, "ema_decay": 0.9}
UNDRAWN = """
from matplotlib.figure import Figure
Figure.draw_without_rendering = lambda self: None
Figure.savefig = lambda self, file, **options: file.write(b"picture")
"""
"""Half of the time that these runs would take goes into pictures; their files are written all the same."""


@dataclass
class Training:
    """A training that is to be disturbed."""

    script: str
    config: Path
    whole: Path
    """The undisturbed run's folder."""
    seconds: float
    events: int
    forks: Forks

    def __call__(self, out: Path, *more: str, log: str = "", patch: str = "", **moment: Any) -> Ending:
        argv = ["--cfg", str(self.config), "--out", str(out), "--device", "cpu", *more]
        return self.forks(Order(self.script, argv, log or f"{out}.log", patch=UNDRAWN + patch, **moment))


def configured(request: pytest.FixtureRequest, forks: Forks, folder: Path) -> Training:
    """Six steps, three validations, and a test, of the kind that `request` names; not run yet."""
    if request.param == "localisation":
        values, script = localisation_values(folder), "tools.train_loc"
    elif request.param == "classification":
        values, script = request.getfixturevalue("classifier_values"), "tools.pretrain"
    else:
        values, script = yaml.safe_load(request.getfixturevalue("tiny_config").read_text()), "tools.train_det"
        values["data"]["val"] = values["data"]["test"]
        values["model"]["backbone"] = {
            "stem": {"kernel": 3, "width": 8, "stride": 2, "pool": True},
            "stages": [{"units": 1, "width": 8, "stride": 1 if number == 0 else 2} for number in range(4)],
            "unit": "basic",
        }
    values["train"] |= EACH_STEP
    values["schedule"] |= {"iterations": 6}
    config = folder / "kills.yaml"
    config.write_text(yaml.safe_dump(values))
    return Training(script, config, folder / "whole", 0.0, 0, forks)


def make_training(request: pytest.FixtureRequest, forks: Forks, folder: Path, **moment: Any) -> Training:
    """The same after its undisturbed run; `moment`: how that is started."""
    made = configured(request, forks, folder)
    ending = made(made.whole, **(moment or {"folder": str(made.whole)}))
    assert ending.code == 0, ending.output
    made.seconds, made.events = ending.seconds, ending.events
    return made


# ---------------------------------------------------------------------------------------------- what must be equal


def content(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{number}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or where.endswith("/num_workers"), where


def lines(folder: Path) -> list[dict]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in read]


def names(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("tensorboard/")}


def assert_equal_runs(whole: Path, parts: Path) -> None:
    assert lines(whole) == lines(parts)
    for name in ("last.pt", "last_1.pt", "best.pt"):
        assert_same(content(whole / name), content(parts / name), name)
    for name in ("metrics.json", "metrics_val.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    assert names(whole) == names(parts)


def assert_orderly(ending: Ending) -> None:
    assert "Traceback" not in ending.output, ending.output
    assert ending.left == []
