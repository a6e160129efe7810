"""What every net offers to those who build on it: stages, feature taps, a part that comes out as a detector's head.

`StagedNet` is what a detector and a localiser need of a net; `Stage` is what a net's stages are made of.
`SequentialNet` is a net that is nothing but stages in a row (the comparators), `WithCompanions` what a net with
auxiliary classifiers says in training.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backbones import fused
from backbones.batch_norm import TRAINED_BATCH_NORMS

Norm = Literal["batch", "frozen", "sync"]
Head = Literal["conv", "fc"] | None


class StagedNet(Protocol):
    """What a detector needs of a net: any module with these parts is a backbone."""

    stage_channels: dict[str, int]
    """Channels of each stage's map, in the order of the stages."""
    stage_strides: dict[str, int]
    """Pixels of the image for each pixel of a stage's map."""
    head: Head
    """What runs on each RoI: conv: the last stage, which `pop_stage` takes out; fc: two fully connected layers on the
    last stage's map (VGG); None: the net has no maps (vectors, a linear classifier): no detector can stand on it."""

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed."""
        ...

    def freeze_stages(self, count: int) -> None:
        """The first `count` stages train no more, whatever `train()` says."""
        ...

    def pop_stage(self, name: str) -> nn.Module:
        """Takes a stage out of the net and returns it."""
        ...

    def pop_classifier(self) -> nn.Module:
        """Takes out what follows the last stage and returns it."""
        ...


class PooledNet(StagedNet, Protocol):
    """A net whose classifier is linear on the mean of its last map (`pools_globally`)."""

    fc: nn.Linear


class WithCompanions(NamedTuple):
    """A net's outputs in training where it has auxiliary classifiers (GoogLeNet, DSN)."""

    logits: Tensor
    """(B, K)."""
    companions: tuple[Tensor, ...]
    """(B, K) each."""
    weight: float
    """What each companion's loss counts for beside the net's own."""

    def detach(self) -> Tensor:
        """The net's own logits, without their history."""
        return self.logits.detach()


@contextlib.contextmanager
def _statistics_kept(unit: nn.Module) -> Iterator[None]:
    """Inside, a forward pass in training mode leaves the running statistics as they are."""
    norms = [module for module in unit.modules() if isinstance(module, TRAINED_BATCH_NORMS)]
    kept = [(bn, bn.momentum, bn.num_batches_tracked) for bn in norms]
    for bn in norms:
        bn.momentum = 0.0
        if bn.num_batches_tracked is not None:
            bn.num_batches_tracked = torch.zeros_like(bn.num_batches_tracked)
    try:
        yield
    finally:
        for bn, momentum, tracked in kept:
            bn.momentum = momentum
            bn.num_batches_tracked = tracked


class Stage(nn.Sequential):
    """Units in a row. Once frozen it stays frozen wherever it is moved to: no gradient, batch norm in eval mode."""

    frozen = False
    activation_checkpointing = False
    chain: fused.Chain | None = None
    """The units as one operator, with their constants; kept by `fused.chain_for`."""

    def freeze(self) -> None:
        """No parameter trains from here on, and `train()` leaves batch norm in eval mode."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Stage:
        """As every module's, but a frozen stage stays in eval mode."""
        return super().train(mode and not self.frozen)

    def own_inputs(self) -> None:
        """For inference: units behind the first one may write to their inputs, which nobody else sees."""
        for unit in list(self)[1:]:
            if hasattr(unit, "owns_input"):
                cast(Any, unit).owns_input = True

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch: `input`
        """The last unit's output."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if not self._checkpoints() and (chain := fused.chain_for(self, x)) is not None:
                return fused.run(chain, x)
            for unit in self:
                x = self._checkpointed(unit, x) if self._checkpoints() else unit(x)
        return x

    def _checkpoints(self) -> bool:
        return self.activation_checkpointing and self.training and torch.is_grad_enabled()

    @staticmethod
    def _checkpointed(unit: nn.Module, x: Tensor) -> Tensor:
        # The backward pass runs the unit a second time: its batch statistics must not be counted twice.
        contexts = lambda: (contextlib.nullcontext(), _statistics_kept(unit))  # noqa: E731
        return cast(Tensor, checkpoint(unit, x, use_reentrant=False, context_fn=contexts))


class FreezesLayers(nn.Module, ABC):
    """A net whose stages are groups of its own layers, which it tells in `_frozen_layers`; not `Stage`s."""

    frozen_stages = 0

    @abstractmethod
    def _frozen_layers(self) -> list[nn.Module]:
        """The layers of the first `frozen_stages` stages."""

    def freeze_stages(self, count: int) -> None:
        """conv1..conv{count} train no more: no gradients, batch norm in eval mode, whatever `train()` says."""
        self.frozen_stages = count
        for layer in self._frozen_layers():
            layer.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """As every module's, but frozen stages stay in eval mode."""
        super().train(mode)
        for layer in self._frozen_layers():
            layer.eval()
        return self


