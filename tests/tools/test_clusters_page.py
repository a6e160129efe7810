"""The commands of docs/clusters.md: the launcher and the scripts know all their options."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
JOB = next(yaml.safe_load(block) for language, block in BLOCKS if language == "yaml")
WORKER = JOB["spec"]["pytorchReplicaSpecs"]["Worker"]
COMMANDS = [
    shlex.split(line)
    for language, block in BLOCKS
    for line in block.splitlines()
    if language != "yaml" and line.removeprefix("srun ").startswith("torchrun")
] + [WORKER["template"]["spec"]["containers"][0]["command"]]


def test_all_commands_were_found():
    assert len(COMMANDS) == 5
    assert WORKER["replicas"] == JOB["spec"]["elasticPolicy"]["maxReplicas"]


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_options_parse(command):
    launch = get_args_parser().parse_args(command[command.index("torchrun") + 1 :])
    script = import_module(launch.training_script.removesuffix(".py").replace("/", "."))
    args = script.make_parser().parse_args(launch.training_script_args)
    assert (ROOT / args.cfg).is_file()
    assert args.resume == "auto"


def test_scripts_of_slurm_ask_for_a_signal_that_stops_a_run():
    from tools.runtime.cli import StopRequest

    name = re.search(r"--signal=(\w+)@", PAGE)[1]
    assert f"SIG{name}" in {number.name for number in StopRequest.SIGNALS}
