"""Whether a checkpoint and a config belong to the same training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from configs.errors import UserError
from configs.moved import with_new_names
from tools.runtime.distributed import say
from tools.runtime.texts import differing, leaves

MAY_CHANGE = (
    "data.train", "data.val", "data.test", "data.num_workers", "data.cache", "data.on_error", "metrics", "schedule",
    "optim.lr", "test", "train.accumulate", "train.compile", "train.graphs", "train.log_every", "train.validate_every",
    "train.checkpoint_every", "train.keep_last", "train.transfer_classes",
    "train.best_metric", "train.patience", "train.alternating.rpn.schedule", "train.alternating.detector.schedule",
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
    stored = with_new_names(stored, type(config), str(path), stored=True)
    old, new = dict(leaves(stored)), dict(leaves(config.model_dump(mode="json")))
    for name in _in_both(old, new):
        before, now = old.get(name, "a section"), new.get(name, "a section")
        if before == now:
            continue
        if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in MAY_CHANGE):
            raise UserError(
                f"{path}: was trained with {name} {before}, the config now says {now}: "
                "set it back to resume, or start a new run with --init-from"
            )
        say(f"resumed with {name} {now} (before: {before})")
    if stored_classes != class_names:
        which = differing(stored_classes, class_names)
        raise UserError(f"{path}: was trained on other classes than the data's ({which} differ)")


def _in_both(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The names to compare, in order: leaves of both, and sections that are null in one of them.

    A leaf that only one has is an option of another version of this project, and no change.
    """
    names = [name for name in new if name in old]
    for one, other in ((old, new), (new, old)):
        names += [name for name in one if name not in other and any(key.startswith(f"{name}.") for key in other)]
    return names
