# SPDX-License-Identifier: Apache-2.0
"""Recasts the convolutions of a trained network as gated attention, folds them back, and checks that nothing changed.

Source: d'Ascoli et al., "Transformed CNNs: recasting pre-trained convolutional layers with self-attention",
arXiv 2106.05795.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from recipes_lib.errors import nearest
from recipes_lib.models.gated_convolution import MAP_BUDGET, Gate, GatedConvolution, obstacle

Network = TypeVar("Network", bound=nn.Module)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""How far a recast network's outputs may be from its original's, as a share of the largest output, by dtype."""


@dataclass(frozen=True)
class Found:
    """A convolution of a network."""

    name: str
    """Its dotted name."""
    layer: nn.Conv2d
    obstacle: str | None
    """Why it stays a convolution, or None if it can be recast."""

    def __str__(self) -> str:
        kernel, stride = ("x".join(map(str, sides)) for sides in (self.layer.kernel_size, self.layer.stride))
        facts = f"{self.name or 'the convolution'} ({kernel}, stride {stride}, groups {self.layer.groups})"
        return f"{facts}: {self.obstacle or 'can be recast'}"


def survey(network: nn.Module, where: str | Sequence[str] = "") -> list[Found]:
    """Every convolution inside the parts of ``network`` named ``where``, with the reason why one stays as it is.

    ``where``: dotted names of stages, blocks or convolutions ("layer4"); the empty name is the whole network.

    Raises: ``ValueError`` if a part is unknown.
    """
    known = dict(network.named_modules(remove_duplicate=False))
    parts = [where] if isinstance(where, str) else list(where)
    for part in parts:
        if part not in known:
            stages = [name for name, _ in network.named_children()]
            close = nearest(part, [*stages, *(name for name in known if name and name not in stages)])
            guess = close.partition("There are:")[0]
            raise ValueError(
                f"{type(network).__name__} has no part {part!r}. {guess}Its parts: {', '.join(stages)}, and those inside."
            )
    return [
        Found(name, layer, obstacle(layer))
        for name, layer in known.items()
        if isinstance(layer, nn.Conv2d) and any(not part or f"{name}.".startswith(f"{part}.") for part in parts)
    ]


def recast(
    network: Network,
    where: str | Sequence[str] = "",
    *,
    gate: Gate = "linear",
    locality_strength: float | None = None,
    gate_logit: float = 10.0,
    head_dim: int = 8,
    map_budget: int = MAP_BUDGET,
) -> Network:
    """A copy of ``network`` whose convolutions in the parts ``where`` are gated attention that computes the same.

    Batch norms, 1x1 convolutions and all else stay; :func:`survey` lists which convolutions are left and why. The
    keywords are those of :class:`GatedConvolution`, and gate ``near`` differs a little from the convolution. Queries
    and keys are drawn from torch's global generator.

    With gate ``near``, ``locality_strength`` 1 and ``gate_logit`` 1, ConViT's values, an untrained network becomes a
    hybrid of convolution and attention that is trained from scratch.

    Raises: ``ValueError`` if a part is unknown or has no convolution to recast, and as :class:`GatedConvolution`.
    """
    twin = copy.deepcopy(network)
    found = survey(twin, where)
    made: dict[nn.Module, nn.Module] = {}  # a layer that is used in two places stays one layer
    for each in found:
        if each.obstacle is None and each.layer not in made:
            made[each.layer] = GatedConvolution(
                each.layer,
                gate=gate,
                locality_strength=locality_strength,
                gate_logit=gate_logit,
                head_dim=head_dim,
                map_budget=map_budget,
            )
    if not made:
        listed = "; ".join(map(str, found)) or "it has no convolution"
        raise ValueError(f"no convolution in {where or 'the network'} can be recast as attention: {listed}.")
    return _replaced(twin, made)


