"""The report: one page that tells what a detector's numbers are, what they are made of, and what to improve.

It needs no network and no server. Plots stand beside it as PNG files too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np

from configs.files import write_text
from detection.evaluation.data import GroundTruth, align
from detection.evaluation.report.analysis import Analysis, analyse
from detection.evaluation.report.gallery import MOST_CARDS, Card, confident_false_positives, picture, worst_missed
from detection.evaluation.report.plots import draw_all
from detection.evaluation.report.run import Run
from detection.evaluation.report.tables import cards, coco_table, error_table, iou_table, per_class_table

SECTIONS = {
    "summary": "Summary",
    "classes": "Classes",
    "curves": "Precision and recall",
    "scores": "Scores",
    "errors": "What costs AP",
    "groups": "Size and crowding",
    "confusion": "Confusion",
    "missed": "Overlooked objects",
    "false-positives": "Confident false positives",
    "notes": "How it is counted",
}


def write_report(
    folder: Path,
    truth: GroundTruth,
    runs: Sequence[Run],
    *,
    images: Path | None = None,
    title: str = "Detection report",
) -> Path:
    """Write the report of one run, or of two side by side.

    Args:
        folder: gets `index.html` and `plots/*.png`.
        truth: what the runs are scored on.
        runs: one or two.
        images: folder of the image files; None: where the ground truth says. Without images the galleries show boxes.
        title: of the page.

    Returns:
        The page.
    """
    if not 1 <= len(runs) <= 2:
        raise ValueError(f"a report shows one or two runs, not {len(runs)}")
    runs = list(runs)
    analyses = _on_common_classes([analyse(align(truth, run.detections)) for run in runs], truth, runs)
    named = [(run.name, analysis) for run, analysis in zip(runs, analyses, strict=True)]
    pictures = draw_all(Path(folder) / "plots", named)
    matrices = "".join(_plot(pictures[f"confusion_{n}"], "confusion matrix") for n in range(1, len(runs) + 1))
    bodies = {
        "summary": cards(runs) + coco_table(runs) + iou_table(runs),
        "classes": per_class_table(runs, analyses),
        "curves": _plot(pictures["precision_recall"], "precision over recall of each class"),
        "scores": _plot(pictures["scores"], "scores of detections; precision and recall over the threshold"),
        "errors": _pair(_plot(pictures["errors"], "AP that mending errors gives"), error_table(runs, analyses)),
        "groups": _plot(pictures["groups"], "AP and recall by size, crowding and neighbours"),
        "confusion": f'<div class="halves">{matrices}</div>' if len(runs) > 1 else matrices,
        "missed": _gallery(worst_missed(analyses[0]), analyses, images),
        "false-positives": _gallery(confident_false_positives(analyses[0]), analyses, images),
        "notes": _NOTES,
    }
    page = Path(folder) / "index.html"
    write_text(page, _page(title, truth, runs, bodies))
    return page


def _on_common_classes(analyses: list[Analysis], truth: GroundTruth, runs: list[Run]) -> list[Analysis]:
    """Analyses whose classes are numbered alike: two runs may differ in classes that the ground truth lacks."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.data.class_names))
    if all(analysis.data.class_names == names for analysis in analyses):
        return analyses
    return [analyse(align(replace(truth, class_names=names), run.detections)) for run in runs]


# ---------------------------------------------------------------------------------------------- the page


_LEADS = {
    "summary": "Three protocols, which are not comparable with each other. Percent.",
    "classes": "Recall and precision are at the working threshold. Click a heading to sort.",
    "curves": "At an overlap of .5, by VOC's rule; the area under each curve is the class's voc12 AP.",
    "scores": "The dotted line is the working threshold: the score that gives the best F1 over all classes.",
    "errors": """After TIDE: the voc12 mAP that mending all errors of one kind, and nothing else, would give back. The
parts do not add up to 100, for errors hide each other.""",
    "groups": """Filled: voc12 mAP on this part of the objects. Hatched: share of its objects that is found at the
working threshold. The numbers of objects stand in brackets.""",
    "confusion": """Each object with the detection of any class that overlaps it most (from .5), at the working
threshold. Colours are shares of the row.""",
    "missed": f"""The images with the most objects that nothing of at least the working threshold hits (at most
{MOST_CARDS}). Hover a box for its class and score.""",
    "false-positives": f"""The wrong detections that the detector is surest of, one an image (at most {MOST_CARDS}).
Some of them are objects that nobody annotated.""",
    "notes": "",
}

_KEY = """<div class="key"><span><b style="border-color:#22c55e"></b>annotated, found</span>
<span><b style="border-color:#f59e0b;border-style:dashed"></b>annotated, overlooked</span>
<span><b style="border-color:#9ca3af;border-style:dashed"></b>difficult or crowd</span>
<span><b style="border-color:#38bdf8"></b>right detection</span>
<span><b style="border-color:#ef4444"></b>wrong detection</span></div>"""

