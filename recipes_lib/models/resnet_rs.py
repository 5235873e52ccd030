# SPDX-License-Identifier: Apache-2.0
"""timm's ResNet-RS without the classifier, with batch norm over all ranks."""

from functools import partial

from timm.layers import SEModule
from timm.models import resnet as timm_resnet
from torch import Tensor, nn

from recipes_lib.distributed.batch_norm import CrossRankBatchNorm


class ResNetRS(timm_resnet.ResNet):
    """ResNet-RS-50: a ResNet-50 with a deep stem, squeeze-and-excitation, and average pooling in its shortcuts.

    Its state-dict keys are those of timm's ``resnetrs50``, without ``fc``.

    Shapes: images [batch, 3, height, width] -> [batch, 2048].
    Source: Bello et al., "Revisiting ResNets: Improved Training and Scaling Strategies", arXiv 2103.07579.
    """

    def __init__(self) -> None:
        super().__init__(
            block=timm_resnet.Bottleneck,
            layers=(3, 4, 6, 3),
            num_classes=0,
            stem_width=32,
            stem_type="deep",
            replace_stem_pool=True,
            avg_down=True,
            norm_layer=CrossRankBatchNorm,
            block_args={"attn_layer": partial(SEModule, rd_ratio=0.25)},
        )
        self.norm = nn.Identity()  # in place of a Vision Transformer's final LayerNorm

    def before_norm(self, images: Tensor) -> Tensor:
        """The representation; no norm follows it.  [batch, 3, height, width] -> [batch, 2048]"""
        return self(images)
