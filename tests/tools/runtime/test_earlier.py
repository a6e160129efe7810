"""Results of earlier calls are told apart from those of this one, from a person's files, and from changed ones."""

from __future__ import annotations

from pathlib import Path

from configs.files import noting_written, write_text
from tools.runtime.earlier import LIST, earlier_results, remove


def call(folder: Path, *names: str) -> list[str]:
    """A call that writes files; the earlier ones' that it finds."""
    with noting_written() as written:
        for name in names:
            write_text(folder / name, "result")
    return [path.relative_to(folder).as_posix() for path in earlier_results(folder, written)]


def test_earlier_results_are_remembered_until_they_are_written_anew_or_change(tmp_path: Path) -> None:
    assert call(tmp_path, "a.png", "deep/b.png", "all.json") == []
    (tmp_path / "mine.png").write_text("a person's")
    assert call(tmp_path, "c.png", "all.json") == ["a.png", "deep/b.png"]
    assert call(tmp_path, "a.png", "all.json") == ["c.png", "deep/b.png"]
    (tmp_path / "c.png").write_text("changed by a person")
    found = call(tmp_path, "all.json")
    assert found == ["a.png", "deep/b.png"]
    remove([tmp_path / name for name in found], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LIST, "all.json", "c.png", "mine.png"]
    assert call(tmp_path, "all.json") == []


def test_a_list_that_somebody_wrote_leads_to_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("x")
    stat = (tmp_path / "precious").stat()
    for text in ("[]", "{", f'{{"../precious": [{stat.st_mtime_ns}, {stat.st_size}]}}'):
        (tmp_path / "out" / LIST).write_text(text)
        assert call(tmp_path / "out") == []
