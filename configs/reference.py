"""What the schemas say about themselves: JSON schemas, by which editors complete YAML, and the reference page.

Both are written by `tools/config_schema.py`; a test checks that the committed files are up to date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from configs.classification import ClassificationConfig
from configs.detection import DetectionConfig
from configs.experiments import ExperimentConfig
from configs.localisation import LocalisationConfig

SCHEMAS: dict[str, type[BaseModel]] = {
    "detection": DetectionConfig,
    "classification": ClassificationConfig,
    "localisation": LocalisationConfig,
    "experiment": ExperimentConfig,
}
"""Name of the JSON schema -> the class at the top of such a config."""

_INTRODUCTION = """\
# Configuration

Every option there is, with its type, default and meaning. This page is written by `python tools/config_schema.py` from
the classes in `configs/`; change it there.

A config is a YAML file of sections; `--set section.key=value` changes a value of it on the command line and passes the
same checks (items of lists by number: `data.train.0.root=my_data`). Unknown keys, and keys that appear twice, are
errors. Keys without a default must be given. Keys that moved are listed in [migration.md](migration.md).

Editors with a YAML language server complete and check keys by the JSON schemas in `configs/schema/`: begin your file
with `# yaml-language-server: $schema=` and the path of the schema, as the files in `configs/` do.
"""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON schema (draft 7, which all editors know) of one of `SCHEMAS`."""
    made = SCHEMAS[name].model_json_schema()
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_draft_7(made)}


def _draft_7(node: Any) -> Any:
    """Tuples by draft 7's name, descriptions in one line; no titles, which repeat the keys; no defaults of sections."""
    if isinstance(node, list):
        return [_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {}
    for key, value in node.items():
        if key == "prefixItems":
            result["items"] = _draft_7(value)
        elif key == "description" and isinstance(value, str):
            result[key] = " ".join(inspect.cleandoc(value).split())
        elif key == "title" or (key == "default" and "$ref" in node):
            continue
        elif key in ("properties", "$defs"):  # names of keys and classes, which may be any word
            result[key] = {name: _draft_7(inner) for name, inner in value.items()}
        else:
            result[key] = _draft_7(value)
    return result


# ---------------------------------------------------------------------------------------------- the page


def reference_page() -> str:
    """docs/configuration.md: a table for each section of each schema."""
    parts = [_INTRODUCTION]
    for name in SCHEMAS:
        schema = json_schema(name)
        parts.append(f"## {name.capitalize()}\n\n{_escaped(schema['description'])}\n\n{_table(schema, schema)}")
        for section, paths in _paths(schema).items():
            heading = ", ".join(f"`{path}`" for path in paths)
            inner = schema["$defs"][section]
            parts.append(f"### {heading}\n\n{_escaped(inner['description'])}\n\n{_table(inner, schema)}")
    return "\n".join(parts)


def _paths(schema: dict[str, Any]) -> dict[str, list[str]]:
    """Section's class -> the dotted paths under which it is found, in the order of the config."""
    found: dict[str, list[str]] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node["properties"].items():
            for section, in_list in _sections_in(value):
                path = f"{prefix}{key}.N" if in_list else f"{prefix}{key}"
                found.setdefault(section, []).append(path)
                walk(schema["$defs"][section], f"{path}.")

    walk(schema, "")
    return found


def _sections_in(node: dict[str, Any], in_list: bool = False) -> Iterator[tuple[str, bool]]:
    """The classes that a value may be of, and whether it is a list of them."""
    if "$ref" in node:
        yield node["$ref"].rpartition("/")[2], in_list
    for inner in node.get("anyOf", []):
        yield from _sections_in(inner, in_list)
    if isinstance(node.get("items"), dict):
        yield from _sections_in(node["items"], True)


def _table(section: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in section["properties"].items():
        if key in section.get("required", []):
            default = "required"
        else:
            default = f"`{_yaml(value['default'])}`" if "default" in value else ""
        described = value if "description" in value else schema["$defs"][value["$ref"].rpartition("/")[2]]
        meaning = _escaped(described["description"])
        rows.append(f"| `{key}` | {_type(value)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _type(node: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "$ref" in node:
        return "section"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(inner) for inner in node["anyOf"]))
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    kind = node.get("type")
    if kind == "array":
        items = node.get("items", {})
        if isinstance(items, list):
            return f"list of {len(items)}: {_type(items[0])}"
        return f"list of {_type(items)}{'s' if '$ref' in items else ''}"
    if kind in ("integer", "number"):
        return f"{'integer' if kind == 'integer' else 'number'}{_bounds(node)}"
    return {"boolean": "true, false", "string": "text", "null": "null", "object": "mapping"}[kind or "object"]


def _bounds(node: dict[str, Any]) -> str:
    signs = {"minimum": "&ge;", "exclusiveMinimum": "&gt;", "maximum": "&le;", "exclusiveMaximum": "&lt;"}
    return ", ".join(f" {sign} {node[name]:.10g}" for name, sign in signs.items() if name in node).replace(",  ", ", ")


def _yaml(value: Any) -> str:
    """A default as one writes it in YAML."""
    if isinstance(value, list):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def _escaped(text: str) -> str:
    """A description in one line that a table can hold."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
