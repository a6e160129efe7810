"""Trainings under torchrun that lose a process or an agent at any moment: they start anew and end bit for bit alike.

KILLS=20 SEED=1 pytest -m "" tests/tools/test_restarts.py   # so many kills of each training, at other moments
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.tools.disturbed import Ending, Forks, Training, assert_equal_runs, configured, content, lines, make_training
from tests.tools.test_clusters_page import JOB, PAGE

SEED = int(os.environ.get("SEED", "0"))
KILLS = int(os.environ.get("KILLS", "10"))
TWO = ["--standalone", "--nproc-per-node", "2"]
RESTARTS = 3


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


KINDS = ["classification", "detection", "localisation"]


@pytest.fixture(params=KINDS)
def training(request, forks, tmp_path) -> Training:
    """On two processes."""
    whole = str(tmp_path / "whole")
    return make_training(request, forks, tmp_path, launch=TWO, moments=[{"rank": 0, "folder": whole}])


def a_moment(training: Training, run: Path, rng: random.Random) -> dict[str, Any]:
    """When to kill which process."""
    if rng.random() < 0.4:
        return {"rank": 0, "file_event": rng.randrange(training.events), "folder": str(run)}
    return {"rank": rng.randrange(2), "after": rng.uniform(0.0, 0.7 * training.seconds)}


def lose_processes(training: Training, folder: Path, kills: int, rng: random.Random) -> None:
    """Runs of torchrun each of which loses up to three processes and starts anew as often."""
    number = runs = 0
    while number < kills:
        run = folder / f"{runs}"
        moments = [a_moment(training, run, rng) for _ in range(min(RESTARTS, kills - number))]
        launch = [*TWO, "--max-restarts", str(RESTARTS)]
        workers = f"data.num_workers={2 * (runs % 2)}"
        ending = training(run, "--resume", "auto", "--set", workers, launch=launch, moments=moments)
        assert ending.code == 0, (moments, ending.output)
        assert ending.left == []
        assert_equal_runs(training.whole, run)
        number += ending.output.count("exitcode: -9")
        runs += 1
    print(f"{training.script}: {number} processes killed in {runs} runs")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_processes_start_anew(training, tmp_path):
    (tmp_path / "runs").mkdir()
    lose_processes(training, tmp_path / "runs", KILLS, random.Random(f"{SEED} restarts {training.script}"))


def a_free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def keep_up(training: Training, run: Path, port: int, node: int, moments: list[float]) -> int:
    """Start an agent again and again, as a cluster does, until its part is done; the number of kills it suffered."""
    launch = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(RESTARTS), "--rdzv-backend", "c10d",
              "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two"]  # fmt: skip
    kills = 0
    for start in range(20):
        log = f"{run}_{node}_{start}.log"
        after = moments.pop() if moments else None
        ending = training(run, "--resume", "auto", log=log, launch=launch, after=after, limit=300)
        assert ending.left == []
        assert ending.code in (0, 1, -9), ending.output
        kills += ending.code == -9
        if ending.code == 0:
            return kills
    raise AssertionError("twenty starts were not enough")


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_killed_agents_start_anew(training, tmp_path):
    """Two agents, as on two machines; each kill takes an agent, the system its process."""
    rng = random.Random(f"{SEED} agents {training.script}")
    number = runs = 0
    with Forks() as other, ThreadPoolExecutor(2) as threads:
        nodes = training, replace(training, forks=other)
        while number < KILLS:
            run, port = tmp_path / f"run_{runs}", a_free_port()
            moments = [rng.uniform(0.0, training.seconds) for _ in range(min(3, KILLS - number))]
            parts = moments[::2], moments[1::2]
            done = [threads.submit(keep_up, nodes[node], run, port, node, parts[node]) for node in range(2)]
            number += sum(each.result() for each in done)
            assert_equal_runs(training.whole, run)
            runs += 1
    print(f"{training.script}: {number} agents killed in {runs} runs")


HANGS = """
import os, time
from tools.runtime import loop
real = loop._update
def falls_asleep(task, plan, parts):
    if plan.state.iteration == 2 and os.environ["RANK"] == "1":
        time.sleep(3600)
    real(task, plan, parts)
loop._update = falls_asleep
"""


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_process_that_hangs_says_where_and_the_other_ends(training, tmp_path):
    ending = training(tmp_path / "run", "--hang-limit", "6", launch=TWO, patch=HANGS)
    assert ending.code == 1
    assert ending.left == []
    assert re.search(r'File ".*", line \d+ in falls_asleep', ending.output), ending.output
    assert "another process has ended, or has not answered for 6 seconds (--hang-limit)" in ending.output
    assert "Traceback" not in ending.output


# ---------------------------------------------------------------------------------------------- docs/clusters.md

ASKS = """
import os
from tools.runtime import loop
real = loop._update
def asking(task, plan, parts):
    if plan.state.iteration == 2:
        os.kill(os.getppid(), {number})
    real(task, plan, parts)
