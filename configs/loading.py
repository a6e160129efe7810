"""YAML -> schema: every mistake is told in one line with the file, the dotted path and the mend.

YAML is read by the rules of YAML 1.2: `1e-3` is a number, `no` and `2007-01-01` are texts, `010` is ten. Keys that
stand twice are errors, as are keys that the schema does not know. `--set a.b=value` passes the same checks.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.detection import DetectionConfig
from configs.errors import UserError

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(path: Path | str, overrides: Sequence[str] = (), schema: type[Schema] = DetectionConfig) -> Schema:
    """The checked config of a YAML file.

    Args:
        path: the YAML file.
        overrides: texts `dotted.path=value`, the value in YAML; list items by their index: `data.train.0.root=my_data`.
        schema: the pydantic class to check against.

    Raises:
        UserError: the file is missing, is no YAML, or does not fit the schema.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse_config(parse_yaml(text, str(path)), overrides, schema, str(path))


def parse_config(values: Any, overrides: Sequence[str], schema: type[Schema], source_name: str) -> Schema:
    """The checked config of plain nested dictionaries; see `load_config`. `source_name` stands in the messages."""
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{source_name}: a config is a mapping of keys to values, this is {_describe(values)}")
    origins: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        values, path = _with_override(values, override)
        origins[path] = f"--set {override}"
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(_one_line(error, values, schema, source_name, origins)) from None


def dump_config(config: BaseModel) -> str:
    """The config as YAML, defaults included; `parse_config` of it gives an equal config."""
    return yaml.dump(
        config.model_dump(mode="json"),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=120,
        allow_unicode=True,
    )


def parse_yaml(text: str, source_name: str) -> Any:
    """The values of a YAML text.

    Raises:
        UserError: no YAML, or a key stands twice in a mapping.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source_name}:{mark.line + 1}" if mark else source_name
        raise UserError(f"{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source_name}: no YAML: {' '.join(str(error).split())}") from None


# ---------------------------------------------------------------------------------------------- YAML

_SCALARS = {  # YAML 1.2 core schema: tag -> (pattern, possible first characters)
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:merge": (r"^<<$", "<"),
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # none of YAML 1.1's

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key_node, _ in node.value:
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is not None and key != "<<":
                    if key in seen:
                        raise yaml.constructor.ConstructorError(
                            problem=f"the key {key} stands twice (first in line {seen[key]}): remove one",
                            problem_mark=key_node.start_mark,
                        )
                    seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read as a text."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}  # none of YAML 1.1's


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)  # YAML 1.1 reads 010 as eight


# ---------------------------------------------------------------------------------------------- --set


def _with_override(values: dict, override: str) -> tuple[dict, tuple[str | int, ...]]:
    """A copy of `values` with one `dotted.path=value` applied, and the path."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UserError(f"--set {override}: write it as key.path=value")
    value = parse_yaml(text, f"--set {override}")
    path: list[str | int] = []
    root: dict = dict(values)
    parent: Any = root
    keys = name.split(".")
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        where = ".".join(map(str, path)) or "the config"
        if isinstance(parent, list):
            if not key.isdecimal() or int(key) >= len(parent):
                indices = f"an index 0..{len(parent) - 1}" if parent else "the whole list"
                raise UserError(f"--set {override}: {where} is a list of {len(parent)}: give {indices}, not {key!r}")
            step: str | int = int(key)
            child = parent[step]
        elif isinstance(parent, dict):
            step = key
            child = parent.get(key)
        else:
            raise UserError(f"--set {override}: {where} is {_describe(parent)}: it has no key {key!r}")
        path.append(step)
        if last:
            parent[step] = value
        else:  # copied level by level: the caller's dictionaries stay as they are
            parent[step] = (
                dict(child)
                if isinstance(child, dict)
                else list(child)
                if isinstance(child, list)
                else {}
                if child is None
                else child
            )
            parent = parent[step]
    return root, tuple(path)


# ---------------------------------------------------------------------------------------------- messages

_SHOWN = 3
"""So many mistakes are told in one message."""


def _one_line(
    error: ValidationError, values: dict, schema: type[BaseModel], source_name: str, origins: dict[tuple, str]
) -> str:
    texts: dict[tuple, str] = {}
    details = error.errors(include_url=False)
    for detail in details:
        path = _real_path(detail, values)
        siblings = [other for other in details if _real_path(other, values) == path]
        origin = next((text for place, text in origins.items() if path[: len(place)] == place), source_name)
        texts.setdefault(path, f"{origin}: {_explain(path, siblings, schema)}")
    # A union complains about the whole value too; the complaint about the item inside says more.
    shown = [text for path, text in texts.items() if not any(path == deeper[: len(path)] != deeper for deeper in texts)]
    rest = f" (and {len(shown) - _SHOWN} more)" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + rest


