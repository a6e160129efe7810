"""YAML -> schema: every mistake is told in one line with the file, the dotted path and the fix.

YAML is read by the rules of YAML 1.2: `1e-3` is a number, `no` and `2007-01-01` are strings, `010` is ten. Keys that
appear twice are errors, as are keys that the schema does not know; keys that moved are accepted under their old names
(`configs.moved`). `--set a.b=value` passes the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.composer import ComposerError

from configs.common import Section
from configs.detection import DetectionConfig
from configs.errors import UserError, nearest
from configs.files import read_text
from configs.messages import describe, one_line, section_at
from configs.moved import new_name, say_moved, with_new_names

Schema = TypeVar("Schema", bound=BaseModel)


def load_config(path: Path | str, overrides: Sequence[str] = (), schema: type[Schema] = DetectionConfig) -> Schema:
    """The checked config of a YAML file.

    Args:
        path: the YAML file.
        overrides: strings `dotted.path=value`, the value in YAML; list items by index: `data.train.0.root=my_data`.
        schema: the pydantic class to check against.

    Raises:
        UserError: the file is missing, is not YAML, or does not fit the schema.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such config file{_nearest_file(path)}")
    return parse_config(parse_yaml(read_text(path, "config file"), str(path)), overrides, schema, str(path))


def parse_config(
    values: Any, overrides: Sequence[str], schema: type[Schema], source_name: str, *, stored: bool = False
) -> Schema:
    """The checked config of plain nested dictionaries; see `load_config`.

    Args:
        values: the dictionaries; they stay as they are.
        overrides, schema: as for `load_config`.
        source_name: where they come from, for the messages.
        stored: the values come from a checkpoint: old names of keys in them are accepted silently.
    """
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{source_name}: a config is a mapping of keys to values, this is {describe(values)}")
    values = with_new_names(values, schema, source_name, stored=stored)
    origins: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        values, path = _with_override(values, override, schema)
        origins[path] = f"--set {override}"
        values = with_new_names(values, schema, f"--set {override}")
    values = _without_the_other_choices(values, origins, schema)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(one_line(error, values, schema, source_name, origins)) from None


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
        UserError: it is not YAML, a key appears twice in a mapping, or it is very large, as text or by references.
    """
    if len(text) > _MOST_LETTERS:
        raise UserError(f"{source_name}: has {len(text)} letters, more than {_MOST_LETTERS}: is it a config?")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source_name}:{mark.line + 1}" if mark else source_name
        raise UserError(f"{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source_name}: this is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, LookupError) as error:  # of a tag: !!int x
        raise UserError(f"{source_name}: a value does not fit its type: {error}") from None


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


_MOST_LETTERS, _MOST_VALUES, _MOST_LEVELS = 1_000_000, 100_000, 100


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and without duplicate keys."""

    yaml_implicit_resolvers = {}  # none of YAML 1.1's

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node whose depth, and whose size with all references followed, are bounded.

        Nine lines of references to references mean 10^9 values otherwise.
        """
        is_reference, place = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self._depth += 1
        self._count += 1
        if self._count > _MOST_VALUES:
            raise ComposerError(problem=f"holds more than {_MOST_VALUES} values", problem_mark=place)
        if self._depth > _MOST_LEVELS:
            raise ComposerError(problem=f"has more than {_MOST_LEVELS} levels", problem_mark=place)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_reference and id(node) not in self._sizes:
            raise ComposerError(problem="a value refers to itself", problem_mark=place)
        if not is_reference:
            children = [] if node is None or isinstance(node, yaml.ScalarNode) else node.value
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            size = self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
            if size > _MOST_VALUES:
                problem = f"holds more than {_MOST_VALUES} values, references followed"
                raise ComposerError(problem=problem, problem_mark=place)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: dict[str, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} appears twice (first in line {seen[key]}): remove one",
                    problem_mark=key_node.start_mark,
                )
            if key is not None and key != "<<":
                seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would not read as text."""

    yaml_implicit_resolvers = {}  # none of YAML 1.1's


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)  # YAML 1.1 reads 010 as eight


# ---------------------------------------------------------------------------------------------- --set


def _with_override(
    values: dict[str, Any], override: str, schema: type[BaseModel]
) -> tuple[dict[str, Any], tuple[str | int, ...]]:
    """A copy of `values` with one `dotted.path=value` applied, and the path, under today's name."""
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not name:
        raise UserError(f"--set {override}: write it as key.path=value")
    value = parse_yaml(text, f"--set {override}")
    today = new_name(name, schema)
    if today != name:
        say_moved(f"--set {override}", name, today)
    return _with_value(values, today.split("."), value, override, ())


def _without_the_other_choices(
    values: dict[str, Any], origins: Mapping[tuple[str | int, ...], str], schema: type[BaseModel]
) -> dict[str, Any]:
    """The values without what belongs to a choice that --set has changed (`Section.read_by`): the milestones of the
    file's policy, say, where another policy is asked for. What --set itself gives stays, and is checked."""
    for *above, choice in origins:
        section = section_at(schema, tuple(above))
        if section is None or not issubclass(section, Section) or choice not in section.read_by:
            continue
        inside: Any = values
        for step in above:
            inside = inside[step]
        for name, chooser in section.unread(inside).items():
            if chooser == choice and (*above, name) not in origins:
                values = _without(values, (*above, name))
    return values


def _without(values: Any, path: tuple[str | int, ...]) -> Any:
    """A copy of nested values without the key at a path."""
    step, *rest = path
    if not rest:
        return {key: value for key, value in values.items() if key != step}
    if isinstance(values, list):
        return [_without(item, tuple(rest)) if number == step else item for number, item in enumerate(values)]
    return {**values, step: _without(values[step], tuple(rest))}


def _with_value(
    values: Any, keys: Sequence[str], value: Any, override: str, above: tuple[str | int, ...]
) -> tuple[Any, tuple[str | int, ...]]:
    """A copy of nested values with another one under `keys`, and the whole path; `above` leads to `values`."""
    if not keys:
        return value, above
    key, *rest = keys
    if values is None or isinstance(values, dict):
        values = values or {}
        child, path = _with_value(values.get(key), rest, value, override, (*above, key))
        return {**values, key: child}, path
    where = ".".join(map(str, above))
    if not isinstance(values, list):
        raise UserError(f"--set {override}: {where} is {describe(values)}: it has no key {key!r}")
    if not key.isdecimal() or int(key) >= len(values):
        indices = f"an index 0..{len(values) - 1}" if values else "the whole list"
        raise UserError(f"--set {override}: {where} is a list of {len(values)}: give {indices}, not {key!r}")
    index = int(key)
    child, path = _with_value(values[index], rest, value, override, (*above, index))
    return [*values[:index], child, *values[index + 1 :]], path


def _nearest_file(path: Path) -> str:
    """Hint to a file of a similar name beside a missing one, or in configs/."""
    folder = path.parent if path.parent.is_dir() else Path("configs")
    near = nearest(path.name, [file.name for file in folder.glob("*.y*ml")] if folder.is_dir() else [])
    return f": did you mean {folder / near}?" if near else ""
