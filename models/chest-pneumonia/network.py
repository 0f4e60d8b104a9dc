"""The network: a small residual convolutional network whose head allows a class activation map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING = 64


class Block(nn.Module):
    """Two 3×3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(inside, outside, 1, bias=False),
                nn.BatchNorm2d(outside),
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class Network(nn.Module):
    """From (n, 1, rows, columns) to logits (n, classes) and an embedding (n, EMBEDDING).

    The embedding is the mean over the image of the last feature map, and the head is linear in it, so the head's
    weights over that feature map give a class activation map (Zhou et al. 2016).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 24, 5, 2, 2, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            Block(24, 24, 1),
            Block(24, 48, 2),
            Block(48, 48, 1),
            Block(48, 96, 2),
            Block(96, 96, 1),
            Block(96, 128, 2),
            Block(128, 128, 1),
            nn.Conv2d(128, EMBEDDING, 1, bias=False),
            nn.BatchNorm2d(EMBEDDING),
            nn.ReLU(inplace=True),
        )
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(EMBEDDING, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.features(x).mean(dim=(2, 3))
        return self.head(self.drop(embedding)), embedding
