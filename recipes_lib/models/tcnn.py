# SPDX-License-Identifier: Apache-2.0
"""Transformed CNNs (T-CNN): convnets whose last convolutions are gated attention that starts as they are, and analysis.

Source: d'Ascoli et al., "Transformed CNNs: recasting pre-trained convolutional layers with self-attention",
arXiv 2106.05795. The paper recasts a trained network and fine-tunes it for 50 epochs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipes_lib.distributed.fsdp import gathered
from recipes_lib.errors import Faults
from recipes_lib.models import convnet
from recipes_lib.models.convnet import ConvNet
from recipes_lib.models.gated_convolution import EXACT_STRENGTH, SATURATED, GatedConvolution
from recipes_lib.models.gpsa import grid_positions, relative_codes
from recipes_lib.models.recast import recast, recast_layers
from recipes_lib.models.resnet import ResNet
from recipes_lib.models.resnet_rs import ResNetRS

NEW = ("gate", "v_pos", "query.weight", "key.weight")
"""The parameters of a recast layer that its convolution has not."""
RECAST: dict[str, tuple[str, ...]] = {
    "tcnn_convnet_small": ("layers.3", "layers.4"),
    "tcnn_resnet18": ("layer4",),
    "tcnn_resnet50": ("layer4",),
    "tcnn_resnetrs50": ("layer4",),
}
"""The parts whose convolutions become attention: the last stage, with the smallest feature maps."""


@dataclass(frozen=True, kw_only=True)
class TCNNConfig:
    """The architecture of a convnet whose last convolutions are gated attention."""

    arch: Literal["tcnn_convnet_small", "tcnn_resnet18", "tcnn_resnet50", "tcnn_resnetrs50"] = "tcnn_resnet50"
    """The network that is recast."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """The first layers of a ResNet: imagenet, or cifar (for images of 32 pixels)."""
    gate: Literal["linear", "near"] = "linear"
    """linear: the gate is its parameter and starts at 1, exactly the convolution; near: the sigmoid of its parameter."""
    gate_logit: float = 10.0
    """The parameter of gate near at the start; 4 lets the gates open sooner, and 1 is ConViT's value."""
    locality_strength: float | None = None
    """alpha of the position attention at the start, above 0. None: 40 with gate linear, 10 with gate near."""
    head_dim: int = 8
    """Dimensions of the queries and keys of each of the nine heads."""

    def check(self, faults: Faults) -> None:
        """Adds every fault of this group to ``faults``."""
        faults.need(self.head_dim >= 1, "model.head_dim", self.head_dim, "of at least 1")
        # in float32 the sigmoid of 17 is 1, and its gradient 0
        faults.need(self.gate_logit <= 16, "model.gate_logit", self.gate_logit, "of at most 16", "10 is nearly closed.")
        if self.locality_strength is not None:
            alpha, least = self.locality_strength, EXACT_STRENGTH[torch.float32] if self.gate == "linear" else 0
            allowed = f"of at least {least:g} with gate linear" if least else "above 0"
            fine = alpha >= least and alpha > 0
            faults.need(fine, "model.locality_strength", alpha, allowed, "gate near takes smaller ones." * bool(least))


def build(config: TCNNConfig) -> ConvNet | ResNet | ResNetRS:
    """Builds the network of ``config``, which computes what a new network without attention does.

    Its state dict has the plain network's keys, and ``gate``, ``v_pos``, ``query`` and ``key`` of each recast layer besides.
    With :func:`new_parameters` it is started from a trained one.

    Raises: ``ConfigError`` if the config has a fault.
    """
    faults = Faults()
    config.check(faults)
    faults.raise_any()
    return recast(
        _plain(config),
        RECAST[config.arch],
        gate=config.gate,
        locality_strength=config.locality_strength,
        gate_logit=config.gate_logit,
        head_dim=config.head_dim,
    )


