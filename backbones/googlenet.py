"""GoogLeNet (Szegedy et al. 2015) as torchvision has it, with this project's stages.

torchvision's has batch norm, and 3x3 where the paper has 5x5 convolutions: 6.6M parameters for the paper's 6.8M. Names
of parameters are torchvision's, so its weights load; they were trained with inputs in [-1, 1], which is the
preprocessing that travels with them here (torchvision's `transform_input`). Stages: conv1, conv2 (both convolutions),
then the inception modules 3, 4 and 5 as conv3, conv4 and conv5; the pooling before each belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, InceptionAux
from torchvision.models.googlenet import GoogLeNet as TorchvisionGoogLeNet

from backbones.batch_norm import NORMS
from backbones.staged import FreezesLayers, Head, Norm, Stage, WithCompanions, initialise, run_stages

STAGES: dict[str, tuple[tuple[str, ...], int]] = {
    "conv1": (("conv1",), 2),
    "conv2": (("maxpool1", "conv2", "conv3"), 4),
    "conv3": (("maxpool2", "inception3a", "inception3b"), 8),
    "conv4": (("maxpool3", *(f"inception4{letter}" for letter in "abcde")), 16),
    "conv5": (("maxpool4", "inception5a", "inception5b"), 32),
}
"""torchvision's layers in each stage, and its stride."""
COMPANION_WEIGHT = 0.3
"""What an auxiliary classifier's loss counts for (Szegedy et al. 2015, Sec. 5)."""


class GoogLeNet(FreezesLayers, TorchvisionGoogLeNet):
    """torchvision's net: a classifier, and a backbone with feature taps conv1..conv5.

    Args:
        norm: which batch norm (see `batch_norm.NORMS`).
        num_classes: outputs K.
        dropout: probability before the classifier, in training. The paper's is 0.4, torchvision's 0.2.
        auxiliary: with the two auxiliary classifiers of training, on the maps of inception 4a and 4d.
    """

    head: Head = "conv"
    pools_globally = True

    def __init__(
        self, *, norm: Norm = "batch", num_classes: int = 1000, dropout: float = 0.4, auxiliary: bool = False
    ) -> None:
        super().__init__(num_classes, aux_logits=False, transform_input=False, init_weights=False, dropout=dropout)
        taps = {"inception4a": 512, "inception4d": 528} if auxiliary else {}
        self.companions = nn.ModuleDict(
            {name: InceptionAux(channels, num_classes, BasicConv2d) for name, channels in taps.items()}
        )
        for layer in self.modules():
            if isinstance(layer, BasicConv2d) and norm != "batch":
                layer.add_module("bn", NORMS[norm](layer.bn.num_features, layer.bn.eps))
        self.stage_strides = {name: stride for name, (_, stride) in STAGES.items()}
        self.stage_channels = {"conv1": 64, "conv2": 192, "conv3": 480, "conv4": 832, "conv5": 1024}
        initialise(self)
        last = [self.fc, *(each.fc2 for each in self.companions.values() if isinstance(each, InceptionAux))]
        for classifier in last:
            nn.init.normal_(classifier.weight, std=classifier.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor | WithCompanions:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Logits (B, K) of x (B, 3, H, W), any H and W; in training with those of the companions, if there are any."""
        companions = self.companions if self.training else {}
        others = []
        for layers, _ in STAGES.values():
            for layer in layers:
                x = getattr(self, layer)(x)
                if layer in companions:
                    others.append(companions[layer](x))
        logits = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return WithCompanions(logits, tuple(others), COMPANION_WEIGHT) if others else logits

    def forward_stages(self, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Feature maps by stage name; nothing behind the deepest one asked for is computed."""
        return run_stages(x, names, STAGES, self._run_stage)

    def _run_stage(self, name: str, x: Tensor) -> Tensor:
        for layer in STAGES[name][0]:
            if not hasattr(self, layer):
                raise ValueError(f"{name} was taken out of this net by pop_stage")
            x = getattr(self, layer)(x)
        return x

    def _frozen_layers(self) -> list[nn.Module]:
        frozen = list(STAGES.values())[: self.frozen_stages]
        return [getattr(self, layer) for layers, _ in frozen for layer in layers if hasattr(self, layer)]

    def pop_stage(self, name: str) -> Stage:
        """Takes a stage out of the net and returns it; auxiliary classifiers of its maps go with it."""
        layers = STAGES[name][0]
        stage = Stage(*(getattr(self, layer) for layer in layers))
        for layer in layers:
            delattr(self, layer)
            if layer in self.companions:
                del self.companions[layer]
        if list(STAGES).index(name) < self.frozen_stages:
            stage.freeze()
        return stage

    def pop_classifier(self) -> nn.Linear:
        """Takes the classifier and the auxiliary ones out of the net and returns the first."""
        classifier = self.fc
        del self.fc
        self.companions = nn.ModuleDict()
        return classifier
