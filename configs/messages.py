"""What is wrong with a config, in one line: pydantic's findings in plain words, with the path, the value and a hint."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.errors import nearest

_SHOWN = 3
"""Mistakes that one message tells in full."""


def one_line(
    error: ValidationError, values: dict, schema: type[BaseModel], source_name: str, origins: dict[tuple, str]
) -> str:
    """All that pydantic has found, at most three mistakes in full.

    Args:
        error: pydantic's.
        values: what was checked.
        schema: against which class.
        source_name: where the values come from.
        origins: path -> another origin of the value there (a `--set`).
    """
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
    """The keys of the location that are in the input: pydantic puts the names of union members between them."""
    path: list[str | int] = []
    location = detail["loc"]
    last = len(location) - 1
    for position, step in enumerate(location):
        if _holds(values, step):
            path.append(step)
            values = values[step]
        elif position == last and detail["type"] == "missing":
            path.append(step)
        elif position < last and isinstance(values, dict) and isinstance(step, str) and step.isidentifier():
            path.append(step)  # a section that the file leaves out
            values = {}
    return tuple(path)


def _holds(values: Any, step: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(step, int) and step < len(values)
    return isinstance(values, dict) and step in values


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
        near = nearest(value, allowed)
        hint = f": did you mean {near}?" if near else ""
    elif kind == "string_type" and isinstance(value, (int, float)):
        hint = ": put it in quotes"
    return f"{name} must be {wanted}, not {describe(value)}{hint}"


_WANTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "text", "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping of keys to values",
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
        return f"{words} {context[key]:.10g}"
    if kind == "literal_error":
        return f"one of {', '.join(text.strip().strip(chr(39)) for text in re.split(r',| or ', context['expected']))}"
    if kind in ("too_short", "too_long"):
        limit = context.get("min_length", context.get("max_length"))
        return f"of {'at least' if kind == 'too_short' else 'at most'} {limit} items"
    return _WANTED.get(kind) or detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def describe(value: Any) -> str:
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
    """Hint to the key that was meant: a similar one of its section, the same in another, or all of the section."""
    section = section_at(schema, path[:-1])
    names = list(section.model_fields) if section else []
    wrong = str(path[-1])
    prefix = ".".join(map(str, path[:-1]))
    near = nearest(wrong, names)
    if near:
        return f": did you mean {'.'.join(filter(None, (prefix, near)))}?"
    elsewhere = [dotted for dotted in dotted_names(schema) if dotted.rpartition(".")[2] == wrong]
    if elsewhere:  # the plainest ones: some sections have options that stand in for another section's
        depth = min(dotted.count(".") for dotted in elsewhere)
        return f": did you mean {' or '.join(dotted for dotted in elsewhere if dotted.count('.') == depth)}?"
    return f": {prefix or 'the config'} has {', '.join(names)}"


def section_at(schema: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The schema's class at a path."""
    section: type[BaseModel] | None = schema
    for step in path:
        if isinstance(step, int):
            continue
        if section is None or step not in section.model_fields:
            return None
        section = next(sections_of(section.model_fields[step].annotation), None)
    return section


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The schema classes in a type such as `list[SourceConfig] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, tuple):
        for argument in get_args(annotation):
            yield from sections_of(argument)


def dotted_names(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of a schema, as dotted paths."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for section in sections_of(field.annotation):
            yield from dotted_names(section, f"{prefix}{name}.")
