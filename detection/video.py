"""Videos frame by frame: read by OpenCV, written as H.264 by PyAV where it is installed, else as MPEG-4 by OpenCV."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from configs.errors import UserError
from configs.files import note_written


class VideoReader:
    """The frames of a video file or a camera, (H, W, 3) uint8 RGB each; one is in memory at a time.

    Args:
        source: a file; or a camera's index, whose frames come without end.

    Attributes:
        rate: frames a second.
        length: number of frames; None: unknown.

    Raises:
        UserError: there is no such file or camera, or it is not a video.
    """

    def __init__(self, source: str | Path | int) -> None:
        self.source = source
        if not isinstance(source, int) and not Path(source).is_file():
            raise UserError(f"{source}: there is no such video")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            what = "there is no such camera" if isinstance(source, int) else "cannot be read as a video"
            raise UserError(f"{source}: {what}")
        self.rate: float = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = frames if frames > 0 and not isinstance(source, int) else None

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()


class VideoWriter:
    """Writes frames as a video: `with VideoWriter(path, rate) as video: video.write(frame)`.

    The file takes its place when the block ends without an error.

    Args:
        path: an .mp4 file.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        # OpenCV and PyAV tell the format by the suffix.
        self._temporary = path.with_name(f".{path.stem[:50]}.part.mp4")
        self._writer: Any = None
        self._stream: Any = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 RGB; all get the size of the first, less an odd row or column.

        Raises:
            UserError: the file cannot be written.
        """
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2  # both formats need even sides
        frame = np.ascontiguousarray(frame[:height, :width])
        if self._writer is None:
            self._size = (width, height)
            self._open(width, height)
        elif (width, height) != self._size:
            frame = cv2.resize(frame, self._size)
        writer: Any = self._writer
        if self._stream is None:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        else:
            picture = importlib.import_module("av").VideoFrame.from_ndarray(frame, format="rgb24")
            writer.mux(self._stream.encode(picture))

    def _open(self, width: int, height: int) -> None:
        if importlib.util.find_spec("av") is None:
            fourcc = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), fourcc, self.rate, (width, height))
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: the video cannot be written")
            return
        self._writer = importlib.import_module("av").open(str(self._temporary), "w")
        self._stream = self._writer.add_stream("h264", rate=Fraction(self.rate).limit_denominator(1001))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._stream is not None and kind is None:
                self._writer.mux(self._stream.encode())
            if self._writer is not None:
                self._writer.close() if self._stream is not None else self._writer.release()
            if kind is None and self._temporary.exists():
                self._temporary.replace(self.path)
                note_written(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