def fold(network: Network, *, threshold: float = 0.999) -> Network:
    """A copy of ``network`` whose recast layers are convolutions again where they hardly left their kernel.

    A layer is folded if in each head the gate, and the share of the position attention on the head's own offset, are at
    least ``threshold``. Its content attention is dropped; the convolution's weight is the layer's own, unchanged.
    """
    plain = copy.deepcopy(network)
    made = {
        layer: layer.convolution()
        for _, layer in recast_layers(plain)
        if min(layer.gates().min(), 1 - layer.stray_attention(reach=32).max()) >= threshold
    }
    return _replaced(plain, made)


def recast_layers(network: nn.Module) -> Iterator[tuple[str, GatedConvolution]]:
    """The recast layers of ``network`` by name, in the order of its modules."""
    for name, module in network.named_modules():
        if isinstance(module, GatedConvolution):
            yield name, module


@dataclass(frozen=True)
class Difference:
    """How far an output is from the original's, as a share of the original's largest output."""

    interior: float
    """Over the pixels whose kernel lies inside the feature map."""
    border: float
    """Over the pixels whose kernel touches the border of zeros."""

    @property
    def largest(self) -> float:
        """The larger of both."""
        return max(self.interior, self.border)


def check_identity(
    network: nn.Module, twin: nn.Module, images: Tensor, *, tolerance: float | None = None
) -> dict[str, Difference]:
    """Checks that ``twin``, which :func:`recast` made of ``network``, computes the same, by attention in all heads.

    Each recast layer gets the input that its convolution has in ``network``. Then the outputs of both networks are
    compared; their difference has the name "output" and no border.

    ``tolerance``: the largest difference allowed; the default is that of :data:`TOLERANCE` for the images' dtype.

    Shapes: ``images`` [B, channels, height, width]. Returns the differences by the layers' names.
    Raises: ``ValueError`` if a network is in training mode, or a difference is above the tolerance.
    """
    for which, model in (("network", network), ("twin", twin)):
        if model.training:
            raise ValueError(
                f"the {which} is in training mode, where batch norm changes with every batch and dropout is active: call "
                f"eval() on both networks."
            )
    allowed = TOLERANCE[torch.promote_types(images.dtype, torch.float32)] if tolerance is None else tolerance
    layers = dict(recast_layers(twin))
    with torch.no_grad():
        seen, wanted = _inputs(network, layers, images)
        found = {}
        for name, layer in layers.items():
            convolution = network.get_submodule(name)
            off = _share(layer.attend(seen[name]), convolution(seen[name])).amax(dim=(0, 1))
            border = layer.border(*seen[name].shape[-2:]).to(off.device)
            inside = off[~border]
            found[name] = Difference(inside.max().item() if len(inside) else 0.0, off[border].max().item())
            if not found[name].largest <= allowed:
                raise ValueError(_told(name, found[name], allowed))
    with torch.enable_grad():  # without gradients, local heads would be computed by the convolution itself
        got = twin(images).detach()
    found["output"] = Difference(_share(got, wanted).max().item(), 0.0)
    if not found["output"].largest <= allowed:
        raise ValueError(
            f"the networks' outputs differ by {found['output'].largest:.1e} of the largest output (tolerance "
            f"{allowed:.0e}) although every recast layer agrees with its convolution: another weight or buffer differs."
        )
    return found


def _inputs(network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of the network's modules with the names of ``layers``, and the network's output."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name in layers
    ]
    try:
        return seen, network(images)
    finally:
        for hook in hooks:
            hook.remove()


def _share(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).abs() / wanted.abs().max()


def _told(name: str, off: Difference, allowed: float) -> str:
    if off.interior > allowed:
        hint = "The heads may be in another order than the kernel's pixels, or gate or locality_strength are too small."
    else:
        hint = "Only the border differs: position attention must have the border of zeros among its keys."
    return (
        f"{name} differs from its convolution by {off.interior:.1e} of the largest output inside the feature map and by "
        f"{off.border:.1e} at its border (tolerance {allowed:.0e}). {hint}"
    )


def _replaced(network: Network, made: Mapping[nn.Module, nn.Module]) -> Network:
    """``network`` with each key of ``made`` replaced by its value, in place."""
    if network in made:
        return made[network]
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, made[module])
    return network
