# SPDX-License-Identifier: Apache-2.0
"""A small plain convolutional network, which learns fastest from thousands of small images in a minute on one core."""

from itertools import pairwise

from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm


class ConvNet(nn.Module):
    """Four layers of 3x3 convolution with stride 2, batch norm (over all ranks) and ReLU, then the mean over positions.

    Shapes: images [batch, 3, height, width], sides of at least 8 -> [batch, 128].
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), CrossRankBatchNorm(after), nn.ReLU()
                )
                for before, after in pairwise(widths)
            )
        )
        self.num_features = widths[-1]
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm

    def forward(self, images: Tensor) -> Tensor:
        """The representation of the images.  [batch, 3, height, width] -> [batch, 128]"""
        return self.layers(images).mean(dim=(2, 3))

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; no norm follows it.  [batch, 3, height, width] -> [batch, 128]"""
        return self(images)
