"""The Triton kernels compiled for the GPUs that people have, with the arguments of real calls: nothing spills.

Needs Triton's compiler and NVIDIA's assembler, which come with it, and no GPU.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if not (Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump").exists():
    pytest.skip("NVIDIA's tools do not lie beside Triton", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backbones import triton_kernels as epilogue
from detection import triton_assignment as assignment
from detection import triton_canvas as canvas
from detection import triton_kernels as kernels
from detection import triton_losses as losses
from detection import triton_selection as selection
from detection.sampling import PLACE_BITS

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
LONG, INT, FLOAT, BYTE, BF16, EXACT = "*i64", "i32", "fp32", "*u8", "*bf16", "*fp32"
ROI = {"num_rois": INT, "channels": INT, "height": INT, "width": INT, "scale": FLOAT}
C4 = {"SIZE": 14, "SIDE": 14, "STEP": 1, "RATIO": 0, "ALIGNED": True}
CANVAS = dict.fromkeys(("height", "width", "channels", "canvas_height", "canvas_width", "left", "top"), INT)
LOSS = dict.fromkeys(("count", "losses", "gradient"), EXACT)
SAMPLE = {"count": INT, "size": INT, "most_positive": INT}
MIDDLE, ODD = kernels._middle(0.7)
NMS = {"num_boxes": INT, "order_stride": INT, "start": INT, "chunk": INT, "max_output": INT}
CASES: dict[str, tuple[Any, dict[str, str], dict[str, Any], int]] = {
    "overlaps": (
        kernels._overlaps_kernel,
        {"boxes": EXACT, "groups": LONG, "valid": BYTE, "order": LONG, "output": LONG, "survivors": "*i32",
         "fallen": "*i32", "words": LONG, **NMS},
        {"MIDDLE": MIDDLE, "ODD": ODD, "NUM_WORDS": 64, "ROWS": kernels.ROWS}, 4,
    ),
    "scan": (
        kernels._scan_kernel,
        {"valid": BYTE, "order": LONG, "output": LONG, "survivors": "*i32", "fallen": "*i32", "words": LONG, **NMS},
        {"NUM_WORDS": 64, "PART": 16}, 4,
    ),
    "roi_align": (
        kernels._roi_align_kernel, {"feature": BF16, "rois": EXACT, "output": BF16, **ROI},
        {**C4, "BLOCK": kernels.MAX_CHANNELS}, 1,
    ),
    "reach": (
        kernels._reach_kernel,
        {"rois": EXACT, "words": "*i32", "summaries": "*i32", "num_rois": INT, "height": INT, "width": INT,
         "scale": FLOAT, "tiles": INT},
        {**C4, "TILE": kernels.TILE, "RUNS": 32}, 4,
    ),
    "roi_align_backward": (
        kernels._roi_align_backward_kernel,
        {"bins": BF16, "rois": EXACT, "words": "*i32", "summaries": "*i32", "output": BF16, **ROI, "tiles": INT},
        {**C4, "TILE": kernels.TILE, "BINS": 16, "BLOCK": kernels.GATHERED_CHANNELS, "PRECISION": "tf32"}, 4,
    ),
    "match": (
        assignment._match_kernel,
        {"boxes": EXACT, "valid": BYTE, "candidates": EXACT, "candidate_valid": BYTE, "best_of_object": "*i32",
         "iou": EXACT, "index": LONG, "is_best": BYTE, "num_objects": INT, "num_candidates": INT, "stride": INT},
        {"MASKED": True, "SECOND": False, "BLOCK": assignment.BLOCK}, 4,
    ),
    "random_keys": (
        assignment._keys_kernel,
        {"image_index": LONG, "codes": LONG, "keys": LONG, "iteration": LONG, "count": INT, "step": INT,
         "purpose": INT, "mask": "i64"},
        {"PLACE_BITS": PLACE_BITS, "REPLAYED": True, "BLOCK": assignment.BLOCK}, 4,
    ),
    "decode": (
        assignment._decode_kernel,
        {"deltas": EXACT, "rows": LONG, "references": EXACT, "places": LONG, "weights": EXACT, "image_sizes": LONG,
         "boxes": EXACT, "usable": BYTE, "count": INT, "delta_stride": INT, "reference_stride": INT,
         "min_size": FLOAT, "limit": FLOAT},
        {"WEIGHTED": True, "BLOCK": assignment.BLOCK}, 4,
    ),
    "best_of_levels": (
        selection._best_kernel,
        {"values": EXACT, "sources": LONG, "plan": "*i32", "index": LONG, "scores": EXACT, "levels": LONG,
         "num_candidates": INT, "num_taken": INT},
        {"SECOND": True, "BLOCK": selection.BLOCK}, selection.WARPS,
    ),
    "survivors": (
        selection._survivors_kernel,
        {"keys": LONG, "positive": BYTE, "negative": BYTE, "survivors": LONG, **SAMPLE},
        {"CHUNK": selection.CHUNK, "BLOCK": selection.BLOCK}, selection.WARPS,
    ),
    "sample": (
        selection._sample_kernel,
        {"keys": LONG, "positive": BYTE, "negative": BYTE, "index": LONG, "is_positive": BYTE, "is_valid": BYTE,
         **SAMPLE},
        {"MASKED": True, "PLACE_BITS": PLACE_BITS, "PLACES": 512, "BLOCK": selection.BLOCK}, selection.WARPS,
    ),
    "objectness_loss": (
        losses._objectness_kernel,
        {"logits": EXACT, "positive": BYTE, "valid": BYTE, **LOSS, "total": INT}, {"BLOCK": losses.BLOCK}, 4,
    ),
    "classification_loss": (
        losses._classification_kernel,
        {"logits": EXACT, "labels": LONG, "valid": BYTE, **LOSS, "classes": INT}, {"BLOCK": 128}, 4,
    ),
    "box_loss": (
        losses._box_kernel,
        {"deltas": EXACT, "targets": EXACT, "positive": BYTE, **LOSS, "total": INT, "beta": FLOAT},
        {"BLOCK": losses.BLOCK}, 4,
    ),
    "scale": (
        epilogue._scale_kernel,
        {"sources": LONG, "rows": LONG, "owners": "*i32", "scales": EXACT, "output": BF16, "like": EXACT},
        {"BLOCK": epilogue.BLOCK}, 4,
    ),
    "canvas": (
        canvas._fill_kernel, {"level": BF16, "canvas": BF16, **CANVAS},
        {"BEFORE": 1, "BEHIND": 2, "PIXELS": canvas.PIXELS, "CHANNELS": canvas.CHANNELS}, 4,
    ),
    "canvas_backward": (
        canvas._gather_kernel, {"canvas": BF16, "level": BF16, **CANVAS},
        {"BEFORE": 1, "BEHIND": 2, "PIXELS": canvas.PIXELS, "CHANNELS": canvas.CHANNELS}, 4,
    ),
    "bias_relu": (
        epilogue._bias_relu_kernel,
        {"x": BF16, "bias": EXACT, "residual": BF16, "output": BF16, "total": INT},
        {"inner": 1, "CHANNELS": 1024, "RESIDUAL": True, "RELU": True, "BLOCK": epilogue.BLOCK}, 4,
    ),
    "spread_relu_backward": (
        epilogue._spread_relu_backward_kernel, {"means": BF16, "output": BF16, "gradient": BF16, "total": INT},
        {"CHANNELS": 2048, "PIXELS": 49, "BLOCK": epilogue.BLOCK}, 4,
    ),
    "sum_relu_backward": (
        epilogue._sum_relu_backward_kernel,
        {"first": BF16, "second": BF16, "output": BF16, "gradient": BF16, "total": INT}, {"BLOCK": epilogue.BLOCK}, 4,
    ),
}  # fmt: skip
"""Name -> kernel, types of its arguments, its constants, warps."""


def compiled(name: str, capability: int) -> Any:
    """The kernel for a compute capability; pointers and sizes are multiples of 16, as torch gives them."""
    kernel, types, constants, warps = CASES[name]
    signature = {key: types.get(key, "constexpr") for key in kernel.arg_names}
    places = {key: (number,) for number, key in enumerate(kernel.arg_names)}
    sized = [key for key, kind in types.items() if kind.startswith("*") or key == "channels"]
    aligned = {places[key]: [["tt.divisibility", 16]] for key in sized}
    source = ASTSource(kernel, signature, {places[key]: value for key, value in constants.items()}, aligned)
    options: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": name not in ("overlaps", "scan", "match")}
    if name == "roi_align_backward":
        options["maxnreg"] = kernels.GATHER_REGISTERS
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(binary: bytes, folder: Path) -> tuple[int, int, int]:
    """Registers a thread, bytes of spilled memory, instructions."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    text = subprocess.run([TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found is not None, text
    assembly = subprocess.run([TOOLS / "nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", assembly, re.MULTILINE))
    return int(found[1]), int(found[2]) + int(found[3]), instructions


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is no CUDA build")
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", CASES)
def test_nothing_spills(name, capability, tmp_path):
    registers, spilled, instructions = usage(compiled(name, capability).asm["cubin"], tmp_path)
    print(f"{name} sm_{capability}: {registers} registers, {spilled} bytes spilled, {instructions} instructions")
    newer = tuple(map(int, torch.version.cuda.split("."))) >= (13, 2)  # spills two registers of one kernel
    assert spilled == (8 if newer and (name, capability) == ("sample", 90) else 0)
    assert registers <= 128


def test_the_threshold_reaches_the_gpu_in_float64():
    """As an argument it would be rounded to float32, and overlaps right at the threshold would be judged otherwise."""
    constants = re.findall(r"0d([0-9A-F]{16})", compiled("overlaps", 90).asm["ptx"])
    assert MIDDLE in {torch.tensor(int(text, 16)).view(torch.float64).item() for text in constants}
