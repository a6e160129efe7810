"""A folder of one's own photos as sources of a config: found, read, divided. For init_data and convert_data."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from configs.detection import DataConfig, SourceConfig
from configs.errors import UserError
from datasets.build import build_records
from datasets.layouts import find_layout
from datasets.layouts.inventory import Layout
from datasets.records import Records
from datasets.split import PARTS, choose_seed, group_keys, shares_of
from datasets.survey import collected_warnings, counts_from_zero

ROBOFLOW_COPIES = r"([^/]+)\.rf\.[^/]*$"
"""Roboflow writes several altered copies of a photo, photo_jpg.rf.<hash>.jpg: they must stay in one part."""


@dataclass(frozen=True)
class OwnData:
    """A data set as sources and as what they hold, by part (`all`: it has no parts)."""

    layout: Layout
    sources: dict[str, list[SourceConfig]]
    records: dict[str, Records]
    class_names: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def num_unlabelled(self) -> int:
        """Images without annotation that are taken as images without objects for want of knowing better.

        0 where the format says what such an image is.
        """
        if not any(source.unlabelled == "empty" for items in self.sources.values() for source in items):
            return 0
        return self.num_images - self.layout.num_labelled

    @property
    def num_images(self) -> int:
        return sum(len(records) for records in self.records.values())


def read_own_data(given: Path | Layout) -> OwnData:
    """What a folder holds, part by part, with the same labels in all.

    Args:
        given: the folder, or what `find_layout` found in it.

    Raises:
        UserError: it has no layout that is known, or an annotation is broken.
    """
    layout = given if isinstance(given, Layout) else find_layout(given)
    sources = {part: layout.parts[part] for part in ("all", *PARTS) if part in layout.parts}
    notes = list(layout.notes)
    with collected_warnings() as warnings:
        loose = {part: _read(items, layout.class_names) for part, items in sources.items()}
    if any(source.format == "voc" for items in sources.values() for source in items):
        guesses = [counts_from_zero(records, zero_based=False) for records in loose.values()]
        if any(guesses) and False not in guesses:
            notes.append("coordinates of 0: this XML counts pixels from 0 (zero_based: true)")
            sources = {
                part: [source.model_copy(update={"zero_based": True}) for source in items]
                for part, items in sources.items()
            }
            with collected_warnings() as warnings:
                loose = {part: _read(items, layout.class_names) for part, items in sources.items()}
    class_names = layout.class_names or list(
        dict.fromkeys(name for records in loose.values() for name in records.class_names)
    )
    if not class_names:
        raise UserError(f"{layout.root}: no image has an annotated object ({layout.name})")
    records = {part: some.with_classes(class_names) for part, some in loose.items()}
    return OwnData(layout, sources, records, class_names, notes + warnings)


def _read(sources: Sequence[SourceConfig], class_names: list[str] | None) -> Records:
    data = DataConfig(train=list(sources), classes=class_names or "auto")
    if class_names is None and len(sources) == 1:  # in the tool's own order
        from datasets.build import read_source

        return read_source(sources[0], data, Path("/"), "train")
    return build_records(data, "train", Path("/"))


def divide(own: OwnData, split: float | list[float] = 0.8, pattern: str | None = None) -> OwnData:
    """The data with a training and a validation part: its own, or one made by a hash of the file names.

    Args:
        own: as `read_own_data` gives it.
        split: the share that trains, the rest validates; or the shares of train, val and test.
        pattern: `split_by` of the sources.

    Raises:
        UserError: there is only one image, or one group.
    """
    whole = "all" if "all" in own.sources else "train"
    if whole == "train" and "val" in own.sources:
        return own
    sources, records = dict(own.sources), own.records[whole]
    items, notes = sources.pop(whole), list(own.notes)
    names = [Path(path).name for path in records.image_paths.tolist()]
    if pattern is None and _has_copies(names):
        pattern = ROBOFLOW_COPIES
        notes.append("several copies of a photo each (Roboflow's augmentation): split_by keeps them in one part")
    folder = Path(items[0].images or items[0].root or "/")
    keys = group_keys(records.image_paths.tolist(), pattern, folder.parent if folder.name == "*" else folder)
    seed = choose_seed(records, split, keys)
    divided = [source.model_copy(update={"split": split, "split_by": pattern, "split_seed": seed}) for source in items]
    parts = PARTS[: len(shares_of(split))]
    made = {part: divided for part in parts if part not in sources}
    sources = {part: {**sources, **made}[part] for part in PARTS if part in {**sources, **made}}
    if pattern is None and (hint := _video_hint(names)):
        notes.append(hint)
    data = DataConfig(train=sources["train"], val=sources["val"], test=sources.get("test", []), classes=own.class_names)
    with collected_warnings():
        divided_records = {part: build_records(data, part, Path("/")) for part in sources}  # type: ignore[arg-type]
    return replace(own, sources=sources, records=divided_records, notes=notes)


def _has_copies(names: Sequence[str]) -> bool:
    originals = [found[1] for name in names if (found := re.search(ROBOFLOW_COPIES, name))]
    return bool(originals) and len(set(originals)) < len(originals)


def _video_hint(names: Sequence[str]) -> str | None:
    """Advice where numbered names fall into several series, as frames of videos do."""
    series: dict[str, int] = defaultdict(int)
    for name in names:
        series[re.sub(r"[-_ .]*(frame)?[-_ .]*\d+\.\w+$", "", name, flags=re.IGNORECASE)] += 1
    long = Counter({key: count for key, count in series.items() if count >= 3 and key})
    if not len(long) >= 2 or sum(long.values()) < 0.8 * len(names):
        return None
    examples = ", ".join(sorted(long)[:3])
    return (
        f"the names look like {len(long)} series ({examples}, ...): if these are frames of videos, keep each in one "
        r"part with --split-by '(.*?)[-_ .]*(?:frame)?[-_ .]*\d+\.\w+$'"
    )
