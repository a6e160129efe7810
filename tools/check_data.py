"""Lint a data set before it costs a training: each problem with file, object, value and likely cause.

    python tools/check_data.py --cfg my.yaml
    python tools/check_data.py my_photos --json problems.json --out look/
    python tools/check_data.py --cfg my.yaml --fast            # annotations alone, no image is opened
    python tools/check_data.py --cfg my.yaml --near            # also pictures that are nearly the same

Exit code 0: no errors (warnings and notes there may be); 2: errors. With --policy drop or clip the errors that this
takes out count no more. docs/reliability.md lists the codes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.detection import DataConfig, DetectionConfig, SourceConfig
from configs.errors import UserError, counted, printable
from configs.files import write_text
from configs.loading import load_config
from datasets.build import Split, build_records
from datasets.findings import findings
from datasets.layouts import find_layout
from datasets.layouts.inventory import Layout
from datasets.lint import Problem, clean, is_problem_list, lint_anchors, lint_records, table
from datasets.lint_images import Marks, lint_images, lint_near, lint_splits
from datasets.lint_voc import lint_voc
from datasets.records import Records
from datasets.survey import class_table
from tools.runtime import cli

PARTS: tuple[Split, ...] = ("train", "val", "test")
SHOWN = {"error": 20, "warning": 20, "note": 3}
"""Problems of a code that are printed, by severity; --json has all."""


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__, data_root=True)
    add = parser.add_argument
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="photos and annotations in a layout of docs/own_data.md")
    add("--cfg", type=Path, metavar="FILE", help="a config, whose train, val and test sets are checked")
    cli.add_set(parser)
    add("--fast", action="store_true", help="look at the annotations alone")
    add("--near", action="store_true", help="name pictures that look nearly like another one (perceptual hash)")
    add("--json", type=cli.output_file, metavar="FILE", help="write all problems here")
    add("--out", type=cli.output_folder, metavar="DIR", help="write problems.json, problems.txt, pictures here")
    add("--policy", choices=("error", "drop", "clip"), default="error", help="what happens to boxes that are wrong")
    return parser


def main(args: argparse.Namespace) -> None:
    if (args.folder is None) == (args.cfg is None):
        raise UserError("give a FOLDER or --cfg FILE")
    if args.json is not None and args.json.is_file() and not is_problem_list(args.json):
        raise UserError(f"{args.json}: is there already, and is no list of problems: name another file with --json")
    if args.near and args.fast:
        raise UserError("--near compares pictures, which --fast does not open: give one of them")
    root = cli.find_data_root(args.data_root)
    config = None if args.cfg is None else load_config(args.cfg, args.overrides)
    layout = None if args.folder is None else find_layout(args.folder)
    sources = layout.parts if layout is not None else sources_of(config.data) if config is not None else {}
    problems = lint_voc(sources, root, whole=None if layout is None else layout.root)
    with findings() as found:
        try:
            checked, failure = read_parts(layout, config, root), None
        except UserError as error:  # files that are told one by one may keep the set from being read
            checked, failure = Checked({}, {}), error
    problems = list(dict.fromkeys([*problems, *(Problem(*each) for each in found)]))
    if failure is not None:
        told = any(problem.severity == "error" for problem in problems)
        problems += [] if told else [Problem("set-unreadable", str(args.cfg or args.folder), value=str(failure))]
        say({}, problems)
        write(args, problems)
        raise UserError(f"{failure}{': the rest is checked when the files above are repaired' * told}")
    parts, sizes = checked.records, checked.sizes
    marks, kept = dict[str, dict[str, Marks]](), dict[str, Records]()
    for part, records in parts.items():
        kept[part] = records if args.policy == "error" else clean(records, args.policy)
        if gone := len(records.labels) - len(kept[part].labels):
            print(f"{part}: --policy {args.policy} takes out {counted(gone, 'object')}")
        from_one = all(source.format == "voc" and not source.zero_based for source in checked.sources[part])
        problems += lint_records(kept[part], min_size=sizes[0], max_size=sizes[1], from_one=from_one)
        if not args.fast:
            found, marks[part] = lint_images(records)
            problems += found
    problems += lint_splits(marks) + (lint_near(marks) if args.near else [])
    if config is not None and "train" in kept:
        problems += anchor_problems(config, kept["train"], sizes)
    say(kept, problems)
    write(args, problems)
    if args.out:
        draw(args.out / "pictures.jpg", parts, problems)
    if errors := sum(problem.severity == "error" for problem in problems):
        fix = "repair them; --policy drop or clip takes out wrong boxes"
        raise UserError(f"{counted(errors, 'error')} (see above): {fix}")


def write(args: argparse.Namespace, problems: list[Problem]) -> None:
    """The files of --json and --out."""
    content = json.dumps([problem.to_dict() for problem in problems], indent=1) + "\n"
    if args.json:
        write_text(args.json, content)
    if args.out:
        write_text(args.out / "problems.json", content)
        write_text(args.out / "problems.txt", "".join(f"{printable(problem.line())}\n" for problem in problems))


@dataclass(frozen=True)
class Checked:
    """What is checked: a folder's parts, or a config's."""

    sources: Mapping[str, Sequence[SourceConfig]]
    records: dict[str, Records]
    sizes: tuple[int, int] = (600, 1000)
    """The shorter and the longer side that training resizes to."""


def read_parts(layout: Layout | None, config: DetectionConfig | None, root: Path) -> Checked:
    """The parts of a folder's layout, or of a config, with the training set's classes, as in a training."""
    if layout is not None:
        from tools.runtime.own_data import read_own_data

        own = read_own_data(layout)
        for text in own.notes:
            print(f"look at    {printable(text)}")
        return Checked(own.sources, dict(own.records))
    assert config is not None, "one of the two is given"
    data, records = config.data, {}
    for part in PARTS:
        if not getattr(data, part):
            continue
        names = records["train"].class_names if "train" in records else None
        records[part] = build_records(data, part, root, class_names=names)
    shortest = data.min_size if isinstance(data.min_size, int) else min(data.min_size)
    return Checked(sources_of(data), records, (shortest, data.max_size))


def sources_of(data: DataConfig) -> dict[str, list[SourceConfig]]:
    """The sources of each part that a config has."""
    return {part: getattr(data, part) for part in PARTS if getattr(data, part)}


def anchor_problems(config: DetectionConfig, train: Records, sizes: tuple[int, int]) -> list[Problem]:
    """Whether the config's anchors fit the training set, with a line that says how well."""
    fpn, (min_size, max_size) = config.model.neck == "fpn", sizes
    found, words = lint_anchors(train, config.model.anchors, fpn=fpn, min_size=min_size, max_size=max_size)
    print(words)
    return found


