# SPDX-License-Identifier: Apache-2.0
"""Wide ResNets: few layers, many channels, for images of 32 pixels."""

import torch.nn.functional as F
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm


class Block(nn.Module):
    """A pre-activation block: twice batch norm, ReLU and 3x3 convolution, plus a shortcut of the input.

    The shortcut is the identity, or a 1x1 convolution if the shape changes.

    Shapes: [batch, in_width, height, width] -> [batch, out_width, height / stride, width / stride].
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = CrossRankBatchNorm(in_width), nn.Conv2d(in_width, out_width, 3, padding=1)
        self.bn2 = CrossRankBatchNorm(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, stride=stride, padding=1)
        fits = in_width == out_width and stride == 1
        self.shortcut = nn.Identity() if fits else nn.Conv2d(in_width, out_width, 1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """The block's output feature maps."""
        inner = self.conv1(F.relu(self.bn1(maps)))
        return self.conv2(F.relu(self.bn2(inner))) + self.shortcut(maps)


class WideResNet(nn.Module):
    """A pre-activation ResNet of ``depth`` = 6 n + 4 layers: three groups of n blocks with 16, 32, 64 * ``width`` maps.

    Its representation is the average of the last feature maps. There is no dropout. Batch statistics are computed over
    all ranks.

    Shapes: images [batch, 3, height, width] -> [batch, num_features], num_features = 64 * ``width``.
    Raises: ``ValueError`` for a depth that is not 6 n + 4, or a width below 1.
    Source: Zagoruyko and Komodakis, arXiv 1605.07146. As in PAWS's released code, convolutions have a bias and torch's
    default initialisation, and the last norm has momentum 0.99: its running statistics are almost those of the last
    batch.
    Differs: as in PAWS's code, the second convolution of a block has the stride; in the paper it is the first.
    """

    def __init__(self, *, depth: int, width: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth = {depth}; a wide ResNet's is 6 n + 4 with n of at least 1: 10, 16, 22, 28, ...")
        if width < 1:
            raise ValueError(f"width = {width}; it must be at least 1 (PAWS uses 2).")
        self.depth, self.width = depth, width
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = _group(16, 16 * width, blocks, stride=1)
        self.layer2 = _group(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _group(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = CrossRankBatchNorm(64 * width, momentum=0.99)
        self.num_features = 64 * width
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm

    def forward(self, images: Tensor) -> Tensor:
        """The representation of the images.  [batch, 3, height, width] -> [batch, num_features]"""
        maps = self.layer3(self.layer2(self.layer1(self.conv1(images))))  # [batch, num_features, height / 4, width / 4]
        return F.relu(self.bn1(maps)).mean(dim=(2, 3))  # [batch, num_features]

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation, whose last norm precedes pooling.  [batch, 3, height, width] -> [batch, 64 * width]"""
        return self(images)


def _group(in_width: int, out_width: int, blocks: int, *, stride: int) -> nn.Sequential:
    """The blocks of one resolution; the first block changes width and resolution."""
    rest = (Block(out_width, out_width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(in_width, out_width, stride), *rest)
