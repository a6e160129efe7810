"""torch.compile and CUDA graphs that go on without themselves where they cannot be had."""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

logger = logging.getLogger(__name__)

SHAPES = 64
"""Shapes of the inputs that a function is compiled for; at further ones it runs as it is. Padded sizes are dozens."""
GRAPHS = 32
"""Shapes of the inputs that `Graphs` remembers, the last used ones."""


def with_fallback(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, compiled anew for each shape of its inputs; from the first failure of the compiler on as it is,
    after a warning of one line.

    Args:
        function: of tensors, without side effects; often a module's `forward`.
        name: what the warning calls it.
    """
    from torch._dynamo.exc import TorchDynamoException

    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    fast: Callable[..., Any] | None = torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*inputs: Any, **options: Any) -> Any:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*inputs, **options)
            except TorchDynamoException as error:
                fast = None
                logger.warning("%s is not compiled, and runs as it is: %s", name, _first_line(error))
        return function(*inputs, **options)

    return call


class _Graph(NamedTuple):
    """A captured call."""

    inputs: list[Tensor]
    """Where the graph reads."""
    outputs: list[Tensor]
    """Where it writes; in a pool that all graphs share."""
    structure: TreeSpec
    """What the outputs are the leaves of."""
    replay: Callable[[], None]


class Graphs:
    """Calls on CUDA as CUDA graphs, one for each shape of the inputs: the host launches one thing in place of hundreds.

    A shape runs as it is when it comes for the first time, which also tunes and compiles what it calls; when it comes
    again it is captured, and from then on replayed. Graphs share their memory, so that many need hardly more of it than
    the largest; outputs are copied out of it, and may be kept. From the first failure of a capture on, where a new
    shape finds too little memory beside the graphs', and on the CPU, everything runs as it is, after a warning of one
    line.

    Args:
        name: what the warning calls the function.
        remembered: shapes that are remembered, the last used ones. One that comes back later begins anew.
    """

    def __init__(self, name: str, remembered: int = GRAPHS) -> None:
        self.name, self.remembered = name, remembered
        self.known: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        """What identifies a call -> its graph; None: it came once."""
        self.gave_up = False
        self._pool: Any = None

    def __call__(self, function: Callable[..., Any], inputs: Sequence[Tensor], key: Hashable = ()) -> Any:
        """What `function(*inputs)` gives.

        Args:
            function: of tensors of the inputs' shapes; gives tensors, or tuples and the like of them. It waits for
                nothing, and whatever else decides what it does is in `key`. Other tensors that it reads or writes stay
                where they are in memory.
            inputs: all on one device.
            key: hashable.
        """
        if not self.gave_up and not _capturable(inputs):
            self._give_up("its inputs are not on a GPU")
        if self.gave_up:
            return function(*inputs)
        call = (key, *((x.shape, x.stride(), x.dtype) for x in inputs))
        if call not in self.known:
            self._remember(call, None)
            return self._as_it_is(function, inputs)
        graph = self.known.pop(call) or self._captured(function, inputs)
        if graph is None:
            return function(*inputs)
        self._remember(call, graph)
        with torch.no_grad():
            for place, given in zip(graph.inputs, inputs, strict=True):
                place.copy_(given)
        graph.replay()
        return tree_unflatten([x.clone() for x in graph.outputs], graph.structure)

    def _as_it_is(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """Without a graph; once more without all graphs if they leave too little memory for it (what the first try has
        reached of batch norm's statistics then moves twice)."""
        try:
            return function(*inputs)
        except torch.OutOfMemoryError:
            if not any(self.known.values()):
                raise
        # Not inside the handler, where the error keeps alive what the call has allocated.
        self._give_up("graphs have memory of their own, and leave too little for a new shape")
        return function(*inputs)

    def _remember(self, call: Hashable, graph: _Graph | None) -> None:
        self.known[call] = graph  # the last used one comes last
        if len(self.known) > self.remembered:
            self.known.popitem(last=False)

    def _captured(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> _Graph | None:
        """The call as a graph, which has not run yet; None: that failed, and is not tried again."""
        with torch.inference_mode(False), torch.no_grad():  # else they could be written in inference mode only
            places = [torch.empty_like(x).copy_(x) for x in inputs]
        try:
            replay, outputs = _capture(lambda: function(*places), self._shared_pool())
        # Whatever CUDA or torch raises; an error of the function itself comes again where it runs as it is.
        except (RuntimeError, AssertionError) as error:
            self._give_up(_first_line(error))
            return None
        leaves, structure = tree_flatten(outputs)
        return _Graph(places, leaves, structure, replay)

    def _give_up(self, reason: str) -> None:
        self.gave_up = True
        self.known.clear()
        logger.warning("%s is no CUDA graph, and runs as it is: %s", self.name, reason)

    def _shared_pool(self) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


class GraphedStep:
    """Forward and backward pass of a training step as CUDA graphs (`Graphs`), one for each shape of the inputs.

    Gradients of all graphs come out in the same memory, a copy beside the graphs', so that many graphs have gradients
    once. They are those of a step without graphs, bit for bit.

    Args:
        name, remembered: see `Graphs`.
        parameters: of the net; those that train get gradients.
    """

    def __init__(self, name: str, parameters: Iterable[nn.Parameter], remembered: int = GRAPHS) -> None:
        self.graphs = Graphs(name, remembered)
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._gradients: list[Tensor] | None = None
        """The gradients of those parameters that get one, in all steps the same tensors."""

    def __call__(self, step: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
        """What `step(*inputs)` gives; gradients are added to those that the parameters have.

        Args:
            step: see `Graphs`; goes backward, and gives tensors without gradients. In all calls the same.
            inputs: see `Graphs`.
        """
        if self.graphs.gave_up:
            return step(*inputs)
        further = any(parameter.grad is not None for parameter in self._parameters)  # a further part of an update

        def work(*inputs: Tensor) -> Any:
            for parameter in self._parameters:
                parameter.grad = None  # else gradients would be added to those of the capture
            outputs = step(*inputs)
            self._collect(further)
            return outputs

        outputs = self.graphs(work, inputs, further)
        for parameter, gradient in zip(self._parameters, self._gradients or (), strict=True):
            parameter.grad = gradient
        return outputs

    @torch.no_grad()
    def _collect(self, further: bool) -> None:
        """Move the gradients from where autograd put them; a graph's go on being part of its memory."""
        fresh = [parameter.grad for parameter in self._parameters]
        self._parameters = [p for p, gradient in zip(self._parameters, fresh, strict=True) if gradient is not None]
        given = [gradient for gradient in fresh if gradient is not None]
        if self._gradients is None:
            self._gradients = [torch.empty_like(gradient) for gradient in given]
        put = torch._foreach_add_ if further else torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]  # no public name
        put(self._gradients, given)
        for parameter in self._parameters:
            parameter.grad = None


def _capturable(inputs: Sequence[Tensor]) -> bool:
    return all(x.is_cuda for x in inputs)


def _capture(function: Callable[[], Any], pool: Any) -> tuple[Callable[[], None], Any]:
    """What launches all that the function does on the current stream's device, and the outputs that this writes."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    failure: Exception | None = None
    outputs = None
    torch.clear_autocast_cache()  # what autocast remembers would be the graph's, or vanish while the graph reads it
    try:
        # Only this thread is watched for what a capture forbids: a loader's goes on allocating pinned memory.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                outputs = function()
            except Exception as error:
                failure = error  # says more than the end of the capture, which may then fail too
    except RuntimeError as error:
        failure = failure or error
        torch.cuda.set_stream(stream)  # where torch cannot end a capture, its stream and pool stay in use
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
    torch.clear_autocast_cache()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # error, traceback, this frame, error: such a cycle would keep all that the capture has made
    return graph.replay, outputs


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
