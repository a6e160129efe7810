"""What is made from the schemas is up to date; every YAML fits it; every option is described, and read by something."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel

from configs.loading import parse_yaml
from configs.messages import sections_of
from configs.reference import SCHEMAS, json_schema, reference_page
from tools.config_schema import files

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")


def sections(schema: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield schema
    for field in schema.model_fields.values():
        for section in sections_of(field.annotation):
            yield from sections(section)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_committed_files_are_up_to_date(path):
    assert path.read_text(encoding="utf-8") == files()[path], "run: python tools/config_schema.py"


# ---------------------------------------------------------------------------------------------- JSON schema


@pytest.fixture(scope="module")
def validators() -> dict[Path, Draft7Validator]:
    made = {}
    for name in SCHEMAS:
        Draft7Validator.check_schema(json_schema(name))
        made[ROOT / f"configs/schema/{name}.json"] = Draft7Validator(json_schema(name))
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_names_its_schema_and_fits_it(name, validators):
    text = (ROOT / name).read_text()
    match = MODELINE.fullmatch(text.splitlines()[0])
    assert match, "the first line names the schema"
    validator = validators[((ROOT / name).parent / match[1]).resolve()]
    assert [error.message for error in validator.iter_errors(parse_yaml(text, name))] == []


@pytest.mark.parametrize(
    ("keys", "value", "complaint"),
    [
        (("model", "bakbone"), "resnet18", "'bakbone' was unexpected"),
        (("model", "neck"), "bifpn", "'bifpn' is not one of ['none', 'fpn']"),
        (("optim", "lr"), 0, "0 is less than or equal to the minimum of 0"),
        (("model", "box", "bg_iou_range"), [0.1], "[0.1] is too short"),
        (("model", "box", "bg_iou_range"), [0.1, 2], "2 is greater than the maximum of 1"),
        (("model", "box", "score_thresh"), 0.1, "'score_thresh' was unexpected"),
        (("train", "amp"), "fp16", "'fp16' is not one of ['none', 'bf16']"),
        (("seed",), "a", "'a' is not of type 'integer'"),
    ],
)
def test_what_a_config_may_not_hold_editors_refuse_too(keys, value, complaint, validators):
    values = copy.deepcopy(parse_yaml((ROOT / "configs/demo.yaml").read_text(), "demo.yaml"))
    section = values
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    messages = [error.message for error in validators[ROOT / "configs/schema/detection.json"].iter_errors(values)]
    assert len(messages) == 1
    assert complaint in messages[0]


# ---------------------------------------------------------------------------------------------- the page


def test_every_section_and_option_has_a_place_on_the_page():
    page = reference_page()
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert [part.split("\n")[0].lower() for part in parts] == list(SCHEMAS)
    for part, schema in zip(parts, SCHEMAS.values(), strict=True):
        rows = [re.match(r"\| `(\w+)` \| (.+) \| (.*) \| (.+) \|$", line) for line in part.splitlines()]
        rows = [row for row in rows if row]
        assert [row for row in rows if not row[4].strip()] == []
        assert {row[1] for row in rows} == {name for section in sections(schema) for name in section.model_fields}
        assert len(rows) == sum(len(section.model_fields) for section in set(sections(schema)))
    row = "| `bg_iou_range` | list of 2: number &ge; 0, &le; 1 | `[0, 0.5]` | RoIs with an IoU in [low, high) are"
    assert row in page
    assert "### `data.train.N`, `data.val.N`, `data.test.N`\n" in page
    assert "### `schedule`, `train.alternating.rpn.schedule`, `train.alternating.detector.schedule`\n" in page


# ---------------------------------------------------------------------------------------------- read by something


def attributes(node: ast.AST) -> set[str]:
    return {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def test_every_option_is_read_by_something():
    """By its name, outside of configs/ and of the benchmark; or by a property of its section that is read there."""
    read: set[str] = set()
    for package in ("backbones", "datasets", "detection", "tools"):
        for path in (ROOT / package).rglob("*.py"):
            if "benchmarks" not in path.parts:
                read |= attributes(ast.parse(path.read_text()))
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in read:
                read |= attributes(node)
    unread = {
        f"{section.__name__}.{name}"
        for schema in SCHEMAS.values()
        for section in sections(schema)
        for name in section.model_fields
        if name not in read
    }
    assert unread == set()
