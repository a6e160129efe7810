"""A page and an HTTP endpoint around `Predictor`: requests, limits, errors as JSON.

    GET  /                 the page
    GET  /openapi.json     the endpoint's schema
    GET  /api/models       {"models": [{"name", "class_names"}], "limits": {...}}
    POST /api/detect       an image's bytes -> its detections      ?model=NAME&threshold=0.5
    POST /api/detect-clip  a video's bytes -> those of its frames  ?model=NAME&threshold=0.5

It answers everybody who can reach it: there are no accounts. Bound to the machine itself it listens to requests that
name the machine itself, so that no web page of others can talk to it through a browser.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from configs.errors import UserError
from datasets.images import image_file_size, read_image
from detection.inputs import ImageInput, array_input
from detection.predictor import Predictor
from detection.video import VideoReader
from tools.runtime.serving_schema import Limits, openapi

logger = logging.getLogger(__name__)

LEAST_SCORE = 0.05
"""Detections below it are never given."""
PAGE = Path(__file__).with_name("page")
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:"
)
"""The page may use its own files, and pictures that the browser holds already; nothing else."""
DRAINED = 1 << 20
"""Bytes of a refused body that are still read, so that the client gets to read the answer."""


class Refused(Exception):
    """A request that gets an error in place of an answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """The server; `serve_forever` answers requests.

    Args:
        address: host and port; port 0: any free one (`server_port`).
        predictors: name -> detector.
        limits: of each request.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], predictors: Mapping[str, Predictor], limits: Limits) -> None:
        super().__init__(address, Handler)
        self.predictors = predictors
        self.limits = limits
        self.working = threading.BoundedSemaphore(limits.working)
        self.present = threading.BoundedSemaphore(limits.working + limits.waiting)
        self.local = is_loopback(address[0])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "residual-detection"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.app.limits.seconds)

    @property
    def app(self) -> Server:
        """The server, by its own class."""
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, action: Callable[[str], None]) -> None:
        """Do it, or say in JSON why not."""
        try:
            self._check_origin()
            action(urlsplit(self.path).path)
        except Refused as refusal:
            self._send_json({"error": str(refusal)}, refusal.status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # a mistake of ours: the client learns nothing of it
            logger.exception("a request failed")
            self._send_json({"error": "internal error"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_origin(self) -> None:
        """Refuse what another web page sends through the user's browser."""
        host = self.headers.get("Host", "")
        if self.app.local and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            raise Refused(HTTPStatus.FORBIDDEN, "this server listens to requests of its own machine only")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(HTTPStatus.FORBIDDEN, "requests of other web pages are not answered")

    def _get(self, path: str) -> None:
        if path in FILES:
            name, kind = FILES[path]
            self._send((PAGE / name).read_bytes(), kind)
        elif path == "/openapi.json":
            self._send_json(openapi(list(self.app.predictors), self.app.limits, LEAST_SCORE))
        elif path == "/api/models":
            models = [{"name": name, "class_names": one.class_names} for name, one in self.app.predictors.items()]
            limits = self.app.limits
            told = {"image_bytes": limits.image_bytes, "clip_bytes": limits.clip_bytes, "pixels": limits.pixels}
            self._send_json({"models": models, "limits": {**told, "frames": limits.frames}})
        elif path.startswith("/api/detect"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "send an image by POST (see /openapi.json)")
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here (see /openapi.json)")

    def _post(self, path: str) -> None:
        ways = {
            "/api/detect": (detect_image, self.app.limits.image_bytes),
            "/api/detect-clip": (detect_clip, self.app.limits.clip_bytes),
        }
        if path not in ways:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here (see /openapi.json)")
        if not self.app.present.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at a time: try again later")
        try:
            detect, most = ways[path]
            name, threshold = self._options()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "upload"
                self._receive(file, most)
                with self.app.working, readable_errors(file):
                    answer = detect(self.app.predictors[name], file, threshold, self.app.limits)
            self._send_json({"model": name, **answer})
        finally:
            self.app.present.release()

    def _options(self) -> tuple[str, float]:
        """The detector and the threshold that the address asks for."""
        given = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if unknown := given.keys() - {"model", "threshold"}:
            raise Refused(HTTPStatus.BAD_REQUEST, f"unknown parameter {min(unknown)!r}: there are model and threshold")
        names = list(self.app.predictors)
        name = given.get("model", names)[0]
        if name not in names:
            raise Refused(HTTPStatus.NOT_FOUND, f"no model is named {name!r}: there are {', '.join(names)}")
        try:
            threshold = float(given.get("threshold", ["0.5"])[0])
        except ValueError:
            threshold = -1.0
        if not 0.0 <= threshold <= 1.0:
            raise Refused(HTTPStatus.BAD_REQUEST, "threshold: give a number from 0 to 1")
        return name, threshold

    def _receive(self, file: Path, most: int) -> None:
        """Write the request's body into a file."""
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal() or len(text) > 20:  # Python's own limit of digits would be an internal error
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request must say its Content-Length")
        length = int(text)
        if length == 0:
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is empty: send the bytes of a file")
        if self.headers.get_content_maintype() == "multipart":
            self.rfile.read(min(length, DRAINED))
            fix = "send the file's bytes as they are (curl --data-binary @photo.jpg)"
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is a form: {fix}")
        if length > most:
            self.rfile.read(min(length, DRAINED))
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes: at most {most} are taken")
        with file.open("wb") as output:
            while length > 0:
                part = self.rfile.read(min(length, 1 << 20))
                if not part:
                    raise ConnectionError("the client went away")
                output.write(part)
                length -= len(part)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        if status >= HTTPStatus.BAD_REQUEST:
            self.close_connection = True  # the rest of the request's body may still lie there
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "2"
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Also what the base class refuses (unknown methods, broken requests) is JSON."""
        status = HTTPStatus(code)
        self._send_json({"error": message or status.phrase}, status)

    def log_message(self, format: str, *args: Any) -> None:
        logger.info(format, *args)


# ---------------------------------------------------------------------------------------------- detection


def detect_image(predictor: Predictor, file: Path, threshold: float, limits: Limits) -> dict[str, Any]:
    """{"width", "height", "detections"} of an image file."""
    _check_pixels(image_file_size(file), limits)
    pixels = read_image(file)
    found = predictor([pixels])[0].to_dicts()
    height, width = pixels.shape[:2]
    return {"width": width, "height": height, "detections": _above(found, threshold)}


def detect_clip(predictor: Predictor, file: Path, threshold: float, limits: Limits) -> dict[str, Any]:
    """{"width", "height", "frames_per_second", "frames", "complete"} of a video file; "frames" holds detections."""
    with file.open("rb") as opened:
        start = opened.read(12)
    # Never a playlist: FFmpeg would follow it to other files and hosts.
    if not (start[4:8] == b"ftyp" or start[:4] in (b"\x1aE\xdf\xa3", b"RIFF")):
        raise UserError(f"{file}: is not a video in MP4, WebM, Matroska or AVI")
    reader = VideoReader(file)
    width = height = 0
    frames = []

    def inputs() -> Iterator[ImageInput]:
        for number, frame in enumerate(islice(reader, limits.frames + 1)):
            _check_pixels(frame.shape[:2], limits)
            yield array_input(frame, f"frame {number}", frame=number)

    for found in predictor.detect(inputs()):
        height, width = found.image_size or (0, 0)
        frames.append(_above(found.to_dicts(), threshold))
    if not frames:
        raise UserError(f"{file}: the video has no frames")
    return {
        "width": width, "height": height, "frames_per_second": reader.rate, "frames": frames[: limits.frames],
        "complete": len(frames) <= limits.frames,
    }  # fmt: skip


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    if size[0] * size[1] > limits.pixels:
        message = f"{size[1]} x {size[0]}: at most {limits.pixels} pixels are taken"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def _above(found: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    return [one for one in found if one["score"] >= threshold]


@contextmanager
def readable_errors(file: Path) -> Iterator[None]:
    """What is wrong with an upload, without the name that it has here."""
    try:
        yield
    except UserError as error:
        message = " ".join(str(error).split()).replace(str(file), "the file")
        message = re.sub(r" <\S+ name='the file'>", "", message)  # Pillow names the open file's object
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, message) from error


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is the machine itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
