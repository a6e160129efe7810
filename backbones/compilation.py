"""torch.compile that goes on without it where it cannot be had: no C++ or Triton compiler, an operator it lacks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

logger = logging.getLogger(__name__)

SHAPES = 64
"""Shapes of the inputs that a function is compiled for; at further ones it runs as it is. Padded sizes are dozens."""


def with_fallback(function: Callable[..., Any], name: str, *, graphs: bool = False) -> Callable[..., Any]:
    """The function, compiled anew for each shape of its inputs; from the first failure of the compiler, or of a graph's
    capture, on as it is, after a warning of one line.

    Args:
        function: of tensors, without side effects; often a module's `forward`.
        name: what the warning calls it.
        graphs: on CUDA, for inference: each shape is a CUDA graph, launched as a whole. The outputs are copied out of
            the graph's memory, so that they may be kept.
    """
    # Capture fails as whatever CUDA or torch's graph trees raise: RuntimeError (CUDA's, out of memory among them)
    # or AssertionError. An error of the function itself comes again where it runs as it is.
    failures = (torch._dynamo.exc.TorchDynamoException, *((RuntimeError, AssertionError) if graphs else ()))
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    fast: Callable[..., Any] | None = torch.compile(function, dynamic=False, mode="reduce-overhead" if graphs else None)

    @functools.wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        nonlocal fast
        if fast is not None:
            try:
                result = fast(*inputs, **options)
            except failures as error:
                fast = None
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                logger.warning("%s is not compiled, and runs as it is: %s", name, reason.strip())
            else:
                return tree_map_only(Tensor, Tensor.clone, result) if graphs else result
        return function(*inputs, **options)

    return call
