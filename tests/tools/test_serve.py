"""The HTTP endpoint of `tools/serve.py`: answers equal the predictor's, and each wrong request gets its 4xx in JSON."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from detection.predictor import Predictor
from detection.video import VideoWriter
from tests.detection.made import make_image, save_detector
from tools import serve
from tools.runtime.serving import LEAST_SCORE, Server, is_loopback
from tools.runtime.serving_schema import Limits

LIMITS = Limits(image_bytes=40_000, clip_bytes=400_000, pixels=20_000, frames=5, waiting=1)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    weights = save_detector(tmp_path_factory.mktemp("weights") / "w.pt", names=("red", "<b>blue</b>"))
    return Predictor(weights, device="cpu", threshold=LEAST_SCORE)


@contextmanager
def serving(predictor: Predictor, limits: Limits = LIMITS) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), {"one": predictor, "two": predictor}, limits) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(predictor: Predictor) -> Iterator[Server]:
    with serving(predictor) as running:
        yield running


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Status and, where it is JSON, content of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        return answer.status, json.loads(content) if answer.getheader("Content-Type") == "application/json" else content
    finally:
        connection.close()


def png(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def test_answers_are_the_predictors_and_of_the_schema(server: Server, predictor: Predictor) -> None:
    image = make_image(1, (50, 90))
    expected = predictor(image)[0]
    status, document = ask(server, "GET", "/openapi.json")
    assert status == 200
    way = document["paths"]["/api/detect"]["post"]
    for threshold in (0.05, 0.34):
        status, answer = ask(server, "POST", f"/api/detect?model=two&threshold={threshold}", png(image))
        assert status == 200
        jsonschema.validate(answer, way["responses"]["200"]["content"]["application/json"]["schema"])
        assert (answer["model"], answer["width"], answer["height"]) == ("two", 90, 50)
        kept = expected.select(expected.scores >= threshold)
        assert len(answer["detections"]) == len(kept) > 0
        np.testing.assert_allclose([one["box"] for one in answer["detections"]], kept.boxes, atol=1e-3)
        assert [one["name"] for one in answer["detections"]] == kept.names
    names = [parameter["schema"].get("enum") for parameter in way["parameters"]]
    assert names == [["one", "two"], None]
    _, models = ask(server, "GET", "/api/models")
    assert [model["name"] for model in models["models"]] == ["one", "two"]


def test_clips(server: Server, predictor: Predictor, tmp_path: Path) -> None:
    frames = [make_image(number, (48, 64)) for number in range(8)]
    for count, complete in ((3, True), (8, False)):
        path = tmp_path / f"{count}.mp4"
        with VideoWriter(path, 10) as video:
            for frame in frames[:count]:
                video.write(frame)
        status, answer = ask(server, "POST", "/api/detect-clip?threshold=0.05", path.read_bytes())
        assert status == 200
        assert (len(answer["frames"]), answer["complete"]) == (min(count, LIMITS.frames), complete)
        assert (answer["width"], answer["height"]) == (64, 48)
        assert answer["frames_per_second"] == pytest.approx(10)
        expected = [found.to_dicts() for found in predictor.stream(path)]
        for ours, theirs in zip(answer["frames"], expected, strict=False):
            assert len(ours) == len(theirs) > 0
            np.testing.assert_allclose([one["box"] for one in ours], [one["box"] for one in theirs], atol=1e-2)
    status, answer = ask(server, "POST", "/api/detect-clip", b"#EXTM3U\nfile:///etc/passwd\n")
    assert (status, answer) == (422, {"error": "the file: is not a video in MP4, WebM, Matroska or AVI"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/detect?threshold=high", b"x", 400, "number from 0 to 1"),
        ("POST", "/api/detect?threshold=nan", b"x", 400, "number from 0 to 1"),
        ("POST", "/api/detect?thresh=0.5", b"x", 400, "unknown parameter 'thresh'"),
        ("POST", "/api/detect?model=../../etc/passwd", b"x", 404, "there are one, two"),
        ("POST", "/api/detect", b"", 400, "empty"),
        ("POST", "/api/detect", b"no image", 422, "the file: cannot be read as an image"),
        ("POST", "/api/detect", png(make_image(0, (200, 200))), 413, "at most 20000 pixels"),
        ("POST", "/api/detect", b"\0" * 40_001, 413, "at most 40000 are taken"),
        ("POST", "/api/nothing", b"x", 404, "nothing here"),
        ("GET", "/../serving.py", None, 404, "nothing here"),
        ("GET", "/api/detect", None, 405, "POST"),
        ("DELETE", "/", None, 501, "Unsupported method"),
    ],
)
def test_wrong_requests(server: Server, method: str, path: str, body: bytes, status: int, message: str) -> None:
    got, answer = ask(server, method, path, body)
    assert got == status
    assert message in answer["error"]
    assert set(answer) == {"error"}
    assert "/tmp" not in answer["error"]


def test_a_form_says_how_to_send_the_file(server: Server) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, answer = ask(server, "POST", "/api/detect", b"--x\r\n\r\n" + png(make_image(0)) + b"\r\n--x--", **kind)
    assert (status, "--data-binary" in answer["error"]) == (415, True)


def test_requests_of_other_pages_are_refused(server: Server) -> None:
    image = png(make_image(0))
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403
    assert ask(server, "POST", "/api/detect", image, Origin="http://evil.example")[0] == 403
    host = f"localhost:{server.server_port}"
    assert ask(server, "POST", "/api/detect", image, Host=host, Origin=f"http://{host}")[0] == 200
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "192.168.0.2", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_a_body_without_length_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as client:
        client.sendall(b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 411")
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as client:
        length = b"9" * 5000  # more digits than Python's int takes
        client.sendall(b"POST /api/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 411")


def test_too_many_requests_are_told_to_come_back(predictor: Predictor) -> None:
    """One works, one waits, the third is refused; when the first is done, all is as before."""
    image = png(make_image(0))
    with serving(predictor) as server:
        statuses: list[int] = []
        first = [
            threading.Thread(target=lambda: statuses.append(ask(server, "POST", "/api/detect", image)[0]))
            for _ in range(2)
        ]
        with server.working:
            for thread in first:
                thread.start()
            while server.present._value:  # both have come
                threading.Event().wait(0.01)
            status, answer = ask(server, "POST", "/api/detect", image)
            assert (status, answer) == (503, {"error": "too many requests at a time: try again later"})
        for thread in first:
            thread.join()
        assert statuses == [200, 200]
        assert ask(server, "POST", "/api/detect", image)[0] == 200


def test_a_mistake_of_ours_tells_nothing(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("tools.runtime.serving.detect_image", fail)
    with serving(predictor) as server:
        assert ask(server, "POST", "/api/detect", b"x") == (500, {"error": "internal error"})


def test_page_and_its_files(server: Server) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, content = ask(server, "GET", path)
        assert status == 200
        assert len(content) > 500


def test_names_of_the_weights_hold_no_paths() -> None:
    files = ["/home/me/runs/a/best.pt", "/other/a/best.pt", "/a/best.onnx", "torchvision://fasterrcnn_resnet50_fpn"]
    names = serve.model_names(files)
    assert list(names) == ["a/best", "a/best (2)", "a/best.onnx", "torchvision://fasterrcnn_resnet50_fpn"]


def test_a_port_in_use_is_told(server: Server, tmp_path: Path) -> None:
    weights = save_detector(tmp_path / "w.pt")
    options = ["--weights", str(weights), "--device", "cpu", "--port", str(server.server_port)]
    with pytest.raises(UserError, match=f"--port {server.server_port}: .*take another port"):
        serve.main(serve.make_parser().parse_args(options))