loop._update = asking
"""


def slurms(port: int) -> dict[str, Any]:
    """The launcher of the page's script, on two nodes of one process each."""
    command = next(line for line in PAGE.splitlines() if line.startswith("srun torchrun"))
    for name, value in {"SLURM_NNODES": "2", "first": "localhost", "SLURM_JOB_ID": "7"}.items():
        command = command.replace(f"${name}", value)
    command = command.replace("29400", str(port)).replace("--nproc-per-node 8", "--nproc-per-node 1")
    launch = shlex.split(command)
    return {"launch": launch[2 : next(i for i, word in enumerate(launch) if word.endswith(".py"))]}


def kubernetes(port: int) -> dict[str, Any]:
    """What the training operator gives torchrun for the page's job, with one process for each of its two replicas."""
    policy = JOB["spec"]["elasticPolicy"]
    return {
        "launch": [],
        "environment": {
            "PET_NPROC_PER_NODE": "1",
            "PET_NNODES": f"{policy['minReplicas']}:{policy['maxReplicas']}",
            "PET_MAX_RESTARTS": str(policy["maxRestarts"]),
            "PET_RDZV_BACKEND": policy["rdzvBackend"],
            "PET_RDZV_ENDPOINT": f"localhost:{port}",
        },
    }


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("training", ["classification"], indirect=True)
@pytest.mark.parametrize(("cluster", "number"), [(slurms, signal.SIGUSR1), (kubernetes, signal.SIGTERM)])
def test_a_cluster_takes_its_machines_back_and_starts_the_job_again(training, tmp_path, cluster, number):
    run = tmp_path / "run"

    def both(patch: str) -> list[Ending]:
        how = cluster(a_free_port())
        return list(
            threads.map(
                lambda node: nodes[node](run, "--resume", "auto", log=f"{run}_{node}.log", patch=patch, **how), (0, 1)
            )
        )

    with Forks() as other, ThreadPoolExecutor(2) as threads:
        nodes = training, replace(training, forks=other)
        asked = both(ASKS.format(number=int(number)))
        assert [ending.code for ending in asked] == [1, 1], asked
        assert [ending.left for ending in asked] == [[], []]
        said = "".join(ending.output for ending in asked)
        assert re.search(r"interrupted after [34] iterations; .*last.pt is written", said), said
        assert "Traceback" not in said
        assert [ending.code for ending in both("")] == [0, 0]
    assert_equal_runs(training.whole, run)


# ---------------------------------------------------------------------------------------------- other numbers of them

NOTED = """
import os
from tools.runtime import loop
real = loop._update
def noting(task, plan, parts):
    with open({notes!r}, "a") as file:
        images = " ".join(str(index) for part in parts for index in part.index.tolist())
        file.write(f"{{plan.state.iteration}} {{images}}\\n")
    real(task, plan, parts)
    plan.stop.requested = plan.stop.requested or plan.state.iteration + 1 == {until}
loop._update = noting
"""
ACROSS = ["--set", "model.norm=sync", "optim.lr=0.001"]


@dataclass
class Trained:
    folder: Path
    images: dict[int, list[int]]
    """Iteration -> positions in the training set, of all processes."""


def train_on(training: Training, out: Path, *counts: int) -> Trained:
    """Train on so many processes; of several counts the first makes three steps and is stopped, the others go on."""
    notes = out.with_suffix(".notes")
    for turn, count in enumerate(counts):
        last = turn + 1 == len(counts)
        patch = NOTED.format(notes=str(notes), until=None if last else 3)
        launch = ["--standalone", "--nproc-per-node", str(count)]
        size = ["train.batch_size=4"] if "det" in training.script else []
        ending = training(out, "--resume", "auto", *ACROSS, *size, launch=launch, patch=patch)
        assert ending.code == (0 if last else 1), ending.output
        assert last or "interrupted after 3 iterations" in ending.output
    images: dict[int, list[int]] = {}
    for line in notes.read_text().splitlines():
        iteration, *found = map(int, line.split())
        images[iteration] = sorted(images.get(iteration, []) + found)
    return Trained(out, images)


def assert_alike(a: Trained, b: Trained) -> None:
    """The same images at each step; figures and weights equal but for the order of sums."""
    assert a.images == b.images
    for one, two in zip(lines(a.folder), lines(b.folder), strict=True):
        assert (one["split"], one["iteration"]) == (two["split"], two["iteration"])
        assert one.get("loss", 0.0) == pytest.approx(two.get("loss", 0.0), rel=1e-3)
    ours, theirs = (content(each.folder / "last.pt")["model"] for each in (a, b))
    away = {name: float((value - theirs[name]).abs().max()) for name, value in ours.items()}
    print(f"{b.folder.name}: weights and statistics differ by {max(away.values()):.1e} at most")
    assert max(away.values()) < 1e-4, away


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_trains_alike_and_may_change(kind, request, forks, tmp_path):
    request.param = kind
    training = configured(request, forks, tmp_path)
    one = train_on(training, tmp_path / "1", 1)
    assert [len(images) for images in one.images.values()] == [4 if kind == "detection" else 8] * 6
    for counts in ((2,), (4,), (2, 1), (1, 2), (4, 2)):
        assert_alike(one, train_on(training, tmp_path / "_".join(map(str, counts)), *counts))
