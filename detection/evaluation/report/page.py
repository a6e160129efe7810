"""Writing of the report's page, from its parts and the template `page.html`.

It needs no network and no server. Plots are beside it as PNG files too.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from configs.errors import counted
from configs.files import write_text
from detection.evaluation.data import GroundTruth, align
from detection.evaluation.report import tables
from detection.evaluation.report.analysis import Analysis, analyse
from detection.evaluation.report.gallery import MOST_CARDS, confident_false_positives, make_figures, worst_missed
from detection.evaluation.report.plots import draw_all
from detection.evaluation.report.run import Run

SECTIONS = {
    "summary": "Summary",
    "classes": "Classes",
    "curves": "Precision and recall",
    "scores": "Scores",
    "errors": "What costs AP",
    "groups": "Size and crowding",
    "confusion": "Confusion",
    "missed": "Missed objects",
    "false-positives": "Confident false positives",
    "training": "Training",
    "notes": "How it is counted",
}
"""Id and heading of each section, in the page's order; `training` only where there are curves."""


def write_report(
    folder: Path,
    truth: GroundTruth,
    runs: Sequence[Run],
    *,
    images: Path | None = None,
    curves: Path | None = None,
) -> Path:
    """Write the report of one run, or of two side by side.

    Args:
        folder: gets `index.html` and `plots/*.png`.
        truth: what the runs are scored on.
        runs: one or two.
        images: folder of the image files; None: where the ground truth says. Without images the galleries show boxes.
        curves: a PNG of the training's curves (of the first run), for a section of their own.

    Returns:
        The page.
    """
    if not 1 <= len(runs) <= 2:
        raise ValueError(f"a report shows one or two runs, not {len(runs)}")
    runs = list(runs)
    analyses = _on_common_classes([analyse(align(truth, run.detections)) for run in runs], truth, runs)
    named = [(run.name, analysis) for run, analysis in zip(runs, analyses, strict=True)]
    data_set = set_name(truth.source)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("page.html").render(
        title=f"{' and '.join(run.name for run in runs)} on {data_set}",
        facts=_facts(truth, runs, data_set),
        sections={name: words for name, words in SECTIONS.items() if name != "training" or curves is not None},
        curves=None if curves is None else base64.b64encode(curves.read_bytes()).decode("ascii"),
        runs=runs,
        backend=runs[0].metrics.get("coco_backend"),
        cards=tables.cards(runs),
        summary_tables=[table for table in (tables.coco_table(runs), tables.iou_table(runs)) if table],
        class_table=tables.per_class_table(runs, analyses),
        error_table=tables.error_table(runs, analyses),
        plots=draw_all(Path(folder) / "plots", named),
        missed=make_figures(worst_missed(analyses[0]), analyses, images),
        false_positives=make_figures(confident_false_positives(analyses[0]), analyses, images),
        most_cards=MOST_CARDS,
    )
    page = Path(folder) / "index.html"
    write_text(page, html)
    return page


def set_name(source: str) -> str:
    """A data set's name from where it was read: 'VOC2007/test' of '/data/VOCdevkit/VOC2007/test'."""
    names = []
    for part in source.split(" + "):
        parts = [piece for piece in Path(part).parts if piece not in ("/", "annotations")]
        if part.endswith((".json", ")")):  # an annotation file; a folder and its image set in brackets
            names.append(parts[-1].removesuffix(".json"))
        else:
            names.append("/".join(parts[-2:]))
    return " + ".join(names) if len(names) <= 3 else f"{names[0]} + {len(names) - 1} more"


def _on_common_classes(analyses: list[Analysis], truth: GroundTruth, runs: list[Run]) -> list[Analysis]:
    """Analyses whose classes have the same numbers: two runs may differ in classes that the ground truth lacks."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.data.class_names))
    if all(analysis.data.class_names == names for analysis in analyses):
        return analyses
    return [analyse(align(replace(truth, class_names=names), run.detections)) for run in runs]


def _facts(truth: GroundTruth, runs: list[Run], data_set: str) -> list[str]:
    """What the line below the title says."""
    set_aside = int((truth.difficult | truth.iscrowd).sum())
    aside = f" ({set_aside:,} of them {'crowd regions' if truth.frame == 'coco' else 'difficult'})" if set_aside else ""
    return [
        data_set,
        counted(len(truth), "image"),
        counted(len(truth.labels), "object") + aside,
        counted(len(np.unique(truth.labels)), "class"),
        f"{' and '.join(f'{len(run.detections):,}' for run in runs)} detections",
    ]
