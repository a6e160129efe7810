"""The study: runs over seeds, its table and curves by hand, figures, going on after an interruption."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import cv2
import pytest
import yaml

from backbones.analysis import layer_responses
from backbones.classification import load_classifier
from configs.classification import ClassifierConfig
from configs.loading import dump_config
from tools import study
from tools.runtime import cli


def run(configs: list[Path], out: Path, *more: str) -> int:
    """Exit code of the script."""
    arguments = ["--cfg", *map(str, configs), "--out", str(out), "--device", "cpu", *more]
    with pytest.raises(SystemExit) as ending:
        cli.run(study.main, study.make_parser(), arguments)
    return ending.value.code


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def configs(tmp_path, classifier_values) -> list[Path]:
    """A residual net and its plain twin."""
    paths = []
    for name, plain in (("plain", True), ("residual", False)):
        values = {**classifier_values, "model": {**classifier_values["model"], "plain": plain}}
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(yaml.safe_dump(values))
    return paths


def test_a_study_of_two_nets_over_two_seeds(configs, tmp_path, capsys):
    out = tmp_path / "study"
    assert run(configs, out, "--seeds", "3", "5") == 0
    table = rows(out / "table.csv")
    assert [row["config"] for row in table] == ["plain", "residual"]
    for row in table:
        folders = [out / row["config"] / f"seed{seed}" for seed in (3, 5)]
        errors = [100 * json.loads((folder / "metrics.json").read_text())["top1_error"] for folder in folders]
        assert float(row["top1_mean"]) == pytest.approx(statistics.fmean(errors), abs=0.005)
        assert float(row["top1_std"]) == pytest.approx(statistics.stdev(errors), abs=0.005)
        assert float(row["top1_best"]) == pytest.approx(min(errors), abs=0.005)
        assert int(row["parameters"]) == 2627, "shortcuts A add nothing to the plain net"
        assert (int(row["seeds"]), int(row["iterations"])) == (2, 6)
        lines = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").open()]
        last_epoch = [100 * line["top1_error"] for line in lines if line["split"] == "train" and line["epoch"] > 1]
        assert len(last_epoch) == 4, "iterations 4 and 6 of two seeds"
        assert float(row["train_last_epoch_mean"]) == pytest.approx(statistics.fmean(last_epoch), abs=0.005)
    curves = rows(out / "curves.csv")
    assert len(curves) == 2 * 2 * 2 * 3
    assert {row["split"] for row in curves} == {"train", "test"}
    for name in ("curves.png", "responses.png"):
        picture = cv2.imread(str(out / name))
        assert picture.std() > 5, "something is drawn"
    printed = capsys.readouterr().out
    assert "| plain | 2,627 | 2 |" in printed

    # Given again, it trains nothing and draws the same; with other values it refuses to mix runs.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")}
    assert run(configs, out, "--seeds", "3", "5") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("last.pt")} == before
    assert rows(out / "table.csv") == table
    assert run(configs, out, "--seeds", "3", "--set", "optim.lr=0.01") == 2
    assert "other --set values" in capsys.readouterr().err


def test_responses_are_those_of_the_last_checkpoint(configs, tmp_path, classifier_values):
    out = tmp_path / "study"
    assert run(configs[1:], out) == 0
    member = load_classifier(out / "residual/seed0/last.pt", ClassifierConfig(backbone="x"))
    from configs.classification import ImageDataConfig
    from datasets.classification import build_splits, centre_batches

    data = ImageDataConfig(**classifier_values["data"])
    batches = centre_batches(build_splits(data, tmp_path).train, data, batch_size=24)
    expected = layer_responses(member.net, (member.normalize(batch.images) for batch in batches))
    written = rows(out / "responses.csv")
    assert [row["layer"] for row in written] == list(expected)
    for row, value in zip(written, expected.values(), strict=True):
        assert float(row["standard_deviation"]) == pytest.approx(value, rel=1e-4)


def test_an_interrupted_study_goes_on(configs, tmp_path, monkeypatch, capsys):
    real = study.train
    calls = []

    def interrupted(config, job):
        calls.append((job.run.path, job.resumes))
        if len(calls) == 2:
            (job.run.path / "config.yaml").write_text(dump_config(config))
            raise cli.Interrupted("now")
        real(config, job)

    monkeypatch.setattr(study, "train", interrupted)
    assert run(configs, tmp_path / "study") == 3
    assert "residual/seed0: the same command goes on" in capsys.readouterr().err
    assert run(configs, tmp_path / "study") == 0
    assert calls[2] == (tmp_path / "study/residual/seed0", False)  # there is no last.pt to go on from
    assert len(calls) == 3


def test_another_view_for_the_table(configs, tmp_path):
    out = tmp_path / "study"
    assert run(configs[1:], out, "--views", "10crop", "--set", "data.test_resize=14") == 0
    stored = json.loads((out / "residual/seed0/metrics_10crop.json").read_text())
    assert float(rows(out / "table.csv")[0]["top1_mean"]) == pytest.approx(100 * stored["top1_error"], abs=0.005)


def test_a_study_needs_a_set_to_test_on(configs, tmp_path, capsys):
    without = ("data.val=null", "data.test=null", "data.hold_out=0", "train.validate_every=null")
    assert run(configs[1:], tmp_path / "study", "--set", *without) == 2
    assert "there is nothing to test on" in capsys.readouterr().err


def test_two_configs_of_one_name_are_refused(configs, tmp_path, capsys):
    assert run([configs[0], configs[0]], tmp_path / "study") == 2
    assert "two configs are called plain" in capsys.readouterr().err
