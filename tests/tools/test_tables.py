"""The paper's tables agree with themselves and with the configs; one's own results are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tools import tables as script
from tools.runtime import cli

ROOT = Path(__file__).resolve().parents[2]
TABLES = {table["number"]: table for table in yaml.safe_load(script.TABLES.read_text())}


def run(capsys, *words) -> str:
    script.main(script.make_parser().parse_args([str(word) for word in words]))
    return capsys.readouterr().out


def test_there_are_fourteen_and_every_row_is_whole():
    assert list(TABLES) == list(range(1, 15))
    for table in TABLES.values():
        for row in table["rows"]:
            assert len(row["paper"]) == len(table["columns"]), (table["number"], row["name"])
            for config in script.configs_of(row):
                assert (ROOT / f"configs/{config.partition('/')[0]}.yaml").is_file(), row


@pytest.mark.parametrize("number", [10, 11])
def test_the_mean_of_the_classes_is_the_map(number):
    for row in TABLES[number]["rows"]:
        mean, *classes = row["paper"]
        assert len(classes) == 20
        assert sum(classes) / 20 == pytest.approx(mean, abs=0.06), row["name"]


def test_figures_that_stand_in_two_tables_are_equal():
    def paper(number, name):
        return next(row["paper"] for row in TABLES[number]["rows"] if row["name"] == name)

    assert paper(2, "plain-34")[0] == paper(3, "plain-34")[0]
    assert paper(2, "ResNet-34 A")[0] == paper(3, "ResNet-34 A")[0]
    for place, name in enumerate(["VGG-16, baseline (07+12)", "ResNet-101, baseline (07+12)"]):
        assert paper(10, name)[0] == TABLES[7]["rows"][place]["paper"][0]
    for place, name in enumerate(["VGG-16, baseline (07++12)", "ResNet-101, baseline (07++12)"]):
        assert paper(11, name)[0] == TABLES[7]["rows"][place]["paper"][1]
    assert paper(8, "ResNet-101") == paper(9, "ResNet-101, baseline")[:2]
    assert paper(13, "RPN + R-CNN, ensemble")[2] == paper(14, "ResNet, ensemble (ILSVRC'15)")[0]


def test_the_nets_of_table_1_cost_what_it_says(capsys):
    for line in run(capsys, 1).splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].startswith(("ResNet", "VGG")):
            assert float(cells[2]) == pytest.approx(1e9 * float(cells[-1]), rel=0.02), cells[0]


def test_the_page_of_the_tables_is_up_to_date(tmp_path):
    """Of those without nets, whose costs take a while; a checkout's runs are its own."""
    page = (ROOT / "docs/results/tables.md").read_text()
    assert page.startswith(script.PAGE)
    results = script.Results(tmp_path, ROOT / "docs/results")
    for table in TABLES.values():
        heading, titles, rows = script.laid_out({**table, "costs": None}, results)
        text = f"**{heading}**\n\n{script.markdown_table(titles, rows)}"
        if "costs" not in table:
            assert text in page, f"Table {table['number']}: run: python tools/tables.py --out docs/results/tables.md"
        assert all(f"| {row[0]} |" in page for row in rows), heading


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def line_of(text: str, start: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if start in line)


def test_runs_stand_below_the_papers_rows(tmp_path, capsys):
    runs, results = tmp_path / "runs", tmp_path / "results"
    write(runs / "study/cifar_resnet20/seed0/metrics.json", {"top1_error": 0.08})
    write(runs / "study/cifar_resnet20/seed1/metrics.json", {"top1_error": 0.09})
    write(runs / "study/cifar_resnet20/seed1/other/metrics.json", {"top1_error": 0.5})
    write(runs / "cifar_resnet32/metrics.json", {"top1_error": 0.0771})
    write(results / "some.json", {"runs": [{"config": "cifar_resnet44", "metrics": {"top1_error": 0.07}}]})
    write(results / "own_form.json", {"baseline": 1})
    out = run(
        capsys, 6, "--runs", runs, "--results", results, "--html", tmp_path / "t.html", "--out", tmp_path / "t.md"
    )
    assert line_of(out, "here: cifar_resnet20")[5:] == ["8.00", "8.50 ± 0.71 (2)"]  # the best, as the paper
    assert line_of(out, "here: cifar_resnet32")[5:] == ["7.71", ""]
    assert line_of(out, "here: cifar_resnet44")[5] == "7.00"
    assert line_of(out, "here: cifar_resnet56")[5] == ""
    assert "| 8.80 |" in out
    assert (tmp_path / "t.md").read_text() == script.PAGE + out
    page = (tmp_path / "t.html").read_text()
    assert "<td>8.50 ± 0.71 (2)</td>" in page
    assert page.count("<tr>") == len([line for line in out.splitlines() if line.startswith("|")]) - 1


