"""Keys that have another name now, and keys that are gone: files, `--set` and checkpoints may still hold them.

The tables below are the only place that knows old names; docs/migration.md lists them for the reader.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from configs.classification import ClassificationConfig
from configs.common import Section
from configs.detection import DetectionConfig
from configs.errors import UserError
from configs.localisation import LocalisationConfig
from configs.messages import section_at

MOVED: dict[type[BaseModel], dict[str, str]] = {
    DetectionConfig: {
        "model.box.score_thresh": "test.score_thresh",
        "model.box.nms_thresh": "test.nms_thresh",
        "model.box.detections_per_img": "test.detections_per_img",
    },
}
"""Schema -> old dotted path -> new one."""

REMOVED: dict[type[BaseModel], dict[str, Any]] = {
    ClassificationConfig: {"train.alternating": None},
    LocalisationConfig: {"train.alternating": None, "train.compile": False},
}
"""Schema -> path that nothing ever read -> its old default, the one value that did what it said."""

logger = logging.getLogger(__name__)


def new_name(path: str, schema: type[BaseModel]) -> str:
    """What a dotted path is called today."""
    return MOVED.get(schema, {}).get(path, path)


def say_moved(source_name: str, old: str, new: str) -> None:
    """Warn, in one line, that a key was given under its old name."""
    logger.warning("%s: %s is now called %s", source_name, old, new)


def with_new_names(
    values: Mapping[str, Any], schema: type[BaseModel], source_name: str, *, stored: bool = False
) -> dict[str, Any]:
    """The values of a config under today's names; one warning for each old name in them.

    Args:
        values: nested mappings; they stay as they are.
        schema: the class that they will be checked against.
        source_name: where they come from, for the messages.
        stored: they come from a checkpoint, whose owner cannot change them: no warnings, and what nothing read is left
            out whatever its value, today's options too (`Section.read_by`).

    Raises:
        UserError: a key is given under both its names, or one that is gone has another value than its default.
    """
    result = dict(values)
    for old, new in MOVED.get(schema, {}).items():
        if not _has(result, old) or not _may_hold(result, new):
            continue
        if _has(result, new):
            raise UserError(f"{source_name}: {old} is the old name of {new}, and both are given: remove {old}")
        result, value = _without(result, old)
        result = _with(result, new, value)
        if not stored:
            say_moved(source_name, old, new)
    for name, default in REMOVED.get(schema, {}).items():
        if not _has(result, name):
            continue
        result, value = _without(result, name)
        if value != default and not stored:
            raise UserError(f"{source_name}: {name} does nothing in this kind of training: remove it")
        if not stored:
            logger.warning("%s: %s does nothing and is no longer an option: remove it", source_name, name)
    return _without_unread(result, schema) if stored else result


def _without_unread(values: Any, section: type[BaseModel]) -> Any:
    """The values of a section without the options that nothing reads, in it and in the sections below it."""
    if isinstance(values, list):
        return [_without_unread(item, section) for item in values]
    if not isinstance(values, Mapping):
        return values
    unread = section.unread(values) if issubclass(section, Section) else {}
    inner = {name: section_at(section, (name,)) for name in values}
    kept = (
        (name, value, inner[name])
        for name, value in values.items()
        if name not in unread or value == section.model_fields[name].default
    )
    return {name: value if below is None else _without_unread(value, below) for name, value, below in kept}


# ---------------------------------------------------------------------------------------------- dotted paths


def _has(values: Any, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return False
        values = values[key]
    return True


def _may_hold(values: Any, path: str) -> bool:
    """Whether all that lies above a path is a mapping or absent; what is not is the schema's to refuse."""
    for key in path.split("."):
        if not isinstance(values, Mapping):
            return False
        values = values.get(key, {})
    return True


def _without(values: Mapping[str, Any], path: str) -> tuple[dict[str, Any], Any]:
    """A copy without the value at a path, and the value."""
    key, _, rest = path.partition(".")
    copy = dict(values)
    if not rest:
        return copy, copy.pop(key)
    copy[key], value = _without(copy[key], rest)
    return copy, value


def _with(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with a value at a path."""
    key, _, rest = path.partition(".")
    return {**values, key: _with(values.get(key, {}), rest, value) if rest else value}
