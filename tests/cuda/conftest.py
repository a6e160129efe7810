"""The CUDA runtime without a GPU (`runtime.c`), built once, and what the cases of `worker.py` gave on it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that goes before CUDA's own; skipped where it cannot be built or has no torch to serve."""
    if torch.version.cuda is None:
        pytest.skip("torch is no CUDA build")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests marked gpu say more")
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("there is no gcc to build the runtime with")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    site = Path(torch.__file__).parents[1]
    headers = next(iter(sorted(site.glob("nvidia/**/cuda_runtime_api.h"))), None)
    if headers is None:
        pytest.skip("CUDA's headers do not lie beside torch")
    library = tmp_path_factory.mktemp("cuda") / "libruntime.so"
    triton = importlib.util.find_spec("triton").submodule_search_locations[0]  # the rest of the headers comes with it
    include = [f"-I{headers.parent}", f"-I{triton}/backends/nvidia/include"]
    command = [
        compiler,
        "-O1",
        "-w",
        "-fPIC",
        "-shared",
        *include,
        str(HERE / "runtime.c"),
        str(no_profiler(site, library)),
    ]
    subprocess.run([*command, "-o", str(library), "-lpthread"], check=True)
    build_driver(site, compiler, library.with_name("libcuda.so.1"))
    return library


def no_profiler(site: Path, library: Path) -> Path:
    """The source of functions of CUPTI that refuse: without a driver those of CUDA 13.2 call themselves for ever."""
    names = wanted_functions(site / "torch/lib/libtorch_cpu.so", "cupti[A-Z]") - {"cuptiGetResultString"}
    source = library.with_name("profiler.c")
    source.write_text("".join(f"int {name}(void) {{ return 15; }}\n" for name in sorted(names)))  # not initialised
    return source


def build_driver(site: Path, compiler: str, library: Path) -> None:
    """The driver's library, which torch opens to ask for the primary context: there is one, and all else succeeds."""
    context = "cuDevicePrimaryCtxGetState"
    others = sorted(wanted_functions(site / "torch/lib/libcaffe2_nvrtc.so", "cu[A-Z]") - {context})
    lines = [f"int {context}(int device, unsigned *flags, int *active) {{ *flags = 0; *active = 1; return 0; }}"]
    lines += [f"int {name}(void) {{ return 0; }}" for name in others]
    source = library.with_name("driver.c")
    source.write_text("\n".join(lines) + "\n")
    name = f"-Wl,-soname,{library.name}"
    subprocess.run([compiler, "-O1", "-w", "-fPIC", "-shared", str(source), "-o", str(library), name], check=True)


def wanted_functions(library: Path, pattern: str) -> set[str]:
    """The names of functions that a library wants from others."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True).stdout
    names = {line.split()[-1].partition("@")[0] for line in listed.splitlines()}
    return {name for name in names if re.match(pattern, name)}


def run_cases(runtime: Path | None, worker: str, *cases: str, **variables: str) -> dict[str, dict[str, Any]]:
    """Case -> what it gave, of a process on the runtime; None: on the GPU."""
    env = dict(os.environ, OMP_NUM_THREADS="1", **variables)
    if runtime is not None:
        libraries = f"{runtime.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
        env |= {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": libraries}
    done = subprocess.run([sys.executable, str(HERE / worker), *cases], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row.pop("case"): row for row in rows}


@pytest.fixture(scope="session")
def results(runtime: Path) -> dict[str, dict[str, Any]]:
    """What the cases of `worker.py` gave."""
    return run_cases(runtime, "worker.py")