def test_ten_crops_of_test_cls_count_where_ten_crops_are_asked_for(tmp_path, capsys):
    runs = tmp_path / "runs"
    write(runs / "imagenet_plain18/metrics.json", {"top1_error": 0.9})
    write(runs / "imagenet_plain18/ten/metrics.json", {"top1_error": 0.28, "views": "10crop"})
    write(runs / "study/imagenet_plain34/seed0/metrics_10crop.json", {"top1_error": 0.29})
    out = run(capsys, 2, "--runs", runs, "--results", tmp_path)
    assert line_of(out, "here: imagenet_plain18")[-1] == "28.00"
    assert line_of(out, "here: imagenet_plain34")[-1] == "29.00"


def test_classes_of_a_detector(tmp_path, capsys):
    values = {"voc07": {"mAP": 0.791, "per_class": {"aeroplane": 0.8, "tvmonitor": None}}}
    write(tmp_path / "runs/frcnn_r101_voc_plus/metrics.json", values)
    cells = line_of(run(capsys, 10, "--runs", tmp_path / "runs"), "here: frcnn_r101_voc_plus")
    assert (cells[1], cells[2], cells[-1]) == ("79.10", "80.00", "")


def test_every_config_of_a_row_and_tests_by_their_folders(tmp_path, capsys):
    def write_ap(folder: str, ap: float) -> None:
        write(tmp_path / folder / "metrics.json", {"coco": {"AP": ap, "AP50": 2 * ap}})

    write_ap("frcnn_r101_coco", 0.30)
    write_ap("frcnn_r101_coco/refined", 0.32)
    write_ap("frcnn_r101_coco/refined/other", 0.1)
    write_ap("frcnn_r101_coco_context/seed0/one_size", 0.33)
    write_ap("frcnn_r101_coco_context/seed1/one_size", 0.33)
    out = run(capsys, 9, "--runs", tmp_path)
    assert line_of(out, "here: frcnn_r101_coco |")[1:3] == ["60.00", "30.00"]
    assert line_of(out, "here: frcnn_r101_coco_alternating |")[1:3] == ["", ""]
    assert line_of(out, "here: frcnn_r101_coco/refined")[1:3] == ["64.00", "32.00"]
    assert line_of(out, "here: frcnn_r101_coco_context/one_size")[2] == "33.00 ± 0.00 (2)"
    assert line_of(out, "here: frcnn_r101_coco_context |")[1:3] == ["", ""]


def test_the_folders_of_tests_are_those_of_the_papers_page():
    """A user who gives docs/paper.md's commands finds the figures in the tables."""
    page = (ROOT / "docs/paper.md").read_text()
    for number in (9, 12, 13, 14):
        for row in TABLES[number]["rows"]:
            for config in script.configs_of(row):
                name, _, test = config.partition("/")
                if test and name != "imagenet_loc_rpn_vgg16":  # in the header of the config
                    assert f"--out runs/{config}`" in page, config


@pytest.mark.parametrize(("number", "broken", "words"), [("15", False, "no Table 15"), ("6", True, "metrics.json")])
def test_mistakes_end_with_code_2(tmp_path, number, broken, words, monkeypatch, capsys):
    if broken:
        write(tmp_path / "cifar_resnet20/metrics.json", {})
        (tmp_path / "cifar_resnet20/metrics.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["tables.py", number, "--runs", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.run(script.main, script.make_parser())
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
