"""The folder of a run: what is logged, what is kept, and what is never overwritten."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from tools.runtime.run_folder import RunFolder, write_json


def test_folder_logs_lines_and_scalars(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.prepare()
        run.open("seed: 0\n")
        run.log(5, {"loss": 0.5, "part": math.nan, "coco": {"AP": np.float64(0.25), "per": None}}, prefix="val")
        assert (run.path / "metrics.jsonl").read_text().endswith("}\n"), "at once: others read along"
        run.log_picture(5, "val/x", np.zeros((4, 5, 3), np.uint8))
        run.log_curves(5, "val_classes", {"cat": np.array([[3, 1, 0], [1, 0, 0], [1, 3, 4]])})
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    line = json.loads((run.path / "metrics.jsonl").read_text())
    assert line == {"iteration": 5, "split": "val", "loss": 0.5, "part": None, "coco": {"AP": 0.25, "per": None}}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"val/loss", "val/coco.AP"}
    assert events.Scalars("val/coco.AP")[0].value == 0.25
    assert events.Tags()["images"] == ["val/x"]
    from tensorboard.util.tensor_util import make_ndarray

    curve = make_ndarray(events.Tensors("val_classes/cat")[0].tensor_proto)  # in the order of TensorBoard's plugin
    assert curve.tolist() == [[3, 1, 0], [1, 0, 0], [0, 0, 0], [1, 3, 4], [0.75, 1, 0], [0.75, 0.25, 0]]
    assert events.SummaryMetadata("val_classes/cat").plugin_data.plugin_name == "pr_curves"


def test_resumed_folder_drops_lines_that_come_again(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        run.open("")
        for iteration in (2, 4, 6):
            run.log(iteration, {"loss": float(iteration)})
    (run.path / "metrics.jsonl").open("a").write('{"iteration": 7, "lo')  # a crash in the middle of a line
    with RunFolder(tmp_path / "run") as again:
        again.open("", from_iteration=4)
        again.log(6, {"loss": 0.0})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(2, 2.0), (4, 4.0), (6, 0.0)]


def test_resumed_folder_keeps_the_lines_that_its_checkpoint_knows(tmp_path):
    """A validation of the checkpoint's own iteration that came after it is done again."""
    with RunFolder(tmp_path / "run") as run:
        run.open("")
        run.log(2, {"loss": 1.0}, prefix="train")
        known = run.lines
        run.log(2, {"loss": 0.5}, prefix="val")
    with RunFolder(tmp_path / "run") as again:
        again.lines = known
        again.open("", from_iteration=2)
        assert again.lines == 1
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1


