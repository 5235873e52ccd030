# SPDX-License-Identifier: Apache-2.0
"""The ResNets for CIFAR-10 of the ResNet paper, which are a hundred times smaller than those for ImageNet."""

from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from recipes_lib.errors import DataError
from recipes_lib.models.layouts import check_keys


class Block(nn.Module):
    """Twice 3x3 convolution and batch norm, plus a shortcut without parameters, then ReLU.

    Where the shape changes, the shortcut takes every second pixel and adds channels of zeros on both sides.

    Shapes: [batch, in_width, height, width] -> [batch, out_width, height / stride, width / stride].
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, (out_width - in_width) // 2
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)

    def forward(self, maps: Tensor) -> Tensor:
        """The block's output feature maps."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        shortcut = F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(inner + shortcut)


class CifarResNet(nn.Module):
    """A ResNet of ``depth`` = 6 n + 2 layers: three stages of n blocks with 16, 32 and 64 channels, and a classifier.

    Shapes: images [batch, 3, 32, 32] -> scores of the ten classes [batch, 10]; ``features`` -> [batch, 64].
    Source: He et al., arXiv 1512.03385, section 4.2; shortcuts of its option A.
    Raises: ``ValueError`` for another depth.
    """

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth = {depth}; a CIFAR ResNet's is 6 n + 2: 8, 14, 20, 32, 44, 56, ...")
        blocks = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """The scores of the classes.  [batch, 3, height, width] -> [batch, 10]"""
        return self.linear(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """The mean of the last feature maps.  [batch, 3, height, width] -> [batch, 64]"""
        maps = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(maps))).mean(dim=(2, 3))


def load_resnet20(folder: Path) -> CifarResNet:
    """The published ResNet-20 in ``folder``/resnet20_cifar10.safetensors, in evaluation mode.

    Its images are RGB from 0 to 1, normalised as ImageNet's are. The published test error on CIFAR-10 is 8.27 %.

    Source: ``akamaster/pytorch_resnet_cifar10``, ``resnet20-12fca82f.th`` (BSD-2-Clause).
    Raises: ``DataError`` if the file is missing or cannot be read; ``RunError`` if it holds another network.
    """
    path = folder / "resnet20_cifar10.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read ({reason}). It holds the weights of a ResNet-20.") from None
    network = CifarResNet(20)
    own = network.state_dict()
    # the file is older than batch norm's counter of batches, which evaluation does not need
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    check_keys(str(path), state, own)
    network.load_state_dict(state)
    return network.eval()


def _stage(in_width: int, out_width: int, blocks: int, *, stride: int) -> nn.Sequential:
    rest = (Block(out_width, out_width, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(in_width, out_width, stride), *rest)
