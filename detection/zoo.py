"""Published detectors by name, as checkpoints of this project.

`torchvision://fasterrcnn_resnet50_fpn_v2` and `detectron2://COCO-Detection/faster_rcnn_R_50_C4_3x` are fetched once,
converted with their config of `configs/zoo/`, and give the published detections. `hf://owner/repo/file` and
`https://...` are files of this project's own form. docs/zoo.md lists all with licences and figures.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from backbones.fetch import fetch
from backbones.weights import read_weights_file
from configs.errors import UserError
from configs.loading import load_config
from detection.conversion import convert_detector, is_detector

CONFIGS = Path(configs.__file__).parent / "zoo"
LICENCES = {
    "torchvision": "BSD 3-Clause as torchvision, which warns that weights may have terms of their training data",
    "detectron2": "CC BY-SA 3.0, https://creativecommons.org/licenses/by-sa/3.0/",
}
"""Publisher -> the licence of its weights."""


@dataclass(frozen=True)
class ZooModel:
    """A published detector."""

    file: str
    """Behind the publisher's address."""
    config: str
    """In `configs/zoo/`."""
    published: str
    """The publisher's own figures."""


def _coco(ap: float) -> str:
    return f"COCO val2017 box AP {ap}"


def _detectron2(name: str, file: str, config: str, published: str) -> tuple[str, ZooModel]:
    return f"detectron2://{name}", ZooModel(f"{name}/{file}.pkl", f"detectron2_{config}.yaml", published)


def _torchvision(name: str, digits: str, config: str, published: str) -> tuple[str, ZooModel]:
    return f"torchvision://{name}", ZooModel(f"{name}_coco-{digits}.pth", f"torchvision_{config}.yaml", published)


ZOO: dict[str, ZooModel] = dict(
    [
        _torchvision("fasterrcnn_resnet50_fpn", "258fb6c6", "r50_fpn_coco", _coco(37.0)),
        _torchvision("fasterrcnn_resnet50_fpn_v2", "dd69338a", "r50_fpn_v2_coco", _coco(46.7)),
        *(
            _detectron2(f"COCO-Detection/faster_rcnn_{net}", file, config, _coco(ap))
            for net, file, config, ap in (
                ("R_50_C4_1x", "137257644/model_final_721ade", "r50_c4_coco", 35.7),
                ("R_50_DC5_1x", "137847829/model_final_51d356", "r50_dc5_coco", 37.3),
                ("R_50_FPN_1x", "137257794/model_final_b275ba", "r50_fpn_coco", 37.9),
                ("R_50_C4_3x", "137849393/model_final_f97cb7", "r50_c4_coco", 38.4),
                ("R_50_DC5_3x", "137849425/model_final_68d202", "r50_dc5_coco", 39.0),
                ("R_50_FPN_3x", "137849458/model_final_280758", "r50_fpn_coco", 40.2),
                ("R_101_C4_3x", "138204752/model_final_298dad", "r101_c4_coco", 41.1),
                ("R_101_DC5_3x", "138204841/model_final_3e0943", "r101_dc5_coco", 40.6),
                ("R_101_FPN_3x", "137851257/model_final_f6e8b1", "r101_fpn_coco", 42.0),
            )
        ),
        _detectron2(
            "PascalVOC-Detection/faster_rcnn_R_50_C4",
            "142202221/model_final_b1acc2",
            "r50_c4_voc",
            "VOC2007 test AP50 80.3, AP 51.9 (detectron2's own evaluation)",
        ),
    ]
)
"""Name -> detector. A trailing .yaml, as detectron2 writes its names, is ignored."""


def read_by_name(weights: Path | str) -> dict[str, Any]:
    """The detector checkpoint of a name (`backbones.fetch.is_name`).

    Raises:
        UserError: there is no such detector, it cannot be had, or it is not of this project's form.
    """
    name = re.sub(r":/+", "://", os.fspath(weights), count=1)
    scheme = name.partition("://")[0]
    if scheme in LICENCES:
        return _read_published(name.removesuffix(".yaml"), scheme)
    path = fetch(name)
    content = read_weights_file(path)
    if content.get("kind") is None and is_detector(content):
        raise UserError(
            f"{name}: a detector of another project's form: convert {path} with tools/convert_weights.py, whose --cfg "
            "says what the file does not"
        )
    return content


def card_of_file(path: Path, source: str) -> dict[str, str]:
    """What is known of a file of other projects' weights, by the name that its publisher gave it."""
    for name, model in ZOO.items():
        if name.startswith(f"{source}://") and Path(model.file).name == path.name:
            return _card(name)
    return {"source": f"{source}, {path.name}"}


def _card(name: str) -> dict[str, str]:
    return {"source": name, "licence": LICENCES[name.partition("://")[0]], "published": ZOO[name].published}


def _read_published(name: str, source: str) -> dict[str, Any]:
    model = ZOO.get(name)
    if model is None:
        near = difflib.get_close_matches(name, ZOO, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ZOO)}"
        raise UserError(f"{name}: no such detector: {hint}")
    path = fetch(f"{source}://{model.file}", licence=LICENCES[source])
    config = load_config(CONFIGS / model.config)
    return convert_detector(read_weights_file(path), source, config, path, card=_card(name))