def test_folder_that_does_not_write_leaves_nothing(tmp_path):
    with RunFolder(tmp_path / "run", writes=False) as run:
        run.open("")
        run.log(1, {"loss": 1.0})
        run.log_picture(1, "x", np.zeros((2, 2, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def write_a_run(path: Path) -> None:
    """The files of a run that has ended."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "metrics.json"):
        (path / name).write_text("of the run")


def prepare(path: Path, **options) -> bool:
    with RunFolder(path) as run:
        return run.prepare(**options)


def test_a_new_run_leaves_nothing_where_it_never_began(tmp_path):
    assert prepare(tmp_path / "run") is False
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten_unasked(tmp_path):
    write_a_run(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        prepare(tmp_path / "run")
    assert prepare(tmp_path / "run", resume="must") is True
    assert prepare(tmp_path / "run", resume="auto") is True
    with pytest.raises(UserError, match="contradict"):
        prepare(tmp_path / "run", resume="must", overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        prepare(tmp_path / "run/config.yaml")


def test_a_run_that_nobody_prepared_is_not_overwritten_either(tmp_path):
    """As by a script of one's own that runs twice."""
    for _ in range(2):
        with RunFolder(tmp_path / "run") as run:
            if (run.path / "metrics.jsonl").exists():
                with pytest.raises(UserError, match=r"run: holds a run already \(config.yaml, metrics.jsonl\)"):
                    run.open("second")
            else:
                run.open("first")
    assert (tmp_path / "run/config.yaml").read_text() == "first"
    with RunFolder(tmp_path / "run") as run:
        run.prepare(overwrite=True)
        run.open("third")
    assert (tmp_path / "run/config.yaml").read_text() == "third"


def test_nothing_to_go_on_from(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(UserError, match="no run to resume here"):
        prepare(path, resume="must")
    assert prepare(path, resume="auto") is False
    write_a_run(path)
    (path / "last.pt").unlink()
    for resume in ("must", "auto"):
        with pytest.raises(UserError, match=r"has no last\.pt to go on from \(there is best\.pt: .*--init-from"):
            prepare(path, resume=resume)
    (path / "best.pt").unlink()
    (path / "metrics.json").unlink()
    with pytest.raises(UserError, match="was stopped before its first checkpoint"):
        prepare(path, resume="must")
    assert prepare(path, resume="auto") is False, "a run that was killed before its first checkpoint starts anew"
    assert sorted(os.listdir(path)) == ["config.yaml", "metrics.jsonl"]


def test_an_older_checkpoint_is_something_to_go_on_from(tmp_path):
    """Else `--resume auto` would begin anew, and remove it."""
    path = tmp_path / "run"
    write_a_run(path)
    (path / "last.pt").rename(path / "last_1.pt")
    for resume in ("must", "auto"):
        assert prepare(path, resume=resume) is True


@pytest.mark.parametrize("content", ["", "7", "[7]", '["../mine.txt", "/etc/hostname"]', "[[1]]"])
def test_a_list_of_written_files_that_somebody_changed_removes_nothing_else(tmp_path, content):
    path = tmp_path / "run"
    write_a_run(path)
    (tmp_path / "mine.txt").write_text("")
    (path / ".written.json").write_text(content)
    with RunFolder(path) as run:
        run.prepare(overwrite=True)
        run.open("seed: 1\n")
        with run.noting():
            (path / "drawn.png").write_text("")
    assert (tmp_path / "mine.txt").exists()
    assert json.loads((path / ".written.json").read_text()) == ["drawn.png"]


def test_damaged_lines_of_the_log_are_left_out(tmp_path, caplog):
    path = tmp_path / "run"
    path.mkdir()
    lines = [b'{"iteration": 1}', b'{"iteration": "x"}', b'{"iteration": null}', b"\xff", b"[1]", b'{"iteration": 2}']
    (path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with RunFolder(path) as run:
        run.lines = 6  # as the checkpoint says
        run.open("seed: 1\n", from_iteration=2)
    assert (path / "metrics.jsonl").read_text().splitlines() == [lines[0].decode(), lines[-1].decode()]
    assert "4 lines of before the checkpoint are missing or damaged" in caplog.text


def test_overwriting_removes_the_runs_files_and_no_others(tmp_path):
    path = tmp_path / "run"
    write_a_run(path)
    with RunFolder(path) as run:
        run.prepare(overwrite=True)
        with run.noting():
            (path / "pictures").mkdir()
            (path / "pictures/a.png").write_text("drawn")
            (path / "comp4_det_test_cat.txt").write_text("written")
    (path / "last_1.pt").write_text("of the run")
    (path / "tensorboard").mkdir(exist_ok=True)
    (path / "tensorboard/events.out.tfevents.1").write_text("of the run")
    (path / "pictures/mine.png").write_text("a person's")
    (path / "notes.txt").write_text("a person's")
    with RunFolder(path) as run:
        run.prepare(overwrite=True)
        assert (path / "best.pt").exists(), "nothing goes before the new run begins to write"
        run.open("seed: 1\n")
    left = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert "tensorboard/events.out.tfevents.1" not in left
    assert {name for name in left if not name.startswith("tensorboard")} == {
        ".ended", "config.yaml", "metrics.jsonl", "notes.txt", "pictures/mine.png"
    }  # fmt: skip


def test_the_weights_of_the_new_run_are_not_removed(tmp_path):
    write_a_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"best\.pt: belongs to the run that --overwrite removes"):
        prepare(tmp_path / "run", overwrite=True, keep=[tmp_path / "run/best.pt"])
    assert prepare(tmp_path / "run", overwrite=True, keep=[tmp_path / "elsewhere.pt"]) is False


def test_two_runs_do_not_share_a_folder(tmp_path):
    with RunFolder(tmp_path / "run") as first:
        first.prepare()
        for options in ({}, {"overwrite": True}, {"resume": "auto"}):
            with pytest.raises(UserError, match=rf"another run is at work here \(process {os.getpid()} on "):
                prepare(tmp_path / "run", **options)
        first.open("")
    assert not (tmp_path / "run/.lock").exists()


def test_the_workers_of_a_killed_run_do_not_hold_its_lock(tmp_path):
    reader, writer = os.pipe()
    run = os.fork()
    if run == 0:
        RunFolder(tmp_path / "run").prepare()
        worker = os.fork()
        if worker == 0:
            os.write(writer, f"{os.getpid()}".encode())
            time.sleep(60)
        signal.pause()
    worker = int(os.read(reader, 20))
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    try:
        with RunFolder(tmp_path / "run") as folder:
            assert not folder.prepare(resume="auto")
    finally:
        os.kill(worker, signal.SIGKILL)
    assert prepare(tmp_path / "run", overwrite=True) is False


@pytest.mark.parametrize(
    "name", [".last.pt.123-4.part", ".metrics.json.7-140151861197696.part", "report/.x.png.7-1.part"]
)
def test_leftovers_of_a_killed_writer_go(tmp_path, name):
    write_a_run(tmp_path / "run")
    leftover = tmp_path / "run" / name
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_text("half")
    mine = tmp_path / "run/novel.1-2.part"
    mine.write_text("a person's")
    prepare(tmp_path / "run", resume="must")
    assert not leftover.exists()
    assert mine.exists()


def write_on(path: Path, disturb: Callable[[], None]) -> None:
    with RunFolder(path) as run:
        run.prepare()
        run.open("")
        disturb()
        for iteration in range(100):
            run.log(iteration, {"loss": 1.0})


def test_a_folder_that_vanishes(tmp_path):
    """It is not made anew for what comes later, and TensorBoard's thread says nothing of its own."""
    path = tmp_path / "run"
    with pytest.raises(UserError, match="run: the run's folder was removed"):
        write_on(path, lambda: shutil.rmtree(path))
    assert not path.exists()


def test_a_full_disk_is_told_with_the_file(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            write_on(tmp_path / "run", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_log_of_tensorboard_that_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "tensorboard").touch()
    with pytest.raises(FileExistsError, match="tensorboard"), RunFolder(tmp_path) as run:
        run.open("")


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [math.inf, 1.0], "b": np.int64(3)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": 3}
