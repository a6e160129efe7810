"""Whether a checkpoint and a config belong to the same training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from configs.errors import UserError
from tools.runtime.distributed import say

MAY_CHANGE = (
    "data.train", "data.val", "data.test", "data.num_workers", "metrics", "schedule", "optim.lr", "test",
    "train.accumulate", "train.compile", "train.log_every", "train.validate_every", "train.checkpoint_every",
    "train.best_metric", "train.patience",
)  # fmt: skip
"""What a resumed run may have otherwise: where data lies, how often something is done, how long it goes on and how
fast. Every change is printed. Anything else would make it another training."""


def refuse_another_training(
    path: Path, stored: Mapping[str, Any], config: BaseModel, stored_classes: list[str], class_names: list[str]
) -> None:
    """Compare a checkpoint's config with the present one, and print what has changed.

    Raises:
        UserError: the key that may not change, or the classes that do not fit.
    """
    old, new = dict(_flat(stored)), dict(_flat(config.model_dump(mode="json")))
    for name in new:
        if name not in old or old[name] == new[name]:
            continue
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise UserError(
                f"{path}: was trained with {name} {old[name]}, the config now says {new[name]}: "
                "set it back to resume, or start a new run with --init-from"
            )
        say(f"resumed with {name} {new[name]} (before: {old[name]})")
    if stored_classes != class_names:
        differing = sorted(set(stored_classes) ^ set(class_names)) or ["their order"]
        raise UserError(f"{path}: was trained on other classes than the data's ({', '.join(differing[:5])} differ)")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings under dotted names; lists are leaves."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
