"""The files that are made from the configs' classes."""

from __future__ import annotations

import json

from configs.reference import SCHEMAS, json_schema, reference_page
from tools import config_schema


def test_every_schema_and_the_page_have_a_file(root):
    files = config_schema.files()
    assert set(files) == {root / f"configs/schema/{name}.json" for name in SCHEMAS} | {root / "docs/configuration.md"}
    for name in SCHEMAS:
        text = files[root / f"configs/schema/{name}.json"]
        assert json.loads(text) == json_schema(name)
        assert text.endswith("}\n")
    assert files[root / "docs/configuration.md"] == reference_page()


def test_they_are_written_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config_schema, "ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    config_schema.main(config_schema.make_parser().parse_args([]))
    for path, text in config_schema.files().items():
        assert path.read_text(encoding="utf-8") == text
    assert capsys.readouterr().out.splitlines() == [
        *(f"configs/schema/{name}.json" for name in SCHEMAS), "docs/configuration.md"
    ]  # fmt: skip
