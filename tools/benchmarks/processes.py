"""Each row of a report in a process of its own: no error, crash or lack of memory of one costs the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.errors import UserError
from tools.benchmarks.report import print_result

LEAST_SECONDS = 20.0
"""Nothing starts with less time left: importing torch and building a network take as long."""


def run_rows(
    rows: Mapping[str, Sequence[str]],
    script: Path,
    *,
    seconds: float,
    keep: Callable[[str, dict[str, Any]], None],
    env: Mapping[str, str] | None = None,
) -> None:
    """Run rows one after another, and hand each one's result on at once.

    Args:
        rows: name -> arguments of the script, which must write its report to `--out`, the row under `results`.
        script: the Python file.
        seconds: for all rows together; a row that is still running then is ended, and no more are started.
        keep: called with the name and the result of each row, in order. What did not run has one key, `not_run`: why.
        env: environment variables of the processes; default: this process's.
    """
    end = time.monotonic() + seconds
    for name, arguments in rows.items():
        left = end - time.monotonic()
        if left < min(LEAST_SECONDS, seconds / 2):
            result = {"not_run": f"the {seconds:g} seconds of the run were over"}
        else:
            result = run_row([sys.executable, str(script), *arguments], left, env)
        print_result(name, result)
        keep(name, result)


def run_row(command: list[str], seconds: float, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The row that a command writes, or {"not_run": the reason}.

    Args:
        command: to which `--out FILE` is added.
        seconds: after which it and its children are ended.
        env: environment variables; default: this process's.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        process = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            errors="replace", env=env, start_new_session=True,
        )  # fmt: skip
        try:
            _, messages = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"not_run": f"ended after {seconds:.0f} seconds: the time was over"}
        finally:
            _end(process)
        if process.returncode == 0:
            try:
                (row,) = json.loads(out.read_text(encoding="utf-8"))["results"].values()
                return row
            except (OSError, ValueError, KeyError) as error:
                return {"not_run": f"the process wrote no result: {error}"}
        return {"not_run": _reason(process.returncode, messages)}


def _end(process: subprocess.Popen) -> None:
    """End a process and its children, which share a session."""
    with suppress(ProcessLookupError):  # none of them is left
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _reason(code: int, messages: str) -> str:
    """Why a process failed: the last line of what it said, and the signal or exit code."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    said = lines[-1][:500] if lines else "it said nothing"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        memory = "; the system ended it, as a rule for lack of memory" if name == "SIGKILL" else ""
        return f"ended by signal {name}{memory}: {said}"
    return said if code == 2 else f"exit code {code}: {said}"


# ---------------------------------------------------------------------------------------------- packages


def install_wheels(wheels: Path, site: Path) -> None:
    """Install all wheels of a folder, and nothing else, into a folder of their own.

    Raises:
        UserError: there are none, or pip cannot install them.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise UserError(f"--wheels {wheels}: there is no .whl file")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--upgrade", "--target", str(site)]
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError(f"--wheels {wheels}: pip: {lines[-1]}")


def environment_variables(site: Path) -> dict[str, str]:
    """This process's, with what is installed in the folder `site` found first."""
    paths = [str(site.resolve())] if site.exists() else []
    given = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *([given] if given else [])])}