class SequentialNet(nn.Module):
    """A net of stages in a row, and a classifier: stages.<name>, neck, fc.

    Args:
        stages: name -> (layers, channels, stride of the map against the image), in order. What pools between two
            stages is the first layer of the second one.
        neck: from the last map (B, C, H, W), any H and W, to the vectors (B, D) that are classified.
        fc: the classifier.
        companions: stage name -> auxiliary classifier of its map, for training only.
        companion_weight: what each one's loss counts for.
    """

    head: Head = "conv"
    pools_globally: ClassVar[bool] = False

    def __init__(
        self,
        stages: Mapping[str, tuple[list[nn.Module], int, int]],
        neck: nn.Module,
        fc: nn.Linear,
        companions: Mapping[str, nn.Module] | None = None,
        companion_weight: float = 0.3,
    ) -> None:
        super().__init__()
        self.stage_channels = {name: channels for name, (_, channels, _) in stages.items()}
        self.stage_strides = {name: stride for name, (_, _, stride) in stages.items()}
        self.stages = nn.ModuleDict({name: Stage(*layers) for name, (layers, _, _) in stages.items()})
        self.neck = neck
        self.fc = fc
        self.companions = nn.ModuleDict(dict(companions or {}))
        self.companion_weight = companion_weight

    def forward(self, x: Tensor) -> Tensor | WithCompanions:
        """Logits (B, K) of x (B, 3, H, W); in training with those of the companions, where there are any."""
        last = next(reversed(self.stage_channels))
        companions = dict(self.companions.items()) if self.training else {}
        maps = self.forward_stages(x, {last, *companions})
        logits = self.fc(self.neck(maps[last]))
        if not companions:
            return logits
        others = tuple(companion(maps[name]) for name, companion in companions.items())
        return WithCompanions(logits, others, self.companion_weight)

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed."""
        return run_stages(x, names, self.stage_channels, self._run_stage)

    def _run_stage(self, name: str, x: Tensor) -> Tensor:
        if name not in self.stages:
            raise ValueError(f"{name} was taken out of this net by pop_stage")
        return self.stages[name](x)

    def freeze_stages(self, count: int) -> None:
        """The first `count` stages train no more, whatever `train()` says."""
        for name in list(self.stage_channels)[:count]:
            stage = self.stages[name]
            assert isinstance(stage, Stage)
            stage.freeze()

    def pop_stage(self, name: str) -> nn.Module:
        """Takes a stage out of the net and returns it; an auxiliary classifier of its map goes with it."""
        if name in self.companions:
            del self.companions[name]
        return self.stages.pop(name)

    def pop_classifier(self) -> nn.Module:
        """Takes neck, classifier and companions out of the net and returns the first two."""
        classifier = nn.Sequential(self.neck, self.fc)
        del self.neck, self.fc
        self.companions = nn.ModuleDict()
        return classifier


class Strided(nn.Module):
    """A module that itself takes every `stride`-th position (the padded shortcut of a residual unit)."""

    stride: int


def remove_stride(module: nn.Module) -> None:
    """Every convolution, pooling and unit inside gets the stride 1: a map of a RoI keeps its size."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d | Strided):
            layer.stride = 1


def run_stages(
    x: Tensor, names: Iterable[str], known: Iterable[str], run: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The maps of the stages `names`; of the `known` ones, in their order, none behind the deepest of these is run.

    Args:
        x: what the first stage reads.
        names, known: the stages.
        run: from a stage's name and its input to its map.
    """
    wanted, known = set(names), list(known)
    if not wanted or not wanted.issubset(known):  # torch 2.11 cannot compile `<=` of a set
        raise ValueError(f"stages {sorted(wanted)}: name some of {', '.join(known)}")
    maps: dict[str, Tensor] = {}
    for name in known:
        x = run(name, x)
        if name in wanted:
            maps[name] = x
        if len(maps) == len(wanted):
            break
    return maps


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """He initialisation (He et al. 2015, "Delving Deep into Rectifiers"): normal with variance 2 / fan.

    The fan is that of the outputs for convolutions and that of the inputs for fully connected layers; the last layer,
    which no ReLU follows, has the variance 1 / fan. Biases are 0; batch norm starts as the identity.
    """
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is linear[-1] else "relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
