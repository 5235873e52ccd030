# SPDX-License-Identifier: Apache-2.0
"""A small plain convolutional network, which learns fastest from thousands of small images in a minute on one core."""

from collections.abc import Sequence

from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm

WIDTHS, STRIDES = (32, 64, 128, 128), (2, 2, 2, 2)


class ConvNet(nn.Module):
    """Layers of 3x3 convolution, batch norm (over all ranks) and ReLU, then the mean over positions.

    ``widths`` and ``strides``: the number of channels and the stride of each layer; four layers with stride 2 by default.

    Shapes: images [batch, 3, height, width], sides of at least 8 -> [batch, last of ``widths``].
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        self.widths, self.strides = tuple(widths), tuple(strides)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                    CrossRankBatchNorm(after),
                    nn.ReLU(),
                )
                for before, after, stride in zip((3, *self.widths[:-1]), self.widths, self.strides, strict=True)
            )
        )
        self.num_features = self.widths[-1]
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm

    def forward(self, images: Tensor) -> Tensor:
        """The representation of the images.  [batch, 3, height, width] -> [batch, num_features]"""
        return self.layers(images).mean(dim=(2, 3))

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; no norm follows it.  [batch, 3, height, width] -> [batch, num_features]"""
        return self(images)


def small() -> ConvNet:
    """Five narrow layers, whose last feature map has a quarter of the images' side: 8x8 pixels for images of 32."""
    return ConvNet((12, 24, 24, 32, 32), (2, 1, 2, 1, 1))
