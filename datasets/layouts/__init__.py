"""What a folder of images and annotations is: finds the layout, its parts and its classes by what the files hold.

Nothing is decided by a fixed name where the content can tell: a text file is YOLO's if its lines are, a table is
TensorFlow's if its header is. Parts (train, val, test) come from lists, else from the names of folders and files.
docs/own_data.md lists what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from configs.detection import LISTED_FORMATS
from configs.errors import UserError, counted
from configs.files import read_text
from datasets.annotation_tables import table_rows
from datasets.layouts.folders import find_kitti, find_labelme, find_supervisely, find_voc
from datasets.layouts.inventory import LOOKED_AT, Inventory, Layout, take_inventory
from datasets.layouts.tables import find_coco, find_csv, find_cvat, find_lists, find_via
from datasets.layouts.yolo import find_yolo

FINDERS: tuple[Callable[[Inventory], Layout | None], ...] = (
    find_voc, find_coco, find_yolo, find_labelme, find_via, find_csv, find_supervisely, find_cvat,
    find_lists, find_kitti,
)  # fmt: skip
"""Of layouts that annotate equally many images the first is taken."""


def find_layout(folder: Path) -> Layout:
    """The layout of a folder: of several that fit, the one that annotates the most images.

    Raises:
        UserError: the folder holds no image, or no annotation in a format that is known; or one file annotates all
            images of a part, and there is another such file that cannot be read.
    """
    inventory = take_inventory(folder)
    layouts = [layout for finder in FINDERS if (layout := finder(inventory)) is not None]
    found = [layout for layout in layouts if layout.num_labelled]
    best = max(found, key=lambda layout: layout.num_labelled, default=None)
    of_many = best is None or _format_of(best) in LISTED_FORMATS
    if of_many and inventory.unreadable:  # it may be the annotation of a part, which would be lost
        raise UserError(f"{inventory.unreadable[0]}: repair or remove it")
    if best is None:
        images = set(inventory.images)
        others = sorted({path.suffix.lower() for path in inventory.files if path not in images} - {""})
        raise UserError(
            f"{folder}: holds {counted(len(inventory.images), 'image')} and no annotations that are known "
            f"(files: {', '.join(others) or 'images alone'}): VOC and CVAT XML, COCO JSON, YOLO text, labelme, "
            "VIA, TensorFlow CSV, Supervisely, Label Studio, CreateML, Datumaro, VoTT and KITTI are "
            f"read{_why_not(layouts, inventory)}"
        )
    others = [layout.name for layout in found if layout is not best]
    if others:
        best.notes.append(f"there are also annotations as {' and as '.join(others)}: they are not used")
    return best


def _format_of(layout: Layout) -> str:
    return next(source.format for sources in layout.parts.values() for source in sources)


def _why_not(layouts: list[Layout], inventory: Inventory) -> str:
    """What is wrong with the first annotation file of an unknown folder, to follow a message; nothing without one."""
    if layouts:
        return f": {layouts[0].notes[0]}"
    path = next(iter(inventory.of(".json", ".xml", ".csv", ".txt")), None)
    if path is None:
        if len(inventory.files) > len(inventory.images):
            return ": export them as one of these"
        return ": draw boxes with a labelling tool first (docs/tutorial.md), or put its export beside the images"
    start = " ".join(read_text(path)[:LOOKED_AT].split())
    fix = "export it as one of these"
    if path.suffix.lower() == ".csv":
        table_rows(path)  # raises what is wrong with it
        fix = "its first line must name the columns filename, class, xmin, ymin, xmax, ymax"
        if start.startswith("annotation_id,annotator"):
            fix = "it is Label Studio's: export the project as JSON"
    return f": {path} begins with {start!r}: {fix}"