def _plain(config: TCNNConfig) -> ConvNet | ResNet | ResNetRS:
    """The network before it is recast, with new weights."""
    match config.arch:
        case "tcnn_convnet_small":
            return convnet.small()
        case "tcnn_resnetrs50":
            return ResNetRS()
        case "tcnn_resnet18":
            return ResNet("resnet18", stem=config.stem)
        case "tcnn_resnet50":
            return ResNet("resnet50", stem=config.stem)


def new_parameters(network: nn.Module) -> dict[str, Tensor]:
    """The entries of a network's state dict that its recast layers have and convolutions have not.

    With the weights of a trained convnet they are a whole state dict: ``network.load_state_dict(new_parameters(network) | cnn)``.
    """
    new = {f"{name}.{part}" for name, _ in recast_layers(network) for part in NEW}
    return {name: value for name, value in network.state_dict().items() if name in new}


def param_groups(network: nn.Module, *, gate_lr_scale: float) -> list[dict[str, Any]]:
    """The optimiser's groups of the gates and of the v_pos of all recast layers, which do not decay.

    Weight decay would pull a gate to an open one and v_pos to attention to all positions alike. The gates' learning rate
    is ``gate_lr_scale`` times the network's: a nearly closed gate has a small gradient, and Adam moves it by about one
    learning rate per step. All other parameters belong to ``groups.decay_groups(network, without=...)``.

    Raises: ``ValueError`` if a gate to train is saturated.
    """
    layers = dict(recast_layers(network))
    for name, layer in layers.items():
        if layer.gate_kind == "saturated" and layer.gate.requires_grad:
            raise ValueError(
                f"{name} has gate saturated: its gradient is exactly 0, so the layer stays a convolution, however long it "
                f"is trained. Recast with gate linear, or near with gate_logit of at most 10."
            )
    gates = [layer.gate for layer in layers.values() if layer.gate.requires_grad]
    positions = [layer.v_pos for layer in layers.values() if layer.v_pos.requires_grad]
    groups = [
        {"params": gates, "decays": False, "lr_scale": gate_lr_scale},
        {"params": positions, "decays": False},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def gates(network: nn.Module) -> dict[str, Tensor]:
    """The gate of each head, by layer; 1 is the convolution, 0 attention to content alone.  -> {name: [height, width]}

    A head stands at its pixel of the kernel. If weights are sharded, all ranks call it.
    """
    found = {name: (gathered(layer.gates()), layer.kernel_size) for name, layer in recast_layers(network)}
    return {name: gate.unflatten(0, sides) for name, (gate, sides) in found.items()}


@torch.no_grad()
def content_distances(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """How far each head's content attention A looks: the mean distance to what it attends to, by layer.

    Distances are in pixels of the layer's feature map, weighted by A and averaged over queries and images. Call eval()
    first, or batch norms take the images into their statistics.

    Shapes: ``images`` [B, channels, height, width] -> {name: [H]}.
    """
    found: dict[str, Tensor] = {}

    def measure(layer: GatedConvolution, name: str, maps: Tensor) -> None:
        positions = grid_positions(*maps.shape[-2:], device=maps.device).unflatten(0, maps.shape[-2:])
        queries = positions[:: layer.stride[0], :: layer.stride[1]].flatten(0, 1)
        distance = relative_codes(queries, positions.flatten(0, 1))[..., 2].sqrt()  # [Q, N]
        found[name] = (layer.content_maps(maps) * distance).sum(dim=-1).mean(dim=(0, 2))

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: measure(layer, name, args[0]))
        for name, layer in recast_layers(network)
    ]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def reset_gates(network: nn.Module, names: Iterable[str]) -> None:
    """Closes the gates of the layers ``names``, in place, so that they attend to positions alone.

    What accuracy a trained network then loses is what it owes to the content attention of these layers.

    Raises: ``ValueError`` if a name is no recast layer.
    """
    layers = dict(recast_layers(network))
    for name in names:
        if name not in layers:
            raise ValueError(f"{name!r} is no recast layer. There are: {', '.join(layers)}.")
        layers[name].gate.fill_(1.0 if layers[name].gate_kind == "linear" else SATURATED)
