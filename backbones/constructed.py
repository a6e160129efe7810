"""The solution by construction (He et al. 2016, Sec. 1): a trained shallow net, deepened by identity layers.

It exists, so a deeper plain net should not have a higher training error than a shallow one; that solvers do not find it
is the degradation problem. Here it can be built, and trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from backbones.batch_norm import TRAINED_BATCH_NORMS, Moments, eval_mode
from backbones.resnet import ResNet
from backbones.resnet_spec import StageSpec


def deepen(net: ResNet, units: Sequence[int], batches: Iterable[Tensor]) -> ResNet:
    """A deeper net with the same outputs: the units of `net`, and behind those of each stage others that do nothing.

    In a residual net F of a new unit is zero (its last batch norm's scale and offset). In a plain net each new
    convolution is the identity, and its batch norm puts back the mean and the variance that it takes out: those of the
    stage's map over `batches`; so are the projections of shortcut option C. What comes in has gone through a ReLU, so
    one more changes nothing. Outputs are equal in eval mode up to rounding; in training the batches of a net with such
    identities differ from their mean, as with any batch norm.

    Args:
        net: trained, with trained batch norm; without shortcuts not of bottlenecks.
        units: of each stage, at least as many as `net` has.
        batches: (B, 3, H, W), normalised, on the net's device; a plain net and option C need them, other nets do not
            look.

    Returns:
        In eval mode, on the net's device.

    Raises:
        ValueError: fewer units, another number of stages, plain bottlenecks, or no batch where one is needed.
    """
    spec = net.spec
    if len(units) != len(spec.stages) or any(new < old.units for new, old in zip(units, spec.stages, strict=True)):
        raise ValueError(f"units: one number for each of the {len(spec.stages)} stages, none below the shallow net's")
    if spec.unit == "bottleneck" and spec.plain:
        raise ValueError("a plain net of bottlenecks cannot be deepened: its 1x1 convolutions narrow the map")
    stages = [StageSpec(**{**old.model_dump(), "units": new}) for new, old in zip(units, spec.stages, strict=True)]
    deep = ResNet(spec.model_copy(update={"stages": tuple(stages)})).to(net.fc.weight.device).eval()
    deep.load_state_dict(net.state_dict(), strict=False)  # the units keep their numbers
    measured = spec.plain or spec.shortcut == "C"
    moments = _stage_moments(net, batches) if measured else {}
    for number, old in enumerate(spec.stages, start=1):
        stage = getattr(deep, f"layer{number}")
        for index in range(old.units, units[number - 1]):
            unit = stage.get_submodule(str(index))
            identity = unit if spec.plain else unit.downsample
            if identity is not None:
                _make_identity(identity, moments[f"conv{number + 1}"])
            if not spec.plain:
                last = unit.pairs()[-1][1]
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
    return deep


@torch.no_grad()
def _stage_moments(net: ResNet, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Mean and variance of each stage's map, by channel, over the batches."""
    names = list(net.stage_channels)[1:]
    moments = {name: Moments(net.stage_channels[name], net.fc.weight.device) for name in names}
    with eval_mode(net):
        for batch in batches:
            for name, feature in net.forward_stages(batch, names).items():
                moments[name].add(feature)
    if not moments[names[0]].count:
        raise ValueError("deepen: this net needs batches, which say what its new batch norms have to put back")
    return moments


@torch.no_grad()
def _make_identity(unit: nn.Module, moments: Moments) -> None:
    """Every convolution the identity, every batch norm too for maps with these moments."""
    variance = (moments.squares / moments.count).float()
    mean = moments.mean.float()
    for layer in unit.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        elif (
            isinstance(layer, TRAINED_BATCH_NORMS) and layer.running_mean is not None and layer.running_var is not None
        ):
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            layer.weight.copy_((variance + layer.eps).sqrt())
            layer.bias.copy_(mean)
