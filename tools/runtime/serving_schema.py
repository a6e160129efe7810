"""What requests may ask for and what they get: the limits, and the schema that `GET /openapi.json` gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    image_bytes: int = 32 << 20
    clip_bytes: int = 256 << 20
    pixels: int = 50_000_000
    """Of an image, or of a video's frame."""
    frames: int = 600
    """Of a video; the rest is left out."""
    working: int = 1
    """Requests that use the detectors at a time."""
    waiting: int = 16
    """Further requests that are kept waiting; those behind them are told to come back."""
    seconds: float = 60.0
    """In which a client must send its next part."""


DETECTION = {
    "type": "object",
    "required": ["name", "label", "score", "box"],
    "properties": {
        "name": {"type": "string", "description": "the class"},
        "label": {"type": "integer", "minimum": 1, "description": "its place among the model's class_names, from 1"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "box": {
            "type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4,
            "description": "x1 y1 x2 y2 in pixels of the picture, continuous, from 0 at its upper left corner",
        },
    },
}  # fmt: skip
LIST = {"type": "array", "items": DETECTION, "description": "best first"}
SIZE = {"model": {"type": "string"}, "width": {"type": "integer"}, "height": {"type": "integer"}}
IMAGE = {
    "type": "object",
    "required": ["model", "width", "height", "detections"],
    "properties": {**SIZE, "detections": LIST},
}
CLIP = {
    "type": "object",
    "required": ["model", "width", "height", "frames_per_second", "frames", "complete"],
    "properties": {
        **SIZE,
        "frames_per_second": {"type": "number"},
        "frames": {"type": "array", "items": LIST, "description": "each frame's detections"},
        "complete": {"type": "boolean", "description": "false: the clip has more frames than are looked at"},
    },
}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def openapi(models: Sequence[str], limits: Limits, least_score: float) -> dict[str, Any]:
    """The document.

    Args:
        models: names to choose from; the first is taken where a request names none.
        limits: of requests.
        least_score: detections below it are never given.
    """
    parameters = [
        {
            "name": "model", "in": "query", "required": False,
            "schema": {"type": "string", "enum": list(models), "default": models[0]},
        },
        {
            "name": "threshold", "in": "query", "required": False,
            "description": f"least score; below {least_score} nothing is given",
            "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        },
    ]  # fmt: skip
    image = _post(
        "The objects in a picture", f"JPEG, PNG, WebP, BMP or TIFF of at most {limits.image_bytes} bytes and "
        f"{limits.pixels} pixels, turned as its camera's note says", "image/*", IMAGE, parameters,
    )  # fmt: skip
    clip = _post(
        "The objects in a clip's frames", f"MP4, WebM, Matroska or AVI of at most {limits.clip_bytes} bytes; the first "
        f"{limits.frames} frames are looked at", "video/*", CLIP, parameters,
    )  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Object detection", "version": "1"},
        "paths": {"/api/detect": {"post": image}, "/api/detect-clip": {"post": clip}},
    }


def _post(summary: str, body: str, kind: str, answer: dict[str, Any], parameters: list[Any]) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    errors = {
        "400": "a parameter is wrong, or the body is empty",
        "403": "the request comes from another web page or machine",
        "404": "no such model",
        "411": "no Content-Length",
        "413": "too many bytes or pixels",
        "415": "the body is a form",
        "422": "the body is not such a file",
        "503": "too many requests at a time",
    }
    return {
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "description": body, "content": {kind: binary}},
        "responses": {
            "200": {"description": "what was found", "content": {"application/json": {"schema": answer}}},
            **{
                code: {"description": what, "content": {"application/json": {"schema": ERROR}}}
                for code, what in errors.items()
            },
        },
    }