def say(parts: dict[str, Records], problems: list[Problem]) -> None:
    """Print what is there, some problems of each code, and their numbers."""
    if parts:
        print("\n".join(class_table(parts)))
    shown: dict[str, int] = defaultdict(int)
    for problem in problems:
        shown[problem.code] += 1
        if shown[problem.code] <= SHOWN[problem.severity]:
            print(printable(problem.line()))
        elif shown[problem.code] == SHOWN[problem.severity] + 1:
            print(f"{problem.code}: ... (--json FILE has all)")
    print(f"\n{table(problems)}")


def draw(path: Path, parts: dict[str, Records], problems: list[Problem], count: int = 12) -> None:
    """Write a sheet of the images whose annotations have the most problems, with their boxes."""
    from datasets.images import read_image
    from detection.drawing import draw_detections, sheet
    from tools.runtime.pictures import write_picture

    numbers: dict[str, int] = defaultdict(int)
    for problem in problems:
        numbers[problem.file] += problem.severity != "note"
    worst: list[tuple[int, Records, int]] = []
    for records in parts.values():
        for i, image in enumerate(records.image_paths):
            worst.append((numbers.get(image, 0) + numbers.get(records.file_of(i), 0), records, i))
    worst = sorted((item for item in worst if item[0]), key=lambda item: -item[0])[:count]
    pictures = []
    for _, records, i in worst:
        try:
            image = read_image(str(records.image_paths[i]), records.image_size(i))
        except UserError:
            continue
        target = records.target(i, (image.shape[0], image.shape[1]))
        pictures.append(draw_detections(image, target.boxes, target.labels, None, records.class_names))
    if pictures:
        write_picture(path, sheet(pictures))


if __name__ == "__main__":
    cli.run(main, make_parser())
