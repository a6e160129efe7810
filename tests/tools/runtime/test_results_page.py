"""Claims and cells of docs/results.md by hand; the page itself is in tests/tools/test_experiments.py."""

from __future__ import annotations

from configs.experiments import ClaimConfig, ColumnConfig, ExperimentConfig
from tools.runtime.results_page import _run_table, cell, judge


def entries(**values: list[float]) -> list[dict]:
    return [{"name": name, "error": value} for name, each in values.items() for value in each]


def test_a_claim_is_judged_by_means():
    claim = ClaimConfig(claim="b is higher", metric="error", pairs=[("a", "b")], margin=0.1)
    assert judge(claim, entries(a=[0.1, 0.3], b=[0.25, 0.4])) == "holds (smallest difference 0.1250)"
    assert judge(claim, entries(a=[0.1, 0.3], b=[0.2, 0.35])) == "does not hold (smallest difference 0.0750)"
    assert judge(claim, entries(a=[0.1])) == "", "b was not run"
    limit = ClaimConfig(claim="low", metric="error", of=["a"], at_most=0.2)
    assert judge(limit, entries(a=[0.1, 0.3])) == "holds (0.2000)"
    assert judge(limit, entries(a=[0.2, 0.3])) == "does not hold (0.2500)"
    seconds = ClaimConfig(claim="x", metric="wall_seconds", of=["a"], at_most=60)
    assert judge(seconds, [{"name": "a", "wall_seconds": 90.0}]) == "does not hold (1.5 minutes)"


def test_a_cell():
    column = ColumnConfig(title="x", metric="x", digits=2)
    assert cell([], column) == ""
    assert cell([0.5], column) == "0.50"
    assert cell([1.0, 2.0, 3.0], column) == "2.00 ± 1.00"
    best = [column.model_copy(update={"best": which}) for which in ("lowest", "highest")]
    assert [cell([1.0, 2.0, 3.0], each) for each in best] == ["1.00 (2.00 ± 1.00)", "3.00 (2.00 ± 1.00)"]
    assert cell([0.5], best[0]) == "0.50"


def test_published_figures_are_beside_every_row():
    values = {
        "title": "t", "budget": "b",
        "runs": [{"name": "a", "config": "x", "published": "8.81"}, {"name": "b", "config": "x"}],
        "columns": [{"title": "error", "metric": "error", "digits": 1, "best": "lowest"}],
    }  # fmt: skip
    found = [{"name": "a", "seed": seed, "error": error} for seed, error in ((0, 9.0), (1, 11.0))]
    lines = _run_table(ExperimentConfig(**values), found).splitlines()
    assert lines[0] == "|  | seeds | error | published |"
    assert lines[2:] == ["| a | 0, 1 | 9.0 (10.0 ± 1.4) | 8.81 |", "| b |  |  |  |"]
    values["runs"][0].pop("published")
    assert _run_table(ExperimentConfig(**values), found).splitlines()[0] == "|  | seeds | error |"
