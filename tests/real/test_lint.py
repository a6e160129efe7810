"""The linter on real data: it finds the two boxes without an area that BCCD has, and no other error."""

from __future__ import annotations

from datasets.lint import lint_records
from datasets.lint_voc import lint_voc_files
from datasets.voc import read_voc


def test_dirty_records_of_bccd(data_dir) -> None:
    parts = [read_voc(data_dir / "bccd", image_set) for image_set in ("trainval", "test")]
    errors = [problem for part in parts for problem in lint_records(part) if problem.severity == "error"]
    assert {(problem.code, problem.file.rsplit("/", 1)[-1], problem.thing.split(" (")[0]) for problem in errors} == {
        ("box-zero-extent", "BloodImage_00338.xml", "object 12"),
        ("box-zero-extent", "BloodImage_00343.xml", "object 3"),
    }


def test_files_of_bccd(data_dir) -> None:
    problems = lint_voc_files(data_dir / "bccd", ["trainval", "test"])
    assert not [problem.line() for problem in problems if problem.severity == "error"]
