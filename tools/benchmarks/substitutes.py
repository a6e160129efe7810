"""Stand-ins for packages that a bare machine lacks, so that the benchmark needs torch, torchvision and numpy alone.

The networks' tables and the config's sections are pydantic models. Here a model only fills in defaults and nested
sections: nothing is checked, for the cases of the benchmark are right. Where pydantic is installed it is used.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

IMPORT_ONLY = ("safetensors", "safetensors.torch")
"""Imported by modules that the benchmark needs, for work that it does not do."""


class Model:
    """What `pydantic.BaseModel` does with values that are right."""

    def __init__(self, **values: Any) -> None:
        for name, kind in _fields(type(self)).items():
            value = values[name] if name in values else getattr(type(self), name)
            object.__setattr__(self, name, _build(kind, value))

    @classmethod
    def model_validate(cls, values: Any) -> Model:
        return values if isinstance(values, cls) else cls(**values)

    def model_dump(self) -> dict[str, Any]:
        return {name: _plain(getattr(self, name)) for name in _fields(type(self))}


@functools.cache
def _fields(model: type[Model]) -> dict[str, Any]:
    hints = typing.get_type_hints(model)
    return {name: hints[name] for name in hints if not name.startswith("_") and name != "model_config"}


def _build(kind: Any, value: Any) -> Any:
    """Mappings become the model that the annotation names; other values stay."""
    if isinstance(kind, type) and issubclass(kind, Model):
        return kind.model_validate(value)
    first = next(iter(typing.get_args(kind)), None)
    if isinstance(value, list | tuple) and isinstance(first, type) and issubclass(first, Model):
        return type(value)(first.model_validate(item) for item in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.model_dump()
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _unchanged(*_: Any, **__: Any) -> Callable:
    return lambda function: function


def _stand_in(name: str, **contents: Any) -> None:
    """Put a module in place. With a spec: `importlib.util.find_spec` raises an error about modules without one."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(contents)
    sys.modules[name] = module


@functools.cache
def install() -> list[str]:
    """Put stand-ins in the place of what is missing; returns the names, at every call the same."""
    missing = []
    if importlib.util.find_spec("pydantic") is None:
        _stand_in(
            "pydantic",
            BaseModel=Model,
            AfterValidator=lambda function: function,
            BeforeValidator=lambda function: function,
            WithJsonSchema=lambda schema: schema,
            ConfigDict=dict,
            Field=lambda default=None, **_: default,
            field_validator=_unchanged,
            model_validator=_unchanged,
            ValidationError=type("ValidationError", (ValueError,), {}),
        )
        _stand_in("pydantic_core", from_json=lambda data, **_: json.loads(data))
        missing.append("pydantic")
    if importlib.util.find_spec("safetensors") is None:
        for name in IMPORT_ONLY:
            _stand_in(name)
        missing.append("safetensors")
    return missing