_NOTES = """<dl>
<dt>voc07, voc12</dt><dd>The official VOC rule: inclusive pixels, overlap from .5, difficult objects (and COCO's crowd
regions) neither help nor harm, duplicates are wrong; the mean over 11 recalls (2007) or the area under the curve (2010
and later). Classes without objects have no value.</dd>
<dt>coco</dt><dd>The COCO API's numbers: means over overlaps .50 to .95. On sets in VOC's format difficult objects count
like others.</dd>
<dt>Working threshold</dt><dd>The score with the best F1 over all classes at an overlap of .5.</dd>
<dt>Duplicate</dt><dd>Wrong: on an object of its class that a better-scored detection has.</dd>
<dt>Localisation</dt><dd>Wrong: overlaps an object of its class by .1 to .5.</dd>
<dt>Classification</dt><dd>Wrong: overlaps an object of another class by .5 or more.</dd>
<dt>Both</dt><dd>Wrong: overlaps an object of another class by .1 to .5.</dd>
<dt>Background</dt><dd>Wrong: overlaps no object by .1.</dd>
<dt>Missed</dt><dd>An object that nothing hits at any score, and that no localisation or classification error lies
on.</dd>
</dl>"""

_SORT = """document.querySelectorAll("table.sortable th").forEach((head) => head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const down = head.dataset.order !== "down";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].innerText;
  table.querySelectorAll("th").forEach((other) => delete other.dataset.order);
  head.dataset.order = down ? "down" : "up";
  [...body.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    if (isNaN(x) || isNaN(y)) return (down ? 1 : -1) * x.localeCompare(y);
    return down ? y - x : x - y;
  }).forEach((row) => body.append(row));
}));"""


def _page(title: str, truth: GroundTruth, runs: list[Run], bodies: dict[str, str]) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    links = "".join(f'<a href="#{name}">{SECTIONS[name]}</a>' for name in bodies)
    sections = "".join(
        f'<section id="{name}"><h2>{SECTIONS[name]}</h2>'
        + (f"<p>{_LEADS[name]}</p>" if _LEADS[name] else "")
        + (_KEY if name in ("missed", "false-positives") else "")
        + f"{body}</section>\n"
        for name, body in bodies.items()
    )
    legend = ""
    if len(runs) > 1:
        colors = zip(("first", "second"), runs, strict=True)
        legend = f'<div class="runs">{"".join(f"<span class={c}>{escape(run.name)}</span>" for c, run in colors)}</div>'
    backend = runs[0].metrics.get("coco_backend")
    foot = f"COCO's numbers by {escape(backend)}. " if backend else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{style}</style></head>
<body><header><h1>{escape(title)}</h1><p>{_describe(truth, runs)}</p>{legend}<nav>{links}</nav></header>
<main>{sections}</main>
<footer>{foot}The plots lie beside this page as PNG files, in plots/.</footer>
<script>{_SORT}</script></body></html>
"""


def _describe(truth: GroundTruth, runs: list[Run]) -> str:
    set_aside = int((truth.difficult | truth.iscrowd).sum())
    aside = f" ({set_aside:,} of them {'crowd regions' if truth.frame == 'coco' else 'difficult'})" if set_aside else ""
    found = " and ".join(f"{len(run.detections):,}" for run in runs)
    name = runs[0].name if len(runs) == 1 else f"{runs[0].name} and {runs[1].name}"
    parts = (
        f"<b>{escape(name)}</b> on {escape('/'.join(Path(truth.source).parts[-2:]))}",
        f"{len(truth):,} images",
        f"{len(truth.labels):,} objects{aside}",
        f"{len(np.unique(truth.labels))} classes",
        f"{found} detections",
    )
    return " · ".join(parts)


def _plot(uri: str, words: str) -> str:
    return f'<img class="plot" src="{uri}" alt="{escape(words)}">'


def _pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(parts)}</div>'


def _gallery(chosen: list[Card], analyses: list[Analysis], images: Path | None) -> str:
    """Cards; with two runs each shows the image once for either run."""
    if not chosen:
        return "<p>None.</p>"
    truth = analyses[0].data.ground_truth
    figures = []
    for card in chosen:
        shots = "".join(picture(analysis, card, images, focus=number == 0) for number, analysis in enumerate(analyses))
        words = f"{escape(card.caption)} <span>· {escape(str(truth.image_ids[card.image]))}</span>"
        figures.append(f'<figure><div class="shots">{shots}</div><figcaption>{words}</figcaption></figure>')
    return f'<div class="gallery{" two" if len(analyses) > 1 else ""}">{"".join(figures)}</div>'
