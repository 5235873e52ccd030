# SPDX-License-Identifier: Apache-2.0
"""A multilayer perceptron on a small image's brightness: it trains in a second and has no batch norm to share."""

from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear layers with ``width`` outputs and ReLU on the pixels of the greyscale image (the channels' mean).

    Shapes: images [batch, 3, side, side] -> [batch, width].
    """

    def __init__(self, *, image_size: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(image_size**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.image_size, self.num_features = image_size, width
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm

    def forward(self, images: Tensor) -> Tensor:
        """The representation of the images.  [batch, 3, side, side] -> [batch, width]"""
        return self.layers(images.mean(dim=1).flatten(1))

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; no norm follows it.  [batch, 3, side, side] -> [batch, width]"""
        return self(images)
