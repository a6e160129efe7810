"""What runs on each RoI's features: conv5 (C4) or two fully connected layers (VGG, FPN), then the two siblings.

Shapes: R RoIs, C channels, S bins a side, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class Conv5Head(nn.Module):
    """conv5_x and the average pool in the place of VGG's fc layers (He et al. 2016, App. A)."""

    def __init__(self, conv5: nn.Module, out_channels: int, pool_size: int) -> None:
        """Takes over the module `conv5`; with 7x7 features its stride of 2 becomes 1, so that it ends at 7x7 too."""
        super().__init__()
        self.conv5 = conv5
        self.out_channels = out_channels
        if pool_size <= 7:
            for layer in conv5.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.stride = (1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, out_channels)."""
        return self.conv5(features).mean(dim=(2, 3))


class TwoFcHead(nn.Module):
    """fc6 and fc7 with ReLU and dropout (Fast R-CNN with VGG-16; Lin et al. 2017 without dropout)."""

    def __init__(self, in_features: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, width)
        self.fc7 = nn.Linear(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.out_channels = width

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, width)."""
        hidden = self.dropout(self.relu(self.fc6(features.flatten(1))))
        return self.dropout(self.relu(self.fc7(hidden)))


class BoxPredictor(nn.Module):
    """The sibling layers: K + 1 class logits (0 is background), and 4 deltas for each class or for all.

    Initialised N(0, 0.01) and N(0, 0.001) (Fast R-CNN, Sec. 4). Parameter names and layout are torchvision's.
    """

    def __init__(self, in_features: int, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_classes + 1)
        self.bbox_pred = nn.Linear(in_features, 4 if class_agnostic else 4 * (num_classes + 1))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) -> logits (R, K + 1) and deltas (R, 4 * (K + 1)) or (R, 4), float32."""
        return self.cls_score(features).float(), self.bbox_pred(features).float()
