# SPDX-License-Identifier: Apache-2.0
"""A perceptron on a small image's brightness: what trains in a second, and has no batch norm that workers would share."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers of ``width`` ReLUs on the pixels, the mean of their colours taken.

    Shapes: images [batch, 3, side, side] -> [batch, width].
    """

    def __init__(self, *, image_size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(image_size**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.image_size, self.num_features = image_size, width
        self.norm = nn.Identity()  # where a Vision Transformer has its final LayerNorm

    def forward(self, images: Tensor) -> Tensor:
        """The representation."""
        return self.layers(images.mean(dim=1).flatten(1))

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; there is no norm after it."""
        return self(images)
