"""docs/paper.md: each row's files and configs exist, and its command parses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import STARTS, parse

ROOT = Path(__file__).resolve().parents[1]
CELL = re.compile(r"^`([^`]+)`$")


def rows() -> list[list[str]]:
    """The cells of every row of the page's tables."""
    found, inside = [], False
    for line in (ROOT / "docs/paper.md").read_text().splitlines():
        if line.startswith("|---"):
            inside = True
        elif inside and line.startswith("|"):
            found.append([cell.strip() for cell in line.split("|")[1:-1]])
        else:
            inside = False
    return found


ROWS = rows()


def test_the_page_has_the_whole_paper():
    text = " ".join(" ".join(row) for row in ROWS)
    assert len(ROWS) >= 50
    for number in range(1, 15):
        assert re.search(rf"Tables? \d* ?(to )?{number}\b|Table {number}\b", text), f"Table {number}"
    for number in (1, 3, 4, 5, 6, 7):
        assert re.search(rf"Fig\. (\d, )?{number}\b", text), f"Fig. {number}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:50])
def test_a_row(row):
    what, _, file, config, command = row
    assert what
    for cell in (file, config):
        match = CELL.match(cell)
        assert match, cell
        assert (ROOT / match[1]).is_file(), match[1]
    assert config.startswith("`configs/")
    command = CELL.match(command)[1]
    assert STARTS.match(command)
    parse(command)


def test_every_config_of_the_papers_rows_says_its_expectation():
    named = {CELL.match(row[3])[1] for row in ROWS}
    for name in named:
        if "experiments" not in name:
            assert "Expected:" in (ROOT / name).read_text(), name