def _real_path(detail: ErrorDetails, values: Any) -> tuple[str | int, ...]:
    """The keys of the location that stand in the input: pydantic puts the names of union members between them."""
    path: list[str | int] = []
    location = detail["loc"]
    for position, step in enumerate(location):
        inside = (isinstance(values, dict) and step in values) or (
            isinstance(values, list) and isinstance(step, int) and step < len(values)
        )
        if inside:
            path.append(step)
            values = values[step]
        elif position == len(location) - 1 and detail["type"] == "missing":
            path.append(step)
        elif (
            isinstance(values, dict) and isinstance(step, str) and step.isidentifier() and position < len(location) - 1
        ):
            path.append(step)  # a section that the file leaves out
            values = {}
    return tuple(path)


def _explain(path: tuple[str | int, ...], details: list[ErrorDetails], schema: type[BaseModel]) -> str:
    """What is wrong at a path, in plain words."""
    name = ".".join(map(str, path)) or "the config"
    detail = details[0]
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {name}{_nearest_key(path, schema)}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "value_error":
        return f"{name}: {context['error']}" if path else str(context["error"])
    value = detail["input"]
    if len(details) > 1:  # a union: no member fits
        wanted = " or ".join(dict.fromkeys(_wanted(other) for other in details))
    else:
        wanted = _wanted(detail)
    hint = ""
    if kind == "literal_error" and isinstance(value, str):
        allowed = [text.strip().strip("'\"") for text in re.split(r",| or ", context["expected"])]
        near = difflib.get_close_matches(value, allowed, 1)
        hint = f": did you mean {near[0]}?" if near else ""
    elif kind == "string_type" and isinstance(value, (int, float)):
        hint = ": put it in quotes"
    return f"{name} must be {wanted}, not {_describe(value)}{hint}"


_WANTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "a text", "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values", "model_attributes_type": "a mapping of keys to values",
    "none_required": "null",
}  # fmt: skip


def _wanted(detail: ErrorDetails) -> str:
    """What the schema wants at the place of an error."""
    kind, context = detail["type"], detail.get("ctx", {})
    bounds = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        return f"{words} {context[key]:g}"
    if kind == "literal_error":
        return f"one of {', '.join(text.strip().strip(chr(39)) for text in re.split(r',| or ', context['expected']))}"
    if kind in ("too_short", "too_long"):
        limit = context.get("min_length", context.get("max_length"))
        return f"of {'at least' if kind == 'too_short' else 'at most'} {limit} items"
    return _WANTED.get(kind) or detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _describe(value: Any) -> str:
    """A value as a person writes it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_key(path: tuple[str | int, ...], schema: type[BaseModel]) -> str:
    """Hint to the key that was meant: alike in the same section, the same in another one, or the section's keys."""
    section = _section(schema, path[:-1])
    names = list(section.model_fields) if section else []
    wrong = str(path[-1])
    prefix = ".".join(map(str, path[:-1]))
    near = difflib.get_close_matches(wrong, names, 1)
    if near:
        return f": did you mean {'.'.join(filter(None, (prefix, near[0])))}?"
    elsewhere = [dotted for dotted in _dotted_names(schema) if dotted.rpartition(".")[2] == wrong]
    if elsewhere:  # the plainest ones: some sections have options that stand in for another section's
        depth = min(dotted.count(".") for dotted in elsewhere)
        return f": did you mean {' or '.join(dotted for dotted in elsewhere if dotted.count('.') == depth)}?"
    return f": {prefix or 'the config'} has {', '.join(names)}"


def _section(schema: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The schema's class at a path."""
    section: type[BaseModel] | None = schema
    for step in path:
        if isinstance(step, int):
            continue
        if section is None or step not in section.model_fields:
            return None
        section = next(_sections_of(section.model_fields[step].annotation), None)
    return section


def _sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schema classes in a type such as `list[SourceConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, tuple):
        for argument in get_args(annotation):
            yield from _sections_of(argument)


def _dotted_names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of a schema, as dotted paths."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for section in _sections_of(field.annotation):
            yield from _dotted_names(section, f"{prefix}{name}.")


def _nearest_file(path: Path) -> str:
    """Hint to a file of a like name beside a missing one, or in configs/."""
    folder = path.parent if path.parent.is_dir() else Path("configs")
    names = [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f": did you mean {folder / near[0]}?" if near else ""
