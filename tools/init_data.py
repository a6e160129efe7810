"""Look at a folder of annotated photos: say what it is and what is in it, draw a sheet, and write a config that suits.

    python tools/init_data.py my_photos
    python tools/init_data.py my_photos --out cells.yaml --split-by '(.*)_frame'

Reads what labelImg, Label Studio, CVAT, Roboflow, labelme, VIA, VoTT, Ultralytics, Supervisely and others write
(docs/own_data.md). A folder without parts is divided by a hash of the file names. The config is ready to train:
python tools/train_det.py --cfg my_photos.yaml
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, counted
from configs.files import write_text
from configs.loading import load_config
from datasets.images import read_image
from datasets.records import Records
from datasets.survey import class_table, problems, size_lines
from tools.runtime import cli
from tools.runtime.own_data import OwnData, divide, read_own_data
from tools.runtime.starting_points import choose_start
from tools.runtime.suggest import Plan, config_text, in_minutes, make_plan, this_machine, training_command

SHEET = 16
"""Photos on the sheet."""


def make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="holds photos and annotations, at any depth")
    add("--out", type=cli.output_file, metavar="FILE", help="the config (default: the folder's name with .yaml, here)")
    add("--split", type=float, metavar="SHARE", help="share that trains where there are no parts (default: 0.8)")
    add("--split-by", metavar="PATTERN", help="regular expression: photos with equal first groups stay together")
    add("--start", default="auto", metavar="NAME", help="auto; scratch: random weights; or a detector of docs/zoo.md")
    add("--overwrite", action="store_true", help="write over a config and a sheet that are there")
    return parser


def main(args: argparse.Namespace) -> None:
    share = 0.8 if args.split is None else args.split
    if not 0 < share < 1:
        raise UserError(f"--split {share}: give a share between 0 and 1, such as 0.8")
    folder = args.folder
    out = args.out or Path(f"{_file_name(folder)}.yaml")
    sheet_path = _sheet_path(out, folder)
    _check_out(out, sheet_path, overwrite=args.overwrite)

    found = read_own_data(folder)
    if not any(len(records.labels) for records in found.records.values()):
        raise UserError(f"{folder}: {found.layout.name}, but no image has an annotated object: nothing to train on")
    own = divide(found, share, args.split_by)
    if own is found and (args.split is not None or args.split_by is not None):
        raise UserError(
            f"{folder}: has parts of its own ({', '.join(own.records)}), which --split and --split-by do not change: "
            "leave them out, or make new parts by convert_data.py with its --split and --split-by"
        )
    machine = this_machine()
    start = choose_start(args.start, machine, len(own.records["train"]))
    plan = make_plan(own.records["train"], machine, pretrained=start.name is not None)
    _say(own, plan)
    drawn = _draw(sheet_path, own.records["train"])
    images = ", ".join(f"{len(records)} to {part}" for part, records in own.records.items())
    objects = counted(sum(len(records.labels) for records in own.records.values()), "object")
    objects += f" of {counted(len(own.class_names), 'class')}"
    write_text(
        out,
        config_text(
            own.sources,
            own.class_names,
            plan,
            machine,
            about=f"{folder}: {own.layout.name}; {images}; {objects}.",
            command=training_command(out, start.name),
            start=start.reason,
            model=start.model,
        ),
    )
    load_config(out)  # what was written can be read
    print(f"\nconfig     {out}")
    if drawn:
        print(f"sheet      {sheet_path}: look whether the boxes lie where they should")
    print(f"start      {start.reason}")
    print(f"train      {training_command(out, start.name)}")
    if plan.minutes:
        print(f"           {counted(plan.epochs, 'epoch')}, about {in_minutes(plan.minutes)} on {machine}")


def _file_name(folder: Path) -> str:
    """The folder's name as a file's and a run's: without spaces and signs."""
    return re.sub(r"[^\w.-]+", "_", folder.resolve().name).strip("._") or "my_data"


def _sheet_path(out: Path, folder: Path) -> Path:
    """Beside the config; among the photos under a hidden name, for it must not pass for one of them."""
    inside = out.resolve().is_relative_to(folder.resolve())
    return out.with_name(f"{'.' if inside else ''}{out.stem}_sheet.jpg")


def _check_out(out: Path, sheet: Path, *, overwrite: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: a config is a .yaml file")
    for path in (out, sheet):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: is there already: give another --out, or --overwrite")


def _say(own: OwnData, plan: Plan) -> None:
    """What the folder is, what it holds, and what looks wrong."""
    print(f"layout     {own.layout.name}, in {own.layout.root}")
    divided = [source for items in own.sources.values() for source in items if source.split is not None]
    for source in divided[:1]:
        by = f" and {source.split_by}" if source.split_by else ""
        print(f"parts      made by a hash of the file names{by}: {source.split:g} to train, the rest to validate")
    print("\n".join(size_lines(own.records["train"], plan.min_size, plan.max_size)))
    print("\n".join(class_table(own.records)))
    found = list(own.notes)
    if own.num_unlabelled:
        found.append(
            f"{own.num_unlabelled} of {counted(own.num_images, 'image')} without annotation: taken as images without "
            "objects (unlabelled: empty); if they are only not labelled yet, write unlabelled: skip into the config"
        )
    for part, records in own.records.items():
        found += [f"{part}: {text}" for text in problems(records, part)]
    print("\nlook at" if found else "\nnothing looks wrong")
    for text in found:
        print(f"  - {text}")


def _draw(path: Path, records: Records) -> bool:
    """Photos of the training set with their boxes; whether one of them could be read."""
    from detection.drawing import draw_detections, sheet
    from tools.runtime.pictures import choose_images, write_picture

    pictures = []
    for index in choose_images(records, SHEET):
        try:
            image = read_image(str(records.image_paths[index]), records.image_size(index))
        except UserError as error:  # told above among what to look at; a training says what may be done
            print(f"not on the sheet: {error}")
            continue
        target = records.target(index, image.shape[:2])
        scale = min(640 / max(image.shape[:2]), max(1.0, 320 // min(image.shape[:2])))
        pictures.append(draw_detections(image, target.boxes, target.labels, None, records.class_names, scale=scale))
    if pictures:
        write_picture(path, sheet(pictures))
    return bool(pictures)


if __name__ == "__main__":
    cli.run(main, make_parser())
