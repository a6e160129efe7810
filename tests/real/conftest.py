"""Real sets in other formats, for the tests beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def bccd_as_coco(tmp_path_factory, data_dir: Path) -> Path:
    """BCCD's training images as a COCO file, written from the raw XML by the official rule for widths."""
    from defusedxml import ElementTree

    names = ["WBC", "RBC", "Platelets"]
    images, annotations = [], []
    for line in (data_dir / "bccd" / "ImageSets" / "Main" / "trainval.txt").read_text().split():
        root = ElementTree.parse(data_dir / "bccd" / "Annotations" / f"{line}.xml").getroot()
        size = {tag: int(root.findtext(f"size/{tag}")) for tag in ("height", "width")}
        images.append({"id": len(images) + 1, "file_name": f"{line}.jpg", **size})
        for node in root.findall("object"):
            xmin, ymin, xmax, ymax = (int(node.findtext(f"bndbox/{t}")) for t in ("xmin", "ymin", "xmax", "ymax"))
            width, height = xmax - xmin + 1, ymax - ymin + 1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": 3 * names.index(node.findtext("name")) + 2,  # sparse ids
                    "bbox": [xmin - 1, ymin - 1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 3 * i + 2, "name": name} for i, name in enumerate(names)]
    path = tmp_path_factory.mktemp("coco") / "bccd.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
