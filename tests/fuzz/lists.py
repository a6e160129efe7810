"""Small valid files of tools that write one list for all images, and of KITTI; the images are `a.png` and `b b.png`."""

from __future__ import annotations

from typing import Any

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>
<image id="0" name="a.png" width="64" height="48">
<box label="cat" occluded="0" xtl="5.5" ytl="6" xbr="25" ybr="20.5" rotation="30" z_order="0"></box>
<polygon label="dog" points="30.0,10.0;50.0,12.0;40.0,40.0"></polygon>
<ellipse label="dog" cx="20" cy="20" rx="5" ry="4"></ellipse>
<points label="cat" points="3,4"></points></image>
<image id="1" name="b b.png" width="64" height="48"></image></annotations>"""
KITTI = (
    "Car 0.00 0 1.85 5.00 6.00 25.00 20.50 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
    "DontCare -1 -1 -10 30.0 10.0 50.0 40.0 -1 -1 -1 -1000 -1000 -1000 -10\n"
    "Van 0.50 1 0.10 30.00 10.00 50.00 40.00 1.67 1.87 3.69 -16.53 2.39 58.49 1.57\n"
)
CREATEML: list[dict[str, Any]] = [
    {"image": "a.png", "annotations": [
        {"label": "cat", "coordinates": {"x": 15, "y": 13.25, "width": 20, "height": 14.5}},
        {"label": "dog", "coordinates": {"x": 40, "y": 25, "width": 20, "height": 30}},
    ]},
    {"image": "b b.png", "annotations": []},
]  # fmt: skip
LABEL_STUDIO: list[dict[str, Any]] = [
    {"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"was_cancelled": False, "result": [
        {"type": "rectanglelabels", "original_width": 64, "original_height": 48,
         "value": {"x": 10, "y": 12.5, "width": 30, "height": 25, "rotation": 10, "rectanglelabels": ["cat"]}},
        {"type": "polygonlabels", "original_width": 64, "original_height": 48,
         "value": {"points": [[50, 20], [80, 25], [60, 75]], "polygonlabels": ["dog"]}},
        {"type": "ellipselabels", "original_width": 64, "original_height": 48,
         "value": {"x": 30, "y": 40, "radiusX": 8, "radiusY": 9, "rotation": 15, "ellipselabels": ["dog"]}},
    ]}]},
    {"id": 2, "data": {"image": "b b.png"}, "annotations": [{"result": [
        {"value": {"x": 10, "y": 12.5, "width": 30, "height": 25, "rectanglelabels": ["cat"]}},
    ]}]},
]  # fmt: skip
DATUMARO: dict[str, Any] = {
    "info": {}, "categories": {"label": {"labels": [{"name": "cat", "parent": ""}, {"name": "dog", "parent": ""}]}},
    "items": [
        {"id": "a", "image": {"path": "a.png", "size": [48, 64]}, "annotations": [
            {"id": 0, "type": "bbox", "label_id": 0, "bbox": [5, 6, 20, 14.5], "attributes": {"rotation": 20.0}},
            {"id": 1, "type": "polygon", "label_id": 1, "points": [30, 10, 50, 12, 40, 40], "attributes": {}},
        ]},
        {"id": "b b", "image": {"path": "b b.png", "size": [48, 64]}, "annotations": []},
    ],
}  # fmt: skip
VOTT: dict[str, Any] = {
    "tags": [{"name": "cat", "color": "#5db300"}, {"name": "dog", "color": "#e81123"}],
    "assets": {
        "6a": {"asset": {"id": "6a", "name": "a.png", "size": {"width": 64, "height": 48}, "state": 2}, "regions": [
            {"id": "x", "type": "RECTANGLE", "tags": ["cat"],
             "boundingBox": {"left": 5, "top": 6, "width": 20, "height": 14.5}, "points": []},
        ]},
        "7b": {"asset": {"id": "7b", "name": "b%20b.png", "size": {"width": 64, "height": 48}, "state": 1},
               "regions": []},
    },
}  # fmt: skip
