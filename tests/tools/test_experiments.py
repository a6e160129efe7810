"""Experiments: a schema that finds mistakes, runs over seeds that go on after a stop, and a page redrawn from JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml

from tools import experiments as script
from tools.runtime import cli, experiment_runs
from tools.runtime.checkpoint import load_checkpoint
from tools.runtime.results_page import Page, read_results, redrawn

ROOT = Path(__file__).resolve().parents[2]
MARKERS = "by hand\n<!-- drawn: experiments -->\nold\n<!-- end: experiments -->\nby hand, too\n"


def run(*words: object) -> int:
    """Exit code of the script."""
    with pytest.raises(SystemExit) as ending:
        cli.run(script.main, script.make_parser(), [str(word) for word in words])
    return ending.value.code


@pytest.fixture
def study(tmp_path, classifier_values) -> dict[str, Path]:
    """An experiment of a plain and a residual net with two seeds; the folders by option."""
    (tmp_path / "tiny_net.yaml").write_text(yaml.safe_dump(classifier_values))
    folder = tmp_path / "experiments"
    folder.mkdir()
    values = {
        "title": "Tiny",
        "budget": "6 iterations.",
        "claims": [{"claim": "plain is worse", "metric": "metrics.top1_error", "pairs": [["residual", "plain"]]}],
        "seeds": [3, 5],
        "overrides": ["train.log_every=1"],
        "runs": [
            {"name": "plain", "config": "tiny_net", "overrides": ["model.plain=true"]},
            {"name": "residual", "config": "tiny_net"},
        ],
        "columns": [{"title": "error %", "metric": "metrics.top1_error", "factor": 100, "digits": 1}],
        "figures": ["curves", "responses"],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "results.md").write_text(MARKERS)
    return {"--experiments": folder, "--results": tmp_path / "results", "--out": tmp_path / "runs"}


def options(study: dict[str, Path], *names: str) -> list[object]:
    return [word for name in names for word in (name, study[name])]


def test_runs_over_seeds_go_on_after_a_stop_and_the_page_is_drawn_from_them(study, tmp_path, monkeypatch, capsys):
    real, calls = experiment_runs.pretrain.train, []

    def stopped_once(config, job):
        calls.append((job.run.path.relative_to(study["--out"]).as_posix(), job.resumes))
        if len(calls) == 2:
            raise cli.Interrupted("now")
        real(config, job)

    monkeypatch.setattr(experiment_runs.pretrain, "train", stopped_once)
    command = ["run", "tiny", *options(study, "--experiments", "--results", "--out"), "--device", "cpu"]
    assert run(*command) == cli.INTERRUPTED
    assert "plain/seed5: the same command goes on" in capsys.readouterr().err
    path = study["--results"] / "tiny.json"
    assert [entry["seed"] for entry in read_results(path)["runs"]] == [3], "what is finished is in the file"
    assert run(*command, "--only", "plain", "--seeds", 5) == 0
    assert [(entry["name"], entry["seed"]) for entry in read_results(path)["runs"]] == [("plain", 3), ("plain", 5)]
    assert run(*command) == 0
    assert [folder for folder, _ in calls] == [f"tiny/{each}" for each in (
        "plain/seed3", "plain/seed5", "plain/seed5", "residual/seed3", "residual/seed5")]  # fmt: skip

    content = read_results(path)
    assert {"device", "versions", "commit", "threads"} <= content["environment"].keys()
    for entry in content["runs"]:
        folder = study["--out"] / "tiny" / entry["name"] / f"seed{entry['seed']}"
        assert entry["metrics"] == json.loads((folder / "metrics.json").read_text())
        assert entry["overrides"][0] == "train.log_every=1"
        assert entry["cpu_seconds"] >= 0
        assert entry["time_is_whole"]
        assert entry["curves"]["test"]["iteration"] == [2, 4, 6]
    sessions = {(entry["name"], entry["seed"]): entry["sessions"] for entry in content["runs"]}
    assert sessions == {("plain", 3): 1, ("plain", 5): 2, ("residual", 3): 1, ("residual", 5): 1}
    assert ["responses" in entry for entry in content["runs"]] == [True, False, True, False], "the first seed's"

    page = tmp_path / "results.md"
    assert run("table", *options(study, "--experiments", "--results"), "--page", page) == 0
    text = page.read_text()
    assert text.startswith("by hand\n<!-- drawn")
    assert text.endswith("<!-- end: experiments -->\nby hand, too\n")
    errors = [100 * entry["metrics"]["top1_error"] for entry in content["runs"] if entry["name"] == "plain"]
    assert f"| plain | 3, 5 | {statistics.fmean(errors):.1f} ± {statistics.stdev(errors):.1f} |" in text
    assert "| `tiny` | run | plain is worse | " in text
    for kind in ("curves", "responses"):
        assert (tmp_path / f"images/tiny_{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert run("table", *options(study, "--experiments", "--results"), "--page", page) == 0
    assert page.read_text() == text

    # Another recipe under the same name would mix two experiments.
    values = yaml.safe_load((study["--experiments"] / "tiny.yaml").read_text())
    (study["--experiments"] / "tiny.yaml").write_text(yaml.safe_dump({**values, "overrides": ["optim.lr=0.01"]}))
    assert run(*command) == cli.USER_ERROR
    assert "was made with another config or overrides" in capsys.readouterr().err


def test_the_committed_page_is_what_the_json_says():
    experiments = script.load_experiments(ROOT / "configs/experiments")
    path = ROOT / "docs/results.md"
    text = path.read_text(encoding="utf-8")
    page = Page.read(experiments, ROOT / "docs/results", ROOT / "docs/images")
    assert redrawn(text, page, "docs/results.md") == text, "run: python tools/experiments.py table"
    for name in experiments:
        for kind in experiments[name].figures:
            if any(kind in entry for entry in page.entries(name)):
                assert (ROOT / f"docs/images/{name}_{kind}.png").is_file()


def test_what_has_run_has_a_reading_and_what_has_not_has_none():
    experiments = script.load_experiments(ROOT / "configs/experiments")
    page = Page.read(experiments, ROOT / "docs/results", ROOT / "docs/images")
    for name, experiment in experiments.items():
        if page.state(name) == "not run":
            assert experiment.reading == "not run", name


def test_list_says_how_far_each_has_come(capsys):
    assert run("list") == 0
    printed = capsys.readouterr().out
    for path in (ROOT / "configs/experiments").glob("*.yaml"):
        assert path.stem in printed


# ---------------------------------------------------------------------------------------------- tests of detectors


@pytest.mark.slow
def test_detectors_of_both_kinds_and_their_tests(tmp_path, tiny_config):
    """All that an experiment can ask of detectors, on the tiny set."""
    values = yaml.safe_load(tiny_config.read_text())
    values["schedule"]["iterations"] = 2
    values["model"] |= {"neck": "fpn", "fpn_channels": 8, "anchors": {"sizes": [[8], [16], [32], [48], [64]]}}
    values["model"]["rpn"]["hidden_channels"] = 8
    values["model"]["box"]["fc_width"] = 16
    values["data"]["val"] = values["data"]["test"]
    tiny_config.write_text(yaml.safe_dump(values))
    folder = tmp_path / "experiments"
    folder.mkdir()
    experiment = {
        "title": "Tiny",
        "budget": "2 iterations.",
        "seeds": [0, 1],
        "runs": [
            {"name": "ours", "config": "tiny"},
            {"name": "torchvision", "config": "tiny", "trainer": "torchvision", "seeds": [0]},
        ],
        "tests": [
            {
                "name": "voting",
                "run": "ours",
                "overrides": ["test.vote_iou=0.5"],
                "among": [[], ["test.scales=[48,64]"]],
            },
            {"name": "both", "run": "ours", "ensemble": True},
        ],
        "columns": [{"title": "AP", "metric": "metrics.coco.AP"}],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment))
    results = tmp_path / "results"
    command = ["run", "tiny", "--experiments", folder, "--results", results, "--out", tmp_path / "runs"]
    assert run(*command, "--device", "cpu") == 0
    content = read_results(results / "tiny.json")
    assert [(each["name"], each["seed"]) for each in content["runs"]] == [
        ("ours", 0), ("ours", 1), ("torchvision", 0),
    ]  # fmt: skip
    assert [each["name"] for each in content["tests"]] == ["voting", "voting", "both"]
    assert all("AP" in each["metrics"]["coco"] for each in content["runs"] + content["tests"])


def test_a_deeper_net_starts_from_a_trained_one(study):
    path = study["--experiments"] / "tiny.yaml"
    values = yaml.safe_load(path.read_text())
    deeper = {"name": "deeper", "config": "tiny_net", "starts_from": "plain", "deepen": [2, 1],
              "overrides": ["model.plain=true", "model.backbone.stages.0.units=2"]}  # fmt: skip
    changes = {"runs": [values["runs"][0], deeper], "claims": [], "seeds": [3], "figures": []}
    path.write_text(yaml.safe_dump({**values, **changes}))
    (study["--experiments"].parent / "tiny_net.yaml").write_text(
        (study["--experiments"].parent / "tiny_net.yaml").read_text().replace("mean: pixel", "mean: channel")
    )
    assert run("run", "tiny", *options(study, "--experiments", "--results", "--out"), "--device", "cpu") == 0
    folder = study["--out"] / "tiny/deeper"
    assert (folder / "start_seed3.pt").is_file()
    units = {name.split(".")[1] for name in load_checkpoint(folder / "seed3/last.pt")["model"] if "layer1." in name}
    assert units == {"0", "1"}, "two units where the trained net has one"
    assert read_results(study["--results"] / "tiny.json")["runs"][1]["starts_from"] == "plain"


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "there is nothing to do"),
        ({"runs": [{"name": "a", "config": "x"}, {"name": "a", "config": "x"}]}, "two rows are called a"),
        ({"runs": [{"name": "a", "config": "x", "starts_from": "b"}]}, "there is no earlier run b"),
        ({"runs": [{"name": "a", "config": "x", "deepen": [1]}]}, "deepen needs starts_from"),
        ({"tests": [{"name": "t", "run": "c"}]}, "there is no run c"),
        ({"claims": [{"claim": "c", "metric": "m", "pairs": [["plain", "z"]]}]}, "there is no row z"),
        ({"claims": [{"claim": "c", "metric": "m"}]}, "nothing decides the claim"),
        ({"claims": [{"claim": "c", "metric": "m", "of": ["plain"]}]}, "of goes with at_least or at_most"),
        ({"seeds": []}, "seeds"),
        ({"seed": [1]}, "did you mean seeds?"),
        ({"runs": [{"name": "a", "config": "nowhere"}], "claims": []}, "nowhere.yaml: there is no such config file"),
        ({"runs": [{"name": "plain", "config": "tiny_net", "trainer": "torchvision"}], "claims": []}, "trains detect"),
        ({"tests": [{"name": "t", "run": "plain"}]}, "trains no detector of this project"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(changes, message, study, capsys):
    path = study["--experiments"] / "tiny.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    assert run("run", "tiny", *options(study, "--experiments", "--results", "--out")) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_names_and_files_that_are_not_there(study, tmp_path, capsys):
    assert run("run", "tinny", *options(study, "--experiments")) == cli.USER_ERROR
    assert "did you mean tiny?" in capsys.readouterr().err
    assert run("run", "tiny", "--only", "pain", *options(study, "--experiments")) == cli.USER_ERROR
    assert "the runs of tiny are plain, residual" in capsys.readouterr().err
    assert run("run", "tiny", "--seeds", "3", "4", *options(study, "--experiments", "--out")) == cli.USER_ERROR
    assert "the seeds of tiny are 3, 5" in capsys.readouterr().err
    assert run("list", "--experiments", tmp_path / "empty") == cli.USER_ERROR
    for text, message in (
        ("no markers\n", "exactly one"),
        (MARKERS.replace("experiments", "exp"), "nothing is called"),
    ):
        (tmp_path / "results.md").write_text(text)
        command = ["table", *options(study, "--experiments", "--results"), "--page", tmp_path / "results.md"]
        assert run(*command) == cli.USER_ERROR
        assert message in capsys.readouterr().err
    study["--results"].mkdir()
    (study["--results"] / "tiny.json").write_text("{")
    assert run("table", *options(study, "--experiments", "--results"), "--page", tmp_path / "results.md") == 2
    assert "tiny.json: not valid JSON" in capsys.readouterr().err
