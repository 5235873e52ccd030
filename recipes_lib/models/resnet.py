# SPDX-License-Identifier: Apache-2.0
"""torchvision's ResNets without the classifier, with batch norm over all ranks and a stem for small images."""

from typing import Literal

import torchvision.models.resnet as torchvision_resnet
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm
from recipes_lib.errors import ConfigError, nearest

BLOCKS = {
    "resnet18": (torchvision_resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (torchvision_resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (torchvision_resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (torchvision_resnet.Bottleneck, [3, 4, 23, 3]),
}
"""The kind of block of each architecture, and the number of blocks at each resolution."""
Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


class ResNet(torchvision_resnet.ResNet):
    """A ResNet whose representation is the average-pooled last feature map.

    Its state-dict keys are torchvision's, without ``fc``. The stem ``imagenet`` is torchvision's: a 7x7 convolution
    with stride 2, then max pooling. The stem ``cifar`` is a 3x3 convolution with stride 1 and no pooling, as in
    SimCLR's appendix for images of 32 pixels, of which the first stem would leave a 1x1 map.

    Shapes: images [batch, 3, height, width] -> [batch, num_features].
    Source: He et al., arXiv 1512.03385; the small stem: Chen et al., arXiv 2002.05709, appendix B.9.
    Raises: ``ConfigError`` for an unknown ``arch``.
    """

    def __init__(self, arch: Arch, *, stem: Literal["imagenet", "cifar"]) -> None:
        if arch not in BLOCKS:
            raise ConfigError(f"model.arch = {arch} is no ResNet. {nearest(arch, BLOCKS)}")
        super().__init__(*BLOCKS[arch], norm_layer=CrossRankBatchNorm)
        self.arch, self.stem = arch, stem
        self.num_features = self.fc.in_features
        self.fc = nn.Identity()
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; no norm follows it.  [batch, 3, height, width] -> [batch, num_features]"""
        return self(images)
