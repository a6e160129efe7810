"""What tools/predict.py does with images and videos: results and pictures, written while they are done.

Memory does not grow with the number of images or frames.
"""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from configs.errors import UserError, counted
from configs.files import replacing
from detection.evaluation.data import Detections, ImageId
from detection.evaluation.write import coco_records, voc_records, writable_id
from detection.inputs import file_input, is_address, is_video, open_video
from detection.prediction import ImageDetections
from detection.predictor import Predictor
from detection.video import VideoWriter
from tools.runtime.pictures import write_picture
from tools.runtime.progress import Progress

DRAWING_THREADS = 4
MOST_WAITING = 32
"""Images that wait to be drawn."""
CSV_COLUMNS = ("image", "category", "xmin", "ymin", "xmax", "ymax", "score")


class PredictionFiles:
    """Writes detections.json and detections.jsonl, and on request detections_coco.json and detections.csv:

        with PredictionFiles(folder, class_names) as files:
            files.add(found)

    detections.jsonl grows line by line; the others take their places when the block ends without an error.

    Args:
        folder: where to.
        class_names: K names.
        coco: COCO results too; a file name that is a number is the image's id, as in COCO's own sets.
        csv: a table too, in VOC's pixels.
    """

    def __init__(self, folder: Path, class_names: list[str], *, coco: bool = False, csv: bool = False) -> None:
        self.folder, self.class_names = folder, class_names
        self.wanted = {"coco": coco, "csv": csv}
        self.images = self.frames = self.objects = 0
        self._stack = ExitStack()
        self._writers: list[Callable[[ImageDetections], None]] = []

    def __enter__(self) -> PredictionFiles:
        with self._stack as stack:
            voc = stack.enter_context(_json_list(self.folder / "detections.json"))
            self._writers.append(lambda found: voc(self._voc(found)))
            if self.wanted["coco"]:
                coco = stack.enter_context(_json_list(self.folder / "detections_coco.json"))
                self._writers.append(lambda found: coco(self._coco(found)))
            if self.wanted["csv"]:
                path = stack.enter_context(replacing(self.folder / "detections.csv"))
                table = csv.writer(stack.enter_context(path.open("w", newline="", encoding="utf-8")))
                table.writerow(CSV_COLUMNS)
                self._writers.append(lambda found: table.writerows(self._csv_rows(found)))
            lines = stack.enter_context(_open(self.folder / "detections.jsonl"))
            self._writers.append(lambda found: self._write_line(lines, found))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def add(self, found: ImageDetections) -> None:
        for write in self._writers:
            write(found)
        self.images += found.frame is None
        self.frames += found.frame is not None
        self.objects += len(found)

    def looked_at(self) -> str:
        """'3 images and 60 frames': what was added."""
        parts = [counted(self.images, "image")] if self.images or not self.frames else []
        return " and ".join([*parts, *([counted(self.frames, "frame")] if self.frames else [])])

    def _voc(self, found: ImageDetections) -> list[dict[str, Any]]:
        return voc_records(Detections.from_images([found.name], [found], self.class_names, frame="voc"))

    def _coco(self, found: ImageDetections) -> list[dict[str, Any]]:
        return coco_records(Detections.from_images([_coco_id(found.name)], [found], self.class_names, frame="coco"))

    def _csv_rows(self, found: ImageDetections) -> Iterator[list[Any]]:
        for record in self._voc(found):
            yield [_plain_text(record["image_id"]), _plain_text(record["category"]), *record["bbox"], record["score"]]

    def _write_line(self, file: IO[str], found: ImageDetections) -> None:
        line: dict[str, Any] = {"image_id": writable_id(found.name)}
        if found.image_size is not None:
            line |= {"height": found.image_size[0], "width": found.image_size[1]}
        if found.frame is not None:
            line["frame"] = found.frame
        keys = ("category", "bbox", "score")
        line["detections"] = [{key: record[key] for key in keys} for record in self._voc(found)]
        file.write(_json(line) + "\n")
        file.flush()


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def _json_list(path: Path) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """A function that appends records to a JSON list, one a line."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        count = 0

        def append(records: list[dict[str, Any]]) -> None:
            nonlocal count
            for record in records:
                file.write(("[\n" if count == 0 else ",\n") + _json(record))
                count += 1

        yield append
        file.write("\n]\n" if count else "[]\n")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _coco_id(name: str) -> ImageId:
    stem = os.path.basename(name).split(".")[0]
    return int(stem) if stem.isascii() and stem.isdigit() and len(stem) <= 15 else name


def _plain_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# ---------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Drawing:
    names: bool = True
    thickness: float = 1.0

    def draw(self, found: ImageDetections) -> np.ndarray:
        """The image with its boxes, (H, W, 3) uint8 RGB."""
        return found.draw(names=self.names, thickness=self.thickness)


def picture_paths(out: Path, files: Sequence[tuple[str, str]]) -> dict[str, Path]:
    """Where each file's picture or video goes: under its own name; formats other than JPEG and PNG become PNG.

    No two files share a picture, also where a disk does not tell capitals apart.

    Raises:
        UserError: a picture would replace one of the inputs.
    """
    inputs = {os.path.realpath(file) for file, _ in files if not is_address(file)}
    taken: set[str] = set()
    paths: dict[str, Path] = {}
    for file, name in files:
        path = out / name
        if is_video(file):
            path = path.with_suffix(".mp4")
        elif path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            path = path.with_name(f"{path.name}.png")
        first, number = path, 1
        while str(path).lower() in taken:
            number += 1
            path = first.with_name(f"{first.stem}-{number}{first.suffix}")
        taken.add(str(path).lower())
        if os.path.realpath(path) in inputs:
            raise UserError(f"{path}: a picture would overwrite this input: choose another folder with --out")
        paths[file] = path
    return paths


def predict_images(
    predictor: Predictor,
    files: Sequence[tuple[str, str]],
    results: PredictionFiles,
    pictures: Mapping[str, Path],
    drawing: Drawing | None,
    batch_size: int,
) -> list[str]:
    """Write the detections and pictures of image files.

    Args:
        predictor: the detector.
        files: files or addresses, and their names.
        results: where detections go.
        pictures: file -> its picture.
        drawing: how; None: no pictures.
        batch_size: images that go through the network together.

    Returns:
        What is wrong with the files that could not be read and were left out.
    """
    unreadable: list[str] = []
    inputs = (file_input(file, name) for file, name in files)
    with ThreadPoolExecutor(DRAWING_THREADS) as pool, Progress(len(files), "predicting", unit="image") as progress:
        drawn: deque[Future[None]] = deque()
        for found in predictor.detect(inputs, batch_size, on_unreadable=unreadable.append):
            results.add(found)
            if drawing is not None:
                drawn.append(pool.submit(_write_picture, drawing, found, pictures[found.path or ""]))
                if len(drawn) > MOST_WAITING:
                    drawn.popleft().result()
            progress.update()
        for one in drawn:
            one.result()
    return unreadable


def _write_picture(drawing: Drawing, found: ImageDetections, path: Path) -> None:
    write_picture(path, drawing.draw(found))


def predict_video(
    predictor: Predictor,
    source: str | int,
    name: str,
    results: PredictionFiles,
    picture: Path,
    drawing: Drawing | None,
    batch_size: int,
) -> None:
    """Write the detections of a video's or camera's frames, and the video with boxes; Ctrl-C ends a camera's.

    Args:
        source: a file, an address or a camera's index.
        name: what results call it.
        picture: the drawn video.
        predictor, results, drawing, batch_size: as for `predict_images`.
    """
    live = isinstance(source, int)
    with open_video(source, name) as video, VideoWriter(picture, video.reader.rate) as writer:
        found_ones = predictor.detect(video.inputs(), 1 if live else batch_size, ahead=0 if live else None)
        try:
            with Progress(video.reader.length, name, unit="frame") as progress:
                for found in found_ones:
                    results.add(found)
                    if drawing is not None:
                        writer.write(drawing.draw(found))
                    progress.update()
        except KeyboardInterrupt:
            if not live:
                raise
